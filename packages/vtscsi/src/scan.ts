// Finds the units of a bus (CAM's scsi_xpt): REPORT LUNS of each target, INQUIRY of each unit.
import { type Log, VirtioFault } from "@virtio/core";
import { ScsiVpd } from "@virtio/core/scsi";
import {
  inquiry,
  isRefusal,
  reportLuns,
  supportedPages,
  testUnitReady,
  vitalProductData,
} from "./commands.js";
import { type Inquiry, parseInquiry, text } from "./inquiry.js";
import type { LogicalUnit } from "./logical-unit.js";
import type { Sim } from "./sim.js";

/** Targets that are asked at a time. */
const AT_A_TIME = 16;
/** Units of a bus: more are no bus that a person set up. */
const UNITS_MAX = 1024;
/** LUNs that are tried one after the other where a target has no REPORT LUNS, as many as SCSI-2 knew. */
const SEQUENTIAL_LUNS = 8;

/** Who was found. */
export interface Found {
  readonly unit: LogicalUnit;
  readonly inquiry: Inquiry;
  /** Empty when it has none. */
  readonly serial: string;
  /** Pages of vital product data that it has. */
  readonly pages: ReadonlySet<number>;
}

/**
 * Looks at one target.
 * @returns its units in order; null: it does not answer, and nobody knows
 */
async function scanTarget(sim: Sim, target: number, log: Log): Promise<readonly Found[] | null> {
  const found: Found[] = [];
  try {
    for (const lun of await lunsOf(sim, target)) {
      const unit = await look(sim, target, lun);
      if (unit !== null) found.push(unit);
    }
    return found;
  } catch (fault) {
    if (fault instanceof VirtioFault && fault.code === "CLOSED") return found;
    log(`cannot scan target ${target}: ${fault instanceof Error ? fault.message : String(fault)}`);
    return null;
  }
}

/** @throws VirtioFault CLOSED (no such target) and others */
async function lunsOf(sim: Sim, target: number): Promise<readonly number[]> {
  try {
    return (await reportLuns(sim, sim.unit(target, 0))).slice(0, UNITS_MAX);
  } catch (fault) {
    if (!isRefusal(fault)) throw fault;
    const count = Math.min(SEQUENTIAL_LUNS, sim.host.maxLun + 1);
    return Array.from({ length: count }, (_, lun) => lun);
  }
}

/** Null: nothing is there. @throws VirtioFault */
async function look(sim: Sim, target: number, lun: number): Promise<Found | null> {
  const unit = sim.unit(target, lun);
  try {
    const who = parseInquiry(await inquiry(sim, unit));
    if (who === null) return null;
    // What it has to tell it tells now, and not to the first who uses it (§5.6.6.3.1).
    await testUnitReady(sim, unit).catch(ignoreNotReady);
    const pages = await supportedPages(sim, unit);
    const serial = pages.has(ScsiVpd.UNIT_SERIAL_NUMBER)
      ? text(await vitalProductData(sim, unit, ScsiVpd.UNIT_SERIAL_NUMBER))
      : "";
    return { unit, inquiry: who, serial, pages };
  } catch (fault) {
    if (fault instanceof VirtioFault && (fault.code === "CLOSED" || isRefusal(fault))) return null;
    throw fault;
  }
}

/** One that is there and has no medium is there. */
function ignoreNotReady(fault: unknown): void {
  if (!(fault instanceof VirtioFault && (fault.code === "IO" || fault.code === "BUSY")))
    throw fault;
}

/** What a scan tells. */
export interface ScannerOptions {
  readonly sim: Sim;
  readonly log: Log;
  /** Targets that have units: they are looked at first. */
  readonly known: () => ReadonlySet<number>;
  /** Units of a target that answered, in order; all others of it are gone. One call at a time. */
  readonly onTarget: (target: number, found: readonly Found[]) => Promise<void>;
}

/** One scan at a time; what is asked for meanwhile is done after it, once. */
export class Scanner {
  readonly #options: ScannerOptions;
  /** Targets that are to be looked at. */
  #pending = new Set<number>();
  /** The scan that is under way or was last, and the one that comes after it. */
  #current: Promise<void> = Promise.resolve();
  #next: Promise<void> | null = null;
  #busy = false;
  #stopped = false;

  constructor(options: ScannerOptions) {
    this.#options = options;
  }

  /** A scan is under way. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Nothing is looked at any more. */
  stop(): void {
    this.#stopped = true;
    this.#pending.clear();
  }

  /** Looks at one target, or at all. Resolves when that is done; never rejects. */
  scan(target?: number): Promise<void> {
    const { maxTarget } = this.#options.sim.host;
    if (target === undefined) for (let t = 0; t <= maxTarget; t++) this.#pending.add(t);
    else if (target <= maxTarget) this.#pending.add(target);
    if (this.#next === null) {
      this.#next = this.#current.then(() => {
        this.#next = null;
        return this.#run();
      });
      this.#current = this.#next;
    }
    return this.#next;
  }

  async #run(): Promise<void> {
    const { sim, log, onTarget, known } = this.#options;
    const first = known();
    const rank = (target: number): number => (first.has(target) ? target : target + 256);
    const targets = [...this.#pending].sort((a, b) => rank(a) - rank(b));
    this.#pending.clear();
    let units = 0;
    this.#busy = true;
    try {
      for (let at = 0; at < targets.length && !this.#stopped; at += AT_A_TIME) {
        const batch = targets.slice(at, at + AT_A_TIME);
        const found = await Promise.all(batch.map((target) => scanTarget(sim, target, log)));
        if (found.every((list) => list === null)) {
          log("no target answers: the scan ends here");
          return;
        }
        for (const [i, list] of found.entries()) {
          if (list === null || this.#stopped) continue;
          const taken = list.slice(0, Math.max(0, UNITS_MAX - units));
          if (taken.length < list.length)
            log(`more than ${UNITS_MAX} units: the rest is left alone`);
          units += taken.length;
          await onTarget(batch[i] as number, taken);
        }
      }
    } catch (fault) {
      log(`the scan failed: ${String(fault)}`);
    } finally {
      this.#busy = false;
    }
  }
}

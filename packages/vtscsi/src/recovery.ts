// What is done about commands that time out: abort the task, reset the unit, reset the device; each with a bound.
import { type Log, type TaskQueue, VirtioFault } from "@virtio/core";
import { ScsiTmf } from "@virtio/core/scsi";
import type { Ccb } from "./ccb.js";
import { CONTROL_MS, type ControlQueue } from "./control-queue.js";
import type { LogicalUnit } from "./logical-unit.js";

/** How long a device may take to give a command back that it says to have aborted, milliseconds. */
const GRACE_MS = 2000;
const POLL_MS = 20;

/** What is needed of the adapter. */
export interface RecoveryOptions {
  /** `vtscsi0` */
  readonly adapter: string;
  readonly tasks: TaskQueue;
  readonly log: Log;
  readonly control: ControlQueue;
  /** Never reset the device. */
  readonly busResetDisabled: () => boolean;
  /** Resets the device; never rejects. What it had is over then. */
  readonly reset: (why: VirtioFault) => Promise<void>;
  /** Ends the commands for which there is a fault: see RequestQueue. */
  readonly fail: (why: (ccb: Ccb, unit: LogicalUnit) => VirtioFault | null) => void;
  /** There may be room again. */
  readonly progress: (unit: LogicalUnit) => void;
}

/** One unit at a time is brought back, whatever is late of it; units do not wait for each other. */
export class Recovery {
  /** Commands that timed out. */
  timeouts = 0;
  readonly #options: RecoveryOptions;
  /** By unit that is being brought back: what is late. */
  readonly #late = new Map<LogicalUnit, Set<Ccb>>();

  constructor(options: RecoveryOptions) {
    this.#options = options;
  }

  /** A command is late. */
  late(unit: LogicalUnit, ccb: Ccb): void {
    this.timeouts += 1;
    const known = this.#late.get(unit);
    if (known !== undefined) {
      known.add(ccb);
      return;
    }
    const late = new Set([ccb]);
    this.#late.set(unit, late);
    unit.frozen = true;
    // Others that are late now are seen in this turn.
    this.#options.tasks.enqueue(() => {
      void this.#recover(unit, late);
    });
  }

  async #recover(unit: LogicalUnit, late: ReadonlySet<Ccb>): Promise<void> {
    const { adapter, log } = this.#options;
    const where = `target ${unit.target} lun ${unit.lun}`;
    const left = (): Ccb[] => [...late].filter((ccb) => ccb.unit === unit && ccb.late);
    await this.#abort(unit, left);
    if (left().length > 0) {
      log(`${where}: ${left().length} commands timed out and were not aborted: resetting the unit`);
      await this.#resetUnit(unit, left);
      await this.#giveUp(unit, left, adapter);
    }
    this.#late.delete(unit);
    unit.frozen = false;
    this.#options.progress(unit);
  }

  /** Aborts each, until one is not. All of them have one answer's time. */
  async #abort(unit: LogicalUnit, left: () => Ccb[]): Promise<void> {
    const { tasks, control } = this.#options;
    const deadline = tasks.now() + CONTROL_MS;
    for (let [ccb] = left(); ccb !== undefined; [ccb] = left()) {
      if (tasks.now() > deadline) return;
      try {
        await control.manage(ScsiTmf.ABORT_TASK, unit, [ccb.tagLow, ccb.tagHigh]);
      } catch {
        // Whatever it says, it did not: a greater hammer.
        return;
      }
      const aborted = ccb;
      if (!(await this.#until(() => !left().includes(aborted)))) return;
    }
  }

  async #resetUnit(unit: LogicalUnit, left: () => Ccb[]): Promise<void> {
    try {
      await this.#options.control.manage(ScsiTmf.LOGICAL_UNIT_RESET, unit);
    } catch (fault) {
      this.#options.log(`cannot reset the unit: ${String(fault)}`);
      return;
    }
    await this.#until(() => left().length === 0);
  }

  async #giveUp(unit: LogicalUnit, left: () => Ccb[], device: string): Promise<void> {
    const [first] = left();
    if (first === undefined) return;
    const what = `the command timed out after ${first.timeout} ms and could not be aborted`;
    const why = new VirtioFault("TIMED_OUT", what, { device });
    if (this.#options.busResetDisabled()) {
      this.#options.log("bus reset disabled");
      const late = new Set(left());
      this.#options.fail((ccb, owner) => (owner === unit && late.has(ccb) ? why : null));
    } else await this.#options.reset(why);
  }

  /** Waits until it is so, with a bound. */
  async #until(done: () => boolean): Promise<boolean> {
    const { tasks } = this.#options;
    for (let waited = 0; !done(); waited += POLL_MS) {
      if (waited > GRACE_MS) return false;
      await new Promise<void>((resolve) => {
        tasks.callout(POLL_MS, resolve);
      });
    }
    return true;
  }
}

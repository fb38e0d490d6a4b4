// The units of a bus and the disks on them: what a scan found comes, goes, or stays (CAM's periph drivers).
import { type DriverContext, type ScsiAddress, type ScsiUnit, VirtioFault } from "@virtio/core";
import { ScsiPeripheral } from "@virtio/core/scsi";
import type { StrategyDisk } from "@virtio/storage";
import { ScsiDisk } from "./disk.js";
import type { LogicalUnit } from "./logical-unit.js";
import type { Found } from "./scan.js";
import type { Sim } from "./sim.js";

/** How long a unit that is gone may take to give back what it has, milliseconds. */
const GRACE_MS = 2000;

/** A unit that is there. */
interface Present {
  readonly found: Found;
  /** Null: no driver for its type, or one that could not attach. */
  readonly disk: ScsiDisk | null;
}

/** What is needed of the adapter. */
export interface PeripheralsOptions {
  readonly sim: Sim;
  readonly context: DriverContext;
  /** Milliseconds that a disk's command may take. */
  readonly timeout: number;
}

/** Every unit of one bus. */
export class Peripherals {
  readonly #options: PeripheralsOptions;
  /** By unit, in the order in which they came. */
  readonly #present = new Map<LogicalUnit, Present>();
  #ended = false;

  constructor(options: PeripheralsOptions) {
    this.#options = options;
  }

  get units(): readonly ScsiUnit[] {
    return [...this.#present.values()]
      .map(({ found, disk }) => shown(found, disk))
      .sort((a, b) => a.target - b.target || a.lun - b.lun);
  }

  /** In the order in which they came. */
  get disks(): readonly StrategyDisk[] {
    return this.#disks().map(({ disk }) => disk);
  }

  /** Targets that have units. */
  get targets(): ReadonlySet<number> {
    return new Set([...this.#present.keys()].map(({ target }) => target));
  }

  /** The disk on a unit, if there is one. */
  diskOf({ target, lun }: ScsiAddress): ScsiDisk | undefined {
    return this.#disks().find(({ unit }) => unit.target === target && unit.lun === lun);
  }

  #disks(): readonly ScsiDisk[] {
    return [...this.#present.values()].flatMap(({ disk }) =>
      disk === null || disk.ended ? [] : [disk],
    );
  }

  /** What is on a target now; all else of it is gone. */
  async update(target: number, found: readonly Found[]): Promise<void> {
    for (const { found: known } of [...this.#present.values()])
      if (known.unit.target === target && !found.some((one) => isSame(one, known)))
        this.#leave(known.unit);
    for (const one of found) if (!this.#present.has(one.unit)) await this.#arrive(one);
  }

  async #arrive(seen: Found): Promise<void> {
    const { sim, context, timeout } = this.#options;
    // One that was put in another's place begins anew: what the other has may still come back.
    const { target, lun } = seen.unit;
    const unit = seen.unit.fault === null ? seen.unit : sim.unit(target, lun);
    const found = { ...seen, unit };
    const { inquiry } = found;
    sim.keep(unit);
    let disk: ScsiDisk | null = null;
    if (inquiry.type === ScsiPeripheral.DISK || inquiry.type === ScsiPeripheral.CD_ROM)
      try {
        const names = new Set(this.#disks().map(({ name }) => name));
        disk = await ScsiDisk.attach(found, { sim, context, timeout, names });
      } catch (fault) {
        const why = fault instanceof Error ? fault.message : String(fault);
        context.log(`cannot attach a disk to target ${target} lun ${lun}: ${why}`);
      }
    this.#present.set(unit, { found, disk });
    // The adapter may have come to its end meanwhile.
    if (this.#ended) this.#leave(unit);
  }

  /** A unit is gone. What it was given comes back, or ends after a while. */
  #leave(unit: LogicalUnit): void {
    const { sim, context } = this.#options;
    const disk = this.#present.get(unit)?.disk ?? null;
    this.#present.delete(unit);
    const fault = new VirtioFault("CLOSED", "the unit is gone", {
      device: disk?.name ?? `${sim.name} target ${unit.target} lun ${unit.lun}`,
    });
    const { target, lun } = unit;
    if (disk !== null) {
      const { name } = disk;
      context.announce(
        `${name} at ${context.name} bus 0 scbus${context.unit} target ${target} lun ${lun}`,
      );
      const serial = disk.ident === "" ? "" : ` s/n ${disk.ident}`;
      context.announce(`${name}: <${nameOf(disk.found)}>${serial} detached`);
      context.announce(`(${name}:${context.name}:0:${target}:${lun}): Periph destroyed`);
    }
    sim.drop(unit, fault);
    disk?.end(fault, false);
    if (unit.inFlight > 0)
      sim.device.tasks.callout(GRACE_MS, () =>
        sim.fail((_, owner) => (owner === unit ? fault : null)),
      );
  }

  /** The adapter ended: all of them are gone. */
  end(fault: VirtioFault, orderly: boolean): void {
    this.#ended = true;
    for (const disk of this.#disks()) disk.end(fault, orderly);
    this.#present.clear();
  }
}

const nameOf = ({ inquiry: { vendor, product, revision } }: Found): string =>
  `${vendor} ${product} ${revision}`;

/** Whether a unit is the one that was there before: somebody may have put another in its place. */
const isSame = (one: Found, other: Found): boolean =>
  one.unit === other.unit &&
  one.serial === other.serial &&
  one.inquiry.type === other.inquiry.type &&
  nameOf(one) === nameOf(other);

function shown({ unit, inquiry, serial }: Found, disk: ScsiDisk | null): ScsiUnit {
  const { vendor, product, revision, type, description, queueing } = inquiry;
  const { target, lun } = unit;
  return {
    target,
    lun,
    vendor,
    product,
    revision,
    type,
    description,
    serial,
    peripheral: disk === null || disk.ended ? null : disk.name,
    queueing,
  };
}

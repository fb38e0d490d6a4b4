// The machine's PCI root: bus 0, and the buses behind its bridges.
import type {
  AddressRange,
  DmaMemory,
  PciAddress,
  PciBus,
  PciFunction,
  TaskQueue,
} from "@virtio/core";
import { type FunctionParts, QemuPciFunction } from "./pci-function.js";
import { PciWalk } from "./pci-walk.js";

/** A device number on a bus: where a device is plugged in. */
export interface Slot {
  readonly bus: number;
  readonly device: number;
}

const slotOf = (rid: number): Slot => ({ bus: rid >> 8, device: (rid >> 3) & 31 });

/** Every function that a walk finds. What came or went since the walk before is told to `onChange`. */
export class QemuPciBus implements PciBus {
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** Clear of guest memory, ECAM, the interrupt controllers and the chipset's own ports. */
  readonly windows: { readonly memory: AddressRange; readonly io: AddressRange } = {
    memory: { base: 0xe000_0000, length: 0x1000_0000 },
    io: { base: 0xc000, length: 0x4000 },
  };
  onChange: ((address: PciAddress, what: "added" | "removed") => void) | null = null;
  readonly #parts: FunctionParts;
  readonly #walk: PciWalk;
  /** By routing id. Null before the first walk: what that finds was there all along. */
  #known: Map<number, QemuPciFunction> | null = null;
  /** By routing id of a bridge: the bus behind it. */
  #secondaries = new Map<number, number>();
  /** Routing ids of functions that were told to go and may still answer. */
  readonly #leaving = new Set<number>();

  constructor(memory: DmaMemory, tasks: TaskQueue, parts: FunctionParts) {
    this.memory = memory;
    this.tasks = tasks;
    this.#parts = parts;
    this.#walk = new PciWalk(parts.chipset);
  }

  /** Nothing: QEMU's devices run in their own process. */
  poll(): void {}

  /**
   * Two messages for bus 0, and some for each bridge. A function that was found before is the same object again.
   * @throws VirtioFault CLOSED, TIMED_OUT
   */
  async functions(): Promise<readonly PciFunction[]> {
    const walked = await this.#walk.functions();
    const found = walked.filter(({ rid }) => !this.#leaving.has(rid));
    const before = this.#known;
    const known = new Map<number, QemuPciFunction>();
    for (const { rid, irq } of found) {
      const fn = before?.get(rid) ?? new QemuPciFunction(rid, irq, this.#parts);
      known.set(rid, fn);
      if (before !== null && !before.has(rid)) this.#tell(fn, "added");
    }
    for (const [rid, fn] of before ?? []) if (!known.has(rid)) this.#tell(fn, "removed");
    this.#known = known;
    this.#secondaries = new Map(found.map(({ rid, secondary }) => [rid, secondary]));
    return [...known.values()];
  }

  /** Number of the bus behind the bridge with this routing id, as the last walk found it; 0, the root's, for null. */
  behind(bridge: number | null): number {
    return bridge === null ? 0 : (this.#secondaries.get(bridge) ?? 0);
  }

  /** Resolves when all that was found so far has been told. */
  told(): Promise<void> {
    return new Promise((resolve) => this.tasks.enqueue(resolve));
  }

  /**
   * Takes the functions of these slots out of use, then lets `eject` take them out of the machine. The drivers' reactions to the
   * first are on their way before the second.
   */
  async remove(slots: readonly Slot[], eject: () => Promise<void>): Promise<void> {
    const leaving = [...(this.#known ?? [])].filter(([rid]) => {
      const { bus, device } = slotOf(rid);
      return slots.some((slot) => slot.bus === bus && slot.device === device);
    });
    for (const [rid, fn] of leaving) {
      this.#known?.delete(rid);
      this.#leaving.add(rid);
      this.#tell(fn, "removed");
    }
    try {
      await this.told();
      await eject();
      // Walks that still found them have ended when this one has.
      await this.#walk.functions();
    } finally {
      for (const [rid] of leaving) this.#leaving.delete(rid);
    }
  }

  #tell(fn: QemuPciFunction, what: "added" | "removed"): void {
    this.tasks.enqueue(() => {
      if (what === "removed") fn.takeOut();
      this.onChange?.(fn.address, what);
    });
  }
}

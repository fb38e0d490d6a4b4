// Hot-plug as QEMU's two PC machines show it to a guest: an ACPI event, and registers that say which slots it is about
// (QEMU docs/specs/acpi_pci_hotplug).
import type { Log } from "@virtio/core";
import type { HotPlugPorts } from "./chipset.js";
import type { QemuPciBus, Slot } from "./pci-bus.js";
import type { QtestClient } from "./qtest.js";

/** Bit of the general-purpose events: PCI hot-plug. */
const HOT_PLUG_EVENT = 2;

/** Registers of the slots, each a bit for each of a bus's 32: offsets. SELECT says of which bus. */
enum SlotRegister {
  /** Slots that the machine asks to empty. */
  DOWN = 4,
  /** Writing ones takes those devices out. */
  EJECT = 8,
  SELECT = 16,
}

/** A bus that devices can be plugged into. */
export interface HotPlugBus {
  /** QEMU's name of it. */
  readonly name: string;
  /** Device numbers that it takes. */
  readonly devices: number;
  /** What SELECT takes for it. */
  readonly select: number;
  /** Routing id of the bridge that it is behind; null for bus 0. */
  readonly bridge: number | null;
}

/** What {@link HotPlug} needs of the machine. */
export interface HotPlugParts {
  readonly qtest: QtestClient;
  readonly ports: HotPlugPorts;
  readonly bus: QemuPciBus;
  readonly buses: readonly HotPlugBus[];
  readonly log: Log;
}

/**
 * The guest's side of hot-plug. A device that was added is found by a walk. A request to take one out is answered as a guest does:
 * its driver is told, then the slot is ejected, whereupon QEMU ends what the device still did and deletes it.
 */
export class HotPlug {
  readonly #parts: HotPlugParts;
  #looking: Promise<void> = Promise.resolve();
  /** The look that waits for its turn. */
  #next: Promise<void> | null = null;

  constructor(parts: HotPlugParts) {
    this.#parts = parts;
  }

  /** Lets the event come. Again after a reset of the machine. */
  async setUp(): Promise<void> {
    const { qtest, ports } = this.#parts;
    await qtest.write("io", ports.eventEnable, 1, HOT_PLUG_EVENT);
  }

  /** Service of the ACPI interrupt line. */
  async serve(): Promise<boolean> {
    const { qtest, ports, log } = this.#parts;
    const status = await qtest.read("io", ports.eventStatus, 1);
    if ((status & HOT_PLUG_EVENT) === 0) return false;
    // Cleared before the look: what happens meanwhile is an event of its own.
    await qtest.write("io", ports.eventStatus, 1, HOT_PLUG_EVENT);
    this.look().catch((error: unknown) => log(`qemu: hot-plug: ${String(error)}`));
    return true;
  }

  /**
   * Looks at what changed, and acts on it. Resolves when a look that began after the call has ended, and `onChange` was told.
   * @throws VirtioFault CLOSED, TIMED_OUT
   */
  look(): Promise<void> {
    this.#next ??= this.#looking.then(() => {
      this.#next = null;
      const looking = this.#look();
      this.#looking = looking.catch(() => {});
      return looking;
    });
    return this.#next;
  }

  async #look(): Promise<void> {
    const { bus, buses } = this.#parts;
    const down = buses.map(({ select }) => this.#read(select, SlotRegister.DOWN));
    const [, ...masks] = await Promise.all([bus.functions(), ...down]);
    const ejects: (() => Promise<void>)[] = [];
    const slots: Slot[] = [];
    for (const [i, { select, bridge }] of buses.entries())
      for (let device = 0; device < 32; device++) {
        if ((((masks[i] ?? 0) >>> device) & 1) === 0) continue;
        slots.push({ bus: bus.behind(bridge), device });
        ejects.push(() => this.#write(select, SlotRegister.EJECT, (1 << device) >>> 0));
      }
    if (slots.length > 0)
      await bus.remove(slots, async () => {
        await Promise.all(ejects.map((eject) => eject()));
      });
    await bus.told();
  }

  #read(select: number, register: SlotRegister): Promise<number> {
    const { qtest, ports } = this.#parts;
    qtest.post("io", ports.slots + SlotRegister.SELECT, 4, select);
    return qtest.read("io", ports.slots + register, 4);
  }

  #write(select: number, register: SlotRegister, value: number): Promise<void> {
    const { qtest, ports } = this.#parts;
    qtest.post("io", ports.slots + SlotRegister.SELECT, 4, select);
    return qtest.write("io", ports.slots + register, 4, value);
  }
}

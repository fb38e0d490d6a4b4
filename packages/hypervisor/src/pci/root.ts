// The PCI root of the embedded machine: functions in slots, interrupt lines and messages.
import {
  type DmaMemory,
  type InterruptCounter,
  InterruptLine,
  type IoRegion,
  type PciAddress,
  type PciBus,
  type PciFunction,
  type PciInterrupts,
  type TaskQueue,
  VirtioFault,
} from "@virtio/core";
import { PciCommand, PciRegister } from "@virtio/core/pci";
import { allOnes, type RegisterSpace } from "../registers.js";
import type { PciConfiguration } from "./configuration.js";

/** Where messages go: writes below this address with a vector as data (like the local APIC's). */
const MESSAGE_ADDRESS = 0xfee0_0000;
/** First number that vmstat -i gives a message, as FreeBSD does. */
const FIRST_MESSAGE_IRQ = 256;
/** Lines PIRQE# to PIRQH# of a q35, which four slots in turn share. */
const FIRST_LINE = 20;
const LINES = 4;

/** Slots of the root's bus: 0 is the host bridge's. */
const FIRST_SLOT = 1;
const LAST_SLOT = 31;

interface Slot {
  readonly fn: PciFunction;
  /** The machine is closed. */
  readonly leave: (fault: VirtioFault) => void;
  /** The function is taken out. */
  readonly remove: (fault: VirtioFault) => void;
}

interface Message {
  readonly irq: string;
  readonly name: string;
  readonly handler: () => void;
  count: number;
}

/** What the root needs of its machine. */
export interface PciRootOptions {
  readonly memory: DmaMemory;
  /** The driver's lane. */
  readonly tasks: TaskQueue;
  readonly poll: () => void;
  /** A line for the log. */
  readonly log: (line: string) => void;
}

/** {@inheritDoc PciBus} */
export class PciRoot implements PciBus {
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly windows: PciBus["windows"] = {
    memory: { base: 0xe000_0000, length: 0x1000_0000 },
    io: { base: 0xc000, length: 0x4000 },
  };
  onChange: ((address: PciAddress, what: "added" | "removed") => void) | null = null;
  readonly poll: () => void;
  #closed: VirtioFault | null = null;
  readonly #lines: readonly InterruptLine[];
  /** Functions that hold each line high. */
  readonly #raised: readonly Set<number>[];
  /** By slot, in the order of their slots. */
  readonly #slots: (Slot | null)[] = [];
  /** By message data. */
  readonly #messages: (Message | null)[] = [];

  constructor({ memory, tasks, poll, log }: PciRootOptions) {
    this.memory = memory;
    this.tasks = tasks;
    this.poll = poll;
    this.#lines = Array.from(
      { length: LINES },
      (_, i) => new InterruptLine(FIRST_LINE + i, tasks, log),
    );
    this.#raised = this.#lines.map(() => new Set());
  }

  /** No register answers any more; every function is gone. */
  close(fault: VirtioFault): void {
    this.#closed ??= fault;
    for (const line of this.#lines) line.set(false);
    for (const slot of this.#slots) slot?.leave(this.#closed);
  }

  async functions(): Promise<readonly PciFunction[]> {
    return this.#slots.flatMap((slot) => (slot === null ? [] : [slot.fn]));
  }

  /** Counters of lines and messages that somebody handles or that have counted. */
  interrupts(): readonly InterruptCounter[] {
    const lines = this.#lines.map(({ irq, names, count }) => ({ irq, names, count }));
    const messages = this.#messages.flatMap((m) =>
      m === null ? [] : [{ irq: m.irq, names: [m.name], count: m.count }],
    );
    return [...lines, ...messages].filter(({ names, count }) => names.length > 0 || count > 0);
  }

  /** A message that a function sent. */
  message(address: number, data: number): void {
    const message = address === MESSAGE_ADDRESS ? this.#messages[data] : undefined;
    if (message === undefined || message === null) return;
    message.count += 1;
    this.tasks.enqueue(message.handler);
  }

  /** The level of a slot's INTA#. */
  setLine(slot: number, high: boolean): void {
    const line = slot % LINES;
    const raised = this.#raised[line];
    if (high) raised?.add(slot);
    else raised?.delete(slot);
    this.#lines[line]?.set(raised !== undefined && raised.size > 0);
  }

  /** Puts a function into the first free slot, from slot 1 on; returns its address. @throws VirtioFault NO_SPACE */
  add(configuration: PciConfiguration): PciAddress {
    const at = FIRST_SLOT + [...this.#slots, null].indexOf(null);
    if (at > LAST_SLOT)
      throw new VirtioFault("NO_SPACE", `no free PCI slot: ${LAST_SLOT} devices at most`);
    const address = { domain: 0, bus: 0, device: at, function: 0 };
    let leave: (fault: VirtioFault) => void = () => {};
    const gone = new Promise<VirtioFault>((resolve) => {
      leave = resolve;
    });
    // What is left of a function that was taken out: nothing answers, as on an empty slot.
    let removed: VirtioFault | null = null;
    const present = (): boolean => {
      if (this.#closed !== null) throw this.#closed;
      return removed === null;
    };
    const interrupts = this.#interruptsOf(at, configuration, () => removed === null);
    this.#slots[at - FIRST_SLOT] = {
      leave,
      remove: (fault) => {
        removed = fault;
        interrupts.release();
        leave(fault);
      },
      fn: {
        address,
        read: async (offset, width) =>
          present() ? configuration.read(offset, width) : allOnes(width),
        write: async (offset, width, value) => {
          if (present()) configuration.write(offset, width, value);
        },
        mapBar: async (index) => {
          if (!present()) throw removed;
          return this.#map(configuration, index, () => removed === null);
        },
        interrupts,
        gone,
      },
    };
    return address;
  }

  /** Takes a function out of its slot, which is free then. */
  remove(address: PciAddress, fault: VirtioFault): void {
    const slot = this.#slots[address.device - FIRST_SLOT];
    this.#slots[address.device - FIRST_SLOT] = null;
    slot?.remove(fault);
  }

  #interruptsOf(
    slot: number,
    configuration: PciConfiguration,
    present: () => boolean,
  ): PciInterrupts {
    const held = new Set<number>();
    let leave: (() => void) | null = null;
    const line = this.#lines[slot % LINES] as InterruptLine;
    configuration.set(PciRegister.INTERRUPT_LINE, 1, FIRST_LINE + (slot % LINES));
    return {
      irq: FIRST_LINE + (slot % LINES),
      deliverable: ["msix", "msix-shared", "msi", "intx"],
      message: async (_n, name, handler) => {
        const data = this.#messages.length;
        this.#messages.push({ irq: `irq${FIRST_MESSAGE_IRQ + data}`, name, handler, count: 0 });
        held.add(data);
        return { address: MESSAGE_ADDRESS, data };
      },
      line: async (name, service) => {
        leave?.();
        leave = present() ? line.join(name, service) : null;
      },
      release: () => {
        for (const data of held) this.#messages[data] = null;
        held.clear();
        leave?.();
        leave = null;
      },
    };
  }

  #map(configuration: PciConfiguration, index: number, present: () => boolean): IoRegion {
    const bar = configuration.bar(index);
    if (bar === null) throw new VirtioFault("INVALID", `BAR ${index} is not placed`);
    const { space, kind } = bar;
    const decode = kind === "io" ? PciCommand.IO : PciCommand.MEMORY;
    const decodes = (): boolean => present() && (configuration.command & decode) !== 0;
    const checked = (offset: number, width: number): void => {
      if (this.#closed !== null) throw this.#closed;
      if (offset < 0 || offset % width !== 0 || offset + width > space.length)
        throw new VirtioFault(
          "INVALID",
          `access of ${width} bytes at ${offset} of BAR ${index}, ${space.length} bytes`,
        );
    };
    return region(space, decodes, checked, () => this.#closed !== null);
  }
}

function region(
  space: RegisterSpace,
  decodes: () => boolean,
  checked: (offset: number, width: number) => void,
  closed: () => boolean,
): IoRegion {
  return {
    length: space.length,
    read: async (offset, width) => {
      checked(offset, width);
      return decodes() ? space.read(offset, width) : allOnes(width);
    },
    write: async (offset, width, value) => {
      checked(offset, width);
      if (decodes()) space.write(offset, width, value >>> 0);
    },
    post: (offset, width, value) => {
      // A posted write has nobody to tell that the machine is closed.
      if (!closed()) {
        checked(offset, width);
        if (decodes()) space.write(offset, width, value >>> 0);
      }
    },
  };
}

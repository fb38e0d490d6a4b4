// PCI as a transport needs it: functions, register regions, interrupts.
import type { InterruptKind } from "./device.js";
import type { VirtioFault } from "./errors.js";
import type { DmaMemory } from "./memory.js";
import type { TaskQueue } from "./tasks.js";

/**
 * Registers of one machine. Accesses take effect in call order, post() included. Calls made in one turn without awaiting travel
 * as one message where the machine is remote: write Promise.all, and count round trips. A failed post has no promise: the machine
 * becomes closed with the cause, and every device on it fails with CLOSED.
 */
export interface IoRegion {
  readonly length: number;
  /** Natural alignment only. @throws INVALID, CLOSED, TIMED_OUT */
  read(offset: number, width: 1 | 2 | 4): Promise<number>;
  write(offset: number, width: 1 | 2 | 4, value: number): Promise<void>;
  /** Posted write: the doorbell. Returns at once. */
  post(offset: number, width: 2 | 4, value: number): void;
}

/** Where a function sits. */
export interface PciAddress {
  readonly domain: number;
  readonly bus: number;
  readonly device: number;
  readonly function: number;
}

/** One PCI function: its configuration space, its BARs, its interrupts. */
export interface PciFunction {
  readonly address: PciAddress;
  read(offset: number, width: 1 | 2 | 4): Promise<number>;
  write(offset: number, width: 1 | 2 | 4, value: number): Promise<void>;
  /** The region that BAR `index` decodes, at the address it holds now. @throws INVALID when it holds none. */
  mapBar(index: number): Promise<IoRegion>;
  readonly interrupts: PciInterrupts;
  /** Resolves when the function can no longer be used: the machine is closed, or the function was taken out. */
  readonly gone: Promise<VirtioFault>;
}

/** How one function's interrupts reach the driver. */
export interface PciInterrupts {
  /** Number of the function's level-triggered line, as boot lines and vmstat -i show it. */
  readonly irq: number;
  /** What this machine can deliver as an event. A transport never chooses a kind that is not in here. */
  readonly deliverable: readonly Exclude<InterruptKind, "none">[];
  /** Message address and data to program for vector `n`, and the handler to run as a task. `name` is for vmstat -i. */
  message(
    n: number,
    name: string,
    handler: () => void,
  ): Promise<{ readonly address: number; readonly data: number }>;
  /**
   * Level-triggered line, shared. While the line is high the machine calls every `service` on it, again and again: it reads its
   * function's ISR, runs what that says as tasks, and resolves to whether it was its function's interrupt.
   */
  line(name: string, service: () => Promise<boolean>): Promise<void>;
  /** Takes all handlers of this function back. */
  release(): void;
}

/** A range of bus addresses. */
export interface AddressRange {
  readonly base: number;
  readonly length: number;
}

/** One PCI root, with what a driver of a device on it needs of the machine. */
export interface PciBus {
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** Lets the devices run one step where they live in this thread (embedded machine); elsewhere nothing. */
  poll(): void;
  functions(): Promise<readonly PciFunction[]>;
  /** Where BARs may be put that no firmware placed. */
  readonly windows: { readonly memory: AddressRange; readonly io: AddressRange };
  onChange: ((address: PciAddress, what: "added" | "removed") => void) | null;
}

// A machine: what drivers run on. Drivers never see it; transports see its buses.
import type { VirtioDevice } from "./device.js";
import type { DmaMemory } from "./memory.js";
import type { PciBus } from "./pci.js";
import type { TaskQueue } from "./tasks.js";

/** One row of vmstat -i. */
export interface InterruptCounter {
  /** `irq21`, or `irq256` and up for messages. */
  readonly irq: string;
  /** Who handles it: transport or queue names. */
  readonly names: readonly string[];
  readonly count: number;
}

/** CPUs, memory, time and buses. The kernel in the umbrella knows nothing of its kind. */
export interface Machine {
  /** `embedded`, `qemu` */
  readonly name: string;
  /** The guest's CPUs: hw.ncpu. */
  readonly cpus: number;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly buses: readonly (
    | { readonly kind: "pci"; readonly bus: PciBus }
    | { readonly kind: "vhost-user" | "mmio"; readonly devices: readonly VirtioDevice[] }
  )[];
  interrupts(): readonly InterruptCounter[];
  /** Ends the machine and everything it started. A second call waits for the first. */
  close(): Promise<void>;
}

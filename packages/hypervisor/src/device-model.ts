// What a device model is to the function that carries it.
import type { DeviceType, GuestMemory, TaskQueue } from "@virtio/core";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { RegisterSpace } from "./registers.js";
import type { RuleBook } from "./rules/rule-book.js";

/** What a function gives its model. */
export interface ModelHost {
  /** The model's lane: work starts here, never inside the driver's call. */
  readonly tasks: TaskQueue;
  /** What the device may reach. */
  readonly memory: GuestMemory;
  /** Counts work outside the machine (see Scheduler). */
  outside<T>(work: Promise<T>): Promise<T>;
  /** Words of the feature bits the driver accepted; always the same array, in which they change. */
  readonly features: ArrayLike<number>;
  /** The queue, when the driver enabled it and the device runs. */
  queue(index: number): DeviceQueue | null;
  /** A chain was taken: for the rule book. */
  taken(queue: DeviceQueue, chain: DeviceChain): void;
  /** Chains of this queue were given back: interrupts the driver if it wants that. */
  used(index: number): void;
  /** Device configuration changed: the generation changes and the driver is told. */
  configChanged(): void;
  /** A rule of the device's own language was broken, or kept. */
  readonly rules: RuleBook | null;
}

/** One device type's behaviour, over any transport. */
export interface DeviceModel {
  readonly type: DeviceType;
  /** `blk0` */
  readonly name: string;
  /** PCI class code, 24 bits. */
  readonly classCode: number;
  /** Words of the feature bits of the device type. */
  readonly features: readonly number[];
  /** Bits that the legacy interface alone offers besides: bit numbers. Absent: none. */
  readonly legacyFeatures?: readonly number[];
  /** Which features need which: accepted ones are closed under it (virtio 1.4 §2.2.1). Pairs of bit numbers. */
  readonly prerequisites: readonly (readonly [bit: number, needs: number])[];
  /** Queues of the device. */
  readonly queues: number;
  /** Whether there is a queue of this number, below `queues`. Absent: all are there. */
  hasQueue?(index: number): boolean;
  readonly config: RegisterSpace;
  /** Feature bit that gates a configuration offset; undefined: always there. */
  configGate(offset: number): number | undefined;
  /** Whether the device can run with what the driver accepted, besides what `prerequisites` says. Absent: it can. */
  accepts?(): boolean;
  /** The driver writes status on the modern interface: for the rule book. Before it takes effect. */
  statusWrite?(value: number, status: number): void;
  /** Once, by the function that carries it. */
  connect(host: ModelHost): void;
  /** The driver rang this queue's doorbell, or the device just started; called in the model's lane. */
  notified(queue: number): void;
  /** The driver suspends the device: chains that are kept without being worked on are put back (virtio 1.4 §3.4.2). Absent: there are none. */
  suspending?(): void;
  /**
   * The driver wants a reset, of the device or of one queue. Chains taken before are not given back, and guest memory is not
   * written any more once the reset is done: null when it is already, else when it is. The driver sees the reset go on until then.
   */
  reset(queue?: number): Promise<void> | null;
  /** Gives back ends behind the device back: files. */
  close(): Promise<void>;
}

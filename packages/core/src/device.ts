// One virtio device as its driver sees it, whatever bus it sits on (FreeBSD's virtio_bus_if).
import type { FeatureSet } from "./features.js";
import type { DmaMemory } from "./memory.js";
import type { TaskQueue } from "./tasks.js";
import type { Virtqueue } from "./virtqueue.js";

/** What a driver asks for when it allocates a queue. */
export interface QueueSpec {
  /** `vtblk0 request`: shown by vmstat -i, sysctl and dump. */
  readonly name: string;
  /** Longest chain; above 1 asks for indirect tables. */
  readonly maxSegments: number;
  /** Whether used buffers raise an interrupt. */
  readonly interrupt: boolean;
  /** The queue's number. Default: its place in the list. */
  readonly index?: number;
  /**
   * Used lengths above what was writable are cut to it and counted, not held against the device: QEMU's virtio-scsi counts what it
   * read, too. Default false.
   */
  readonly clip?: boolean;
}

/** How a device signals (virtio 1.4 §4.1.5): a vector for each queue, one vector for all, one message, a shared line, not at all. */
export type InterruptKind = "msix" | "msix-shared" | "msi" | "intx" | "none";

/** Offset and width, in bytes, of a little-endian configuration field. */
export type ConfigField = readonly [offset: number, width: 1 | 2 | 4 | 8];

/** The device-specific configuration (virtio 1.4 §2.5). Every access is bounds-checked: INVALID outside what the device has. */
export interface ConfigSpace {
  /** Bytes the device offers. */
  readonly length: number;
  /** One little-endian field; one of 8 bytes is read as two halves of one generation. */
  read(offset: number, width: 1 | 2 | 4 | 8): Promise<number>;
  /** All fields of one consistent generation, in one round trip where the machine can. Bounded retries. @throws TIMED_OUT */
  readAll<K extends string>(fields: Readonly<Record<K, ConfigField>>): Promise<Record<K, number>>;
  write(offset: number, width: 1 | 2 | 4, value: number): Promise<void>;
}

/**
 * One virtio device. Made by a transport's `attach`, in the state DRIVER; the driver negotiates, finalizes, reads config,
 * allocates queues and sets up interrupts, in this order, and returns; then the transport sets DRIVER_OK.
 */
export interface VirtioDevice {
  /** DeviceType. */
  readonly type: number;
  /** `pci0:0:4:0`, `vhost-user:blk.sock`. */
  readonly location: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly config: ConfigSpace;
  /** Lets the other end run one step where it lives in this thread (embedded machine); elsewhere nothing. */
  poll(): void;

  /** Offers ∩ wanted ∩ what transport and ring can do. May be called again with a smaller set before finalizeFeatures. */
  negotiate<F extends number>(wanted: FeatureSet<F>): Promise<FeatureSet<F>>;
  /** FEATURES_OK and its read-back; nothing on a legacy device. @throws NEGOTIATION */
  finalizeFeatures(): Promise<void>;
  /** In the order of `specs`. Once; but after NOT_FOUND, a device without one of them, again. @throws INVALID, NOT_FOUND, OUT_OF_MEMORY, DEVICE_MISBEHAVED */
  allocateQueues(specs: readonly QueueSpec[]): Promise<readonly Virtqueue[]>;
  /** Chooses the best interrupt kind that device and machine share. @throws NOT_FOUND */
  setupInterrupts(): Promise<InterruptKind>;
  /**
   * Reset, same queues, DRIVER_OK again. (reinit, reinit_complete)
   * @param features - other features of the device's type than before, all of them once accepted by negotiate(); those of queues and
   * negotiation are the same. Default: the same.
   * @param prepare - called before DRIVER_OK: for configuration that is to be written by then
   * @throws INVALID when they are not, and nothing was done; what reset(), negotiate() and finalizeFeatures() throw; DEVICE_MISBEHAVED
   */
  reinit<F extends number>(features?: FeatureSet<F>, prepare?: () => Promise<void>): Promise<void>;
  /** Until the device says it is done; bounded. @throws TIMED_OUT */
  reset(): Promise<void>;
  /** RING_RESET. @throws UNSUPPORTED */
  resetQueue(queue: Virtqueue): Promise<void>;
  /**
   * Stops the device, its queues kept: SUSPEND where that was negotiated (virtio 1.4 §3.4), else a reset, which would lose chains in
   * flight. Until resume() enqueue() returns -EBUSY and config.write() throws BUSY.
   * @throws BUSY (chains in flight and no SUSPEND), TIMED_OUT, NEEDS_RESET
   */
  suspend(): Promise<void>;
  /**
   * Goes on after suspend(); used notifications are to be armed anew.
   * @param prepare - as of reinit(), where the device was reset
   * @throws TIMED_OUT, NEEDS_RESET
   */
  resume(prepare?: () => Promise<void>): Promise<void>;
  /** Reset, give back interrupts and queue memory, forget the features, ACKNOWLEDGE: the end of a driver's detach. */
  release(): Promise<void>;
  /** Called as a task after the device signalled a configuration change. */
  onConfigChange: (() => void) | null;
  /** Called as a task, once, when the device set DEVICE_NEEDS_RESET. */
  onNeedsReset: (() => void) | null;
}

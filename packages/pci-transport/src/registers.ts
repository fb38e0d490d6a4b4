// What a virtio function's registers can do, by whichever interface it is driven.
import type { PciConfigSpace } from "./config-space.js";
import type { Ring } from "./rings.js";

/** A queue as the device offers it. */
export interface OfferedQueue {
  /** Descriptors; 0: there is no such queue. */
  readonly size: number;
  /** Rings it: `next` is where the driver will put its next descriptor, for NOTIFICATION_DATA. Posted. */
  readonly doorbell: (next: number) => void;
}

/** Which vector each event is mapped to; a queue that is not named has none. */
export interface VectorMap {
  readonly config: number;
  readonly queues: readonly { readonly index: number; readonly vector: number }[];
}

/**
 * The registers of one function: {@link ModernRegisters} or {@link LegacyRegisters}. Each call is one round trip where the machine is
 * remote, whatever the number of queues.
 */
export interface VirtioRegisters {
  /** The legacy interface: no VERSION_1, no FEATURES_OK, sizes that the device decides (virtio 1.4 §1.3.1). */
  readonly legacy: boolean;
  readonly config: PciConfigSpace;
  /** Words of feature bits that cannot be negotiated with these registers, though the transport knows them. */
  readonly unreachable: readonly number[];

  readStatus(): Promise<number>;
  /** Writes each value in turn, then reads what the device shows. */
  writeStatus(...values: readonly number[]): Promise<number>;
  /** Words of the bits that are offered, low first. */
  readFeatures(): Promise<readonly number[]>;
  writeFeatures(words: readonly number[]): Promise<void>;
  /** Reading it lowers the line. */
  readIsr(): Promise<number>;

  /**
   * Queues 0 to `count` - 1.
   * @param features - words of what was negotiated: they decide how a doorbell is rung
   * @throws VirtioFault NOT_FOUND, DEVICE_MISBEHAVED
   */
  offeredQueues(count: number, features: readonly number[]): Promise<readonly OfferedQueue[]>;
  /** Sizes and addresses. On the legacy interface that enables the queues. */
  placeQueues(rings: readonly Ring[]): Promise<void>;
  enableQueues(rings: readonly Ring[]): Promise<void>;
  /** Asks for the reset of one queue. */
  resetQueue(index: number): Promise<void>;
  /** Whether that reset goes on. */
  isQueueResetting(index: number): Promise<boolean>;
  /** Maps events to vectors, and reads each back (virtio 1.4 §4.1.5.1.2.2). True when all were taken. */
  mapVectors(map: VectorMap): Promise<boolean>;
}

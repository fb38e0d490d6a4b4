// What a transport gives a queue of either format.
import { type DmaMemory, type TaskQueue, VirtioFault } from "@virtio/core";

/** How a driver's end is made. */
export interface QueueOptions {
  readonly index: number;
  /** `vtblk0 request` */
  readonly name: string;
  /** Device the queue belongs to, for error messages: `vtblk0`. */
  readonly device: string;
  /** Descriptors, at most 32768; of a split queue a power of two. */
  readonly size: number;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** INDIRECT_DESC is negotiated: chains of 2 to `maxSegments` segments take one descriptor. */
  readonly indirect: boolean;
  /**
   * With `indirect`, a chain still goes in the ring itself, which costs less than a table, as long as this many descriptors stay
   * free. Default `size`: always a table.
   */
  readonly reserve?: number;
  /** EVENT_IDX is negotiated. */
  readonly eventIdx: boolean;
  /** IN_ORDER is negotiated. Default false. */
  readonly inOrder?: boolean;
  /** Longest chain the driver will enqueue; at most 256. */
  readonly maxSegments: number;
  /**
   * VERSION_1 is not negotiated. Devices of that time report lengths above what is writable: they are clipped and counted, not held
   * against the device (virtio 1.4 §2.7.8.2, legacy section). Default false.
   */
  readonly legacy?: boolean;
  /** The same of a device with VERSION_1: see QueueSpec. Default false. */
  readonly clip?: boolean;
  /** Order index accesses as somebody outside this thread must see them; default `memory.shared`. ORDER_PLATFORM asks for it (§6.1). */
  readonly shared?: boolean;
  /** Alignment of a split queue's used ring, bytes: default 4096, as FreeBSD's and the legacy interface's. */
  readonly align?: number;
  /** Rings the doorbell of queue `index`: posted, never awaited. `next` is what NOTIFICATION_DATA carries in its high 16 bits (§2.9). */
  readonly doorbell: (index: number, next: number) => void;
  /** Lets the other end run one step where it lives in this thread. */
  readonly poll?: () => void;
}

/** Guest-physical addresses of a queue's three areas, by the specification's names. */
export interface QueueAddresses {
  /** Descriptor Area: descriptor table, or descriptor ring. */
  readonly descriptors: number;
  /** Driver Area: available ring, or driver event suppression. */
  readonly driver: number;
  /** Device Area: used ring, or device event suppression. */
  readonly device: number;
}

/** A 64-bit guest address as two words. */
export interface WideAddress {
  readonly low: number;
  readonly high: number;
}

/** Most entries of an indirect table: what fits a page, as FreeBSD has it. */
const INDIRECT_MAX = 256;

/** @throws VirtioFault INVALID when the longest chain does not fit an indirect table */
export function checkMaxSegments({ index, name, device, maxSegments }: QueueOptions): void {
  if (maxSegments > INDIRECT_MAX)
    throw new VirtioFault(
      "INVALID",
      `virtqueue ${index} (${name}) requested too many indirect descriptors: ${maxSegments}, max ${INDIRECT_MAX}`,
      { device },
    );
}

/**
 * How many used buffers may pass before the one that interrupts: a quarter, three quarters or all of what is in flight are used then,
 * and never more than will come. FreeBSD's virtqueue_postpone_intr is off by one for "emptied" and so would never be woken.
 */
export function postponed(hint: "short" | "long" | "emptied", inFlight: number): number {
  const after =
    hint === "short" ? inFlight >>> 2 : hint === "long" ? (inFlight * 3) >>> 2 : inFlight;
  return Math.max(0, Math.min(after, inFlight - 1));
}

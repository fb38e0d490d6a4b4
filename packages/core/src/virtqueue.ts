// The driver's end of a virtqueue, in FreeBSD's words (virtqueue.h).
import type { VirtioFault } from "./errors.js";

/** Counts kept by each queue; `sysctl` shows them. */
export interface QueueCounters {
  /** Doorbells rung. */
  kicks: number;
  /** notify() calls in which the device wanted no doorbell. */
  kicksSuppressed: number;
  /** Times the device's signal led to onUsed. */
  interrupts: number;
  /** Chains that the device used and the driver has seen used. */
  buffers: number;
  /** Most descriptors ever in flight. */
  highWater: number;
  /** Lengths above what was writable that a legacy device reported. */
  clipped: number;
}

/**
 * Chains of one shape whose descriptors stay written: a driver's request slots. The cookie of a chain is its slot. While the device
 * holds a slot it must not be set.
 */
export interface ChainTemplate {
  /** Segment `k` of `slot`: guest-physical address and length above 0. Every segment is set before the slot is first enqueued. */
  set(slot: number, k: number, address: number, length: number): void;
  /**
   * Puts the slot's chain into the ring; the device must not have it.
   * @returns 0, -ENOSPC or -EMSGSIZE (no room), -EBUSY (a split ring still has it, or the device is suspended), -EIO (broken)
   */
  enqueue(slot: number): number;
}

/**
 * One virtqueue, driver end: one API for split and packed, one fence a batch, nothing allocated for a buffer, nothing thrown.
 *
 * A queue is *broken* from the first rule that the device breaks until it is reset: every later call returns -EIO or -1.
 */
export interface Virtqueue {
  readonly index: number;
  readonly name: string;
  /** Descriptors. */
  readonly size: number;
  /** Set once, for ever, by the first rule the device broke (until the queue is reset). */
  readonly broken: VirtioFault | null;
  /**
   * Called once, as a task of its own, when `broken` is set. The driver fails each outstanding request once; memory the device
   * held is reused only after a reset that reads back complete, else it is leaked and counted.
   */
  onBroken: ((fault: VirtioFault) => void) | null;
  /** Called as a task when the device signalled used buffers; never inside notify(), dequeue() or another handler. */
  onUsed: (() => void) | null;

  /**
   * Puts one chain into the ring: readable segments first, then writable. The device sees it after publish().
   * `segments` holds [address, length] pairs from index `at` on and is only read: reuse it.
   * @param cookie - 0 … 2^31-1, given back by dequeue(): the caller's request slot.
   * @returns 0, or a negative errno: -ENOSPC (ring full), -EMSGSIZE (more segments than descriptors left), -EINVAL (no segment,
   * or one of length 0), -EIO (broken), -EBUSY (the device is suspended).
   */
  enqueue(
    cookie: number,
    segments: Uint32Array,
    at: number,
    readable: number,
    writable: number,
  ): number;
  /** Short form for a chain of one readable segment; same rules. */
  enqueueReadable(cookie: number, address: number, length: number): number;
  /** Short form for a chain of one writable segment; same rules. */
  enqueueWritable(cookie: number, address: number, length: number): number;
  /**
   * Reserves chains of one shape, `count` of them, until the queue is restarted: 0 to `count` - 1 are their slots and cookies.
   * @throws VirtioFault INVALID when there is no room, or the format cannot keep descriptors in place
   */
  template(count: number, readable: number, writable: number): ChainTemplate;
  /** Makes all chains enqueued so far visible to the device: one ordered store for the whole batch. */
  publish(): void;
  /** publish(), then rings the doorbell if the device wants one (virtqueue_notify). Synchronous, posted, never awaited. */
  notify(): void;
  /**
   * Takes one used chain: its cookie, or -1 when there is none (or the queue is broken). Then `usedLength` holds the bytes the
   * device wrote, never more than the chain's writable bytes.
   */
  dequeue(): number;
  readonly usedLength: number;

  /** Arms used notifications; true if used buffers are already there (take them, do not sleep). (virtqueue_enable_intr) */
  enableInterrupt(): boolean;
  /** Advisory. (virtqueue_disable_intr) */
  disableInterrupt(): void;
  /** Asks for an interrupt only after part of what is in flight is used. (virtqueue_postpone_intr) */
  postponeInterrupt(hint: "short" | "long" | "emptied"): boolean;
  /**
   * Waits for one used chain without interrupts, driving the other end where it lives in this thread. (virtqueue_poll)
   * @returns cookie; -1 after `timeoutMs`, or when broken.
   */
  poll(timeoutMs: number): number;
  /** Takes back chains the device never will use, after a reset; -1 at the end. (virtqueue_drain) */
  drain(): number;

  /** Descriptors in flight (virtqueue_nused). */
  readonly used: number;
  /** Descriptors free (virtqueue_nfree). */
  readonly free: number;
  readonly counters: Readonly<QueueCounters>;
  /** One line, as FreeBSD's virtqueue_dump. */
  dump(): string;
}

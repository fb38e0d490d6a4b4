// One request queue of a block device (virtio 1.4 §5.2.2, §5.2.6): a virtqueue, its slots, and the hot path.
import {
  type DmaMemory,
  type Log,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { BLOCK_HEADER_SIZE, BlockRequestType, BlockStatus, SECTOR_SIZE } from "@virtio/core/block";
import type { Bio } from "@virtio/storage";
import type { BouncePages } from "./bounce-pages.js";
import { RequestSlots } from "./request-slots.js";

/** Segments of a request besides data: header and status, each one descriptor, as a legacy device wants them (§5.2.6.4). */
export const OVERHEAD_SEGMENTS = 2;
/** Used requests taken before other tasks get their turn. */
const BATCH = 256;

/** What a queue needs of its disk. */
export interface RequestQueueOptions {
  /** `vtbd0` */
  readonly disk: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly log: Log;
  /** Shared by all queues of the disk. */
  readonly pages: BouncePages;
  /** Most data segments of a request. */
  readonly dataSegments: number;
  /** A request takes one descriptor, else one for each segment. */
  readonly indirect: boolean;
  /** The legacy interface: used lengths say nothing (§2.7.8.2, legacy section). */
  readonly legacy: boolean;
  /** Requests are over: there may be room. */
  readonly onProgress: () => void;
  /** See Virtqueue. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** A request that the device may hold: what to do when it is done. */
interface Request {
  readonly type: BlockRequestType;
  readonly bio: Bio;
  /** First page it is bounced through; -1: in place, or no data. */
  readonly page: number;
  readonly length: number;
}

/** Gives requests to the device and takes them back; each ends once, by the device or by failAll(). */
export class RequestQueue {
  readonly #queue: Virtqueue;
  readonly #options: RequestQueueOptions;
  readonly #memory: DmaMemory;
  readonly #indirect: boolean;
  readonly #pages: BouncePages;
  readonly #slots: RequestSlots;
  /** By slot. */
  readonly #requests: (Request | null)[];
  readonly #segments: Uint32Array;
  #inFlight = 0;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, options: RequestQueueOptions) {
    this.#queue = queue;
    this.#options = options;
    this.#memory = options.memory;
    this.#indirect = options.indirect;
    this.#pages = options.pages;
    this.#slots = new RequestSlots(options.memory, queue.size);
    this.#requests = new Array(queue.size).fill(null);
    this.#segments = new Uint32Array(2 * (options.dataSegments + OVERHEAD_SEGMENTS));
    queue.onUsed = () => this.#completions();
    queue.onBroken = options.onBroken;
  }

  /** Requests that are not over. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** The device went away with chains of this queue: nobody knows whether it still writes to them. */
  get stranded(): boolean {
    return this.#queue.broken?.code === "CLOSED" && this.#queue.used > 0;
  }

  /** Used requests raise interrupts from now on. */
  arm(): void {
    if (this.#queue.enableInterrupt()) this.#options.tasks.enqueue(() => this.#completions());
  }

  /** Tells the device what start() gave it. */
  notify(): void {
    this.#queue.notify();
  }

  /** Gives the device one request; false when there is no room for it now. */
  start(type: BlockRequestType, bio: Bio): boolean {
    const memory = this.#memory;
    const pages = this.#pages;
    const slots = this.#slots;
    const segments = this.#segments;
    const data = bio.data ?? new Uint8Array(0);
    const { length } = data;
    const inPlace = data.buffer === memory.buffer;
    const pageSize = pages.size;
    const pieces = Math.ceil(length / pageSize);
    if (this.#queue.free < (this.#indirect ? 1 : pieces + OVERHEAD_SEGMENTS)) return false;
    if (!inPlace && pieces > pages.available) return false;

    const slot = slots.take();
    slots.begin(slot, type, bio.position / SECTOR_SIZE);
    segments[0] = slots.headerAddress(slot);
    segments[1] = BLOCK_HEADER_SIZE;
    // Pages are taken from the last piece to the first, each linked in front of the one before.
    let page = -1;
    for (let i = pieces - 1; i >= 0; i--) {
      const from = i * pageSize;
      const size = Math.min(pageSize, length - from);
      const place = 2 + 2 * i;
      if (inPlace) segments[place] = memory.base + data.byteOffset + from;
      else {
        page = pages.take(page);
        if (type === BlockRequestType.OUT) pages.fill(page, data.subarray(from, from + size));
        segments[place] = pages.address(page);
      }
      segments[place + 1] = size;
    }
    segments[2 + 2 * pieces] = slots.statusAddress(slot);
    segments[3 + 2 * pieces] = 1;

    const readable = type === BlockRequestType.OUT ? 1 + pieces : 1;
    const writable = pieces + OVERHEAD_SEGMENTS - readable;
    const error = this.#queue.enqueue(slot, segments, 0, readable, writable);
    if (error !== 0) {
      pages.give(page);
      slots.give(slot);
      bio.done(this.#queue.broken ?? this.#fail("IO", `request refused: errno ${-error}`));
      return true;
    }
    this.#requests[slot] = { type, bio, page, length };
    this.#inFlight += 1;
    return true;
  }

  /** The device signalled: take what is used, arm, and look again. */
  #completions(): void {
    const queue = this.#queue;
    queue.disableInterrupt();
    let left = BATCH;
    do {
      for (let slot = queue.dequeue(); slot >= 0; slot = queue.dequeue()) {
        this.#complete(slot, queue.usedLength);
        left -= 1;
        if (left === 0) {
          this.#options.tasks.enqueue(() => this.#completions());
          this.#options.onProgress();
          return;
        }
      }
    } while (queue.enableInterrupt());
    this.#options.onProgress();
  }

  #complete(slot: number, used: number): void {
    const request = this.#requests[slot];
    if (request === null || request === undefined) return;
    const { type, bio, page, length } = request;
    const pages = this.#pages;
    this.#requests[slot] = null;
    this.#inFlight -= 1;
    const reads = type === BlockRequestType.IN || type === BlockRequestType.GET_ID;
    // Success counts only when used.len covers data and status: beyond it nothing is said (§2.7.8.3).
    const covered = this.#options.legacy || used >= (reads ? length : 0) + 1;
    const fault = this.#outcome(request, this.#slots.status(slot), covered);
    if (fault === null && reads && page >= 0 && bio.data !== null) {
      let at = 0;
      for (let p = page; p >= 0; p = pages.next(p)) {
        pages.copy(p, bio.data.subarray(at, Math.min(at + pages.size, length)));
        at += pages.size;
      }
    }
    pages.give(page);
    this.#slots.give(slot);
    bio.done(fault);
  }

  /** Status to errno. */
  #outcome({ type, bio, length }: Request, status: number, covered: boolean): VirtioFault | null {
    if (status === BlockStatus.OK && covered) return null;
    if (status === BlockStatus.UNSUPP)
      return this.#fail("UNSUPPORTED", `${BlockRequestType[type]} is not supported by the device`);
    const first = bio.position / SECTOR_SIZE;
    const range = length === 0 ? "" : ` ${first}-${first + length / SECTOR_SIZE - 1}`;
    if (type !== BlockRequestType.GET_ID)
      this.#options.log(`hard error cmd=${bio.command}${range}`);
    return this.#fail(
      "IO",
      `${bio.command} failed:${range === "" ? "" : ` sectors${range},`} status ${status}`,
    );
  }

  /** Every request that is not over fails. What the device holds of their memory is its own until a reset. */
  failAll(fault: VirtioFault): void {
    for (const [slot, request] of this.#requests.entries()) {
      if (request === null) continue;
      this.#requests[slot] = null;
      this.#inFlight -= 1;
      request.bio.done(fault);
    }
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#slots.free();
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#options.disk });
  }
}

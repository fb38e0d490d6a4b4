// One request queue of a block device (virtio 1.4 §5.2.2, §5.2.6): a virtqueue, its slots, and the hot path.
import {
  type DmaMemory,
  type Log,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  BLOCK_APPEND_SECTOR_SIZE,
  BLOCK_BARRIER,
  BLOCK_HEADER_SIZE,
  BLOCK_RANGE_SIZE,
  BlockRangeFlag,
  BlockRequestType,
  BlockStatus,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { Bio, BouncePages } from "@virtio/storage";
import { RequestSlots } from "./request-slots.js";
import { IDLE, type Watchdog } from "./watchdog.js";

/** Segments of a request besides data: header and status, each one descriptor, as a legacy device wants them (§5.2.6.4). */
export const OVERHEAD_SEGMENTS = 2;
/** Used requests taken before other tasks get their turn. */
const BATCH = 256;
/**
 * Turns of other tasks after which the ring is looked at once more, in vain, before the device is asked to interrupt: waking up, here and
 * there, takes longer than many a request.
 */
const LOOKS = 16;

/** What a queue needs of its disk. */
export interface RequestQueueOptions {
  /** `vtbd0` */
  readonly disk: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly log: Log;
  /** Shared by all queues of the disk. */
  readonly pages: BouncePages;
  readonly watchdog: Watchdog;
  /** Most data segments of a request. */
  readonly dataSegments: number;
  /** A request takes one descriptor, else one for each segment. */
  readonly indirect: boolean;
  /** The legacy interface: used lengths say nothing (§2.7.8.2, legacy section). */
  readonly legacy: boolean;
  /** Ordered bios are marked (§5.2.6.3). */
  readonly barrier: boolean;
  /** Space may be given back where zeroes are written (write_zeroes_may_unmap, §5.2.4). */
  readonly mayUnmap: boolean;
  /** What an append's answer must fit; null: the disk has no zones. Bytes. */
  readonly zones: { readonly zoneSize: number; readonly writeGranularity: number } | null;
  /** A request that start() took is over. */
  readonly onDone: (type: BlockRequestType, bio: Bio, fault: VirtioFault | null) => void;
  /** Requests are over: there may be room. */
  readonly onProgress: () => void;
  /** See Virtqueue. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** What is remembered of a slot: words of one array, so that a request makes no object. */
enum Entry {
  TYPE,
  /** First page it is bounced through; -1: in place, or no data. */
  PAGE,
  /** Bytes of data. */
  LENGTH,
  /** The watchdog's, when it began. */
  TICK,
}
const ENTRY_SHIFT = 2;

/** What the disk layer of FreeBSD calls them. */
const commandNames: Readonly<Record<BlockRequestType, string>> = {
  [BlockRequestType.IN]: "read",
  [BlockRequestType.OUT]: "write",
  [BlockRequestType.FLUSH]: "flush",
  [BlockRequestType.GET_ID]: "identify",
  [BlockRequestType.GET_LIFETIME]: "lifetime",
  [BlockRequestType.DISCARD]: "delete",
  [BlockRequestType.WRITE_ZEROES]: "write zeroes",
  [BlockRequestType.SECURE_ERASE]: "secure erase",
  [BlockRequestType.ZONE_APPEND]: "zone append",
  [BlockRequestType.ZONE_REPORT]: "zone report",
  [BlockRequestType.ZONE_OPEN]: "zone open",
  [BlockRequestType.ZONE_CLOSE]: "zone close",
  [BlockRequestType.ZONE_FINISH]: "zone finish",
  [BlockRequestType.ZONE_RESET]: "zone reset",
  [BlockRequestType.ZONE_RESET_ALL]: "zone reset all",
};

/** Commands whose data the device writes. */
const reads = (type: BlockRequestType): boolean =>
  type === BlockRequestType.IN ||
  type === BlockRequestType.GET_ID ||
  type === BlockRequestType.GET_LIFETIME ||
  type === BlockRequestType.ZONE_REPORT;

/** Commands whose data the device reads. */
const writes = (type: BlockRequestType): boolean =>
  type === BlockRequestType.OUT || type === BlockRequestType.ZONE_APPEND;

/** The driver's own requests: nobody's bytes, and no line of the log when they fail. */
export const isOwn = (type: BlockRequestType): boolean =>
  type === BlockRequestType.GET_ID || type === BlockRequestType.GET_LIFETIME;

/** Gives requests to the device and takes them back; each ends once, by the device or by failAll(). */
export class RequestQueue {
  readonly #queue: Virtqueue;
  readonly #options: RequestQueueOptions;
  readonly #memory: DmaMemory;
  readonly #indirect: boolean;
  readonly #barrier: boolean;
  readonly #pages: BouncePages;
  readonly #watchdog: Watchdog;
  readonly #slots: RequestSlots;
  /** By slot; null: over, or never begun. */
  readonly #bios: (Bio | null)[];
  readonly #record: Int32Array;
  readonly #segments: Uint32Array;
  #inFlight = 0;
  /** The device will interrupt. While requests are in flight it will, or the ring is to be looked at. */
  #armed = false;
  /** A look is to come. */
  #looking = false;
  /** Looks that may still be in vain. */
  #looks = 0;
  #stopped = false;
  readonly #look = (): void => {
    this.#looking = false;
    // Of a ring that nothing is expected from the memory may be gone.
    if (this.#inFlight > 0 && !this.#stopped) this.#completions();
  };

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, options: RequestQueueOptions) {
    this.#queue = queue;
    this.#options = options;
    this.#memory = options.memory;
    this.#indirect = options.indirect;
    this.#barrier = options.barrier;
    this.#pages = options.pages;
    this.#watchdog = options.watchdog;
    this.#slots = new RequestSlots(options.memory, queue.size);
    this.#bios = new Array(queue.size).fill(null);
    this.#record = new Int32Array(queue.size << ENTRY_SHIFT);
    for (let slot = 0; slot < queue.size; slot++)
      this.#record[(slot << ENTRY_SHIFT) + Entry.PAGE] = -1;
    this.#segments = new Uint32Array(2 * (options.dataSegments + OVERHEAD_SEGMENTS));
    queue.onUsed = () => this.#completions();
    queue.onBroken = (fault) => {
      // A reset may have come between.
      if (queue.broken === fault) options.onBroken(fault);
    };
  }

  /** Requests that are not over. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** The device went away with chains of this queue: nobody knows whether it still writes to them. */
  get stranded(): boolean {
    return this.#queue.broken?.code === "CLOSED" && this.#queue.used > 0;
  }

  /** The watchdog's tick when the oldest request began that is not over, or IDLE. */
  get oldest(): number {
    let oldest = IDLE;
    for (let slot = 0; slot < this.#bios.length; slot++)
      if (this.#bios[slot] !== null)
        oldest = Math.min(oldest, this.#record[(slot << ENTRY_SHIFT) + Entry.TICK] as number);
    return oldest;
  }

  /** Used requests raise interrupts from now on. */
  arm(): void {
    this.#armed = true;
    if (this.#queue.enableInterrupt()) this.#lookLater();
  }

  /** Tells the device what start() gave it. */
  notify(): void {
    this.#queue.notify();
    if (!this.#armed && this.#inFlight > 0) this.#lookLater();
  }

  /** The ring is not looked at any more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Gives the device one request; false when there is no room for it now. */
  start(type: BlockRequestType, bio: Bio): boolean {
    const { data } = bio;
    const pages = this.#pages;
    const slots = this.#slots;
    const segments = this.#segments;
    const pageSize = pages.size;
    const length = data === null ? 0 : data.length;
    const pieces = Math.ceil(length / pageSize);
    const ranged =
      type === BlockRequestType.DISCARD ||
      type === BlockRequestType.WRITE_ZEROES ||
      type === BlockRequestType.SECURE_ERASE;
    const append = type === BlockRequestType.ZONE_APPEND;
    const count = OVERHEAD_SEGMENTS + (ranged ? 1 : pieces) + (append ? 1 : 0);
    if (this.#queue.free < (this.#indirect ? 1 : count)) return false;
    const bounced = data !== null && data.buffer !== this.#memory.buffer;
    if (bounced && pieces > pages.available) return false;

    const slot = slots.take();
    const sector = bio.position / SECTOR_SIZE;
    const marked = this.#barrier && bio.ordered ? type | BLOCK_BARRIER : type;
    // The sector of a range is in its segment; the header's is for reads, writes and zones only (§5.2.6).
    slots.begin(slot, marked, ranged ? 0 : sector);
    segments[0] = slots.headerAddress(slot);
    segments[1] = BLOCK_HEADER_SIZE;
    let page = -1;
    if (ranged) {
      const unmap =
        bio.unmap === true && type === BlockRequestType.WRITE_ZEROES && this.#options.mayUnmap;
      slots.range(slot, sector, bio.length / SECTOR_SIZE, unmap ? BlockRangeFlag.UNMAP : 0);
      segments[2] = slots.rangeAddress(slot);
      segments[3] = BLOCK_RANGE_SIZE;
    } else if (bounced) page = this.#bounce(type, data, pieces);
    else if (data !== null) {
      const address = this.#memory.base + data.byteOffset;
      for (let i = 0; i < pieces; i++) {
        segments[2 + 2 * i] = address + i * pageSize;
        segments[3 + 2 * i] = Math.min(pageSize, length - i * pageSize);
      }
    }
    if (append) {
      segments[2 * count - 4] = slots.appendAddress(slot);
      segments[2 * count - 3] = BLOCK_APPEND_SECTOR_SIZE;
    }
    segments[2 * count - 2] = slots.statusAddress(slot);
    segments[2 * count - 1] = 1;

    const readable = append ? count - 2 : ranged || writes(type) ? count - 1 : 1;
    const error = this.#queue.enqueue(slot, segments, 0, readable, count - readable);
    if (error !== 0) {
      pages.give(page);
      slots.give(slot);
      const fault = this.#queue.broken ?? this.#fail("IO", `request refused: errno ${-error}`);
      this.#options.onDone(type, bio, fault);
      return true;
    }
    const entry = slot << ENTRY_SHIFT;
    const record = this.#record;
    record[entry + Entry.TYPE] = type;
    record[entry + Entry.PAGE] = page;
    record[entry + Entry.LENGTH] = length;
    record[entry + Entry.TICK] = this.#watchdog.tick;
    this.#bios[slot] = bio;
    this.#inFlight += 1;
    return true;
  }

  /** Segments of bounced data. Pages are taken from the last piece to the first, each linked in front of the one before. */
  #bounce(type: BlockRequestType, data: Uint8Array, pieces: number): number {
    const pages = this.#pages;
    const segments = this.#segments;
    let page = -1;
    for (let i = pieces - 1; i >= 0; i--) {
      const from = i * pages.size;
      const size = Math.min(pages.size, data.length - from);
      page = pages.take(page);
      if (writes(type)) pages.fill(page, data, from, size);
      segments[2 + 2 * i] = pages.address(page);
      segments[3 + 2 * i] = size;
    }
    return page;
  }

  #lookLater(): void {
    if (this.#looking) return;
    this.#looking = true;
    this.#options.tasks.enqueue(this.#look);
  }

  /** The device signalled, or may have more: takes what is used, and looks again; arms when there is nothing for a while. */
  #completions(): void {
    const queue = this.#queue;
    this.#armed = false;
    queue.disableInterrupt();
    let taken = 0;
    for (let slot = queue.dequeue(); slot >= 0; slot = queue.dequeue()) {
      this.#complete(slot, queue.usedLength);
      taken += 1;
      if (taken === BATCH) break;
    }
    if (taken > 0) {
      this.#looks = LOOKS;
      this.#lookLater();
      this.#options.onProgress();
    } else if (this.#looks > 0) {
      this.#looks -= 1;
      this.#lookLater();
    } else this.arm();
  }

  /** Lets the device run without interrupts and takes one used request; false when there is none yet. */
  poll(): boolean {
    const slot = this.#queue.poll(0);
    if (slot >= 0) this.#complete(slot, this.#queue.usedLength);
    return slot >= 0;
  }

  #complete(slot: number, used: number): void {
    const bio = this.#bios[slot];
    if (bio === null || bio === undefined) return;
    const pages = this.#pages;
    const record = this.#record;
    const entry = slot << ENTRY_SHIFT;
    const type = record[entry + Entry.TYPE] as BlockRequestType;
    const page = record[entry + Entry.PAGE] as number;
    const length = record[entry + Entry.LENGTH] as number;
    this.#bios[slot] = null;
    record[entry + Entry.PAGE] = -1;
    this.#inFlight -= 1;
    // Success counts only when used.len covers data and status: beyond it nothing is said (§2.7.8.3).
    const append = type === BlockRequestType.ZONE_APPEND;
    const answer = append ? BLOCK_APPEND_SECTOR_SIZE : reads(type) ? length : 0;
    const covered = this.#options.legacy || used >= answer + 1;
    const status = this.#slots.status(slot);
    let fault = status === BlockStatus.OK && covered ? null : this.#failure(type, bio, status);
    if (fault === null && append) fault = this.#appended(slot, bio);
    if (fault === null && page >= 0 && reads(type) && bio.data !== null) {
      let at = 0;
      for (let p = page; p >= 0; p = pages.next(p)) {
        pages.copy(p, bio.data, at, Math.min(pages.size, length - at));
        at += pages.size;
      }
    }
    pages.give(page);
    this.#slots.give(slot);
    this.#options.onDone(type, bio, fault);
  }

  /** Where the device says an append went: to its zone, or the device lies. */
  #appended(slot: number, bio: Bio): VirtioFault | null {
    const { zoneSize, writeGranularity } = this.#options.zones ?? {
      zoneSize: 0,
      writeGranularity: 1,
    };
    const at = this.#slots.appendSector(slot) * SECTOR_SIZE - bio.position;
    if (!(at >= 0 && at + bio.length <= zoneSize && at % writeGranularity === 0))
      return new VirtioFault(
        "DEVICE_MISBEHAVED",
        `device misbehaved: append_sector is ${this.#slots.appendSector(slot)}, for the zone at ${bio.position / SECTOR_SIZE}`,
        { device: this.#options.disk, clause: "virtio 1.4 §5.2.6" },
      );
    bio.position += at;
    return null;
  }

  /** Status to errno, as Linux has it: UNSUPP ENOTSUP, too many open or active zones EBUSY, all else EIO. */
  #failure(type: BlockRequestType, { position, length }: Bio, status: number): VirtioFault {
    const name = commandNames[type];
    if (status === BlockStatus.UNSUPP)
      return this.#fail("UNSUPPORTED", `${BlockRequestType[type]} is not supported by the device`);
    if (status === BlockStatus.ZONE_OPEN_RESOURCE || status === BlockStatus.ZONE_ACTIVE_RESOURCE)
      return this.#fail("BUSY", `${name}: ${BlockStatus[status]}: close or finish a zone first`);
    const first = position / SECTOR_SIZE;
    const range =
      length === 0 || isOwn(type) || type === BlockRequestType.ZONE_REPORT
        ? ""
        : ` ${first}-${first + length / SECTOR_SIZE - 1}`;
    if (!isOwn(type)) this.#options.log(`hard error cmd=${name}${range}`);
    return this.#fail(
      "IO",
      `${name} failed:${range === "" ? "" : ` sectors${range},`} status ${status}`,
    );
  }

  /** Every request that is not over fails. What the device holds of their memory is its own until a reset. */
  failAll(fault: VirtioFault): void {
    for (let slot = 0; slot < this.#bios.length; slot++) {
      const bio = this.#bios[slot];
      if (bio === null || bio === undefined) continue;
      this.#bios[slot] = null;
      this.#inFlight -= 1;
      const type = this.#record[(slot << ENTRY_SHIFT) + Entry.TYPE] as BlockRequestType;
      this.#options.onDone(type, bio, fault);
    }
  }

  /** The device was reset and holds nothing any more: all slots, and the pages that it had, are free again. */
  reclaim(): void {
    for (let slot = 0; slot < this.#bios.length; slot++) {
      const entry = slot << ENTRY_SHIFT;
      this.#pages.give(this.#record[entry + Entry.PAGE] as number);
      this.#record[entry + Entry.PAGE] = -1;
    }
    this.#slots.reset();
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#slots.free();
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#options.disk });
  }
}

// The driver's end of a split virtqueue (virtio 1.4 §2.7; FreeBSD's virtqueue.c).
//
// What the driver must know about a chain it handed out is kept in a private record. Shared memory is written, and of it only the
// used ring is ever read back; each value from there is checked before it indexes, counts or bounds anything.
import {
  type DmaMemory,
  type DmaRegion,
  Errno,
  type QueueCounters,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  AvailFlag,
  DESCRIPTOR_SIZE,
  DescriptorFlag,
  QUEUE_SIZE_MAX,
  UsedFlag,
} from "@virtio/core/ring";
import { loadIndex, storeIndex } from "./order.js";
import { splitLayout } from "./split-layout.js";

/** What a transport gives a queue. */
export interface SplitQueueOptions {
  readonly index: number;
  /** `vtblk0 request` */
  readonly name: string;
  /** Device the queue belongs to, for error messages: `vtblk0`. */
  readonly device: string;
  /** Descriptors: a power of two, at most 32768. */
  readonly size: number;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** INDIRECT_DESC is negotiated: chains of 2 to `maxSegments` segments take one descriptor. */
  readonly indirect: boolean;
  /** EVENT_IDX is negotiated. */
  readonly eventIdx: boolean;
  /** Longest chain the driver will enqueue. */
  readonly maxSegments: number;
  /** Alignment of the used ring; default 4096, as FreeBSD's. */
  readonly align?: number;
  /** Rings the doorbell. Posted, never awaited. */
  readonly doorbell: (index: number) => void;
  /** Lets the other end run one step where it lives in this thread. */
  readonly poll?: () => void;
}

// The private record of a descriptor: four words.
/** The next free descriptor, or the next one of its chain. */
const NEXT = 0;
/** Of a chain's head: descriptors (high half) and last descriptor (low half). 0: no chain of ours begins here. */
const SHAPE = 1;
/** Of a chain's head: device-writable bytes, unsigned. */
const WRITABLE = 2;
/** Of a chain's head: the caller's cookie. */
const COOKIE = 3;

// Parts of a descriptor, in 32-bit words (virtio 1.4 §2.7.5).
const ADDRESS = 0;
const LENGTH = 2;
const FLAGS_NEXT = 3;

/** Most entries of an indirect table: what fits a page, as FreeBSD has it. */
const INDIRECT_MAX = 256;

/**
 * The driver's end of a split virtqueue (virtio 1.4 §2.7): a Virtqueue, and what a transport needs of one besides: addresses to
 * program, `interrupted`, `fail`, `restart`, `release`.
 */
export class SplitQueue implements Virtqueue {
  readonly index: number;
  readonly name: string;
  readonly size: number;
  onBroken: ((fault: VirtioFault) => void) | null = null;
  onUsed: (() => void) | null = null;
  usedLength = 0;
  readonly counters: QueueCounters = {
    kicks: 0,
    kicksSuppressed: 0,
    interrupts: 0,
    buffers: 0,
    highWater: 0,
  };
  /** Guest-physical addresses of the descriptor table, the available ring and the used ring. */
  readonly addresses: {
    readonly descriptors: number;
    readonly available: number;
    readonly used: number;
  };

  #broken: VirtioFault | null = null;
  readonly #device: string;
  readonly #tasks: TaskQueue;
  readonly #doorbell: (index: number) => void;
  readonly #pollDevice: () => void;
  readonly #eventIdx: boolean;
  readonly #maxIndirect: number;
  readonly #region: DmaRegion;
  readonly #tables: DmaRegion | null;

  /** Descriptor table, in words. */
  readonly #descriptors: Uint32Array;
  /** Available ring: flags, idx, ring, used_event. */
  readonly #available: Uint16Array;
  /** Used ring's flags and idx; avail_event at its end. */
  readonly #usedIndex: Uint16Array;
  /** Used ring's entries, id and len in turn; entry 0 begins at word 1. */
  readonly #usedEntries: Uint32Array;
  /** Indirect tables, `maxSegments` descriptors for each descriptor of the ring. */
  readonly #indirect: Uint32Array;

  readonly #record: Int32Array;
  #freeHead = 0;
  #free: number;
  /** Chains the device holds. */
  #chains = 0;
  /** avail.idx as the next publish() will store it. */
  #nextAvailable = 0;
  /** avail.idx as last stored. */
  #published = 0;
  /** avail.idx at the last notify(). */
  #notified = 0;
  /** Used entries taken so far, modulo 2^16. */
  #consumed = 0;
  /** used.idx as last read and found possible. */
  #usedSeen = 0;

  /** @throws VirtioFault INVALID, OUT_OF_MEMORY */
  constructor(options: SplitQueueOptions) {
    const {
      index,
      name,
      device,
      size,
      memory,
      tasks,
      indirect,
      eventIdx,
      maxSegments,
      align = 4096,
    } = options;
    if (size < 1 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0)
      throw new VirtioFault(
        "INVALID",
        `virtqueue ${index} (${name}) size is not a power of 2: ${size}`,
        { device },
      );
    if (maxSegments > INDIRECT_MAX)
      throw new VirtioFault(
        "INVALID",
        `virtqueue ${index} (${name}) requested too many indirect descriptors: ${maxSegments}, max ${INDIRECT_MAX}`,
        { device },
      );
    this.index = index;
    this.name = name;
    this.size = size;
    this.#device = device;
    this.#tasks = tasks;
    this.#doorbell = options.doorbell;
    this.#pollDevice = options.poll ?? ((): void => {});
    this.#eventIdx = eventIdx;
    // A chain is never longer than the queue, even in a table (virtio 1.4 §2.7.5.3.1).
    this.#maxIndirect = indirect && maxSegments > 1 ? Math.min(maxSegments, size) : 0;

    const layout = splitLayout(size, align);
    this.#region = memory.allocate(layout.length, align);
    const { address, offset } = this.#region;
    this.addresses = {
      descriptors: address + layout.descriptors,
      available: address + layout.available,
      used: address + layout.used,
    };
    this.#descriptors = new Uint32Array(memory.buffer, offset, size * 4);
    this.#available = new Uint16Array(memory.buffer, offset + layout.available, 3 + size);
    this.#usedIndex = new Uint16Array(memory.buffer, offset + layout.used, 3 + 4 * size);
    this.#usedEntries = new Uint32Array(memory.buffer, offset + layout.used, 1 + 2 * size);
    this.#tables =
      this.#maxIndirect === 0 ? null : memory.allocate(size * this.#maxIndirect * DESCRIPTOR_SIZE);
    this.#indirect =
      this.#tables === null
        ? new Uint32Array(0)
        : new Uint32Array(memory.buffer, this.#tables.offset, this.#tables.length >>> 2);

    this.#record = new Int32Array(size * 4);
    this.#free = size;
    this.restart();
  }

  get broken(): VirtioFault | null {
    return this.#broken;
  }

  get used(): number {
    return this.size - this.#free;
  }

  get free(): number {
    return this.#free;
  }

  /** Bytes of guest memory that the queue holds. */
  get bytes(): number {
    return this.#region.length + (this.#tables?.length ?? 0);
  }

  /** Everything as at first: after a reset of the device or of this queue, and after drain(). Interrupts are disabled. */
  restart(): void {
    const size = this.size;
    this.#region.bytes.fill(0);
    this.#record.fill(0);
    for (let i = 0; i < size; i++) this.#record[i * 4 + NEXT] = i + 1;
    this.#freeHead = 0;
    this.#free = size;
    this.#chains = 0;
    this.#nextAvailable = 0;
    this.#published = 0;
    this.#notified = 0;
    this.#consumed = 0;
    this.#usedSeen = 0;
    this.#broken = null;
    this.disableInterrupt();
  }

  /** Gives the ring's memory back. Only after a reset that read back complete: until then the device may write there. */
  release(): void {
    this.#region.free();
    this.#tables?.free();
  }

  enqueue(
    cookie: number,
    segments: Uint32Array,
    at: number,
    readable: number,
    writable: number,
  ): number {
    if (this.#broken !== null) return -Errno.EIO;
    const total = readable + writable;
    const free = this.#free;
    if (total < 1) return -Errno.EINVAL;
    if (free === 0) return -Errno.ENOSPC;
    const direct = total < 2 || total > this.#maxIndirect;
    if (direct && total > free) return -Errno.EMSGSIZE;

    const record = this.#record;
    const descriptors = this.#descriptors;
    const head = this.#freeHead;
    let writableBytes = 0;
    let last = head;
    let after = record[head * 4 + NEXT] as number;
    if (direct) {
      let i = head;
      for (let k = 0; k < total; k++) {
        const length = segments[at + 2 * k + 1] as number;
        if (length === 0) return -Errno.EINVAL;
        after = record[i * 4 + NEXT] as number;
        let flags = k + 1 < total ? DescriptorFlag.NEXT | (after << 16) : 0;
        if (k >= readable) {
          flags |= DescriptorFlag.WRITE;
          writableBytes += length;
        }
        const d = i * 4;
        descriptors[d + ADDRESS] = segments[at + 2 * k] as number;
        descriptors[d + ADDRESS + 1] = 0;
        descriptors[d + LENGTH] = length;
        descriptors[d + FLAGS_NEXT] = flags;
        last = i;
        i = after;
      }
    } else {
      const table = this.#indirect;
      const first = head * this.#maxIndirect;
      for (let k = 0; k < total; k++) {
        const length = segments[at + 2 * k + 1] as number;
        if (length === 0) return -Errno.EINVAL;
        let flags = k + 1 < total ? DescriptorFlag.NEXT | ((k + 1) << 16) : 0;
        if (k >= readable) {
          flags |= DescriptorFlag.WRITE;
          writableBytes += length;
        }
        const d = (first + k) * 4;
        table[d + ADDRESS] = segments[at + 2 * k] as number;
        table[d + ADDRESS + 1] = 0;
        table[d + LENGTH] = length;
        table[d + FLAGS_NEXT] = flags;
      }
      const d = head * 4;
      descriptors[d + ADDRESS] = (this.#tables as DmaRegion).address + first * DESCRIPTOR_SIZE;
      descriptors[d + ADDRESS + 1] = 0;
      descriptors[d + LENGTH] = total * DESCRIPTOR_SIZE;
      descriptors[d + FLAGS_NEXT] = DescriptorFlag.INDIRECT;
    }
    return this.#commit(cookie, head, last, after, direct ? total : 1, writableBytes);
  }

  enqueueReadable(cookie: number, address: number, length: number): number {
    return this.#enqueueOne(cookie, address, length, 0);
  }

  enqueueWritable(cookie: number, address: number, length: number): number {
    return this.#enqueueOne(cookie, address, length, DescriptorFlag.WRITE);
  }

  #enqueueOne(cookie: number, address: number, length: number, flags: number): number {
    if (this.#broken !== null) return -Errno.EIO;
    if (this.#free === 0) return -Errno.ENOSPC;
    if (length === 0) return -Errno.EINVAL;
    const head = this.#freeHead;
    const d = head * 4;
    const descriptors = this.#descriptors;
    descriptors[d + ADDRESS] = address;
    descriptors[d + ADDRESS + 1] = 0;
    descriptors[d + LENGTH] = length;
    descriptors[d + FLAGS_NEXT] = flags;
    return this.#commit(
      cookie,
      head,
      head,
      this.#record[d + NEXT] as number,
      1,
      flags === 0 ? 0 : length,
    );
  }

  /** The chain is written: enter it into the record and into the next place of the available ring. */
  #commit(
    cookie: number,
    head: number,
    last: number,
    after: number,
    count: number,
    writableBytes: number,
  ): number {
    const record = this.#record;
    const r = head * 4;
    record[r + SHAPE] = (count << 16) | last;
    record[r + WRITABLE] = writableBytes;
    record[r + COOKIE] = cookie;
    this.#freeHead = after;
    this.#free -= count;
    this.#chains += 1;
    const inFlight = this.size - this.#free;
    if (inFlight > this.counters.highWater) this.counters.highWater = inFlight;
    const next = this.#nextAvailable;
    this.#available[2 + (next & (this.size - 1))] = head;
    this.#nextAvailable = (next + 1) & 0xffff;
    return 0;
  }

  publish(): void {
    if (this.#published === this.#nextAvailable) return;
    // The device may read descriptors and ring entries as soon as it sees the index: they are stored before it (§2.7.13.3.1).
    storeIndex(this.#available, 1, this.#nextAvailable);
    this.#published = this.#nextAvailable;
  }

  notify(): void {
    this.publish();
    const now = this.#published;
    const added = (now - this.#notified) & 0xffff;
    if (added === 0 || this.#broken !== null) return;
    // The index is stored before what the device wants is read, or both ends could wait for each other (§2.7.13.4.1).
    const wanted = this.#eventIdx
      ? ((now - loadIndex(this.#usedIndex, 2 + 4 * this.size) - 1) & 0xffff) < added
      : (loadIndex(this.#usedIndex, 0) & UsedFlag.NO_NOTIFY) === 0;
    this.#notified = now;
    if (wanted) {
      this.counters.kicks += 1;
      this.#doorbell(this.index);
    } else this.counters.kicksSuppressed += 1;
  }

  dequeue(): number {
    const consumed = this.#consumed;
    if (consumed === this.#usedSeen && !this.#look()) return -1;
    if (this.#broken !== null) return -1;
    const entry = 1 + 2 * (consumed & (this.size - 1));
    const id = this.#usedEntries[entry] as number;
    const length = this.#usedEntries[entry + 1] as number;
    const record = this.#record;
    const r = id * 4;
    const shape = id < this.size ? (record[r + SHAPE] as number) : 0;
    if (shape === 0) {
      this.#misbehaved(`used.id ${id} is not outstanding`, "§2.7.8");
      return -1;
    }
    const writable = (record[r + WRITABLE] as number) >>> 0;
    if (length > writable) {
      this.#misbehaved(
        `used.len ${length} is above the ${writable} writable bytes of chain ${id}`,
        "§2.7.8",
      );
      return -1;
    }
    // The chain goes back to the head of the free list.
    record[(shape & 0xffff) * 4 + NEXT] = this.#freeHead;
    record[r + SHAPE] = 0;
    this.#freeHead = id;
    this.#free += shape >>> 16;
    this.#chains -= 1;
    this.#consumed = (consumed + 1) & 0xffff;
    this.counters.buffers += 1;
    this.usedLength = length;
    return record[r + COOKIE] as number;
  }

  /** Reads used.idx; true when it is ahead of what was consumed, and possible. */
  #look(): boolean {
    if (this.#broken !== null) return false;
    const seen = loadIndex(this.#usedIndex, 1);
    const ahead = (seen - this.#consumed) & 0xffff;
    if (ahead === 0) return false;
    if (ahead > this.#chains) {
      this.#misbehaved(
        `used.idx ${seen} is ${ahead} ahead of ${this.#consumed} with ${this.#chains} chains outstanding`,
        "§2.7.8",
      );
      return false;
    }
    this.#usedSeen = seen;
    return true;
  }

  enableInterrupt(): boolean {
    if (this.#eventIdx) storeIndex(this.#available, 2 + this.size, this.#consumed);
    else storeIndex(this.#available, 0, 0);
    // Armed before the index is read again, or a buffer used in between would wait for the next interrupt (§2.7.14).
    // A broken queue has nothing to take: a handler that loops until this is false must end.
    return this.#broken === null && (this.#consumed !== this.#usedSeen || this.#look());
  }

  disableInterrupt(): void {
    // With EVENT_IDX flags stay 0 (§2.7.7.1): ask for a point that the device cannot reach soon.
    if (this.#eventIdx)
      storeIndex(this.#available, 2 + this.size, (this.#consumed - this.size - 1) & 0xffff);
    else storeIndex(this.#available, 0, AvailFlag.NO_INTERRUPT);
  }

  postponeInterrupt(hint: "short" | "long" | "emptied"): boolean {
    const inFlight = (this.#published - this.#consumed) & 0xffff;
    const after =
      hint === "short" ? inFlight >>> 2 : hint === "long" ? (inFlight * 3) >>> 2 : inFlight;
    if (this.#eventIdx)
      storeIndex(this.#available, 2 + this.size, (this.#consumed + after) & 0xffff);
    else storeIndex(this.#available, 0, 0);
    const ready = (loadIndex(this.#usedIndex, 1) - this.#consumed) & 0xffff;
    return this.#broken === null && ready > after;
  }

  poll(timeoutMs: number): number {
    const until = this.#tasks.now() + timeoutMs;
    for (;;) {
      this.#pollDevice();
      const cookie = this.dequeue();
      if (cookie >= 0 || this.#broken !== null || this.#tasks.now() >= until) return cookie;
    }
  }

  drain(): number {
    if (this.#chains === 0) return -1;
    const record = this.#record;
    for (let head = 0; head < this.size; head++) {
      const r = head * 4;
      const shape = record[r + SHAPE] as number;
      if (shape === 0) continue;
      record[(shape & 0xffff) * 4 + NEXT] = this.#freeHead;
      record[r + SHAPE] = 0;
      this.#freeHead = head;
      this.#free += shape >>> 16;
      this.#chains -= 1;
      return record[r + COOKIE] as number;
    }
    return -1;
  }

  /** The device signalled: the transport calls it as a task. */
  interrupted(): void {
    this.counters.interrupts += 1;
    this.onUsed?.();
  }

  /** Breaks the queue: the device broke a rule, or is gone. Only the first fault counts. */
  fail(fault: VirtioFault): void {
    if (this.#broken !== null) return;
    this.#broken = fault;
    this.#tasks.enqueue(() => this.onBroken?.(fault));
  }

  #misbehaved(what: string, section: string): void {
    this.fail(
      new VirtioFault(
        "DEVICE_MISBEHAVED",
        `device misbehaved: ${what} (queue ${this.index}, size ${this.size})`,
        {
          device: this.#device,
          clause: `virtio 1.4 ${section}`,
        },
      ),
    );
  }

  dump(): string {
    const { size } = this;
    const hex = (value: number): string => `0x${value.toString(16)}`;
    return [
      `VQ: ${this.name} - size=${size}`,
      `free=${this.#free}`,
      `used=${this.used}`,
      `queued=${(this.#nextAvailable - this.#notified) & 0xffff}`,
      `desc_head_idx=${this.#freeHead}`,
      `avail.idx=${this.#nextAvailable}`,
      `used_cons_idx=${this.#consumed}`,
      `used.idx=${loadIndex(this.#usedIndex, 1)}`,
      `used_event_idx=${loadIndex(this.#available, 2 + size)}`,
      `avail.flags=${hex(loadIndex(this.#available, 0))}`,
      `used.flags=${hex(loadIndex(this.#usedIndex, 0))}`,
    ].join("; ");
  }
}

// The driver's end of a split virtqueue (virtio 1.4 §2.7; FreeBSD's virtqueue.c).
//
// What the driver must know about a chain it handed out is kept in a private record. Shared memory is written, and of it only the
// used ring is ever read back; each value from there is checked before it indexes, counts or bounds anything.
import {
  type ChainTemplate,
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
import { loadIndex, moved, storeIndex } from "./order.js";
import {
  checkMaxSegments,
  postponed,
  type QueueAddresses,
  type QueueOptions,
} from "./queue-options.js";
import { splitLayout } from "./split-layout.js";
import { words16, words32 } from "./views.js";

/** The private record of a descriptor: four words. An enum of this file, which the build turns into literals (0.1 ns a use). */
enum Entry {
  /** The next free descriptor, or the next one of its chain. */
  NEXT = 0,
  /** Of a chain's head: descriptors (high half) and last descriptor (low half). 0: no chain of ours begins here. */
  SHAPE = 1,
  /** Of a chain's head: device-writable bytes, unsigned. */
  WRITABLE = 2,
  /** Of a chain's head: the caller's cookie. */
  COOKIE = 3,
}

/** Shape of a template's chain: its descriptors are never free. */
const TEMPLATE = -1;

/** Parts of a descriptor, in 32-bit words (virtio 1.4 §2.7.5). */
enum Word {
  ADDRESS = 0,
  LENGTH = 2,
  FLAGS_NEXT = 3,
}

/** What {@link SplitQueue} saves: private, whole numbers only. The ring itself is in guest memory, which others save. */
export interface SplitQueueState {
  readonly format: "split";
  readonly record: readonly number[];
  readonly order: readonly number[];
  readonly freeHead: number;
  readonly free: number;
  readonly nextAvailable: number;
  readonly published: number;
  readonly unnotified: number;
  readonly consumed: number;
  readonly batch: number;
  readonly batchLength: number;
}

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
    clipped: 0,
  };
  readonly addresses: QueueAddresses;

  #broken: VirtioFault | null = null;
  /** What enqueue() returns: 0 while it takes chains, -EIO when the queue is broken, -EBUSY when it is frozen. */
  #refusal = 0;
  readonly #device: string;
  /** Somebody outside this thread sees the memory: indices and flags are ordered. */
  readonly #shared: boolean;
  readonly #tasks: TaskQueue;
  readonly #doorbell: (index: number, next: number) => void;
  readonly #pollDevice: () => void;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  /** Lengths above what is writable are cut. */
  readonly #clips: boolean;
  readonly #maxIndirect: number;
  /** Descriptors that must stay free for a chain to go in the ring itself though it might go in a table. */
  readonly #reserve: number;
  readonly #region: DmaRegion;
  /** Guest-physical address of the indirect tables. */
  readonly #tables: number;

  /** Descriptor table, in words. */
  readonly #descriptors: Uint32Array;
  /** Available ring: flags, idx, ring, used_event. */
  readonly #available: Uint16Array;
  /** Used ring's flags and idx; avail_event at its end. */
  readonly #usedIndex: Uint16Array;
  /** Used ring's entries, id and len in turn; entry 0 begins at word 1. */
  readonly #usedEntries: Uint32Array;
  /** Indirect tables, `maxIndirect` descriptors for each descriptor of the ring. */
  readonly #indirect: Uint32Array;

  readonly #record: Int32Array;
  /** Heads in the order in which they were enqueued, by number modulo size: the available ring as it was written. */
  readonly #order: Int32Array;
  #freeHead = 0;
  #free: number;
  /** avail.idx as the next publish() will store it. */
  #nextAvailable = 0;
  /** avail.idx as last stored. */
  #published = 0;
  /** Chains published since the last notify(). A count, because the index laps. */
  #unnotified = 0;
  /** Used entries taken so far, modulo 2^16. */
  #consumed = 0;
  /** used.idx as last read and found possible. */
  #usedSeen = 0;
  /** With IN_ORDER: chains of a batch, whose only used entry was read, that are still to be given to the caller. */
  #batch = 0;
  /** With IN_ORDER: what that entry says of the last of them. */
  #batchLength = 0;

  /** @throws VirtioFault INVALID, OUT_OF_MEMORY */
  constructor(options: QueueOptions) {
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
    if (!Number.isInteger(size) || size < 1 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0)
      throw new VirtioFault(
        "INVALID",
        `virtqueue ${index} (${name}) size is not a power of 2: ${size}`,
        { device },
      );
    checkMaxSegments(options);
    this.index = index;
    this.name = name;
    this.size = size;
    this.#device = device;
    this.#shared = options.shared ?? memory.shared;
    this.#tasks = tasks;
    this.#doorbell = options.doorbell;
    this.#pollDevice = options.poll ?? ((): void => {});
    this.#eventIdx = eventIdx;
    this.#inOrder = options.inOrder ?? false;
    this.#clips = (options.legacy ?? false) || (options.clip ?? false);
    // A chain is never longer than the queue, even in a table (virtio 1.4 §2.7.5.3.1).
    this.#maxIndirect = indirect && maxSegments > 1 ? Math.min(maxSegments, size) : 0;
    this.#reserve = options.reserve ?? size;

    const layout = splitLayout(size, align);
    // Ring and tables are one piece: there is memory for both or for none.
    const tables = Math.ceil(layout.length / DESCRIPTOR_SIZE) * DESCRIPTOR_SIZE;
    const tablesLength = size * this.#maxIndirect * DESCRIPTOR_SIZE;
    this.#region = memory.allocate(tables + tablesLength, align);
    const { address, offset } = this.#region;
    this.addresses = {
      descriptors: address + layout.descriptors,
      driver: address + layout.available,
      device: address + layout.used,
    };
    this.#descriptors = words32(memory.buffer, offset, size * 4);
    this.#available = words16(memory.buffer, offset + layout.available, 3 + size);
    this.#usedIndex = words16(memory.buffer, offset + layout.used, 3 + 4 * size);
    this.#usedEntries = words32(memory.buffer, offset + layout.used, 1 + 2 * size);
    this.#tables = address + tables;
    this.#indirect = words32(memory.buffer, offset + tables, tablesLength >>> 2);

    this.#record = new Int32Array(size * 4);
    this.#order = new Int32Array(size);
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
    return this.#region.length;
  }

  /** Everything as at first: after a reset of the device or of this queue, and after drain(). Interrupts are disabled, templates gone. */
  restart(): void {
    const { size } = this;
    this.#region.bytes.fill(0);
    this.#record.fill(0);
    // A cycle: with IN_ORDER descriptors are used in ring order and the links never change (virtio 1.4 §2.7.5.2).
    for (let i = 0; i < size; i++) this.#record[(i << 2) + Entry.NEXT] = (i + 1) & (size - 1);
    this.#freeHead = 0;
    this.#free = size;
    this.#nextAvailable = 0;
    this.#published = 0;
    this.#unnotified = 0;
    this.#consumed = 0;
    this.#usedSeen = 0;
    this.#batch = 0;
    this.#broken = null;
    this.#refusal = 0;
    this.disableInterrupt();
  }

  /** Gives the ring's memory back. Only after a reset that read back complete: until then the device may write there. */
  release(): void {
    this.#region.free();
  }

  enqueue(
    cookie: number,
    segments: Uint32Array,
    at: number,
    readable: number,
    writable: number,
  ): number {
    if (this.#refusal !== 0) return this.#refusal;
    const total = readable + writable;
    if (total === 1) {
      const flags = writable === 1 ? DescriptorFlag.WRITE : 0;
      const length = segments[at + 1] as number;
      return this.#enqueueOne(
        cookie,
        segments[at] as number,
        length,
        flags,
        flags === 0 ? 0 : length,
      );
    }
    const free = this.#free;
    if (total < 1) return -Errno.EINVAL;
    if (free === 0) return -Errno.ENOSPC;
    const direct = total > this.#maxIndirect || free - total >= this.#reserve;
    if (direct && total > free) return -Errno.EMSGSIZE;

    const record = this.#record;
    const descriptors = this.#descriptors;
    const head = this.#freeHead;
    let writableBytes = 0;
    let last = head;
    let after = record[(head << 2) + Entry.NEXT] as number;
    if (direct) {
      let i = head;
      for (let k = 0; k < total; k++) {
        const length = segments[at + 2 * k + 1] as number;
        if (length === 0) return -Errno.EINVAL;
        after = record[(i << 2) + Entry.NEXT] as number;
        let flags = k + 1 < total ? DescriptorFlag.NEXT | (after << 16) : 0;
        if (k >= readable) {
          flags |= DescriptorFlag.WRITE;
          writableBytes = (writableBytes + length) | 0;
        }
        const d = i << 2;
        descriptors[d + Word.ADDRESS] = segments[at + 2 * k] as number;
        descriptors[d + Word.ADDRESS + 1] = 0;
        descriptors[d + Word.LENGTH] = length;
        descriptors[d + Word.FLAGS_NEXT] = flags;
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
          writableBytes = (writableBytes + length) | 0;
        }
        const d = (first + k) << 2;
        table[d + Word.ADDRESS] = segments[at + 2 * k] as number;
        table[d + Word.ADDRESS + 1] = 0;
        table[d + Word.LENGTH] = length;
        table[d + Word.FLAGS_NEXT] = flags;
      }
      const d = head << 2;
      descriptors[d + Word.ADDRESS] = this.#tables + first * DESCRIPTOR_SIZE;
      descriptors[d + Word.ADDRESS + 1] = 0;
      descriptors[d + Word.LENGTH] = total * DESCRIPTOR_SIZE;
      descriptors[d + Word.FLAGS_NEXT] = DescriptorFlag.INDIRECT;
    }
    const count = direct ? total : 1;
    this.#freeHead = after;
    this.#free = free - count;
    return this.#commit(cookie, head, (count << 16) | last, writableBytes);
  }

  enqueueReadable(cookie: number, address: number, length: number): number {
    return this.#enqueueOne(cookie, address, length, 0, 0);
  }

  enqueueWritable(cookie: number, address: number, length: number): number {
    return this.#enqueueOne(cookie, address, length, DescriptorFlag.WRITE, length);
  }

  #enqueueOne(
    cookie: number,
    address: number,
    length: number,
    flags: number,
    writableBytes: number,
  ): number {
    if (this.#refusal !== 0) return this.#refusal;
    if (this.#free === 0) return -Errno.ENOSPC;
    if (length === 0) return -Errno.EINVAL;
    const head = this.#freeHead;
    const d = head << 2;
    const descriptors = this.#descriptors;
    descriptors[d + Word.ADDRESS] = address;
    descriptors[d + Word.ADDRESS + 1] = 0;
    descriptors[d + Word.LENGTH] = length;
    descriptors[d + Word.FLAGS_NEXT] = flags;
    this.#freeHead = this.#record[d + Entry.NEXT] as number;
    this.#free -= 1;
    return this.#commit(cookie, head, (1 << 16) | head, writableBytes);
  }

  /** The chain is written: enter it into the record. */
  #commit(cookie: number, head: number, shape: number, writableBytes: number): number {
    const record = this.#record;
    const r = head << 2;
    record[r + Entry.SHAPE] = shape;
    record[r + Entry.WRITABLE] = writableBytes;
    record[r + Entry.COOKIE] = cookie;
    return this.#offer(head);
  }

  /** Puts a chain into the next place of the available ring. */
  #offer(head: number): number {
    const next = this.#nextAvailable;
    const place = next & (this.size - 1);
    this.#available[2 + place] = head;
    this.#order[place] = head;
    this.#nextAvailable = (next + 1) & 0xffff;
    return 0;
  }

  template(count: number, readable: number, writable: number): ChainTemplate {
    const total = readable + writable;
    if (
      !Number.isInteger(count) ||
      count < 1 ||
      total < 1 ||
      count * total > this.#free ||
      this.#inOrder
    )
      throw new VirtioFault(
        "INVALID",
        `virtqueue ${this.index} (${this.name}) has no room for ${count} chains of ${total} descriptors that stay${this.#inOrder ? ": IN_ORDER uses descriptors in ring order" : ""}`,
        { device: this.#device },
      );
    const record = this.#record;
    const descriptors = this.#descriptors;
    const available = this.#available;
    const order = this.#order;
    const mask = this.size - 1;
    // First descriptor of each slot; its chain follows the links of the record.
    const heads = new Int32Array(count);
    const chain = new Int32Array(count * total);
    // What the device holds is never read back: lengths are kept here.
    const lengths = new Uint32Array(count * total);
    for (let slot = 0; slot < count; slot++)
      for (let k = 0; k < total; k++) {
        const i = this.#freeHead;
        this.#freeHead = record[(i << 2) + Entry.NEXT] as number;
        this.#free -= 1;
        if (k === 0) {
          heads[slot] = i;
          record[(i << 2) + Entry.WRITABLE] = 0;
          record[(i << 2) + Entry.COOKIE] = slot;
        }
        chain[slot * total + k] = i;
        descriptors[(i << 2) + Word.ADDRESS + 1] = 0;
        descriptors[(i << 2) + Word.LENGTH] = 0;
        descriptors[(i << 2) + Word.FLAGS_NEXT] =
          (k + 1 < total ? DescriptorFlag.NEXT | (this.#freeHead << 16) : 0) |
          (k >= readable ? DescriptorFlag.WRITE : 0);
      }
    return {
      set: (slot, k, address, length) => {
        const head = heads[slot] as number;
        // The device may be reading its descriptors.
        if (record[(head << 2) + Entry.SHAPE] !== 0) throw this.#inFlight(slot);
        const d = (chain[slot * total + k] as number) * 4;
        const before = lengths[slot * total + k] as number;
        lengths[slot * total + k] = length;
        if (k >= readable)
          record[(head << 2) + Entry.WRITABLE] =
            (record[(head << 2) + Entry.WRITABLE] as number) + length - before;
        descriptors[d + Word.ADDRESS] = address;
        descriptors[d + Word.LENGTH] = length;
      },
      enqueue: (slot) => {
        if (this.#refusal !== 0) return this.#refusal;
        const head = heads[slot] as number;
        const r = head << 2;
        if (record[r + Entry.SHAPE] !== 0) return -Errno.EBUSY;
        // Cookie and writable bytes stand in the record since the slot was made and set.
        record[r + Entry.SHAPE] = TEMPLATE;
        // As #offer(), with what it looks up at hand: 1 ns of 25.
        const next = this.#nextAvailable;
        const place = next & mask;
        available[2 + place] = head;
        order[place] = head;
        this.#nextAvailable = (next + 1) & 0xffff;
        return 0;
      },
    };
  }

  #inFlight(slot: number): VirtioFault {
    return new VirtioFault(
      "INVALID",
      `virtqueue ${this.index} (${this.name}): slot ${slot} is set while the device holds it`,
      { device: this.#device },
    );
  }

  publish(): void {
    const next = this.#nextAvailable;
    const added = (next - this.#published) & 0xffff;
    if (added === 0) return;
    const inFlight = this.size - this.#free;
    if (inFlight > this.counters.highWater) this.counters.highWater = inFlight;
    // The device may read descriptors and ring entries as soon as it sees the index: they are stored before it (§2.7.13.3.1).
    storeIndex(this.#available, 1, next, this.#shared);
    this.#published = next;
    this.#unnotified += added;
  }

  notify(): void {
    this.publish();
    const added = this.#unnotified;
    if (added === 0 || this.#broken !== null) return;
    const now = this.#published;
    // The index is stored before what the device wants is read, or both ends could wait for each other (§2.7.13.4.1).
    const wanted = this.#eventIdx
      ? ((now - loadIndex(this.#usedIndex, 2 + 4 * this.size, this.#shared) - 1) & 0xffff) < added
      : (loadIndex(this.#usedIndex, 0, this.#shared) & UsedFlag.NO_NOTIFY) === 0;
    this.#unnotified = 0;
    if (wanted) {
      this.counters.kicks += 1;
      this.#doorbell(this.index, now);
    } else this.counters.kicksSuppressed += 1;
  }

  dequeue(): number {
    if (this.#inOrder) return this.#dequeueInOrder();
    const consumed = this.#consumed;
    if (consumed === this.#usedSeen && (!moved(this.#usedIndex, 1, consumed) || !this.#look()))
      return -1;
    const entry = 1 + ((consumed & (this.size - 1)) << 1);
    const id = this.#usedEntries[entry] as number;
    const length = this.#usedEntries[entry + 1] as number;
    if (id >= this.size) return this.#refuseUsed(id);
    const shape = this.#record[(id << 2) + Entry.SHAPE] as number;
    if (shape === 0 || (this.#published !== this.#nextAvailable && this.#isUnpublished(id)))
      return this.#refuseUsed(id);
    return this.#take(id, shape, length);
  }

  #refuseUsed(id: number): -1 {
    return this.#misbehaved(`used.id ${id} is not outstanding`, "§2.7.8");
  }

  /** Whether a chain is enqueued and the device was not told: rare, because drivers publish before they dequeue. */
  #isUnpublished(head: number): boolean {
    for (let at = this.#published; at !== this.#nextAvailable; at = (at + 1) & 0xffff)
      if (this.#order[at & (this.size - 1)] === head) return true;
    return false;
  }

  /** A length above what is writable: counted where it is to be clipped, else misbehaviour. */
  #clip(head: number, length: number, writable: number): boolean {
    if (this.#clips) {
      this.counters.clipped += 1;
      return true;
    }
    this.#misbehaved(
      `used.len ${length} is above the ${writable} writable bytes of chain ${head}`,
      "§2.7.8",
    );
    return false;
  }

  /** Gives the chain of `head` back to the caller, its descriptors to the free list. */
  #take(head: number, shape: number, length: number): number {
    const record = this.#record;
    const r = head << 2;
    const writable = (record[r + Entry.WRITABLE] as number) >>> 0;
    let written = length;
    if (written > writable) {
      if (!this.#clip(head, length, writable)) return -1;
      written = writable;
    }
    record[r + Entry.SHAPE] = 0;
    if (shape !== TEMPLATE) {
      if (!this.#inOrder) {
        record[((shape & 0xffff) << 2) + Entry.NEXT] = this.#freeHead;
        this.#freeHead = head;
      }
      this.#free += shape >>> 16;
    }
    this.#consumed = (this.#consumed + 1) & 0xffff;
    this.usedLength = written;
    return record[r + Entry.COOKIE] as number;
  }

  /**
   * With IN_ORDER one used entry may stand for a batch: it names the last chain, the device skips the places of the others, and they
   * count as wholly used (virtio 1.4 §2.7.9).
   */
  #dequeueInOrder(): number {
    const record = this.#record;
    const mask = this.size - 1;
    if (this.#broken !== null) return -1;
    if (this.#batch === 0) {
      if (this.#consumed === this.#usedSeen && !this.#look()) return -1;
      const entry = 1 + ((this.#consumed & mask) << 1);
      const id = this.#usedEntries[entry] as number;
      const ahead = (this.#usedSeen - this.#consumed) & 0xffff;
      let count = 1;
      // Bounded by what the device says it used, which is bounded by what it holds.
      while (count <= ahead && (this.#order[(this.#consumed + count - 1) & mask] as number) !== id)
        count++;
      if (count > ahead)
        return this.#misbehaved(
          `used.id ${id} is not among the ${ahead} chains next in order`,
          "§2.7.9",
        );
      this.#batch = count;
      this.#batchLength = this.#usedEntries[entry + 1] as number;
    }
    const head = this.#order[this.#consumed & mask] as number;
    const last = this.#batch === 1;
    this.#batch -= 1;
    const whole = (record[(head << 2) + Entry.WRITABLE] as number) >>> 0;
    return this.#take(
      head,
      record[(head << 2) + Entry.SHAPE] as number,
      last ? this.#batchLength : whole,
    );
  }

  /** Reads used.idx; true when it is ahead of what was consumed, and possible. */
  #look(): boolean {
    if (this.#broken !== null) return false;
    const seen = loadIndex(this.#usedIndex, 1, this.#shared);
    const ahead = (seen - this.#consumed) & 0xffff;
    if (ahead === 0) return false;
    const outstanding = (this.#published - this.#consumed) & 0xffff;
    if (ahead > outstanding) {
      this.#misbehaved(
        `used.idx ${seen} is ${ahead} ahead of ${this.#consumed} with ${outstanding} chains outstanding`,
        "§2.7.8",
      );
      return false;
    }
    // All of them at once: a count on every chain is 1 ns.
    this.counters.buffers += ahead;
    this.#usedSeen = seen;
    return true;
  }

  enableInterrupt(): boolean {
    if (this.#eventIdx) storeIndex(this.#available, 2 + this.size, this.#consumed, this.#shared);
    else storeIndex(this.#available, 0, 0, this.#shared);
    // Armed before the index is read again, or a buffer used in between would wait for the next interrupt (§2.7.14). A broken queue
    // has nothing to take: a handler that loops until this is false must end.
    return this.#broken === null && (this.#consumed !== this.#usedSeen || this.#look());
  }

  disableInterrupt(): void {
    // With EVENT_IDX flags stay 0 (§2.7.7.1): ask for a point that the device cannot reach soon.
    if (this.#eventIdx)
      storeIndex(
        this.#available,
        2 + this.size,
        (this.#consumed - this.size - 1) & 0xffff,
        this.#shared,
      );
    else storeIndex(this.#available, 0, AvailFlag.NO_INTERRUPT, this.#shared);
  }

  postponeInterrupt(hint: "short" | "long" | "emptied"): boolean {
    const after = postponed(hint, (this.#published - this.#consumed) & 0xffff);
    if (this.#eventIdx)
      storeIndex(this.#available, 2 + this.size, (this.#consumed + after) & 0xffff, this.#shared);
    else storeIndex(this.#available, 0, 0, this.#shared);
    const ready = (loadIndex(this.#usedIndex, 1, this.#shared) - this.#consumed) & 0xffff;
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
    const record = this.#record;
    for (let head = 0; head < this.size; head++) {
      const shape = record[(head << 2) + Entry.SHAPE] as number;
      if (shape === 0) continue;
      record[(head << 2) + Entry.SHAPE] = 0;
      if (shape !== TEMPLATE) {
        record[((shape & 0xffff) << 2) + Entry.NEXT] = this.#freeHead;
        this.#freeHead = head;
        this.#free += shape >>> 16;
      }
      return record[(head << 2) + Entry.COOKIE] as number;
    }
    return -1;
  }

  /** The device signalled: the transport calls it as a task. */
  interrupted(): void {
    this.counters.interrupts += 1;
    this.onUsed?.();
  }

  /** The device is to be suspended: what was enqueued is told, and nothing more is taken until thaw() (virtio 1.4 §3.4.1). */
  freeze(): void {
    this.notify();
    if (this.#refusal === 0) this.#refusal = -Errno.EBUSY;
  }

  /** The device goes on. */
  thaw(): void {
    if (this.#refusal === -Errno.EBUSY) this.#refusal = 0;
  }

  /** Breaks the queue: the device broke a rule, or is gone. Only the first fault counts. */
  fail(fault: VirtioFault): void {
    if (this.#broken !== null) return;
    this.#broken = fault;
    this.#refusal = -Errno.EIO;
    // Nothing that was seen is taken any more: dequeue() looks, and finds the queue broken.
    this.#usedSeen = this.#consumed;
    this.#tasks.enqueue(() => this.onBroken?.(fault));
  }

  /** What is not in guest memory, to put back with `restore`. @throws VirtioFault INVALID when the queue is broken */
  save(): SplitQueueState {
    if (this.#broken !== null) throw this.#broken;
    return {
      format: "split",
      record: [...this.#record],
      order: [...this.#order],
      freeHead: this.#freeHead,
      free: this.#free,
      nextAvailable: this.#nextAvailable,
      published: this.#published,
      unnotified: this.#unnotified,
      consumed: this.#consumed,
      batch: this.#batch,
      batchLength: this.#batchLength,
    };
  }

  /**
   * Goes on where a queue of the same size and address was saved. The order is: make the queue, put guest memory back, restore.
   * Templates are made anew.
   * @throws VirtioFault INVALID when the state is of another format or size
   */
  restore(state: SplitQueueState): void {
    if (
      state.format !== "split" ||
      state.record.length !== this.#record.length ||
      state.order.length !== this.#order.length
    )
      throw new VirtioFault(
        "INVALID",
        `the saved state is not of a split queue of size ${this.size}`,
        { device: this.#device },
      );
    this.#record.set(state.record);
    this.#order.set(state.order);
    this.#freeHead = state.freeHead;
    this.#free = state.free;
    this.#nextAvailable = state.nextAvailable;
    this.#published = state.published;
    this.#unnotified = state.unnotified;
    this.#consumed = state.consumed;
    this.#usedSeen = (state.consumed + state.batch) & 0xffff;
    this.#batch = state.batch;
    this.#batchLength = state.batchLength;
    this.#broken = null;
    this.#refusal = 0;
  }

  #misbehaved(what: string, section: string): -1 {
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
    return -1;
  }

  dump(): string {
    const { size } = this;
    const hex = (value: number): string => `0x${value.toString(16)}`;
    return [
      `VQ: ${this.name} - size=${size}`,
      `free=${this.#free}`,
      `used=${this.used}`,
      `queued=${this.#unnotified + ((this.#nextAvailable - this.#published) & 0xffff)}`,
      `desc_head_idx=${this.#freeHead}`,
      `avail.idx=${this.#nextAvailable}`,
      `used_cons_idx=${this.#consumed}`,
      `used.idx=${loadIndex(this.#usedIndex, 1, this.#shared)}`,
      `used_event_idx=${loadIndex(this.#available, 2 + size, this.#shared)}`,
      `avail.flags=${hex(loadIndex(this.#available, 0, this.#shared))}`,
      `used.flags=${hex(loadIndex(this.#usedIndex, 0, this.#shared))}`,
    ].join("; ");
  }
}

// The driver's end of a packed virtqueue (virtio 1.4 §2.8).
//
// What the driver must know about a chain it handed out is kept in a private record by buffer id. Of the ring only used descriptors
// are ever read back; each value from there is checked before it indexes, counts or bounds anything.
import {
  type ChainTemplate,
  type DmaRegion,
  Errno,
  type QueueCounters,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { DESCRIPTOR_SIZE, PackedEvent, QUEUE_SIZE_MAX } from "@virtio/core/ring";
import { loadWord, peekWord, storeWord } from "./order.js";
import { availableBits, Owner, passes, usedBits, WRAP } from "./packed-layout.js";
import {
  checkMaxSegments,
  postponed,
  type QueueAddresses,
  type QueueOptions,
} from "./queue-options.js";
import { signed32, words32 } from "./views.js";

// The private record of a buffer id: four words.
enum Entry {
  NEXT = 0,
  COUNT = 1,
  WRITABLE = 2,
  COOKIE = 3,
}

// Parts of a descriptor, in 32-bit words (virtio 1.4 §2.8.13).
enum Word {
  ADDRESS = 0,
  LENGTH = 2,
  ID_FLAGS = 3,
}

enum Flag {
  NEXT = 0x1_0000,
  WRITE = 0x2_0000,
  INDIRECT = 0x4_0000,
}

/** What {@link PackedQueue} saves: private, whole numbers only. The ring itself is in guest memory, which others save. */
export interface PackedQueueState {
  readonly format: "packed";
  readonly record: readonly number[];
  readonly order: readonly number[];
  readonly freeId: number;
  readonly free: number;
  readonly chains: number;
  readonly next: number;
  readonly nextWrap: number;
  readonly usedAt: number;
  readonly usedWrap: number;
  readonly added: number;
  readonly heldHead: number;
  readonly heldWord: number;
  readonly newest: number;
  readonly oldest: number;
  readonly unpublished: number;
  readonly batch: number;
  readonly batchLength: number;
}

/**
 * The driver's end of a packed virtqueue (virtio 1.4 §2.8): a Virtqueue, and what a transport needs of one besides: addresses to
 * program, `interrupted`, `fail`, `restart`, `release`.
 */
export class PackedQueue implements Virtqueue {
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

  /** Descriptor ring, in words. */
  readonly #ring: Uint32Array;
  /** The same words, signed: ids and flags. */
  readonly #flags: Int32Array;
  /** Driver event suppression: desc, flags. */
  readonly #driverEvent: Int32Array;
  /** Device event suppression: desc, flags. */
  readonly #deviceEvent: Int32Array;
  /** Indirect tables, `maxIndirect` descriptors for each buffer id. */
  readonly #indirect: Uint32Array;

  readonly #record: Int32Array;
  /** Ids in the order in which they were enqueued, by number modulo size. */
  readonly #order: Int32Array;
  #freeId = 0;
  #free: number;
  /** Chains the device holds. */
  #chains = 0;
  /** Where the next descriptor goes, and in which lap. */
  #next = 0;
  #nextWrap = 1;
  /** Where the next used descriptor will be, and of which lap. */
  #usedAt = 0;
  #usedWrap = 1;
  /** Descriptors added since the last notify(). */
  #added = 0;
  /** The first head of what is not published: its place, and the word that will expose it and all after it. -1: nothing. */
  #heldHead = -1;
  #heldWord = 0;
  /** Place in `order` of the next chain, and with IN_ORDER of the oldest that the device has. */
  #newest = 0;
  #oldest = 0;
  /** Chains enqueued and not published. */
  #unpublished = 0;
  /** With IN_ORDER: chains of a batch, whose only used descriptor was read, that are still to be given to the caller. */
  #batch = 0;
  /** With IN_ORDER: what that descriptor says of the last of them. */
  #batchLength = 0;

  /** @throws VirtioFault INVALID, OUT_OF_MEMORY */
  constructor(options: QueueOptions) {
    const { index, name, device, size, memory, tasks, indirect, eventIdx, maxSegments } = options;
    if (!Number.isInteger(size) || size < 1 || size > QUEUE_SIZE_MAX)
      throw new VirtioFault(
        "INVALID",
        `virtqueue ${index} (${name}) size is not from 1 to ${QUEUE_SIZE_MAX}: ${size}`,
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
    this.#clips = options.clip ?? false;
    // A list is never longer than the queue, even in a table (virtio 1.4 §2.8.17).
    this.#maxIndirect = indirect && maxSegments > 1 ? Math.min(maxSegments, size) : 0;
    this.#reserve = options.reserve ?? size;

    const ringLength = size * DESCRIPTOR_SIZE;
    // Ring, events and tables are one piece: there is memory for all or for none.
    const tables = ringLength + DESCRIPTOR_SIZE;
    const tablesLength = size * this.#maxIndirect * DESCRIPTOR_SIZE;
    this.#region = memory.allocate(tables + tablesLength, DESCRIPTOR_SIZE);
    const { address, offset } = this.#region;
    this.addresses = {
      descriptors: address,
      driver: address + ringLength,
      device: address + ringLength + 4,
    };
    this.#ring = words32(memory.buffer, offset, size * 4);
    this.#flags = signed32(memory.buffer, offset, size * 4);
    this.#driverEvent = signed32(memory.buffer, offset + ringLength, 1);
    this.#deviceEvent = signed32(memory.buffer, offset + ringLength + 4, 1);
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

  /** Everything as at first: after a reset of the device or of this queue, and after drain(). Interrupts are disabled. */
  restart(): void {
    const { size } = this;
    this.#region.bytes.fill(0);
    this.#record.fill(0);
    for (let id = 0; id < size; id++) this.#record[(id << 2) + Entry.NEXT] = id + 1;
    this.#freeId = 0;
    this.#free = size;
    this.#chains = 0;
    this.#next = 0;
    this.#nextWrap = 1;
    this.#usedAt = 0;
    this.#usedWrap = 1;
    this.#added = 0;
    this.#heldHead = -1;
    this.#unpublished = 0;
    this.#newest = 0;
    this.#oldest = 0;
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
    const free = this.#free;
    if (total < 1) return -Errno.EINVAL;
    if (free === 0) return -Errno.ENOSPC;
    const direct = total < 2 || total > this.#maxIndirect || free - total >= this.#reserve;
    if (direct && total > free) return -Errno.EMSGSIZE;

    const id = this.#freeId;
    let writableBytes = 0;
    if (direct) {
      const ring = this.#ring;
      let place = this.#next;
      let bits = availableBits(this.#nextWrap);
      let headWord = 0;
      for (let k = 0; k < total; k++) {
        const length = segments[at + 2 * k + 1] as number;
        if (length === 0) return this.#takeBack(k);
        let word = bits | id | (k + 1 < total ? Flag.NEXT : 0);
        if (k >= readable) {
          word |= Flag.WRITE;
          writableBytes = (writableBytes + length) | 0;
        }
        const d = place << 2;
        ring[d + Word.ADDRESS] = segments[at + 2 * k] as number;
        ring[d + Word.ADDRESS + 1] = 0;
        ring[d + Word.LENGTH] = length;
        // The head's flags come last: they expose the list (§2.8.17).
        if (k === 0) headWord = word;
        else this.#flags[d + Word.ID_FLAGS] = word;
        place += 1;
        if (place === this.size) {
          place = 0;
          bits ^= Owner.MASK;
        }
      }
      return this.#commit(cookie, id, total, writableBytes, headWord, place);
    }
    const table = this.#indirect;
    const first = id * this.#maxIndirect;
    for (let k = 0; k < total; k++) {
      const length = segments[at + 2 * k + 1] as number;
      if (length === 0) return -Errno.EINVAL;
      const d = (first + k) << 2;
      table[d + Word.ADDRESS] = segments[at + 2 * k] as number;
      table[d + Word.ADDRESS + 1] = 0;
      table[d + Word.LENGTH] = length;
      // In a table only WRITE is valid; entries follow each other (§2.8.19).
      if (k >= readable) {
        table[d + Word.ID_FLAGS] = Flag.WRITE;
        writableBytes = (writableBytes + length) | 0;
      } else table[d + Word.ID_FLAGS] = 0;
    }
    return this.#commitOne(
      cookie,
      id,
      this.#tables + first * DESCRIPTOR_SIZE,
      total * DESCRIPTOR_SIZE,
      Flag.INDIRECT,
      writableBytes,
    );
  }

  /** A list turned out to be none: the words written after its head must not look available when the head's place is. */
  #takeBack(written: number): number {
    let place = this.#next;
    let wrap = this.#nextWrap;
    for (let k = 0; k < written; k++) {
      if (k > 0) this.#flags[(place << 2) + Word.ID_FLAGS] = usedBits(wrap ^ 1);
      place += 1;
      if (place === this.size) {
        place = 0;
        wrap ^= 1;
      }
    }
    return -Errno.EINVAL;
  }

  enqueueReadable(cookie: number, address: number, length: number): number {
    return this.#enqueueOne(cookie, address, length, 0, 0);
  }

  enqueueWritable(cookie: number, address: number, length: number): number {
    return this.#enqueueOne(cookie, address, length, Flag.WRITE, length);
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
    return this.#commitOne(cookie, this.#freeId, address, length, flags, writableBytes);
  }

  /** A chain of one descriptor in the ring. */
  #commitOne(
    cookie: number,
    id: number,
    address: number,
    length: number,
    flags: number,
    writableBytes: number,
  ): number {
    const ring = this.#ring;
    const d = this.#next << 2;
    ring[d + Word.ADDRESS] = address;
    ring[d + Word.ADDRESS + 1] = 0;
    ring[d + Word.LENGTH] = length;
    const place = this.#next + 1;
    const word = availableBits(this.#nextWrap) | id | flags;
    return this.#commit(cookie, id, 1, writableBytes, word, place === this.size ? 0 : place);
  }

  /** The chain is written but for its head's flags: enter it into the record. The first head of a batch waits for publish(). */
  #commit(
    cookie: number,
    id: number,
    count: number,
    writableBytes: number,
    headWord: number,
    place: number,
  ): number {
    const record = this.#record;
    const r = id << 2;
    const head = this.#next;
    this.#freeId = record[r + Entry.NEXT] as number;
    record[r + Entry.COUNT] = count;
    record[r + Entry.WRITABLE] = writableBytes;
    record[r + Entry.COOKIE] = cookie;
    this.#order[this.#newest] = id;
    this.#newest = this.#newest + 1 === this.size ? 0 : this.#newest + 1;
    if (this.#heldHead < 0) {
      this.#heldHead = head;
      this.#heldWord = headWord;
    } else this.#flags[(head << 2) + Word.ID_FLAGS] = headWord;
    this.#unpublished += 1;
    if (place <= head) this.#nextWrap ^= 1;
    this.#next = place;
    this.#free -= count;
    this.#chains += 1;
    this.#added += count;
    return 0;
  }

  template(count: number, readable: number, writable: number): ChainTemplate {
    const total = readable + writable;
    if (!Number.isInteger(count) || count < 1 || total < 1 || total > this.size)
      throw new VirtioFault(
        "INVALID",
        `virtqueue ${this.index} (${this.name}) cannot keep ${count} chains of ${total} descriptors`,
        {
          device: this.#device,
        },
      );
    // Descriptors go where the ring is: a template keeps the segments, and they are written each time. What the
    // device holds does not change with them, so that they may be set at any time.
    const segments = new Uint32Array(count * total * 2);
    return {
      set: (slot, k, address, length) => {
        segments[(slot * total + k) * 2] = address;
        segments[(slot * total + k) * 2 + 1] = length;
      },
      enqueue: (slot) => this.enqueue(slot, segments, slot * total * 2, readable, writable),
    };
  }

  publish(): void {
    const head = this.#heldHead;
    if (head < 0) return;
    const inFlight = this.size - this.#free;
    if (inFlight > this.counters.highWater) this.counters.highWater = inFlight;
    // The device looks at descriptors in ring order: this one word exposes the whole batch, and all of it is stored before
    // (§2.8.21.1.1).
    storeWord(this.#flags, (head << 2) + Word.ID_FLAGS, this.#heldWord, this.#shared);
    this.#heldHead = -1;
    this.#unpublished = 0;
  }

  notify(): void {
    this.publish();
    const added = this.#added;
    if (added === 0 || this.#broken !== null) return;
    // The flags are stored before what the device wants is read, or both ends could wait for each other (§2.8.21.3.1).
    const event = loadWord(this.#deviceEvent, 0, this.#shared);
    const kind = (event >>> 16) & 3;
    const wanted =
      this.#eventIdx && kind === PackedEvent.DESC
        ? passes(event & 0xffff, this.#next, this.#nextWrap, added, this.size)
        : kind !== PackedEvent.DISABLE;
    this.#added = 0;
    if (wanted) {
      this.counters.kicks += 1;
      this.#doorbell(this.index, this.#next | (this.#nextWrap === 1 ? WRAP : 0));
    } else this.counters.kicksSuppressed += 1;
  }

  dequeue(): number {
    if (this.#broken !== null) return -1;
    if (this.#batch > 0) return this.#takeInOrder();
    const d = this.#usedAt << 2;
    const bits = usedBits(this.#usedWrap);
    if ((peekWord(this.#flags, d + Word.ID_FLAGS) & Owner.MASK) !== bits) return -1;
    const word = loadWord(this.#flags, d + Word.ID_FLAGS, this.#shared);
    if ((word & Owner.MASK) !== bits) return -1;
    // Nothing is outstanding, or what comes next is not published: what earlier laps left there never looks used in this one.
    const id = word & 0xffff;
    if (
      this.#chains === 0 ||
      this.#usedAt === this.#heldHead ||
      id >= this.size ||
      this.#record[(id << 2) + Entry.COUNT] === 0 ||
      (this.#unpublished > 0 && this.#isUnpublished(id))
    )
      return this.#refuseUsed(id);
    let length = this.#ring[d + Word.LENGTH] as number;
    // Without WRITE the length says nothing (§2.8.12); but QEMU (7.2) never sets WRITE, and says the length all the same. So it is
    // taken where it is possible, and where it is not, nothing, or what is possible where that is asked for.
    if (
      (word & Flag.WRITE) === 0 &&
      !this.#clips &&
      length > (this.#record[(id << 2) + Entry.WRITABLE] as number) >>> 0
    )
      length = 0;
    return this.#inOrder ? this.#beginBatch(id, length) : this.#take(id, length);
  }

  #refuseUsed(id: number): -1 {
    return this.#chains === 0 || this.#usedAt === this.#heldHead
      ? this.#misbehaved(`descriptor ${this.#usedAt} is used and was not available`, "§2.8.15")
      : this.#misbehaved(`used id ${id} is not outstanding`, "§2.8.22");
  }

  #refuseLength(id: number, length: number, writable: number): -1 {
    return this.#misbehaved(
      `used length ${length} is above the ${writable} writable bytes of buffer ${id}`,
      "§2.8.22",
    );
  }

  /** Whether a chain is enqueued and the device was not told: rare, because drivers publish before they dequeue. */
  #isUnpublished(id: number): boolean {
    let at = this.#newest;
    for (let n = this.#unpublished; n > 0; n--) {
      at = at === 0 ? this.size - 1 : at - 1;
      if (this.#order[at] === id) return true;
    }
    return false;
  }

  /** Gives the chain of `id` back to the caller, its descriptors and its id to the free ones. */
  #take(id: number, length: number): number {
    const record = this.#record;
    const r = id << 2;
    const writable = (record[r + Entry.WRITABLE] as number) >>> 0;
    let written = length;
    if (written > writable) {
      if (!this.#clips) return this.#refuseLength(id, length, writable);
      this.counters.clipped += 1;
      written = writable;
    }
    const count = record[r + Entry.COUNT] as number;
    record[r + Entry.COUNT] = 0;
    record[r + Entry.NEXT] = this.#freeId;
    this.#freeId = id;
    this.#free += count;
    this.#chains -= 1;
    this.#usedAt += count;
    if (this.#usedAt >= this.size) {
      this.#usedAt -= this.size;
      this.#usedWrap ^= 1;
    }
    this.counters.buffers += 1;
    this.usedLength = written;
    return record[r + Entry.COOKIE] as number;
  }

  /**
   * With IN_ORDER one used descriptor may stand for a batch: it names the last chain, the device skips the places of the others, and
   * they count as wholly used (virtio 1.4 §2.8.11).
   */
  #beginBatch(id: number, length: number): number {
    let at = this.#oldest;
    let count = 1;
    while (count <= this.#chains && this.#order[at] !== id) {
      at = at + 1 === this.size ? 0 : at + 1;
      count += 1;
    }
    if (count > this.#chains)
      return this.#misbehaved(`used id ${id} is not among the chains next in order`, "§2.8.11");
    this.#batch = count;
    this.#batchLength = length;
    return this.#takeInOrder();
  }

  #takeInOrder(): number {
    const id = this.#order[this.#oldest] as number;
    this.#oldest = this.#oldest + 1 === this.size ? 0 : this.#oldest + 1;
    this.#batch -= 1;
    return this.#take(
      id,
      this.#batch === 0
        ? this.#batchLength
        : (this.#record[(id << 2) + Entry.WRITABLE] as number) >>> 0,
    );
  }

  /** Whether a used descriptor is there. */
  #ready(): boolean {
    if (this.#broken !== null || this.#chains === 0) return false;
    return (
      this.#batch > 0 ||
      (loadWord(this.#flags, (this.#usedAt << 2) + Word.ID_FLAGS, this.#shared) & Owner.MASK) ===
        usedBits(this.#usedWrap)
    );
  }

  enableInterrupt(): boolean {
    const at = this.#usedAt | (this.#usedWrap === 1 ? WRAP : 0);
    storeWord(
      this.#driverEvent,
      0,
      this.#eventIdx ? at | (PackedEvent.DESC << 16) : PackedEvent.ENABLE << 16,
      this.#shared,
    );
    // Armed before the ring is looked at again, or a buffer used in between would wait for the next interrupt (§2.8.22).
    return this.#ready();
  }

  disableInterrupt(): void {
    storeWord(this.#driverEvent, 0, PackedEvent.DISABLE << 16, this.#shared);
  }

  postponeInterrupt(hint: "short" | "long" | "emptied"): boolean {
    let at = this.#usedAt + postponed(hint, this.size - this.#free);
    let wrap = this.#usedWrap;
    if (at >= this.size) {
      at -= this.size;
      wrap ^= 1;
    }
    const event = at | (wrap === 1 ? WRAP : 0);
    storeWord(
      this.#driverEvent,
      0,
      this.#eventIdx ? event | (PackedEvent.DESC << 16) : PackedEvent.ENABLE << 16,
      this.#shared,
    );
    // Whether the event was passed before it was set cannot be told without walking: with nothing used it was not.
    return this.#ready();
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
    for (let id = 0; id < this.size; id++) {
      const count = record[(id << 2) + Entry.COUNT] as number;
      if (count === 0) continue;
      record[(id << 2) + Entry.COUNT] = 0;
      record[(id << 2) + Entry.NEXT] = this.#freeId;
      this.#freeId = id;
      this.#free += count;
      this.#chains -= 1;
      return record[(id << 2) + Entry.COOKIE] as number;
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
    this.#tasks.enqueue(() => this.onBroken?.(fault));
  }

  /** What is not in guest memory, to put back with `restore`. @throws VirtioFault what broke the queue */
  save(): PackedQueueState {
    if (this.#broken !== null) throw this.#broken;
    return {
      format: "packed",
      record: [...this.#record],
      order: [...this.#order],
      freeId: this.#freeId,
      free: this.#free,
      chains: this.#chains,
      next: this.#next,
      nextWrap: this.#nextWrap,
      usedAt: this.#usedAt,
      usedWrap: this.#usedWrap,
      added: this.#added,
      heldHead: this.#heldHead,
      heldWord: this.#heldWord,
      newest: this.#newest,
      oldest: this.#oldest,
      unpublished: this.#unpublished,
      batch: this.#batch,
      batchLength: this.#batchLength,
    };
  }

  /**
   * Goes on where a queue of the same size and address was saved. The order is: make the queue, put guest memory back, restore.
   * @throws VirtioFault INVALID when the state is of another format or size
   */
  restore(state: PackedQueueState): void {
    if (
      state.format !== "packed" ||
      state.record.length !== this.#record.length ||
      state.order.length !== this.#order.length
    )
      throw new VirtioFault(
        "INVALID",
        `the saved state is not of a packed queue of size ${this.size}`,
        { device: this.#device },
      );
    this.#record.set(state.record);
    this.#order.set(state.order);
    this.#freeId = state.freeId;
    this.#free = state.free;
    this.#chains = state.chains;
    this.#next = state.next;
    this.#nextWrap = state.nextWrap;
    this.#usedAt = state.usedAt;
    this.#usedWrap = state.usedWrap;
    this.#added = state.added;
    this.#heldHead = state.heldHead;
    this.#heldWord = state.heldWord;
    this.#newest = state.newest;
    this.#oldest = state.oldest;
    this.#unpublished = state.unpublished;
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
    const event = (word: number): string =>
      `${word & 0x7fff}/${(word >>> 15) & 1}/${(word >>> 16) & 3}`;
    return [
      `VQ: ${this.name} - size=${this.size}`,
      `free=${this.#free}`,
      `used=${this.used}`,
      `queued=${this.#added}`,
      `next=${this.#next}/${this.#nextWrap}`,
      `used_next=${this.#usedAt}/${this.#usedWrap}`,
      `driver_event=${event(loadWord(this.#driverEvent, 0, this.#shared))}`,
      `device_event=${event(loadWord(this.#deviceEvent, 0, this.#shared))}`,
    ].join("; ");
  }
}

// One chain in the device's hands: its segments, checked, as offsets into guest memory's regions.
import type { GuestMemory, GuestMemoryRegion } from "@virtio/core";
import { DESCRIPTOR_SIZE, DescriptorFlag } from "@virtio/core/ring";
import { CopyWords, RegionWords } from "./copy-words.js";
import { GuestViews } from "./guest-views.js";
import type { GuestWords } from "./guest-words.js";

/** Words of a segment. */
enum Segment {
  REGION = 0,
  LENGTH = 1,
  LOW = 2,
  HIGH = 3,
  SIZE = 4,
}

/** Bytes that are copied one by one. */
const SHORT = 64;
/**
 * Bytes from which on, and up to which, words are copied: of a chain of one segment, as most are, where both sides begin with a word.
 * 64 B take 16 ns, not 57.
 */
const WORDS_MIN = 8;
const WORDS_MAX = 512;

/** Words of both sides of a copy, and views of the guest's. */
export interface CopySides {
  readonly guest: RegionWords;
  readonly own: CopyWords;
  readonly views: GuestViews;
}

/** For the chains of one queue. */
export const copySides = (memory: GuestMemory): CopySides => ({
  guest: new RegionWords(memory),
  own: new CopyWords(),
  views: new GuestViews(),
});

/** A chain that a device holds, as it is saved. */
export interface SavedChain {
  readonly id: number;
  readonly descriptors: number;
  /** Address (low word, high word), length and whether it is writable (1), of each segment. */
  readonly segments: readonly number[];
}

/** Why a descriptor was refused: the clause, and what was seen. */
export interface Refusal {
  readonly clause: string;
  readonly what: string;
}

/**
 * A chain that a device took: readable bytes, then writable bytes, however the driver cut them into segments (virtio 1.4 §2.7.4:
 * assume nothing about the framing). The object belongs to its queue, which uses it again after it was given back.
 */
export class DeviceChain {
  /** Split: the head descriptor; packed: the buffer id. What the used entry names. */
  readonly id: number;
  /** Descriptors of the ring that the chain takes. */
  descriptors = 0;
  /** Bytes the device may read. */
  readableLength = 0;
  /** Bytes the device may write. */
  writableLength = 0;
  /** Number of the take; -1 while the device does not have it. */
  serial = -1;
  readonly #memory: GuestMemory;
  readonly #sides: CopySides;
  #segments = new Uint32Array(4 * Segment.SIZE);
  #count = 0;
  #readableCount = 0;
  #table = new Uint32Array(0);

  constructor(id: number, memory: GuestMemory, sides: CopySides) {
    this.id = id;
    this.#memory = memory;
    this.#sides = sides;
  }

  /** Whether the device has it. */
  get held(): boolean {
    return this.serial >= 0;
  }

  /** Segments, readable and writable. */
  get segments(): number {
    return this.#count;
  }

  /** Segments the device may read. */
  get readableSegments(): number {
    return this.#readableCount;
  }

  /** Empties the chain, for the queue that fills it. */
  begin(): void {
    this.descriptors = 0;
    this.readableLength = 0;
    this.writableLength = 0;
    this.#count = 0;
    this.#readableCount = 0;
  }

  /** begin() and add() of the only element; `write` is not 0 when it is writable. */
  only(low: number, high: number, length: number, write: number): boolean {
    const at = this.#memory.locate(low, high, length);
    if (at < 0 || length === 0) return false;
    const segments = this.#segments;
    segments[Segment.REGION] = at;
    segments[Segment.LENGTH] = length;
    segments[Segment.LOW] = low;
    segments[Segment.HIGH] = high;
    this.descriptors = 1;
    this.#count = 1;
    if (write === 0) {
      this.#readableCount = 1;
      this.readableLength = length;
      this.writableLength = 0;
    } else {
      this.#readableCount = 0;
      this.readableLength = 0;
      this.writableLength = length;
    }
    return true;
  }

  /** Adds one element as a descriptor has it; false when it must not be there: ask `refusal`. */
  add(low: number, high: number, length: number, writable: boolean): boolean {
    const at = length === 0 ? -1 : this.#memory.locate(low, high, length);
    if (at < 0 || (!writable && this.writableLength > 0)) return false;
    const s = this.#count << 2;
    if (s === this.#segments.length) this.#grow();
    const segments = this.#segments;
    segments[s] = at;
    segments[s + Segment.LENGTH] = length;
    segments[s + Segment.LOW] = low;
    segments[s + Segment.HIGH] = high;
    this.#count += 1;
    if (writable) this.writableLength += length;
    else {
      this.readableLength += length;
      this.#readableCount += 1;
    }
    return this.readableLength + this.writableLength <= 0x1_0000_0000;
  }

  #grow(): void {
    const more = new Uint32Array(this.#segments.length * 2);
    more.set(this.#segments);
    this.#segments = more;
  }

  /** Why add() or only() refused. `order` and `size` are the clauses for order and total length. */
  refusal(low: number, high: number, length: number, order: string, size: string): Refusal {
    if (this.readableLength + this.writableLength > 0x1_0000_0000)
      return { clause: size, what: `chain ${this.id} describes more than 2^32 bytes` };
    return this.#refusal(low, high, length, order);
  }

  #refusal(low: number, high: number, length: number, order: string): Refusal {
    if (length === 0) return { clause: order, what: `chain ${this.id} has a segment of 0 bytes` };
    if (this.#memory.locate(low, high, length) < 0)
      return {
        clause: "RESFEAT-5",
        what: `chain ${this.id} has ${length} bytes at 0x${(high >>> 0).toString(16)}:${(low >>> 0).toString(16)} outside guest memory`,
      };
    return { clause: order, what: `chain ${this.id} has a readable segment after a writable one` };
  }

  /** A private copy of an indirect table, so that what is checked is what is used; null when it lies outside guest memory. */
  copyTable(words: GuestWords, low: number, high: number, length: number): Uint32Array | null {
    if (this.#table.byteLength < length)
      this.#table = new Uint32Array(Math.ceil(length / DESCRIPTOR_SIZE) * 4);
    return words.copy(low, high, length, this.#table) ? this.#table : null;
  }

  /** The chain as it is saved. */
  save(): SavedChain {
    const segments: number[] = [];
    for (let s = 0; s < this.#count * Segment.SIZE; s += Segment.SIZE) {
      const [, length = 0, low = 0, high = 0] = this.#segments.subarray(s);
      segments.push(low, high, length, s < this.#readableCount * Segment.SIZE ? 0 : 1);
    }
    return { id: this.id, descriptors: this.descriptors, segments };
  }

  /** A chain as it was saved: null, or why it no longer can be. */
  restore({ descriptors, segments }: SavedChain): Refusal | null {
    this.begin();
    this.descriptors = descriptors;
    for (let s = 0; s < segments.length; s += 4) {
      const [low = 0, high = 0, length = 0, writable = 0] = segments.slice(s, s + 4);
      if (!this.add(low, high, length, writable === 1))
        return this.refusal(low, high, length, "FRAMING-1", "SPLIT-DESC-1");
    }
    return null;
  }

  /** Copies readable bytes from position `at` on into `into`, from its byte `start` up to `end`; returns how many there were. */
  read(at: number, into: Uint8Array, start: number = 0, end: number = into.length): number {
    const n = end - start;
    if (
      n >= WORDS_MIN &&
      n <= WORDS_MAX &&
      this.#readableCount > 0 &&
      at + n <= (this.#segments[Segment.LENGTH] as number)
    ) {
      const { guest, own } = this.#sides;
      const theirs = this.#locate(at);
      const ours = own.locate(into, start);
      if (((theirs | ours) & 3) === 0) {
        copyWords(own.words, ours >>> 2, guest.words, theirs >>> 2, n >>> 2);
        for (let i = n & ~3; i < n; i++) into[start + i] = guest.bytes[theirs + i] as number;
        return n;
      }
    }
    return this.#copy(0, this.#readableCount, at, into, start, end, false);
  }

  /** Copies bytes `start` to `end` of `from` to the writable bytes from position `at` on; returns how many there was room for. */
  write(at: number, from: Uint8Array, start: number = 0, end: number = from.length): number {
    const n = end - start;
    if (this.#count === 1 && n >= WORDS_MIN && n <= WORDS_MAX && at + n <= this.writableLength) {
      const { guest, own } = this.#sides;
      const theirs = this.#locate(at);
      const ours = own.locate(from, start);
      if (((theirs | ours) & 3) === 0) {
        copyWords(guest.words, theirs >>> 2, own.words, ours >>> 2, n >>> 2);
        for (let i = n & ~3; i < n; i++) guest.bytes[theirs + i] = from[start + i] as number;
        return n;
      }
    }
    return this.#copy(this.#readableCount, this.#count, at, from, start, end, true);
  }

  /**
   * Writes three little-endian words from position `at` on: a header, for which an array costs more than its bytes.
   * @returns false where the place is not one of words, or not there: nothing is written
   */
  writeWords(at: number, first: number, second: number, third: number): boolean {
    if (this.#count !== 1 || at + 12 > this.writableLength) return false;
    const to = this.#locate(at);
    if ((to & 3) !== 0) return false;
    const { words } = this.#sides.guest;
    const word = to >>> 2;
    words[word] = first;
    words[word + 1] = second;
    words[word + 2] = third;
    return true;
  }

  /** Writes the last writable byte, where devices have their status; there must be one. */
  writeLast(value: number): void {
    const segments = this.#segments;
    const s = (this.#count - 1) << 2;
    const region = segments[s + Segment.REGION] as number;
    const { guest } = this.#sides;
    const last = (segments[s + Segment.LENGTH] as number) - 1;
    if (guest.of(region))
      guest.bytes[(((segments[s + Segment.LOW] as number) + guest.lead) | 0) + last] = value;
    else this.#region(s).bytes[this.#offset(s) + last] = value;
  }

  /** Writes `length` bytes of `value` from writable position 0 on. */
  fill(value: number, length: number): void {
    for (const piece of this.writablePieces(0, length)) piece.fill(value);
  }

  /** Views of guest memory: `length` readable bytes from position `at` on, or as many as there are. */
  readablePieces(at: number, length: number): Uint8Array[] {
    return this.#pieces(0, this.#readableCount, at, length);
  }

  /** Views of guest memory: `length` writable bytes from position `at` on, or as many as there are. */
  writablePieces(at: number, length: number): Uint8Array[] {
    return this.#pieces(this.#readableCount, this.#count, at, length);
  }

  #pieces(first: number, end: number, at: number, length: number): Uint8Array[] {
    const segments = this.#segments;
    const pieces: Uint8Array[] = [];
    let skip = at;
    let left = length;
    for (let s = first << 2; s < end << 2 && left > 0; s += Segment.SIZE) {
      const whole = segments[s + Segment.LENGTH] as number;
      if (skip >= whole) {
        skip -= whole;
        continue;
      }
      const from = this.#offset(s) + skip;
      const n = Math.min(whole - skip, left);
      pieces.push(this.#region(s).bytes.subarray(from, from + n));
      left -= n;
      skip = 0;
    }
    return pieces;
  }

  /** Between `bytes` and segments, from position `at` on. A short one, such as a header, without a view: that costs more. */
  #copy(
    first: number,
    last: number,
    at: number,
    bytes: Uint8Array,
    start: number,
    end: number,
    toGuest: boolean,
  ): number {
    const segments = this.#segments;
    let skip = at;
    let next = start;
    for (let s = first << 2; s < last << 2 && next < end; s += Segment.SIZE) {
      const whole = segments[s + Segment.LENGTH] as number;
      if (skip >= whole) {
        skip -= whole;
        continue;
      }
      const guest = this.#region(s).bytes;
      const from = this.#offset(s) + skip;
      const n = Math.min(whole - skip, end - next);
      if (n > SHORT) {
        if (toGuest) guest.set(bytes.subarray(next, next + n), from);
        else bytes.set(this.#sides.views.of(guest, from, n), next);
      } else if (toGuest) for (let i = 0; i < n; i++) guest[from + i] = bytes[next + i] as number;
      else for (let i = 0; i < n; i++) bytes[next + i] = guest[from + i] as number;
      next += n;
      skip = 0;
    }
    return next - start;
  }

  /** Where position `at` of the only segment is in the buffer that `sides.guest` then has; -1, no multiple of 4: it is not copied so. */
  #locate(at: number): number {
    const segments = this.#segments;
    const { guest } = this.#sides;
    if (!guest.of(segments[Segment.REGION] as number)) return -1;
    return ((segments[Segment.LOW] as number) + guest.lead + at) | 0;
  }

  /** Region of the segment at word `s`. */
  #region(s: number): GuestMemoryRegion {
    return this.#memory.regions[this.#segments[s] as number] as GuestMemoryRegion;
  }

  /** Where the segment at word `s` begins in its region. */
  #offset(s: number): number {
    const high = this.#segments[s + Segment.HIGH] as number;
    const low = this.#segments[s + Segment.LOW] as number;
    return high * 0x1_0000_0000 + low - this.#region(s).address;
  }
}

/** Four at a time: a loop's own work is as much as a word's. */
function copyWords(
  target: Int32Array,
  to: number,
  source: Int32Array,
  from: number,
  count: number,
): void {
  let w = 0;
  for (; w + 3 < count; w += 4) {
    const first = source[from + w] as number;
    const second = source[from + w + 1] as number;
    const third = source[from + w + 2] as number;
    const fourth = source[from + w + 3] as number;
    target[to + w] = first;
    target[to + w + 1] = second;
    target[to + w + 2] = third;
    target[to + w + 3] = fourth;
  }
  for (; w < count; w++) target[to + w] = source[from + w] as number;
}

/** Whether a descriptor's flags say that the device may write. */
export const isWritable = (flags: number): boolean => (flags & DescriptorFlag.WRITE) !== 0;

// The shared bytes of a ring, for tests that play one end by hand or look over the shoulder of both. Nothing here is the code
// under test: layout and flags are written down a second time, from virtio 1.4 §2.7 and §2.8.

export const NEXT = 1;
export const WRITE = 2;
export const INDIRECT = 4;
export const AVAIL = 0x80;
export const USED = 0x8000;

/** Where the three parts of a ring begin, as byte offsets in `buffer`. */
export interface RingPlace {
  readonly buffer: ArrayBuffer | SharedArrayBuffer;
  readonly size: number;
  readonly descriptors: number;
  readonly driver: number;
  readonly device: number;
}

/** One descriptor as a lying driver writes it. */
export interface RawDescriptor {
  readonly address: number;
  readonly length: number;
  readonly flags?: number;
  /** Split: the next descriptor. Packed: the buffer id. */
  readonly next?: number;
  readonly high?: number;
}

/** Writes a descriptor into a table or ring: word 3 is flags and next (split) or id and flags (packed). */
function put(words: Uint32Array, at: number, d: RawDescriptor, word3: number): void {
  words.set([d.address, d.high ?? 0, d.length, word3 >>> 0], at * 4);
}

/** A split descriptor; indirect tables of both formats begin so too (packed ones have `flags` in the upper half). */
export function putSplit(words: Uint32Array, at: number, d: RawDescriptor): void {
  put(words, at, d, (d.flags ?? 0) | ((d.next ?? 0) << 16));
}

/** A packed descriptor, in the ring or in an indirect table. */
export function putPacked(words: Uint32Array, at: number, d: RawDescriptor): void {
  put(words, at, d, (d.next ?? 0) | ((d.flags ?? 0) << 16));
}

/** A split ring (§2.7). */
export class SplitBytes {
  readonly size: number;
  readonly descriptors: Uint32Array;
  /** flags, idx, ring[size], used_event. */
  readonly available: Uint16Array;
  /** flags, idx, …, avail_event at 2 + 4 * size. */
  readonly used: Uint16Array;
  /** Entry i: id at 1 + 2i, len at 2 + 2i. */
  readonly usedEntries: Uint32Array;

  constructor({ buffer, size, descriptors, driver, device }: RingPlace) {
    this.size = size;
    this.descriptors = new Uint32Array(buffer, descriptors, size * 4);
    this.available = new Uint16Array(buffer, driver, 3 + size);
    this.used = new Uint16Array(buffer, device, 3 + 4 * size);
    this.usedEntries = new Uint32Array(buffer, device, 1 + 2 * size);
  }

  /** Makes `heads` available, as a driver would. */
  offer(...heads: number[]): void {
    for (const head of heads) {
      const idx = this.available[1] ?? 0;
      this.available[2 + (idx % this.size)] = head;
      this.available[1] = idx + 1;
    }
  }

  /** Writes a used entry and the index, as a device would. */
  use(id: number, length: number, index?: number): void {
    const idx = this.used[1] ?? 0;
    const slot = idx % this.size;
    this.usedEntries[1 + 2 * slot] = id;
    this.usedEntries[2 + 2 * slot] = length;
    this.used[1] = index ?? idx + 1;
  }
}

/** A packed ring (§2.8). */
export class PackedBytes {
  readonly size: number;
  readonly descriptors: Uint32Array;
  /** Of descriptor i: id at 8i + 6, flags at 8i + 7. */
  readonly halves: Uint16Array;
  /** off_wrap, flags. */
  readonly driverEvent: Uint16Array;
  readonly deviceEvent: Uint16Array;
  /** Where the next hand-made descriptor goes, available or used, and its wrap counter. */
  at = 0;
  wrap = true;

  constructor({ buffer, size, descriptors, driver, device }: RingPlace) {
    this.size = size;
    this.descriptors = new Uint32Array(buffer, descriptors, size * 4);
    this.halves = new Uint16Array(buffer, descriptors, size * 8);
    this.driverEvent = new Uint16Array(buffer, driver, 2);
    this.deviceEvent = new Uint16Array(buffer, device, 2);
  }

  flags(slot: number): number {
    return this.halves[slot * 8 + 7] ?? 0;
  }

  id(slot: number): number {
    return this.halves[slot * 8 + 6] ?? 0;
  }

  #advance(by: number): void {
    this.at += by;
    if (this.at >= this.size) {
      this.at -= this.size;
      this.wrap = !this.wrap;
    }
  }

  /** Makes descriptors available, as a driver would: `flags` without the two bits, which follow the wrap counter. */
  offer(...list: RawDescriptor[]): void {
    for (const d of list) {
      const bits = this.wrap ? AVAIL : USED;
      putPacked(this.descriptors, this.at, { ...d, flags: (d.flags ?? 0) | bits });
      this.#advance(1);
    }
  }

  /** Writes a used descriptor, as a device would, and skips `count` slots. */
  use(id: number, length: number, count = 1, flags: number = WRITE): void {
    this.descriptors[this.at * 4 + 2] = length;
    this.halves[this.at * 8 + 6] = id;
    this.halves[this.at * 8 + 7] = flags | (this.wrap ? AVAIL | USED : 0);
    this.#advance(count);
  }
}

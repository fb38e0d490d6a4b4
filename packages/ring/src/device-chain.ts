// One chain in the device's hands: its segments, checked, as offsets into guest memory's regions.
import type { GuestMemory, GuestMemoryRegion } from "@virtio/core";
import { DESCRIPTOR_SIZE } from "@virtio/core/ring";

/** Words of a segment: region, offset in it, length. */
const SEGMENT = 3;

/**
 * A chain that a device took: readable bytes, then writable bytes, however the driver cut them into segments (virtio 1.4 §2.7.4:
 * assume nothing about the framing). The object belongs to its queue, which uses it again after it was given back.
 */
export class DeviceChain {
  readonly head: number;
  /** Bytes the device may read. */
  readableLength = 0;
  /** Bytes the device may write. */
  writableLength = 0;
  /** Whether the device has it. */
  held = false;
  readonly #memory: GuestMemory;
  #segments = new Float64Array(4 * SEGMENT);
  #count = 0;
  #readableCount = 0;
  #table = new Uint32Array(0);

  constructor(head: number, memory: GuestMemory) {
    this.head = head;
    this.#memory = memory;
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
    this.readableLength = 0;
    this.writableLength = 0;
    this.#count = 0;
    this.#readableCount = 0;
  }

  /** Adds one located segment, for the queue that fills it. */
  add(region: number, offset: number, length: number, writable: boolean): void {
    let at = this.#count * SEGMENT;
    if (at === this.#segments.length) {
      const more = new Float64Array(at * 2);
      more.set(this.#segments);
      this.#segments = more;
    }
    this.#segments[at++] = region;
    this.#segments[at++] = offset;
    this.#segments[at] = length;
    this.#count += 1;
    if (writable) this.writableLength += length;
    else {
      this.readableLength += length;
      this.#readableCount += 1;
    }
  }

  /** A private copy of an indirect table, so that what is checked is what is used. */
  copyTable(region: GuestMemoryRegion, offset: number, length: number): Uint32Array {
    if (this.#table.byteLength < length)
      this.#table = new Uint32Array(Math.ceil(length / DESCRIPTOR_SIZE) * 4);
    new Uint8Array(this.#table.buffer).set(region.bytes.subarray(offset, offset + length));
    return this.#table;
  }

  /** Copies readable bytes from position `at` on into `into`; returns how many there were. */
  read(at: number, into: Uint8Array): number {
    let done = 0;
    for (const piece of this.readablePieces(at, into.length)) {
      into.set(piece, done);
      done += piece.length;
    }
    return done;
  }

  /** Copies `from` to the writable bytes from position `at` on; returns how many there was room for. */
  write(at: number, from: Uint8Array): number {
    let done = 0;
    for (const piece of this.writablePieces(at, from.length)) {
      piece.set(from.subarray(done, done + piece.length));
      done += piece.length;
    }
    return done;
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
    const pieces: Uint8Array[] = [];
    let skip = at;
    let left = length;
    for (let i = first; i < end && left > 0; i++) {
      const whole = this.#segments[i * SEGMENT + 2] as number;
      if (skip >= whole) {
        skip -= whole;
        continue;
      }
      const region = this.#memory.regions[
        this.#segments[i * SEGMENT] as number
      ] as GuestMemoryRegion;
      const offset = (this.#segments[i * SEGMENT + 1] as number) + skip;
      const n = Math.min(whole - skip, left);
      pieces.push(region.bytes.subarray(offset, offset + n));
      left -= n;
      skip = 0;
    }
    return pieces;
  }
}

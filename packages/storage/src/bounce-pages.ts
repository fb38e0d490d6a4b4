// Guest memory that the data of disks is bounced through.
import type { DmaMemory, DmaRegion } from "@virtio/core";

/** A stack of pages, shared by the queues of a disk. Nothing is allocated for a request. */
export class BouncePages {
  /** Bytes of a page. */
  readonly size: number;
  readonly #region: DmaRegion;
  readonly #stack: Int32Array;
  #available: number;
  /** Next page of the same request; -1 at the end. */
  readonly #next: Int32Array;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(memory: DmaMemory, count: number, size: number) {
    this.size = size;
    this.#region = memory.allocate(count * size, 4096);
    this.#stack = Int32Array.from({ length: count }, (_, i) => count - 1 - i);
    this.#available = count;
    this.#next = new Int32Array(count).fill(-1);
  }

  /** Pages that are not taken. */
  get available(): number {
    return this.#available;
  }

  /** A page, linked in front of `next`; there must be one available. */
  take(next: number): number {
    this.#available -= 1;
    const page = this.#stack[this.#available] as number;
    this.#next[page] = next;
    return page;
  }

  /** The page after this one, or -1. */
  next(page: number): number {
    return this.#next[page] as number;
  }

  /** Gives back a page and all after it. */
  give(first: number): void {
    for (let page = first; page >= 0; page = this.#next[page] as number) {
      this.#stack[this.#available] = page;
      this.#available += 1;
    }
  }

  address(page: number): number {
    return this.#region.address + page * this.size;
  }

  /** Copies `length` bytes from `at` on into a page. */
  fill(page: number, from: Uint8Array, at: number, length: number): void {
    const whole = length === from.length;
    this.#region.bytes.set(whole ? from : from.subarray(at, at + length), page * this.size);
  }

  /** Copies `length` bytes of a page, to `at` on. */
  copy(page: number, into: Uint8Array, at: number, length: number): void {
    const from = page * this.size;
    into.set(this.#region.bytes.subarray(from, from + length), at);
  }

  /** Gives the memory back. Only when no device can write to it any more. */
  free(): void {
    this.#region.free();
  }
}

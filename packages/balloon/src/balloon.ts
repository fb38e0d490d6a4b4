// The pages of the balloon: given to the device, and taken back (virtio 1.4 §5.5.6; FreeBSD's vtballoon_inflate, vtballoon_deflate).
import type { DmaMemory, DmaRegion, MemoryRange, Virtqueue } from "@virtio/core";
import { BALLOON_PAGE_SIZE } from "@virtio/core/balloon";
import { PageList, pagesOf, writeNumbers } from "./page-list.js";
import type { Requests } from "./request.js";
import type { BalloonCounters } from "./statistics.js";

/** Pages of a request (VTBALLOON_PAGES_PER_REQUEST). */
export const PAGES_PER_REQUEST = 256;

/** What a balloon is made of. */
export interface BalloonParts {
  readonly inflate: Virtqueue;
  readonly deflate: Virtqueue;
  readonly memory: DmaMemory;
  readonly requests: Requests;
  readonly counters: BalloonCounters;
  /** Pages of free memory that are left to others. */
  readonly reserve: number;
  /** What pages are filled with before they are free again; null: nothing. */
  readonly fill: ((range: MemoryRange) => void) | null;
}

export class Balloon {
  readonly #parts: BalloonParts;
  /** Page numbers of one request. */
  readonly #region: DmaRegion;
  readonly #numbers: Uint32Array;
  readonly #segments = new Uint32Array(2);
  /** The device has them, and knows it. */
  readonly #pages = new PageList();
  /** Free again before the device was told. */
  readonly #untold = new PageList();
  /** Of the request that the device has. */
  #inFlight: readonly MemoryRange[] = [];

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(parts: BalloonParts) {
    const { memory } = parts;
    this.#parts = parts;
    this.#region = memory.allocate(4 * PAGES_PER_REQUEST);
    this.#numbers = new Uint32Array(memory.buffer, this.#region.offset, PAGES_PER_REQUEST);
  }

  /** Pages that are not the guest's: as FreeBSD, from when they are taken until they are free. */
  get current(): number {
    return this.#pages.count + pagesOf(this.#inFlight);
  }

  /** Pages that the device has, as far as it was told. */
  get actual(): number {
    return this.current + this.#untold.count;
  }

  /** Pages are free that the device was not told of. */
  get owes(): boolean {
    return this.#untold.count > 0;
  }

  /**
   * Gives the device pages, the size of a request at most: how many; fewer when no more are free.
   * @throws VirtioFault what Requests.run throws
   */
  async inflate(most: number): Promise<number> {
    const { inflate, counters } = this.#parts;
    const ranges = this.#take(Math.min(most, PAGES_PER_REQUEST));
    if (ranges.length === 0) return 0;
    await this.#tell("an inflate request", inflate, ranges);
    this.#pages.push(ranges);
    const count = pagesOf(ranges);
    counters.inflated += count;
    return count;
  }

  #take(most: number): MemoryRange[] {
    const { memory, reserve } = this.#parts;
    const free = Math.floor(memory.available / BALLOON_PAGE_SIZE);
    let left = Math.min(most, free - reserve);
    const ranges: MemoryRange[] = [];
    while (left > 0) {
      const range = memory.take({ align: BALLOON_PAGE_SIZE, most: left * BALLOON_PAGE_SIZE });
      if (range === null) break;
      ranges.push(range);
      left -= range.length / BALLOON_PAGE_SIZE;
    }
    return ranges;
  }

  /** Takes pages back, if there are any, the oldest first; they are free once the device was told. @throws VirtioFault what Requests.run throws */
  async deflate(most: number): Promise<void> {
    const ranges = this.#pages.shift(Math.min(most, PAGES_PER_REQUEST));
    if (ranges.length === 0) return;
    await this.#tell("a deflate request", this.#parts.deflate, ranges);
    this.#free(ranges);
  }

  /** Frees the oldest pages now, and tells the device later: only without MUST_TELL_HOST. How many. */
  relieve(): number {
    const ranges = this.#pages.shift(PAGES_PER_REQUEST);
    this.#untold.push(ranges);
    this.#free(ranges);
    return pagesOf(ranges);
  }

  /** Tells the device of what was freed before. @throws VirtioFault what Requests.run throws */
  async tellRelieved(): Promise<void> {
    const { requests, deflate } = this.#parts;
    const ranges = this.#untold.shift(PAGES_PER_REQUEST);
    await requests.run("a deflate request", deflate, this.#request(ranges), 1, 0);
  }

  async #tell(what: string, queue: Virtqueue, ranges: readonly MemoryRange[]): Promise<void> {
    this.#inFlight = ranges;
    await this.#parts.requests.run(what, queue, this.#request(ranges), 1, 0);
    this.#inFlight = [];
  }

  #request(ranges: readonly MemoryRange[]): Uint32Array {
    this.#segments.set([this.#region.address, 4 * writeNumbers(ranges, this.#numbers)]);
    return this.#segments;
  }

  #free(ranges: readonly MemoryRange[]): void {
    const { memory, counters, fill } = this.#parts;
    for (const range of ranges) {
      fill?.(range);
      memory.give(range);
    }
    counters.deflated += pagesOf(ranges);
  }

  /** The device was reset, and has nothing any more: all pages are free. */
  empty(): void {
    this.#free(this.#inFlight);
    this.#inFlight = [];
    this.#free(this.#pages.shift(this.#pages.count));
    this.#untold.shift(this.#untold.count);
  }

  /** After empty(). */
  dispose(): void {
    this.#region.free();
  }
}

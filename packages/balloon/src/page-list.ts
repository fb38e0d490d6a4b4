// Pages of the balloon, first in, first out (FreeBSD's vtballoon_pages).
import type { MemoryRange } from "@virtio/core";
import { BALLOON_PAGE_SHIFT, BALLOON_PAGE_SIZE } from "@virtio/core/balloon";

/** Pages of these ranges. */
export const pagesOf = (ranges: readonly MemoryRange[]): number =>
  ranges.reduce((sum, { length }) => sum + length / BALLOON_PAGE_SIZE, 0);

/** Writes page numbers from the first word on: how many. */
export function writeNumbers(ranges: readonly MemoryRange[], words: Uint32Array): number {
  let n = 0;
  for (const { address, length } of ranges)
    for (let at = 0; at < length; at += BALLOON_PAGE_SIZE) {
      words[n] = (address + at) >>> BALLOON_PAGE_SHIFT;
      n += 1;
    }
  return n;
}

/** Whole pages, in the order in which they came. */
export class PageList {
  #ranges: MemoryRange[] = [];
  /** Pages. */
  #count = 0;

  get count(): number {
    return this.#count;
  }

  push(ranges: readonly MemoryRange[]): void {
    this.#ranges.push(...ranges);
    this.#count += pagesOf(ranges);
  }

  /** Takes the oldest pages, `most` of them or all there are. */
  shift(most: number): MemoryRange[] {
    const taken: MemoryRange[] = [];
    let left = Math.min(most, this.#count);
    this.#count -= left;
    while (left > 0) {
      const { address, length } = this.#ranges[0] as MemoryRange;
      const bytes = Math.min(length, left * BALLOON_PAGE_SIZE);
      taken.push({ address, length: bytes });
      left -= bytes / BALLOON_PAGE_SIZE;
      if (bytes === length) this.#ranges.shift();
      else this.#ranges[0] = { address: address + bytes, length: length - bytes };
    }
    return taken;
  }
}

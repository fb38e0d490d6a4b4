// Memory that nobody uses: what a window allocates from, and what a balloon's driver takes out of it (virtio 1.4 §5.5).

/** A range of guest memory. */
export interface MemoryRange {
  /** Guest-physical address. */
  readonly address: number;
  /** Bytes. */
  readonly length: number;
}

/** Which free memory is taken. */
export interface FreeRangeRequest {
  /** What the address and the length are multiples of: a power of two. */
  readonly align: number;
  /** Fewest bytes. Default `align`. */
  readonly least?: number;
  /** Most bytes. */
  readonly most: number;
  /** The address from which on it is looked for. Default 0. */
  readonly from?: number;
  /** Nothing of what was given back as reported and not allocated since. Default false. */
  readonly unreported?: boolean;
}

/** Who is told of free memory. Called inside allocate(), free() and give(): does nothing that takes long. */
export interface FreeMemoryWatcher {
  /** There is no room for an allocation: gives back what it can, and says whether that was anything. */
  shortage(): boolean;
  /** Memory that is not reported became free. */
  freed(): void;
}

/** Memory that can be taken out without being used, and without being touched. */
export interface FreeMemory {
  /** Bytes not allocated, and not taken. */
  readonly available: number;
  /** Takes the first range that fits; null when there is none. Nobody is given it until it is given back. */
  take(request: FreeRangeRequest): MemoryRange | null;
  /**
   * Gives back what was taken, whole or in parts.
   * @param reported - its content is nobody's: `unreported` leaves it out until it was allocated and freed. Default false.
   * @throws VirtioFault INVALID when part of it is free, or not of this memory
   */
  give(range: MemoryRange, reported?: boolean): void;
  /** Until what it returns is called. */
  watch(watcher: FreeMemoryWatcher): () => void;
}

/** From `start` up to `end`. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** Disjoint ranges in order; neighbours are joined. */
export class RangeSet {
  readonly #ranges: Range[];

  constructor(ranges: readonly Range[] = []) {
    this.#ranges = [...ranges];
  }

  /** The sum of all. */
  get size(): number {
    return this.#ranges.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  [Symbol.iterator](): IterableIterator<Range> {
    return this.#ranges[Symbol.iterator]();
  }

  /** False, and nothing is added, when part of it is there. */
  add(start: number, end: number): boolean {
    const i = this.#firstEndingAfter(start);
    const after = this.#ranges[i];
    if (after !== undefined && after.start < end) return false;
    const before = this.#ranges[i - 1];
    const joinsBefore = before?.end === start;
    const joinsAfter = after?.start === end;
    const range = { start: joinsBefore ? before.start : start, end: joinsAfter ? after.end : end };
    this.#ranges.splice(joinsBefore ? i - 1 : i, Number(joinsBefore) + Number(joinsAfter), range);
    return true;
  }

  /** Whatever of it is there. */
  delete(start: number, end: number): void {
    const first = this.#firstEndingAfter(start);
    let last = first;
    const left: Range[] = [];
    for (; last < this.#ranges.length; last++) {
      const range = this.#ranges[last] as Range;
      if (range.start >= end) break;
      if (range.start < start) left.push({ start: range.start, end: start });
      if (range.end > end) left.push({ start: end, end: range.end });
    }
    this.#ranges.splice(first, last - first, ...left);
  }

  /** What of a range is not there. */
  missing({ start, end }: Range): Range[] {
    const pieces: Range[] = [];
    let at = start;
    for (let i = this.#firstEndingAfter(start); i < this.#ranges.length; i++) {
      const range = this.#ranges[i] as Range;
      if (range.start >= end) break;
      if (range.start > at) pieces.push({ start: at, end: range.start });
      at = range.end;
    }
    if (at < end) pieces.push({ start: at, end });
    return pieces;
  }

  #firstEndingAfter(place: number): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ranges[middle] as Range).end > place) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

// Free pages that the device is told of: hints while it asks for them (virtio 1.4 §5.5.6.5), reports at any time (§5.5.6.7).
//
// What the device has is out of the free memory until its buffer is used; then it is free again. Whoever is given it finds zeroes: the
// memory's allocator writes them.
import type { DmaMemory, DmaRegion, MemoryRange, Virtqueue } from "@virtio/core";
import {
  BALLOON_HINT_FIRST,
  BALLOON_HINT_SIZE,
  BALLOON_PAGE_SIZE,
  BalloonHint,
} from "@virtio/core/balloon";
import { REPORT_SEGMENTS } from "./queues.js";
import type { Requests } from "./request.js";
import type { BalloonCounters } from "./statistics.js";

/** Fewest bytes of a range that is worth it: small ones split the host's huge pages. */
const RANGE_MIN = 64 << 10;
/** Most bytes of a range. */
const RANGE_MAX = 4 << 20;
/** The device has at most this part of the free memory at a time: others need some meanwhile. */
const PART = 8;

const { STOP } = BalloonHint;

/** Takes ranges for one request. */
function takeRanges(
  memory: DmaMemory,
  count: number,
  where: { readonly from?: number; readonly unreported?: boolean },
): MemoryRange[] {
  let left = Math.max(RANGE_MIN, Math.floor(memory.available / PART));
  const ranges: MemoryRange[] = [];
  while (ranges.length < count && left >= RANGE_MIN) {
    const range = memory.take({
      align: BALLOON_PAGE_SIZE,
      least: RANGE_MIN,
      most: Math.min(left, RANGE_MAX),
      ...where,
    });
    if (range === null) break;
    ranges.push(range);
    left -= range.length;
  }
  return ranges;
}

/** What both need. */
export interface FreePagesOptions {
  readonly queue: Virtqueue;
  readonly memory: DmaMemory;
  readonly requests: Requests;
  readonly counters: BalloonCounters;
  /** What free pages are filled with; null: nothing. */
  readonly fill: ((range: MemoryRange) => void) | null;
}

/** Rounds of hints, one request at a time. */
export class Hints {
  readonly #options: FreePagesOptions;
  readonly #region: DmaRegion;
  readonly #word: DataView;
  readonly #segments = new Uint32Array(2);
  /** What the device asks for: STOP, DONE, or the id of a round. */
  command: number = STOP;
  /** The id of the last round that was begun; none comes twice. */
  #last: number = STOP;
  /** The round that is under way, and the address up to which it is done. */
  #round: { readonly id: number; from: number } | null = null;
  #held: MemoryRange | null = null;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(options: FreePagesOptions) {
    this.#options = options;
    this.#region = options.memory.allocate(BALLOON_HINT_SIZE);
    const { bytes } = this.#region;
    this.#word = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Does one thing, if the device asks for any: whether it did. @throws VirtioFault what Requests.run throws */
  async step(): Promise<boolean> {
    const { command } = this;
    const round = this.#round;
    if (round !== null) {
      if (round.id !== command || !(await this.#hint(round))) await this.#end();
      return true;
    }
    // The device may use an id again once it was STOP or DONE.
    if (command < BALLOON_HINT_FIRST) this.#last = STOP;
    if (command < BALLOON_HINT_FIRST || command === this.#last) return false;
    this.#last = command;
    this.#round = { id: command, from: 0 };
    await this.#say(command);
    return true;
  }

  /** The next range; false: there is none. */
  async #hint(round: { from: number }): Promise<boolean> {
    const { queue, memory, requests, counters } = this.#options;
    const [range] = takeRanges(memory, 1, { from: round.from });
    if (range === undefined) return false;
    round.from = range.address + range.length;
    this.#held = range;
    this.#segments.set([range.address, range.length]);
    await requests.run("a hint of free pages", queue, this.#segments, 0, 1);
    this.#giveBack();
    counters.hinted += range.length;
    return true;
  }

  async #end(): Promise<void> {
    this.#round = null;
    await this.#say(STOP);
  }

  async #say(id: number): Promise<void> {
    this.#word.setUint32(0, id, true);
    this.#segments.set([this.#region.address, BALLOON_HINT_SIZE]);
    await this.#options.requests.run(
      "a command of hints",
      this.#options.queue,
      this.#segments,
      1,
      0,
    );
  }

  #giveBack(): void {
    const range = this.#held;
    this.#held = null;
    if (range !== null) this.#options.memory.give(range);
  }

  /** After a reset: the round is over. */
  forget(): void {
    this.#giveBack();
    this.#round = null;
    this.#last = STOP;
    this.command = STOP;
  }

  /** After forget(). */
  dispose(): void {
    this.#region.free();
  }
}

/** Reports of what became free since the last. */
export class Reports {
  readonly #options: FreePagesOptions;
  readonly #segments = new Uint32Array(2 * REPORT_SEGMENTS);
  #held: readonly MemoryRange[] = [];

  constructor(options: FreePagesOptions) {
    this.#options = options;
  }

  /** Reports some: whether there was any. @throws VirtioFault what Requests.run throws */
  async step(): Promise<boolean> {
    const { queue, memory, requests, counters, fill } = this.#options;
    const count = Math.min(REPORT_SEGMENTS, queue.size);
    const ranges = takeRanges(memory, count, { unreported: true });
    if (ranges.length === 0) return false;
    this.#held = ranges;
    for (const [i, range] of ranges.entries()) {
      fill?.(range);
      this.#segments.set([range.address, range.length], 2 * i);
    }
    await requests.run("a report of free pages", queue, this.#segments, 0, ranges.length);
    this.#giveBack(true);
    for (const { length } of ranges) counters.reported += length;
    return true;
  }

  #giveBack(reported: boolean): void {
    const ranges = this.#held;
    this.#held = [];
    for (const range of ranges) this.#options.memory.give(range, reported);
  }

  /** The device has nothing any more: what it did not use is not reported. */
  forget(): void {
    this.#giveBack(false);
  }
}

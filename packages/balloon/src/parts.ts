// What works on the queues of one balloon.
import type { DmaMemory, FeatureSet, MemoryRange, TaskQueue, Tunables } from "@virtio/core";
import { BALLOON_PAGE_SIZE, BalloonFeature } from "@virtio/core/balloon";
import { Balloon } from "./balloon.js";
import type { Features } from "./features.js";
import { Hints, Reports } from "./free-pages.js";
import type { BalloonQueues } from "./queues.js";
import type { Requests } from "./request.js";
import { type BalloonCounters, StatisticsQueue } from "./statistics.js";

/** Each has its own queues, and the memory of its requests. */
export interface Parts {
  readonly balloon: Balloon;
  /** Null: not negotiated. */
  readonly statistics: StatisticsQueue | null;
  readonly hints: Hints | null;
  readonly reports: Reports | null;
}

/** What parts share. */
export interface Shared {
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly requests: Requests;
  readonly counters: BalloonCounters;
  readonly tunables: Tunables;
  readonly features: FeatureSet<Features>;
}

/** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
export function makeParts(queues: BalloonQueues, shared: Shared): Parts {
  const { inflate, deflate, stats, freePage, reporting } = queues;
  const { memory, tasks, requests, counters, tunables, features } = shared;
  const poison = tunables.number("page_poison");
  const poisons = features.has(BalloonFeature.PAGE_POISON);
  const fill = poisons ? (range: MemoryRange) => fillWith(memory, range, poison) : null;
  const common = { memory, requests, counters, fill };
  const made: { dispose(): void }[] = [];
  const keep = <T extends { dispose(): void }>(part: T): T => {
    made.push(part);
    return part;
  };
  try {
    const reserve = tunables.number("reserve");
    const balloon = keep(new Balloon({ inflate, deflate, reserve, ...common }));
    const yields = features.has(BalloonFeature.DEFLATE_ON_OOM);
    const held = () => ({ bytes: balloon.current * BALLOON_PAGE_SIZE, yields });
    return {
      balloon,
      statistics:
        stats && keep(new StatisticsQueue({ queue: stats, memory, tasks, counters, held })),
      hints: freePage && keep(new Hints({ queue: freePage, ...common })),
      reports: reporting && new Reports({ queue: reporting, ...common }),
    };
  } catch (error) {
    for (const part of made) part.dispose();
    throw error;
  }
}

/** Fills pages with a 32-bit pattern. */
function fillWith(
  { buffer, base }: DmaMemory,
  { address, length }: MemoryRange,
  word: number,
): void {
  new Uint32Array(buffer, address - base, length / 4).fill(word);
}

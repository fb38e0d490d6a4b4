// The queues of a balloon, and what numbers they have (virtio 1.4 §5.5.2).
import {
  type FeatureSet,
  type QueueSpec,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { BalloonFeature, BalloonQueue } from "@virtio/core/balloon";
import type { Features, Settled } from "./features.js";

/** Most ranges of free pages that one report names. */
export const REPORT_SEGMENTS = 32;

/** Queues that a feature brings with it, in the order of their numbers; their names, and their longest chains. */
const optional = [
  [BalloonQueue.STATS, BalloonFeature.STATS_VQ, "stats", 1],
  [BalloonQueue.FREE_PAGE, BalloonFeature.FREE_PAGE_HINT, "free page", 1],
  [BalloonQueue.REPORTING, BalloonFeature.PAGE_REPORTING, "reporting", REPORT_SEGMENTS],
] as const;

/** The queues of one balloon. */
export interface BalloonQueues {
  readonly inflate: Virtqueue;
  readonly deflate: Virtqueue;
  /** Null: not negotiated. */
  readonly stats: Virtqueue | null;
  readonly freePage: Virtqueue | null;
  readonly reporting: Virtqueue | null;
}

/**
 * Allocates what was negotiated. By the specification a queue's number is always the same; QEMU and others count only the queues
 * that they have: there the specification's last number is missing.
 *
 * @throws VirtioFault what allocateQueues throws
 */
export async function allocateQueues(
  device: VirtioDevice,
  { features, offered }: Settled,
  name: string,
): Promise<BalloonQueues> {
  const spec = (index: number, what: string, maxSegments = 1): QueueSpec => ({
    name: `${name} ${what}`,
    maxSegments,
    interrupt: true,
    index,
  });
  const specs = (numbers: ReadonlyMap<BalloonQueue, number>): QueueSpec[] => [
    spec(BalloonQueue.INFLATE, "inflate"),
    spec(BalloonQueue.DEFLATE, "deflate"),
    ...wanted.map(([queue, , what, segments]) => spec(numbers.get(queue) ?? queue, what, segments)),
  ];
  const wanted = optional.filter(([, bit]) => features.has(bit));
  let queues: readonly Virtqueue[];
  try {
    queues = await device.allocateQueues(specs(new Map()));
  } catch (error) {
    const numbers = compactNumbers(offered);
    const moved = wanted.some(([queue]) => numbers.get(queue) !== queue);
    if (!moved || !(error instanceof VirtioFault) || error.code !== "NOT_FOUND") throw error;
    queues = await device.allocateQueues(specs(numbers));
  }
  const [inflate, deflate, ...others] = queues as [Virtqueue, Virtqueue, ...Virtqueue[]];
  const of = (role: BalloonQueue): Virtqueue | null =>
    others[wanted.findIndex(([queue]) => queue === role)] ?? null;
  return {
    inflate,
    deflate,
    stats: of(BalloonQueue.STATS),
    freePage: of(BalloonQueue.FREE_PAGE),
    reporting: of(BalloonQueue.REPORTING),
  };
}

/** Numbers where only queues that the device has are counted. */
function compactNumbers(offered: FeatureSet<Features>): ReadonlyMap<BalloonQueue, number> {
  const there = optional.filter(([, bit]) => offered.has(bit));
  return new Map(there.map(([queue], i) => [queue, BalloonQueue.STATS + i]));
}

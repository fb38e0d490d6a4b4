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

const reporting: Partial<QueueSpec> = { maxSegments: REPORT_SEGMENTS };

/**
 * Queues that a feature brings with it, in the order of their numbers; their names, and what they have of their own. Hints do not
 * interrupt: Linux's do not, and those of QEMU, which come from a thread of their own, get lost.
 */
const optional = [
  [BalloonQueue.STATS, BalloonFeature.STATS_VQ, "stats", {}],
  [BalloonQueue.FREE_PAGE, BalloonFeature.FREE_PAGE_HINT, "free page", { interrupt: false }],
  [BalloonQueue.REPORTING, BalloonFeature.PAGE_REPORTING, "reporting", reporting],
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
  const spec = (index: number, what: string, own: Partial<QueueSpec> = {}): QueueSpec => ({
    ...{ name: `${name} ${what}`, maxSegments: 1, interrupt: true, index },
    ...own,
  });
  const specs = (numbers: ReadonlyMap<BalloonQueue, number>): QueueSpec[] => [
    spec(BalloonQueue.INFLATE, "inflate"),
    spec(BalloonQueue.DEFLATE, "deflate"),
    ...wanted.map(([queue, , what, own]) => spec(numbers.get(queue) ?? queue, what, own)),
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

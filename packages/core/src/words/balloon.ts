// The words of the traditional memory balloon device (virtio 1.4 §5.5). All of it is little-endian, but statistics and command ids of
// the legacy interface (§5.5.4.0.0.1, §5.5.6.3.3, §5.5.6.5.3).
import type { ConfigField } from "../device.js";

/** Feature bits (§5.5.3). */
export enum BalloonFeature {
  /** The device is told before a page of the balloon is used. */
  MUST_TELL_HOST = 0,
  /** There is a queue of memory statistics. */
  STATS_VQ = 1,
  /** The balloon may be used when the guest is out of memory. */
  DEFLATE_ON_OOM = 2,
  /** There is a queue for hints of free pages. */
  FREE_PAGE_HINT = 3,
  /** The driver says how it fills pages that nobody uses. */
  PAGE_POISON = 4,
  /** There is a queue for reports of free pages. */
  PAGE_REPORTING = 5,
}

/** Queues by their numbers (§5.5.2). */
export enum BalloonQueue {
  INFLATE = 0,
  DEFLATE = 1,
  /** STATS_VQ */
  STATS = 2,
  /** FREE_PAGE_HINT */
  FREE_PAGE = 3,
  /** PAGE_REPORTING */
  REPORTING = 4,
}

/** Pages of the balloon are of this size, whatever the guest's are (§5.5.6). */
export const BALLOON_PAGE_SIZE = 4096;
/** log2 of it: a page's number is its address shifted by so much. */
export const BALLOON_PAGE_SHIFT = 12;

/** Name of a field of the configuration. */
export type BalloonConfigField = "numPages" | "actual" | "freePageHintCmdId" | "poisonVal";

/** Configuration layout (§5.5.4). */
export const BalloonConfig: Readonly<Record<BalloonConfigField, ConfigField>> = {
  /** Pages that the device wants to have. */
  numPages: [0, 4],
  /** Pages that it has: written by the driver. */
  actual: [4, 4],
  /** FREE_PAGE_HINT: a {@link BalloonHint}, or the id of a round. */
  freePageHintCmdId: [8, 4],
  /** PAGE_POISON: written by the driver. */
  poisonVal: [12, 4],
};

/** Bytes of the whole configuration. */
export const BALLOON_CONFIG_SIZE = 16;

/** Command ids that are not of a round (§5.5.6.5). */
export enum BalloonHint {
  /** No hints are wanted; in a buffer: there are no more of this round. */
  STOP = 0,
  /** What was hinted is not needed any more. */
  DONE = 1,
}

/** The smallest id of a round. */
export const BALLOON_HINT_FIRST = 2;
/** Bytes of a command id in a buffer. */
export const BALLOON_HINT_SIZE = 4;

/** Tags of statistics (§5.5.6.4). Bytes, but where it says otherwise. */
export enum BalloonStatistic {
  /** Swapped in. */
  SWAP_IN = 0,
  /** Swapped out. */
  SWAP_OUT = 1,
  /** Major page faults: a number. */
  MAJFLT = 2,
  /** Minor page faults: a number. */
  MINFLT = 3,
  /** Used for nothing. */
  MEMFREE = 4,
  /** All there are. */
  MEMTOT = 5,
  /** That could be had without swapping. */
  AVAIL = 6,
  /** Of disk caches that could be had back at once. */
  CACHES = 7,
  /** Huge pages that were allocated: a number. */
  HTLB_PGALLOC = 8,
  /** Huge pages that could not be allocated: a number. */
  HTLB_PGFAIL = 9,
}

/** Bytes of a statistic: 16 bits of tag and 64 of value, packed (§5.5.6.3). */
export const BALLOON_STATISTIC_SIZE = 10;

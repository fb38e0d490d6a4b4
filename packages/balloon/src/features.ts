// What vtballoon asks a balloon for (virtio 1.4 §5.5.3), and the names that are printed.
import {
  type FeatureName,
  type FeatureSet,
  featureSet,
  type ReservedFeature,
  type Tunables,
  type VirtioDevice,
} from "@virtio/core";
import { BalloonFeature } from "@virtio/core/balloon";
import { NO_POISON } from "./options.js";

export type Features = BalloonFeature | ReservedFeature;

/** FreeBSD's names (virtio_balloon.h); of FREE_PAGE_HINT, PAGE_POISON and PAGE_REPORTING, which it does not know, in its manner. */
export const featureNames: readonly FeatureName[] = [
  { bit: BalloonFeature.MUST_TELL_HOST, name: "MustTellHost" },
  { bit: BalloonFeature.STATS_VQ, name: "StatsVq" },
  { bit: BalloonFeature.DEFLATE_ON_OOM, name: "DeflateOnOOM" },
  { bit: BalloonFeature.FREE_PAGE_HINT, name: "FreePageHint" },
  { bit: BalloonFeature.PAGE_POISON, name: "PagePoison" },
  { bit: BalloonFeature.PAGE_REPORTING, name: "PageReporting" },
];

/** One request is in flight at a time: EVENT_IDX and INDIRECT_DESC would bring nothing to it. */
const all: FeatureSet<Features> = featureSet<Features>().with(
  BalloonFeature.MUST_TELL_HOST,
  BalloonFeature.STATS_VQ,
  BalloonFeature.DEFLATE_ON_OOM,
  BalloonFeature.FREE_PAGE_HINT,
  BalloonFeature.PAGE_POISON,
  BalloonFeature.PAGE_REPORTING,
);

/** What driver and device agreed on. */
export interface Settled {
  readonly features: FeatureSet<Features>;
  /** Of the balloon's features, what the device has. */
  readonly offered: FeatureSet<Features>;
}

/** Of what is offered, what is wanted and goes together. Not finalized yet. */
export async function settle(device: VirtioDevice, tunables: Tunables): Promise<Settled> {
  const offered = await device.negotiate(all);
  const on = (name: string): boolean => tunables.number(name) !== 0;
  const poisoned = tunables.number("page_poison") !== NO_POISON;
  let wanted = all;
  if (on("stats_disable")) wanted = wanted.without(BalloonFeature.STATS_VQ);
  if (on("oom_disable")) wanted = wanted.without(BalloonFeature.DEFLATE_ON_OOM);
  if (on("hint_disable")) wanted = wanted.without(BalloonFeature.FREE_PAGE_HINT);
  if (on("reporting_disable")) wanted = wanted.without(BalloonFeature.PAGE_REPORTING);
  if (!poisoned) wanted = wanted.without(BalloonFeature.PAGE_POISON);
  // What a reported page reads as afterwards, only PAGE_POISON says (§5.5.3.1).
  else if (!offered.has(BalloonFeature.PAGE_POISON))
    wanted = wanted.without(BalloonFeature.PAGE_REPORTING);
  // Without statistics, and where there are reports that are not wanted, the queue at number 3 may be of either (see queues.ts).
  if (
    !offered.has(BalloonFeature.STATS_VQ) &&
    offered.has(BalloonFeature.PAGE_REPORTING) &&
    !wanted.has(BalloonFeature.PAGE_REPORTING)
  )
    wanted = wanted.without(BalloonFeature.FREE_PAGE_HINT);
  return { features: await device.negotiate(wanted), offered };
}

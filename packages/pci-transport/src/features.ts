// Which features are accepted (virtio 1.4 §2.2, §6.1).
import { type FeatureName, type FeatureSet, featureSet, ReservedFeature } from "@virtio/core";

/** Bits that are the transport's own affair: accepted whenever they are offered (virtio 1.4 §6.1). */
const ownFeatures: FeatureSet<ReservedFeature> = featureSet<ReservedFeature>().with(
  ReservedFeature.VERSION_1,
  // Addresses are what the machine's memory hands out for a device: guest-physical, as an IOMMU that nobody programmed passes them.
  ReservedFeature.ACCESS_PLATFORM,
  ReservedFeature.RING_PACKED,
  ReservedFeature.IN_ORDER,
  // The rings order their accesses then, whoever sees the memory.
  ReservedFeature.ORDER_PLATFORM,
  ReservedFeature.NOTIFICATION_DATA,
  ReservedFeature.NOTIF_CONFIG_DATA,
  ReservedFeature.RING_RESET,
  ReservedFeature.SUSPEND,
);

/** The same on the legacy interface (§6.3). */
const ownLegacyFeatures: FeatureSet<ReservedFeature> = featureSet<ReservedFeature>().with(
  ReservedFeature.ANY_LAYOUT,
);

const ringFeatures: FeatureSet<ReservedFeature> = featureSet<ReservedFeature>().with(
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

/** By interface: what is accepted by itself, and what of queues and negotiation can be accepted at all. */
const sets = {
  modern: {
    own: ownFeatures.words(),
    able: ringFeatures.words().map((word, i) => word | (ownFeatures.words()[i] ?? 0)),
  },
  legacy: {
    own: ownLegacyFeatures.words(),
    able: ringFeatures.with(ReservedFeature.NOTIFY_ON_EMPTY, ReservedFeature.ANY_LAYOUT).words(),
  },
} as const;

/** Bits of queues and negotiation, 24 to 40 and 43, and those kept for later, 44 to 49 (§2.2); all others belong to the device type. */
const RESERVED_BITS: readonly number[] = [0xff00_0000, 0x0003_f9ff];

const bit = (words: readonly number[], n: number): boolean =>
  ((words[n >>> 5] ?? 0) & (1 << (n & 31))) !== 0;

/** Whether two sets have the same bits of queues and negotiation: a queue that was made with the one works with the other. */
export const haveSameReservedBits = (a: readonly number[], b: readonly number[]): boolean =>
  RESERVED_BITS.every((mask, i) => (((a[i] ?? 0) ^ (b[i] ?? 0)) & mask) === 0);

/** What is asked of {@link chooseFeatures}. Feature bits are words, low first. */
export interface FeatureChoice {
  readonly offered: readonly number[];
  /** By the driver. */
  readonly wanted: readonly number[];
  /** That these registers have no way to negotiate. */
  readonly unreachable: readonly number[];
  readonly legacy: boolean;
  /** The driver's: which needs which. */
  readonly features: readonly FeatureName[];
}

/** Of what is offered: what the driver wants and the transport can do, and what the transport wants; closed under what needs what. */
export function chooseFeatures(choice: FeatureChoice): readonly number[] {
  const { offered, wanted, unreachable, features } = choice;
  const { own, able } = choice.legacy ? sets.legacy : sets.modern;
  const chosen = offered.map((word, i) => {
    const mine = ((wanted[i] ?? 0) | (own[i] ?? 0)) & (~(RESERVED_BITS[i] ?? 0) | (able[i] ?? 0));
    return (word & mine & ~(unreachable[i] ?? 0)) >>> 0;
  });
  // A feature that goes may take others with it: each round drops at least one, so it ends (§2.2.1).
  for (let dropped = true; dropped; ) {
    dropped = false;
    for (const { bit: n, requires } of features) {
      if (requires === undefined || !bit(chosen, n)) continue;
      if (requires.every((group) => group.some((needed) => bit(chosen, needed)))) continue;
      chosen[n >>> 5] = ((chosen[n >>> 5] ?? 0) & ~(1 << (n & 31))) >>> 0;
      dropped = true;
    }
  }
  return chosen;
}

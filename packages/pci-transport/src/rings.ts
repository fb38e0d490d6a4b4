// The ring of a queue, of the format that was negotiated.
import { type FeatureSet, ReservedFeature } from "@virtio/core";
import { PackedQueue, type QueueOptions, SplitQueue } from "@virtio/ring";

/** A queue of either format. */
export type Ring = SplitQueue | PackedQueue;

/** What the transport knows of a ring; the rest follows from what was negotiated. */
export type RingOptions = Omit<
  QueueOptions,
  "indirect" | "reserve" | "eventIdx" | "inOrder" | "legacy" | "shared"
>;

/** Makes the ring that was negotiated. @throws VirtioFault INVALID, OUT_OF_MEMORY */
export function makeRing(features: FeatureSet<ReservedFeature>, options: RingOptions): Ring {
  const Format = features.has(ReservedFeature.RING_PACKED) ? PackedQueue : SplitQueue;
  return new Format({
    ...options,
    indirect: features.has(ReservedFeature.INDIRECT_DESC),
    reserve: options.size >>> 1,
    eventIdx: features.has(ReservedFeature.EVENT_IDX),
    inOrder: features.has(ReservedFeature.IN_ORDER),
    legacy: !features.has(ReservedFeature.VERSION_1),
    shared: options.memory.shared || features.has(ReservedFeature.ORDER_PLATFORM),
  });
}

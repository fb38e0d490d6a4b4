// Features of console devices (virtio 1.4 §5.3.3): which are asked for, and what is printed of them.
import { type FeatureName, type FeatureSet, featureSet, ReservedFeature } from "@virtio/core";
import { ConsoleFeature } from "@virtio/core/console";

export type Features = ConsoleFeature | ReservedFeature;

/** FreeBSD's names (virtio_console.h). */
export const featureNames: readonly FeatureName[] = [
  { bit: ConsoleFeature.SIZE, name: "ConsoleSize" },
  { bit: ConsoleFeature.MULTIPORT, name: "MultiplePorts" },
  { bit: ConsoleFeature.EMERG_WRITE, name: "EmergencyWrite" },
];

/** All that is asked for. FreeBSD asks for MULTIPORT alone. */
export const wanted: FeatureSet<Features> = featureSet<Features>().with(
  ConsoleFeature.SIZE,
  ConsoleFeature.MULTIPORT,
  ConsoleFeature.EMERG_WRITE,
  ReservedFeature.EVENT_IDX,
);

// What vtscsi asks a SCSI host for (virtio 1.4 §5.6.3), and the names that are printed.
import { type FeatureName, type FeatureSet, featureSet, ReservedFeature } from "@virtio/core";
import { ScsiFeature } from "@virtio/core/scsi";

export type Features = ScsiFeature | ReservedFeature;

/** FreeBSD's names (virtio_scsi.c). */
export const featureNames: readonly FeatureName[] = [
  { bit: ScsiFeature.INOUT, name: "InOut" },
  { bit: ScsiFeature.HOTPLUG, name: "Hotplug" },
  { bit: ScsiFeature.CHANGE, name: "ChangeEvent" },
  { bit: ScsiFeature.T10_PI, name: "T10PI" },
];

/** Not INOUT: no disk has commands with data both ways. Not T10_PI: nobody here makes protection information. */
export const wanted: FeatureSet<Features> = featureSet<Features>().with(
  ScsiFeature.HOTPLUG,
  ScsiFeature.CHANGE,
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

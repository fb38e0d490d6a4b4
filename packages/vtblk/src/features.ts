// What vtblk asks a block device for (virtio 1.4 §5.2.3), and the names that are printed.
import { type FeatureName, type FeatureSet, featureSet, ReservedFeature } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";

export type Features = BlockFeature | ReservedFeature;

/** FreeBSD's names (virtio_blk.c); of LIFETIME, SECURE_ERASE and ZONED, which it does not know, in its manner. */
export const featureNames: readonly FeatureName[] = [
  { bit: BlockFeature.BARRIER, name: "HostBarrier" },
  { bit: BlockFeature.SIZE_MAX, name: "MaxSegSize" },
  { bit: BlockFeature.SEG_MAX, name: "MaxNumSegs" },
  { bit: BlockFeature.GEOMETRY, name: "DiskGeometry" },
  { bit: BlockFeature.RO, name: "ReadOnly" },
  { bit: BlockFeature.BLK_SIZE, name: "BlockSize" },
  { bit: BlockFeature.SCSI, name: "SCSICmds" },
  { bit: BlockFeature.FLUSH, name: "FlushCmd" },
  { bit: BlockFeature.TOPOLOGY, name: "Topology" },
  { bit: BlockFeature.CONFIG_WCE, name: "ConfigWCE" },
  { bit: BlockFeature.MQ, name: "Multiqueue" },
  { bit: BlockFeature.DISCARD, name: "Discard" },
  { bit: BlockFeature.WRITE_ZEROES, name: "WriteZeros" },
  { bit: BlockFeature.LIFETIME, name: "Lifetime" },
  { bit: BlockFeature.SECURE_ERASE, name: "SecureErase" },
  { bit: BlockFeature.ZONED, name: "Zoned" },
];

/** BARRIER is for the legacy interface only: attach takes it back elsewhere (§5.2.3.1). */
export const wanted: FeatureSet<Features> = featureSet<Features>().with(
  BlockFeature.BARRIER,
  BlockFeature.SIZE_MAX,
  BlockFeature.SEG_MAX,
  BlockFeature.GEOMETRY,
  BlockFeature.RO,
  BlockFeature.BLK_SIZE,
  BlockFeature.FLUSH,
  BlockFeature.TOPOLOGY,
  BlockFeature.CONFIG_WCE,
  BlockFeature.MQ,
  BlockFeature.DISCARD,
  BlockFeature.WRITE_ZEROES,
  BlockFeature.LIFETIME,
  BlockFeature.SECURE_ERASE,
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

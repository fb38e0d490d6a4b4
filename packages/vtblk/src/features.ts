// What vtblk asks a block device for (virtio 1.4 §5.2.3), and the names that are printed.
import {
  type FeatureName,
  type FeatureSet,
  featureSet,
  ReservedFeature,
  type VirtioDevice,
  VirtioFault,
} from "@virtio/core";
import { BlockFeature, BlockZonedModel } from "@virtio/core/block";
import { readZonedModel } from "./zones.js";

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

/** BARRIER is for the legacy interface only, and ZONED for the modern one: `settle` takes them back elsewhere (§5.2.3.1, §5.2.5.2). */
const wanted: FeatureSet<Features> = featureSet<Features>().with(
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
  BlockFeature.ZONED,
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

/** What driver and device agreed on. */
export interface Settled {
  readonly features: FeatureSet<Features>;
  /** NONE without ZONED. */
  readonly model: BlockZonedModel;
}

/**
 * Of what is offered, what goes together (§5.2.3.1, §5.2.5.1). Not finalized yet: a host-managed device that is not to be driven as
 * one is set FAILED before FEATURES_OK.
 *
 * @param zoned - whether zones are driven; else a host-aware device is a disk like any other
 * @param name - `vtblk0`, for errors
 * @throws VirtioFault UNSUPPORTED (host-managed, and `zoned` is false), DEVICE_MISBEHAVED
 */
export async function settle(device: VirtioDevice, zoned: boolean, name: string): Promise<Settled> {
  const features = await device.negotiate(wanted);
  const modern = features.has(ReservedFeature.VERSION_1);
  const refused: BlockFeature[] = [modern ? BlockFeature.BARRIER : BlockFeature.ZONED];
  let model = BlockZonedModel.NONE;
  if (modern && features.has(BlockFeature.ZONED)) {
    model = await readZonedModel(device, name);
    if (model === BlockZonedModel.HM) {
      if (!zoned)
        throw new VirtioFault("UNSUPPORTED", "the disk is host-managed, and zones are disabled", {
          device: name,
          clause: "virtio 1.4 §5.2.5.1",
        });
      refused.push(BlockFeature.DISCARD);
    }
    if (!zoned) {
      refused.push(BlockFeature.ZONED);
      model = BlockZonedModel.NONE;
    }
  }
  if (!refused.some((bit) => features.has(bit))) return { features, model };
  return { features: await device.negotiate(wanted.without(...refused)), model };
}

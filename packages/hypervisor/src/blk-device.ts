// The block device of the embedded machine: how one says which.
import type { BlkOptions, BlkSpec } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import type { BlockBackend } from "./block-backend.js";
import type { DeviceKind } from "./device-kind.js";
import { openMedium } from "./medium.js";
import { type BlockLies, BlockModel } from "./models/block.js";
import { type BlockCharacteristics, blockModelFeatures } from "./models/block-config.js";

/** A block device of the embedded machine. */
export interface EmbeddedBlkSpec extends EmbeddedBlkOptions {
  readonly kind: "blk";
}

/** What only the embedded machine's block device takes besides. */
export interface EmbeddedBlkOptions extends BlkOptions, BlockCharacteristics {
  /** Stands in for `file` and `size`. */
  readonly backend?: BlockBackend | undefined;
  /** A device that lies; for tests of drivers. */
  readonly lies?: BlockLies | undefined;
}

/** A block device: `embedded({ devices: [blk({ size: 1 << 20 })] })`. */
export function blk(options: EmbeddedBlkOptions = {}): EmbeddedBlkSpec {
  return { kind: "blk", ...options };
}

/** {@inheritDoc DeviceKind} */
export const blkKind: DeviceKind<BlkSpec | EmbeddedBlkSpec> = {
  hasFeature: (name) =>
    blockModelFeatures.includes(BlockFeature[name as keyof typeof BlockFeature]),
  refuse(spec, refuse) {
    const { legacy = "off", features = {} } = spec;
    if ("zoned" in spec && spec.zoned !== undefined && legacy !== "off")
      refuse("has no legacy interface for a disk with zones: zoned needs legacy=off");
    if (features["BARRIER"] === true && legacy !== "on")
      refuse("offers barrier on the legacy interface alone: it needs legacy=on");
  },
  async make(spec, making) {
    const embeddedSpec: EmbeddedBlkSpec = spec;
    const { backend = await openMedium(spec, making.openImage) } = embeddedSpec;
    try {
      return new BlockModel({
        name: making.name,
        backend,
        serial: spec.serial ?? "",
        // Header and status take two descriptors of the ring.
        segMax: Math.max(1, making.queueSize - 2),
        queues: spec.queues ?? 1,
        features: spec.features ?? {},
        characteristics: embeddedSpec,
        lies: embeddedSpec.lies ?? {},
      });
    } catch (error) {
      await backend.close();
      throw error;
    }
  },
};

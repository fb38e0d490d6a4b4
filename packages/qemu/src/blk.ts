// What a `blk` specification means to QEMU: the properties of a virtio-blk-pci, or a refusal.
import type { BlkOptions, BlkSpec } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import {
  type Check,
  checkOptions,
  chosen,
  commonChecks,
  commonProperties,
  type FeatureTable,
  featureProperties,
  type Properties,
  refuseFor,
  whole,
} from "./device-properties.js";
import { blockNode, findMedium, mediumChecks, refuseMedium } from "./medium.js";
import type { KindPlan } from "./plan.js";

/** A block device for `qemu({ devices: [blk({ file: "disk.img" })] })`. */
export function blk(options: BlkOptions = {}): BlkSpec {
  return { kind: "blk", ...options };
}

/** Every option of a blk, and what its value must be. */
const checks: Readonly<Record<string, Check>> = {
  ...mediumChecks,
  queues: whole(1, 64),
  queueSize: chosen,
  ...commonChecks,
};

/** Features of the block device, as QEMU has them for `spec`. */
function featuresFor(spec: BlkSpec): FeatureTable {
  return {
    type: "block device",
    names: BlockFeature,
    switches: { CONFIG_WCE: "config-wce", DISCARD: "discard", WRITE_ZEROES: "write-zeroes" },
    always: ["SEG_MAX", "GEOMETRY", "BLK_SIZE", "TOPOLOGY"],
    special(name, on, refuse) {
      if (name === "FLUSH") {
        // QEMU offers FLUSH for a write-back cache, and for one that the driver may switch.
        if (!on && spec.features?.["CONFIG_WCE"] === true)
          refuse("does not go with config_wce=on, for which QEMU always offers it");
        return { "write-cache": on ? "on" : "off", ...(on ? {} : { "config-wce": false }) };
      }
      if (name === "RO" && on !== (spec.readonly ?? false))
        refuse("QEMU offers it just when the device is read-only (readonly=on)");
      if (name === "MQ" && on !== (spec.queues ?? 1) > 1)
        refuse("QEMU offers it just when there are several queues (queues=N)");
      return name === "RO" || name === "MQ" ? {} : undefined;
    },
  };
}

/**
 * Properties of the virtio-blk-pci that does what `spec` says. Nothing is left out in silence.
 * @param device how messages call it: `blk,file=disk.img`
 * @throws VirtioFault INVALID for a key, a value or a feature that QEMU cannot honour
 */
export function blkProperties(spec: BlkSpec, device: string): Properties {
  const refuse = refuseFor(device);
  checkOptions(spec, checks, refuse);
  refuseMedium(spec, refuse);
  return {
    // QEMU's own default of num-queues is its number of CPUs.
    "num-queues": spec.queues ?? 1,
    ...commonProperties(spec, refuse),
    ...(spec.queueSize === undefined ? {} : { "queue-size": spec.queueSize }),
    ...(spec.serial === undefined ? {} : { serial: spec.serial }),
    ...featureProperties(spec.features ?? {}, featuresFor(spec), refuse),
  };
}

/** @throws VirtioFault INVALID, NOT_FOUND, READ_ONLY */
export async function planBlk(spec: BlkSpec, id: string, cwd: string): Promise<KindPlan> {
  const { file } = spec;
  const label = typeof file === "string" ? `blk,file=${file}` : id;
  const device = { driver: "virtio-blk-pci", drive: id, ...blkProperties(spec, label) };
  const medium = await findMedium(spec, label, cwd);
  const inherits = "size" in medium.store ? [medium.store] : [];
  return { label, device, medium, inherits, before: ([path]) => [blockNode(medium, id, path)] };
}

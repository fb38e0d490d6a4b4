// What a `scsi` specification means to QEMU: the properties of a virtio-scsi-pci and of the scsi-hd on its bus, or a refusal.
import type { ScsiOptions, ScsiSpec } from "@virtio/core";
import { ScsiFeature } from "@virtio/core/scsi";
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

/** A SCSI host with one disk for `qemu({ devices: [scsi({ file: "disk.img", target: 1 })] })`. */
export function scsi(options: ScsiOptions = {}): ScsiSpec {
  return { kind: "scsi", ...options };
}

const checks: Readonly<Record<string, Check>> = {
  ...mediumChecks,
  queues: whole(1, 64),
  target: whole(0, 255),
  lun: whole(0, 16383),
  queueSize: chosen,
  ...commonChecks,
};

const features: FeatureTable = {
  type: "SCSI host",
  names: ScsiFeature,
  switches: { HOTPLUG: "hotplug", CHANGE: "param_change" },
  always: [],
  special: () => undefined,
};

/**
 * Properties of the virtio-scsi-pci that does what `spec` says. Nothing is left out in silence.
 * @param device how messages call it: `scsi,file=disk.img`
 * @throws VirtioFault INVALID for a key, a value or a feature that QEMU cannot honour
 */
export function scsiProperties(spec: ScsiSpec, device: string): Properties {
  const refuse = refuseFor(device);
  checkOptions(spec, checks, refuse);
  refuseMedium(spec, refuse);
  return {
    // QEMU's own default is its number of CPUs.
    num_queues: spec.queues ?? 1,
    ...commonProperties(spec, refuse),
    ...(spec.queueSize === undefined ? {} : { virtqueue_size: spec.queueSize }),
    ...featureProperties(spec.features ?? {}, features, refuse),
  };
}

/** @throws VirtioFault INVALID, NOT_FOUND, READ_ONLY */
export async function planScsi(spec: ScsiSpec, id: string, cwd: string): Promise<KindPlan> {
  const { file, target = 0, lun = 0, serial } = spec;
  const label = typeof file === "string" ? `scsi,file=${file}` : id;
  const device = { driver: "virtio-scsi-pci", ...scsiProperties(spec, label) };
  const medium = await findMedium(spec, label, cwd);
  const disk = `${id}-disk`;
  const place = { bus: `${id}.0`, "scsi-id": target, lun };
  return {
    label,
    device,
    medium,
    inherits: "size" in medium.store ? [medium.store] : [],
    before: ([path]) => [blockNode(medium, disk, path)],
    after: [
      {
        kind: "device",
        options: {
          ...{ driver: "scsi-hd", id: `${disk}-hd`, drive: disk, ...place },
          ...(serial === undefined ? {} : { serial }),
        },
      },
    ],
  };
}

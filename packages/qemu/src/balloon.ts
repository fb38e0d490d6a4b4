// What a `balloon` specification means to QEMU: the properties of a virtio-balloon-pci, or a refusal.
import type { BalloonOptions, BalloonSpec } from "@virtio/core";
import { BalloonFeature } from "@virtio/core/balloon";
import {
  type Check,
  checkOptions,
  commonChecks,
  commonProperties,
  type FeatureTable,
  featureProperties,
  fixed,
  type Properties,
  refuseFor,
} from "./device-properties.js";
import type { KindPlan } from "./plan.js";

/** A memory balloon for `qemu({ devices: [balloon()] })`. */
export function balloon(options: BalloonOptions = {}): BalloonSpec {
  return { kind: "balloon", ...options };
}

/** Descriptors of QEMU's queues. */
const QUEUE_SIZE = 128;

const checks: Readonly<Record<string, Check>> = {
  ...commonChecks,
  queueSize: fixed(QUEUE_SIZE, "which QEMU's queues have"),
  vectors: () => "cannot be said: QEMU's balloon has no message interrupts",
};

const features: FeatureTable = {
  type: "memory balloon",
  names: BalloonFeature,
  switches: {
    DEFLATE_ON_OOM: "deflate-on-oom",
    PAGE_POISON: "page-poison",
    PAGE_REPORTING: "free-page-reporting",
  },
  always: ["STATS_VQ"],
  special: (name, on) => (name === "FREE_PAGE_HINT" ? { "free-page-hint": on } : undefined),
};

/**
 * Properties of the virtio-balloon-pci that does what `spec` says. Nothing is left out in silence.
 * @param device how messages call it: `balloon0`
 * @throws VirtioFault INVALID for a key, a value or a feature that QEMU cannot honour
 */
export function balloonProperties(spec: BalloonSpec, device: string): Properties {
  const refuse = refuseFor(device);
  checkOptions(spec, checks, refuse);
  return {
    ...commonProperties(spec, refuse),
    ...featureProperties(spec.features ?? {}, features, refuse),
  };
}

/** @throws VirtioFault INVALID */
export function planBalloon(spec: BalloonSpec, id: string): KindPlan {
  const device = { driver: "virtio-balloon-pci", ...balloonProperties(spec, id) };
  if (spec.features?.["FREE_PAGE_HINT"] !== true) return { label: id, device };
  // QEMU takes hints in a thread of their own.
  const thread = `${id}-thread`;
  return {
    label: id,
    device: { ...device, iothread: thread },
    before: () => [{ kind: "object", options: { "qom-type": "iothread", id: thread } }],
  };
}

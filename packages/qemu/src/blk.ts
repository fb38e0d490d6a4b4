// What a `blk` specification means to QEMU: the properties of a virtio-blk-pci, or a refusal.
import { type BlkOptions, type BlkSpec, VirtioFault } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";

/** A block device for `qemu({ devices: [blk({ file: "disk.img" })] })`. */
export function blk(options: BlkOptions = {}): BlkSpec {
  return { kind: "blk", ...options };
}

/** Values of a QEMU device property. */
type Property = string | number | boolean;

/** Properties of one device, by QEMU's names. */
export type Properties = Readonly<Record<string, Property>>;

/** Device features of the block device that QEMU has a switch for. */
const switches: Readonly<Record<string, string>> = {
  CONFIG_WCE: "config-wce",
  DISCARD: "discard",
  WRITE_ZEROES: "write-zeroes",
};
/** Queue features that QEMU has a switch for; it offers none of the others. */
const queueSwitches: Readonly<Record<string, string>> = {
  ACCESS_PLATFORM: "iommu_platform",
  RING_RESET: "queue_reset",
};
/** Queue features that QEMU does not know. */
const unknown: readonly string[] = ["IN_ORDER", "NOTIFICATION_DATA", "ORDER_PLATFORM"];
/** Device features that QEMU always offers. */
const always: readonly string[] = ["SEG_MAX", "GEOMETRY", "BLK_SIZE", "TOPOLOGY"];

/** Sizes of a queue that QEMU takes. */
const QUEUE_SIZE_MIN = 4;
const QUEUE_SIZE_MAX = 1024;

type Check = (value: unknown) => string | null;
const whole =
  (min: number, max: number): Check =>
  (value) =>
    Number.isInteger(value) && Number(value) >= min && Number(value) <= max
      ? null
      : `is not a whole number from ${min} to ${max}`;
const onOff: Check = (value) => (typeof value === "boolean" ? null : "is not true or false");
const oneOf =
  (...words: readonly string[]): Check =>
  (value) =>
    typeof value === "string" && words.includes(value) ? null : `is not one of ${words.join(", ")}`;

/** Every option of a blk, and what its value must be. */
const checks: Readonly<Record<string, Check>> = {
  kind: oneOf("blk"),
  file: (value) => (typeof value === "string" && value !== "" ? null : "is not a file name"),
  size: (value) =>
    Number.isSafeInteger(value) && Number(value) > 0 && Number(value) % 512 === 0
      ? null
      : "is not a positive multiple of 512",
  format: oneOf("raw", "qcow2"),
  serial: (value) =>
    typeof value === "string" && /^[\x20-\x7e]{1,20}$/.test(value)
      ? null
      : "is not 1 to 20 printable ASCII characters",
  readonly: onOff,
  queues: whole(1, 64),
  legacy: oneOf("off", "on", "transitional"),
  packed: onOff,
  indirect: onOff,
  eventIdx: onOff,
  queueSize: (value) =>
    whole(QUEUE_SIZE_MIN, QUEUE_SIZE_MAX)(value) === null &&
    Number.isInteger(Math.log2(Number(value)))
      ? null
      : `is not a power of two from ${QUEUE_SIZE_MIN} to ${QUEUE_SIZE_MAX} (QEMU's limits)`,
  vectors: whole(0, 2048),
  features: (value) => (typeof value === "object" && value !== null ? null : "is no object"),
};

/**
 * Properties of the virtio-blk-pci that does what `spec` says. Nothing is left out in silence.
 * @param device how messages call it: `blk,file=disk.img`
 * @throws VirtioFault INVALID for a key, a value or a feature that QEMU cannot honour
 */
export function blkProperties(spec: BlkSpec, device: string): Properties {
  const refuse = (what: string): never => {
    throw new VirtioFault("INVALID", `${device}: ${what}`);
  };
  for (const [key, value] of Object.entries(spec)) {
    if (value === undefined) continue;
    const check = Object.hasOwn(checks, key) ? checks[key] : undefined;
    if (check === undefined)
      refuse(`unknown key '${key}' (blk takes: ${Object.keys(checks).slice(1).join(", ")})`);
    const wrong = check?.(value) ?? null;
    if (wrong !== null) refuse(`${key} ${JSON.stringify(value)} ${wrong}`);
  }
  const { legacy = "off", queues = 1, packed = false } = spec;
  if (spec.file !== undefined && spec.size !== undefined) refuse("'size' does not go with 'file'");
  if (spec.file === undefined && spec.format === "qcow2") refuse("format=qcow2 needs a file");
  if (packed && legacy === "on") refuse("packed=on needs a modern interface: legacy=off");
  return {
    // QEMU's own default of num-queues is its number of CPUs.
    "num-queues": queues,
    "disable-legacy": legacy === "off" ? "on" : "off",
    "disable-modern": legacy === "on",
    packed,
    ...(spec.indirect === undefined ? {} : { indirect_desc: spec.indirect }),
    ...(spec.eventIdx === undefined ? {} : { event_idx: spec.eventIdx }),
    ...(spec.queueSize === undefined ? {} : { "queue-size": spec.queueSize }),
    ...(spec.vectors === undefined ? {} : { vectors: spec.vectors }),
    ...(spec.serial === undefined ? {} : { serial: spec.serial }),
    ...featureProperties(spec, refuse),
  };
}

function featureProperties(spec: BlkSpec, refuse: (what: string) => never): Properties {
  const properties: Record<string, Property> = {};
  const features = spec.features ?? {};
  for (const [name, on] of Object.entries(features)) {
    const key = `${name.toLowerCase()}=${on ? "on" : "off"}`;
    if (unknown.includes(name)) {
      if (on) refuse(`${key}: QEMU never offers it`);
      continue;
    }
    const property = switches[name] ?? queueSwitches[name];
    if (property === undefined && (!(name in BlockFeature) || /^\d/.test(name)))
      refuse(`${key}: no feature of a block device`);
    if (typeof on !== "boolean") refuse(`${name.toLowerCase()} is not true or false`);
    if (property !== undefined) properties[property] = on;
    else if (name === "FLUSH") {
      // QEMU offers FLUSH for a write-back cache, and for one that the driver may switch.
      if (!on && features["CONFIG_WCE"] === true)
        refuse(`${key}: does not go with config_wce=on, for which QEMU always offers it`);
      properties["write-cache"] = on ? "on" : "off";
      if (!on) properties["config-wce"] = false;
    } else if (name === "RO" && on !== (spec.readonly ?? false))
      refuse(`${key}: QEMU offers it just when the device is read-only (readonly=on)`);
    else if (name === "MQ" && on !== (spec.queues ?? 1) > 1)
      refuse(`${key}: QEMU offers it just when there are several queues (queues=N)`);
    else if (always.includes(name) && !on) refuse(`${key}: QEMU always offers it`);
    else if (![...always, "RO", "MQ"].includes(name) && on) refuse(`${key}: QEMU never offers it`);
  }
  return properties;
}

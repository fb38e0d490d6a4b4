// What every kind of device specification means to QEMU: the checks and properties that its virtio devices share.
import { type CommonSpec, VirtioFault } from "@virtio/core";

/** Values of a QEMU device property. */
type Property = string | number | boolean;

/** Properties of one device, by QEMU's names. */
export type Properties = Readonly<Record<string, Property>>;

/** What is wrong with a value, null when nothing is. */
export type Check = (value: unknown) => string | null;

/** Throws INVALID, with the device in front. */
export type Refuse = (what: string) => never;

export const whole =
  (min: number, max: number): Check =>
  (value) =>
    Number.isInteger(value) && Number(value) >= min && Number(value) <= max
      ? null
      : `is not a whole number from ${min} to ${max}`;
export const onOff: Check = (value) => (typeof value === "boolean" ? null : "is not true or false");
export const oneOf =
  (...words: readonly string[]): Check =>
  (value) =>
    typeof value === "string" && words.includes(value) ? null : `is not one of ${words.join(", ")}`;

/** For a size of queues that QEMU does not let one choose. */
export const fixed =
  (size: number, why: string): Check =>
  (value) =>
    value === size ? null : `is not ${size}, ${why}`;
/** For a size of queues that QEMU lets one choose. */
export const chosen: Check = (value) =>
  whole(4, 1024)(value) === null && Number.isInteger(Math.log2(Number(value)))
    ? null
    : "is not a power of two from 4 to 1024 (QEMU's limits)";

/** Every option that all devices take, but for `queueSize`, whose limits differ. */
export const commonChecks: Readonly<Record<string, Check>> = {
  legacy: oneOf("off", "on", "transitional"),
  packed: onOff,
  indirect: onOff,
  eventIdx: onOff,
  vectors: whole(0, 2048),
  features: (value) => (typeof value === "object" && value !== null ? null : "is no object"),
};

/** @param device how messages call it: `blk,file=disk.img` */
export const refuseFor =
  (device: string): Refuse =>
  (what) => {
    throw new VirtioFault("INVALID", `${device}: ${what}`);
  };

/** Checks every option of a specification made by hand. @throws VirtioFault INVALID for an unknown key or a wrong value */
export function checkOptions(
  spec: { readonly kind: string },
  checks: Readonly<Record<string, Check>>,
  refuse: Refuse,
): void {
  for (const [key, value] of Object.entries(spec)) {
    if (value === undefined || key === "kind") continue;
    const check = Object.hasOwn(checks, key) ? checks[key] : undefined;
    if (check === undefined)
      refuse(`unknown key '${key}' (${spec.kind} takes: ${Object.keys(checks).join(", ")})`);
    const wrong = check?.(value) ?? null;
    if (wrong !== null) refuse(`${key} ${JSON.stringify(value)} ${wrong}`);
  }
}

/** The properties of what all devices take, but for `queueSize` and `features`. */
export function commonProperties(spec: CommonSpec, refuse: Refuse): Properties {
  const { legacy = "off", packed = false } = spec;
  if (packed && legacy === "on") refuse("packed=on needs a modern interface: legacy=off");
  return {
    "disable-legacy": legacy === "off" ? "on" : "off",
    "disable-modern": legacy === "on",
    packed,
    ...(spec.indirect === undefined ? {} : { indirect_desc: spec.indirect }),
    ...(spec.eventIdx === undefined ? {} : { event_idx: spec.eventIdx }),
    ...(spec.vectors === undefined ? {} : { vectors: spec.vectors }),
  };
}

/** Queue features that QEMU has a switch for; it offers none of the others. */
const queueSwitches: Readonly<Record<string, string>> = {
  ACCESS_PLATFORM: "iommu_platform",
  RING_RESET: "queue_reset",
};
/** Queue features that QEMU does not know. */
const unknown: readonly string[] = ["IN_ORDER", "NOTIFICATION_DATA", "ORDER_PLATFORM"];

/** How QEMU treats the features of one device type. */
export interface FeatureTable {
  /** `block device`, for messages. */
  readonly type: string;
  /** The type's feature bits. */
  readonly names: object;
  /** Features with a switch: the property. */
  readonly switches: Readonly<Record<string, string>>;
  /** Features that QEMU always offers. */
  readonly always: readonly string[];
  /** Features that depend on something else: what the switch becomes; undefined: not one of these. */
  special(name: string, on: boolean, refuse: Refuse): Properties | undefined;
}

/** The properties that features become. @throws VirtioFault INVALID for one that QEMU cannot offer, or hold back */
export function featureProperties(
  features: Readonly<Record<string, boolean>>,
  table: FeatureTable,
  refuse: Refuse,
): Properties {
  const properties: Record<string, Property> = {};
  for (const [name, on] of Object.entries(features)) {
    const key = `${name.toLowerCase()}=${on ? "on" : "off"}`;
    if (unknown.includes(name)) {
      if (on) refuse(`${key}: QEMU never offers it`);
      continue;
    }
    const property = table.switches[name] ?? queueSwitches[name];
    if (property === undefined && (!(name in table.names) || /^\d/.test(name)))
      refuse(`${key}: no feature of a ${table.type}`);
    if (typeof on !== "boolean") refuse(`${name.toLowerCase()} is not true or false`);
    const special = table.special(name, on, (what) => refuse(`${key}: ${what}`));
    if (special !== undefined) Object.assign(properties, special);
    else if (property !== undefined) properties[property] = on;
    else if (table.always.includes(name) !== on)
      refuse(`${key}: QEMU ${on ? "never" : "always"} offers it`);
  }
  return properties;
}

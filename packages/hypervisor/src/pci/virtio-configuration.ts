// What the configuration space of a virtio function says (virtio 1.4 §4.1.2, §4.1.4): who it is, and where its structures lie.
import type { DeviceType } from "@virtio/core";
import {
  MODERN_DEVICE_ID_BASE,
  MsixControl,
  PciAdvancedFeature,
  PciCapability,
  TRANSITIONAL_DEVICE_ID_BASE,
  VIRTIO_VENDOR_ID,
  VirtioCapability,
} from "@virtio/core/pci";
import type { ObservedCapability } from "../rules/layout-rules.js";
import {
  type CapabilitySpec,
  le16,
  le32,
  type PciIdentity,
  type PlacedCapability,
} from "./configuration.js";
import { PENDING_AT } from "./msix-table.js";
import type { StructureLayout } from "./structure-layout.js";
import type { InterfaceKind } from "./virtio-device.js";

/** BAR 0 holds the legacy registers (§4.1.4.10). */
export const LEGACY_BAR = 0;
/** BAR 1 holds the MSI-X table. */
export const MSIX_BAR = 1;
/** BAR 4 holds the virtio structures. */
export const STRUCTURES_BAR = 4;

/** Bytes of every structure but the device configuration, at most. */
const STRUCTURE_LENGTH = 0x1000;
const COMMON_LENGTH = 0x40;
const RESET_CAPABILITY_LENGTH = 6;

/** Transitional device ids by type, from {@link TRANSITIONAL_DEVICE_ID_BASE} on (§4.1.2): net, block, balloon, console, SCSI, entropy. */
const transitionalIds: readonly DeviceType[] = [1, 2, 5, 3, 8, 4];

/** Who a function says that it is. */
export function virtioIdentity(
  type: DeviceType,
  kind: InterfaceKind,
  classCode: number,
): PciIdentity {
  const modern = kind === "modern";
  return {
    vendor: VIRTIO_VENDOR_ID,
    device: modern
      ? MODERN_DEVICE_ID_BASE + type
      : TRANSITIONAL_DEVICE_ID_BASE + transitionalIds.indexOf(type),
    revision: modern ? 1 : 0,
    classCode,
    subsystemVendor: VIRTIO_VENDOR_ID,
    subsystem: modern ? 0x1100 : type,
    interruptPin: 1,
  };
}

/** One of each structure, the window last. */
export function virtioCapabilities(layout: StructureLayout): readonly CapabilitySpec[] {
  const { common, isr, device, notify, length, configLength, multiplier } = layout;
  const structure = (
    kind: VirtioCapability,
    offset: number,
    bytes: number,
    extra: readonly number[] = [],
  ): CapabilitySpec => ({
    id: PciCapability.VENDOR,
    body: [
      16 + extra.length,
      kind,
      STRUCTURES_BAR,
      0,
      0,
      0,
      ...le32(offset),
      ...le32(bytes),
      ...extra,
    ],
  });
  const all = [0xff, 0xff, 0xff, 0xff];
  return [
    structure(VirtioCapability.COMMON, common, COMMON_LENGTH),
    structure(VirtioCapability.ISR, isr, Math.min(STRUCTURE_LENGTH, device - isr)),
    structure(VirtioCapability.DEVICE, device, configLength),
    structure(VirtioCapability.NOTIFY, notify, length - notify, le32(multiplier)),
    // bar, offset, length and data may be written.
    {
      ...structure(VirtioCapability.PCI, 0, 0, [0, 0, 0, 0]),
      writable: [0, 0, 0xff, 0, 0, 0, ...all, ...all, ...all],
    },
  ];
}

/** A table of `vectors` entries in BAR 1. */
export function msixCapability(vectors: number): CapabilitySpec {
  return {
    id: PciCapability.MSIX,
    body: [...le16(vectors - 1), ...le32(MSIX_BAR), ...le32(PENDING_AT | MSIX_BAR)],
    writable: le16(MsixControl.ENABLE | MsixControl.FUNCTION_MASK),
  };
}

/** Nothing but a function level reset. */
export const resetCapability: CapabilitySpec = {
  id: PciCapability.ADVANCED_FEATURES,
  body: [
    RESET_CAPABILITY_LENGTH,
    PciAdvancedFeature.TRANSACTIONS_PENDING | PciAdvancedFeature.FUNCTION_LEVEL_RESET,
    0,
    0,
  ],
};

/** Capabilities as the rules look at them. */
export function observedCapabilities(
  placed: readonly PlacedCapability[],
): readonly ObservedCapability[] {
  return placed.map(({ id, at, body }) => {
    const fields = new DataView(Uint8Array.from([0, 0, ...body, ...le32(0), ...le32(0)]).buffer);
    const whole = body.length >= 14;
    return {
      at,
      length: 2 + body.length,
      id,
      type: fields.getUint8(3),
      bar: fields.getUint8(4),
      offset: whole ? fields.getUint32(8, true) : 0,
      bytes: whole ? fields.getUint32(12, true) : 0,
    };
  });
}

// The configuration space of a modern virtio function (virtio 1.4 §4.1.4): where its structures lie, its MSI-X control word, and the
// window through which a driver without BARs reaches them.
import type { DeviceType } from "@virtio/core";
import {
  MODERN_DEVICE_ID_BASE,
  MsixControl,
  PciCapability,
  PciRegister,
  VIRTIO_VENDOR_ID,
  VirtioCapability,
} from "@virtio/core/pci";
import type { RegisterSpace } from "../registers.js";
import {
  type BarSpec,
  type CapabilitySpec,
  le16,
  le32,
  PciConfiguration,
} from "./configuration.js";
import { type MsixTable, PENDING_AT } from "./msix-table.js";

/** BAR 1 holds the MSI-X table. */
const MSIX_BAR = 1;
/** BAR 4 holds, 4 KiB each, the virtio structures, as QEMU lays them out. */
const STRUCTURES_BAR = 4;
const STRUCTURE_LENGTH = 0x1000;
const COMMON_LENGTH = 0x40;

/** Offsets of the structures in their BAR, and its length. Bytes. */
export const layout = {
  common: 0x0000,
  isr: 0x1000,
  device: 0x2000,
  notify: 0x3000,
  length: 0x4000,
} as const;

/** Bytes between two doorbells. */
export const NOTIFY_MULTIPLIER = 4;

// Fields of the configuration access capability (§4.1.4.9).
const WINDOW_BAR = 4;
const WINDOW_OFFSET = 8;
const WINDOW_LENGTH = 12;
const WINDOW_DATA = 16;
const WINDOW_END = 20;

/** What the configuration space of a function is made of, and what it tells the function. */
export interface VirtioConfigurationOptions {
  readonly type: DeviceType;
  readonly classCode: number;
  readonly structures: RegisterSpace;
  /** Bytes of the device configuration. */
  readonly configLength: number;
  readonly msix: MsixTable | null;
  /** The command register, or what MSI-X may send, changed. */
  readonly onChange: () => void;
  /** Configuration space was written to: whether where it may be. */
  readonly onWrite: (offset: number, allowed: boolean) => void;
}

/** Makes it. */
export function virtioConfiguration(options: VirtioConfigurationOptions): PciConfiguration {
  const { type, classCode, structures, msix } = options;
  const bars: BarSpec[] = [{ index: STRUCTURES_BAR, wide: true, space: structures }];
  if (msix !== null) bars.unshift({ index: MSIX_BAR, wide: false, space: msix });
  const virtio = virtioCapabilities(options.configLength);
  const configuration = new PciConfiguration(
    {
      vendor: VIRTIO_VENDOR_ID,
      device: MODERN_DEVICE_ID_BASE + type,
      revision: 1,
      classCode,
      subsystemVendor: VIRTIO_VENDOR_ID,
      subsystem: 0x1100,
      interruptPin: 1,
    },
    bars,
    msix === null ? virtio : [...virtio, msixCapability(msix.vectors)],
  );
  const first = configuration.capabilities[0] ?? 0;
  const windowAt = configuration.capabilities[virtio.length - 1] ?? 0;
  const msixAt = msix === null ? null : (configuration.capabilities[virtio.length] ?? null);
  const hits = (at: number, end: number, offset: number, width: number): boolean =>
    offset < end && offset + width > at;

  /** The window's target, when it is a whole, aligned access to a BAR (§4.1.4.9.1). */
  const target = (): { space: RegisterSpace; offset: number; width: 1 | 2 | 4 } | null => {
    const bar = configuration.peek(windowAt + WINDOW_BAR, 1);
    const offset = configuration.peek(windowAt + WINDOW_OFFSET, 4);
    const width = configuration.peek(windowAt + WINDOW_LENGTH, 4);
    const space = bars.find(({ index }) => index === bar)?.space;
    if ((width !== 1 && width !== 2 && width !== 4) || space === undefined) return null;
    return offset % width === 0 && offset + width <= space.length ? { space, offset, width } : null;
  };
  configuration.onRead = (offset, width) => {
    const found = hits(windowAt + WINDOW_DATA, windowAt + WINDOW_END, offset, width)
      ? target()
      : null;
    if (found !== null)
      configuration.set(windowAt + WINDOW_DATA, 4, found.space.read(found.offset, found.width));
  };
  configuration.onWrite = (offset, width) => {
    if (msix !== null && msixAt !== null && hits(msixAt, msixAt + 4, offset, width)) {
      const control = configuration.peek(msixAt + 2, 2);
      msix.enabled = (control & MsixControl.ENABLE) !== 0;
      msix.masked = (control & MsixControl.FUNCTION_MASK) !== 0;
      msix.deliverPending();
      options.onChange();
    }
    if (offset === PciRegister.COMMAND) options.onChange();
    const hit = hits(first, windowAt + WINDOW_END, offset, width);
    options.onWrite(offset, !hit || configuration.writable(offset));
    if (!hit) return;
    const found = hits(windowAt + WINDOW_DATA, windowAt + WINDOW_END, offset, width)
      ? target()
      : null;
    found?.space.write(
      found.offset,
      found.width,
      configuration.peek(windowAt + WINDOW_DATA, found.width),
    );
  };
  return configuration;
}

/** One of each structure, the window last. */
function virtioCapabilities(configLength: number): readonly CapabilitySpec[] {
  const structure = (
    kind: VirtioCapability,
    offset: number,
    length: number,
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
      ...le32(length),
      ...extra,
    ],
  });
  const all = [0xff, 0xff, 0xff, 0xff];
  return [
    structure(VirtioCapability.COMMON, layout.common, COMMON_LENGTH),
    structure(VirtioCapability.ISR, layout.isr, STRUCTURE_LENGTH),
    structure(VirtioCapability.DEVICE, layout.device, configLength),
    structure(VirtioCapability.NOTIFY, layout.notify, STRUCTURE_LENGTH, le32(NOTIFY_MULTIPLIER)),
    // bar, offset, length and data may be written.
    {
      ...structure(VirtioCapability.PCI, 0, 0, [0, 0, 0, 0]),
      writable: [0, 0, 0xff, 0, 0, 0, ...all, ...all, ...all],
    },
  ];
}

function msixCapability(vectors: number): CapabilitySpec {
  return {
    id: PciCapability.MSIX,
    body: [...le16(vectors - 1), ...le32(MSIX_BAR), ...le32(PENDING_AT | MSIX_BAR)],
    writable: le16(MsixControl.ENABLE | MsixControl.FUNCTION_MASK),
  };
}

// The capability list of a virtio function (virtio 1.4 §4.1.4; PCI 3.0 §6.7), read from a copy of its configuration space.
import type { PciFunction } from "@virtio/core";
import {
  MsiControl,
  MsixControl,
  PciCapability,
  PciRegister,
  PciStatus,
  VirtioCapability,
} from "@virtio/core/pci";
import { field, put } from "./pci-header.js";

/** Where one virtio structure lies. */
export interface StructureCapability {
  /** Offset of the capability itself, in configuration space. */
  readonly at: number;
  /** COMMON to PCI. */
  readonly type: VirtioCapability;
  /** For PCI what the window was last pointed at, as are `offset` and `length`. */
  readonly bar: number;
  readonly offset: number;
  readonly length: number;
  /** notify_off_multiplier; 0 for other types. */
  readonly multiplier: number;
}

/** A shared memory region (virtio 1.4 §4.1.4.7). */
export interface SharedMemoryCapability {
  readonly at: number;
  /** Number of the region, which the device type gives a meaning. */
  readonly id: number;
  readonly bar: number;
  readonly offset: number;
  readonly length: number;
}

/** Data of a vendor's own (virtio 1.4 §4.1.4.8). */
interface VendorCapability {
  readonly at: number;
  /** Bytes, with the header. */
  readonly length: number;
  /** PCI id of the vendor who says what the bytes mean. */
  readonly vendor: number;
}

/** Where the MSI-X table lies (PCI 3.0 §6.8.2). */
export interface MsixCapability {
  readonly at: number;
  /** Table entries. */
  readonly vectors: number;
  readonly bar: number;
  readonly offset: number;
}

/** How the MSI registers are laid out (PCI 3.0 §6.8.1). */
export interface MsiCapability {
  readonly at: number;
  /** Messages it can send, a power of two up to 32. */
  readonly vectors: number;
  /** Whether the address has an upper half, which moves what follows by four bytes. */
  readonly wide: boolean;
  /** Whether it has mask and pending bits. */
  readonly masking: boolean;
}

/** What a transport needs of the list. */
export interface Capabilities {
  /** In list order: the device's order of preference. */
  readonly structures: readonly StructureCapability[];
  readonly sharedMemory: readonly SharedMemoryCapability[];
  readonly vendorData: readonly VendorCapability[];
  readonly msix: MsixCapability | null;
  readonly msi: MsiCapability | null;
}

const LIST_START = 0x40;
const LIST_END = 0x100;
const RESERVED_BAR = 6;
const MSIX_LENGTH = 12;
/** MSI sends at most 32 messages: log2 (PCI 3.0 §6.8.1.3). */
const MSI_LOG2_MAX = 5;

/** Bytes of a virtio capability by type (virtio 1.4 §4.1.4). Types that are not here are reserved. */
const lengths: Readonly<Record<number, number>> = {
  [VirtioCapability.COMMON]: 16,
  [VirtioCapability.NOTIFY]: 20,
  [VirtioCapability.ISR]: 16,
  [VirtioCapability.DEVICE]: 16,
  [VirtioCapability.PCI]: 20,
  [VirtioCapability.SHARED_MEMORY]: 24,
  [VirtioCapability.VENDOR]: 8,
};

/** A read of configuration space. */
type ConfigRead = readonly [offset: number, width: 2 | 4];

/**
 * Reads the list into `bytes`, which hold the header: what {@link readCapabilities} looks at, and nothing else. pci_cfg_data must not be
 * touched before the window is set up, nor a vendor's data before its id is known (virtio 1.4 §4.1.4.8, §4.1.4.9.2), and where they
 * lie only the list tells: one round trip for each capability, and one more.
 */
export async function fetchCapabilities(fn: PciFunction, bytes: Uint8Array): Promise<void> {
  if ((field(bytes, PciRegister.STATUS, 2) & PciStatus.CAPABILITIES) === 0) return;
  const fetch = (reads: readonly ConfigRead[]): Promise<unknown> =>
    Promise.all(
      reads.map(async ([offset, width]) => put(bytes, offset, width, await fn.read(offset, width))),
    );
  const seen = new Set<number>();
  let body: readonly ConfigRead[] = [];
  let at = field(bytes, PciRegister.CAPABILITIES, 1) & ~3;
  while (at >= LIST_START && !seen.has(at)) {
    seen.add(at);
    await fetch([[at, 4], ...body]);
    body = bodyOf(bytes, at);
    at = field(bytes, at + 1, 1) & ~3;
  }
  await fetch(body);
}

/** What to read of a capability besides its first word. */
function bodyOf(bytes: Uint8Array, at: number): readonly ConfigRead[] {
  const id = field(bytes, at, 1);
  const type = field(bytes, at + 3, 1);
  const words = (end: number): readonly ConfigRead[] =>
    Array.from({ length: end / 4 - 1 }, (_, i) => [at + 4 * (i + 1), 4] as const);
  let reads: readonly ConfigRead[] = [];
  if (id === PciCapability.MSIX) reads = words(8);
  else if (id === PciCapability.VENDOR && type === VirtioCapability.VENDOR) reads = [[at + 4, 2]];
  // The last word of the window is pci_cfg_data.
  else if (id === PciCapability.VENDOR && type === VirtioCapability.PCI) reads = words(16);
  else if (id === PciCapability.VENDOR) reads = words(lengths[type] ?? 4);
  return reads.filter(([offset]) => offset < LIST_END);
}

/** Each capability once, in list order. A list that loops or leaves its part of configuration space ends there. */
function* list(bytes: Uint8Array): Generator<{ readonly id: number; readonly at: number }> {
  if ((field(bytes, PciRegister.STATUS, 2) & PciStatus.CAPABILITIES) === 0) return;
  let at = field(bytes, PciRegister.CAPABILITIES, 1) & ~3;
  const seen = new Set<number>();
  while (at >= LIST_START && !seen.has(at)) {
    seen.add(at);
    yield { id: field(bytes, at, 1), at };
    at = field(bytes, at + 1, 1) & ~3;
  }
}

/**
 * Walks the list of a configuration space of 256 bytes. What is cut off by its end, or shorter than its type, is passed over, and
 * so are reserved types and BARs; of MSI and MSI-X the first counts.
 */
export function readCapabilities(bytes: Uint8Array): Capabilities {
  const structures: StructureCapability[] = [];
  const sharedMemory: SharedMemoryCapability[] = [];
  const vendorData: VendorCapability[] = [];
  let msix: MsixCapability | null = null;
  let msi: MsiCapability | null = null;
  for (const { id, at } of list(bytes)) {
    if (id === PciCapability.MSIX) msix ??= readMsix(bytes, at);
    if (id === PciCapability.MSI) msi ??= readMsi(bytes, at);
    if (id !== PciCapability.VENDOR) continue;
    const length = field(bytes, at + 2, 1);
    const type: VirtioCapability = field(bytes, at + 3, 1);
    const shortest = lengths[type];
    if (shortest === undefined || length < shortest || at + shortest > LIST_END) continue;
    if (type === VirtioCapability.VENDOR) {
      vendorData.push({ at, length, vendor: field(bytes, at + 4, 2) });
      continue;
    }
    const bar = field(bytes, at + 4, 1);
    const low = { offset: field(bytes, at + 8, 4), length: field(bytes, at + 12, 4) };
    // The window's BAR is the driver's to choose (§4.1.4.9): what it reads now says nothing.
    if (bar >= RESERVED_BAR && type !== VirtioCapability.PCI) continue;
    if (type === VirtioCapability.SHARED_MEMORY) {
      const region = {
        offset: field(bytes, at + 16, 4) * 2 ** 32 + low.offset,
        length: field(bytes, at + 20, 4) * 2 ** 32 + low.length,
      };
      // No BAR of ours is that long.
      if (!Number.isSafeInteger(region.offset + region.length)) continue;
      sharedMemory.push({ at, id: field(bytes, at + 5, 1), bar, ...region });
      continue;
    }
    const multiplier = type === VirtioCapability.NOTIFY ? field(bytes, at + 16, 4) : 0;
    structures.push({ at, type, bar, ...low, multiplier });
  }
  return { structures, sharedMemory, vendorData, msix, msi };
}

function readMsix(bytes: Uint8Array, at: number): MsixCapability | null {
  if (at + MSIX_LENGTH > LIST_END) return null;
  const table = field(bytes, at + 4, 4);
  return {
    at,
    vectors: (field(bytes, at + 2, 2) & MsixControl.TABLE_SIZE) + 1,
    bar: table & 7,
    offset: (table & ~7) >>> 0,
  };
}

function readMsi(bytes: Uint8Array, at: number): MsiCapability | null {
  const control = field(bytes, at + 2, 2);
  const wide = (control & MsiControl.ADDRESS_64) !== 0;
  const masking = (control & MsiControl.VECTOR_MASKING) !== 0;
  // Control, address and data, and with masking two more words after data was filled up to one.
  const length = 10 + (wide ? 4 : 0) + (masking ? 10 : 0);
  const log2 = (control & MsiControl.MULTIPLE_CAPABLE) >> 1;
  if (at + length > LIST_END || log2 > MSI_LOG2_MAX) return null;
  return { at, vectors: 2 ** log2, wide, masking };
}

// The capability list of a virtio function (virtio 1.4 §4.1.4; PCI 3.0 §6.7), read from a copy of its configuration space.
import { PciCapability, PciRegister, PciStatus, VirtioCapability } from "@virtio/core/pci";
import { field } from "./pci-bus.js";

/** Where one virtio structure lies. */
export interface StructureCapability {
  /** Offset of the capability itself, in configuration space. */
  readonly at: number;
  readonly type: VirtioCapability;
  readonly bar: number;
  readonly offset: number;
  readonly length: number;
  /** notify_off_multiplier; 0 for other types. */
  readonly multiplier: number;
}

/** Where the MSI-X table lies (PCI 3.0 §6.8.2). */
export interface MsixCapability {
  readonly at: number;
  /** Table entries. */
  readonly vectors: number;
  readonly bar: number;
  readonly offset: number;
}

/** What a transport needs of the list. */
export interface Capabilities {
  /** In list order: the device's order of preference. */
  readonly structures: readonly StructureCapability[];
  readonly msix: MsixCapability | null;
}

const LIST_START = 0x40;
const LIST_END = 0x100;
/** As many capabilities as fit: a longer list loops. */
const LIST_MAX = (LIST_END - LIST_START) / 4;
const STRUCTURE_LENGTH = 16;
const NOTIFY_LENGTH = 20;
const RESERVED_BAR = 6;

/** Walks the list. A list that loops or leaves configuration space ends there; reserved types and BARs are passed over. */
export function readCapabilities(bytes: Uint8Array): Capabilities {
  const structures: StructureCapability[] = [];
  let msix: MsixCapability | null = null;
  let at =
    (field(bytes, PciRegister.STATUS, 2) & PciStatus.CAPABILITIES) === 0
      ? 0
      : field(bytes, PciRegister.CAPABILITIES, 1) & ~3;
  for (let n = 0; n < LIST_MAX && at >= LIST_START; n++) {
    const id = field(bytes, at, 1);
    if (id === PciCapability.MSIX && at + 12 <= LIST_END) {
      const table = field(bytes, at + 4, 4);
      msix ??= {
        at,
        vectors: (field(bytes, at + 2, 2) & 0x7ff) + 1,
        bar: table & 7,
        offset: (table & ~7) >>> 0,
      };
    }
    if (id === PciCapability.VENDOR && at + STRUCTURE_LENGTH <= LIST_END) {
      const length = field(bytes, at + 2, 1);
      const type: VirtioCapability = field(bytes, at + 3, 1);
      const bar = field(bytes, at + 4, 1);
      const shortest = type === VirtioCapability.NOTIFY ? NOTIFY_LENGTH : STRUCTURE_LENGTH;
      if (
        VirtioCapability[type] !== undefined &&
        bar < RESERVED_BAR &&
        length >= shortest &&
        at + shortest <= LIST_END
      )
        structures.push({
          at,
          type,
          bar,
          offset: field(bytes, at + 8, 4),
          length: field(bytes, at + 12, 4),
          multiplier: type === VirtioCapability.NOTIFY ? field(bytes, at + 16, 4) : 0,
        });
    }
    at = field(bytes, at + 1, 1) & ~3;
  }
  return { structures, msix };
}

// What is known of a PCI function: its header as it was read, and its BARs.
import type { PciFunction, VirtioFault } from "@virtio/core";
import { PciRegister } from "@virtio/core/pci";

/** A base address register of one function. */
export interface Bar {
  readonly index: number;
  readonly kind: "memory" | "io";
  /** Whether it takes 64 bits: two registers. */
  readonly wide: boolean;
  readonly prefetchable: boolean;
  /** Bytes, a power of two; 0: not implemented. */
  readonly length: number;
  /** 0: not placed. */
  readonly address: number;
}

/** What a bridge may pass on to the bus behind it. */
export type WindowKind = "io" | "memory" | "prefetchable";

/** A function, what was read of its configuration space, and its BARs. */
export interface PciHeader {
  readonly function: PciFunction;
  /** 256 bytes: the header and, of a virtio function, what a transport needs of its capabilities; else 0. */
  readonly bytes: Uint8Array;
  readonly bars: readonly Bar[];
  /** Windows that a PCI-to-PCI bridge has, open or not; none for other functions. */
  readonly windows: readonly WindowKind[];
  /** Why BARs have no place (NO_SPACE, NOT_FOUND, DEVICE_MISBEHAVED); null when each has one or it was not asked for yet. */
  readonly unplaced: VirtioFault | null;
}

/** A little-endian field of the header. */
export function field(bytes: Uint8Array, offset: number, width: 1 | 2 | 4): number {
  let value = 0;
  for (let i = width - 1; i >= 0; i--) value = value * 256 + (bytes[offset + i] ?? 0);
  return value;
}

/** Sets a little-endian field. */
export function put(bytes: Uint8Array, offset: number, width: 1 | 2 | 4, value: number): void {
  for (let i = 0; i < width; i++) bytes[offset + i] = Math.floor(value / 256 ** i) % 256;
}

/** Header layouts (PCI 3.0 §6.2.1). */
export enum HeaderLayout {
  FUNCTION = 0,
  BRIDGE = 1,
}

/** The layout of a header, without the bit of functions that have siblings. */
export function layoutOf(bytes: Uint8Array): number {
  return field(bytes, PciRegister.HEADER_TYPE, 1) & 0x7f;
}

/** `pci0:0:4:0` */
export function nameOf({ address }: PciFunction): string {
  return `pci${address.domain}:${address.bus}:${address.device}:${address.function}`;
}

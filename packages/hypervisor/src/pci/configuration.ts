// One function's configuration space (PCI 3.0 §6): an image, a mask of what a driver may change, and what a change does.
import { VirtioFault } from "@virtio/core";
import { type PciCapability, PciCommand, PciRegister, PciStatus } from "@virtio/core/pci";
import { allOnes, type RegisterSpace } from "../registers.js";

/** What identifies a function. */
export interface PciIdentity {
  readonly vendor: number;
  readonly device: number;
  readonly revision: number;
  /** 24 bits: class, subclass, programming interface. */
  readonly classCode: number;
  readonly subsystemVendor: number;
  readonly subsystem: number;
  /** 1: INTA#; 0: none. */
  readonly interruptPin: number;
}

/** A base address register: what it decodes, a power of two long. */
export interface BarSpec {
  readonly index: number;
  readonly kind: "io" | "memory32" | "memory64";
  readonly space: RegisterSpace;
}

/** Fixed low bits of a base address register (PCI 3.0 §6.2.5.1). */
const barBits = { io: 1, memory32: 0, memory64: 4 } as const;

/** A capability: its id, its body after the two header bytes, and which of these bytes a driver may change. */
export interface CapabilitySpec {
  readonly id: PciCapability;
  readonly body: readonly number[];
  readonly writable?: readonly number[];
}

/** A capability and where it lies in configuration space. */
export interface PlacedCapability extends CapabilitySpec {
  readonly at: number;
}

const SIZE = 256;
const FIRST_CAPABILITY = 0x40;
const HEADER_SIZE = 2;

/** 32-bit value as four bytes, low first. */
export const le32 = (value: number): readonly number[] =>
  [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
/** 16-bit value as two bytes, low first. */
export const le16 = (value: number): readonly number[] => [value & 0xff, (value >>> 8) & 0xff];

/** Gives capabilities their places, one behind the other. @throws VirtioFault INVALID when they do not fit */
export function placeCapabilities(specs: readonly CapabilitySpec[]): readonly PlacedCapability[] {
  let at = FIRST_CAPABILITY;
  const placed = specs.map((spec) => {
    const here = at;
    at += Math.ceil((HEADER_SIZE + spec.body.length) / 4) * 4;
    return { ...spec, at: here };
  });
  if (at > SIZE)
    throw new VirtioFault("INVALID", `capabilities end at ${at} of ${SIZE} bytes of configuration`);
  return placed;
}

/** Configuration space of one function. */
export class PciConfiguration {
  readonly #bytes = new Uint8Array(SIZE);
  /** As at power-on. */
  readonly #initial: Uint8Array;
  readonly #mask = new Uint8Array(SIZE);
  readonly #bars: readonly BarSpec[];
  /** Called after a write, with the range it hit and what was written. */
  onWrite: ((offset: number, width: number, value: number) => void) | null = null;
  /** Called before a read, with the range it asks for. */
  onRead: ((offset: number, width: number) => void) | null = null;

  constructor(
    identity: PciIdentity,
    bars: readonly BarSpec[],
    capabilities: readonly PlacedCapability[],
  ) {
    this.#bars = bars;
    this.#put(PciRegister.VENDOR_ID, le16(identity.vendor));
    this.#put(PciRegister.DEVICE_ID, le16(identity.device));
    this.#put(
      PciRegister.COMMAND,
      [0, 0],
      le16(PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER | PciCommand.INTX_DISABLE),
    );
    this.#put(PciRegister.REVISION_ID, [identity.revision]);
    this.#put(PciRegister.CLASS_PROG, le32(identity.classCode).slice(0, 3));
    this.#put(PciRegister.SUBSYSTEM_VENDOR_ID, le16(identity.subsystemVendor));
    this.#put(PciRegister.SUBSYSTEM_ID, le16(identity.subsystem));
    this.#put(PciRegister.INTERRUPT_LINE, [0], [0xff]);
    this.#put(PciRegister.INTERRUPT_PIN, [identity.interruptPin]);
    for (const { index, kind, space } of bars) {
      const at = PciRegister.BAR0 + index * 4;
      // Bits below the length are fixed: that is how a driver sizes the BAR (PCI 3.0 §6.2.5.1).
      this.#put(at, le32(barBits[kind]), le32(-space.length));
      if (kind === "memory64") this.#put(at + 4, [0, 0, 0, 0], [0xff, 0xff, 0xff, 0xff]);
    }
    for (const [i, { id, at, body, writable = [] }] of capabilities.entries())
      this.#put(at, [id, capabilities[i + 1]?.at ?? 0, ...body], [0, 0, ...writable]);
    const [first] = capabilities;
    if (first !== undefined) {
      this.#put(PciRegister.CAPABILITIES, [first.at]);
      this.#put(PciRegister.STATUS, le16(PciStatus.CAPABILITIES));
    }
    this.#initial = this.#bytes.slice();
  }

  /** What a driver can change is as at power-on; where firmware routed the interrupt stays. */
  reset(): void {
    for (const [at, mask] of this.#mask.entries())
      if (mask !== 0 && at !== PciRegister.INTERRUPT_LINE) this.#bytes[at] = this.#initial[at] ?? 0;
  }

  #put(offset: number, values: readonly number[], mask: readonly number[] = []): void {
    this.#bytes.set(values, offset);
    this.#mask.set(mask, offset);
  }

  read(offset: number, width: 1 | 2 | 4): number {
    if (offset < 0 || offset % width !== 0 || offset + width > SIZE) return allOnes(width);
    this.onRead?.(offset, width);
    return this.peek(offset, width);
  }

  /** What a read would give, without what a read does. */
  peek(offset: number, width: 1 | 2 | 4): number {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + (this.#bytes[offset + i] ?? 0);
    return value;
  }

  write(offset: number, width: 1 | 2 | 4, value: number): void {
    if (offset < 0 || offset % width !== 0 || offset + width > SIZE) return;
    for (let i = 0; i < width; i++) {
      const mask = this.#mask[offset + i] ?? 0;
      const byte = (value >>> (8 * i)) & 0xff;
      this.#bytes[offset + i] = ((this.#bytes[offset + i] ?? 0) & ~mask) | (byte & mask);
    }
    this.onWrite?.(offset, width, value);
  }

  /** Whether a driver may change the byte at `offset`. */
  writable(offset: number): boolean {
    return (this.#mask[offset] ?? 0) !== 0;
  }

  /** Sets what a driver cannot change: status bits. */
  set(offset: number, width: 1 | 2 | 4, value: number): void {
    this.#bytes.set(le32(value).slice(0, width), offset);
  }

  get command(): number {
    return this.peek(PciRegister.COMMAND, 2);
  }

  /** BAR `index`, if there is one and it was placed. */
  bar(index: number): BarSpec | null {
    const spec = this.#bars.find((bar) => bar.index === index);
    if (spec === undefined) return null;
    const register = PciRegister.BAR0 + index * 4;
    const placed =
      (this.peek(register, 4) & ~(spec.kind === "io" ? 3 : 15)) !== 0 ||
      (spec.kind === "memory64" && this.peek(register + 4, 4) !== 0);
    return placed ? spec : null;
  }
}

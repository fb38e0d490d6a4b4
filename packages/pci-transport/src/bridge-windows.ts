// Windows of a PCI-to-PCI bridge: the addresses that it passes on to the bus behind it (PCI-to-PCI Bridge 1.2 §3.2.5).
import type { AddressRange, PciFunction } from "@virtio/core";
import { PciBridgeRegister } from "@virtio/core/pci";
import { field, type WindowKind } from "./pci-header.js";

/** Base and limit of one window. The low four bits of both say whether they have upper halves. */
interface WindowRegisters {
  readonly base: number;
  readonly limit: number;
  readonly width: 1 | 2;
  /** Bytes: base and limit count these. */
  readonly granule: number;
  /** Upper halves of base and limit, where the window may have them. */
  readonly upper: readonly [base: number, limit: number, width: 2 | 4] | null;
}

const registers: Readonly<Record<WindowKind, WindowRegisters>> = {
  io: {
    base: PciBridgeRegister.IO_BASE,
    limit: PciBridgeRegister.IO_LIMIT,
    width: 1,
    granule: 0x1000,
    upper: [PciBridgeRegister.IO_BASE_UPPER, PciBridgeRegister.IO_LIMIT_UPPER, 2],
  },
  memory: {
    base: PciBridgeRegister.MEMORY_BASE,
    limit: PciBridgeRegister.MEMORY_LIMIT,
    width: 2,
    granule: 0x10_0000,
    upper: null,
  },
  prefetchable: {
    base: PciBridgeRegister.PREFETCHABLE_BASE,
    limit: PciBridgeRegister.PREFETCHABLE_LIMIT,
    width: 2,
    granule: 0x10_0000,
    upper: [
      PciBridgeRegister.PREFETCHABLE_BASE_UPPER,
      PciBridgeRegister.PREFETCHABLE_LIMIT_UPPER,
      4,
    ],
  },
};

/** The low bits of base and limit, which a driver cannot change: 1 when they have upper halves. */
const TYPE = 0xf;

/** One write to configuration space. */
export type ConfigWrite = readonly [offset: number, width: 1 | 2 | 4, value: number];

/** Bytes that windows of this kind come in, and are aligned to. */
export function granuleOf(kind: WindowKind): number {
  return registers[kind].granule;
}

/** First and last granule: the window is closed when the first is past the last. */
function granules(bytes: Uint8Array, kind: WindowKind): readonly [first: number, last: number] {
  const { base, limit, width, upper } = registers[kind];
  const half = 2 ** (8 * width - 4);
  const granule = (at: number, upperAt: number | undefined): number => {
    const value = field(bytes, at, width);
    const high =
      upper !== null && upperAt !== undefined && (value & TYPE) === 1
        ? field(bytes, upperAt, upper[2])
        : 0;
    return high * half + (value >>> 4);
  };
  return [granule(base, upper?.[0]), granule(limit, upper?.[1])];
}

/** What the window passes on; null when it is closed. One at 0 is what a bridge without firmware shows: it counts as closed. */
export function windowOf(bytes: Uint8Array, kind: WindowKind): AddressRange | null {
  const [first, last] = granules(bytes, kind);
  if (first === 0 || first > last) return null;
  const { granule } = registers[kind];
  return { base: first * granule, length: (last - first + 1) * granule };
}

/** Whether nothing passes, not even at 0. */
export function isShut(bytes: Uint8Array, kind: WindowKind): boolean {
  const [first, last] = granules(bytes, kind);
  return first > last;
}

/**
 * Writes that open the window below 4 GiB, or close it: upper halves first, then base and limit in one, so that it never passes
 * what it should not.
 */
export function windowWrites(
  bytes: Uint8Array,
  kind: WindowKind,
  window: AddressRange | null,
): readonly ConfigWrite[] {
  const { base, limit, width, granule, upper } = registers[kind];
  const half = 2 ** (8 * width - 4);
  const [first, last] =
    window === null
      ? [half - 1, 0]
      : [window.base / granule, (window.base + window.length) / granule - 1];
  const low = (at: number, value: number): number =>
    (value % half) * 16 + (field(bytes, at, width) & TYPE);
  const high = (value: number): number => Math.floor(value / half);
  const has = upper !== null && (field(bytes, base, width) & TYPE) === 1;
  return [
    ...(has
      ? ([
          [upper[1], upper[2], high(last)],
          [upper[0], upper[2], high(first)],
        ] as const)
      : []),
    [base, width === 1 ? 2 : 4, low(base, first) + low(limit, last) * 2 ** (8 * width)],
  ];
}

/**
 * Which windows a bridge has: the one for memory always, the others when their registers are not tied to 0. Its accesses are made
 * at once; the bridge must not decode meanwhile.
 */
export async function findWindows(fn: PciFunction, bytes: Uint8Array): Promise<WindowKind[]> {
  const optional = await Promise.all(
    (["io", "prefetchable"] as const).map(async (kind) => {
      const { base, limit, width } = registers[kind];
      const pair = width === 1 ? 2 : 4;
      if (field(bytes, base, width) !== 0 || field(bytes, limit, width) !== 0) return [kind];
      const ones = 2 ** (8 * width) - 16;
      // The limit stays 0, so that it is shut while the base is not.
      const [, seen] = await Promise.all([
        fn.write(base, pair, ones),
        fn.read(base, width),
        fn.write(base, pair, 0),
      ]);
      return seen === 0 ? [] : [kind];
    }),
  );
  return ["memory", ...optional.flat()];
}

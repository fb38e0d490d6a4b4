// How long a function's BARs are (PCI 3.0 §6.2.5.1): write ones, read back which stick.
import type { PciFunction } from "@virtio/core";
import { PciCommand, PciRegister } from "@virtio/core/pci";
import { findWindows } from "./bridge-windows.js";
import { type Bar, field, HeaderLayout, layoutOf, type PciHeader } from "./pci-header.js";

/** BARs by header layout; none in others. */
const bars: Readonly<Record<number, number>> = {
  [HeaderLayout.FUNCTION]: 6,
  [HeaderLayout.BRIDGE]: 2,
};

/** Type bits of a memory BAR that takes 64 bits; 0 takes 32, the other two are reserved. */
const WIDE = 4;
const TYPE = 6;
const PREFETCHABLE = 8;

/**
 * Sizes the BARs of a function and finds the windows of a bridge, in one round trip. The function decodes nothing meanwhile: never do
 * this to one at work.
 */
export async function sizeFunction(fn: PciFunction, bytes: Uint8Array): Promise<PciHeader> {
  const count = bars[layoutOf(bytes)] ?? 0;
  const unsized = { function: fn, bytes, bars: [], windows: [], unplaced: null };
  if (count === 0) return unsized;
  const command = field(bytes, PciRegister.COMMAND, 2);
  const quiet = fn.write(PciRegister.COMMAND, 2, command & ~(PciCommand.IO | PciCommand.MEMORY));
  const reads = Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const register = PciRegister.BAR0 + index * 4;
      const [, mask] = await Promise.all([
        fn.write(register, 4, 0xffff_ffff),
        fn.read(register, 4),
        fn.write(register, 4, field(bytes, register, 4)),
      ]);
      return mask;
    }),
  );
  const windows =
    layoutOf(bytes) === HeaderLayout.BRIDGE ? findWindows(fn, bytes) : Promise.resolve([]);
  const restored = fn.write(PciRegister.COMMAND, 2, command);
  const [masks, found] = await Promise.all([reads, windows, quiet, restored]);
  return { ...unsized, bars: decode(bytes, masks), windows: found };
}

function decode(bytes: Uint8Array, masks: readonly number[]): readonly Bar[] {
  const decoded: Bar[] = [];
  for (let index = 0; index < masks.length; index++) {
    const mask = masks[index] ?? 0;
    const low = field(bytes, PciRegister.BAR0 + index * 4, 4);
    if ((mask & 1) !== 0) {
      // A port address has 16 bits, and the upper ones may be tied to 0.
      const length = lengthOf((mask & ~3) >>> 0, 16);
      const address = placed((low & ~3) >>> 0, length);
      decoded.push({ index, kind: "io", wide: false, prefetchable: false, length, address });
      continue;
    }
    const type = mask & TYPE;
    const upper = type === WIDE ? masks[index + 1] : undefined;
    const wide = upper !== undefined;
    // A type that is reserved, and 64 bits in the last register, are no BAR.
    const bits = wide || type === 0 ? (mask & ~15) >>> 0 : 0;
    // With no bit in the low half it is 4 GiB or more.
    const length = bits === 0 ? 2 ** 32 * lengthOf(upper ?? 0, 32) : lengthOf(bits, 32);
    const high = wide ? field(bytes, PciRegister.BAR0 + index * 4 + 4, 4) : 0;
    const address = placed(high * 2 ** 32 + ((low & ~15) >>> 0), length);
    decoded.push({
      index,
      kind: "memory",
      wide,
      prefetchable: (mask & PREFETCHABLE) !== 0,
      length,
      address,
    });
    if (wide) index += 1;
  }
  return decoded;
}

/** The lowest bit that sticks, when all above it up to `width` bits do too; 0 when nothing sticks, or with holes: then it is no BAR. */
function lengthOf(mask: number, width: 16 | 32): number {
  if (mask === 0) return 0;
  const lowest = (mask & -mask) >>> 0;
  const whole = lowest >= 2 ** width || (mask % 2 ** width) + lowest === 2 ** width;
  return whole ? lowest : 0;
}

/** The address that firmware gave; 0 when it is no place for this length. */
function placed(address: number, length: number): number {
  return length !== 0 && address % length === 0 && Number.isSafeInteger(address + length)
    ? address
    : 0;
}

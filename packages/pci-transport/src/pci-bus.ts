// What a PCI bus driver does before any device driver: read configuration headers, size BARs, place those that no firmware placed.
import { type AddressRange, type PciBus, type PciFunction, VirtioFault } from "@virtio/core";
import { PciCommand, PciRegister } from "@virtio/core/pci";

/** A base address register of one function. */
interface Bar {
  readonly index: number;
  readonly kind: "memory" | "io";
  readonly wide: boolean;
  /** Bytes; 0: not implemented. */
  readonly length: number;
  /** 0: not placed. */
  readonly address: number;
}

/** A function, its first 256 bytes of configuration space as they were read, and its BARs. */
export interface PciHeader {
  readonly function: PciFunction;
  readonly bytes: Uint8Array;
  readonly bars: readonly Bar[];
}

const CONFIG_SPACE_SIZE = 256;
const BARS = 6;

/** A little-endian field of the header. */
export function field(bytes: Uint8Array, offset: number, width: 1 | 2 | 4): number {
  let value = 0;
  for (let i = width - 1; i >= 0; i--) value = value * 256 + (bytes[offset + i] ?? 0);
  return value;
}

/** Every function on the bus, in bus order, BARs sized and as they are placed. Two round trips for all of them. */
export async function readHeaders(bus: PciBus): Promise<readonly PciHeader[]> {
  return Promise.all((await bus.functions()).map(readHeader));
}

async function readHeader(fn: PciFunction): Promise<PciHeader> {
  const words = await Promise.all(
    Array.from({ length: CONFIG_SPACE_SIZE / 4 }, (_, i) => fn.read(i * 4, 4)),
  );
  const bytes = new Uint8Array(new Uint32Array(words).buffer);
  const bridge = (field(bytes, PciRegister.HEADER_TYPE, 1) & 0x7f) !== 0;
  return { function: fn, bytes, bars: bridge ? [] : await sizeBars(fn, bytes) };
}

/** Writes ones and reads back what stuck, while the function decodes nothing (PCI 3.0 §6.2.5.1). */
async function sizeBars(fn: PciFunction, bytes: Uint8Array): Promise<Bar[]> {
  const command = field(bytes, PciRegister.COMMAND, 2);
  const offset = (index: number): number => PciRegister.BAR0 + index * 4;
  const decoding = PciCommand.IO | PciCommand.MEMORY;
  const accesses: Promise<unknown>[] = [fn.write(PciRegister.COMMAND, 2, command & ~decoding)];
  const masks = Array.from({ length: BARS }, (_, index) => {
    accesses.push(fn.write(offset(index), 4, 0xffff_ffff));
    const mask = fn.read(offset(index), 4);
    accesses.push(mask, fn.write(offset(index), 4, field(bytes, offset(index), 4)));
    return mask;
  });
  accesses.push(fn.write(PciRegister.COMMAND, 2, command));
  await Promise.all(accesses);

  const bars: Bar[] = [];
  for (let index = 0; index < BARS; index++) {
    const mask = (await masks[index]) ?? 0;
    const low = field(bytes, offset(index), 4);
    if ((mask & 1) !== 0) {
      const bits = mask & 0xfffc;
      bars.push({
        index,
        kind: "io",
        wide: false,
        length: bits === 0 ? 0 : (~bits & 0xffff) + 1,
        address: (low & ~3) >>> 0,
      });
      continue;
    }
    const wide = (mask & 6) === 4 && index + 1 < BARS;
    const sizeMask = (mask & ~15) >>> 0;
    // A wide BAR of 4 GiB or more has no low bits: it counts as not implemented, and so does not fit our windows.
    const length = sizeMask === 0 ? 0 : (~sizeMask >>> 0) + 1;
    const high = wide ? field(bytes, offset(index + 1), 4) : 0;
    bars.push({
      index,
      kind: "memory",
      wide,
      length,
      address: high * 0x1_0000_0000 + ((low & ~15) >>> 0),
    });
    if (wide) index += 1;
  }
  return bars;
}

/**
 * Places the BARs of one function that are not placed, clear of every BAR on the bus, and lets the function decode them and
 * master the bus.
 * @throws VirtioFault NO_SPACE when a window is full
 */
export async function placeBars(
  bus: PciBus,
  headers: readonly PciHeader[],
  header: PciHeader,
): Promise<PciHeader> {
  const taken: AddressRange[] = [];
  for (const { bars } of headers)
    for (const { address, length } of bars)
      if (address !== 0 && length !== 0) taken.push({ base: address, length });
  const { function: fn, bytes } = header;
  const accesses: Promise<void>[] = [];
  const bars = header.bars.map((bar) => {
    if (bar.length === 0 || bar.address !== 0) return bar;
    const address = place(bus.windows[bar.kind], bar.length, taken);
    taken.push({ base: address, length: bar.length });
    const register = PciRegister.BAR0 + bar.index * 4;
    accesses.push(fn.write(register, 4, address));
    if (bar.wide) accesses.push(fn.write(register + 4, 4, 0));
    return { ...bar, address };
  });
  let command = field(bytes, PciRegister.COMMAND, 2) | PciCommand.BUS_MASTER;
  if (bars.some((bar) => bar.kind === "memory" && bar.length > 0)) command |= PciCommand.MEMORY;
  if (bars.some((bar) => bar.kind === "io" && bar.length > 0)) command |= PciCommand.IO;
  accesses.push(fn.write(PciRegister.COMMAND, 2, command));
  await Promise.all(accesses);
  return { function: fn, bytes, bars };
}

/** The first naturally aligned place in the window that overlaps nothing. */
function place(window: AddressRange, length: number, taken: readonly AddressRange[]): number {
  const align = (address: number): number => Math.ceil(address / length) * length;
  let address = align(window.base);
  // Each round moves past one taken range: it ends.
  for (;;) {
    if (address + length > window.base + window.length)
      throw new VirtioFault(
        "NO_SPACE",
        `no ${length} bytes of PCI address space left at 0x${window.base.toString(16)}`,
      );
    const clash = taken.find(
      (range) => address < range.base + range.length && range.base < address + length,
    );
    if (clash === undefined) return address;
    address = align(clash.base + clash.length);
  }
}

// What a PCI bus driver does before any device driver: read configuration headers, size BARs, place those that no firmware placed.
import { type PciBus, type PciFunction, VirtioFault } from "@virtio/core";
import { PciBridgeRegister, PciCommand, PciRegister, VIRTIO_VENDOR_ID } from "@virtio/core/pci";
import { BarPlacement } from "./bar-placement.js";
import { sizeFunction } from "./bar-sizing.js";
import { type ConfigWrite, isShut, windowOf, windowWrites } from "./bridge-windows.js";
import { fetchCapabilities } from "./capabilities.js";
import { type Bar, field, type PciHeader, put } from "./pci-header.js";

export { field, type PciHeader } from "./pci-header.js";

const CONFIG_SPACE_SIZE = 256;
const HEADER_SIZE = 64;
/** Vendor id where there is no function (PCI 3.0 §6.1). */
const ABSENT = 0xffff;

/**
 * Functions that were sized, as they are now. A machine gives the same object for a function as long as it stays, so one at work is
 * never sized again.
 */
const known = new WeakMap<PciFunction, PciHeader>();

/**
 * Every function on the bus, in bus order, BARs sized and as they are placed. Three round trips for all that are new, where they are
 * virtio's two more than there are capabilities, and one for the bus numbers of bridges that are known; others that are known are not
 * touched.
 * @throws VirtioFault CLOSED
 */
export async function readHeaders(bus: PciBus): Promise<readonly PciHeader[]> {
  const functions = await bus.functions();
  const headers = await Promise.allSettled(functions.map(readHeader));
  const failed = headers.find((header) => header.status === "rejected");
  if (failed !== undefined) {
    // Taken out meanwhile: it is no longer there. Else it is a fault of the machine's.
    const still = new Set(await bus.functions());
    if (functions.some((fn, i) => headers[i]?.status === "rejected" && still.has(fn)))
      throw failed.reason;
  }
  return headers.flatMap((header) =>
    header.status === "fulfilled" && header.value !== null ? [header.value] : [],
  );
}

/** Null: there is none. */
async function readHeader(fn: PciFunction): Promise<PciHeader | null> {
  const before = known.get(fn);
  const still = before === undefined ? null : await asKnown(fn, before);
  if (still !== null) return still;
  const bytes = new Uint8Array(CONFIG_SPACE_SIZE);
  await Promise.all(
    Array.from({ length: HEADER_SIZE / 4 }, async (_, i) =>
      put(bytes, i * 4, 4, await fn.read(i * 4, 4)),
    ),
  );
  const vendor = field(bytes, PciRegister.VENDOR_ID, 2);
  if (vendor === ABSENT) return null;
  // Two probes at once: the second must not size what the first is about to place.
  const meanwhile = known.get(fn);
  if (meanwhile !== undefined) return meanwhile;
  const [sized] = await Promise.all([
    sizeFunction(fn, bytes),
    vendor === VIRTIO_VENDOR_ID ? fetchCapabilities(fn, bytes) : null,
  ]);
  // One that left meanwhile read as ones from some point on.
  if ((await fn.read(PciRegister.VENDOR_ID, 2)) !== vendor) return null;
  return known.get(fn) ?? remember(sized);
}

/** What a function forgets when its machine is reset: what it decodes goes with the BARs. */
const KEPT = PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER;

/**
 * A known function as it is now, or null when it was reset meanwhile and is to be looked at anew. Bus numbers are the machine's to
 * give, and it may give them late.
 */
async function asKnown(fn: PciFunction, before: PciHeader): Promise<PciHeader | null> {
  const [command, numbers] = await Promise.all([
    fn.read(PciRegister.COMMAND, 2),
    fn.read(PciBridgeRegister.PRIMARY_BUS, 4),
  ]);
  const header = known.get(fn);
  if (header === before && ((command ^ field(before.bytes, PciRegister.COMMAND, 2)) & KEPT) !== 0) {
    known.delete(fn);
    return null;
  }
  const now = header ?? before;
  if (now.windows.length === 0) return now;
  return remember(written(now, [[PciBridgeRegister.PRIMARY_BUS, 4, numbers]]));
}

function remember(header: PciHeader): PciHeader {
  known.set(header.function, header);
  return header;
}

/** The header after writes to it. */
function written(header: PciHeader, writes: readonly ConfigWrite[]): PciHeader {
  const bytes = header.bytes.slice();
  for (const [offset, width, value] of writes) put(bytes, offset, width, value);
  return { ...header, bytes };
}

const decodeBit = { io: PciCommand.IO, memory: PciCommand.MEMORY } as const;
const SPACES = ["io", "memory"] as const;

/**
 * Places the BARs of one function that are not placed, clear of every BAR and window on the bus, in windows of the bridges that lead
 * to it; then lets the bridges and the function decode, and master the bus. When the BARs of one space, ports or memory, do not all
 * find a place, none of them gets one and that space is not decoded: its BARs have the address 0, and `unplaced` says why.
 *
 * One round trip, and none when there is nothing to do. What it takes is taken when it returns its promise, so it may be called for
 * many functions in one turn; of `headers` only which functions there are counts.
 * @throws VirtioFault CLOSED
 */
export async function placeBars(
  bus: PciBus,
  headers: readonly PciHeader[],
  header: PciHeader,
): Promise<PciHeader> {
  const current = (each: PciHeader): PciHeader => known.get(each.function) ?? each;
  const placement = new BarPlacement(bus.windows, headers.map(current));
  const target = current(header);
  const faults: VirtioFault[] = [];
  const attempt = <T>(work: () => T): T | null => {
    try {
      return work();
    } catch (fault) {
      if (!(fault instanceof VirtioFault)) throw fault;
      faults.push(fault);
      return null;
    }
  };
  const path = attempt(() => placement.pathTo(target));
  // What cannot be reached is left alone.
  if (path === null) return remember(settled(target, target.bars, [], faults));
  for (const space of SPACES) attempt(() => placement.place(space, target, path));
  const changes = [...path, target].map((each) => [each, writesFor(each, placement)] as const);
  for (const [each, writes] of changes)
    remember(settled(each, placement.barsOf(each), writes, each === target ? faults : []));
  try {
    await Promise.all(
      changes.flatMap(([{ function: fn }, writes]) =>
        writes.map(([offset, width, value]) => fn.write(offset, width, value)),
      ),
    );
  } catch (fault) {
    // Who knows what arrived: look again.
    for (const [{ function: fn }] of changes) known.delete(fn);
    throw fault;
  }
  return current(target);
}

/** The header of a function once `writes` are done; what it does not decode is not placed. */
function settled(
  header: PciHeader,
  bars: readonly Bar[],
  writes: readonly ConfigWrite[],
  faults: readonly VirtioFault[],
): PciHeader {
  const { bytes } = written(header, writes);
  const command = field(bytes, PciRegister.COMMAND, 2);
  const decoded = bars.map((bar) =>
    (command & decodeBit[bar.kind]) === 0 ? { ...bar, address: 0 } : bar,
  );
  return { ...header, bytes, bars: decoded, unplaced: faults[0] ?? null };
}

/** What to write to a function, in order: its windows and BARs, then that it decodes them, and that it masters the bus last. */
function writesFor(header: PciHeader, placement: BarPlacement): readonly ConfigWrite[] {
  const { bytes, windows } = header;
  const bars = placement.barsOf(header).filter(({ length }) => length > 0);
  const moved = bars.filter((bar) => !header.bars.includes(bar));
  const command = field(bytes, PciRegister.COMMAND, 2);
  // What is decoded already must not be while it moves.
  const quiet = moved.reduce((bits, { kind }) => bits & ~decodeBit[kind], command);
  const writes: ConfigWrite[] = quiet === command ? [] : [[PciRegister.COMMAND, 2, quiet]];

  const passed = new Set<Bar["kind"]>();
  for (const kind of windows) {
    const window = placement.windowOf(header, kind);
    const before = windowOf(bytes, kind);
    if (window !== null) passed.add(kind === "io" ? "io" : "memory");
    const same = window?.base === before?.base && window?.length === before?.length;
    // A bridge without firmware may show windows at 0: they are shut before it decodes.
    if (!same || (window === null && !isShut(bytes, kind)))
      writes.push(...windowWrites(bytes, kind, window));
  }
  for (const { index, wide, address } of moved) {
    const register = PciRegister.BAR0 + index * 4;
    writes.push([register, 4, address]);
    if (wide) writes.push([register + 4, 4, 0]);
  }

  let decoding = command;
  for (const space of SPACES) {
    const own = bars.filter(({ kind }) => kind === space);
    if ((own.length > 0 || passed.has(space)) && own.every(({ address }) => address !== 0))
      decoding |= decodeBit[space];
  }
  if (decoding !== quiet) writes.push([PciRegister.COMMAND, 2, decoding]);
  const mastering = decoding | PciCommand.BUS_MASTER;
  if (mastering !== decoding) writes.push([PciRegister.COMMAND, 2, mastering]);
  return writes;
}

// Where BARs go, and which windows bridges open for them: decided for one function at a time, before anything is written.
import { type AddressRange, type PciBus, type PciFunction, VirtioFault } from "@virtio/core";
import { PciBridgeRegister } from "@virtio/core/pci";
import { granuleOf, windowOf } from "./bridge-windows.js";
import { type Bar, field, nameOf, type PciHeader, type WindowKind } from "./pci-header.js";

/** Bytes of a window when it is opened, if there is room: what is plugged in later finds place. */
const ROOM: Readonly<Record<WindowKind, number>> = {
  io: 0x1000,
  memory: 0x20_0000,
  prefetchable: 0x20_0000,
};

/** What is to be placed: bytes, and what its address is a multiple of. */
interface Extent {
  readonly length: number;
  readonly align: number;
}

const KINDS = ["io", "memory", "prefetchable"] as const;

const roundUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit;
const endOf = ({ base, length }: AddressRange): number => base + length;
const spaceOf = (kind: WindowKind): Bar["kind"] => (kind === "io" ? "io" : "memory");

/** The addresses of one root, as they are and as they will be. */
export class BarPlacement {
  readonly #root: PciBus["windows"];
  readonly #headers: readonly PciHeader[];
  readonly #bars = new Map<PciFunction, readonly Bar[]>();
  readonly #windows = new Map<PciFunction, Map<WindowKind, AddressRange>>();

  constructor(root: PciBus["windows"], headers: readonly PciHeader[]) {
    // What we place has a 32-bit address, of ports a 16-bit one.
    const below = ({ base, length }: AddressRange, end: number): AddressRange => ({
      base,
      length: Math.min(base + length, end) - base,
    });
    this.#root = { memory: below(root.memory, 2 ** 32), io: below(root.io, 2 ** 16) };
    this.#headers = headers;
    for (const header of headers) {
      this.#bars.set(header.function, header.bars);
      const open = new Map<WindowKind, AddressRange>();
      for (const kind of header.windows) {
        const window = windowOf(header.bytes, kind);
        if (window !== null) open.set(kind, window);
      }
      this.#windows.set(header.function, open);
    }
  }

  barsOf(header: PciHeader): readonly Bar[] {
    return this.#bars.get(header.function) ?? header.bars;
  }

  windowOf(header: PciHeader, kind: WindowKind): AddressRange | null {
    return this.#windows.get(header.function)?.get(kind) ?? null;
  }

  /**
   * The bridges between the root and a function, outermost first. A bridge leads to a bus of a higher number than the one it is on,
   * so there is no loop.
   * @throws VirtioFault NOT_FOUND (no bridge leads there), DEVICE_MISBEHAVED (several say they do)
   */
  pathTo(header: PciHeader): readonly PciHeader[] {
    const root = Math.min(...this.#headers.map((each) => each.function.address.bus));
    const path: PciHeader[] = [];
    let { bus } = header.function.address;
    while (bus > root) {
      const [bridge, other] = this.#headers.filter(
        ({ function: fn, bytes, windows }) =>
          windows.length > 0 &&
          fn.address.bus < bus &&
          field(bytes, PciBridgeRegister.SECONDARY_BUS, 1) === bus,
      );
      if (bridge === undefined)
        throw new VirtioFault("NOT_FOUND", `no bridge leads to bus ${bus}`, {
          device: nameOf(header.function),
        });
      if (other !== undefined)
        throw new VirtioFault(
          "DEVICE_MISBEHAVED",
          `device misbehaved: ${nameOf(bridge.function)} and ${nameOf(other.function)} both lead to bus ${bus}`,
          { device: nameOf(header.function) },
        );
      path.unshift(bridge);
      bus = bridge.function.address.bus;
    }
    return path;
  }

  /**
   * Places the BARs of one space that a function and the bridges on the way to it have and that are not placed: all, or when they do not
   * fit none.
   * @throws VirtioFault NO_SPACE
   */
  place(space: Bar["kind"], header: PciHeader, path: readonly PciHeader[]): void {
    const bars = new Map(this.#bars);
    const windows = [...this.#windows].map(([fn, open]) => [fn, new Map(open)] as const);
    try {
      for (const [i, bridge] of path.entries()) this.#place(space, bridge, path.slice(0, i));
      this.#place(space, header, path);
    } catch (fault) {
      for (const [fn, before] of bars) this.#bars.set(fn, before);
      for (const [fn, before] of windows) this.#windows.set(fn, before);
      throw fault;
    }
  }

  #place(space: Bar["kind"], header: PciHeader, path: readonly PciHeader[]): void {
    const bars = [...this.barsOf(header)];
    for (const kind of KINDS.filter((each) => spaceOf(each) === space)) {
      const homeless = bars.filter(
        (bar) => bar.length > 0 && bar.address === 0 && kindOf(bar, path) === kind,
      );
      for (const [i, bar] of homeless.entries()) {
        const all = together(homeless.slice(i));
        const claim = (through: WindowKind): number | null =>
          this.#claim(through, { length: bar.length, align: bar.length }, all, path);
        // What may be prefetched need not be.
        const address = claim(kind) ?? (kind === "prefetchable" ? claim("memory") : null);
        if (address === null)
          throw new VirtioFault(
            "NO_SPACE",
            `no ${space === "io" ? "I/O ports" : "memory addresses"} left for BAR ${bar.index}, ${bar.length} bytes`,
            { device: nameOf(header.function) },
          );
        bars[bars.indexOf(bar)] = { ...bar, address };
        this.#bars.set(header.function, [...bars]);
      }
    }
  }

  /**
   * A free place behind `path`, through its windows of one kind: these are opened, so that `all` fits in, and extended as need be. Null,
   * and nothing changed, when there is none.
   */
  #claim(kind: WindowKind, wanted: Extent, all: Extent, path: readonly PciHeader[]): number | null {
    const bridge = path.at(-1);
    if (bridge !== undefined && this.windowOf(bridge, kind) === null)
      return this.#open(kind, all, bridge, path.slice(0, -1));
    const windows = path.map((each) => this.windowOf(each, kind));
    // A bridge on the way is shut though one behind it is open: that was firmware, and cannot be mended here.
    if (windows.includes(null)) return null;
    const open = windows.filter((window) => window !== null);
    const root = this.#root[spaceOf(kind)];
    const taken = this.#taken(kind, path);
    const from = Math.max(root.base, ...open.map(({ base }) => base));
    const address = firstFree(from, endOf(root), wanted, taken);
    if (address === null) return null;
    const end = roundUp(address + wanted.length, bridge === undefined ? 1 : granuleOf(kind));
    // An open window grows at its end only.
    const short = path.filter((_, i) => endOf(open[i] ?? root) < end);
    const grows = short.map((each) => ({ each, window: this.windowOf(each, kind) ?? root }));
    for (const { window } of grows) {
      const added = { base: endOf(window), length: end - endOf(window) };
      const outside = added.base < root.base || end > endOf(root);
      if (outside || taken.some((range) => overlap(range, added))) return null;
    }
    for (const { each, window } of grows)
      this.#setWindow(each, kind, { base: window.base, length: end - window.base });
    return address;
  }

  /** Opens a window, and gives its base. */
  #open(
    kind: WindowKind,
    all: Extent,
    bridge: PciHeader,
    above: readonly PciHeader[],
  ): number | null {
    if (!bridge.windows.includes(kind)) return null;
    const granule = granuleOf(kind);
    const needed = roundUp(all.length, granule);
    for (const length of [Math.max(needed, ROOM[kind]), needed]) {
      const wanted = { length, align: Math.max(all.align, granule) };
      const base = this.#claim(kind, wanted, wanted, above);
      if (base === null) continue;
      this.#setWindow(bridge, kind, { base, length });
      return base;
    }
    return null;
  }

  #setWindow(bridge: PciHeader, kind: WindowKind, window: AddressRange): void {
    this.#windows.get(bridge.function)?.set(kind, window);
  }

  /** What lies in the space of these windows, but for the windows themselves. */
  #taken(kind: WindowKind, path: readonly PciHeader[]): readonly AddressRange[] {
    const taken: AddressRange[] = [];
    const space = spaceOf(kind);
    for (const header of this.#headers) {
      for (const bar of this.barsOf(header))
        if (bar.kind === space && bar.address !== 0 && bar.length !== 0)
          taken.push({ base: bar.address, length: bar.length });
      for (const [other, window] of this.#windows.get(header.function) ?? []) {
        const passes = other === kind && path.includes(header);
        if (spaceOf(other) === space && !passes) taken.push(window);
      }
    }
    return taken;
  }
}

/** BARs one after the other, each aligned to its length. */
function together(bars: readonly Bar[]): Extent {
  return bars.reduce(
    (all, { length }) => ({
      length: roundUp(all.length, length) + length,
      align: Math.max(all.align, length),
    }),
    { length: 0, align: 1 },
  );
}

/** The windows that a BAR goes through. */
function kindOf(bar: Bar, path: readonly PciHeader[]): WindowKind {
  if (bar.kind === "io") return "io";
  const all = path.every(({ windows }) => windows.includes("prefetchable"));
  return bar.prefetchable && path.length > 0 && all ? "prefetchable" : "memory";
}

const overlap = (a: AddressRange, b: AddressRange): boolean =>
  a.base < endOf(b) && b.base < endOf(a);

/** The first place from `from` up to `end` that overlaps nothing; never 0, which means none. */
function firstFree(
  from: number,
  end: number,
  { length, align }: Extent,
  taken: readonly AddressRange[],
): number | null {
  let address = roundUp(Math.max(from, 1), align);
  // Each round moves past one taken range: it ends.
  while (address + length <= end) {
    const place = { base: address, length };
    const clash = taken.find((range) => overlap(range, place));
    if (clash === undefined) return address;
    address = roundUp(endOf(clash), align);
  }
  return null;
}

import { type AddressRange, VirtioFault } from "@virtio/core";
import { PciBridgeRegister, PciCommand, PciRegister } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import { type PciHeader, placeBars, readHeaders } from "../src/pci-bus.js";
import { type FakeAccess, FakeBus, FakeFunction, type FakeSpec } from "./fake-pci.js";

const IO = 1;
const WIDE = 4;
const PREFETCHABLE = 8;
const MiB = 2 ** 20;
const GiB = 2 ** 30;

/** The header of one function, placed as probe does it. */
const place = async (bus: FakeBus, fn: FakeFunction): Promise<PciHeader> => {
  const headers = await readHeaders(bus);
  const header = headers.find((each) => each.function === fn);
  if (header === undefined) throw new Error("not found");
  return placeBars(bus, headers, header);
};

/** Every access from now on. */
const record = (functions: readonly FakeFunction[]): FakeAccess[] => {
  const accesses: FakeAccess[] = [];
  for (const fn of functions) fn.onAccess = (access) => void accesses.push(access);
  return accesses;
};

const writes = (accesses: readonly FakeAccess[]): FakeAccess[] =>
  accesses.filter(({ write }) => write);

const bar = (fn: FakeFunction, index: number): number => fn.get(PciRegister.BAR0 + 4 * index, 4);
const command = (fn: FakeFunction): number => fn.get(PciRegister.COMMAND, 2);

/** What the registers of a bridge pass on, by the bridge specification's rules. */
const passes = (fn: FakeFunction, kind: "io" | "memory" | "prefetchable"): AddressRange | null => {
  const { bridge } = fn.spec;
  if (bridge === undefined || (kind !== "memory" && bridge[kind] === undefined)) return null;
  const [baseAt, limitAt, width, unit] = {
    io: [PciBridgeRegister.IO_BASE, PciBridgeRegister.IO_LIMIT, 1, 0x1000],
    memory: [PciBridgeRegister.MEMORY_BASE, PciBridgeRegister.MEMORY_LIMIT, 2, MiB],
    prefetchable: [
      PciBridgeRegister.PREFETCHABLE_BASE,
      PciBridgeRegister.PREFETCHABLE_LIMIT,
      2,
      MiB,
    ],
  }[kind] as [number, number, 1 | 2, number];
  const high = (at: PciBridgeRegister, size: 2 | 4): number => fn.get(at, size);
  const upper =
    kind === "memory" || bridge[kind] !== 1
      ? [0, 0]
      : kind === "io"
        ? [
            high(PciBridgeRegister.IO_BASE_UPPER, 2) * 0x1_0000,
            high(PciBridgeRegister.IO_LIMIT_UPPER, 2) * 0x1_0000,
          ]
        : [
            high(PciBridgeRegister.PREFETCHABLE_BASE_UPPER, 4) * 2 ** 32,
            high(PciBridgeRegister.PREFETCHABLE_LIMIT_UPPER, 4) * 2 ** 32,
          ];
  const base = (fn.get(baseAt, width) >> 4) * unit + (upper[0] ?? 0);
  const end = ((fn.get(limitAt, width) >> 4) + 1) * unit + (upper[1] ?? 0);
  return base < end ? { base, length: end - base } : null;
};

const inside = (range: AddressRange, window: AddressRange): boolean =>
  range.base >= window.base && range.base + range.length <= window.base + window.length;
const overlap = (a: AddressRange, b: AddressRange): boolean =>
  a.base < b.base + b.length && b.base < a.base + a.length;

describe("sizing", () => {
  const sizes = async (spec: FakeSpec, lie: (fn: FakeFunction) => void = () => {}) => {
    const fn = new FakeFunction(1, spec);
    lie(fn);
    const before = fn.bytes.slice();
    const [header] = await readHeaders(new FakeBus([fn]));
    expect(fn.bytes, "sizing leaves the registers as they were").toEqual(before);
    return header?.bars.map(({ index, kind, wide, prefetchable, length }) => [
      index,
      kind,
      ...(wide ? ["wide"] : []),
      ...(prefetchable ? ["prefetchable"] : []),
      length,
    ]);
  };

  it("knows I/O ports, memory of 32 and 64 bits, and what may be prefetched", async () => {
    expect(
      await sizes({
        bars: [
          { index: 0, length: 64, type: IO },
          { index: 1, length: 0x1000 },
          { index: 2, length: 0x4000, type: WIDE | PREFETCHABLE },
          { index: 4, length: 8 * GiB, type: WIDE | PREFETCHABLE },
        ],
      }),
    ).toEqual([
      [0, "io", 64],
      [1, "memory", 0x1000],
      [2, "memory", "wide", "prefetchable", 0x4000],
      [4, "memory", "wide", "prefetchable", 8 * GiB],
    ]);
  });

  it("takes ports of which only 16 bits are decoded", async () => {
    expect(
      await sizes({ bars: [{ index: 0, length: 64, type: IO }] }, (fn) =>
        fn.mask(PciRegister.BAR0, 4, 0xffc0),
      ),
    ).toContainEqual([0, "io", 64]);
  });

  it.each([
    ["a mask with holes", (fn: FakeFunction) => fn.mask(PciRegister.BAR0, 4, 0xffff_0f00)],
    ["a mask that ends early", (fn: FakeFunction) => fn.mask(PciRegister.BAR0, 4, 0x00ff_f000)],
    [
      "ports with holes",
      (fn: FakeFunction) => {
        fn.set(PciRegister.BAR0, 4, IO);
        fn.mask(PciRegister.BAR0, 4, 0xf0f0);
      },
    ],
    [
      "a reserved type",
      (fn: FakeFunction) => {
        fn.set(PciRegister.BAR0, 4, 2);
        fn.mask(PciRegister.BAR0, 4, 0xffff_f000);
      },
    ],
    [
      "64 bits in the last register",
      (fn: FakeFunction) => {
        fn.set(PciRegister.BAR0 + 20, 4, WIDE);
        fn.mask(PciRegister.BAR0 + 20, 4, 0xffff_f000);
      },
    ],
  ])("counts %s as no BAR", async (_, lie) => {
    expect((await sizes({}, lie))?.map((each) => each.at(-1))).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it("never touches a BAR that is decoded, and takes three round trips for all functions", async () => {
    const functions = [1, 2, 3].map(
      (device) => new FakeFunction(device, { bars: [{ index: 0, length: 0x1000 }] }),
    );
    for (const fn of functions) fn.set(PciRegister.COMMAND, 2, PciCommand.MEMORY);
    let decoded = 0;
    let turns = 0;
    let counted = false;
    for (const fn of functions)
      fn.onAccess = ({ write, offset }) => {
        if (!counted) {
          turns += 1;
          counted = true;
          void Promise.resolve().then(() => {
            counted = false;
          });
        }
        if (write && offset >= PciRegister.BAR0 && (command(fn) & PciCommand.MEMORY) !== 0)
          decoded += 1;
      };
    await readHeaders(new FakeBus(functions));
    expect([decoded, turns]).toEqual([0, 3]);
    expect(functions.map(command)).toEqual([2, 2, 2]);
  });

  it("reads of the capability list what it needs: neither pci_cfg_data nor what a vendor put there [PCI-CFGACC-2]", async () => {
    const fn = new FakeFunction(1);
    fn.set(PciRegister.STATUS, 2, 0x10);
    fn.set(PciRegister.CAPABILITIES, 1, 0xa0);
    // The window, vendor data, one of another kind, then common; the next pointer makes a loop.
    const list = [
      [0xa0, 0x0514_6009],
      [0x60, 0x0910_8009],
      [0x80, 0x0000_4001],
      [0x40, 0x0110_a009],
    ] as const;
    for (const [at, word] of list) fn.set(at, 4, word);
    const accesses = record([fn]);
    const [header] = await readHeaders(new FakeBus([fn]));
    const read = accesses.filter(({ write, offset }) => !write && offset >= 0x40);
    expect(read.map(({ offset }) => offset)).toEqual([
      0xa0, 0x60, 0xa4, 0xa8, 0xac, 0x80, 0x64, 0x40, 0x44, 0x48, 0x4c,
    ]);
    expect(header?.bytes.slice(0x40, 0x44)).toEqual(fn.bytes.slice(0x40, 0x44));
  });

  it("writes nothing to a function again that it knows, unless that was reset", async () => {
    const fn = new FakeFunction(1, { bars: [{ index: 0, length: 0x1000 }] });
    const bus = new FakeBus([fn]);
    const placed = await place(bus, fn);
    const accesses = record([fn]);
    expect(await place(bus, fn)).toEqual(placed);
    expect(writes(accesses)).toEqual([]);
    // A reset of its machine: BARs and command are as at power-on.
    fn.set(PciRegister.COMMAND, 2, 0);
    fn.set(PciRegister.BAR0, 4, 0);
    expect(await place(bus, fn)).toEqual(placed);
    expect([bar(fn, 0), command(fn)]).toEqual([0xe000_0000, 6]);
  });

  it("leaves out a function that is taken out meanwhile, and one that is not there", async () => {
    const [stays, leaves, absent] = [1, 2, 3].map((device) => new FakeFunction(device)) as [
      FakeFunction,
      FakeFunction,
      FakeFunction,
    ];
    absent.bytes.fill(0xff);
    leaves.onAccess = () => {
      leaves.present = false;
    };
    const headers = await readHeaders(new FakeBus([stays, leaves, absent]));
    expect(headers.map((header) => header.function)).toEqual([stays]);
  });

  it("leaves out a function that reads as ones from some access on", async () => {
    const spec = { bars: [{ index: 0, length: 0x1000 }] };
    const whole = new FakeFunction(1, spec);
    const accesses = record([whole]);
    await readHeaders(new FakeBus([whole]));
    expect(accesses.length).toBeGreaterThan(30);
    // The last is a look whether it is still there.
    for (let access = 1; access < accesses.length; access++) {
      const fn = new FakeFunction(1, spec);
      let left = access;
      fn.onAccess = () => {
        left -= 1;
        if (left !== 0) return;
        fn.bytes.fill(0xff);
        fn.masks.fill(0);
      };
      expect([access, await readHeaders(new FakeBus([fn]))]).toEqual([access, []]);
    }
  });

  it("says what is wrong with a machine that does not answer", async () => {
    const fn = new FakeFunction(1);
    fn.read = async () => {
      throw new VirtioFault("CLOSED", "the machine is closed");
    };
    await expect(readHeaders(new FakeBus([fn]))).rejects.toThrow("the machine is closed");
  });

  it("lets two probes at once place a function once", async () => {
    const fn = new FakeFunction(1, { bars: [{ index: 0, length: 0x1000 }] });
    const bus = new FakeBus([fn]);
    const [first, second] = await Promise.all([place(bus, fn), place(bus, fn)]);
    expect(second).toEqual(first);
    expect(bar(fn, 0)).toBe(0xe000_0000);
  });
});

describe("placing", () => {
  it("writes BARs, then lets the function decode, then lets it master the bus", async () => {
    const fn = new FakeFunction(1, {
      bars: [
        { index: 0, length: 32, type: IO },
        { index: 2, length: 0x1000, type: WIDE },
      ],
    });
    const bus = new FakeBus([fn]);
    await readHeaders(bus);
    const accesses = record([fn]);
    await place(bus, fn);
    const { IO: ports, MEMORY, BUS_MASTER } = PciCommand;
    expect(writes(accesses).map(({ offset, value }) => [offset, value])).toEqual([
      [0x10, 0xc000],
      [0x18, 0xe000_0000],
      [0x1c, 0],
      [PciRegister.COMMAND, ports | MEMORY],
      [PciRegister.COMMAND, ports | MEMORY | BUS_MASTER],
    ]);
  });

  it("keeps what firmware placed, and stops decoding what it moves", async () => {
    const fn = new FakeFunction(1, {
      bars: [
        { index: 0, length: 0x1000 },
        { index: 1, length: 0x2000 },
      ],
    });
    const other = new FakeFunction(2, { bars: [{ index: 0, length: 0x1000 }] });
    fn.set(PciRegister.BAR0, 4, 0xe000_0000);
    fn.set(PciRegister.COMMAND, 2, PciCommand.MEMORY);
    const bus = new FakeBus([fn, other]);
    await readHeaders(bus);
    const accesses = record([fn]);
    await place(bus, fn);
    expect(writes(accesses).map(({ value }) => value)).toEqual([0, 0xe000_2000, 2, 6]);
    expect(bar(fn, 0)).toBe(0xe000_0000);
    await place(bus, other);
    expect(bar(other, 0)).toBe(0xe000_1000);
  });

  it("keeps a place above 4 GiB that firmware gave", async () => {
    const fn = new FakeFunction(1, { bars: [{ index: 0, length: 8 * GiB, type: WIDE }] });
    fn.set(PciRegister.BAR0 + 4, 4, 8);
    const { bars } = await place(new FakeBus([fn]), fn);
    expect(bars[0]?.address).toBe(32 * GiB);
    expect(bar(fn, 1)).toBe(8);
    expect(command(fn)).toBe(6);
  });

  it.each([
    ["a BAR of 4 GiB", 4 * GiB, WIDE],
    ["a BAR of 2^62 bytes", 2 ** 62, WIDE],
    ["a BAR that no window holds", 512 * MiB, 0],
  ])("gives %s no place, says so, and decodes nothing", async (_, length, type) => {
    const fn = new FakeFunction(1, {
      bars: [
        { index: 0, length: 0x1000 },
        { index: 2, length, type },
        { index: 4, length: 32, type: IO },
      ],
    });
    const header = await place(new FakeBus([fn]), fn);
    expect(header.unplaced).toMatchObject({
      code: "NO_SPACE",
      message: `pci0:0:1:0: no memory addresses left for BAR 2, ${length} bytes`,
    });
    expect(header.bars.filter((each) => each.length > 0).map(({ address }) => address)).toEqual([
      0, 0, 0xc000,
    ]);
    expect([bar(fn, 0), bar(fn, 2) & ~15]).toEqual([0, 0]);
    expect(command(fn)).toBe(PciCommand.IO | PciCommand.BUS_MASTER);
  });

  it("gives a function the place of one that was taken out", async () => {
    const spec = { bars: [{ index: 0, length: 128 * MiB }] };
    const [a, b] = [new FakeFunction(1, spec), new FakeFunction(2, spec)] as const;
    const bus = new FakeBus([a, b]);
    await place(bus, a);
    await place(bus, b);
    const late = new FakeFunction(3, spec);
    bus.list.push(late);
    expect((await place(bus, late)).unplaced?.code).toBe("NO_SPACE");
    a.present = false;
    expect(await place(bus, late)).toMatchObject({ unplaced: null });
    expect(bar(late, 0)).toBe(bar(a, 0));
  });

  it("looks again at a function whose writes failed", async () => {
    const fn = new FakeFunction(1, { bars: [{ index: 0, length: 0x1000 }] });
    const bus = new FakeBus([fn]);
    const [header] = await readHeaders(bus);
    if (header === undefined) throw new Error("not found");
    fn.present = false;
    await expect(placeBars(bus, [header], header)).rejects.toMatchObject({ code: "CLOSED" });
    fn.present = true;
    await place(bus, fn);
    expect([bar(fn, 0), command(fn)]).toEqual([0xe000_0000, 6]);
  });
});

describe("bridges", () => {
  const port = (device: number, to: number, bus = 0): FakeFunction =>
    new FakeFunction(device, { bus, bridge: { to, io: 1, prefetchable: 1 } });

  it("open windows for what is behind them, with room for more, and decode and master before it does", async () => {
    const bridge = port(1, 1);
    const fn = new FakeFunction(0, {
      bus: 1,
      bars: [
        { index: 0, length: 128, type: IO },
        { index: 1, length: 0x1000 },
        { index: 4, length: 0x4000, type: WIDE | PREFETCHABLE },
      ],
    });
    const bus = new FakeBus([bridge, fn]);
    await readHeaders(bus);
    const accesses = record([bridge, fn]);
    await place(bus, fn);
    expect(passes(bridge, "io")).toEqual({ base: 0xc000, length: 0x1000 });
    expect(passes(bridge, "memory")).toEqual({ base: 0xe000_0000, length: 2 * MiB });
    expect(passes(bridge, "prefetchable")).toEqual({ base: 0xe020_0000, length: 2 * MiB });
    expect([bar(fn, 0), bar(fn, 1), bar(fn, 4), bar(fn, 5)]).toEqual([
      0xc000 | IO,
      0xe000_0000,
      0xe020_0000 + WIDE + PREFETCHABLE,
      0,
    ]);
    expect([bridge, fn].map(command)).toEqual([7, 7]);
    const first = accesses.findIndex((access) => access.write && access.fn === fn);
    expect(accesses.slice(first).every((access) => !access.write || access.fn === fn)).toBe(true);
  });

  it("close the windows that nobody needs before they decode", async () => {
    const bridge = port(1, 1);
    const fn = new FakeFunction(0, { bus: 1, bars: [{ index: 1, length: 0x1000 }] });
    await place(new FakeBus([bridge, fn]), fn);
    expect([passes(bridge, "io"), passes(bridge, "prefetchable")]).toEqual([null, null]);
    expect(command(bridge)).toBe(6);
  });

  it("pass prefetchable memory through the other window when they have only that", async () => {
    const bridge = new FakeFunction(1, { bridge: { to: 1 } });
    const fn = new FakeFunction(0, {
      bus: 1,
      bars: [{ index: 0, length: MiB, type: PREFETCHABLE }],
    });
    await place(new FakeBus([bridge, fn]), fn);
    expect(passes(bridge, "memory")).toEqual({ base: 0xe000_0000, length: 2 * MiB });
  });

  it("have no ports to give when they pass none", async () => {
    const bridge = new FakeFunction(1, { bridge: { to: 1 } });
    const fn = new FakeFunction(0, {
      bus: 1,
      bars: [
        { index: 0, length: 32, type: IO },
        { index: 1, length: 0x1000 },
      ],
    });
    const { unplaced } = await place(new FakeBus([bridge, fn]), fn);
    expect(unplaced?.message).toBe("pci0:1:0:0: no I/O ports left for BAR 0, 32 bytes");
    expect([bridge, fn].map(command)).toEqual([6, 6]);
  });

  it("have BARs of their own, which are placed before they decode", async () => {
    const bridge = new FakeFunction(1, {
      bars: [{ index: 0, length: 0x1000 }],
      bridge: { to: 1 },
    });
    const fn = new FakeFunction(0, { bus: 1, bars: [{ index: 0, length: 0x1000 }] });
    await place(new FakeBus([bridge, fn]), fn);
    expect([bar(bridge, 0), bar(fn, 0)]).toEqual([0xe000_0000, 0xe010_0000]);
  });

  it("keep windows that firmware opened, and extend them when what follows is free", async () => {
    const bridge = port(1, 1);
    bridge.set(PciBridgeRegister.MEMORY_BASE, 4, 0xe130_e130);
    bridge.set(PciRegister.COMMAND, 2, 6);
    const small = new FakeFunction(0, { bus: 1, bars: [{ index: 0, length: 0x1000 }] });
    const large = new FakeFunction(1, { bus: 1, bars: [{ index: 0, length: 2 * MiB }] });
    const bus = new FakeBus([bridge, small, large]);
    await place(bus, small);
    expect(passes(bridge, "memory")).toEqual({ base: 0xe130_0000, length: MiB });
    expect(bar(small, 0)).toBe(0xe130_0000);
    await place(bus, large);
    expect(passes(bridge, "memory")).toEqual({ base: 0xe130_0000, length: 3 * MiB });
    expect(bar(large, 0)).toBe(0xe140_0000);
  });

  it("do not grow into what follows", async () => {
    const bridge = port(1, 1);
    bridge.set(PciBridgeRegister.MEMORY_BASE, 4, 0xe130_e130);
    const next = new FakeFunction(2, { bars: [{ index: 0, length: MiB }] });
    next.set(PciRegister.BAR0, 4, 0xe140_0000);
    const fn = new FakeFunction(0, { bus: 1, bars: [{ index: 0, length: 2 * MiB }] });
    expect((await place(new FakeBus([bridge, next, fn]), fn)).unplaced?.code).toBe("NO_SPACE");
    expect(passes(bridge, "memory")).toEqual({ base: 0xe130_0000, length: MiB });
  });

  it("are not trusted: a window over memory, or above 4 GiB, is no place for a BAR", async () => {
    const bridge = port(1, 1);
    bridge.set(PciBridgeRegister.MEMORY_BASE, 4, 0x0020_0010);
    bridge.set(PciBridgeRegister.PREFETCHABLE_BASE, 4, 0x0011_0011);
    bridge.set(PciBridgeRegister.PREFETCHABLE_BASE_UPPER, 4, 8);
    bridge.set(PciBridgeRegister.PREFETCHABLE_LIMIT_UPPER, 4, 8);
    const fn = new FakeFunction(0, {
      bus: 1,
      bars: [{ index: 0, length: 0x1000, type: WIDE | PREFETCHABLE }],
    });
    expect((await place(new FakeBus([bridge, fn]), fn)).unplaced?.code).toBe("NO_SPACE");
    expect(command(fn)).toBe(PciCommand.BUS_MASTER);
  });

  it("are nested, each window inside the one above, and find room for what is plugged in later", async () => {
    const outer = port(1, 1);
    const inner = port(0, 2, 1);
    const first = new FakeFunction(0, { bus: 2, bars: [{ index: 0, length: MiB }] });
    const bus = new FakeBus([outer, inner, first]);
    await place(bus, first);
    const second = new FakeFunction(1, { bus: 2, bars: [{ index: 0, length: MiB }] });
    const third = new FakeFunction(2, { bus: 2, bars: [{ index: 0, length: MiB }] });
    bus.list.push(second, third);
    await place(bus, second);
    expect(passes(outer, "memory")).toEqual({ base: 0xe000_0000, length: 2 * MiB });
    await place(bus, third);
    for (const each of [outer, inner])
      expect(passes(each, "memory")).toEqual({ base: 0xe000_0000, length: 3 * MiB });
    expect([first, second, third].map((fn) => bar(fn, 0))).toEqual([
      0xe000_0000, 0xe010_0000, 0xe020_0000,
    ]);
  });

  it("may get their bus numbers late", async () => {
    const bridge = port(1, 0);
    const bus = new FakeBus([bridge]);
    await readHeaders(bus);
    bridge.set(PciBridgeRegister.SECONDARY_BUS, 1, 1);
    const fn = new FakeFunction(0, { bus: 1, bars: [{ index: 0, length: 0x1000 }] });
    bus.list.push(fn);
    expect((await place(bus, fn)).unplaced).toBeNull();
  });

  it.each([
    ["none", [0], "pci0:2:0:0: no bridge leads to bus 2"],
    ["one that says it leads back to the root", [0, 0], "no bridge leads to bus 2"],
    ["a loop", [2, 1], "no bridge leads to bus 2"],
    ["two", [1, 2, 2], "device misbehaved: pci0:1:0:0 and pci0:1:1:0 both lead to bus 2"],
  ])("lead nowhere when there is %s, and what is there is left alone", async (_, to, message) => {
    // The first is on the root, the others behind it, or so the machine says.
    const bridges = to.map((bus, i) =>
      message.includes("both")
        ? port(Math.max(i - 1, 0), bus, i === 0 ? 0 : 1)
        : port(i, bus, i === 0 && bus === 2 ? 2 : i),
    );
    const root = new FakeFunction(31);
    const fn = new FakeFunction(0, { bus: 2, bars: [{ index: 0, length: 0x1000 }] });
    const header = await place(new FakeBus([root, ...bridges, fn]), fn);
    expect(header.unplaced?.message).toContain(message);
    expect([bar(fn, 0), command(fn)]).toEqual([0, 0]);
  });
});

describe("whatever is on the bus", () => {
  /** A small generator that is the same everywhere (mulberry32). */
  const random = (seed: number): ((below: number) => number) => {
    let state = seed;
    return (below) => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) % below;
    };
  };

  const bars = (draw: (below: number) => number, count: number): FakeSpec["bars"] => {
    const list = [];
    for (let index = 0; index < count; index++) {
      const kind = draw(6);
      if (kind === 0) list.push({ index, length: 2 ** (2 + draw(10)), type: IO });
      if (kind === 1) list.push({ index, length: 2 ** (4 + draw(20)) });
      if (kind === 2) list.push({ index, length: 2 ** (4 + draw(22)), type: PREFETCHABLE });
      if (kind === 3 && index + 1 < count) {
        list.push({ index, length: 2 ** (4 + draw(24)), type: WIDE | (draw(2) * PREFETCHABLE) });
        index += 1;
      }
    }
    return list;
  };

  /** What a function decodes, by the registers alone. */
  const decoded = (fn: FakeFunction, space: "io" | "memory"): AddressRange[] =>
    (fn.spec.bars ?? []).flatMap(({ index, length, type = 0 }) => {
      if (((type & IO) !== 0) !== (space === "io")) return [];
      if ((command(fn) & (space === "io" ? PciCommand.IO : PciCommand.MEMORY)) === 0) return [];
      const high = (type & WIDE) === 0 ? 0 : bar(fn, index + 1);
      const fixed = space === "io" ? 3 : 15;
      return [{ base: high * 2 ** 32 + ((bar(fn, index) & ~fixed) >>> 0), length }];
    });

  const check = (bus: FakeBus): number => {
    const there = bus.list.filter(({ present }) => present);
    let count = 0;
    for (const space of ["io", "memory"] as const) {
      const all = there.flatMap((fn) => decoded(fn, space).map((range) => ({ fn, range })));
      count += all.length;
      const kinds = space === "io" ? (["io"] as const) : (["memory", "prefetchable"] as const);
      const windows = there.flatMap((fn) =>
        kinds.flatMap((kind) => {
          const bit = space === "io" ? PciCommand.IO : PciCommand.MEMORY;
          const range = (command(fn) & bit) === 0 ? null : passes(fn, kind);
          return range === null ? [] : [{ fn, range, kind }];
        }),
      );
      for (const [i, { fn, range }] of all.entries()) {
        expect(range.base % range.length).toBe(0);
        expect(inside(range, bus.windows[space])).toBe(true);
        for (const other of all.slice(i + 1)) expect(overlap(range, other.range)).toBe(false);
        // What comes down from the root arrives here and nowhere else.
        let at = 0;
        while (at !== fn.address.bus) {
          const takers = windows.filter(
            (each) => each.fn.address.bus === at && overlap(each.range, range),
          );
          expect(takers.length).toBe(1);
          const [taker] = takers;
          if (taker === undefined) throw new Error("lost");
          expect(inside(range, taker.range)).toBe(true);
          expect(command(taker.fn) & PciCommand.BUS_MASTER).not.toBe(0);
          at = taker.fn.spec.bridge?.to ?? -1;
        }
        const behind = windows.filter(
          (each) => each.fn.address.bus === at && overlap(each.range, range),
        );
        expect(behind).toEqual([]);
      }
    }
    return count;
  };

  it.each(Array.from({ length: 60 }, (_, seed) => seed))(
    "what is decoded lies in the windows, overlaps nothing and is led to (seed %i)",
    async (seed) => {
      const draw = random(seed);
      const bus = new FakeBus([]);
      const places = [0];
      let slot = 0;
      const plug = (): FakeFunction => {
        const at = places[draw(places.length)] ?? 0;
        let fn: FakeFunction;
        if (draw(3) === 0) {
          const to = places.length;
          places.push(to);
          const type = (): { io?: 0 | 1; prefetchable?: 0 | 1 } => ({
            ...(draw(4) === 0 ? {} : { io: draw(2) as 0 | 1 }),
            ...(draw(4) === 0 ? {} : { prefetchable: draw(2) as 0 | 1 }),
          });
          const bridge = { to, ...type() };
          fn = new FakeFunction(slot++, { bus: at, bars: bars(draw, 2) ?? [], bridge });
        } else fn = new FakeFunction(slot++, { bus: at, bars: bars(draw, 6) ?? [] });
        bus.list.push(fn);
        return fn;
      };
      for (let i = 0; i < 6; i++) plug();
      let seen = 0;
      for (let step = 0; step < 12; step++) {
        const headers = await readHeaders(bus);
        // All in one turn, as probe may.
        await Promise.all(
          headers
            .filter((header) => header.windows.length === 0)
            .map((header) => placeBars(bus, headers, header)),
        );
        seen += check(bus);
        plug();
        const leaf = bus.list.filter((fn) => fn.present && fn.spec.bridge === undefined);
        if (draw(3) === 0 && leaf.length > 0) {
          const gone = leaf[draw(leaf.length)];
          if (gone !== undefined) gone.present = false;
        }
      }
      expect(seen).toBeGreaterThan(0);
    },
  );
});

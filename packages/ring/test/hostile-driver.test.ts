// The driver lies to the device's end: one lie a case, alone and behind an honest chain of the same batch.
import { GuestRegions, VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import {
  BASE,
  type DeviceEnd,
  type Format,
  type Mode,
  type Rig,
  rig,
  serve,
  taken,
} from "./support/rig.js";
import {
  INDIRECT,
  NEXT,
  putPacked,
  putSplit,
  type RawDescriptor,
  WRITE,
} from "./support/ring-bytes.js";

const END = BASE + 0x4_0000;

interface Lie {
  readonly name: string;
  /** The clause that the device reports. */
  readonly clause: string;
  readonly mode?: Partial<Mode>;
  /** Writes the lie with descriptors from `at` on (split); packed lies go where the ring stands. */
  readonly lie: (r: Rig, at: number, data: number) => void;
}

/** A chain of descriptors from `at` on, each with the flags and `next` it was given, made available. */
function chain({ split }: Rig, at: number, ...list: readonly RawDescriptor[]): void {
  for (const [i, d] of list.entries()) putSplit(split.descriptors, at + i, d);
  split.offer(at);
}

/** An indirect table in the payload memory. */
function table(r: Rig, ...entries: readonly RawDescriptor[]): { address: number; length: number } {
  const words = new Uint32Array(r.buffer, r.data.offset, entries.length * 4);
  const put = r.mode.format === "split" ? putSplit : putPacked;
  for (const [i, d] of entries.entries()) put(words, i, d);
  return { address: r.data.address, length: entries.length * 16 };
}

/** Addresses no segment may have, by name. */
const elsewhere: readonly (readonly [string, Partial<RawDescriptor>])[] = [
  ["below guest memory", { address: BASE - 1 }],
  ["that runs out of guest memory", { address: END - 8 }],
  ["at 0", { address: 0 }],
  ["above 4 GiB", { high: 1 }],
  ["above 2^53", { high: 0x20_0000 }],
  ["that wraps past 2^64", { address: 0xffff_fff8, high: 0xffff_ffff }],
  ["as long as 2^32-1", { length: 0xffff_ffff }],
];

const splitLies: readonly Lie[] = [
  {
    name: "a chain that loops",
    clause: "SPLIT-DESC-1",
    lie: (r, at, address) =>
      chain(
        r,
        at,
        { address, length: 1, flags: NEXT, next: at + 1 },
        { address, length: 1, flags: NEXT, next: at },
      ),
  },
  {
    name: "a descriptor that is its own next",
    clause: "SPLIT-DESC-1",
    lie: (r, at, address) => chain(r, at, { address, length: 1, flags: NEXT, next: at }),
  },
  {
    name: "a next outside the table",
    clause: "SPLIT-DESC-1",
    lie: (r, at, address) => chain(r, at, { address, length: 1, flags: NEXT, next: 8 }),
  },
  {
    name: "a next of 65535",
    clause: "SPLIT-DESC-1",
    lie: (r, at, address) => chain(r, at, { address, length: 1, flags: NEXT, next: 0xffff }),
  },
  {
    name: "a readable segment after a writable one",
    clause: "FRAMING-1",
    lie: (r, at, address) =>
      chain(
        r,
        at,
        { address, length: 1, flags: NEXT | WRITE, next: at + 1 },
        { address, length: 1 },
      ),
  },
  {
    name: "a segment of 0 bytes",
    clause: "FRAMING-1",
    lie: (r, at, address) => chain(r, at, { address, length: 0, flags: WRITE }),
  },
  ...elsewhere.map(
    ([name, where]): Lie => ({
      name: `a segment ${name}`,
      clause: "RESFEAT-5",
      lie: (r, at, address) => chain(r, at, { address, length: 16, ...where }),
    }),
  ),
  {
    name: "a head outside the table",
    clause: "SPLIT-SUPPLY-1",
    lie: (r) => r.split.offer(8),
  },
  {
    name: "a head of 65535",
    clause: "SPLIT-SUPPLY-1",
    lie: (r) => r.split.offer(0xffff),
  },
  {
    name: "an index that jumps by more than the queue",
    clause: "SPLIT-AVAIL-1",
    lie: (r) => {
      r.split.available[1] = (r.split.available[1] ?? 0) + 9;
    },
  },
  {
    name: "an index that goes back",
    clause: "SPLIT-AVAIL-1",
    lie: (r) => {
      r.split.available[1] = 0xfff0;
    },
  },
  {
    name: "an indirect table that was not negotiated",
    clause: "SPLIT-INDIRECT-1",
    lie: (r, at, address) => chain(r, at, { address, length: 16, flags: INDIRECT }),
  },
  {
    name: "an indirect table inside an indirect table",
    clause: "SPLIT-INDIRECT-2",
    mode: { indirect: true },
    lie: (r, at, address) =>
      chain(r, at, { ...table(r, { address, length: 16, flags: INDIRECT }), flags: INDIRECT }),
  },
  {
    name: "an indirect table longer than the queue",
    clause: "SPLIT-INDIRECT-3",
    mode: { indirect: true },
    lie: (r, at, address) => chain(r, at, { address, length: 9 * 16, flags: INDIRECT }),
  },
  {
    name: "an indirect table of 2^32-16 bytes",
    clause: "SPLIT-INDIRECT-3",
    mode: { indirect: true },
    lie: (r, at, address) => chain(r, at, { address, length: 0xffff_fff0, flags: INDIRECT }),
  },
  {
    name: "an indirect table of no bytes",
    clause: "SPLIT-INDIRECT-3",
    mode: { indirect: true },
    lie: (r, at, address) => chain(r, at, { address, length: 0, flags: INDIRECT }),
  },
  {
    name: "an indirect table of no whole descriptors",
    clause: "SPLIT-INDIRECT-3",
    mode: { indirect: true },
    lie: (r, at, address) => chain(r, at, { address, length: 24, flags: INDIRECT }),
  },
  {
    name: "an indirect table that loops",
    clause: "SPLIT-INDIRECT-3",
    mode: { indirect: true },
    lie: (r, at, address) =>
      chain(r, at, {
        ...table(
          r,
          { address, length: 1, flags: NEXT, next: 1 },
          { address, length: 1, flags: NEXT, next: 0 },
        ),
        flags: INDIRECT,
      }),
  },
  {
    name: "a next outside an indirect table, inside the ring's",
    clause: "SPLIT-DESC-1",
    mode: { indirect: true },
    lie: (r, at, address) =>
      chain(r, at, {
        ...table(r, { address, length: 1, flags: NEXT, next: 1 }),
        flags: INDIRECT,
      }),
  },
  {
    name: "an indirect table and direct segments that are longer than the queue together",
    clause: "SPLIT-INDIRECT-3",
    mode: { indirect: true },
    lie: (r, at, address) => {
      const eight = Array.from({ length: 8 }, (_, i) => ({
        address,
        length: 1,
        flags: i < 7 ? NEXT : 0,
        next: i + 1,
      }));
      chain(
        r,
        at,
        { address, length: 1, flags: NEXT, next: at + 1 },
        { ...table(r, ...eight), flags: INDIRECT },
      );
    },
  },
  ...elsewhere
    .filter(([, { length }]) => length === undefined)
    .map(
      ([name, where]): Lie => ({
        name: `an indirect table ${name}`,
        clause: "RESFEAT-5",
        mode: { indirect: true },
        lie: (r, at, address) => chain(r, at, { address, length: 16, flags: INDIRECT, ...where }),
      }),
    ),
  {
    name: "a descriptor that is indirect and goes on",
    clause: "SPLIT-INDIRECT-4",
    mode: { indirect: true },
    lie: (r, at, address) =>
      chain(r, at, { address, length: 16, flags: INDIRECT | NEXT, next: at + 1 }),
  },
  {
    name: "with IN_ORDER a next that skips a descriptor",
    clause: "SPLIT-DESC-2",
    mode: { inOrder: true },
    lie: (r, at, address) => chain(r, at, { address, length: 1, flags: NEXT, next: at + 2 }),
  },
  {
    name: "with IN_ORDER an indirect entry that skips one",
    clause: "SPLIT-INDIRECT-5",
    mode: { inOrder: true, indirect: true },
    lie: (r, at, address) =>
      chain(r, at, {
        ...table(
          r,
          { address, length: 1, flags: NEXT, next: 2 },
          { address, length: 1 },
          { address, length: 1 },
        ),
        flags: INDIRECT,
      }),
  },
];

const packedLies: readonly Lie[] = [
  {
    name: "a list whose second descriptor is not available",
    clause: "PACKED-SG-6",
    lie: (r, _at, address) => r.packed.offer({ address, length: 1, flags: NEXT }),
  },
  {
    name: "a list whose second descriptor has the bits of another lap",
    clause: "PACKED-SG-6",
    lie: (r, _at, address) => {
      r.packed.offer({ address, length: 1, flags: NEXT });
      r.packed.wrap = !r.packed.wrap;
      r.packed.offer({ address, length: 1 });
    },
  },
  {
    name: "a list that goes round the ring",
    clause: "PACKED-SG-6",
    lie: (r, _at, address) => {
      const first = r.packed.at;
      for (let i = first; i < 8; i++) r.packed.offer({ address, length: 1, flags: NEXT });
    },
  },
  {
    name: "a readable segment after a writable one",
    clause: "PACKED-SG-3",
    lie: (r, _at, address) =>
      r.packed.offer({ address, length: 1, flags: NEXT | WRITE }, { address, length: 1 }),
  },
  {
    name: "a segment of 0 bytes",
    clause: "PACKED-SG-3",
    lie: (r, _at, address) => r.packed.offer({ address, length: 0, flags: WRITE }),
  },
  ...elsewhere.map(
    ([name, where]): Lie => ({
      name: `a segment ${name}`,
      clause: "RESFEAT-5",
      lie: (r, _at, address) => r.packed.offer({ address, length: 16, ...where }),
    }),
  ),
  {
    name: "an indirect table that was not negotiated",
    clause: "PACKED-INDIRECT-1",
    lie: (r, _at, address) => r.packed.offer({ address, length: 16, flags: INDIRECT }),
  },
  ...[INDIRECT, NEXT, 0x80, 0x8000, 0x40].map(
    (flag): Lie => ({
      name: `flag 0x${flag.toString(16)} inside an indirect table`,
      clause: "PACKED-INDIRECT-2",
      mode: { indirect: true },
      lie: (r, _at, address) =>
        r.packed.offer({ ...table(r, { address, length: 16, flags: flag }), flags: INDIRECT }),
    }),
  ),
  {
    name: "a readable entry after a writable one in an indirect table",
    clause: "PACKED-SG-3",
    mode: { indirect: true },
    lie: (r, _at, address) =>
      r.packed.offer({
        ...table(r, { address, length: 1, flags: WRITE }, { address, length: 1 }),
        flags: INDIRECT,
      }),
  },
  ...[0, 24, 9 * 16, 0xffff_fff0].map(
    (length): Lie => ({
      name: `an indirect table of ${length} bytes`,
      clause: "PACKED-INDIRECT-3",
      mode: { indirect: true },
      lie: (r, _at, address) => r.packed.offer({ address, length, flags: INDIRECT }),
    }),
  ),
  ...elsewhere
    .filter(([, { length }]) => length === undefined)
    .map(
      ([name, where]): Lie => ({
        name: `an indirect table ${name}`,
        clause: "RESFEAT-5",
        mode: { indirect: true },
        lie: (r, _at, address) =>
          r.packed.offer({ address, length: 16, flags: INDIRECT, ...where }),
      }),
    ),
  {
    name: "an indirect descriptor at the beginning of a list",
    clause: "PACKED-INDIRECT-4",
    mode: { indirect: true },
    lie: (r, _at, address) =>
      r.packed.offer(
        { ...table(r, { address, length: 1 }), flags: INDIRECT | NEXT },
        { address, length: 1 },
      ),
  },
  {
    name: "an indirect descriptor at the end of a list",
    clause: "PACKED-INDIRECT-4",
    mode: { indirect: true },
    lie: (r, _at, address) =>
      r.packed.offer(
        { address, length: 1, flags: NEXT },
        { ...table(r, { address, length: 1 }), flags: INDIRECT },
      ),
  },
];

/** Exactly one fault, a queue that stays broken, not a byte changed. */
function expectBroken(r: Rig, device: DeviceEnd, clause: string, lied: Uint8Array): void {
  expect(device.take()).toBeNull();
  expect(device.take()).toBeNull();
  expect(r.deviceFaults.map((fault) => [fault.code, fault.clause])).toEqual([
    ["DRIVER_MISBEHAVED", clause],
  ]);
  expect(r.deviceFaults[0]?.message).toMatch(/^driver misbehaved: .*\(queue 0\) \[/);
  expect([device.broken, device.wantsInterrupt()]).toEqual([true, false]);
  expect(Buffer.compare(new Uint8Array(r.buffer), lied)).toBe(0);
  expect(device.enableNotify()).toBe(false);
}

const formats: readonly Format[] = ["split", "packed"];

describe.each(formats)("the device end of a %s queue whose driver lies", (format) => {
  for (const { name, clause, mode = {}, lie } of format === "split" ? splitLies : packedLies)
    for (const eventIdx of [false, true]) {
      const with_ = eventIdx ? ", event_idx" : "";
      it(`breaks once on ${name}${with_} [${clause} fires]`, () => {
        const r = rig({ format, memory: END - BASE, eventIdx, ...mode });
        lie(r, 0, r.data.address + 0x800);
        expectBroken(r, r.device, clause, new Uint8Array(r.buffer).slice());
      });

      it(`breaks once on ${name}, behind an honest chain${with_} [${clause} fires]`, () => {
        const r = rig({ format, memory: END - BASE, eventIdx, ...mode });
        const address = r.data.address + 0x400;
        const honest = { address, length: 16, flags: WRITE };
        if (format === "split") chain(r, 0, honest);
        else r.packed.offer({ ...honest, next: 77 });
        lie(r, 1, r.data.address + 0x800);
        // A jump is seen before the first chain is taken.
        if (clause !== "SPLIT-AVAIL-1") expect(taken(r.device).writableLength).toBe(16);
        expectBroken(r, r.device, clause, new Uint8Array(r.buffer).slice());
      });
    }

  it("breaks on a chain that is available again while the device holds it [CLEANUP-1 fires]", () => {
    const r = rig({ format });
    const honest = { address: r.data.address, length: 16 };
    if (format === "split") {
      chain(r, 0, honest);
      r.split.offer(0);
    } else r.packed.offer({ ...honest, next: 5 }, { ...honest, next: 5 });
    taken(r.device);
    expectBroken(r, r.device, "CLEANUP-1", new Uint8Array(r.buffer).slice());
  });

  it(`breaks on more chains than the queue has room for [${format === "split" ? "SPLIT-AVAIL-1" : "PACKED-SG-2"} fires]`, () => {
    const r = rig({ format, size: 4 });
    const address = r.data.address;
    if (format === "split") {
      for (let i = 0; i < 4; i++) chain(r, i, { address, length: 1 });
      for (let i = 0; i < 4; i++) taken(r.device);
      r.split.offer(0);
    } else {
      for (let i = 0; i < 4; i++) r.packed.offer({ address, length: 1, next: i });
      for (let i = 0; i < 4; i++) taken(r.device);
      r.packed.offer({ address, length: 1, next: 9 });
    }
    const clause = format === "split" ? "SPLIT-AVAIL-1" : "PACKED-SG-2";
    expectBroken(r, r.device, clause, new Uint8Array(r.buffer).slice());
  });

  it(`breaks on a list that is longer than what the device does not hold [${format === "split" ? "SPLIT-INDIRECT-3" : "PACKED-SG-2"} fires]`, () => {
    const r = rig({ format, size: 4, indirect: true });
    const address = r.data.address + 0x800;
    if (format === "split") {
      const five = Array.from({ length: 5 }, (_, i) => ({
        address,
        length: 1,
        flags: NEXT,
        next: i + 1,
      }));
      const { address: at } = table(r, ...five);
      chain(r, 0, { address: at, length: 5 * 16, flags: INDIRECT });
    } else {
      r.packed.offer({ address, length: 1, next: 0 });
      taken(r.device);
      const list = Array.from({ length: 4 }, (_, i) => ({
        address,
        length: 1,
        flags: i < 3 ? NEXT : 0,
        next: 1,
      }));
      r.packed.offer(...list);
    }
    const clause = format === "split" ? "SPLIT-INDIRECT-3" : "PACKED-SG-2";
    expectBroken(r, r.device, clause, new Uint8Array(r.buffer).slice());
  });

  it(`breaks on a chain of more than 2^32 bytes [${format === "split" ? "SPLIT-DESC-1" : "PACKED-SG-1"} fires]`, () => {
    const r = rig({ format });
    const whole = [{ address: BASE, length: r.buffer.byteLength, bytes: new Uint8Array(r.buffer) }];
    // A guest with 8 GiB: nothing is ever read there.
    const device = r.makeDevice(r.driver.addresses, {
      regions: new GuestRegions(whole).regions,
      locate: () => 0,
    });
    const list = [
      { address: BASE, length: 0xffff_ffff, flags: NEXT, next: 1 },
      { address: BASE, length: 0xffff_ffff },
    ];
    if (format === "split") chain(r, 0, ...list);
    else r.packed.offer(...list);
    expectBroken(
      r,
      device,
      format === "split" ? "SPLIT-DESC-1" : "PACKED-SG-1",
      new Uint8Array(r.buffer).slice(),
    );
  });

  it(`refuses a ring that lies outside guest memory or is not aligned [${format === "split" ? "SPLIT-LAYOUT-1" : "PACKED-LAYOUT-1"} fires]`, () => {
    const r = rig({ format });
    const { descriptors, driver, device } = r.driver.addresses;
    const layout = format === "split" ? "SPLIT-LAYOUT-1" : "PACKED-LAYOUT-1";
    const clauseOf = (addresses: typeof r.driver.addresses): string | undefined => {
      try {
        r.makeDevice(addresses);
      } catch (error) {
        if (error instanceof VirtioFault) return error.clause;
        throw error;
      }
      return undefined;
    };
    expect(clauseOf({ descriptors: descriptors + 8, driver, device })).toBe(layout);
    expect(clauseOf({ descriptors, driver: driver + 1, device })).toBe(layout);
    expect(clauseOf({ descriptors, driver, device: device + 2 })).toBe(layout);
    expect(clauseOf({ descriptors: BASE - 64, driver, device })).toBe("RESFEAT-5");
    expect(clauseOf({ descriptors, driver: BASE + r.buffer.byteLength, device })).toBe("RESFEAT-5");
    expect(clauseOf({ descriptors, driver, device: 0 })).toBe("RESFEAT-5");
    expect(clauseOf({ descriptors, driver, device })).toBeUndefined();
  });

  it("takes what it read, not what the driver makes of it afterwards", () => {
    const r = rig({ format, indirect: true });
    const { driver, device, data } = r;
    driver.enqueue(3, new Uint32Array([data.address, 8, data.address + 64, 8]), 0, 1, 1);
    driver.notify();
    const chain = taken(device);
    const words = format === "split" ? r.split.descriptors : r.packed.descriptors;
    words.fill(0xffff_ffff, 0, 2);
    expect([chain.readableLength, chain.writableLength]).toEqual([8, 8]);
    expect(chain.writablePieces(0, 100).map((piece) => piece.byteOffset)).toEqual([
      data.offset + 64,
    ]);
    device.give(chain, 8);
    expect(driver.dequeue()).toBe(3);
  });

  it("takes nothing the driver wrote for an interrupt but whether to send it", () => {
    for (const eventIdx of [false, true])
      for (const garbage of [0xabcd, 0xffff, 0x7fff, 0x8000, 1]) {
        const r = rig({ format, eventIdx });
        if (format === "split") {
          r.split.available[0] = garbage;
          r.split.available[2 + 8] = garbage;
        } else r.packed.driverEvent.fill(garbage);
        for (let i = 0; i < 20; i++) {
          r.driver.enqueueReadable(i, r.data.address, 1);
          r.driver.notify();
          expect(serve(r.device)).toBe(1);
          r.device.wantsInterrupt();
          expect(r.driver.dequeue()).toBe(i);
        }
        expect([r.device.broken, r.driver.broken]).toEqual([false, null]);
      }
  });

  it("takes a table of one entry, and ignores WRITE on the descriptor that refers to a table", () => {
    const r = rig({ format, indirect: true });
    const address = r.data.address + 0x800;
    const flags = INDIRECT | WRITE;
    if (format === "split") chain(r, 0, { ...table(r, { address, length: 3 }), flags });
    else r.packed.offer({ ...table(r, { address, length: 3 }), flags, next: 12 });
    const chained = taken(r.device);
    expect([chained.readableLength, chained.writableLength, chained.segments]).toEqual([3, 0, 1]);
    r.device.give(chained, 0);
  });

  it("takes direct segments that end in an indirect table", () => {
    if (format === "packed") return;
    const r = rig({ format, indirect: true });
    const address = r.data.address + 0x800;
    chain(
      r,
      0,
      { address, length: 5, flags: NEXT, next: 1 },
      { ...table(r, { address, length: 7, flags: WRITE }), flags: INDIRECT },
    );
    const chained = taken(r.device);
    expect([chained.readableLength, chained.writableLength]).toEqual([5, 7]);
  });
});

import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { SplitDeviceQueue } from "../src/index.js";
import { BASE, pair } from "./bench-memory.js";

type Pair = ReturnType<typeof pair>;

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;
const DATA = BASE + 0x8000;

/** Writes one descriptor by hand. */
function descriptor(
  table: Uint32Array,
  i: number,
  address: number,
  length: number,
  flags: number,
  next = 0,
  high = 0,
): void {
  table.set([address, high, length, (flags | (next << 16)) >>> 0], i * 4);
}

/** Makes head 0 available by hand. */
function offer({ parts }: Pair, head = 0, index = 1): void {
  parts.available[2] = head;
  parts.available[1] = index;
}

/** A table of indirect descriptors in guest memory, as words. */
const table = (p: Pair, entries: number): Uint32Array =>
  new Uint32Array(p.buffer, DATA - BASE, entries * 4);

const lies: readonly {
  readonly name: string;
  readonly clause: string;
  readonly indirect?: boolean;
  readonly lie: (p: Pair) => void;
}[] = [
  {
    name: "a chain that loops",
    clause: "SPLIT-DESC-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 1, NEXT, 1);
      descriptor(p.parts.descriptors, 1, DATA, 1, NEXT, 0);
      offer(p);
    },
  },
  {
    name: "a next outside the table",
    clause: "SPLIT-DESC-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 1, NEXT, 8);
      offer(p);
    },
  },
  {
    name: "a readable segment after a writable one",
    clause: "FRAMING-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 1, NEXT | WRITE, 1);
      descriptor(p.parts.descriptors, 1, DATA, 1, 0);
      offer(p);
    },
  },
  {
    name: "a segment of 0 bytes",
    clause: "FRAMING-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 0, WRITE);
      offer(p);
    },
  },
  {
    name: "an address below guest memory",
    clause: "RESFEAT-5",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, BASE - 1, 16, 0);
      offer(p);
    },
  },
  {
    name: "a segment that runs out of guest memory",
    clause: "RESFEAT-5",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, BASE + (1 << 20) - 8, 16, 0);
      offer(p);
    },
  },
  {
    name: "an address above 4 GiB",
    clause: "RESFEAT-5",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 16, 0, 0, 1);
      offer(p);
    },
  },
  {
    name: "an address that wraps past 2^64",
    clause: "RESFEAT-5",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, 0xffff_fff8, 16, 0, 0, 0xffff_ffff);
      offer(p);
    },
  },
  {
    name: "a head outside the table",
    clause: "SPLIT-SUPPLY-1",
    lie: (p) => {
      offer(p, 8);
    },
  },
  {
    name: "an index that jumps",
    clause: "SPLIT-AVAIL-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 1, 0);
      offer(p, 0, 9);
    },
  },
  {
    name: "an index that goes back",
    clause: "SPLIT-AVAIL-1",
    lie: (p) => {
      offer(p, 0, 0xffff);
    },
  },
  {
    name: "a head that the device holds already",
    clause: "CLEANUP-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 1, 0);
      offer(p);
      expect(p.device.take()?.head).toBe(0);
      p.parts.available[3] = 0;
      p.parts.available[1] = 2;
    },
  },
  {
    name: "an indirect table that was not negotiated",
    clause: "SPLIT-INDIRECT-1",
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 16, INDIRECT);
      offer(p);
    },
  },
  {
    name: "an indirect table inside an indirect table",
    clause: "SPLIT-INDIRECT-2",
    indirect: true,
    lie: (p) => {
      descriptor(table(p, 1), 0, DATA, 16, INDIRECT);
      descriptor(p.parts.descriptors, 0, DATA, 16, INDIRECT);
      offer(p);
    },
  },
  {
    name: "an indirect table longer than the queue",
    clause: "SPLIT-INDIRECT-3",
    indirect: true,
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 9 * 16, INDIRECT);
      offer(p);
    },
  },
  {
    name: "an indirect table of no whole descriptors",
    clause: "SPLIT-INDIRECT-3",
    indirect: true,
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 24, INDIRECT);
      offer(p);
    },
  },
  {
    name: "an indirect table that loops",
    clause: "SPLIT-INDIRECT-3",
    indirect: true,
    lie: (p) => {
      descriptor(table(p, 2), 0, DATA, 1, NEXT, 1);
      descriptor(table(p, 2), 1, DATA, 1, NEXT, 0);
      descriptor(p.parts.descriptors, 0, DATA, 32, INDIRECT);
      offer(p);
    },
  },
  {
    name: "an indirect table outside guest memory",
    clause: "RESFEAT-5",
    indirect: true,
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, 0x1000, 16, INDIRECT);
      offer(p);
    },
  },
  {
    name: "a descriptor that is indirect and goes on",
    clause: "SPLIT-INDIRECT-4",
    indirect: true,
    lie: (p) => {
      descriptor(p.parts.descriptors, 0, DATA, 16, INDIRECT | NEXT, 1);
      offer(p);
    },
  },
];

describe("the device end of a split queue whose driver lies", () => {
  for (const { name, clause, indirect = false, lie } of lies)
    it(`breaks once on ${name} [${clause} fires]`, () => {
      const p = pair({ indirect });
      lie(p);
      const lied = new Uint8Array(p.buffer).slice();
      expect(p.device.take()).toBeNull();
      expect(p.device.take()).toBeNull();
      expect(p.deviceFaults.map((fault) => [fault.code, fault.clause])).toEqual([
        ["DRIVER_MISBEHAVED", clause],
      ]);
      expect(p.device.broken).toBe(true);
      expect(Buffer.compare(new Uint8Array(p.buffer), lied)).toBe(0);
    });

  it("refuses a ring that lies outside guest memory or is not aligned [SPLIT-LAYOUT-1 fires]", () => {
    const { buffer } = pair();
    const make =
      (descriptors: number, available: number, used: number, high = 0) =>
      () =>
        new SplitDeviceQueue({
          index: 0,
          size: 8,
          memory: {
            regions: [{ address: BASE, length: buffer.byteLength, bytes: new Uint8Array(buffer) }],
            locate: (low, up, length) =>
              up === 0 && low >= BASE && low + length <= BASE + buffer.byteLength ? 0 : -1,
          },
          descriptors: { low: descriptors, high },
          available: { low: available, high: 0 },
          used: { low: used, high: 0 },
          indirect: false,
          eventIdx: false,
          onBroken: () => {},
        });
    const clauseOf = (make: () => unknown): string | undefined => {
      try {
        make();
      } catch (error) {
        return error instanceof VirtioFault ? error.clause : undefined;
      }
      return undefined;
    };
    expect(clauseOf(make(BASE, BASE + 0x1000, BASE + 0x2000))).toBeUndefined();
    expect(clauseOf(make(BASE + 8, BASE + 0x1000, BASE + 0x2000))).toBe("SPLIT-LAYOUT-1");
    expect(clauseOf(make(BASE, BASE + 0x1001, BASE + 0x2000))).toBe("SPLIT-LAYOUT-1");
    expect(clauseOf(make(BASE, BASE + 0x1000, BASE + 0x2002))).toBe("SPLIT-LAYOUT-1");
    expect(clauseOf(make(0x1000, BASE + 0x1000, BASE + 0x2000))).toBe("RESFEAT-5");
    expect(clauseOf(make(BASE, BASE + 0x1000, BASE + 0x2000, 1))).toBe("RESFEAT-5");
  });

  it("takes direct descriptors that end in an indirect table, and ignores WRITE on the one that refers to it", () => {
    const p = pair({ indirect: true });
    descriptor(table(p, 2), 0, DATA + 0x100, 4, NEXT, 1);
    descriptor(table(p, 2), 1, DATA + 0x200, 8, WRITE);
    descriptor(p.parts.descriptors, 0, DATA + 0x300, 2, NEXT, 1);
    descriptor(p.parts.descriptors, 1, DATA, 32, INDIRECT | WRITE);
    offer(p);
    const chain = p.device.take();
    expect([chain?.readableLength, chain?.writableLength, chain?.segments]).toEqual([6, 8, 3]);
  });

  it("never writes to a descriptor or to a readable segment", () => {
    const p = pair();
    descriptor(p.parts.descriptors, 0, DATA, 4, NEXT, 1);
    descriptor(p.parts.descriptors, 1, DATA + 16, 4, WRITE);
    offer(p);
    const descriptors = p.parts.descriptors.slice();
    const chain = p.device.take();
    if (chain === null) throw new Error("no chain");
    expect(chain.write(0, new Uint8Array(64).fill(9))).toBe(4);
    p.device.give(chain, 4);
    expect(p.parts.descriptors).toEqual(descriptors);
    expect([...new Uint8Array(p.buffer, DATA - BASE, 20)]).toEqual([
      ...new Array(16).fill(0),
      9,
      9,
      9,
      9,
    ]);
  });
});

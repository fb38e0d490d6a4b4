// The driver's clauses of split and packed rings, each twice: real drivers keep it under the eyes of the checker, and the checker
// reports a ring, or a mutant of the driver, that breaks it. What needs an eye inside a call is in interleavings.test.ts.

import { product } from "@virtio/testing";
import { beforeAll, describe, expect, it } from "vitest";
import { random, runSeed } from "./support/random.js";
import { type Chain, type Format, nameOf, type Rig, type RigOptions, rig } from "./support/rig.js";
import { INDIRECT, NEXT, WRITE } from "./support/ring-bytes.js";
import { CheckedRig, PackedChecker, SplitChecker } from "./support/ring-checker.js";
import { runToWrap, Traffic } from "./support/traffic.js";

const seed = runSeed();

/** Traffic in every mode, with junk in the fields that a driver must ignore and signals that bring nothing. */
function traffic(format: Format): { broken: Set<string>; chains: number } {
  const broken = new Set<string>();
  let chains = 0;
  const modes = product({
    format: [format],
    size: format === "split" ? [1, 4, 64] : [1, 3, 64],
    indirect: [false, true],
    eventIdx: [false, true],
    inOrder: [false, true],
    wrap: [false, true],
  });
  for (const mode of modes) {
    const r = rig(mode);
    if (mode.wrap) runToWrap(r);
    const draw = random(seed + mode.size);
    const exchange = new Traffic(r, draw);
    r.driver.onUsed = () => void exchange.receive();
    for (let i = 0; i < 400; i++) {
      if (format === "split") {
        if (mode.eventIdx) r.split.used[0] = draw(2);
        r.split.used[2 + 4 * mode.size] = mode.eventIdx
          ? (r.split.available[1] ?? 0) - draw(3)
          : draw(0x1_0000);
        if (!mode.eventIdx) r.split.used[0] = draw(2);
      } else if (draw(4) === 0) r.device.disableNotify();
      else r.device.enableNotify();
      if (draw(4) === 0) r.driver.interrupted();
      if (draw(8) === 0) r.driver.disableInterrupt();
      if (draw(8) === 0) r.driver.enableInterrupt();
      if (draw(8) === 0) r.driver.postponeInterrupt("long");
      exchange.step();
    }
    exchange.settle();
    expect([nameOf(mode), r.driver.broken, r.device.broken]).toEqual([nameOf(mode), null, false]);
    for (const clause of exchange.checker.broken) broken.add(clause);
    chains += exchange.returned;
  }
  return { broken, chains };
}

/** A chain of `readable` and `writable` segments of 16 bytes, made available, not yet looked at. */
function offered(options: RigOptions, readable = 1, writable = 1): CheckedRig {
  const c = new CheckedRig(rig(options));
  const { driver, data } = c.rig;
  const segments = new Uint32Array(2 * (readable + writable));
  for (let k = 0; k < readable + writable; k++) segments.set([data.address + 32 * k, 16], 2 * k);
  if (driver.enqueue(1, segments, 0, readable, writable) !== 0) throw new Error("no room");
  driver.publish();
  return c;
}

/** The first indirect table that the driver wrote, as words. */
function tableOf({ buffer, memory, split, packed, mode }: Rig): Uint32Array {
  const [address = 0, , length = 0] =
    mode.format === "split" ? split.descriptors : packed.descriptors;
  return new Uint32Array(buffer, address - memory.base, length >>> 2);
}

function take(c: CheckedRig): Chain {
  const chain = c.take();
  if (chain === null) throw new Error("no chain");
  return chain;
}

interface Clause {
  readonly id: string;
  /** What the driver does. */
  readonly keeps: string;
  /** The mutant or the recorded ring. */
  readonly mutant: string;
  /** Breaks the clause, and returns what the checker says. */
  readonly breaks: () => Set<string>;
}

/** Makes a chain available, spoils the bytes, looks. */
const spoiled =
  (options: RigOptions, spoil: (r: Rig) => void, readable = 1, writable = 1) =>
  (): Set<string> => {
    const c = offered(options, readable, writable);
    spoil(c.rig);
    c.checker.look(true);
    return c.checker.broken;
  };

/** A driver whose doorbell is lost, after the device wrote what it wants. */
const silent = (eventIdx: boolean, wants: (r: Rig) => void) => (): Set<string> => {
  const c = offered({ eventIdx });
  wants(c.rig);
  c.checker.notified([]);
  return c.checker.broken;
};

const splitClauses: readonly Clause[] = [
  {
    id: "SPLIT-LAYOUT-1",
    keeps:
      "aligns the descriptor table to 16, the available ring to 2 and the used ring to 4 bytes",
    mutant: "a descriptor table at a multiple of 8",
    breaks: () => {
      const { place, mode } = rig();
      const at = {
        ...place,
        ...mode,
        descriptors: place.descriptors + 8,
        maxSegments: 4,
        begun: 0,
      };
      return new SplitChecker(at).broken;
    },
  },
  {
    id: "FRAMING-1",
    keeps: "puts writable segments after readable ones",
    mutant: "WRITE moved to the first segment",
    breaks: spoiled({}, ({ split }) => {
      split.descriptors[3] = (split.descriptors[3] ?? 0) | WRITE;
      split.descriptors[7] = (split.descriptors[7] ?? 0) & ~WRITE;
    }),
  },
  {
    id: "SPLIT-DESC-1",
    keeps: "makes no chain that loops",
    mutant: "the last descriptor goes on at the first",
    breaks: spoiled({}, ({ split }) => {
      split.descriptors[7] = WRITE | NEXT | (0 << 16);
    }),
  },
  {
    id: "SPLIT-DESC-2",
    keeps: "with IN_ORDER goes on at the next descriptor, and after the last at 0",
    mutant: "a chain that skips a descriptor",
    breaks: spoiled({ inOrder: true }, ({ split }) => {
      split.descriptors.copyWithin(8, 4, 8);
      split.descriptors[3] = NEXT | (2 << 16);
    }),
  },
  {
    id: "SPLIT-INDIRECT-1",
    keeps: "makes no indirect table that was not negotiated",
    mutant: "INDIRECT set on a segment",
    breaks: spoiled({}, ({ split }) => {
      split.descriptors[3] = INDIRECT;
    }),
  },
  {
    id: "SPLIT-INDIRECT-2",
    keeps: "makes no table inside a table",
    mutant: "INDIRECT set in a table",
    breaks: spoiled({ indirect: true }, (r) => {
      const table = tableOf(r);
      table[7] = INDIRECT;
    }),
  },
  {
    id: "SPLIT-INDIRECT-3",
    keeps: "makes no chain longer than the queue",
    mutant: "a table of nine entries for a queue of eight",
    breaks: spoiled({ indirect: true }, ({ split }) => {
      split.descriptors[2] = 9 * 16;
    }),
  },
  {
    id: "SPLIT-INDIRECT-4",
    keeps: "never sets INDIRECT and NEXT together",
    mutant: "NEXT set on a descriptor that refers to a table",
    breaks: spoiled({ indirect: true }, ({ split }) => {
      split.descriptors[3] = INDIRECT | NEXT | (1 << 16);
    }),
  },
  {
    id: "SPLIT-INDIRECT-5",
    keeps: "with IN_ORDER fills tables in sequence",
    mutant: "a table entry that skips one",
    breaks: spoiled(
      { indirect: true, inOrder: true },
      (r) => {
        const table = tableOf(r);
        table[3] = NEXT | (2 << 16);
      },
      2,
      1,
    ),
  },
  {
    id: "SPLIT-AVAIL-1",
    keeps: "never decrements avail.idx",
    mutant: "a chain taken back from the available ring",
    breaks: () => {
      const c = offered({});
      c.checker.look(true);
      c.rig.split.available[1] = 0;
      c.checker.look(true);
      return c.checker.broken;
    },
  },
  {
    id: "SPLIT-USEDSUP-1",
    keeps: "without EVENT_IDX keeps avail.flags 0 or 1",
    mutant: "avail.flags 2",
    breaks: spoiled({}, ({ split }) => {
      split.available[0] = 2;
    }),
  },
  {
    id: "SPLIT-USEDSUP-3",
    keeps: "with EVENT_IDX keeps avail.flags 0",
    mutant: "avail.flags 1",
    breaks: spoiled({ eventIdx: true }, ({ split }) => {
      split.available[0] = 1;
    }),
  },
  {
    id: "SPLIT-USEDSUP-5",
    keeps: "copes with signals that bring nothing",
    mutant: "a driver that takes a chain for used because it was signalled",
    breaks: () => {
      const c = offered({});
      const { id } = take(c);
      c.checker.completed(id, 0);
      return c.checker.broken;
    },
  },
  {
    id: "SPLIT-USED-1",
    keeps: "assumes nothing about the bytes beyond used.len",
    mutant: "a driver that takes all writable bytes for written",
    breaks: () => {
      const c = offered({});
      const chain = take(c);
      c.give(chain, 4);
      c.checker.completed(chain.id, chain.writableLength);
      return c.checker.broken;
    },
  },
  {
    id: "SPLIT-AVAILSUP-1",
    keeps: "begins with used.flags 0",
    mutant: "a used ring left as it was",
    breaks: () => {
      const r = rig();
      r.split.used[0] = 1;
      return new CheckedRig(r).checker.broken;
    },
  },
  {
    id: "SPLIT-AVAILSUP-2",
    keeps: "without EVENT_IDX ignores avail_event",
    mutant: "a driver that goes by avail_event",
    breaks: silent(false, ({ split }) => {
      split.used[2 + 4 * 8] = 0x1234;
    }),
  },
  {
    id: "SPLIT-AVAILSUP-4",
    keeps: "without EVENT_IDX notifies when used.flags is 0",
    mutant: "a driver that loses a doorbell",
    breaks: silent(false, () => {}),
  },
  {
    id: "SPLIT-AVAILSUP-5",
    keeps: "with EVENT_IDX ignores used.flags",
    mutant: "a driver that goes by used.flags",
    breaks: silent(true, ({ split }) => {
      split.used[0] = 1;
    }),
  },
  {
    id: "SPLIT-AVAILSUP-6",
    keeps: "with EVENT_IDX notifies when avail_event is reached",
    mutant: "a driver that loses a doorbell",
    breaks: silent(true, () => {}),
  },
  {
    id: "SPLIT-AVAILSUP-3",
    keeps: "without EVENT_IDX does not notify when used.flags is 1",
    mutant: "a driver that always notifies",
    breaks: () => {
      const c = offered({});
      c.rig.split.used[0] = 1;
      c.checker.notified([1]);
      return c.checker.broken;
    },
  },
  {
    id: "SPLIT-AVAILSUP-7",
    keeps: "with EVENT_IDX does not notify for indices other than avail_event",
    mutant: "a driver that always notifies",
    breaks: () => {
      const c = offered({ eventIdx: true });
      c.rig.split.used[2 + 4 * 8] = 7;
      c.checker.notified([1]);
      return c.checker.broken;
    },
  },
  {
    id: "SPLIT-USED-2",
    keeps: "reports no more bytes than used.len",
    mutant: "a driver that takes all writable bytes for written",
    breaks: () => {
      const c = offered({});
      const chain = take(c);
      c.give(chain, 0);
      c.checker.completed(chain.id, chain.writableLength);
      return c.checker.broken;
    },
  },
];

const packedClauses: readonly Clause[] = [
  {
    id: "PACKED-LAYOUT-1",
    keeps: "aligns the descriptor ring to 16 and the event suppression areas to 4 bytes",
    mutant: "an event suppression area at a multiple of 2",
    breaks: () => {
      const { place, mode } = rig({ format: "packed" });
      return new PackedChecker({
        ...place,
        ...mode,
        driver: place.driver + 4,
        device: place.device - 4,
        descriptors: place.descriptors + 4,
        maxSegments: 4,
        begun: 0,
      }).broken;
    },
  },
  {
    id: "PACKED-DESC-1",
    keeps: "does not change a descriptor until its USED bit changed",
    mutant: "a place used for the next lap too early",
    breaks: () => {
      const c = offered({ format: "packed" });
      const { id } = take(c);
      c.rig.packed.halves[7] = 0x8000;
      c.checker.beforeUse(id);
      return c.checker.broken;
    },
  },
  {
    id: "PACKED-DESC-2",
    keeps: "does not change a descriptor after it made it available",
    mutant: "a length changed afterwards",
    breaks: () => {
      const c = offered({ format: "packed" });
      const { id } = take(c);
      c.rig.packed.descriptors[2] = 1;
      c.checker.beforeUse(id);
      return c.checker.broken;
    },
  },
  {
    id: "PACKED-DESC-3",
    keeps: "says in its doorbells where the next available descriptor will be",
    mutant: "a doorbell that says where the last one is",
    breaks: () => {
      const c = offered({ format: "packed" });
      c.checker.notified([1 | 0x8000]);
      return c.checker.broken;
    },
  },
  {
    id: "PACKED-SG-1",
    keeps: "makes no list longer than the device allows",
    mutant: "a list of three where two are allowed",
    breaks: spoiled({ format: "packed", maxSegments: 2 }, () => {}, 2, 1),
  },
  {
    id: "PACKED-SG-2",
    keeps: "makes no list longer than the queue",
    mutant: "a list of the whole ring that goes on",
    breaks: () => {
      const c = new CheckedRig(rig({ format: "packed", size: 4 }));
      const d = { address: c.rig.data.address, length: 1, flags: NEXT };
      c.rig.packed.offer(d, d, d, d);
      c.checker.look(true);
      return c.checker.broken;
    },
  },
  {
    id: "PACKED-SG-3",
    keeps: "puts writable segments after readable ones",
    mutant: "WRITE moved to the first segment",
    breaks: spoiled({ format: "packed" }, ({ packed }) => {
      packed.halves[7] = packed.flags(0) | WRITE;
      packed.halves[15] = packed.flags(1) & ~WRITE;
    }),
  },
  {
    id: "PACKED-SG-4",
    keeps: "makes lists available whole, whether or not the device goes on",
    mutant: "a list whose rest waits for the device",
    breaks: spoiled({ format: "packed" }, ({ packed }) => {
      packed.halves[15] = 0;
    }),
  },
  {
    id: "PACKED-SG-5",
    keeps: "has room for a whole list before it makes the first descriptor available",
    mutant: "a list that runs on into descriptors which the device holds",
    breaks: () => {
      const c = new CheckedRig(rig({ format: "packed", size: 4 }));
      const d = { address: c.rig.data.address, length: 1 };
      c.rig.packed.offer(d);
      take(c);
      const rest = { ...d, flags: NEXT };
      c.rig.packed.offer(rest, rest, rest);
      c.checker.look(true);
      return c.checker.broken;
    },
  },
  {
    id: "PACKED-INDIRECT-1",
    keeps: "makes no indirect table that was not negotiated",
    mutant: "INDIRECT set on a segment",
    breaks: spoiled({ format: "packed" }, ({ packed }) => {
      packed.halves[7] = packed.flags(0) | INDIRECT;
    }),
  },
  {
    id: "PACKED-INDIRECT-2",
    keeps: "sets no flag but WRITE in a table",
    mutant: "NEXT set in a table",
    breaks: spoiled({ format: "packed", indirect: true }, (r) => {
      const table = tableOf(r);
      table[3] = NEXT << 16;
    }),
  },
  {
    id: "PACKED-INDIRECT-3",
    keeps: "makes no table longer than the device allows",
    mutant: "a table of five entries where four are allowed",
    breaks: spoiled({ format: "packed", indirect: true }, ({ packed }) => {
      packed.descriptors[2] = 5 * 16;
    }),
  },
  {
    id: "PACKED-INDIRECT-4",
    keeps: "makes no list of which a descriptor is indirect",
    mutant: "INDIRECT set at the end of a list",
    breaks: spoiled({ format: "packed" }, ({ packed }) => {
      packed.halves[15] = packed.flags(1) | INDIRECT;
    }),
  },
];

describe.each([
  { format: "split" as const, clauses: splitClauses },
  { format: "packed" as const, clauses: packedClauses },
])("the driver's end of a $format queue", ({ format, clauses }) => {
  let seen: ReturnType<typeof traffic> = { broken: new Set(), chains: 0 };
  beforeAll(() => {
    seen = traffic(format);
  });

  for (const { id, keeps, mutant, breaks } of clauses) {
    it(`${keeps} [${id}]`, () => {
      expect(seen.chains).toBeGreaterThan(1000);
      expect([...seen.broken]).not.toContain(id);
    });
    it(`is caught when it does not: ${mutant} [${id} fires]`, () => {
      expect([...breaks()]).toContain(id);
    });
  }

  it("breaks no rule that the checker knows", () => {
    expect([...seen.broken]).toEqual([]);
  });
});

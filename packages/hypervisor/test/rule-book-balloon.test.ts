// Each rule of the balloon's language is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { BalloonFeature, BalloonHint, BalloonQueue } from "@virtio/core/balloon";
import { describe, expect, it } from "vitest";
import {
  BalloonGuest,
  type BalloonGuestOptions,
  HINT_AT,
  POISON_AT,
  statistic,
} from "./balloon-guest.js";
import { le16, le32 } from "./net-guest.js";

const F = BalloonFeature;
const { INFLATE, DEFLATE, FREE_PAGE, REPORTING } = BalloonQueue;
const MUST = F.MUST_TELL_HOST;
const POISON = 0x0101_0101;

/** Clause, what the guest does, how it does it, to which device. */
type Crime = readonly [
  clause: string,
  what: string,
  commit: (guest: BalloonGuest) => Promise<unknown>,
  device?: BalloonGuestOptions,
];

const stats = (...tags: readonly number[]): number[] => tags.flatMap((tag) => statistic(tag, 1));
const be32 = (n: number): Uint8Array => Uint8Array.from(le32(n)).reverse();

const hints: BalloonGuestOptions = { accept: [MUST, F.FREE_PAGE_HINT] };
const statistics: BalloonGuestOptions = { accept: [MUST, F.STATS_VQ] };
const reports: BalloonGuestOptions = { accept: [MUST, F.PAGE_REPORTING] };
const old = { legacy: "on" } as const;

/** Two pages in the balloon, rightly. */
async function two(g: BalloonGuest) {
  g.port.target = 2;
  await g.read(0);
  const pages = [g.page(), g.page()] as const;
  await g.inflate(...pages);
  await g.actual(2);
  return pages;
}

/** Begins a round of hints, rightly. */
async function round(g: BalloonGuest): Promise<number> {
  const id = g.port.startHinting();
  await g.read(HINT_AT);
  await g.command(id);
  return id;
}

const crimes: readonly Crime[] = [
  ["BALLOON-FEAT-1", "does not accept MUST_TELL_HOST", async () => {}, { accept: [] }],
  [
    "BALLOON-OP-4",
    "takes pages that the device wants to keep, without DEFLATE_ON_OOM, and goes on",
    async (g) => {
      const [page] = await two(g);
      await g.deflate(page);
      expect(g.clauses()).toEqual([]);
      await g.read(0);
    },
  ],
  [
    "BALLOON-OP-6",
    "gives the device a page that it has already",
    async (g) => {
      const [page] = await two(g);
      await g.inflate(page);
    },
  ],
  [
    "BALLOON-OP-6",
    "says that the device has less than it has",
    async (g) => {
      await two(g);
      await g.actual(1);
    },
  ],
  [
    "BALLOON-OP-7",
    "uses a page before it asked for it",
    async (g) => {
      const [page] = await two(g);
      g.port.target = 0;
      await g.read(0);
      page.bytes[100] = 1;
      await g.deflate(page);
    },
  ],
  [
    "BALLOON-OP-7",
    "uses a page before its deflate request is used",
    async (g) => {
      const [page] = await two(g);
      g.port.target = 0;
      await g.read(0);
      g.port.hold(DEFLATE);
      await g.deflate(page);
      page.bytes[100] = 1;
      expect(g.clauses()).toEqual([]);
      g.port.letGo();
      await g.settle();
    },
  ],
  [
    "BALLOON-OP-9",
    "uses a page before its inflate request is used",
    async (g) => {
      g.port.hold(INFLATE);
      const page = g.page();
      await g.inflate(page);
      page.bytes[100] = 1;
      g.port.letGo();
      await g.settle();
    },
  ],
  [
    "BALLOON-OP-10",
    "takes back a page whose inflate request is not used",
    async (g) => {
      g.port.hold(INFLATE);
      const page = g.page();
      await g.inflate(page);
      await g.deflate(page);
    },
  ],
  ["BALLOON-OP-10", "takes back a page that it never gave", (g) => g.deflate(g.page())],
  [
    "BALLOON-OP-11",
    "says that the device has more than it has",
    async (g) => {
      await two(g);
      await g.actual(3);
    },
  ],
  [
    "BALLOON-OP-11",
    "never says how many pages the device has",
    async (g) => {
      await g.inflate(g.page());
      await g.reset();
    },
  ],
  [
    "BALLOON-OP-LEGACY-2",
    "writes actual byte by byte",
    async (g) => {
      for (let i = 0; i < 4; i++) await g.write(4 + i, 0, 1);
    },
    old,
  ],
  [
    "BALLOON-CFG-LEGACY-1",
    "writes actual in big-endian order",
    async (g) => {
      await two(g);
      await g.actual(0x0200_0000);
    },
    old,
  ],
  [
    "BALLOON-STATS-1",
    "makes two buffers of statistics available",
    async (g) => {
      await g.statistics(...stats(4, 5));
      await g.statistics(...stats(4, 5));
    },
    statistics,
  ],
  [
    "BALLOON-STATS-2",
    "never makes a buffer of statistics available",
    (g) => new Promise<void>((resolve) => void g.machine.tasks.callout(6000, resolve)),
    { ...statistics, seed: 1 },
  ],
  [
    "BALLOON-STATS-3",
    "makes no other buffer of statistics available when the first is used",
    async (g) => {
      await g.statistics(...stats(4, 5));
      g.port.requestStatistics().catch(() => {});
      await new Promise<void>((resolve) => void g.machine.tasks.callout(6000, resolve));
    },
    { ...statistics, seed: 1 },
  ],
  [
    "BALLOON-STATS-4",
    "says the same statistic twice",
    (g) => g.statistics(...stats(4, 5, 4)),
    statistics,
  ],
  ["BALLOON-STATS-4", "says no statistic", (g) => g.statistics(...stats(77)), statistics],
  [
    "BALLOON-STATS-5",
    "makes half a statistic available",
    (g) => g.statistics(...stats(4), 5, 0, 0, 0, 0),
    statistics,
  ],
  [
    "BALLOON-STATS-8",
    "says other statistics than before",
    async (g) => {
      await g.statistics(...stats(4, 5));
      g.port.requestStatistics().catch(() => {});
      await g.settle();
      await g.statistics(...stats(4, 6));
    },
    statistics,
  ],
  [
    "BALLOON-STATS-LEGACY-1",
    "says statistics in big-endian order",
    (g) => g.statistics(...[...le16(4)].reverse(), 0, 0, 0, 0, 0, 0, 0, 1),
    { ...statistics, ...old },
  ],
  [
    "BALLOON-HINT-1",
    "says a command id of 8 bytes",
    async (g) => {
      const id = g.port.startHinting();
      await g.offer(FREE_PAGE, Uint8Array.from([...le32(id), ...le32(0)]));
    },
    hints,
  ],
  [
    "BALLOON-HINT-2",
    "begins a round with an id that there never was",
    async (g) => {
      const id = g.port.startHinting();
      await g.command(id + 5);
    },
    hints,
  ],
  [
    "BALLOON-HINT-2",
    "hints pages before it says under which id",
    async (g) => {
      g.port.startHinting();
      await g.offer(FREE_PAGE, 4096);
    },
    hints,
  ],
  [
    "BALLOON-HINT-3",
    "says the id of a round twice",
    async (g) => {
      await g.command(await round(g));
    },
    hints,
  ],
  [
    "BALLOON-HINT-5",
    "goes on hinting though it read STOP",
    async (g) => {
      await round(g);
      g.port.stopHinting();
      await g.read(HINT_AT);
      await g.offer(FREE_PAGE, 4096);
    },
    hints,
  ],
  [
    "BALLOON-HINT-6",
    "begins a round before it ended the last",
    async (g) => {
      await round(g);
      await round(g);
    },
    hints,
  ],
  [
    "BALLOON-HINT-LEGACY-1",
    "says a command id in big-endian order",
    async (g) => {
      const id = g.port.startHinting();
      await g.offer(FREE_PAGE, be32(id));
    },
    { ...hints, ...old },
  ],
  [
    "BALLOON-POISON-2",
    "accepts PAGE_POISON and runs without having said with what",
    async () => {},
    { accept: [MUST, F.PAGE_POISON] },
  ],
  [
    "BALLOON-POISON-3",
    "changes its poison while it runs",
    async (g) => {
      await g.run([MUST, F.PAGE_POISON], () => g.write(POISON_AT, POISON));
      expect(g.clauses()).toEqual([]);
      await g.write(POISON_AT, 0);
    },
  ],
  [
    "BALLOON-REPORT-2",
    "reports pages that are not poisoned",
    async (g) => {
      await g.run([MUST, F.PAGE_POISON, F.PAGE_REPORTING], () => g.write(POISON_AT, POISON));
      await g.offer(REPORTING, g.page());
    },
  ],
  [
    "BALLOON-REPORT-3",
    "uses a page before its report is used",
    async (g) => {
      g.port.hold(REPORTING);
      const page = g.page();
      await g.offer(REPORTING, page);
      page.bytes[100] = 1;
      g.port.letGo();
      await g.settle();
    },
    reports,
  ],
];

describe("the rule book of the balloon", () => {
  for (const [clause, what, commit, device] of crimes)
    it(`reports a guest that ${what} [${clause} fires]`, async () => {
      const g = await BalloonGuest.start(device);
      try {
        await commit(g);
        expect(g.clauses()).toContain(clause);
        expect(g.rules.violations.at(-1)?.device).toBe("balloon0");
      } finally {
        await g.machine.close();
      }
    });

  for (const legacy of ["off", "on"] as const)
    it(`keeps them of a guest that does all of this as it should, legacy=${legacy}`, async () => {
      const all = [MUST, F.STATS_VQ, F.FREE_PAGE_HINT, F.PAGE_POISON, F.PAGE_REPORTING];
      const g = await BalloonGuest.start({ legacy, start: false });
      await g.run(all, () => g.write(POISON_AT, POISON));
      for (let n = 0; n < 2; n++) {
        expect(await g.statistics(...stats(4, 5, 6))).toBe(n);
        if (n === 0) g.port.requestStatistics().catch(() => {});
        await g.settle();
      }
      const pages = await two(g);
      g.port.target = 0;
      await g.read(0);
      expect(await g.deflate(...pages)).toBe(1);
      await g.actual(0);
      for (let n = 0; n < 2; n++) {
        await round(g);
        await g.offer(FREE_PAGE, 8192);
        await g.command(BalloonHint.STOP);
      }
      const page = g.page();
      page.bytes.fill(1);
      expect(await g.offer(REPORTING, page)).toBe(1);
      // All pages go back when a device is given up.
      const last = await two(g);
      g.port.target = 5;
      await g.read(0);
      await g.deflate(...last);
      await g.actual(0);
      await g.reset();
      expect(g.clauses()).toEqual([]);
      const other = legacy === "on" ? /STATS-2/ : /LEGACY|STATS-2/;
      for (const clause of crimes.map(([id]) => id).filter((id) => !other.test(id)))
        expect([clause, g.rules.kept(clause) > 0]).toEqual([clause, true]);
      await g.machine.close();
    });

  it("lets a guest use pages before it says so, without MUST_TELL_HOST, and take them with DEFLATE_ON_OOM", async () => {
    const g = await BalloonGuest.start({
      features: { MUST_TELL_HOST: false },
      accept: [F.DEFLATE_ON_OOM],
    });
    const [page] = await two(g);
    page.bytes.fill(9);
    await g.deflate(page);
    await g.actual(1);
    await g.read(0);
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
  });
});

// The balloon of the embedded machine, clause by device clause (virtio 1.4 §5.5).
import { BalloonFeature, BalloonHint, BalloonQueue, BalloonStatistic } from "@virtio/core/balloon";
import { describe, expect, it, onTestFinished } from "vitest";
import { embedded } from "../src/index.js";
import {
  BalloonGuest,
  type BalloonGuestOptions,
  HINT_AT,
  POISON_AT,
  statistic,
} from "./balloon-guest.js";

const F = BalloonFeature;
const { FREE_PAGE, REPORTING } = BalloonQueue;
const MUST = F.MUST_TELL_HOST;

async function start(options?: BalloonGuestOptions): Promise<BalloonGuest> {
  const guest = await BalloonGuest.start(options);
  onTestFinished(() => guest.machine.close());
  return guest;
}

for (const legacy of ["off", "on"] as const)
  describe(`the balloon, legacy=${legacy},`, () => {
    it("shows its target in little-endian order, and takes what the driver says of it", async () => {
      const g = await start({ legacy });
      g.port.target = 0x0102_0304;
      expect(await g.read(0)).toBe(0x0102_0304);
      expect(await g.read(0, 1)).toBe(4);
      expect(await g.read(2, 2)).toBe(0x0102);
      const seen: number[] = [];
      g.port.onActual = (pages) => seen.push(pages);
      await g.actual(7);
      expect([g.port.actual, await g.read(4), seen]).toEqual([7, 7, [7]]);
      // The target is the device's.
      await g.write(0, 9);
      await g.write(HINT_AT, 9);
      expect([await g.read(0), await g.read(HINT_AT)]).toEqual([0x0102_0304, 0]);
    });

    it("does not use actual until its last byte is written", async () => {
      const g = await start({ legacy });
      const seen: number[] = [];
      g.port.onActual = (pages) => seen.push(pages);
      for (const [i, byte] of [0x11, 0x22, 0x33].entries()) await g.write(4 + i, byte, 1);
      expect([g.port.actual, seen]).toEqual([0, []]);
      await g.write(7, 0x44, 1);
      expect([g.port.actual, seen]).toEqual([0x4433_2211, [0x4433_2211]]);
    });

    it("takes the content of pages, and gives them back", async () => {
      const g = await start({ legacy });
      const pages = [g.page(), g.page(), g.page()] as const;
      for (const { bytes } of pages) bytes.fill(7);
      expect(await g.inflate(pages[0], pages[2])).toBe(1);
      expect(pages.map(({ bytes }) => bytes.every((byte) => byte === 0))).toEqual([
        ...[true, false, true],
      ]);
      expect(g.port.pages).toBe(2);
      g.port.target = 1;
      await g.read(0);
      expect(await g.deflate(pages[0])).toBe(1);
      expect(g.port.pages).toBe(1);
      await g.reset();
      expect([g.port.pages, g.port.actual]).toEqual([0, 0]);
    });

    it("takes no page that is not there, and no half page number", async () => {
      const g = await start({ legacy });
      for (const bytes of [
        [1, 2, 3],
        [0, 0, 0, 0],
        [0xff, 0xff, 0xff, 0xff],
        [0, 0, 0, 0, 9],
      ])
        expect(await g.offer(BalloonQueue.INFLATE, Uint8Array.from(bytes))).toBe(1);
      expect(await g.offer(BalloonQueue.INFLATE, 64)).toBe(1);
      expect(g.port.pages).toBe(0);
    });

    it("takes statistics in any order, and whatever tags there are; of a legacy driver not the first", async () => {
      const g = await start({ legacy, accept: [MUST, F.STATS_VQ] });
      const { MEMFREE, MEMTOT } = BalloonStatistic;
      await g.statistics(...statistic(77, 5), ...statistic(MEMTOT, 9), ...statistic(MEMFREE, 3));
      expect(g.port.statistics === null).toBe(legacy === "on");
      const asked = g.port.requestStatistics();
      await g.settle();
      // Of half an entry nothing is known.
      await g.statistics(...statistic(MEMFREE, 4), ...statistic(MEMTOT, 9), 1, 2, 3);
      expect([...(await asked)]).toEqual([
        [MEMFREE, 4],
        [MEMTOT, 9],
      ]);
      const never = g.port.requestStatistics();
      await expect(g.port.requestStatistics()).rejects.toMatchObject({ code: "BUSY" });
      await g.reset();
      await expect(never).rejects.toMatchObject({ code: "CLOSED" });
      await expect(g.port.requestStatistics()).rejects.toMatchObject({ code: "BUSY" });
    });

    it("takes hints under the current id alone, and leaves the pages as they are", async () => {
      const g = await start({ legacy, accept: [MUST, F.FREE_PAGE_HINT] });
      const first = g.port.startHinting();
      expect([first, await g.read(HINT_AT)]).toEqual([2, 2]);
      await g.command(first);
      const page = g.page(8192);
      page.bytes.fill(7);
      expect(await g.offer(FREE_PAGE, page)).toBe(1);
      const { address } = page;
      expect(g.port.hinted).toEqual([{ address, length: 8192 }]);
      expect(page.bytes.every((byte) => byte === 7)).toBe(true);
      const second = g.port.startHinting();
      expect([second, g.port.hintsEnded]).toEqual([3, false]);
      // Of the round before.
      await g.offer(FREE_PAGE, page);
      expect(g.port.hinted).toEqual([]);
      await g.command(BalloonHint.STOP);
      expect(g.port.hintsEnded).toBe(true);
      await g.command(second);
      await g.offer(FREE_PAGE, page);
      expect(g.port.hinted).toHaveLength(1);
      g.port.finishHinting();
      expect(await g.read(HINT_AT)).toBe(BalloonHint.DONE);
      await g.offer(FREE_PAGE, page);
      g.port.stopHinting();
      expect(await g.read(HINT_AT)).toBe(BalloonHint.STOP);
      expect(g.port.hinted).toHaveLength(1);
    });

    it("takes the content of reported pages, but with PAGE_POISON, whose pattern they keep", async () => {
      const plain = await start({ legacy, accept: [MUST, F.PAGE_REPORTING] });
      const page = plain.page();
      page.bytes.fill(7);
      expect(await plain.offer(REPORTING, page, plain.page())).toBe(1);
      expect([page.bytes[9], plain.port.reported, plain.port.poison]).toEqual([0, 8192, null]);
      const poisoned = await start({ legacy, start: false });
      await poisoned.run([MUST, F.PAGE_REPORTING, F.PAGE_POISON], () =>
        poisoned.write(POISON_AT, 0x0707_0707),
      );
      const other = poisoned.page();
      other.bytes.fill(7);
      expect(await poisoned.offer(REPORTING, other)).toBe(1);
      expect([other.bytes[9], poisoned.port.poison]).toEqual([7, 0x0707_0707]);
    });
  });

describe("the balloon", () => {
  it("numbers its queues as the specification does, or without holes", async () => {
    const features = { STATS_VQ: false, FREE_PAGE_HINT: false };
    const fixed = await start({ features, start: false });
    expect(await fixed.sizes(6)).toEqual([64, 64, 0, 0, 64, 0]);
    const compact = await start({ features, compactQueues: true, start: false });
    expect(await compact.sizes(6)).toEqual([64, 64, 64, 0, 0, 0]);
    const neither = { ...features, PAGE_REPORTING: false, PAGE_POISON: false };
    const small = await start({ features: neither, start: false });
    expect(await small.sizes(3)).toEqual([64, 64, 0]);
    // Behind what there is of the configuration there is nothing.
    expect(await small.read(8)).toBe(0xffff_ffff);
  });

  it("refuses what it cannot honour", async () => {
    for (const spec of ["balloon,mq=on", "balloon,legacy=on,packed=on", "balloon,queue-size=100"])
      await expect(embedded({ devices: [spec] })).rejects.toMatchObject({
        code: expect.stringMatching(/INVALID|UNSUPPORTED/),
      });
  });
});

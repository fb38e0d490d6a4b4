// Free pages of which the device is told: hints, reports, and what they are filled with.
import type { MemoryRange } from "@virtio/core";
import { BalloonQueue } from "@virtio/core/balloon";
import { describe, expect, it } from "vitest";
import { type Bench, bench, isFull, PAGE, pass, scribble, until } from "./attached.js";

const POISON = 0xdead_beef;
const PATTERN = [0xef, 0xbe, 0xad, 0xde];

const sum = (ranges: readonly MemoryRange[]): number =>
  ranges.reduce((bytes, { length }) => bytes + length, 0);

/** Whether memory holds the pattern, word for word. */
const isPoison = (bytes: Uint8Array): boolean => bytes.every((byte, i) => byte === PATTERN[i & 3]);

/** The device reports: each range with the bytes that it has then. */
function reportsOf({ port }: Pick<Bench, "port">): MemoryRange[] {
  const ranges: MemoryRange[] = [];
  port.onReport = (range) => ranges.push(range);
  return ranges;
}

const kinds = [
  ["a split ring", {}],
  ["a packed ring", { packed: true }],
  ["a legacy device", { legacy: "on" }],
] as const;

for (const [what, options] of kinds)
  describe(`vtballoon, on ${what},`, () => {
    it("hints all free memory, once, between the round's id and STOP [BALLOON-HINT-1] [BALLOON-HINT-2] [BALLOON-HINT-3] [BALLOON-HINT-4] [BALLOON-HINT-5] [BALLOON-HINT-6] [BALLOON-HINT-10] [BALLOON-HINT-LEGACY-1]", async () => {
      const { balloon, port, machine, rules } = await bench({
        ...options,
        driver: { reportingDisable: true },
      });
      const before = machine.memory.available;
      for (let round = 0; round < 3; round++) {
        port.startHinting();
        await until(() => port.hintsEnded);
        const hinted = sum(port.hinted);
        expect(hinted).toBeGreaterThan(before - (64 << 10) - PAGE);
        expect(hinted).toBeLessThanOrEqual(before);
        const order = port.hinted.map(({ address, length }) => [address, address + length]);
        for (const [i, [start = 0]] of order.entries())
          expect(start).toBeGreaterThanOrEqual(order[i - 1]?.[1] ?? 0);
        port.finishHinting();
        await pass(machine, 10);
        expect(machine.memory.available).toBe(before);
      }
      expect(balloon.statistics.hinted).toBeGreaterThan(0);
      expect(rules.violations).toEqual([]);
      for (const n of [1, 2, 3, 4, 5, 6])
        expect([n, rules.kept(`BALLOON-HINT-${n}`)]).not.toEqual([n, 0]);
      if (what === "a legacy device") expect(rules.kept("BALLOON-HINT-LEGACY-1")).toBe(6);
    });

    it("reports free memory in large pieces, and again only what was used meanwhile [BALLOON-REPORT-5]", async () => {
      const seen = await bench(options);
      const { balloon, machine, rules } = seen;
      const reports = reportsOf(seen);
      await pass(machine, 1000);
      expect(reports).toEqual([]);
      await pass(machine, 2000);
      const free = machine.memory.available;
      expect(sum(reports)).toBeGreaterThan(free - (128 << 10));
      expect(sum(reports)).toBeLessThanOrEqual(free);
      for (const { length } of reports) expect(length).toBeGreaterThanOrEqual(64 << 10);
      expect(balloon.statistics.reported).toBe(sum(reports));
      reports.length = 0;
      await pass(machine, 60_000);
      expect(reports).toEqual([]);
      const region = machine.memory.allocate(1 << 20, 1 << 16);
      const { address } = region;
      await pass(machine, 5000);
      expect(reports).toEqual([]);
      region.free();
      await pass(machine, 5000);
      expect(reports[0]?.address).toBe(address);
      expect(sum(reports)).toBeGreaterThan((1 << 20) - (64 << 10));
      expect(sum(reports)).toBeLessThanOrEqual(1 << 20);
      expect(rules.violations).toEqual([]);
    });
  });

describe("vtballoon", () => {
  it("takes what was hinted or reported for uninitialised memory: whoever is given it finds zeroes [BALLOON-HINT-8] [BALLOON-HINT-9] [BALLOON-REPORT-1]", async () => {
    const seen = await bench({ scribble: 0xdb });
    const { port, machine } = seen;
    const reports = reportsOf(seen);
    port.startHinting();
    await until(() => port.hintsEnded);
    await pass(machine, 3000);
    const { memory } = machine;
    for (const ranges of [port.hinted, reports]) {
      expect(ranges.length).toBeGreaterThan(0);
      for (const { address, length } of ranges) {
        const bytes = new Uint8Array(memory.buffer, address - memory.base, length);
        expect(isFull(bytes, 0xdb)).toBe(true);
      }
    }
    const largest = memory.available - (512 << 10);
    const region = memory.allocate(largest);
    expect(isFull(region.bytes)).toBe(true);
  });

  it("ends a round when the device wants no more hints, and begins the next [BALLOON-HINT-5] [BALLOON-HINT-6]", async () => {
    const { port, machine, rules } = await bench({
      seed: undefined,
      driver: { reportingDisable: true },
    });
    port.startHinting();
    await until(() => port.hinted.length === 1);
    port.stopHinting();
    await until(() => port.hintsEnded);
    const { length } = port.hinted;
    expect(sum(port.hinted)).toBeLessThan(machine.memory.available);
    await new Promise((resolve) => setImmediate(resolve));
    expect(port.hinted).toHaveLength(length);
    // One round overtakes the other.
    const first = port.startHinting();
    await until(() => port.hinted.length === 1);
    const second = port.startHinting();
    expect(second).toBe(first + 1);
    await until(() => sum(port.hinted) > machine.memory.available - (128 << 10));
    await until(() => port.hintsEnded);
    expect(rules.violations).toEqual([]);
  });

  it("does not use a reported page before its report is used [BALLOON-REPORT-3]", async () => {
    const { balloon, port, machine, rules } = await bench({
      driver: { timeout: 3600 },
    });
    port.hold(BalloonQueue.REPORTING);
    await pass(machine, 3000);
    const out = port.reported;
    expect(out).toBeGreaterThan(0);
    // Most of the memory is the guest's all the same.
    expect(out).toBeLessThanOrEqual(machine.memory.buffer.byteLength / 8);
    scribble(machine.memory);
    port.letGo();
    await pass(machine, 3000);
    expect(port.reported).toBeGreaterThan(out);
    expect(balloon.statistics.resets).toBe(0);
    expect(rules.violations).toEqual([]);
    expect(rules.kept("BALLOON-REPORT-3")).toBeGreaterThan(1);
  });

  for (const [what, options] of kinds)
    it(`tells its poison before it runs, and fills pages with it, on ${what} [BALLOON-POISON-1] [BALLOON-POISON-2] [BALLOON-POISON-3] [BALLOON-REPORT-2]`, async () => {
      const { balloon, port, machine, rules } = await bench({
        ...options,
        driver: { pagePoison: POISON, reserve: 0 },
      });
      const { memory } = machine;
      expect(port.poison).toBe(POISON);
      scribble(memory);
      port.target = 500;
      await balloon.reached();
      const before = new Set(freePages(memory));
      port.target = 0;
      await balloon.reached();
      // What became free was dropped by the device, and has the pattern.
      const deflated = freePages(memory).filter((page) => !before.has(page));
      expect(deflated.length).toBeGreaterThanOrEqual(500);
      for (const page of deflated)
        expect([page, isPoison(new Uint8Array(memory.buffer, page, PAGE))]).toEqual([page, true]);
      await pass(machine, 3000);
      expect(port.reported).toBeGreaterThan(1 << 20);
      expect(rules.violations).toEqual([]);
      for (const clause of ["POISON-2", "REPORT-2", "REPORT-3"])
        expect([clause, rules.kept(`BALLOON-${clause}`)]).not.toEqual([clause, 0]);
    });

  it("drops PAGE_POISON without a pattern, and reports nothing that it could not rely on [BALLOON-FEAT-2] [BALLOON-FEAT-3]", async () => {
    const plain = await bench();
    await pass(plain.machine, 3000);
    expect([plain.port.poison, plain.port.reported > 0]).toEqual([null, true]);
    const relying = await bench({
      features: { PAGE_POISON: false },
      driver: { pagePoison: 0 },
    });
    await pass(relying.machine, 3000);
    expect(relying.port.reported).toBe(0);
  });
});

/** Offsets of pages that are free. */
function freePages(memory: Bench["machine"]["memory"]): number[] {
  const pages: number[] = [];
  const taken: MemoryRange[] = [];
  for (;;) {
    const range = memory.take({ align: PAGE, most: PAGE });
    if (range === null) break;
    pages.push(range.address - memory.base);
    taken.push(range);
  }
  for (const range of taken) memory.give(range);
  return pages;
}

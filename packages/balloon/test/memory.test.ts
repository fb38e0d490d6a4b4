// What the device is told of the guest's memory, and a guest that is out of it.
import { BalloonQueue, BalloonStatistic } from "@virtio/core/balloon";
import { describe, expect, it } from "vitest";
import { bench, isFull, PAGE, pass, until } from "./attached.js";

const { MEMFREE, MEMTOT, AVAIL } = BalloonStatistic;

for (const [what, options] of [
  ["a split ring", {}],
  ["a packed ring", { packed: true }],
  ["a legacy device", { legacy: "on" }],
] as const)
  describe(`vtballoon, on ${what},`, () => {
    it("has one buffer of statistics with the device, and sends a new one whenever that is used [BALLOON-STATS-1] [BALLOON-STATS-2] [BALLOON-STATS-3] [BALLOON-STATS-4] [BALLOON-STATS-5] [BALLOON-STATS-8] [BALLOON-STATS-LEGACY-1]", async () => {
      const { balloon, port, machine, rules } = await bench(options);
      const { memory } = machine;
      await pass(machine, 1);
      for (const pages of [0, 100, 50]) {
        port.target = pages;
        await balloon.reached();
        const seen = await port.requestStatistics();
        const total = memory.buffer.byteLength - pages * PAGE;
        expect([...seen]).toEqual([
          [MEMFREE, memory.available],
          [MEMTOT, total],
          [AVAIL, memory.available + pages * PAGE],
        ]);
      }
      expect(balloon.statistics.statistics).toBe(4);
      expect(rules.violations).toEqual([]);
      for (const n of [1, 2, 3, 4, 5, 8])
        expect([n, rules.kept(`BALLOON-STATS-${n}`)]).not.toEqual([n, 0]);
      if (what === "a legacy device")
        expect(rules.kept("BALLOON-STATS-LEGACY-1")).toBeGreaterThan(0);
    });

    it("gives the oldest pages back at once when the guest is out of memory, and tells the device [BALLOON-OP-5] [BALLOON-OP-6] [BALLOON-OP-11]", async () => {
      const { balloon, port, machine, rules } = await bench({
        ...options,
        features: { MUST_TELL_HOST: false },
        driver: { reportingDisable: true },
      });
      const { memory } = machine;
      port.target = 1 << 20;
      await until(() => balloon.statistics.failures > 0);
      const { current } = balloon;
      // Two requests' worth: no less would do.
      const region = memory.allocate(400 * PAGE);
      expect([balloon.current, balloon.statistics.relieved]).toEqual([current - 512, 512]);
      expect(isFull(region.bytes)).toBe(true);
      region.bytes.fill(7);
      // The device is told, and is left alone for a while.
      await until(() => port.pages === current - 512);
      await pass(machine, 900);
      expect([balloon.current, port.actual]).toEqual([current - 512, current - 512]);
      region.free();
      await pass(machine, 2200);
      expect(port.pages).toBe(current);
      expect(rules.violations).toEqual([]);
    });
  });

describe("vtballoon", () => {
  it("tells the device first where it must, and whoever asks again finds memory [BALLOON-OP-7]", async () => {
    const { balloon, port, machine, rules } = await bench({
      driver: { reportingDisable: true, reserve: 0 },
    });
    const { memory } = machine;
    port.target = 1 << 20;
    await until(() => balloon.statistics.failures > 0);
    const { current } = balloon;
    expect(() => memory.allocate(250 * PAGE)).toThrow(/no 1024000 contiguous bytes/);
    await until(() => balloon.statistics.relieved > 0);
    memory.allocate(250 * PAGE).bytes.fill(7);
    expect([balloon.current, port.pages]).toEqual([current - 256, current - 256]);
    await pass(machine, 3000);
    expect(rules.violations).toEqual([]);
    expect(rules.kept("BALLOON-OP-7")).toBeGreaterThan(0);
  });

  it("gives no page back that the device did not ask for, without DEFLATE_ON_OOM [BALLOON-OP-4]", async () => {
    for (const options of [
      { features: { DEFLATE_ON_OOM: false } },
      { driver: { oomDisable: true } },
      { features: { DEFLATE_ON_OOM: false, MUST_TELL_HOST: false }, legacy: "on" },
    ] as const) {
      const { balloon, port, machine, rules } = await bench(options);
      port.target = 1 << 20;
      await until(() => balloon.statistics.failures > 0);
      const { current } = balloon;
      expect(() => machine.memory.allocate(400 * PAGE)).toThrow(/contiguous/);
      await pass(machine, 3000);
      expect([balloon.current, port.pages]).toEqual([current, current]);
      port.target = 10;
      await balloon.reached();
      expect(rules.violations).toEqual([]);
      expect(rules.kept("BALLOON-OP-4")).toBeGreaterThan(0);
      await balloon.detach();
      expect(rules.violations).toEqual([]);
    }
  });

  it("frees no page for the guest whose request is not used yet", async () => {
    const { balloon, port, machine, rules } = await bench({
      seed: undefined,
      features: { MUST_TELL_HOST: false },
    });
    port.hold(BalloonQueue.INFLATE);
    port.target = 1 << 20;
    await until(() => port.pages === 256);
    expect(() => machine.memory.allocate(8 << 20)).toThrow(/contiguous/);
    expect([balloon.current, balloon.statistics.relieved]).toEqual([256, 0]);
    port.letGo();
    await until(() => port.actual === 256);
    expect(rules.violations).toEqual([]);
  });
});

// vtballoon on the embedded machine's balloon: sizes, orders, memory.

import { BalloonQueue } from "@virtio/core/balloon";
import { balloon as balloonOf } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { kernelModule, vtballoon } from "../src/index.js";
import { bench, isFull, PAGE, pass, scribble, until } from "./attached.js";

const kinds = [
  ["a split ring", {}],
  ["a packed ring", { packed: true }],
  ["a legacy device", { legacy: "on" }],
  ["a transitional device", { legacy: "transitional" }],
  ["queues without holes", { compactQueues: true, features: { STATS_VQ: false } }],
] as const;

for (const [what, options] of kinds)
  describe(`vtballoon, on ${what},`, () => {
    it("brings the balloon to the size that the device asks for, and back [BALLOON-OP-1] [BALLOON-OP-6] [BALLOON-OP-9] [BALLOON-OP-10] [BALLOON-OP-11]", async () => {
      const { balloon, port, machine, rules, sysctl } = await bench(options);
      const before = machine.memory.available;
      const sizes: number[] = [];
      port.onActual = (pages) => sizes.push(pages);
      port.target = 1000;
      await balloon.reached();
      expect([balloon.current, balloon.desired, port.pages, port.actual]).toEqual([
        1000, 1000, 1000, 1000,
      ]);
      expect(machine.memory.available).toBe(before - 1000 * PAGE);
      // After every request, as FreeBSD.
      expect(sizes).toEqual([256, 512, 768, 1000]);
      port.target = 300;
      await balloon.reached();
      expect([balloon.current, port.pages, port.actual]).toEqual([300, 300, 300]);
      expect(sizes.slice(4)).toEqual([744, 488, 300]);
      const value = (name: string) => sysctl.find(`vtballoon.${name}`)[0]?.read();
      expect([value("desired"), value("current")]).toEqual([300, 300]);
      await balloon.detach();
      expect([balloon.current, port.pages, machine.memory.available >= before]).toEqual([
        0,
        0,
        true,
      ]);
      expect(await balloon.closed).toBeNull();
      expect(rules.violations).toEqual([]);
      for (const clause of ["OP-1", "OP-6", "OP-9", "OP-10", "OP-11"])
        expect([clause, rules.kept(`BALLOON-${clause}`)]).not.toEqual([clause, 0]);
    });
  });

describe("vtballoon, on a legacy device,", () => {
  it("writes the size in one access of 4 bytes, in little-endian order [BALLOON-CFG-LEGACY-1] [BALLOON-OP-LEGACY-2]", async () => {
    const { balloon, port, rules } = await bench({ legacy: "on" });
    port.target = 300;
    await balloon.reached();
    expect([balloon.desired, port.actual]).toEqual([300, 300]);
    expect(rules.violations).toEqual([]);
    for (const clause of ["CFG-LEGACY-1", "OP-LEGACY-2"])
      expect([clause, rules.kept(`BALLOON-${clause}`)]).not.toEqual([clause, 0]);
  });

  it("accepts MUST_TELL_HOST where it is offered [BALLOON-FEAT-1]", async () => {
    for (const legacy of ["off", "on"] as const) {
      const { balloon, port, rules } = await bench({ legacy });
      port.target = 1;
      await balloon.reached();
      expect(rules.violations).toEqual([]);
      expect(rules.kept("BALLOON-FEAT-1")).toBe(1);
    }
  });
});

/** Guest memory that is in the balloon reads as zeroes: which pages. */
const held = (memory: { buffer: ArrayBufferLike; base: number }): number[] => {
  const bytes = new Uint8Array(memory.buffer);
  return Array.from({ length: bytes.length / PAGE }, (_, page) => page).filter((page) =>
    isFull(bytes.subarray(page * PAGE, (page + 1) * PAGE)),
  );
};

describe("vtballoon", () => {
  it("is the module virtio_balloon, with FreeBSD's names", () => {
    expect(kernelModule).toMatchObject({ file: "virtio_balloon", name: "virtio_balloon" });
    const { name, description } = vtballoon();
    expect([name, description]).toEqual(["vtballoon", "VirtIO Balloon Adapter"]);
    expect(balloonOf().kind).toBe("balloon");
  });

  it("takes the oldest pages back first", async () => {
    const { balloon, port, machine } = await bench({ driver: { reportingDisable: true } });
    const { memory } = machine;
    scribble(memory);
    const before = held(memory);
    port.target = 600;
    await balloon.reached();
    const all = held(memory).filter((page) => !before.includes(page));
    expect(all).toHaveLength(600);
    port.target = 350;
    await balloon.reached();
    const next = memory.take({ align: PAGE, most: 250 * PAGE });
    expect(next).toEqual({ address: memory.base + (all[0] ?? 0) * PAGE, length: 250 * PAGE });
  });

  it("sends what pages there are when there are fewer than wanted, leaves a reserve, and tries again every second", async () => {
    const { balloon, port, machine, rules } = await bench({
      memory: 4 << 20,
      driver: { reserve: 100, reportingDisable: true },
    });
    port.target = 0xffff_ffff;
    await pass(machine, 10);
    const free = Math.floor(machine.memory.available / PAGE);
    expect([free, balloon.statistics.failures]).toEqual([100, 1]);
    expect([balloon.current, port.actual]).toEqual([port.pages, port.pages]);
    const before = balloon.current;
    await pass(machine, 3500);
    expect([balloon.current, balloon.statistics.failures]).toEqual([before, 4]);
    // Pages become free: the next look has them.
    const region = machine.memory.allocate(50 * PAGE, PAGE);
    expect(balloon.current).toBe(before);
    await pass(machine, 100);
    region.free();
    await pass(machine, 1000);
    expect(balloon.current).toBe(before);
    port.target = before - 10;
    await balloon.reached();
    expect(balloon.current).toBe(before - 10);
    expect(rules.violations).toEqual([]);
  });

  it("looks at once when the configuration changes while it waits for pages", async () => {
    const { balloon, port, machine } = await bench({ memory: 4 << 20 });
    port.target = 5000;
    await pass(machine, 10);
    const { failures } = balloon.statistics;
    port.target = 5001;
    await pass(machine, 10);
    expect(balloon.statistics.failures).toBe(failures + 1);
  });

  it("follows a target that changes in the middle", async () => {
    const { balloon, port, rules } = await bench();
    port.target = 2000;
    port.onActual = (pages) => {
      if (pages === 512) port.target = 100;
      if (pages === 256) port.target = 400;
    };
    await until(() => balloon.statistics.inflated > 0);
    await balloon.reached();
    port.onActual = null;
    await balloon.reached();
    expect([balloon.current, port.pages]).toEqual([port.target, port.target]);
    expect(rules.violations).toEqual([]);
  });

  it("waits for its size until the signal says otherwise, and not when it is gone", async () => {
    const { balloon, port } = await bench({ memory: 4 << 20 });
    port.target = 100_000;
    const abort = new AbortController();
    const waiting = balloon.reached({ signal: abort.signal });
    abort.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
    await expect(balloon.reached({ signal: abort.signal })).rejects.toThrow("enough");
    const last = balloon.reached();
    const detached = balloon.detach();
    await expect(last).rejects.toMatchObject({ code: "CLOSED" });
    await detached;
    await expect(balloon.reached()).rejects.toMatchObject({ code: "CLOSED" });
  });

  it("gives everything back while the device runs when it is detached, whatever it was doing [BALLOON-OP-6] [BALLOON-OP-11]", async () => {
    for (const at of [0, 256, 512, 700]) {
      const { balloon, port, machine, rules } = await bench();
      const before = machine.memory.available;
      const seen: number[] = [];
      port.target = 700;
      await until(() => balloon.current >= at);
      port.onActual = (pages) => seen.push(pages);
      await Promise.all([balloon.detach(), balloon.detach()]);
      expect(seen.at(-1) ?? 0).toBe(0);
      expect([balloon.current, port.pages]).toEqual([0, 0]);
      expect(machine.memory.available).toBeGreaterThanOrEqual(before);
      expect(rules.violations).toEqual([]);
    }
  });

  it("does not touch a page from the request that gives it until the one that takes it back is used [BALLOON-OP-7] [BALLOON-OP-9]", async () => {
    const { balloon, port, machine, rules } = await bench({ seed: undefined });
    port.hold(BalloonQueue.INFLATE);
    port.target = 200;
    await until(() => port.pages === 200);
    const busy = (): void => scribble(machine.memory);
    busy();
    expect(balloon.current).toBe(200);
    port.letGo();
    await balloon.reached();
    port.hold(BalloonQueue.DEFLATE);
    port.target = 0;
    await until(() => rules.kept("BALLOON-OP-10") === 200);
    busy();
    expect([balloon.current, port.pages]).toEqual([200, 200]);
    port.letGo();
    await balloon.reached();
    busy();
    expect(rules.violations).toEqual([]);
    expect(rules.kept("BALLOON-OP-7")).toBe(400);
  });

  for (const options of [{ queueSize: 1 }, { queueSize: 8, packed: true }] as const)
    it(`does with queues of ${options.queueSize}, ${JSON.stringify(options)}`, async () => {
      const { balloon, port, machine, rules } = await bench(options);
      port.target = 700;
      await balloon.reached();
      port.startHinting();
      await pass(machine, 3000);
      expect([port.hintsEnded, port.reported > 1 << 20]).toEqual([true, true]);
      port.target = 0;
      await balloon.reached();
      expect(rules.violations).toEqual([]);
    });

  it("numbers no queue that it does not use", async () => {
    for (const [features, driver] of [
      [{}, { statsDisable: true, reportingDisable: true, hintDisable: true }],
      [{ STATS_VQ: false, FREE_PAGE_HINT: false }, {}],
      [{ STATS_VQ: false }, { hintDisable: true }],
      [{ STATS_VQ: false }, { reportingDisable: true }],
      [{ FREE_PAGE_HINT: false, PAGE_REPORTING: false }, {}],
    ] as const)
      for (const compactQueues of [false, true])
        for (const legacy of ["off", "on"] as const) {
          const { balloon, port, rules, machine } = await bench({
            features,
            driver: { ...driver, reserve: 16 },
            compactQueues,
            legacy,
            memory: 1 << 20,
          });
          port.target = 10;
          await balloon.reached();
          port.startHinting();
          await pass(machine, 3000);
          port.target = 0;
          await balloon.reached();
          expect([features, compactQueues, rules.violations]).toEqual([
            features,
            compactQueues,
            [],
          ]);
        }
  });
});

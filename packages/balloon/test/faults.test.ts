// Devices that do not answer, want a reset, or go away: nothing hangs, and no page that a device may have is used.
import { BalloonQueue } from "@virtio/core/balloon";
import { describe, expect, it } from "vitest";
import { type Bench, bench, pass, scribble, until } from "./attached.js";
import { breakDevice } from "./rings.js";

const { INFLATE, DEFLATE, FREE_PAGE, REPORTING } = BalloonQueue;

/** What makes the driver use each queue, and what it says of a request there that is not over. */
const requests = [
  [INFLATE, "an inflate request", ({ port }: Bench) => (port.target = 800)],
  [DEFLATE, "a deflate request", ({ port }: Bench) => (port.target = 100)],
  [FREE_PAGE, "a command of hints", ({ port }: Bench) => port.startHinting()],
  [REPORTING, "a report of free pages", () => {}],
] as const;

for (const [what, options] of [
  ["a split ring", {}],
  ["a packed ring", { packed: true }],
  ["a legacy device", { legacy: "on" }],
] as const)
  describe(`vtballoon, on ${what},`, () => {
    for (const [queue, request, make] of requests)
      it(`resets a device that does not use ${request} in time, and begins anew`, async () => {
        const seen = await bench({ ...options, driver: { timeout: 5 } });
        const { balloon, port, machine, rules, lines } = seen;
        port.target = 500;
        await balloon.reached();
        const free = machine.memory.available + 500 * 4096;
        port.hold(queue);
        make(seen);
        await until(() => balloon.statistics.resets === 1);
        expect(lines).toEqual([`${request} timed out after 5 s: resetting the device`]);
        port.held.clear();
        await balloon.reached();
        expect([balloon.current, port.pages]).toEqual([port.target, port.target]);
        port.target = 0;
        await balloon.reached();
        await pass(machine, 3000);
        expect(machine.memory.available).toBe(free);
        expect(balloon.statistics.resets).toBe(1);
        // The device was reset in the middle of what it never said to be done.
        expect(rules.violations).toEqual([]);
      });

    it("gives a device up that answers after no reset; its pages wait for one that it sees [BALLOON-OP-9]", async () => {
      const { balloon, port, machine, lines, rules } = await bench({
        ...options,
        driver: { timeout: 2 },
      });
      const { memory } = machine;
      const before = memory.available;
      port.hold(INFLATE);
      port.target = 100;
      const waiting = balloon.reached();
      waiting.catch(() => {});
      expect(await balloon.closed).toMatchObject({ code: "TIMED_OUT", errno: "ETIMEDOUT" });
      expect([lines.length, balloon.statistics.resets]).toEqual([3, 3]);
      await expect(waiting).rejects.toMatchObject({ code: "TIMED_OUT" });
      await expect(balloon.reached()).rejects.toMatchObject({ code: "TIMED_OUT" });
      expect([balloon.current, port.pages, memory.available]).toEqual([
        100,
        100,
        before - 100 * 4096,
      ]);
      scribble(memory);
      port.letGo();
      await pass(machine, 10);
      expect(rules.violations).toEqual([]);
      await balloon.suspend();
      await balloon.resume();
      await balloon.detach();
      expect(memory.available).toBeGreaterThanOrEqual(before);
    });

    it("detaches from a device that does not answer, in bounded time", async () => {
      const { balloon, port, machine, lines } = await bench({ ...options, driver: { timeout: 2 } });
      const before = machine.memory.available;
      port.target = 300;
      await balloon.reached();
      port.hold(DEFLATE);
      const began = machine.tasks.now();
      await balloon.detach();
      expect(machine.tasks.now() - began).toBeLessThan(10_000);
      expect(lines.at(-1)).toMatch(/^pages are given back by a reset: .*timed out after 2 s/);
      expect(machine.memory.available).toBeGreaterThanOrEqual(before);
      expect(await balloon.closed).toBeNull();
    });

    it("loses the pages of a device that was taken out, and says so", async () => {
      const { balloon, port, machine, lines } = await bench(options);
      port.target = 300;
      await balloon.reached();
      const [fn] = await machine.buses[0].bus.functions();
      if (fn === undefined) throw new Error("no device");
      const free = machine.memory.available;
      await machine.unplug(fn.address);
      expect(await balloon.closed).toMatchObject({ code: "CLOSED" });
      await expect(balloon.reached()).rejects.toMatchObject({ code: "CLOSED" });
      await balloon.detach();
      expect(lines.at(-1)).toBe("the device went away with 300 pages: they are lost");
      expect(machine.memory.available).toBe(free);
    });
  });

describe("vtballoon", () => {
  it("loses what a device that was taken out was told of, too", async () => {
    for (const queue of [FREE_PAGE, REPORTING]) {
      const { balloon, port, machine, lines } = await bench();
      port.hold(queue);
      if (queue === FREE_PAGE) port.startHinting();
      await pass(machine, 3000);
      const free = machine.memory.available;
      const [fn] = await machine.buses[0].bus.functions();
      if (fn === undefined) throw new Error("no device");
      await machine.unplug(fn.address);
      await balloon.closed;
      await balloon.detach();
      expect(lines.at(-1)).toBe("the device went away with 0 pages: they are lost");
      expect(machine.memory.available).toBe(free);
    }
  });

  it("closes when a suspended device is taken out", async () => {
    const { balloon, port, machine } = await bench();
    port.target = 10;
    await balloon.reached();
    await balloon.suspend();
    const [fn] = await machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no device");
    await machine.unplug(fn.address);
    expect(await balloon.closed).toMatchObject({ code: "CLOSED" });
    await balloon.resume();
    await balloon.suspend();
    await balloon.detach();
  });

  for (const queue of [INFLATE, DEFLATE, BalloonQueue.STATS, FREE_PAGE, REPORTING])
    it(`resets a device that wants to be, for queue ${BalloonQueue[queue]}, and begins anew`, async () => {
      const { balloon, port, machine, lines } = await bench({ driver: { pagePoison: 7 } });
      port.target = 500;
      await balloon.reached();
      await breakDevice(machine, queue);
      await until(() => balloon.statistics.resets === 1);
      expect(lines).toEqual(["the device needs a reset [virtio 1.4 §2.1.1]: resetting the device"]);
      await balloon.reached();
      expect([balloon.current, port.pages, port.poison]).toEqual([500, 500, 7]);
      expect((await port.requestStatistics()).size).toBe(3);
      await balloon.detach();
      expect(await balloon.closed).toBeNull();
    });

  it("keeps its pages while a device is suspended, and does nothing", async () => {
    const { balloon, port, machine, rules } = await bench();
    port.target = 500;
    await balloon.reached();
    await Promise.all([balloon.suspend(), balloon.suspend()]);
    await balloon.suspend();
    port.target = 200;
    await pass(machine, 60_000);
    expect([balloon.current, port.pages]).toEqual([500, 500]);
    const waiting = balloon.reached();
    await balloon.resume();
    await waiting;
    expect([balloon.current, port.pages]).toEqual([200, 200]);
    await pass(machine, 10);
    expect((await port.requestStatistics()).size).toBe(3);
    await balloon.suspend();
    await balloon.detach();
    expect(rules.violations).toEqual([]);
  });

  for (const options of [{ legacy: "on" }, { features: { SUSPEND: false } }] as const)
    it(`gives its pages back before a device is reset that cannot suspend, ${JSON.stringify(options)} [BALLOON-POISON-2]`, async () => {
      const { balloon, port, machine, rules } = await bench({
        ...options,
        driver: { pagePoison: 7 },
      });
      port.target = 500;
      await balloon.reached();
      await balloon.suspend();
      expect([balloon.current, port.pages]).toEqual([0, 0]);
      await pass(machine, 60_000);
      await balloon.resume();
      await balloon.reached();
      expect([balloon.current, port.pages, port.poison]).toEqual([500, 500, 7]);
      expect((await port.requestStatistics()).size).toBe(3);
      await balloon.detach();
      expect(rules.violations).toEqual([]);
    });

  it("goes on where a device cannot be suspended", async () => {
    const { balloon, port, rules } = await bench({ legacy: "on", driver: { timeout: 2 } });
    port.target = 500;
    await balloon.reached();
    port.hold(DEFLATE);
    await expect(balloon.suspend()).rejects.toMatchObject({ code: "TIMED_OUT" });
    port.held.clear();
    await balloon.reached();
    expect([balloon.current, port.pages]).toEqual([500, 500]);
    expect(rules.violations).toEqual([]);
  });
});

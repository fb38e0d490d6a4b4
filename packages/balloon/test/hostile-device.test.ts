// A balloon that lies: the driver does what can be done, or says what is wrong, and nothing hangs.
import type { VirtioDevice } from "@virtio/core";
import { BalloonConfig, BalloonQueue } from "@virtio/core/balloon";
import { describe, expect, it } from "vitest";
import { bench, PAGE, pass, until } from "./attached.js";
import { ringsOf } from "./rings.js";

const [NUM_PAGES_AT] = BalloonConfig.numPages;
const [HINT_AT] = BalloonConfig.freePageHintCmdId;

const seedOf = (): number => Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);

const randomFrom = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state;
  };
};

describe("vtballoon, on a device", () => {
  it("whose target is garbage, another at each look, has no more pages than there are, and gives them all back", async () => {
    const seed = seedOf();
    const random = randomFrom(seed);
    const { balloon, port, machine, rules } = await bench({
      memory: 4 << 20,
      driver: { timeout: 3600 },
      lies: {
        config: (offset, width, honest) => {
          if (offset !== NUM_PAGES_AT || width !== 4) return honest;
          return [random(), 0, 0xffff_ffff, random() % 2000][random() % 4] ?? 0;
        },
      },
    });
    const before = machine.memory.available;
    for (let n = 0; n < 20; n++) {
      port.target = n;
      await pass(machine, 200);
      expect([seed, balloon.current * PAGE <= before - 256 * PAGE]).toEqual([seed, true]);
      expect(machine.memory.available).toBeGreaterThanOrEqual(256 * PAGE - 4 * PAGE);
    }
    await balloon.detach();
    expect(machine.memory.available).toBeGreaterThanOrEqual(before);
    // What the driver was told, and what the rules think that it was, differ.
    const clauses = new Set(rules.violations.map(({ clause }) => clause));
    clauses.delete("BALLOON-OP-4");
    expect([seed, [...clauses]]).toEqual([seed, []]);
  });

  it("whose command ids jump ends each round that it begins, and hints no page under an id that it did not read", async () => {
    const seed = seedOf();
    const random = randomFrom(seed);
    let told = 0;
    const { balloon, port, machine } = await bench({
      lies: {
        config: (offset, _width, honest) => {
          if (offset !== HINT_AT) return honest;
          told = [random(), random() % 4, told][random() % 3] ?? 0;
          return told;
        },
      },
    });
    for (let n = 0; n < 30; n++) {
      port.startHinting();
      await pass(machine, 5);
    }
    port.target = 100;
    await balloon.reached();
    expect([balloon.current, balloon.statistics.resets]).toEqual([100, 0]);
    // Each page is free again.
    port.target = 0;
    await balloon.reached();
    await pass(machine, 3000);
    const before = machine.memory.available;
    await balloon.detach();
    expect(machine.memory.available).toBeGreaterThanOrEqual(before);
  });

  for (const legacy of ["off", "on"] as const)
    it(`whose used length is junk, on ${legacy === "on" ? "the legacy interface" : "the modern interface"}, works all the same [BALLOON-OP-LEGACY-1]`, async () => {
      const { balloon, port, machine, rules } = await bench({
        legacy,
        // Of what it may write the device can say so; of what it only reads a legacy one can.
        lies: { usedLength: () => 12_345 },
        ...(legacy === "on" ? { before: junkLengths } : {}),
      });
      port.target = 500;
      await balloon.reached();
      port.startHinting();
      await pass(machine, 3000);
      port.target = 0;
      await balloon.reached();
      expect([balloon.current, balloon.statistics.resets]).toEqual([0, 0]);
      expect([port.reported > 0, balloon.statistics.hinted > 0]).toEqual([true, true]);
      expect(rules.violations).toEqual([]);
    });

  for (const queue of [BalloonQueue.INFLATE, BalloonQueue.STATS, BalloonQueue.REPORTING])
    it(`that uses what it was not given, on queue ${BalloonQueue[queue]}, is given up with DEVICE_MISBEHAVED`, async () => {
      // One line for all queues: the driver looks at each when one interrupts.
      const { balloon, port, machine } = await bench({ vectors: 0 });
      port.target = 10;
      await balloon.reached();
      await pass(machine, 3000);
      const { used } = await ringsOf(machine, queue);
      // Element 77 of a queue that has nothing of that number.
      const index = used[1] ?? 0;
      used.set([77, 0, 0, 0], 2 + 4 * index);
      used[1] = index + 1;
      if (queue === BalloonQueue.INFLATE) port.requestStatistics().catch(() => {});
      else port.target = 20;
      expect(await balloon.closed).toMatchObject({ code: "DEVICE_MISBEHAVED", errno: "EIO" });
      const free = machine.memory.available;
      await balloon.detach();
      expect(machine.memory.available).toBeGreaterThanOrEqual(free + 10 * PAGE);
    });

  it("that asks for statistics without end keeps nothing else from being done", async () => {
    const { balloon, port, rules } = await bench({ seed: undefined });
    let asked = 0;
    let asking = true;
    const ask = (): void => {
      asked += 1;
      if (asking) port.requestStatistics().then(ask, () => {});
    };
    await until(() => port.statistics !== null);
    ask();
    for (const pages of [700, 10, 500]) {
      port.target = pages;
      await balloon.reached();
      expect([balloon.current, port.pages]).toEqual([pages, pages]);
    }
    asking = false;
    expect(asked).toBeGreaterThan(5);
    expect(rules.violations).toEqual([]);
  });
});

/** Used lengths are junk whenever the driver looks at them. */
function junkLengths(device: VirtioDevice): void {
  const allocate = device.allocateQueues.bind(device);
  device.allocateQueues = async (specs) => {
    const queues = await allocate(specs);
    for (const queue of queues)
      Object.defineProperty(queue, "usedLength", { get: () => 12_345, set: () => {} });
    return queues;
  };
}

// Everything at once, in drawn orders: whatever happens, no rule is broken, and every page is somebody's.
import type { DmaRegion } from "@virtio/core";
import type { BalloonQueue } from "@virtio/core/balloon";
import { describe, expect, it } from "vitest";
import { type BenchOptions, bench, isFull, PAGE, pass, scribble } from "./attached.js";

const RUNS = 12;
const STEPS = 40;

const first = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0) | 0;

const kinds: readonly BenchOptions[] = [
  {},
  { packed: true },
  { legacy: "on" },
  { features: { MUST_TELL_HOST: false } },
  { features: { MUST_TELL_HOST: false, SUSPEND: false } },
  { driver: { pagePoison: 0x5a5a_5a5a }, scribble: 0x11 },
];

describe("vtballoon", () => {
  for (let run = 0; run < RUNS; run++) {
    const seed = (first + run) | 0;
    const options = kinds[run % kinds.length] ?? {};
    it(`keeps its rules in any order of events (seed ${seed}, ${JSON.stringify(options)})`, async () => {
      let state = seed | 1;
      const random = (below: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
        return Math.floor(((state >>> 0) / 2 ** 32) * below);
      };
      const { balloon, port, machine, rules } = await bench({
        ...options,
        seed,
        memory: 4 << 20,
        driver: { reserve: 64, timeout: 3600, ...options.driver },
      });
      const { memory } = machine;
      const start = memory.available;
      const regions: DmaRegion[] = [];
      const allocate = (): void => {
        try {
          const region = memory.allocate((1 + random(100)) * PAGE);
          expect(isFull(region.bytes)).toBe(true);
          region.bytes.fill(0xff);
          regions.push(region);
        } catch (error) {
          expect(error).toMatchObject({ code: "OUT_OF_MEMORY" });
        }
      };
      const acts: (() => unknown)[] = [
        () => {
          port.target = random(1200);
        },
        () => {
          port.target = random(1200);
        },
        () => port.startHinting(),
        () => (random(2) === 0 ? port.stopHinting() : port.finishHinting()),
        () => port.requestStatistics().catch(() => {}),
        allocate,
        allocate,
        () => regions.splice(random(regions.length), 1)[0]?.free(),
        () => scribble(memory),
        () => port.hold(random(5) as BalloonQueue),
        () => port.letGo(),
        async () => {
          port.letGo();
          await balloon.suspend();
          port.target = random(1200);
          await pass(machine, random(100));
          await balloon.resume();
        },
      ];
      for (let step = 0; step < STEPS; step++) {
        await acts[random(acts.length)]?.();
        if (random(2) === 0) await pass(machine, random(3) === 0 ? 3000 : 5);
        expect(balloon.current * PAGE).toBeLessThanOrEqual(start);
        const [violation] = rules.violations;
        expect([seed, step, violation]).toEqual([seed, step, undefined]);
      }
      port.letGo();
      for (const region of regions) region.free();
      port.target = 100;
      await balloon.reached();
      expect([balloon.current, port.pages, port.actual]).toEqual([100, 100, 100]);
      await balloon.detach();
      expect([seed, memory.available >= start, rules.violations]).toEqual([seed, true, []]);
      expect(balloon.statistics.resets).toBe(0);
      expect(await balloon.closed).toBeNull();
    });
  }
});

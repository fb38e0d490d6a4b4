// vtballoon on the embedded machine's balloon: sizes, orders, memory.
import { describe, expect, it } from "vitest";
import { bench, PAGE } from "./attached.js";

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

import { describe, expect, it } from "vitest";
import { pairwise, product } from "../src/index.js";

const axes = { a: [0, 1, 2], b: ["x", "y"], c: [true, false], d: [1, 2, 3, 4] } as const;

describe("combinations of parameters", () => {
  it("are all of them for the whole product", () => {
    expect(product(axes)).toHaveLength(3 * 2 * 2 * 4);
    expect(new Set(product(axes).map((point) => JSON.stringify(point))).size).toBe(48);
  });

  it("cover each pair of values that can meet, in far fewer", () => {
    const allowed = (point: { a: number; d: number }): boolean => point.a !== 2 || point.d > 2;
    const chosen = pairwise(axes, allowed);
    expect(chosen.length).toBeLessThanOrEqual(16);
    expect(chosen.every(allowed)).toBe(true);
    for (const whole of product(axes, allowed))
      for (const [name, value] of Object.entries(whole))
        for (const [other, second] of Object.entries(whole))
          expect(
            chosen.some((point) => {
              const values = Object.entries(point);
              return (
                values.some(([n, v]) => n === name && v === value) &&
                values.some(([n, v]) => n === other && v === second)
              );
            }),
          ).toBe(true);
  });
});

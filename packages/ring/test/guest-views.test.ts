// Views of guest memory that are kept: always of the bytes that were asked for.
import { describe, expect, it } from "vitest";
import { GuestViews } from "../src/guest-views.js";

describe("kept views of guest memory", () => {
  it("are the same ones when the same bytes are asked for again", () => {
    const views = new GuestViews();
    const region = new Uint8Array(64 * 4096);
    const first = Array.from({ length: 64 }, (_, i) => views.of(region, i * 4096, 4096));
    for (const [i, view] of first.entries()) expect(views.of(region, i * 4096, 4096)).toBe(view);
  });

  it("are of the region, the place and the length that were asked for, whoever had their slot before", () => {
    const views = new GuestViews();
    const regions = [
      new Uint8Array(1 << 16),
      new Uint8Array(new ArrayBuffer(1 << 17), 512, 1 << 16),
    ];
    let state = 1;
    const random = (below: number): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return (state >>> 8) % below;
    };
    for (let n = 0; n < 20_000; n++) {
      const region = regions[random(2)] as Uint8Array;
      const offset = random(200) << random(8);
      const length = 1 + random(3) * 600;
      const view = views.of(region, offset, length);
      expect(view.buffer === region.buffer).toBe(true);
      expect([view.byteOffset - region.byteOffset, view.length]).toEqual([offset, length]);
    }
  });
});

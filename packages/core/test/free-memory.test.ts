import { describe, expect, it } from "vitest";
import { DmaWindow, type FreeMemoryWatcher, type MemoryRange, VirtioFault } from "../src/index.js";

const BASE = 0x10_0000;
const PAGE = 4096;

const window = (pages = 16): DmaWindow =>
  new DmaWindow(new ArrayBuffer(pages * PAGE), { base: BASE });

const codeOf = (work: () => unknown): string | undefined => {
  try {
    work();
  } catch (error) {
    return error instanceof VirtioFault ? error.code : String(error);
  }
  return undefined;
};

const watcher = (given: Partial<FreeMemoryWatcher>): FreeMemoryWatcher => ({
  shortage: () => false,
  freed: () => {},
  ...given,
});

describe("free memory", () => {
  it("is taken out without being touched, and nobody is given it until it is given back", () => {
    const memory = window();
    new Uint8Array(memory.buffer).fill(7);
    const range = memory.take({ align: PAGE, most: 4 * PAGE });
    expect(range).toEqual({ address: BASE, length: 4 * PAGE });
    expect(new Uint8Array(memory.buffer).every((byte) => byte === 7)).toBe(true);
    expect(memory.available).toBe(12 * PAGE);
    const rest = memory.allocate(12 * PAGE);
    expect(rest.address).toBe(BASE + 4 * PAGE);
    expect(codeOf(() => memory.allocate(1))).toBe("OUT_OF_MEMORY");
    memory.give(range as MemoryRange);
    expect(memory.allocate(4 * PAGE).address).toBe(BASE);
  });

  it("is taken in whole multiples, from an address on, and not where less than the least is left", () => {
    const memory = window();
    const first = memory.allocate(100);
    expect(memory.take({ align: PAGE, most: 2 * PAGE + 100 })).toEqual({
      address: BASE + PAGE,
      length: 2 * PAGE,
    });
    expect(memory.take({ align: PAGE, most: PAGE, from: BASE + 8 * PAGE + 1 })).toEqual({
      address: BASE + 9 * PAGE,
      length: PAGE,
    });
    // 6 pages before, 6 behind.
    expect(memory.take({ align: PAGE, least: 7 * PAGE, most: 9 * PAGE })).toBeNull();
    expect(memory.take({ align: PAGE, most: PAGE - 1 })).toBeNull();
    expect(memory.take({ align: PAGE, most: PAGE, from: BASE + 16 * PAGE })).toBeNull();
    first.free();
  });

  it("is given back in parts, joins, and is not given back twice", () => {
    const memory = window();
    const { address } = memory.take({ align: PAGE, most: 16 * PAGE }) as MemoryRange;
    for (const page of [3, 0, 2, 1]) memory.give({ address: address + page * PAGE, length: PAGE });
    expect(memory.take({ align: 4 * PAGE, most: 4 * PAGE })).toEqual({
      address,
      length: 4 * PAGE,
    });
    memory.give({ address, length: PAGE });
    for (const range of [
      { address, length: PAGE },
      { address: address + PAGE - 16, length: PAGE },
      { address: address - PAGE, length: PAGE },
      { address: address + 15 * PAGE, length: 2 * PAGE },
      { address: address + PAGE, length: 0 },
    ])
      expect(codeOf(() => memory.give(range))).toBe("INVALID");
    expect(memory.available).toBe(PAGE);
    expect(codeOf(() => memory.take({ align: 3, most: PAGE }))).toBe("INVALID");
  });

  it("that was given back as reported is left out until it was allocated and freed", () => {
    const memory = window();
    const unreported = { align: PAGE, most: 16 * PAGE, unreported: true };
    const all = memory.take(unreported) as MemoryRange;
    memory.give(all, true);
    expect(memory.take(unreported)).toBeNull();
    // Two pieces of what is reported go to somebody, one comes back.
    const one = memory.allocate(PAGE, PAGE);
    const two = memory.allocate(2 * PAGE, PAGE);
    two.free();
    expect(memory.take(unreported)).toEqual({ address: two.address, length: 2 * PAGE });
    expect(memory.take(unreported)).toBeNull();
    one.free();
    expect(memory.take(unreported)).toEqual({ address: BASE, length: PAGE });
    // What is reported is free all the same, also across its edge.
    memory.give({ address: BASE, length: 3 * PAGE });
    expect(memory.allocate(16 * PAGE).address).toBe(BASE);
  });

  it("tells who watches of what became free and is not reported", () => {
    const memory = window();
    let freed = 0;
    const unwatch = memory.watch(
      watcher({
        freed: () => {
          freed += 1;
        },
      }),
    );
    memory.allocate(PAGE).free();
    const range = memory.take({ align: PAGE, most: PAGE }) as MemoryRange;
    memory.give(range, true);
    expect(freed).toBe(1);
    const again = memory.take({ align: PAGE, most: PAGE }) as MemoryRange;
    memory.give(again);
    expect(freed).toBe(2);
    unwatch();
    memory.allocate(PAGE).free();
    expect(freed).toBe(2);
  });

  it("is asked of who watches when an allocation finds no room, as long as that brings some", () => {
    const memory = window();
    const { address } = memory.take({ align: PAGE, most: 16 * PAGE }) as MemoryRange;
    let page = 0;
    memory.watch(watcher({}));
    const unwatch = memory.watch(
      watcher({
        shortage: () => {
          if (page === 8) return false;
          memory.give({ address: address + page * PAGE, length: PAGE });
          page += 1;
          return true;
        },
      }),
    );
    const region = memory.allocate(5 * PAGE);
    expect([page, region.length]).toEqual([5, 5 * PAGE]);
    expect(codeOf(() => memory.allocate(4 * PAGE))).toBe("OUT_OF_MEMORY");
    expect([page, memory.available]).toEqual([8, 3 * PAGE]);
    unwatch();
    // One that says so and gives nothing does not make it go round for ever.
    memory.watch(watcher({ shortage: () => true }));
    expect(codeOf(() => memory.allocate(4 * PAGE))).toBe("OUT_OF_MEMORY");
  });

  it("keeps count through any order of allocations, takes and gives", () => {
    const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
    let state = seed;
    const random = (below: number): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    const memory = window(64);
    /** Owner of each page: 0 nobody. */
    const owners = new Uint8Array(64);
    const held: { page: number; pages: number; free: () => void }[] = [];
    for (let n = 0; n < 3000; n++) {
      const pages = 1 + random(6);
      const what = random(4);
      let got: { address: number; free: () => void } | null = null;
      if (what === 0 && codeOf(() => (got = memory.allocate(pages * PAGE, PAGE))) !== undefined)
        got = null;
      if (what === 1) {
        const range = memory.take({
          align: PAGE,
          least: pages * PAGE,
          most: pages * PAGE,
          unreported: random(2) === 0,
        });
        const reported = random(2) === 0;
        if (range !== null)
          got = { address: range.address, free: () => memory.give(range, reported) };
      }
      if (got !== null) {
        const { address, free } = got as { address: number; free: () => void };
        const page = (address - BASE) / PAGE;
        expect([seed, owners.subarray(page, page + pages).some((owner) => owner !== 0)]).toEqual([
          seed,
          false,
        ]);
        owners.fill(1, page, page + pages);
        held.push({ page, pages, free });
      }
      if (what >= 2 && held.length > 0) {
        const [gone] = held.splice(random(held.length), 1);
        if (gone === undefined) continue;
        gone.free();
        owners.fill(0, gone.page, gone.page + gone.pages);
      }
      const free = owners.reduce((sum, owner) => sum + Number(owner === 0), 0);
      expect([seed, memory.available]).toEqual([seed, free * PAGE]);
    }
  });
});

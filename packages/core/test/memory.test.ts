import { describe, expect, it } from "vitest";
import { DmaWindow, GuestRegions, VirtioFault } from "../src/index.js";

const window = (length = 4096): DmaWindow =>
  new DmaWindow(new ArrayBuffer(length), { base: 0x10_0000 });

const codeOf = (work: () => unknown): string | undefined => {
  try {
    work();
  } catch (error) {
    return error instanceof VirtioFault ? error.code : String(error);
  }
  return undefined;
};

describe("a DMA window", () => {
  it("gives zeroed, aligned regions whose address is not their offset", () => {
    const memory = window();
    new Uint8Array(memory.buffer).fill(0xff);
    const region = memory.allocate(100, 256);
    expect([region.address % 256, region.address - region.offset, region.length]).toEqual([
      0, 0x10_0000, 100,
    ]);
    expect(region.bytes.every((byte) => byte === 0)).toBe(true);
  });

  it("never gives the same byte twice, and joins what is freed", () => {
    const memory = window();
    const regions = Array.from({ length: 16 }, () => memory.allocate(256));
    expect(memory.available).toBe(0);
    expect(codeOf(() => memory.allocate(1))).toBe("OUT_OF_MEMORY");
    expect(new Set(regions.map(({ address }) => address)).size).toBe(16);
    // Odd ones, then even ones: every hole has a neighbour to join in the end.
    for (const region of [
      ...regions.filter((_, i) => i % 2 === 1),
      ...regions.filter((_, i) => i % 2 === 0),
    ])
      region.free();
    expect(memory.available).toBe(4096);
    expect(memory.allocate(4096).length).toBe(4096);
  });

  it("keeps what alignment leaves over", () => {
    const memory = window();
    memory.allocate(16);
    const region = memory.allocate(16, 1024);
    expect(memory.available).toBe(4096 - 32);
    region.free();
    expect(memory.available).toBe(4096 - 16);
  });

  it("refuses nonsense, a second free, and a window that does not end below 4 GiB", () => {
    const memory = window();
    for (const length of [0, -1, 1.5, Number.NaN])
      expect(codeOf(() => memory.allocate(length))).toBe("INVALID");
    for (const align of [0, 3, -4])
      expect(codeOf(() => memory.allocate(16, align))).toBe("INVALID");
    const region = memory.allocate(16);
    region.free();
    expect(codeOf(() => region.free())).toBe("INVALID");
    expect(codeOf(() => new DmaWindow(new ArrayBuffer(4096), { base: 0xffff_f001 }))).toBe(
      "INVALID",
    );
  });
});

describe("guest memory as a device sees it", () => {
  const region = (address: number, length: number) => ({
    address,
    length,
    bytes: new Uint8Array(length),
  });
  const memory = new GuestRegions([region(0x1_0000_0000, 4096), region(0x1000, 4096)]);

  it("finds the region that holds a range whole, at 64-bit addresses", () => {
    expect(memory.regions.map(({ address }) => address)).toEqual([0x1000, 0x1_0000_0000]);
    expect(memory.locate(0x1000, 0, 4096)).toBe(0);
    expect(memory.locate(0, 1, 16)).toBe(1);
    expect(memory.locate(0xff0, 1, 16)).toBe(1);
  });

  it("finds none for what lies outside, hangs over an edge, or is no address at all", () => {
    for (const [low, high, length] of [
      [0xfff, 0, 1],
      [0x1ff1, 0, 16],
      [0x1000, 0, 4097],
      [0xff1, 1, 16],
      [0x1000, 0x20_0000, 1],
      [0xffff_fff8, 0xffff_ffff, 16],
      [0x1000, 0, 0xffff_ffff],
    ] as const)
      expect(memory.locate(low, high, length)).toBe(-1);
  });

  it("finds the same whatever was found before, in a region across 4 GiB too", () => {
    const regions = [
      { address: 0x1000, length: 0x1000 },
      { address: 0xffff_f000, length: 0x2000 },
      { address: 0x1_0000_2000, length: 0x1000 },
    ];
    const memory = new GuestRegions(regions.map((r) => ({ ...r, bytes: new Uint8Array(0) })));
    const addresses = regions
      .flatMap(({ address, length }) => [address, address + 0x800, address + length])
      .flatMap((at) => [at - 1, at, at + 1])
      .concat(0, 0x1_0000_0000, 0x2000_0000_1000);
    const lengths = [0, 1, 0x800, 0x1000, 0x1001, 0x2000, 0xffff_ffff];
    const found = (address: number, length: number): number =>
      memory.locate(address >>> 0, Math.floor(address / 0x1_0000_0000), length);
    for (const before of addresses)
      for (const address of addresses)
        for (const length of lengths) {
          found(before, 1);
          const holds = regions.findIndex(
            (r) => address >= r.address && address + length <= r.address + r.length,
          );
          expect([before, address, length, found(address, length)]).toEqual([
            before,
            address,
            length,
            holds,
          ]);
        }
  });

  it("refuses regions that overlap", () => {
    expect(codeOf(() => new GuestRegions([region(0, 4096), region(4095, 1)]))).toBe("INVALID");
  });
});

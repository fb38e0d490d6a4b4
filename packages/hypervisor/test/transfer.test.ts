// Transfers: all of it, or one error; whatever a backend says that it moved.
import { describe, expect, it } from "vitest";
import { MemoryBackend } from "../src/index.js";
import { transfer, transferZeroes } from "../src/transfer.js";

const pieces = (): Uint8Array[] => [3, 0, 5, 1].map((length) => new Uint8Array(length));

describe("a transfer", () => {
  it("does not wait for a backend that does not", () => {
    expect(transfer(0, pieces(), () => 9)).toBeUndefined();
  });

  it("asks nothing for no bytes", () => {
    const asked = (): never => {
      throw new Error("asked");
    };
    expect(transfer(0, [], asked)).toBeUndefined();
    expect(transfer(0, [new Uint8Array(0)], asked)).toBeUndefined();
  });

  it("asks for the rest, wherever a piece is cut", async () => {
    for (const later of [false, true])
      for (let step = 1; step < 9; step++) {
        const disk = new MemoryBackend(Uint8Array.from({ length: 512 }, (_, i) => i + 1));
        const into = pieces();
        await transfer(100, into, (position, left) => {
          let room = step;
          const part = left.map((piece) => {
            const cut = piece.subarray(0, room);
            room -= cut.length;
            return cut;
          });
          const moved = disk.read(position, part);
          return later ? Promise.resolve(moved) : moved;
        });
        expect(into.flatMap((piece) => [...piece])).toEqual(
          Array.from({ length: 9 }, (_, i) => 101 + i),
        );
      }
  });

  it("fails when nothing was moved, or more than there was, at whatever step", async () => {
    for (const lie of [0, -1, 10, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      await expect(transfer(0, pieces(), () => lie)).rejects.toMatchObject({ code: "IO" });
      const told = [4, lie];
      await expect(transfer(0, pieces(), async () => told.shift() ?? 5)).rejects.toMatchObject({
        code: "IO",
      });
      expect(told).toEqual([]);
    }
  });

  it("of zeroes is cut into steps, and each asks for its rest", async () => {
    const length = (5 << 18) + 512;
    const disk = new MemoryBackend(new Uint8Array(length + 1024).fill(7));
    const asked: number[] = [];
    await transferZeroes(
      {
        size: disk.size,
        readOnly: false,
        read: () => 0,
        write: (position, [from = new Uint8Array(0)]) => {
          asked.push(from.length);
          return disk.write(position, [from.subarray(0, 1_000_000)]);
        },
        flush: () => undefined,
        close: async () => {},
      },
      512,
      length,
    );
    expect(asked).toEqual([1 << 20, (1 << 20) - 1_000_000, (1 << 18) + 512]);
    expect(disk.content.indexOf(0)).toBe(512);
    expect(disk.content.lastIndexOf(0)).toBe(512 + length - 1);
    expect(disk.content.subarray(512, 512 + length).every((byte) => byte === 0)).toBe(true);
  });
});

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { complete, pseudoSum4, pseudoSum6, sum } from "../src/index.js";
import { naiveSum } from "./naive.js";

/** 0 and 0xffff are one number in ones' complement. */
const same = (value: number): number => (value === 0xffff ? 0 : value);

describe("the Internet checksum", () => {
  it("sums the example of RFC 1071", () => {
    const bytes = Uint8Array.from([0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
    expect(sum(bytes, 0, 8)).toBe(0xddf2);
    expect(complete(0xddf2)).toBe(0x220d);
  });

  it("sums whatever the bytes, where they begin and end, and the sum to go on from", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 0, maxLength: 400 }),
        fc.nat(5),
        fc.nat(7),
        fc.nat(7),
        fc.nat(0xffff),
        (content, skew, front, back, start) => {
          // A view that starts `skew` bytes into its buffer.
          const bytes = new Uint8Array(new ArrayBuffer(content.length + skew + 3), skew);
          bytes.set(content);
          const from = Math.min(front, content.length);
          const to = Math.max(from, content.length - back);
          expect(same(sum(bytes, from, to, start))).toBe(
            same(naiveSum(content.subarray(from, to), start)),
          );
        },
      ),
      { numRuns: 2000 },
    );
  });

  it("adds the sums of two even parts to the sum of the whole", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 2, maxLength: 3000 }), fc.nat(), (bytes, cut) => {
        const middle = (cut % (bytes.length + 1)) & ~1;
        const parts = sum(bytes, middle, bytes.length, sum(bytes, 0, middle));
        expect(same(parts)).toBe(same(sum(bytes, 0, bytes.length)));
      }),
    );
  });

  it("loses no carry of 256 KiB of 0xff, at any address", () => {
    const bytes = new Uint8Array(new SharedArrayBuffer((256 << 10) + 9)).fill(0xff);
    for (const from of [0, 1, 2, 3]) {
      expect(sum(bytes, from, from + (256 << 10))).toBe(0xffff);
      expect(sum(bytes, from, from + (256 << 10) + 1)).toBe(0xff00);
    }
  });

  it("sees the bytes of the array it is given, when arrays take turns", () => {
    const one = new Uint8Array(256).fill(1);
    const two = new Uint8Array(256).fill(2);
    const shifted = new Uint8Array(one.buffer, 1, 200);
    for (let turn = 0; turn < 3; turn++) {
      expect(sum(one, 0, 256)).toBe(naiveSum(one));
      expect(sum(two, 0, 256)).toBe(naiveSum(two));
      expect(sum(shifted, 3, 103)).toBe(naiveSum(shifted.subarray(3, 103)));
      one[7] = turn * 50;
    }
  });

  it("sums the pseudo headers of IPv4 and IPv6", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 48, maxLength: 48 }),
        fc.nat(8),
        fc.nat(255),
        fc.nat(0xffff),
        (bytes, ip, protocol, length) => {
          const tail = [0, protocol, length >> 8, length & 0xff];
          expect(same(pseudoSum4(bytes, 0, protocol, length))).toBe(
            same(naiveSum([...bytes.subarray(12, 20), ...tail])),
          );
          expect(same(pseudoSum6(bytes, ip, protocol, length))).toBe(
            same(naiveSum([...bytes.subarray(ip + 8, ip + 40), ...tail])),
          );
        },
      ),
    );
  });
});

import { describe, expectTypeOf, it } from "vitest";
import { type FeatureSet, featureSet, ReservedFeature } from "../src/index.js";
import { BlockFeature } from "../src/words/block.js";

// Each line below `@ts-expect-error` must not compile: the type check of this file fails if it does.
describe("a FeatureSet holds members of its own enums only", () => {
  const ring = featureSet<ReservedFeature>().with(ReservedFeature.VERSION_1);
  const block = featureSet<BlockFeature>().with(BlockFeature.RO);

  it("takes members", () => {
    expectTypeOf(ring.has(ReservedFeature.EVENT_IDX)).toBeBoolean();
    const bits: readonly ReservedFeature[] = [ReservedFeature.RING_PACKED];
    for (const bit of bits) ring.with(bit);
    const both = featureSet<BlockFeature | ReservedFeature>().with(
      BlockFeature.RO,
      ReservedFeature.VERSION_1,
    );
    expectTypeOf(both.has(BlockFeature.FLUSH)).toBeBoolean();
  });

  it("refuses a bit of another enum", () => {
    // @ts-expect-error a block bit in a set of reserved bits
    ring.has(BlockFeature.RO);
    // @ts-expect-error a block bit in a set of reserved bits
    ring.with(BlockFeature.RO);
    // @ts-expect-error a reserved bit in a set of block bits
    featureSet<BlockFeature>().with(ReservedFeature.VERSION_1);
  });

  it("refuses a literal, even one that is a member's value", () => {
    // @ts-expect-error 32 is VERSION_1's number, not VERSION_1
    ring.has(32);
    // @ts-expect-error a literal
    featureSet<BlockFeature>().with(5);
  });

  it("refuses a number", () => {
    const bit: number = ReservedFeature.VERSION_1;
    // @ts-expect-error a number
    ring.has(bit);
    // @ts-expect-error a number
    featureSet<BlockFeature>().with(bit);
    // @ts-expect-error a set of numbers cannot be made
    featureSet<number>();
  });

  it("refuses a union of two enums", () => {
    const bit = BlockFeature.RO as BlockFeature | ReservedFeature;
    // @ts-expect-error one of the union is no block bit
    block.has(bit);
    const both = featureSet<BlockFeature | ReservedFeature>().with(BlockFeature.RO);
    // @ts-expect-error the set may hold reserved bits
    const narrow: FeatureSet<BlockFeature> = both;
    // @ts-expect-error the wider set would take bits that the narrow one must not hold
    const wide: FeatureSet<BlockFeature | ReservedFeature> = block;
    expectTypeOf(narrow).not.toBeAny();
    expectTypeOf(wide).not.toBeAny();
  });

  it("is invariant", () => {
    expectTypeOf<FeatureSet<BlockFeature>>().not.toEqualTypeOf<FeatureSet<ReservedFeature>>();
    // @ts-expect-error a set of block bits is no set of reserved bits
    const other: FeatureSet<ReservedFeature> = block;
    expectTypeOf(other).not.toBeAny();
  });
});

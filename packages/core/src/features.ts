// Feature bits (virtio 1.4 §2.2): sets of enum members, not 64-bit words; virtio 1.4 has bits past 64.

type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/**
 * `B` when it is made of enum members; `never` for `number` and for numeric literals, which TypeScript would otherwise let pass
 * as members of any enum that has their value.
 */
export type EnumMember<B extends number> = `${B}` extends `${infer N extends number}`
  ? Same<B, N> extends true
    ? never
    : B
  : never;

/** A list in which every element is an {@link EnumMember}. */
export type EnumMembers<B extends readonly number[]> = { [K in keyof B]: EnumMember<B[K]> & B[K] };

declare const brand: unique symbol;

/**
 * An immutable set of feature bits of one or more enums. Invariant, and made only from enum members: a block bit does not fit in
 * a set of net bits, nor does a literal, a `number` or a union of two enums.
 */
export interface FeatureSet<in out F extends number> {
  /** Tells sets of different enums apart; never present at run time. */
  readonly [brand]?: (bit: F) => F;
  has<B extends F>(bit: EnumMember<B> & B): boolean;
  with<B extends readonly F[]>(...bits: EnumMembers<B>): FeatureSet<F>;
  without<B extends readonly F[]>(...bits: EnumMembers<B>): FeatureSet<F>;
  /** The bits that both sets hold. */
  intersect(other: FeatureSet<F>): FeatureSet<F>;
  /** The wire: 32-bit words, low first, as many as the highest bit asks for and at least two. */
  words(): readonly number[];
}

const wordOf = (words: readonly number[], index: number): number => words[index] ?? 0;

class BitSet<F extends number> implements FeatureSet<F> {
  readonly #words: readonly number[];

  constructor(words: readonly number[]) {
    let length = words.length;
    while (length > 2 && words[length - 1] === 0) length--;
    this.#words = Array.from({ length: Math.max(2, length) }, (_, i) => wordOf(words, i) >>> 0);
  }

  has(bit: number): boolean {
    return (wordOf(this.#words, bit >>> 5) & (1 << (bit & 31))) !== 0;
  }

  #changed(bits: readonly number[], on: boolean): FeatureSet<F> {
    const words = [...this.#words];
    for (const bit of bits) {
      const i = bit >>> 5;
      while (words.length <= i) words.push(0);
      const mask = 1 << (bit & 31);
      words[i] = on ? wordOf(words, i) | mask : wordOf(words, i) & ~mask;
    }
    return new BitSet<F>(words);
  }

  with(...bits: readonly number[]): FeatureSet<F> {
    return this.#changed(bits, true);
  }

  without(...bits: readonly number[]): FeatureSet<F> {
    return this.#changed(bits, false);
  }

  intersect(other: FeatureSet<F>): FeatureSet<F> {
    const words = other.words();
    return new BitSet<F>(this.#words.map((word, i) => word & wordOf(words, i)));
  }

  words(): readonly number[] {
    return this.#words;
  }
}

/**
 * The empty set of one or more enums, to add to: `featureSet<NetFeature>().with(NetFeature.CSUM, NetFeature.MAC)`. There is none
 * of `number`.
 */
export function featureSet<F extends number>(
  ..._refused: [EnumMember<F>] extends [never] ? [never] : []
): FeatureSet<F> {
  return new BitSet<F>([]);
}

/** The set that 32-bit words from the wire hold, low word first. The one way from numbers to a set: for transports and device models. */
export function featureSetFromWords<F extends number>(words: readonly number[]): FeatureSet<F> {
  return new BitSet<F>(words);
}

/** One row of a driver's feature table: the bit, and the name that FreeBSD prints for it. */
export interface FeatureName {
  readonly bit: number;
  readonly name: string;
  /** Groups of bits: of each at least one must be accepted for this one to be (virtio 1.4 §2.2.1). */
  readonly requires?: readonly (readonly number[])[];
}

/**
 * A feature word as FreeBSD prints it: `0x10018000 <RingIndirectDesc,Status,MrgRxBuf>`, highest bit first; a bit without a name
 * prints as the hex of the bit, an empty set as `0`. (virtio_describe)
 */
export function describeFeatures(words: readonly number[], names: readonly FeatureName[]): string {
  const value = words.reduceRight((sum, word) => sum * 0x1_0000_0000n + BigInt(word >>> 0), 0n);
  if (value === 0n) return "0";
  const shown: string[] = [];
  for (let bit = words.length * 32 - 1; bit >= 0; bit--) {
    // Bit 30 is QEMU's old probe of drivers that accept everything; FreeBSD leaves it out too.
    if (bit === 30 || ((value >> BigInt(bit)) & 1n) === 0n) continue;
    shown.push(
      names.find((row) => row.bit === bit)?.name ?? `0x${(1n << BigInt(bit)).toString(16)}`,
    );
  }
  return `0x${value.toString(16)} <${shown.join(",")}>`;
}

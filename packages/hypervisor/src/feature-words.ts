// Feature bits as the 32-bit words in which registers carry them.

/** Whether bit `n` is set. */
export const hasBit = (words: ArrayLike<number>, n: number): boolean =>
  ((words[n >>> 5] ?? 0) & (1 << (n & 31))) !== 0;

/** The words with `bits` set too. */
export function withBits(words: readonly number[], bits: readonly number[]): number[] {
  const all = [...words];
  for (const bit of bits) all[bit >>> 5] = (all[bit >>> 5] ?? 0) | (1 << (bit & 31));
  return all.map((word) => word >>> 0);
}

// RFC 1071 as it is said, independent of src/checksum.ts: words of pairs, the carries brought around one by one.

/** The ones'-complement sum of 16-bit big-endian words, an odd last byte padded with zero. */
export function naiveSum(bytes: Iterable<number>, start = 0): number {
  const list = [...bytes];
  let sum = start;
  for (let at = 0; at < list.length; at += 2) {
    sum += (list[at] as number) * 256 + (list[at + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

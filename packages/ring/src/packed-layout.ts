// The words of a packed descriptor's flags and of event suppression, as 32-bit words (virtio 1.4 §2.8).

/** PackedFlag's bits in the word of id (low half) and flags (high half): the descriptor is available, or used, in the lap of wrap counter 1 or 0. */
enum Bits {
  AVAIL = 0x0080_0000,
  /** Signed, as all words of flags are. */
  USED = -0x8000_0000,
}

/** The bits that say whose a descriptor is. */
export enum Owner {
  /** AVAIL and USED, which are bits 23 and 31 of the word. */
  MASK = -0x7f80_0000,
}

/** Bits of a descriptor that is available in the lap of `wrap` (§2.8.1). */
export const availableBits = (wrap: number): number => (wrap === 1 ? Bits.AVAIL : Bits.USED);
/** Bits of a descriptor that is used in the lap of `wrap`. */
export const usedBits = (wrap: number): number => (wrap === 1 ? Bits.AVAIL | Bits.USED : 0);

/** Bit 15 of an event's offset field: the wrap counter. */
export const WRAP = 0x8000;

/**
 * Whether an event at `event` (offset, wrap counter in bit 15) lies in the `added` descriptors that end before position `now` of a ring
 * of `size` in the lap of `wrap` (§2.8.10; the comparison is that of split rings, on positions counted through).
 */
export function passes(
  event: number,
  now: number,
  wrap: number,
  added: number,
  size: number,
): boolean {
  let at = event & 0x7fff;
  // An event of the lap before lies one ring behind.
  if (event >>> 15 !== wrap) at -= size;
  return ((now - at - 1) & 0xffff) < added;
}

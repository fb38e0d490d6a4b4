// Big-endian words, the order of the network.

/** The 16-bit word at `offset`. */
export function get16(bytes: Uint8Array, offset: number): number {
  return ((bytes[offset] as number) << 8) | (bytes[offset + 1] as number);
}

/** The 32-bit word at `offset`, unsigned. */
export function get32(bytes: Uint8Array, offset: number): number {
  return ((get16(bytes, offset) << 16) | get16(bytes, offset + 2)) >>> 0;
}

/** Writes the low 16 bits of `value` at `offset`. */
export function put16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value >>> 8;
  bytes[offset + 1] = value;
}

/** Writes the low 32 bits of `value` at `offset`. */
export function put32(bytes: Uint8Array, offset: number, value: number): void {
  put16(bytes, offset, value >>> 16);
  put16(bytes, offset + 2, value);
}

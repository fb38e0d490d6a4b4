// Views of memory that both ends of a queue share: the only ones. A test can substitute this module, and so run whole steps of the
// other end before any single access.

/** 16-bit words: indices, flags, events. */
export function words16(buffer: ArrayBufferLike, offset: number, length: number): Uint16Array {
  return new Uint16Array(buffer, offset, length);
}

/** 32-bit words: descriptors, used entries. */
export function words32(buffer: ArrayBufferLike, offset: number, length: number): Uint32Array {
  return new Uint32Array(buffer, offset, length);
}

/** The same as signed words, for ordered access: what the machine holds as small integers. */
export function signed32(buffer: ArrayBufferLike, offset: number, length: number): Int32Array {
  return new Int32Array(buffer, offset, length);
}

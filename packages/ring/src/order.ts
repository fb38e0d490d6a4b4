// The ordered accesses to memory that both ends share: the only ones. Everything else about memory order in this package follows
// from them, and a test can substitute this module.
//
// JavaScript's Atomics are sequentially consistent. So a store here is seen before any later load here is done (the full barrier of
// virtio 1.4 §2.7.13.4.1 and §2.8.21.3.1), a plain store before a store here is seen before it (§2.7.13.3.1, §2.8.21.1.1), and a
// plain load after a load here is done after it (§2.7.14, §2.8.22).
//
// Memory that no other thread or process sees (`shared` false) needs none of that: its two ends take turns. An Atomics call is 7 ns
// in Node 20, a plain access 0.7.

/** Reads an index, a flags or an event field that the other end writes. */
export function loadIndex(ring: Uint16Array, at: number, shared: boolean): number {
  return shared ? Atomics.load(ring, at) : (ring[at] as number);
}

/** Writes an index, a flags or an event field that the other end reads: everything stored before it is visible first. */
export function storeIndex(ring: Uint16Array, at: number, value: number, shared: boolean): void {
  if (shared) Atomics.store(ring, at, value);
  else ring[at] = value;
}

// Signed words: an unsigned one of 2^31 and above would be a heap number, garbage on every access.

/** Reads a descriptor's id and flags, or an event suppression structure, that the other end writes. */
export function loadWord(ring: Int32Array, at: number, shared: boolean): number {
  return shared ? Atomics.load(ring, at) : (ring[at] as number);
}

/** Writes one that the other end reads: everything stored before it is visible first. */
export function storeWord(ring: Int32Array, at: number, value: number, shared: boolean): void {
  if (shared) Atomics.store(ring, at, value);
  else ring[at] = value;
}

/** Whether an index differs from what it was, with no order at all: worth a look with loadIndex. */
export function moved(ring: Uint16Array, at: number, from: number): boolean {
  return ring[at] !== from;
}

/** A word with no order at all: worth a look with loadWord. */
export function peekWord(ring: Int32Array, at: number): number {
  return ring[at] as number;
}

// The MSI-X table and pending bits of one function (PCI 3.0 §6.8.2).
import { MSIX_ENTRY_SIZE } from "@virtio/core/pci";
import type { RegisterSpace } from "../registers.js";

/** Vector control: the vector is masked. */
const MASKED = 1;
/** Offset of the pending bits in the BAR. */
export const PENDING_AT = 0x800;
const WORDS = MSIX_ENTRY_SIZE / 4;

/** Delivers a message: a write of `data` to `address`. */
export type SendMessage = (address: number, data: number) => void;

/** A BAR of `length` bytes: the table, then the pending bits. */
export class MsixTable implements RegisterSpace {
  readonly length = 0x1000;
  readonly vectors: number;
  /** The message control word enables MSI-X, and whether it masks every vector. */
  enabled = false;
  masked = false;
  readonly #entries: Uint32Array;
  readonly #pending: Set<number> = new Set();
  readonly #send: SendMessage;

  constructor(vectors: number, send: SendMessage) {
    this.vectors = vectors;
    this.#entries = new Uint32Array(vectors * WORDS);
    for (let v = 0; v < vectors; v++) this.#entries[v * WORDS + 3] = MASKED;
    this.#send = send;
  }

  read(offset: number, width: 1 | 2 | 4): number {
    if (width !== 4) return 0;
    if (offset < PENDING_AT) return this.#entries[offset >>> 2] ?? 0;
    let bits = 0;
    const first = (offset - PENDING_AT) * 8;
    for (const vector of this.#pending)
      if (vector >= first && vector < first + 32) bits |= 1 << (vector - first);
    return bits >>> 0;
  }

  write(offset: number, width: 1 | 2 | 4, value: number): void {
    const word = offset >>> 2;
    if (width !== 4 || offset >= PENDING_AT || word >= this.#entries.length) return;
    this.#entries[word] = value;
    this.deliverPending();
  }

  /** Sends the vector's message, or keeps it pending while it is masked. */
  raise(vector: number): void {
    if (vector >= this.vectors) return;
    if (this.#isOpen(vector)) this.#deliver(vector);
    else this.#pending.add(vector);
  }

  /** Sends what is pending and no longer masked. */
  deliverPending(): void {
    for (const vector of [...this.#pending]) {
      if (!this.#isOpen(vector)) continue;
      this.#pending.delete(vector);
      this.#deliver(vector);
    }
  }

  #isOpen(vector: number): boolean {
    const control = this.#entries[vector * WORDS + 3] ?? 0;
    return this.enabled && !this.masked && (control & MASKED) === 0;
  }

  #deliver(vector: number): void {
    const entry = vector * WORDS;
    const low = this.#entries[entry] ?? 0;
    const high = this.#entries[entry + 1] ?? 0;
    this.#send(high * 0x1_0000_0000 + low, this.#entries[entry + 2] ?? 0);
  }
}

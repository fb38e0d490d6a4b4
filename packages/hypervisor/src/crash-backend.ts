// A disk with a volatile write cache, and what of it survives a power cut.
import { type BlockBackend, MemoryBackend } from "./block-backend.js";
import { xorshift } from "./scheduler.js";

/** Bytes that a disk writes wholly or not at all. */
const SECTOR = 512;

/** An odd number whose multiples differ in their high bits: 2^32 over the golden ratio. */
const SPREAD = 0x9e37_79b1;

/** One sector that was written and not flushed. */
interface CachedSector {
  readonly position: number;
  readonly bytes: Uint8Array;
}

/** A disk in memory whose writes are stable once they are flushed. Discards and zeroes are cached as writes are. */
export class CrashBackend implements BlockBackend {
  readonly readOnly = false;
  readonly size: number;
  /** What the guest reads. */
  readonly #current: MemoryBackend;
  readonly #stable: Uint8Array;
  /** In the order in which they were written. */
  #cached: CachedSector[] = [];

  /** @param content - its length, a multiple of 512, or its stable bytes at the start, which are copied */
  constructor(content: number | Uint8Array) {
    this.#stable = typeof content === "number" ? new Uint8Array(content) : content.slice();
    this.size = this.#stable.length;
    this.#current = new MemoryBackend(this.#stable.slice());
  }

  read(position: number, into: readonly Uint8Array[]): number {
    return this.#current.read(position, into);
  }

  write(position: number, from: readonly Uint8Array[]): number {
    const moved = this.#current.write(position, from);
    this.#cache(position, moved);
    return moved;
  }

  flush(): undefined {
    for (const { position, bytes } of this.#cached) this.#stable.set(bytes, position);
    this.#cached = [];
  }

  discard(position: number, length: number): undefined {
    this.writeZeroes(position, length);
  }

  writeZeroes(position: number, length: number): undefined {
    this.#current.writeZeroes(position, length);
    this.#cache(position, length);
  }

  #cache(position: number, length: number): void {
    for (let at = position; at < position + length; at += SECTOR) {
      const bytes = new Uint8Array(Math.min(SECTOR, position + length - at));
      this.#current.read(at, [bytes]);
      this.#cached.push({ position: at, bytes });
    }
  }

  /** Sectors that were written and not flushed; one that was written twice counts twice. */
  get unflushed(): number {
    return this.#cached.length;
  }

  /**
   * What is on the disk after a power cut now: everything flushed, and of the rest each sector's write or not, as drawn. The backend
   * goes on, so that one moment can be cut many times.
   */
  cut(seed: number): Uint8Array {
    // Neighbouring seeds would draw much the same at first.
    const random = xorshift(Math.imul(seed, SPREAD));
    const content = this.#stable.slice();
    for (const { position, bytes } of this.#cached)
      if (random() < 0.5) content.set(bytes, position);
    return content;
  }

  async close(): Promise<void> {}
}

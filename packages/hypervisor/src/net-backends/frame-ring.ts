// Frames that wait: a ring of bytes, made once.
const LENGTH_SIZE = 4;

/** Frames in the order in which they came, each behind its length, at a multiple of 4. */
export class FrameRing {
  readonly #bytes: Uint8Array;
  readonly #lengths: Int32Array;
  #head = 0;
  #tail = 0;
  /** Where the frames end that are followed by one at the ring's start. */
  #wrap = 0;
  /** Frames in it. */
  count = 0;

  /** @param size - bytes, lengths and all */
  constructor(size: number) {
    this.#bytes = new Uint8Array(size & ~3);
    this.#lengths = new Int32Array(this.#bytes.buffer);
    this.#wrap = this.#bytes.length;
  }

  /** Takes a copy of a frame; false: there is no room. */
  push(bytes: Uint8Array, offset: number, length: number): boolean {
    const needed = (LENGTH_SIZE + length + 3) & ~3;
    if (this.count === 0) {
      this.#head = 0;
      this.#tail = 0;
      this.#wrap = this.#bytes.length;
    }
    const behind = this.count === 0 || this.#tail > this.#head;
    if (behind && this.#bytes.length - this.#tail < needed) {
      // The rest stays empty; the frame goes to the start.
      if (this.#head < needed) return false;
      this.#wrap = this.#tail;
      this.#tail = 0;
    } else if (!behind && this.#head - this.#tail < needed) return false;
    const at = this.#tail + LENGTH_SIZE;
    this.#lengths[this.#tail >>> 2] = length;
    copy(this.#bytes, at, bytes, offset, length);
    this.#tail += needed;
    this.count += 1;
    return true;
  }

  /** Hands over the oldest frame, and forgets it if it was taken; false: it was not. */
  shift(take: (bytes: Uint8Array, offset: number, length: number) => boolean): boolean {
    if (this.#head === this.#wrap) {
      this.#head = 0;
      this.#wrap = this.#bytes.length;
    }
    const length = this.#lengths[this.#head >>> 2] as number;
    if (!take(this.#bytes, this.#head + LENGTH_SIZE, length)) return false;
    this.#head += (LENGTH_SIZE + length + 3) & ~3;
    this.count -= 1;
    return true;
  }

  clear(): void {
    this.count = 0;
  }
}

/** Up to here a loop is faster than a view: bytes. */
const SHORT = 96;

function copy(to: Uint8Array, at: number, from: Uint8Array, offset: number, length: number): void {
  if (length > SHORT) to.set(from.subarray(offset, offset + length), at);
  else for (let i = 0; i < length; i++) to[at + i] = from[offset + i] as number;
}

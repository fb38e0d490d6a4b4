// Bytes in order, up to so many.

export class ByteFifo {
  readonly #bytes: Uint8Array;
  #first = 0;
  #length = 0;

  /** @param capacity - bytes */
  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity);
  }

  /** Bytes in it. */
  get length(): number {
    return this.#length;
  }

  get room(): number {
    return this.#bytes.length - this.#length;
  }

  /** Puts bytes `start` to `end` in; how many there was room for. */
  put(bytes: Uint8Array, start: number = 0, end: number = bytes.length): number {
    const n = Math.min(end - start, this.room);
    const size = this.#bytes.length;
    for (let i = 0; i < n; i++)
      this.#bytes[(this.#first + this.#length + i) % size] = bytes[start + i] as number;
    this.#length += n;
    return n;
  }

  /** Takes bytes out, into `into` from index 0 up to `end`; how many there were. */
  take(into: Uint8Array, end: number = into.length): number {
    const n = Math.min(end, this.#length);
    const size = this.#bytes.length;
    for (let i = 0; i < n; i++) into[i] = this.#bytes[(this.#first + i) % size] as number;
    this.#first = (this.#first + n) % size;
    this.#length -= n;
    return n;
  }
}

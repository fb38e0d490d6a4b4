// Bytes as words, for copies of what is too long for a loop over bytes and too short for a view of its own.
import { signed32 } from "./views.js";

/** The words of the two arrays that were asked for last: enough where a header and a frame are copied in turn. */
export class CopyWords {
  #bytes: Uint8Array | null = null;
  /** Of the whole buffer, so that any aligned byte is in a word of it. */
  words: Int32Array = new Int32Array(0);
  /** Where the array begins in them. Bytes. */
  start = 0;
  #otherBytes: Uint8Array | null = null;
  #otherWords = this.words;
  #otherStart = 0;

  /** Makes `words` and `start` those of `bytes`. */
  of(bytes: Uint8Array): void {
    if (this.#bytes !== bytes) this.#turn(bytes);
  }

  #turn(bytes: Uint8Array): void {
    const known = this.#otherBytes === bytes;
    const words = known
      ? this.#otherWords
      : signed32(bytes.buffer, 0, bytes.buffer.byteLength >>> 2);
    const start = known ? this.#otherStart : bytes.byteOffset;
    this.#otherBytes = this.#bytes;
    this.#otherWords = this.words;
    this.#otherStart = this.start;
    this.#bytes = bytes;
    this.words = words;
    this.start = start;
  }
}

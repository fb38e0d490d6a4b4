// Bytes as words, for copies of what is too long for a loop over bytes and too short for a view of its own.
import type { GuestMemory, GuestMemoryRegion } from "@virtio/core";
import { signed32 } from "./views.js";

/** Regions that end above are not copied so: word indices are small integers. */
const END_MAX = 0x7fff_ffff;

/** The buffer of the region of guest memory that was asked for last. */
export class RegionWords {
  readonly #memory: GuestMemory;
  #region = -1;
  #near = false;
  bytes: Uint8Array = new Uint8Array(0);
  words: Int32Array = new Int32Array(0);
  /** Added, modulo 2^32, to the low word of an address in the region: its byte in the buffer. */
  lead = 0;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Makes the fields those of region number `region`; false: it is not copied so. */
  of(region: number): boolean {
    if (this.#region !== region) this.#turn(region);
    return this.#near;
  }

  #turn(region: number): void {
    const { bytes, address } = this.#memory.regions[region] as GuestMemoryRegion;
    const { buffer, byteOffset } = bytes;
    this.#region = region;
    this.#near = byteOffset + bytes.length <= END_MAX;
    this.lead = (byteOffset - (address % 0x1_0000_0000)) | 0;
    if (this.bytes.buffer === buffer) return;
    this.bytes = new Uint8Array(buffer);
    this.words = signed32(buffer, 0, buffer.byteLength >>> 2);
  }
}

/** The words of the two arrays that were asked for last: enough where a header and a frame are copied in turn. */
export class CopyWords {
  #bytes: Uint8Array | null = null;
  /** Of the whole buffer, so that any aligned byte is in a word of it. */
  words: Int32Array = new Int32Array(0);
  #start = 0;
  #otherBytes: Uint8Array | null = null;
  #otherWords = this.words;
  #otherStart = 0;

  /** Makes `words` those of `bytes`; returns where its byte `at` is in their buffer. */
  locate(bytes: Uint8Array, at: number): number {
    if (this.#bytes !== bytes) this.#turn(bytes);
    return this.#start + at;
  }

  #turn(bytes: Uint8Array): void {
    const known = this.#otherBytes === bytes;
    const words = known
      ? this.#otherWords
      : signed32(bytes.buffer, 0, bytes.buffer.byteLength >>> 2);
    const start = known ? this.#otherStart : bytes.byteOffset;
    this.#otherBytes = this.#bytes;
    this.#otherWords = this.words;
    this.#otherStart = this.#start;
    this.#bytes = bytes;
    this.words = words;
    this.#start = start;
  }
}

// Guest memory as words, for the device end: indirect tables are copied without making anything.
import type { GuestMemory, GuestMemoryRegion } from "@virtio/core";
import { words32 } from "./views.js";

/** One view for each region, made when first needed. Shared by the chains of a queue. */
export class GuestWords {
  readonly #memory: GuestMemory;
  readonly #views: (Uint32Array | undefined)[] = [];

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Copies `length` bytes, a multiple of 4, to the start of `into`; false when they lie outside guest memory. */
  copy(low: number, high: number, length: number, into: Uint32Array): boolean {
    const at = this.#memory.locate(low, high, length);
    if (at < 0) return false;
    const region = this.#memory.regions[at] as GuestMemoryRegion;
    const offset = (high >>> 0) * 0x1_0000_0000 + (low >>> 0) - region.address;
    if (((region.bytes.byteOffset + offset) & 3) !== 0) {
      // Odd addresses are allowed, and rare.
      new Uint8Array(into.buffer).set(region.bytes.subarray(offset, offset + length));
      return true;
    }
    const words = this.#views[at] ?? this.#view(at, region);
    const first = (region.bytes.byteOffset + offset) >>> 2;
    for (let i = 0; i < length >>> 2; i++) into[i] = words[first + i] as number;
    return true;
  }

  /** The region's whole buffer, so that any aligned address is a word of it. */
  #view(at: number, { bytes }: GuestMemoryRegion): Uint32Array {
    const view = words32(bytes.buffer, 0, bytes.buffer.byteLength >>> 2);
    this.#views[at] = view;
    return view;
  }
}

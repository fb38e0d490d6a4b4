// Guest pages in a balloon's hands.
import type { GuestMemory, MemoryRange } from "@virtio/core";
import { BALLOON_PAGE_SHIFT, BALLOON_PAGE_SIZE } from "@virtio/core/balloon";
import type { DeviceChain } from "@virtio/ring";

/** Bytes of a page number in a buffer. */
const NUMBER_SIZE = 4;
/** Bytes that are read at a time. */
const PIECE = 1024;

/** What a balloon does to guest memory. */
export class BalloonPages {
  readonly #memory: GuestMemory;
  /** What the bytes of pages that were taken away read as. */
  readonly #left: number;

  constructor(memory: GuestMemory, left: number) {
    this.#memory = memory;
    this.#left = left;
  }

  /** Page numbers of an inflate or a deflate request; half a number at the end is none. */
  *numbers(chain: DeviceChain): Generator<number> {
    const bytes = new DataView(new ArrayBuffer(PIECE));
    for (let at = 0; at + NUMBER_SIZE <= chain.readableLength; at += PIECE) {
      const length = chain.read(at, new Uint8Array(bytes.buffer));
      for (let i = 0; i + NUMBER_SIZE <= length; i += NUMBER_SIZE) yield bytes.getUint32(i, true);
    }
  }

  /** The bytes of a page; null: there is none of this number. */
  bytes(page: number): Uint8Array | null {
    const low = (page << BALLOON_PAGE_SHIFT) >>> 0;
    const high = page >>> (32 - BALLOON_PAGE_SHIFT);
    const region = this.#memory.regions[this.#memory.locate(low, high, BALLOON_PAGE_SIZE)];
    if (region === undefined) return null;
    const at = page * BALLOON_PAGE_SIZE - region.address;
    return region.bytes.subarray(at, at + BALLOON_PAGE_SIZE);
  }

  /** Takes a page away: its content is gone. */
  drop(bytes: Uint8Array): void {
    bytes.fill(this.#left);
  }

  /** Whether nobody wrote to it since. */
  isDropped(bytes: Uint8Array): boolean {
    return isFilled(bytes, this.#left * 0x0101_0101);
  }

  /** The ranges of a chain of free pages, and their bytes. */
  ranges(chain: DeviceChain): (MemoryRange & { readonly bytes: Uint8Array })[] {
    return chain.writablePieces(0, chain.writableLength).map((bytes) => {
      const { buffer, byteOffset, length } = bytes;
      const region = this.#memory.regions.find(
        ({ bytes: whole }) =>
          whole.buffer === buffer &&
          byteOffset >= whole.byteOffset &&
          byteOffset < whole.byteOffset + whole.length,
      );
      const offset = byteOffset - (region?.bytes.byteOffset ?? 0);
      return { address: (region?.address ?? 0) + offset, length, bytes };
    });
  }
}

/** Whether memory, whole words of it, is full of a 32-bit pattern. */
export function isFilled(bytes: Uint8Array, pattern: number): boolean {
  if (((bytes.byteOffset | bytes.byteLength) & 3) !== 0) return false;
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2);
  for (let at = 0; at < words.length; at++) if (words[at] !== pattern) return false;
  return true;
}

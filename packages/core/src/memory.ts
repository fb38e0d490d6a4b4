// Guest memory as the driver sees it (FreeBSD's busdma(9)) and as the device sees it.
import { VirtioFault } from "./errors.js";

/** A piece of guest memory that the device may access. Physically contiguous. */
export interface DmaRegion {
  /** Guest-physical address, below 2^32. What descriptors carry. */
  readonly address: number;
  /** Byte offset in `memory.buffer`. What typed arrays are indexed with. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** One view, made once. */
  readonly bytes: Uint8Array;
  /** Gives the memory back. Once. */
  free(): void;
}

/**
 * The driver's view of guest memory: one window, all of it below 4 GiB (a machine maps its memory so).
 * A Uint8Array whose `.buffer` is `memory.buffer` is used in place (zero-copy); any other is bounced.
 */
export interface DmaMemory {
  readonly buffer: ArrayBuffer | SharedArrayBuffer;
  /** Guest-physical address of the buffer's byte 0. */
  readonly base: number;
  /** True when another thread or process sees the bytes: then index stores need Atomics and fences. */
  readonly shared: boolean;
  /**
   * Zeroed memory, `length` bytes, its address a multiple of `align` (a power of two, default 16).
   * @throws VirtioFault OUT_OF_MEMORY, INVALID
   */
  allocate(length: number, align?: number): DmaRegion;
  /** Bytes not allocated. */
  readonly available: number;
}

/** One region of guest memory, at a 64-bit guest address, as a real VMM gives it. */
export interface GuestMemoryRegion {
  /** Guest-physical address, below 2^53. */
  readonly address: number;
  readonly length: number;
  readonly bytes: Uint8Array;
}

/**
 * The device end's view. Every address a driver wrote goes through `locate`; the high word is tested before a Number is made.
 */
export interface GuestMemory {
  /** Index of the region that holds [address, address+length) whole, or -1. No allocation. */
  locate(addressLow: number, addressHigh: number, length: number): number;
  readonly regions: readonly GuestMemoryRegion[];
}

/** Guest memory of one or more regions, sorted by address, none overlapping another. */
export class GuestRegions implements GuestMemory {
  readonly regions: readonly GuestMemoryRegion[];
  /** The region found last, and what of it has the same high word: from `#low`, `#room` bytes. Words, not addresses: whole numbers. */
  #last = -1;
  #high = 0;
  #low = 0;
  #room = 0;

  /** @throws VirtioFault INVALID when two regions overlap. */
  constructor(regions: readonly GuestMemoryRegion[]) {
    this.regions = [...regions].sort((a, b) => a.address - b.address);
    let end = 0;
    for (const { address, length } of this.regions) {
      if (address < end)
        throw new VirtioFault(
          "INVALID",
          `guest memory regions overlap at 0x${address.toString(16)}`,
        );
      end = address + length;
    }
  }

  locate(addressLow: number, addressHigh: number, length: number): number {
    // Mostly it is the region of the last time. Short, so that it is inlined.
    const offset = (addressLow - this.#low) >>> 0;
    if (addressHigh === this.#high && offset < this.#room && length <= this.#room - offset)
      return this.#last;
    return this.#find(addressLow >>> 0, addressHigh >>> 0, length);
  }

  #find(low: number, high: number, length: number): number {
    // 2^53 and above is no address of ours, and would not be exact as a Number.
    if (high >= 0x20_0000) return -1;
    const address = high * 0x1_0000_0000 + low;
    for (let at = 0; at < this.regions.length; at++) {
      const region = this.regions[at] as GuestMemoryRegion;
      const offset = address - region.address;
      if (offset < 0 || offset > region.length - length) continue;
      const first = Math.max(region.address, high * 0x1_0000_0000);
      this.#last = at;
      this.#high = high;
      this.#low = first >>> 0;
      this.#room = Math.min(region.address + region.length, (high + 1) * 0x1_0000_0000) - first;
      return at;
    }
    return -1;
  }
}

/** Where a {@link DmaWindow} allocates. */
export interface DmaWindowOptions {
  /** Guest-physical address of the buffer's byte 0. Default 0. */
  readonly base?: number;
  /** First byte of the buffer that may be allocated. Default 0. */
  readonly start?: number;
  /** True when another thread or process sees the bytes. Default: whether the buffer is a SharedArrayBuffer. */
  readonly shared?: boolean;
}

/** Bytes of the smallest piece that is allocated. */
const GRANULE = 16;

/** A first-fit allocator over one buffer: the DmaMemory of every machine. Freed neighbours are joined. */
export class DmaWindow implements DmaMemory {
  readonly buffer: ArrayBuffer | SharedArrayBuffer;
  readonly base: number;
  readonly shared: boolean;
  /** Free ranges by offset, sorted: start, end. */
  readonly #free: { start: number; end: number }[];

  /** @throws VirtioFault INVALID when the window does not lie below 4 GiB, UNSUPPORTED on a big-endian host. */
  constructor(buffer: ArrayBuffer | SharedArrayBuffer, options: DmaWindowOptions = {}) {
    const { base = 0, start = 0, shared = !(buffer instanceof ArrayBuffer) } = options;
    if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1)
      throw new VirtioFault(
        "UNSUPPORTED",
        "this computer is big-endian; virtio's rings are little-endian",
      );
    if (base < 0 || base + buffer.byteLength > 0x1_0000_0000)
      throw new VirtioFault(
        "INVALID",
        `guest memory at 0x${base.toString(16)} does not end below 4 GiB`,
      );
    this.buffer = buffer;
    this.base = base;
    this.shared = shared;
    this.#free = [{ start, end: buffer.byteLength }];
  }

  get available(): number {
    return this.#free.reduce((sum, range) => sum + range.end - range.start, 0);
  }

  allocate(length: number, align = 16): DmaRegion {
    if (!Number.isSafeInteger(length) || length <= 0)
      throw new VirtioFault("INVALID", `cannot allocate ${length} bytes`);
    if (align < 1 || align > 0x8000_0000 || 2 ** Math.round(Math.log2(align)) !== align)
      throw new VirtioFault("INVALID", `alignment ${align} is not a power of two`);
    // Whole granules, so that what is left over between regions can be used.
    const taken = Math.ceil(length / GRANULE) * GRANULE;
    for (const [i, range] of this.#free.entries()) {
      const address = Math.ceil((this.base + range.start) / align) * align;
      const offset = address - this.base;
      if (offset + taken > range.end) continue;
      const left = { start: range.start, end: offset };
      const right = { start: offset + taken, end: range.end };
      this.#free.splice(i, 1, ...[left, right].filter((r) => r.end > r.start));
      const bytes = new Uint8Array(this.buffer, offset, length).fill(0);
      let held = true;
      const free = (): void => {
        if (!held)
          throw new VirtioFault("INVALID", `DMA region 0x${address.toString(16)} is freed twice`);
        held = false;
        this.#release(offset, offset + taken);
      };
      return { address, offset, length, bytes, free };
    }
    throw new VirtioFault(
      "OUT_OF_MEMORY",
      `no ${length} contiguous bytes of DMA memory left (${this.available} free)`,
    );
  }

  #release(start: number, end: number): void {
    const at = this.#free.findIndex((range) => range.start >= end);
    const i = at < 0 ? this.#free.length : at;
    const before = this.#free[i - 1];
    const after = this.#free[i];
    const joinsBefore = before?.end === start;
    const joinsAfter = after?.start === end;
    const range = { start: joinsBefore ? before.start : start, end: joinsAfter ? after.end : end };
    this.#free.splice(joinsBefore ? i - 1 : i, Number(joinsBefore) + Number(joinsAfter), range);
  }
}

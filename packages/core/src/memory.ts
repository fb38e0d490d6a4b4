// Guest memory as the driver sees it (FreeBSD's busdma(9)) and as the device sees it.
import { VirtioFault } from "./errors.js";
import {
  type FreeMemory,
  type FreeMemoryWatcher,
  type FreeRangeRequest,
  type MemoryRange,
  RangeSet,
} from "./free-memory.js";

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
export interface DmaMemory extends FreeMemory {
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
  /** By offset. */
  readonly #free: RangeSet;
  /** Of what is free, what was given back as reported. */
  readonly #reported = new RangeSet();
  readonly #watchers = new Set<FreeMemoryWatcher>();
  readonly #start: number;

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
    this.#start = start;
    this.#free = new RangeSet([{ start, end: buffer.byteLength }]);
  }

  get available(): number {
    return this.#free.size;
  }

  allocate(length: number, align = 16): DmaRegion {
    if (!Number.isSafeInteger(length) || length <= 0)
      throw new VirtioFault("INVALID", `cannot allocate ${length} bytes`);
    checkAlignment(align);
    // Whole granules, so that what is left over between regions can be used.
    const taken = Math.ceil(length / GRANULE) * GRANULE;
    for (;;) {
      const offset = this.#place(taken, align);
      if (offset !== null) return this.#region(offset, length, taken);
      if (!this.#relieved())
        throw new VirtioFault(
          "OUT_OF_MEMORY",
          `no ${length} contiguous bytes of DMA memory left (${this.available} free)`,
        );
    }
  }

  /** Takes the first place that fits; null: there is none. */
  #place(taken: number, align: number): number | null {
    for (const { start, end } of this.#free) {
      const offset = Math.ceil((this.base + start) / align) * align - this.base;
      if (offset + taken > end) continue;
      this.#use(offset, offset + taken);
      return offset;
    }
    return null;
  }

  #use(start: number, end: number): void {
    this.#free.delete(start, end);
    this.#reported.delete(start, end);
  }

  #region(offset: number, length: number, taken: number): DmaRegion {
    const address = this.base + offset;
    const bytes = new Uint8Array(this.buffer, offset, length).fill(0);
    let held = true;
    const free = (): void => {
      if (!held)
        throw new VirtioFault("INVALID", `DMA region 0x${address.toString(16)} is freed twice`);
      held = false;
      this.#free.add(offset, offset + taken);
      this.#freed();
    };
    return { address, offset, length, bytes, free };
  }

  /** Whether somebody gave something back, of what there is less each time. */
  #relieved(): boolean {
    const before = this.available;
    return [...this.#watchers].some((watcher) => watcher.shortage()) && this.available > before;
  }

  #freed(): void {
    for (const watcher of this.#watchers) watcher.freed();
  }

  take({
    align,
    least = align,
    most,
    from = 0,
    unreported = false,
  }: FreeRangeRequest): MemoryRange | null {
    checkAlignment(align);
    for (const range of this.#free)
      for (const { start, end } of unreported ? this.#reported.missing(range) : [range]) {
        const first = Math.max(this.base + start, from);
        const address = Math.ceil(first / align) * align;
        const room = Math.min(this.base + end - address, most);
        const length = Math.floor(room / align) * align;
        if (length < least || length <= 0) continue;
        this.#use(address - this.base, address - this.base + length);
        return { address, length };
      }
    return null;
  }

  give({ address, length }: MemoryRange, reported = false): void {
    const start = address - this.base;
    const end = start + length;
    const inside = start >= this.#start && end <= this.buffer.byteLength && length > 0;
    if (!inside || !this.#free.add(start, end))
      throw new VirtioFault(
        "INVALID",
        `${length} bytes at 0x${address.toString(16)} were not taken from this memory`,
      );
    if (reported) this.#reported.add(start, end);
    else this.#freed();
  }

  watch(watcher: FreeMemoryWatcher): () => void {
    this.#watchers.add(watcher);
    return () => {
      this.#watchers.delete(watcher);
    };
  }
}

/** @throws VirtioFault INVALID */
function checkAlignment(align: number): void {
  if (align < 1 || align > 0x8000_0000 || 2 ** Math.round(Math.log2(align)) !== align)
    throw new VirtioFault("INVALID", `alignment ${align} is not a power of two`);
}

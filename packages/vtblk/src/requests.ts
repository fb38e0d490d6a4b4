// Guest memory of block requests: a header and a status for each request, and pages to bounce data through.
import type { DmaMemory, DmaRegion } from "@virtio/core";

/** Bytes between two headers: 16 of header, 1 of status, and the rest so that none crosses a page. */
const STRIDE = 32;
const STATUS_AT = 16;

/** Fixed slots for headers and statuses, and a stack of pages. Nothing is allocated for a request. */
export class RequestMemory {
  readonly slots: number;
  readonly pageSize: number;
  readonly #headers: DmaRegion;
  readonly #words: Uint32Array;
  readonly #pages: DmaRegion;
  readonly #freeSlots: Int32Array;
  #slotsFree: number;
  readonly #freePages: Int32Array;
  #pagesFree: number;
  /** Next page of the same request; -1 at the end. */
  readonly #nextPage: Int32Array;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(memory: DmaMemory, slots: number, pages: number, pageSize: number) {
    this.slots = slots;
    this.pageSize = pageSize;
    this.#headers = memory.allocate(slots * STRIDE, STRIDE);
    this.#words = new Uint32Array(memory.buffer, this.#headers.offset, (slots * STRIDE) >>> 2);
    this.#pages = memory.allocate(pages * pageSize, 4096);
    this.#freeSlots = Int32Array.from({ length: slots }, (_, i) => slots - 1 - i);
    this.#slotsFree = slots;
    this.#freePages = Int32Array.from({ length: pages }, (_, i) => pages - 1 - i);
    this.#pagesFree = pages;
    this.#nextPage = new Int32Array(pages).fill(-1);
  }

  get pagesFree(): number {
    return this.#pagesFree;
  }

  /** A slot, or -1. */
  takeSlot(): number {
    if (this.#slotsFree === 0) return -1;
    this.#slotsFree -= 1;
    return this.#freeSlots[this.#slotsFree] as number;
  }

  giveSlot(slot: number): void {
    this.#freeSlots[this.#slotsFree] = slot;
    this.#slotsFree += 1;
  }

  /** A page, linked in front of `next`; there must be one free. */
  takePage(next: number): number {
    this.#pagesFree -= 1;
    const page = this.#freePages[this.#pagesFree] as number;
    this.#nextPage[page] = next;
    return page;
  }

  /** The page after this one, or -1. */
  nextPage(page: number): number {
    return this.#nextPage[page] as number;
  }

  /** Gives back a page and all after it. */
  givePages(first: number): void {
    for (let page = first; page >= 0; page = this.#nextPage[page] as number) {
      this.#freePages[this.#pagesFree] = page;
      this.#pagesFree += 1;
    }
  }

  pageAddress(page: number): number {
    return this.#pages.address + page * this.pageSize;
  }

  /** Copies into a page. */
  fill(page: number, from: Uint8Array): void {
    this.#pages.bytes.set(from, page * this.pageSize);
  }

  /** Copies the start of a page. */
  copy(page: number, into: Uint8Array): void {
    const at = page * this.pageSize;
    into.set(this.#pages.bytes.subarray(at, at + into.length));
  }

  headerAddress(slot: number): number {
    return this.#headers.address + slot * STRIDE;
  }

  statusAddress(slot: number): number {
    return this.#headers.address + slot * STRIDE + STATUS_AT;
  }

  /** Writes a header, le32 type, le32 reserved, le64 sector, and presets the status to what no device writes. */
  begin(slot: number, type: number, sector: number): void {
    const w = (slot * STRIDE) >>> 2;
    this.#words[w] = type;
    this.#words[w + 1] = 0;
    this.#words[w + 2] = sector;
    this.#words[w + 3] = sector / 0x1_0000_0000;
    this.#headers.bytes[slot * STRIDE + STATUS_AT] = 0xff;
  }

  status(slot: number): number {
    return this.#headers.bytes[slot * STRIDE + STATUS_AT] as number;
  }

  /** Gives the memory back. Only after a reset that read back complete. */
  free(): void {
    this.#headers.free();
    this.#pages.free();
  }
}

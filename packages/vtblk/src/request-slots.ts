// Guest memory of a queue's requests: a header and a status for each (virtio 1.4 §5.2.6).
import type { DmaMemory, DmaRegion } from "@virtio/core";

/** Bytes between two headers: 16 of header, 1 of status, and the rest so that none crosses a page. */
const STRIDE = 32;
const STATUS_AT = 16;

/** Fixed slots, as many as the queue has descriptors. Nothing is allocated for a request. */
export class RequestSlots {
  readonly #region: DmaRegion;
  readonly #words: Uint32Array;
  readonly #stack: Int32Array;
  #available: number;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(memory: DmaMemory, count: number) {
    this.#region = memory.allocate(count * STRIDE, STRIDE);
    this.#words = new Uint32Array(memory.buffer, this.#region.offset, (count * STRIDE) >>> 2);
    this.#stack = Int32Array.from({ length: count }, (_, i) => count - 1 - i);
    this.#available = count;
  }

  /** A slot; there must be one available: there is for each free descriptor. */
  take(): number {
    this.#available -= 1;
    return this.#stack[this.#available] as number;
  }

  give(slot: number): void {
    this.#stack[this.#available] = slot;
    this.#available += 1;
  }

  headerAddress(slot: number): number {
    return this.#region.address + slot * STRIDE;
  }

  statusAddress(slot: number): number {
    return this.#region.address + slot * STRIDE + STATUS_AT;
  }

  /** Writes a header, le32 type, le32 reserved, le64 sector, and presets the status to what no device writes. */
  begin(slot: number, type: number, sector: number): void {
    const w = (slot * STRIDE) >>> 2;
    this.#words[w] = type;
    this.#words[w + 1] = 0;
    this.#words[w + 2] = sector;
    this.#words[w + 3] = sector / 0x1_0000_0000;
    this.#region.bytes[slot * STRIDE + STATUS_AT] = 0xff;
  }

  status(slot: number): number {
    return this.#region.bytes[slot * STRIDE + STATUS_AT] as number;
  }

  /** Gives the memory back. Only when no device can write to it any more. */
  free(): void {
    this.#region.free();
  }
}

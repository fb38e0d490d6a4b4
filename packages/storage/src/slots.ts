// Guest memory of a queue's requests, cut into slots.
import type { DmaMemory, DmaRegion } from "@virtio/core";

/** Fixed slots of guest memory, as many as a queue has descriptors. Nothing is allocated for a request. */
export class Slots {
  /** All slots, one after the other. */
  protected readonly region: DmaRegion;
  /** The same as words. */
  protected readonly words: Uint32Array;
  readonly #stack: Int32Array;
  readonly #count: number;
  #available = 0;

  /**
   * @param stride - bytes of a slot, a power of two up to 4096, so that none crosses a page
   * @throws VirtioFault OUT_OF_MEMORY
   */
  constructor(memory: DmaMemory, count: number, stride: number) {
    this.region = memory.allocate(count * stride, stride);
    this.words = new Uint32Array(memory.buffer, this.region.offset, (count * stride) >>> 2);
    this.#stack = new Int32Array(count);
    this.#count = count;
    this.reset();
  }

  /** All of them are available: the device has none any more. */
  reset(): void {
    for (let i = 0; i < this.#count; i++) this.#stack[i] = this.#count - 1 - i;
    this.#available = this.#count;
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

  /** Gives the memory back. Only when no device can write to it any more. */
  free(): void {
    this.region.free();
  }
}

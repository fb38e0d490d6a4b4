// The transmit queue of a port (virtio 1.4 §5.3.6): bytes are copied into its buffers, as many as there is room for.
import type { DmaMemory, Virtqueue } from "@virtio/core";
import { type Gate, SLOT_SIZE, SLOTS_MAX, Slots } from "./slots.js";

export class TransmitQueue {
  /** Bytes that the device took. */
  transmitted = 0;
  readonly #slots: Slots;
  /** Slots that are the driver's: a stack. */
  readonly #free: Uint16Array;
  #count: number;
  /** Bytes in each slot. */
  readonly #lengths: Uint32Array;
  #pending = 0;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, memory: DmaMemory, gate: Gate) {
    this.#slots = new Slots(queue, memory, gate, SLOT_SIZE, SLOTS_MAX);
    const { count } = this.#slots;
    this.#free = Uint16Array.from({ length: count }, (_, i) => count - 1 - i);
    this.#count = count;
    this.#lengths = new Uint32Array(count);
  }

  get slots(): Slots {
    return this.#slots;
  }

  /** Bytes that the device has. */
  get pending(): number {
    this.reap();
    return this.#pending;
  }

  /** Gives the device bytes from `bytes[start]` on, in order; how many there was room for. One doorbell a call. */
  transmit(bytes: Uint8Array, start: number): number {
    const slots = this.#slots;
    let at = start;
    if (this.#count * slots.size < bytes.length - start) this.reap();
    while (at < bytes.length && this.#count > 0) {
      const slot = this.#free[this.#count - 1] as number;
      const length = Math.min(slots.size, bytes.length - at);
      const to = slot * slots.size;
      for (let i = 0; i < length; i++) slots.bytes[to + i] = bytes[at + i] as number;
      if (slots.enqueueReadable(slot, length) !== 0) break;
      this.#count -= 1;
      this.#lengths[slot] = length;
      this.#pending += length;
      at += length;
    }
    if (at > start) slots.notify();
    return at - start;
  }

  /** Takes back what the device has read. What it says of lengths is not looked at: there are none (§5.3.6.3). */
  reap(): void {
    for (let slot = this.#slots.dequeue(); slot >= 0; slot = this.#slots.dequeue()) {
      const length = this.#lengths[slot] as number;
      this.#free[this.#count] = slot;
      this.#count += 1;
      this.#pending -= length;
      this.transmitted += length;
    }
  }

  /** Asks for an interrupt when the device takes something; true: it has, since the last look. */
  arm(): boolean {
    const before = this.#count;
    this.reap();
    return this.#count > before || this.#slots.queue.enableInterrupt();
  }

  /** The device was reset. @returns the bytes of which nobody knows whether it took them */
  reclaim(): number {
    const { held } = this.#slots;
    for (const [slot, mine] of held.entries()) {
      if (mine === 0) continue;
      this.#free[this.#count] = slot;
      this.#count += 1;
    }
    const lost = this.#pending;
    this.#pending = 0;
    this.#slots.reclaim();
    return lost;
  }
}

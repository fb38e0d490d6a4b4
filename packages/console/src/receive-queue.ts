// The receive queue of a port (virtio 1.4 §5.3.6): bytes that nobody takes stay in its buffers, and the device waits.
import type { DmaMemory, Virtqueue } from "@virtio/core";
import { type Gate, SLOT_SIZE, SLOTS_MAX, Slots } from "./slots.js";

export class ReceiveQueue {
  /** Bytes that were taken. */
  received = 0;
  readonly #slots: Slots;
  /** The slot that is being read, its next byte and the end of its bytes; -1: none. */
  #slot = -1;
  #at = 0;
  #end = 0;
  /** What came before a reset, or is left of it. */
  #rest: Uint8Array | null = null;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, memory: DmaMemory, gate: Gate) {
    this.#slots = new Slots(queue, memory, gate, SLOT_SIZE, SLOTS_MAX);
  }

  get slots(): Slots {
    return this.#slots;
  }

  /** Gives the device every buffer that it is to fill, and rings. After DRIVER_OK. */
  fill(): void {
    const slots = this.#slots;
    for (let slot = 0; slot < slots.count; slot++)
      if (slots.held[slot] === 0 && slot !== this.#slot && slots.enqueueWritable(slot) !== 0) break;
    slots.notify();
  }

  /** Copies bytes in the order in which they came; a buffer that was read whole goes back to the device. One doorbell a call. */
  receive(into: Uint8Array): number {
    const slots = this.#slots;
    let n = this.#rest === null ? 0 : this.#takeRest(this.#rest, into);
    let read = 0;
    while (n < into.length && this.#next()) {
      const length = Math.min(into.length - n, this.#end - this.#at);
      const from = this.#slot * slots.size + this.#at;
      if (length === slots.size) into.set(slots.views[this.#slot] as Uint8Array, n);
      else for (let i = 0; i < length; i++) into[n + i] = slots.bytes[from + i] as number;
      n += length;
      this.#at += length;
      if (this.#at < this.#end) continue;
      // A queue that is suspended takes none now: fill() gives it later.
      if (slots.enqueueWritable(this.#slot) === 0) read += 1;
      this.#slot = -1;
    }
    if (read > 0) slots.notify();
    this.received += n;
    return n;
  }

  /** Whether there is a buffer to read. */
  #next(): boolean {
    if (this.#slot >= 0) return true;
    this.#slot = this.#slots.dequeue();
    this.#at = 0;
    this.#end = this.#slots.queue.usedLength;
    return this.#slot >= 0;
  }

  #takeRest(rest: Uint8Array, into: Uint8Array): number {
    const length = Math.min(rest.length, into.length);
    into.set(rest.subarray(0, length));
    this.#rest = length < rest.length ? rest.subarray(length) : null;
    return length;
  }

  /** Asks for an interrupt when bytes come; true: there are some already. */
  arm(): boolean {
    return this.#rest !== null || this.#slot >= 0 || this.#slots.queue.enableInterrupt();
  }

  /** Takes out of the ring what is there, so that a reset does not lose it. At most what the buffers hold. */
  keep(): void {
    this.#rest = this.takeAll();
  }

  /** All that is there, and not read; the buffers stay the driver's. Null: nothing. */
  takeAll(): Uint8Array | null {
    const parts = this.#rest === null ? [] : [this.#rest];
    for (let n = 0; n <= this.#slots.count && this.#next(); n++) {
      parts.push((this.#slots.views[this.#slot] as Uint8Array).slice(this.#at, this.#end));
      this.#slot = -1;
    }
    this.#rest = null;
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    if (length === 0) return null;
    const all = new Uint8Array(length);
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

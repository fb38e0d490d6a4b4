// Buffers of one queue: slots of one piece of guest memory, each the device's or the driver's. The cookie of a chain is its slot.
import { type DmaMemory, type DmaRegion, Errno, type Virtqueue } from "@virtio/core";

/** Bytes of a port's buffer, and how many of them a queue has at most: 64 KiB each way. FreeBSD has 128 bytes. */
export const SLOT_SIZE = 1024;
export const SLOTS_MAX = 64;

/** Whether the device may be given buffers, and told of them. One for all queues of a device. */
export interface Gate {
  open: boolean;
}

export class Slots {
  readonly queue: Virtqueue;
  readonly count: number;
  readonly size: number;
  /** All of them. */
  readonly bytes: Uint8Array;
  readonly address: number;
  /** One view of each, made once: a view costs more than the bytes of a line. */
  readonly views: readonly Uint8Array[];
  /** Of each, 1: the device has it. */
  readonly held: Uint8Array;
  readonly #region: DmaRegion;
  readonly #gate: Gate;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, memory: DmaMemory, gate: Gate, size: number, most: number) {
    const count = Math.min(queue.size, most);
    this.queue = queue;
    this.count = count;
    this.size = size;
    this.#gate = gate;
    this.#region = memory.allocate(count * size, 64);
    const { bytes, address } = this.#region;
    this.bytes = bytes;
    this.address = address;
    this.views = Array.from({ length: count }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
    this.held = new Uint8Array(count);
  }

  /** Gives the device a slot to write to. @returns 0, or a negative errno: it is still the driver's */
  enqueueWritable(slot: number): number {
    if (!this.#gate.open) return -Errno.EBUSY;
    const error = this.queue.enqueueWritable(slot, this.address + slot * this.size, this.size);
    if (error === 0) this.held[slot] = 1;
    return error;
  }

  /** Gives the device the first bytes of a slot to read. @returns as enqueueWritable() */
  enqueueReadable(slot: number, length: number): number {
    if (!this.#gate.open) return -Errno.EBUSY;
    const error = this.queue.enqueueReadable(slot, this.address + slot * this.size, length);
    if (error === 0) this.held[slot] = 1;
    return error;
  }

  /** Shows the device what it was given, and rings if it wants that; nothing while it is to be left alone. */
  notify(): void {
    if (this.#gate.open) this.queue.notify();
  }

  /** Takes a used slot; -1: there is none. The queue's `usedLength` is never more than was writable. */
  dequeue(): number {
    const slot = this.queue.dequeue();
    if (slot >= 0) this.held[slot] = 0;
    return slot;
  }

  /** The device was reset: it has none any more. */
  reclaim(): void {
    this.held.fill(0);
  }

  /** Whether the device may still write to them, or read them. */
  get stranded(): boolean {
    return this.held.includes(1);
  }

  /** Gives the memory back. Only when no device can reach it any more. */
  free(): void {
    this.#region.free();
  }
}

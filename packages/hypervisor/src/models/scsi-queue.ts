// The chains of one queue of a SCSI host: taken in batches, given back when they are done, with IN_ORDER in the order of their taking.
import { ReservedFeature } from "@virtio/core";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";

/** Chains taken in one task; more wait for the next, so that other devices get their turn. */
const BATCH = 64;

/** A chain that was taken. */
export interface ScsiSlot {
  /** Index of its queue. */
  readonly index: number;
  readonly queue: DeviceQueue;
  readonly chain: DeviceChain;
  /** used.len; null: it is not done. */
  written: number | null;
  /** Not the device's any more: given back, or gone with a reset. */
  over: boolean;
  /** Who waits for that. */
  readonly waits: (() => void)[];
}

/** One queue. */
export class SlotQueue {
  readonly #index: number;
  readonly #host: ModelHost;
  readonly #take: (slot: ScsiSlot) => void;
  /** Called before chains are taken: for the rules. */
  readonly #look: (queue: DeviceQueue) => void;
  /** Taken and not given back, in the order of their taking. */
  readonly #slots = new Set<ScsiSlot>();
  /** A batch is being taken: the driver is told of all of it at its end. */
  #taking = false;

  /** @param take - is to give the slot back, now or later */
  constructor(
    index: number,
    host: ModelHost,
    take: (slot: ScsiSlot) => void,
    look: (queue: DeviceQueue) => void,
  ) {
    this.#index = index;
    this.#host = host;
    this.#take = take;
    this.#look = look;
  }

  /** Chains taken and not given back. */
  get outstanding(): number {
    return this.#slots.size;
  }

  /** The driver rang. */
  notified(): void {
    const host = this.#host;
    const queue = host.queue(this.#index);
    if (queue === null) return;
    this.#look(queue);
    this.#taking = true;
    const emptied = this.#takeBatch(queue);
    this.#taking = false;
    host.used(this.#index);
    if (!emptied) host.tasks.enqueue(() => this.notified());
  }

  /** Whether nothing is left. */
  #takeBatch(queue: DeviceQueue): boolean {
    for (let n = 0; n < BATCH; n++) {
      const chain = queue.take();
      if (chain !== null) {
        this.#host.taken(queue, chain);
        const index = this.#index;
        const slot: ScsiSlot = { index, queue, chain, written: null, over: false, waits: [] };
        this.#slots.add(slot);
        this.#take(slot);
      } else if (!queue.enableNotify()) return true;
    }
    return false;
  }

  /** A slot is done: it is given back now, or with IN_ORDER behind those before it (virtio 1.4 §6.2). */
  give(slot: ScsiSlot, written: number): void {
    if (slot.over) return;
    slot.written = written;
    if (hasBit(this.#host.features, ReservedFeature.IN_ORDER)) this.#giveInOrder();
    else this.#give(slot, written);
    if (!this.#taking) this.#host.tasks.enqueue(() => this.#host.used(this.#index));
  }

  #giveInOrder(): void {
    for (const slot of this.#slots) {
      if (slot.written === null) return;
      this.#give(slot, slot.written);
    }
  }

  #give(slot: ScsiSlot, written: number): void {
    slot.queue.put(slot.chain, written);
    this.#end(slot);
  }

  #end(slot: ScsiSlot): void {
    this.#slots.delete(slot);
    slot.over = true;
    for (const wait of slot.waits.splice(0)) wait();
  }

  /** The queue is reset: what was taken is not given back. */
  reset(): void {
    for (const slot of this.#slots) this.#end(slot);
  }
}

/** When none of these is the device's any more; null: now. */
export function whenOver(slots: readonly ScsiSlot[]): Promise<void> | null {
  const left = slots.filter(({ over }) => !over);
  if (left.length === 0) return null;
  return Promise.all(
    left.map(({ waits }) => new Promise<void>((resolve) => waits.push(resolve))),
  ).then(() => {});
}

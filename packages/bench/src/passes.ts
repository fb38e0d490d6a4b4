// The load: what native/load.h does, through the public API. A used buffer that is not the one that was sent ends the run.
import type { ChainTemplate } from "@virtio/core";
import { BUFFER, type DeviceEnd, type DriverEnd } from "./pair.js";

/** Looks in vain before the other thread is taken for dead. */
const STALLED = 2 ** 28;

/** The driver's half of a batch: fill and notify. */
export function submit(queue: DriverEnd, list: Uint32Array, batch: number, segments: number): void {
  const words = segments * 2;
  for (let slot = 0; slot < batch; slot++)
    if (queue.enqueue(slot, list, slot * words, segments - 1, 1) !== 0)
      throw new Error(`slot ${slot} was not enqueued`);
  queue.notify();
}

/** The driver's half of a batch of chains of one segment, in the short form that there is for them. */
export function submitSingles(queue: DriverEnd, list: Uint32Array, batch: number): void {
  for (let slot = 0; slot < batch; slot++)
    if (queue.enqueueWritable(slot, list[slot * 2] as number, list[slot * 2 + 1] as number) !== 0)
      throw new Error(`slot ${slot} was not enqueued`);
  queue.notify();
}

/** The driver's half of a batch of template slots. */
export function submitSlots(queue: DriverEnd, template: ChainTemplate, batch: number): void {
  for (let slot = 0; slot < batch; slot++)
    if (template.enqueue(slot) !== 0) throw new Error(`slot ${slot} was not enqueued`);
  queue.notify();
}

/** The device's half: everything that is available comes back, its writable bytes written. */
export function serve(queue: DeviceEnd): void {
  for (;;) {
    const chain = queue.take();
    if (chain === null) break;
    queue.put(chain, chain.writableLength);
  }
  if (queue.wantsInterrupt()) throw new Error("an interrupt nobody asked for");
}

/** Takes back what is used: the slots from `expected` on. Returns the next slot to come. */
export function collect(queue: DriverEnd, expected: number): number {
  let next = expected;
  for (;;) {
    const slot = queue.dequeue();
    if (slot < 0) return next;
    if (slot !== next || queue.usedLength !== BUFFER)
      throw new Error(`slot ${slot} came back with ${queue.usedLength} bytes, not ${next}`);
    next += 1;
  }
}

/** Takes back a whole batch from the device's thread. */
export function collectAll(queue: DriverEnd, batch: number): void {
  let done = 0;
  for (let tries = 0; done < batch; tries++) {
    if (tries === STALLED) throw new Error("the device's thread does not answer");
    done = collect(queue, done);
  }
}

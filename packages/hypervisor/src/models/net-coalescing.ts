// Coalescing of notifications (virtio 1.4 §5.1.9.5.10): used buffers are seen at once, interrupts come later.
import type { Callout } from "@virtio/core";
import type { ModelHost } from "../device-model.js";

/** Receive queues are the even ones, transmit queues the odd ones. */
export enum Direction {
  RECEIVE = 0,
  TRANSMIT = 1,
}

/** Of one queue. */
interface QueueCoalescing {
  maxPackets: number;
  maxMicroseconds: number;
  /** Packets since the last notification. */
  packets: number;
  callout: Callout | null;
}

/** The notifications of a device's queues. */
export class NetCoalescing {
  readonly #host: ModelHost;
  readonly #queues: readonly QueueCoalescing[];
  /** By direction. */
  #defaults = noCoalescing();

  constructor(host: ModelHost, queues: number) {
    this.#host = host;
    this.#queues = Array.from({ length: queues }, () => ({
      maxPackets: 0,
      maxMicroseconds: 0,
      packets: 0,
      callout: null,
    }));
  }

  /** How a queue is set: `maxPackets`, `maxMicroseconds`. */
  get(queue: number): Readonly<{ maxPackets: number; maxMicroseconds: number }> {
    return this.#of(queue);
  }

  /** Sets one queue. */
  set(queue: number, maxPackets: number, maxMicroseconds: number): void {
    const state = this.#of(queue);
    state.maxPackets = maxPackets;
    state.maxMicroseconds = maxMicroseconds;
    if (state.packets > 0) this.#notify(queue, state);
  }

  /** Sets all queues of one direction, and what a queue has when it is enabled again. */
  setAll(direction: Direction, maxPackets: number, maxMicroseconds: number): void {
    this.#defaults[direction] = { maxPackets, maxMicroseconds };
    for (let queue: number = direction; queue < this.#queues.length; queue += 2)
      this.set(queue, maxPackets, maxMicroseconds);
  }

  #of(queue: number): QueueCoalescing {
    return this.#queues[queue] as QueueCoalescing;
  }

  /** `packets` were given back: visible now, and the driver is told when it is time. */
  used(queue: number, packets: number): void {
    const state = this.#of(queue);
    state.packets += packets;
    const late = state.packets < state.maxPackets && state.maxMicroseconds > 0;
    if (!late) {
      this.#notify(queue, state);
      return;
    }
    this.#host.queue(queue)?.publish();
    state.callout ??= this.#host.tasks.callout(state.maxMicroseconds / 1000, () =>
      this.#notify(queue, state),
    );
  }

  #notify(queue: number, state: QueueCoalescing): void {
    state.callout?.stop();
    state.callout = null;
    state.packets = 0;
    this.#host.used(queue);
  }

  /** As after a reset of the device, or of one queue (§5.1.9.5.10.4). */
  reset(queue?: number): void {
    if (queue === undefined) this.#defaults = noCoalescing();
    for (const [index, state] of this.#queues.entries()) {
      if (queue !== undefined && queue !== index) continue;
      state.callout?.stop();
      Object.assign(state, this.#defaults[index & 1], { packets: 0, callout: null });
    }
  }
}

const noCoalescing = (): { maxPackets: number; maxMicroseconds: number }[] => [
  { maxPackets: 0, maxMicroseconds: 0 },
  { maxPackets: 0, maxMicroseconds: 0 },
];

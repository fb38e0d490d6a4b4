// The event queue of a SCSI host: what comes, goes and changes (virtio 1.4 §5.6.6.3).
import {
  type DmaMemory,
  type DmaRegion,
  type ScsiBusEvent,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { SCSI_EVENTS_MISSED, ScsiEventBuffer } from "@virtio/core/scsi";
import { addressAt } from "./address.js";

/** Buffers that the device has, as in FreeBSD. */
const BUFFERS = 4;

/** What the queue needs of its adapter. */
export interface EventQueueOptions {
  /** `vtscsi0` */
  readonly adapter: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** Bytes of a buffer: event_info_size, at least 16. */
  readonly size: number;
  /** The legacy interface: used lengths say nothing (§5.6.6.0.1). */
  readonly legacy: boolean;
  /** One event, copied out; its buffer is the device's again. What cannot be read counts as missed. */
  readonly onEvent: (event: ScsiBusEvent) => void;
  /** See Virtqueue. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** Keeps the device in buffers. */
export class EventQueue {
  readonly #queue: Virtqueue;
  readonly #options: EventQueueOptions;
  readonly #region: DmaRegion;
  readonly #words: DataView;
  readonly #count: number;
  #stopped = false;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, options: EventQueueOptions) {
    this.#queue = queue;
    this.#options = options;
    this.#count = Math.min(BUFFERS, queue.size);
    const { memory, size } = options;
    this.#region = memory.allocate(this.#count * size);
    this.#words = new DataView(memory.buffer, this.#region.offset, this.#count * size);
    queue.onUsed = () => this.#events();
    queue.onBroken = (fault) => {
      if (queue.broken === fault) options.onBroken(fault);
    };
  }

  get stranded(): boolean {
    return this.#queue.broken?.code === "CLOSED" && this.#queue.used > 0;
  }

  /** Gives the device all buffers: it has none. @throws VirtioFault IO */
  fill(): void {
    for (let n = 0; n < this.#count; n++)
      if (this.#give(n) !== 0)
        throw new VirtioFault("IO", "cannot populate the eventvq", {
          device: this.#options.adapter,
        });
    this.#queue.publish();
  }

  /** Used buffers raise interrupts from now on, and the device is told of what it has. */
  arm(): void {
    this.#queue.notify();
    if (this.#queue.enableInterrupt()) this.#options.tasks.enqueue(() => this.#events());
  }

  stop(): void {
    this.#stopped = true;
  }

  #give(n: number): number {
    const { size } = this.#options;
    this.#region.bytes.fill(0, n * size, (n + 1) * size);
    return this.#queue.enqueueWritable(n, this.#region.address + n * size, size);
  }

  /** As many as there are buffers, before other tasks get their turn: a device may have no end of them. */
  #events(): void {
    if (this.#stopped) return;
    const queue = this.#queue;
    queue.disableInterrupt();
    for (let taken = 0; taken < this.#count; taken++) {
      const n = queue.dequeue();
      if (n < 0) break;
      const event = this.#read(n, queue.usedLength);
      // One that cannot be given back is one of a queue that broke.
      this.#give(n);
      this.#options.onEvent(event);
    }
    this.arm();
  }

  #read(n: number, used: number): ScsiBusEvent {
    const at = n * this.#options.size;
    const word = this.#words.getUint32(at + ScsiEventBuffer.EVENT, true);
    const address = addressAt(this.#region.bytes, at + ScsiEventBuffer.LUN);
    const whole = this.#options.legacy || used >= ScsiEventBuffer.SIZE;
    if (!whole) return { event: 0, reason: 0, target: 0, lun: 0, missed: true };
    return {
      event: (word & ~SCSI_EVENTS_MISSED) >>> 0,
      reason: this.#words.getUint32(at + ScsiEventBuffer.REASON, true),
      // NO_EVENT has no address.
      ...(address ?? { target: 0, lun: 0 }),
      missed: (word & SCSI_EVENTS_MISSED) !== 0,
    };
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#region.free();
  }
}

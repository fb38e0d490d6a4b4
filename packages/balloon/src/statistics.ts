// Statistics of the guest's memory for the device (virtio 1.4 §5.5.6.3), and of the balloon for people.
import type { DmaMemory, DmaRegion, TaskQueue, Virtqueue } from "@virtio/core";
import { BALLOON_STATISTIC_SIZE, BalloonStatistic } from "@virtio/core/balloon";

/** What a balloon did since it was attached. Pages are of 4 KiB. */
export interface BalloonCounters {
  /** Pages that the device was given. */
  inflated: number;
  /** Pages that were taken back. */
  deflated: number;
  /** Of these, because the guest was out of memory. */
  relieved: number;
  /** Times that there was no page for the balloon. */
  failures: number;
  /** Bytes of free pages that were hinted. */
  hinted: number;
  /** Bytes of free pages that were reported. */
  reported: number;
  /** Buffers of statistics that the device was given. */
  statistics: number;
  /** Resets of a device that did not answer, or asked for one. */
  resets: number;
}

/** Statistics that are told: all that a window of memory knows. */
const TAGS = [BalloonStatistic.MEMFREE, BalloonStatistic.MEMTOT, BalloonStatistic.AVAIL] as const;

/** What statistics are made from. */
export interface StatisticsOptions {
  readonly queue: Virtqueue;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly counters: BalloonCounters;
  /** Bytes that the balloon has, and whether it gives them back when they are needed. */
  readonly held: () => { readonly bytes: number; readonly yields: boolean };
}

/** Keeps one buffer with the device, which gives it back when it wants to be told anew. */
export class StatisticsQueue {
  readonly #queue: Virtqueue;
  readonly #memory: DmaMemory;
  readonly #tasks: TaskQueue;
  readonly #region: DmaRegion;
  readonly #view: DataView;
  readonly #counters: BalloonCounters;
  readonly #held: StatisticsOptions["held"];
  #stopped = true;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor({ queue, memory, tasks, counters, held }: StatisticsOptions) {
    this.#queue = queue;
    this.#memory = memory;
    this.#tasks = tasks;
    this.#counters = counters;
    this.#held = held;
    this.#region = memory.allocate(TAGS.length * BALLOON_STATISTIC_SIZE);
    const { bytes } = this.#region;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    queue.onUsed = () => this.#used();
  }

  /** After DRIVER_OK. `fresh`: the device has no buffer. */
  start(fresh: boolean): void {
    this.#stopped = false;
    if (fresh) this.#send();
    this.#arm();
  }

  /** The ring may go. */
  stop(): void {
    this.#stopped = true;
  }

  #arm(): void {
    // One buffer a task: a device that asks without end holds nobody up.
    if (this.#queue.enableInterrupt()) this.#tasks.enqueue(() => this.#used());
  }

  #used(): void {
    if (this.#stopped) return;
    if (this.#queue.dequeue() >= 0) this.#send();
    this.#arm();
  }

  #send(): void {
    const { available, buffer } = this.#memory;
    const { bytes, yields } = this.#held();
    const values = [available, buffer.byteLength - bytes, available + (yields ? bytes : 0)];
    for (const [i, tag] of TAGS.entries()) {
      const at = i * BALLOON_STATISTIC_SIZE;
      const value = values[i] as number;
      this.#view.setUint16(at, tag, true);
      this.#view.setUint32(at + 2, value % 0x1_0000_0000, true);
      this.#view.setUint32(at + 6, Math.floor(value / 0x1_0000_0000), true);
    }
    const { address, length } = this.#region;
    if (this.#queue.enqueueReadable(0, address, length) !== 0) return;
    this.#counters.statistics += 1;
    this.#queue.notify();
  }

  dispose(): void {
    this.#region.free();
  }
}

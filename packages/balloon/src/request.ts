// A request, and the wait for its end: one at a time, each with a bound.
import { type TaskQueue, VirtioFault, type Virtqueue } from "@virtio/core";

/** Milliseconds between two looks at a queue that does not interrupt: twice as many each time, up to the last. */
const LOOK_MS = 1;
const LOOK_MS_MAX = 100;

/** How requests are made. */
export interface RequestsOptions {
  /** `vtballoon0` */
  readonly name: string;
  readonly tasks: TaskQueue;
  readonly timeoutMs: number;
}

/** The only request that a device has, on whichever queue. */
export class Requests {
  readonly #options: RequestsOptions;
  /** Queues that interrupt. */
  readonly #served = new Set<Virtqueue>();
  /** The request that the device has. */
  #pending: {
    readonly queue: Virtqueue;
    readonly over: (fault: VirtioFault | null) => void;
  } | null = null;
  /** Since the last restart(). */
  #fault: VirtioFault | null = null;

  constructor(options: RequestsOptions) {
    this.#options = options;
  }

  /** Makes a queue one of those that requests go to; the others are looked at while they have one. */
  serve(queue: Virtqueue): void {
    this.#served.add(queue);
    queue.onUsed = () => this.#used(queue);
  }

  /** After DRIVER_OK: used buffers interrupt. */
  arm(): void {
    for (const queue of this.#served)
      if (queue.enableInterrupt()) this.#options.tasks.enqueue(() => this.#used(queue));
  }

  /**
   * Makes a chain of one or more segments available, and waits until the device used it. What used.len says means nothing here.
   * @throws VirtioFault TIMED_OUT: the device has the memory still, until it is reset; or what fail() was called with
   */
  async run(
    what: string,
    queue: Virtqueue,
    segments: Uint32Array,
    readable: number,
    writable: number,
  ): Promise<void> {
    const { tasks, timeoutMs } = this.#options;
    if (this.#fault !== null) throw this.#fault;
    const error = queue.enqueue(0, segments, 0, readable, writable);
    if (error !== 0)
      throw queue.broken ?? this.#fail("IO", `${what}: not enqueued, errno ${-error}`);
    const fault = await new Promise<VirtioFault | null>((resolve) => {
      const late = tasks.callout(timeoutMs, () => {
        // An interrupt may have been lost.
        this.#used(queue);
        if (this.#pending === null) return;
        this.#pending = null;
        this.#fault = this.#fail("TIMED_OUT", `${what} timed out after ${timeoutMs / 1000} s`);
        resolve(this.#fault);
      });
      const over = (fault: VirtioFault | null): void => {
        this.#pending = null;
        late.stop();
        resolve(fault);
      };
      this.#pending = { queue, over };
      queue.notify();
      if (!this.#served.has(queue)) this.#lookSoon(queue, LOOK_MS);
    });
    if (fault !== null) throw fault;
  }

  #used(queue: Virtqueue): void {
    // The ring may be gone.
    if (this.#fault !== null) return;
    do {
      while (queue.dequeue() >= 0) if (this.#pending?.queue === queue) this.#pending.over(null);
    } while (this.#served.has(queue) && queue.enableInterrupt());
  }

  #lookSoon(queue: Virtqueue, delay: number): void {
    this.#options.tasks.callout(delay, () => {
      this.#used(queue);
      if (this.#pending?.queue === queue) this.#lookSoon(queue, Math.min(2 * delay, LOOK_MS_MAX));
    });
  }

  /** The device failed: whoever waits is told, and whoever comes before restart(). */
  fail(fault: VirtioFault): void {
    this.#fault ??= fault;
    this.#pending?.over(this.#fault);
  }

  /** The device was reset. */
  restart(): void {
    this.#fault = null;
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#options.name });
  }
}

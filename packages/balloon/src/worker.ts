// The worker, FreeBSD's kernel thread: does one thing after the other, and sleeps when there is nothing to do.
import type { TaskQueue } from "@virtio/core";

/** What a worker does. */
export interface WorkerOptions {
  readonly tasks: TaskQueue;
  /** Does one thing: when there may be more to do (a time of the task queue's clock, at most now: at once; Infinity: when woken). */
  readonly step: () => Promise<number>;
  /** A step failed. Never rejects. */
  readonly failed: (error: unknown) => Promise<void>;
}

export class Worker {
  readonly #options: WorkerOptions;
  #working = false;
  #over: Promise<void> = Promise.resolve();
  /** Somebody woke it while it was awake. */
  #woken = false;
  #wakeUp: (() => void) | null = null;

  constructor(options: WorkerOptions) {
    this.#options = options;
  }

  get working(): boolean {
    return this.#working;
  }

  begin(): void {
    if (this.#working) return;
    this.#working = true;
    // One that is about to end goes on instead.
    this.#over = this.#over.then(() => this.#work());
  }

  /** Does nothing after what it is doing. */
  stop(): void {
    this.#working = false;
    this.wake();
  }

  /** stop(), and waits for the end of what it is doing. */
  async halt(): Promise<void> {
    this.stop();
    await this.#over;
  }

  wake(): void {
    this.#woken = true;
    this.#wakeUp?.();
  }

  async #work(): Promise<void> {
    const { tasks, step, failed } = this.#options;
    while (this.#working) {
      this.#woken = false;
      try {
        const due = await step();
        if (due > tasks.now()) await this.#sleep(due);
      } catch (error) {
        await failed(error);
      }
    }
  }

  #sleep(due: number): Promise<void> {
    if (this.#woken) return Promise.resolve();
    const { tasks } = this.#options;
    return new Promise((resolve) => {
      const callout =
        due === Number.POSITIVE_INFINITY
          ? null
          : tasks.callout(due - tasks.now(), () => this.#wakeUp?.());
      this.#wakeUp = () => {
        callout?.stop();
        this.#wakeUp = null;
        resolve();
      };
    });
  }
}

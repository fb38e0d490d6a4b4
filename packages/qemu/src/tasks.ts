// The machine's time and deferred work, on Node's event loop.
import type { Callout, TaskQueue } from "@virtio/core";

/**
 * Tasks in order, one at a time, from setImmediate: what a task enqueues runs after the sockets had their turn. A task that throws
 * does not stop the others; its error is thrown on its own, as `uncaughtException`. Waiting timers do not keep the process alive:
 * the machine's sockets do that while it is open.
 */
export class NodeTaskQueue implements TaskQueue {
  #waiting: (() => void)[] = [];

  now(): number {
    return performance.now();
  }

  enqueue(task: () => void): void {
    if (this.#waiting.push(task) === 1) setImmediate(() => this.#run());
  }

  callout(delayMs: number, task: () => void): Callout {
    let stopped = false;
    const timer = setTimeout(() => {
      this.enqueue(() => {
        if (!stopped) task();
      });
    }, delayMs);
    timer.unref();
    return {
      stop: () => {
        stopped = true;
        clearTimeout(timer);
      },
    };
  }

  #run(): void {
    const tasks = this.#waiting;
    this.#waiting = [];
    for (const task of tasks) {
      try {
        task();
      } catch (error) {
        process.nextTick(() => {
          throw error;
        });
      }
    }
  }
}

// A TaskQueue whose clock and tasks move only when a test says so.
import type { Callout, TaskQueue } from "@virtio/core";

/** Tasks that run when a test says so; each look at the clock takes a millisecond. */
export class ManualTasks implements TaskQueue {
  readonly #tasks: (() => void)[] = [];
  time = 0;

  now(): number {
    this.time += 1;
    return this.time;
  }

  enqueue(task: () => void): void {
    this.#tasks.push(task);
  }

  callout(_delayMs: number, task: () => void): Callout {
    this.enqueue(task);
    return { stop: () => {} };
  }

  run(): void {
    for (const task of this.#tasks.splice(0)) task();
  }
}

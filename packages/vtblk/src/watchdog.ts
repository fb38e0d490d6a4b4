// The time-out of requests: one callout for a whole disk.
import type { Callout, TaskQueue } from "@virtio/core";

/** Looks at what is in flight in a time-out: a request is found late after one, and at most a quarter more. */
const LOOKS = 4;

/** Nothing is in flight. */
export const IDLE: number = Number.POSITIVE_INFINITY;

/** How a {@link Watchdog} looks. */
export interface WatchdogOptions {
  readonly tasks: TaskQueue;
  /** 0: never. */
  readonly timeoutMs: number;
  /** The smallest tick of what is in flight, or IDLE. */
  readonly oldest: () => number;
  /** Something is late. */
  readonly onLate: () => void;
}

/** A clock that ticks only while something is in flight. A request costs the store of a tick. */
export class Watchdog {
  /** The stamp of requests that start now. */
  tick = 0;
  readonly #options: WatchdogOptions;
  #callout: Callout | null = null;

  constructor(options: WatchdogOptions) {
    this.#options = options;
  }

  /** Something is in flight. */
  watch(): void {
    const { tasks, timeoutMs } = this.#options;
    if (this.#callout === null && timeoutMs > 0)
      this.#callout = tasks.callout(timeoutMs / LOOKS, () => this.#look());
  }

  #look(): void {
    this.#callout = null;
    this.tick += 1;
    const oldest = this.#options.oldest();
    if (oldest === IDLE) return;
    // A request began somewhere within its tick, which therefore does not count.
    if (this.tick - oldest > LOOKS) this.#options.onLate();
    else this.watch();
  }

  stop(): void {
    this.#callout?.stop();
    this.#callout = null;
  }
}

// The time-outs of commands: one callout for a whole adapter.
import type { Callout, TaskQueue } from "@virtio/core";

/** Between two looks, milliseconds: so much later than its time-out a command may be found late. */
const TICK_MS = 250;

/** How a {@link CommandTimer} looks. */
export interface CommandTimerOptions {
  readonly tasks: TaskQueue;
  /** Something is in flight. */
  readonly busy: () => boolean;
  /** Looks at what is in flight: late is what has this deadline, or an earlier one. */
  readonly onTick: (tick: number) => void;
}

/** A clock that ticks only while something is in flight. A command costs the store of a tick. */
export class CommandTimer {
  #tick = 0;
  readonly #options: CommandTimerOptions;
  #callout: Callout | null = null;

  constructor(options: CommandTimerOptions) {
    this.#options = options;
  }

  /** The tick at which a command that starts now is late. It starts somewhere within a tick, which therefore does not count. */
  deadline(timeoutMs: number): number {
    return this.#tick + Math.ceil(timeoutMs / TICK_MS) + 1;
  }

  /** Something is in flight. */
  watch(): void {
    if (this.#callout === null)
      this.#callout = this.#options.tasks.callout(TICK_MS, () => this.#look());
  }

  #look(): void {
    this.#callout = null;
    this.#tick += 1;
    if (!this.#options.busy()) return;
    this.#options.onTick(this.#tick);
    this.watch();
  }

  stop(): void {
    this.#callout?.stop();
    this.#callout = null;
  }
}

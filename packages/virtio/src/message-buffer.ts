// The kernel's message buffer: what dmesg(8) prints.
import type { Log } from "@virtio/core";

/** Lines kept; the oldest go first. */
const LINES = 4096;

/** Every line the kernel printed, and where it prints them as they come. */
export class MessageBuffer {
  readonly #console: Log;
  #lines: string[] = [];

  constructor(console: Log = () => {}) {
    this.#console = console;
  }

  /** Oldest first. */
  get lines(): readonly string[] {
    return this.#lines;
  }

  log(line: string): void {
    this.#lines.push(line);
    if (this.#lines.length > LINES) this.#lines.shift();
    this.#console(line);
  }

  clear(): void {
    this.#lines = [];
  }
}

/** Lines of one device that wait for their turn, so that devices attach at once and yet print one after the other. */
export class HeldLines {
  readonly #log: Log;
  #held: string[] | null = [];

  constructor(log: Log) {
    this.#log = log;
  }

  log(line: string): void {
    if (this.#held === null) this.#log(line);
    else this.#held.push(line);
  }

  /** Prints what waited; from now on lines go straight through. */
  release(): void {
    const held = this.#held ?? [];
    this.#held = null;
    for (const line of held) this.#log(line);
  }
}

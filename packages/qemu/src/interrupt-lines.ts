// The inputs of the machine's interrupt controller, by number.
import { type InterruptCounter, InterruptLine, type Log, type TaskQueue } from "@virtio/core";

/** The machine's level-triggered lines. A line exists from its first change or service on. */
export class InterruptLines {
  readonly #lines = new Map<number, InterruptLine>();
  readonly #tasks: TaskQueue;
  readonly #log: Log;

  /** @param log told of a line that stays high whatever its services do */
  constructor(tasks: TaskQueue, log: Log) {
    this.#tasks = tasks;
    this.#log = log;
  }

  /** What the machine says of a line. */
  changed(irq: number, level: "high" | "low"): void {
    this.at(irq).set(level === "high");
  }

  /** Lines that somebody serves, in order. `count` is how often the line went high. */
  counters(): readonly InterruptCounter[] {
    return [...this.#lines]
      .filter(([, line]) => line.names.length > 0)
      .sort(([a], [b]) => a - b)
      .map(([, { irq, names, count }]) => ({ irq, names, count }));
  }

  /** All lines go low: the machine is gone. */
  stop(): void {
    for (const line of this.#lines.values()) line.set(false);
  }

  /** The line of this number. */
  at(irq: number): InterruptLine {
    const known = this.#lines.get(irq);
    if (known !== undefined) return known;
    const line = new InterruptLine(irq, this.#tasks, this.#log);
    this.#lines.set(irq, line);
    return line;
  }
}

// A level-triggered interrupt line that several functions share (PCI 3.0 §2.2.6): served until it is low.
//
// One function lowering its share does not lower the line, and the line raises no second edge while it is high. So every service
// on it is called, again and again, for as long as it is high; each scans its queues after its ISR was read, never only before.
import type { TaskQueue } from "./tasks.js";

/** Rounds in which every service was called and the line stayed high, before it counts as stuck. */
const ROUNDS = 100;
/** How often a stuck line is looked at again. */
const RECHECK_MS = 20;

/** Reads one function's ISR, runs what it says as tasks, resolves to whether it was its function's interrupt. */
export type LineService = () => Promise<boolean>;

/** One shared line, as a machine drives it: `set` with each change of level, `join` for each function's handler. */
export class InterruptLine {
  /** `irq21` */
  readonly irq: string;
  /** Times the line went high. */
  count = 0;
  readonly #tasks: TaskQueue;
  readonly #stuck: (line: string) => void;
  readonly #services = new Set<{ readonly name: string; readonly run: LineService }>();
  #high = false;
  #serving = false;

  /** @param stuck - told once each time the line is found stuck: a line for the log */
  constructor(irq: number, tasks: TaskQueue, stuck: (line: string) => void) {
    this.irq = `irq${irq}`;
    this.#tasks = tasks;
    this.#stuck = stuck;
  }

  /** Names of those who joined. */
  get names(): readonly string[] {
    return [...this.#services].map(({ name }) => name);
  }

  /** Adds a service; call what it returns to take it back. One that joins a high line is called too. */
  join(name: string, run: LineService): () => void {
    const service = { name, run };
    this.#services.add(service);
    this.#kick();
    return () => {
      this.#services.delete(service);
    };
  }

  /** The level, as the machine sees it. */
  set(high: boolean): void {
    if (high && !this.#high) this.count += 1;
    this.#high = high;
    this.#kick();
  }

  #kick(): void {
    if (!this.#high || this.#serving || this.#services.size === 0) return;
    this.#serving = true;
    this.#tasks.enqueue(() => void this.#serve());
  }

  async #serve(): Promise<void> {
    for (let round = 0; this.#high && this.#services.size > 0; round++) {
      if (round === ROUNDS) {
        this.#stuck(
          `${this.irq}: stuck interrupt: high after ${ROUNDS} rounds of ${this.names.join(", ")}`,
        );
        this.#tasks.callout(RECHECK_MS, () => {
          this.#serving = false;
          this.#kick();
        });
        return;
      }
      // All in one turn: their ISR reads travel as one message. A service that fails is its function's loss, not the line's.
      await Promise.allSettled([...this.#services].map(({ run }) => run()));
    }
    this.#serving = false;
  }
}

// A level-triggered interrupt line that several functions share (PCI 3.0 §2.2.6): served until it is low.
//
// One function lowering its share does not lower the line, and the line raises no second edge while it is high. So every service
// on it is called, again and again, for as long as it is high; each scans its queues after its ISR was read, never only before.
import type { Callout, TaskQueue } from "./tasks.js";

/** Rounds in which every service was called and the line was never low, before it counts as stuck. */
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
  /** Since the line was last low, or somebody joined. A busy line goes low, and high again, within each. */
  #rounds = 0;
  /** The next look at a stuck line. */
  #recheck: Callout | null = null;

  /** @param stuck - told once for each time that the line is stuck: a line for the log */
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
    this.#rounds = 0;
    this.#kick();
    return () => {
      this.#services.delete(service);
    };
  }

  /** The level, as the machine sees it. */
  set(high: boolean): void {
    if (high && !this.#high) this.count += 1;
    if (!high) this.#rounds = 0;
    this.#high = high;
    this.#kick();
  }

  #kick(): void {
    if (!this.#high || this.#services.size === 0) return;
    // A stuck line is looked at by its timer alone, until it was low or somebody joined.
    if (this.#recheck !== null && this.#rounds === 0) {
      this.#recheck.stop();
      this.#recheck = null;
      this.#serving = false;
    }
    if (this.#serving) return;
    this.#serving = true;
    this.#tasks.enqueue(() => void this.#serve());
  }

  async #serve(): Promise<void> {
    while (this.#high && this.#services.size > 0) {
      // All in one turn: their ISR reads travel as one message. A service that fails is its function's loss, not the line's.
      await Promise.allSettled([...this.#services].map(({ run }) => run()));
      if (!this.#high) break;
      this.#rounds++;
      if (this.#rounds < ROUNDS) continue;
      if (this.#rounds === ROUNDS)
        this.#stuck(
          `${this.irq}: stuck interrupt: high after ${ROUNDS} rounds of ${this.names.join(", ")}`,
        );
      this.#recheck = this.#tasks.callout(RECHECK_MS, () => {
        this.#recheck = null;
        void this.#serve();
      });
      return;
    }
    this.#serving = false;
  }
}

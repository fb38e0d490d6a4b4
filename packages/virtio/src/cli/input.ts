// Where command lines come from: a terminal, or any other standard input.
import { createInterface, type Interface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import type { Shell } from "../shell/shell.js";
import type { Interrupts } from "./interrupts.js";

const PROMPT = "# ";

/**
 * Runs every line of an input, also after one that failed.
 * @returns status of the first that failed, 0 when none did
 */
export async function runLines(
  shell: Shell,
  interrupts: Interrupts,
  input: Readable,
): Promise<number> {
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  interrupts.signal.addEventListener("abort", () => lines.close());
  let failed = 0;
  for await (const line of lines) {
    const status = await interrupts.during((signal) => shell.run(line, signal));
    if (failed === 0) failed = status;
    if (shell.halted || interrupts.signal.aborted) break;
  }
  return failed;
}

/** A prompt with history and completion. Between commands, kernel messages are printed above the line that is typed. */
export class Prompt {
  readonly #lines: Interface;
  readonly #shell: Shell;
  readonly #interrupts: Interrupts;
  readonly #output: Writable;

  constructor(shell: Shell, interrupts: Interrupts, input: Readable, output: Writable) {
    this.#shell = shell;
    this.#interrupts = interrupts;
    this.#output = output;
    this.#lines = createInterface({
      input,
      output,
      prompt: PROMPT,
      historySize: 1000,
      removeHistoryDuplicates: true,
      completer: (line: string, done: (error: Error | null, found: [string[], string]) => void) => {
        shell.complete(line).then(
          ({ word, candidates }) => {
            const [only] = candidates;
            const whole = candidates.length === 1 && only !== undefined && !/[=/]$/.test(only);
            done(null, [whole ? [`${only} `] : [...candidates], word]);
          },
          (error: Error) => done(error, [[], ""]),
        );
      },
    });
    interrupts.interactive = true;
    interrupts.signal.addEventListener("abort", () => this.#lines.close());
    this.#lines.on("SIGINT", () => this.#interrupted());
  }

  /**
   * Until the end of input, or of the system.
   * @returns 0, or the status of a halt that failed
   */
  async run(): Promise<number> {
    this.#lines.prompt();
    for await (const line of this.#lines) {
      const status = await this.#interrupts.during((signal) => this.#shell.run(line, signal));
      if (this.#shell.halted) return status;
      if (this.#interrupts.signal.aborted) break;
      this.#lines.prompt();
    }
    this.#output.write("\n");
    return 0;
  }

  /** A line of the kernel's. */
  print(text: string): void {
    if (this.#interrupts.busy || this.#shell.halted) {
      this.#output.write(text);
      return;
    }
    this.#output.write(`\r\x1b[K${text}`);
    this.#lines.prompt(true);
  }

  /** Ctrl-C: ends a command; forgets what is typed; on an empty line ends the session. */
  #interrupted(): void {
    if (this.#interrupts.busy) this.#interrupts.interrupt();
    else if (this.#lines.line === "") this.#lines.close();
    else {
      this.#lines.write(null, { ctrl: true, name: "u" });
      this.#output.write("^C\n");
      this.#lines.prompt();
    }
  }
}

// Ctrl-C, SIGTERM and the like: the first ends what runs, in order; one more ends it at once.

/** Signals that end a session, and the exit status that says so. */
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
/** Exit status when standard output is closed under us: 128 + SIGPIPE. */
const BROKEN_PIPE = 141;

/** Where signals come from: `process`. */
export interface SignalSource {
  on(signal: string, handler: () => void): unknown;
  off(signal: string, handler: () => void): unknown;
}

/** What signals do to one session. */
export class Interrupts {
  readonly #ending = new AbortController();
  readonly #force: (status: number) => void;
  readonly #stops: (() => void)[] = [];
  #command: AbortController | null = null;
  #status: number | null = null;
  /** Whether a Ctrl-C during a command leads back to a prompt. */
  interactive = false;

  /** @param force - ends the process, now. */
  constructor(source: SignalSource, force: (status: number) => void) {
    this.#force = force;
    for (const [signal, status] of Object.entries(SIGNALS)) {
      const handler =
        signal === "SIGINT" ? (): void => this.interrupt() : (): void => this.end(status);
      source.on(signal, handler);
      this.#stops.push(() => source.off(signal, handler));
    }
  }

  /** Aborted when the session has to end. */
  get signal(): AbortSignal {
    return this.#ending.signal;
  }

  /** Exit status when a signal ended the session, else null. */
  get status(): number | null {
    return this.#status;
  }

  /** Whether a command runs. */
  get busy(): boolean {
    return this.#command !== null;
  }

  /** Ctrl-C. */
  interrupt(): void {
    const command = this.#command;
    if (this.interactive && command !== null && !command.signal.aborted) command.abort();
    else this.end(SIGNALS.SIGINT);
  }

  /** Standard output is gone. */
  brokenPipe(): void {
    if (this.#status === null) this.end(BROKEN_PIPE);
  }

  /** Ends the session in order; a second call ends the process. */
  end(status: number): void {
    if (this.#status !== null) {
      this.#force(status);
      return;
    }
    this.#status = status;
    this.#ending.abort();
    this.#command?.abort();
  }

  /** Runs one command line; its signal is aborted by Ctrl-C. */
  async during(run: (signal: AbortSignal) => Promise<number>): Promise<number> {
    this.#command = new AbortController();
    if (this.#ending.signal.aborted) this.#command.abort();
    try {
      return await run(this.#command.signal);
    } finally {
      this.#command = null;
    }
  }

  /** Hears no more signals. */
  stop(): void {
    for (const stop of this.#stops.splice(0)) stop();
  }
}

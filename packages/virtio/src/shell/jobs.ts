// Work that goes on behind the commands that follow, as `&` would have it: a capture.

/** One job. */
export interface Job {
  /** The command that began it: `tcpdump`. */
  readonly name: string;
  /** Ends it in order; it says itself what goes wrong. A second call waits for the first. */
  stop(): Promise<void>;
}

/** The jobs of one shell. */
export class Jobs {
  readonly #running = new Set<Job>();

  /** Those that run. */
  get running(): readonly Job[] {
    return [...this.#running];
  }

  add(job: Job): void {
    this.#running.add(job);
  }

  /** It ended by itself. */
  remove(job: Job): void {
    this.#running.delete(job);
  }

  /** Ends jobs; all of them by default. @returns how many there were */
  async stop(name?: string): Promise<number> {
    const stopped = this.running.filter((job) => name === undefined || job.name === name);
    for (const job of stopped) this.#running.delete(job);
    await Promise.all(stopped.map((job) => job.stop()));
    return stopped.length;
  }
}

// Who waits until the balloon has the size that is wanted.

/** One who waits. */
interface Waiter {
  readonly resolve: () => void;
  readonly reject: (reason: unknown) => void;
  /** The device was looked at since. */
  fresh: boolean;
}

export class Arrivals {
  readonly #waiters = new Set<Waiter>();

  /** @throws the signal's reason, or what fail() is called with */
  wait(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(signal.reason);
        return;
      }
      const over = (end: () => void): void => {
        this.#waiters.delete(waiter);
        signal?.removeEventListener("abort", abort);
        end();
      };
      const abort = (): void => over(() => reject(signal?.reason));
      const waiter: Waiter = {
        resolve: () => over(resolve),
        reject: (reason) => over(() => reject(reason)),
        fresh: false,
      };
      signal?.addEventListener("abort", abort);
      this.#waiters.add(waiter);
    });
  }

  /** The device is going to be looked at. */
  look(): void {
    for (const waiter of this.#waiters) waiter.fresh = true;
  }

  /** What was seen is so. */
  arrived(): void {
    for (const waiter of [...this.#waiters]) if (waiter.fresh) waiter.resolve();
  }

  fail(reason: unknown): void {
    for (const waiter of [...this.#waiters]) waiter.reject(reason);
  }
}

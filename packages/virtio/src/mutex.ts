/** Runs one piece of work at a time, in the order asked for. */
export class Mutex {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(work);
    // Whoever comes next waits for the end, good or bad; the caller of `run` gets the rejection.
    this.#last = mine.then(
      () => {},
      () => {},
    );
    return mine;
  }
}

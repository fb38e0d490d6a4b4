// Time and deferred work: FreeBSD's taskqueue(9) and callout(9).

/** A cancellable timer (callout). */
export interface Callout {
  stop(): void;
}

/**
 * Time and deferred work. The machine owns the only instance; drivers, rings and transports use nothing else: no setTimeout,
 * setImmediate, queueMicrotask, Date or performance in portable packages. On the embedded machine it is the scheduler,
 * which tests seed and run in virtual time.
 */
export interface TaskQueue {
  /** Milliseconds, monotonic. */
  now(): number;
  /** Runs `task` later, never inside the caller. Tasks run in order, one at a time, on the machine's thread. */
  enqueue(task: () => void): void;
  /** Runs `task` as a task after `delayMs` milliseconds, unless stopped. */
  callout(delayMs: number, task: () => void): Callout;
}

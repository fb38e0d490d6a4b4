// The embedded machine's one door to the host's event loop and clock. Works in Node and in browsers; nothing else here does I/O.

/** setImmediate where the host has it: it lets timers and I/O run between two calls. */
const immediate = (globalThis as { setImmediate?: (task: () => void) => unknown }).setImmediate;

/** Milliseconds, monotonic. */
export const now = (): number => performance.now();

/** Runs `task` in a later turn of the host's event loop. */
export const defer: (task: () => void) => void =
  immediate === undefined ? (task) => void setTimeout(task, 0) : (task) => void immediate(task);

/** Runs `task` after `delayMs`; call what it returns to cancel. */
export function timer(delayMs: number, task: () => void): () => void {
  const handle = setTimeout(task, delayMs);
  return () => clearTimeout(handle);
}

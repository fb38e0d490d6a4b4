import { type TaskQueue, VirtioFault } from "@virtio/core";

/** Waits for `work`, but no longer than `ms` milliseconds. @throws VirtioFault TIMED_OUT: `vtblk0: detach took more than 30 s` */
export function within<T>(
  tasks: TaskQueue,
  ms: number,
  what: string,
  work: Promise<T>,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const limit = tasks.callout(ms, () =>
      reject(new VirtioFault("TIMED_OUT", `${what} took more than ${ms / 1000} s`)),
    );
    work.then(resolve, reject).finally(() => limit.stop());
  });
}

/** Resolves after `ms` milliseconds. @throws the signal's reason */
export function pause(tasks: TaskQueue, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const abort = (): void => {
      callout.stop();
      reject(signal.reason);
    };
    const callout = tasks.callout(ms, () => {
      signal.removeEventListener("abort", abort);
      resolve();
    });
    signal.addEventListener("abort", abort);
  });
}

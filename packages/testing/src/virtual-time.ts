// The host's clock in the test's hands. The seeded scheduler's time stands still while a backend has a request, and so cannot pass for
// one that never answers.
import { onTestFinished, vi } from "vitest";

/** Turns of the event loop between two jumps of the clock: what is under way gets on. */
const TURNS = 4;
/** Jumps after which it is a hang: more than a reset of a millisecond a poll takes. */
const JUMPS_MAX = 20_000;

/**
 * Stops the host's clock until the test is over.
 * @returns waits for some work, while the clock jumps from one timer to the next
 */
export function virtualTime(): <T>(work: Promise<T>) => Promise<T> {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  return async (work) => {
    let over = false;
    const ended = (): void => {
      over = true;
    };
    work.then(ended, ended);
    for (let jumps = 0; !over; jumps++) {
      if (jumps === JUMPS_MAX) throw new Error("it never came");
      for (let turn = 0; turn < TURNS; turn++)
        await new Promise((resolve) => setImmediate(resolve));
      if (!over) vi.advanceTimersToNextTimer();
    }
    return work;
  };
}

// Listeners that see each frame as it passes (bpf(4)).
import type { CapturedFrame, Frame, Log, TaskQueue } from "@virtio/core";
import { frameLength, wireCopy } from "./offload.js";

type Listener = (frame: CapturedFrame) => void;

export class Captures {
  readonly #tasks: TaskQueue;
  readonly #log: Log;
  readonly #changed: () => void;
  readonly #listeners = new Set<Listener>();

  /** @param changed - called when somebody looks from now on, or does not any more */
  constructor(tasks: TaskQueue, log: Log, changed: () => void) {
    this.#tasks = tasks;
    this.#log = log;
    this.#changed = changed;
  }

  /** Somebody looks. */
  get any(): boolean {
    return this.#listeners.size > 0;
  }

  /** Call what it returns to stop. */
  add(listener: Listener): () => void {
    // One that is given twice is two.
    const own: Listener = (frame) => listener(frame);
    this.#listeners.add(own);
    this.#changed();
    return () => this.#remove(own);
  }

  #remove(listener: Listener): void {
    if (this.#listeners.delete(listener)) this.#changed();
  }

  /** Shows a frame to all. Nothing is thrown: one that fails is no listener any more, and the frame goes on. */
  see(direction: CapturedFrame["direction"], frame: Frame): void {
    const time = this.#tasks.now();
    const bytes = wireCopy(frame, frameLength(frame));
    for (const listener of this.#listeners)
      try {
        listener({ direction, time, bytes });
      } catch (error) {
        this.#log(`a capture ends, for it failed: ${String(error)}`);
        this.#remove(listener);
      }
  }
}

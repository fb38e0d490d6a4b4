// Frames as streams of copies: web streams, and an async iterator.
import { VirtioFault } from "@virtio/core";

/** The interface, as its streams see it. */
export interface StreamPort {
  /** `vtnet0` */
  readonly name: string;
  /** A copy of the next received frame; null: there is none now. */
  take(): Uint8Array | null;
  /** Transmits a copy; false: there is no room now. @throws VirtioFault INVALID */
  put(frame: Uint8Array): boolean;
  /** Frames are wanted from now on, or not: the port calls arrived(). */
  want(on: boolean): void;
  /** Room is wanted: the port calls room(). */
  wantRoom(): void;
}

/**
 * The pair of streams. Nothing is taken from the device before somebody asks for it: a readable that nobody reads leaves received
 * frames in the ring, and the device drops what does not fit.
 */
export class FrameStreams {
  readonly #port: StreamPort;
  #readable: ReadableStream<Uint8Array> | null = null;
  #writable: WritableStream<Uint8Array> | null = null;
  #arrived: (() => void) | null = null;
  readonly #rooms = new Set<() => void>();
  /** Undefined: open; null: closed in order. */
  #ended: VirtioFault | null | undefined;

  constructor(port: StreamPort) {
    this.#port = port;
  }

  /** Somebody reads: received frames are his. */
  get reading(): boolean {
    return this.#readable?.locked ?? false;
  }

  /** Somebody waits for a frame. */
  get waiting(): boolean {
    return this.#arrived !== null;
  }

  /** Somebody waits for room. */
  get waitingForRoom(): boolean {
    return this.#rooms.size > 0;
  }

  /** One that was cancelled is followed by another. */
  get readable(): ReadableStream<Uint8Array> {
    this.#readable ??= new ReadableStream<Uint8Array>(
      {
        pull: (controller) => this.#pull(controller),
        cancel: () => {
          this.#readable = null;
          this.arrived();
          this.#port.want(false);
        },
      },
      { highWaterMark: 0 },
    );
    return this.#readable;
  }

  async #pull(controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    const mine = this.#readable;
    while (this.#readable === mine && this.#ended === undefined) {
      const frame = this.#port.take();
      if (frame !== null) {
        controller.enqueue(frame);
        return;
      }
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
        this.#port.want(true);
      });
    }
    if (this.#readable !== mine) return;
    if (this.#ended === null) controller.close();
    else controller.error(this.#ended);
  }

  /** There are frames. */
  arrived(): void {
    const arrived = this.#arrived;
    this.#arrived = null;
    arrived?.();
  }

  /** One that a frame was refused of, or that was closed, is followed by another. */
  get writable(): WritableStream<Uint8Array> {
    const forget = (): void => {
      this.#writable = null;
    };
    this.#writable ??= new WritableStream<Uint8Array>({
      write: async (frame, { signal }: { signal?: AbortSignal; error(reason?: unknown): void }) => {
        try {
          await this.#write(frame, signal);
        } catch (error) {
          forget();
          throw error;
        }
      },
      close: forget,
      abort: forget,
    });
    return this.#writable;
  }

  async #write(frame: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      if (this.#ended !== undefined)
        throw (
          this.#ended ??
          new VirtioFault("CLOSED", "the interface is detached", { device: this.#port.name })
        );
      signal?.throwIfAborted();
      if (this.#port.put(frame)) return;
      await new Promise<void>((resolve) => {
        const over = (): void => {
          this.#rooms.delete(over);
          signal?.removeEventListener("abort", over);
          resolve();
        };
        this.#rooms.add(over);
        signal?.addEventListener("abort", over);
        this.#port.wantRoom();
      });
    }
  }

  /** There may be room. */
  room(): void {
    for (const room of [...this.#rooms]) room();
  }

  /** The interface is gone: null when it was detached in order. */
  end(fault: VirtioFault | null): void {
    this.#ended = fault;
    this.arrived();
    this.room();
  }
}

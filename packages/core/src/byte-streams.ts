// A line of bytes as web streams: chunks are copies.
import { VirtioFault } from "./errors.js";
import type { Endpoint } from "./streams.js";

/** One end of a line of bytes, as its streams see it. Synchronous, nothing is thrown. */
export interface ByteLine {
  /** For messages: `ttyV0.0`. */
  readonly name: string;
  /** Takes bytes that came: how many were put into `into`, from index 0 on. */
  receive(into: Uint8Array): number;
  /** Gives bytes from `bytes[start]` on: how many there was room for. */
  transmit(bytes: Uint8Array, start: number): number;
  /** Bytes that were given and that the other end has not taken. */
  pending(): number;
  /** The first use of a stream: what opens the line. */
  open(): Promise<void>;
  /** Somebody waits for bytes: `arrived()` is to be called when some come, once. */
  wantBytes(): void;
  /** Somebody waits for room, or for `pending()` to be 0: `moved()` is to be called when the other end has taken bytes, once. */
  wantRoom(): void;
  /** Does it as a task. */
  later(task: () => void): void;
}

/** Bytes of a chunk at most. */
const CHUNK = 16_384;
/** Chunks that are read one after the other before other tasks get their turn. */
const CHUNKS_AT_ONCE = 64;

/**
 * The pair of streams over a line. Nothing is taken from the line before somebody reads, and a write is over when the other end has
 * taken its last byte: the line's flow control is that of the streams.
 */
export class ByteStreams implements Omit<Endpoint, "name"> {
  readonly #line: ByteLine;
  readonly #scratch = new Uint8Array(CHUNK);
  #readable: ReadableStream<Uint8Array> | null = null;
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null;
  #writable: WritableStream<Uint8Array> | null = null;
  #arrived: (() => void) | null = null;
  readonly #moved = new Set<() => void>();
  #chunks = 0;
  /** Why writes that are under way fail; a new object each time. */
  #broken: VirtioFault | null = null;
  #ended: VirtioFault | null = null;

  constructor(line: ByteLine) {
    this.#line = line;
  }

  /** One that was cancelled, or that closeReadable() closed, is followed by another. */
  get readable(): ReadableStream<Uint8Array> {
    this.#readable ??= this.#makeReadable();
    return this.#readable;
  }

  #makeReadable(): ReadableStream<Uint8Array> {
    const readable = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.#controller = controller;
        },
        pull: (controller) => this.#pull(controller),
        cancel: () => {
          if (this.#readable !== readable) return;
          this.#readable = null;
          this.arrived();
        },
      },
      { highWaterMark: 0 },
    );
    return readable;
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.readable.values({ preventCancel: true });
  }

  async #pull(controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    const mine = this.#readable;
    try {
      if (this.#ended === null) await this.#line.open();
    } catch (error) {
      if (this.#readable === mine) this.#readable = null;
      throw error;
    }
    while (this.#readable === mine) {
      if (this.#chunks === CHUNKS_AT_ONCE) {
        this.#chunks = 0;
        // Who finds bytes each time it asks would leave no other task a turn.
        await new Promise<void>((resolve) => this.#line.later(resolve));
        continue;
      }
      const length = this.#line.receive(this.#scratch);
      if (length > 0) {
        this.#chunks += 1;
        controller.enqueue(this.#scratch.slice(0, length));
        return;
      }
      // What came before the end is read before the end is seen.
      if (this.#ended !== null) {
        controller.error(this.#ended);
        return;
      }
      this.#chunks = 0;
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
        this.#line.wantBytes();
      });
    }
  }

  /** Who reads is at the end; who reads anew goes on where this one stopped. */
  closeReadable(): void {
    if (this.#readable === null) return;
    this.#readable = null;
    this.arrived();
    this.#controller?.close();
  }

  /** There may be bytes. */
  arrived(): void {
    const arrived = this.#arrived;
    this.#arrived = null;
    arrived?.();
  }

  /** One that failed, or that was closed, is followed by another. */
  get writable(): WritableStream<Uint8Array> {
    this.#writable ??= this.#makeWritable();
    return this.#writable;
  }

  #makeWritable(): WritableStream<Uint8Array> {
    const forget = (): void => {
      if (this.#writable === writable) this.#writable = null;
    };
    const writable = new WritableStream<Uint8Array>({
      write: async (bytes, { signal }: { signal?: AbortSignal; error(reason?: unknown): void }) => {
        try {
          await this.#write(bytes, signal);
        } catch (error) {
          forget();
          throw error;
        }
      },
      close: forget,
      abort: forget,
    });
    return writable;
  }

  async #write(bytes: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    if (!(bytes instanceof Uint8Array))
      throw new VirtioFault("INVALID", "a chunk is no Uint8Array", { device: this.#line.name });
    const before = this.#broken;
    if (this.#ended === null) await this.#line.open();
    for (let at = 0; ; ) {
      if (this.#ended !== null) throw this.#ended;
      if (this.#broken !== null && this.#broken !== before) throw this.#broken;
      signal?.throwIfAborted();
      at += this.#line.transmit(bytes, at);
      if (at === bytes.length && this.#line.pending() === 0) return;
      await this.settled(signal);
    }
  }

  /** Until the other end has taken bytes, or `signal` is aborted, or the line has ended. */
  settled(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const over = (): void => {
        this.#moved.delete(over);
        signal?.removeEventListener("abort", over);
        resolve();
      };
      this.#moved.add(over);
      signal?.addEventListener("abort", over);
      this.#line.wantRoom();
    });
  }

  /** There may be room. */
  moved(): void {
    for (const over of [...this.#moved]) over();
  }

  /** Bytes that were given are lost: writes that are under way fail, and those that follow do not. */
  breakWrites(fault: VirtioFault): void {
    this.#broken = fault;
    this.moved();
  }

  /** The line is gone: readers get what came before, then this; writers get it at once. */
  end(fault: VirtioFault): void {
    this.#ended ??= fault;
    this.arrived();
    this.moved();
  }
}

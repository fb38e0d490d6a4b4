// Standard input of the process, as commands read it.
import type { Readable } from "node:stream";
import type { InputReader, StandardInput } from "../shell/input.js";

/** What this needs of `process.stdin`. */
export interface InputStream extends Readable {
  readonly isTTY?: boolean;
  readonly isRaw?: boolean;
  setRawMode?(on: boolean): unknown;
}

/** A terminal, a file or a pipe. */
export class ProcessInput implements StandardInput {
  readonly terminal: boolean;
  readonly #stream: InputStream;

  constructor(stream: InputStream) {
    this.#stream = stream;
    this.terminal = stream.isTTY === true;
  }

  open(): InputReader {
    return new ProcessReader(this.#stream);
  }
}

type Listener = (...args: unknown[]) => void;

/** Takes the stream from the prompt, if there is one, until it is closed. */
class ProcessReader implements InputReader {
  readonly #stream: InputStream;
  readonly #flowing: boolean;
  readonly #raw: boolean;
  /** The prompt's: a key is for one of us. */
  readonly #keypress: readonly Listener[];
  #pieces: Uint8Array[] = [];
  #over: boolean;
  #waiting: ((piece: Uint8Array | null) => void) | null = null;

  constructor(stream: InputStream) {
    this.#stream = stream;
    this.#flowing = stream.readableFlowing === true;
    this.#raw = stream.isRaw === true;
    this.#over = stream.readableEnded || stream.destroyed;
    this.#keypress = stream.listeners("keypress") as Listener[];
    for (const listener of this.#keypress) stream.off("keypress", listener);
    stream.setRawMode?.(true);
    stream.on("data", this.#take);
    for (const end of ["end", "close", "error"]) stream.on(end, this.#end);
  }

  readonly #take = (piece: Uint8Array | string): void => {
    const bytes = typeof piece === "string" ? new TextEncoder().encode(piece) : piece;
    if (this.#waiting === null) this.#pieces.push(bytes);
    this.#answer(bytes);
    // What nobody asked for yet stays with who sends it.
    this.#stream.pause();
  };

  readonly #end = (): void => {
    this.#over = true;
    this.#answer(null);
  };

  #answer(piece: Uint8Array | null): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.(piece);
  }

  read(): Promise<Uint8Array | null> {
    const piece = this.#pieces.shift();
    if (piece !== undefined) return Promise.resolve(piece);
    if (this.#over) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#waiting = resolve;
      this.#stream.resume();
    });
  }

  close(): void {
    const stream = this.#stream;
    this.#over = true;
    this.#answer(null);
    stream.off("data", this.#take);
    for (const end of ["end", "close", "error"]) stream.off(end, this.#end);
    if (!stream.readableEnded)
      for (const piece of this.#pieces.splice(0).reverse()) stream.unshift(piece);
    stream.setRawMode?.(this.#raw);
    for (const listener of this.#keypress)
      if (!stream.listeners("keypress").includes(listener)) stream.on("keypress", listener);
    if (this.#flowing) stream.resume();
    else stream.pause();
  }
}

import { Duplex } from "node:stream";

/** One end of a socket: keeps what is written, chunk by chunk, and says what the test makes it say. */
export class FakeSocket extends Duplex {
  /** One element a write. */
  readonly writes: string[] = [];
  /** Called after each write. */
  onWrite: ((text: string) => void) | null = null;

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    const text = chunk.toString("latin1");
    this.writes.push(text);
    done();
    this.onWrite?.(text);
  }

  /** What the other end sends. */
  say(text: string): void {
    this.push(Buffer.from(text, "latin1"));
  }
}

/** Lets everything happen that needs no time. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}

import { type Port, type TaskQueue, VirtioFault } from "@virtio/core";
import { type Command, getopt, noMore, type Session, UsageError } from "../command.js";
import { Escapes } from "./cu-escapes.js";

/** Input that is no terminal: how long the port is to be quiet after its end, and how long it may talk then. */
const QUIET_MS = 250;
const TALK_MS = 10_000;
/** Longest wait for a port that does not take input that is no terminal. */
const STUCK_MS = 10_000;
/** Keys that wait for a port that takes none; more are not taken. */
const KEYS_MAX = 4096;
const BELL = "\x07";

/** One connection: what comes is printed, what is typed is sent. */
class Connection {
  readonly #port: Port;
  readonly #tasks: TaskQueue;
  readonly #session: Session;
  readonly #over = new AbortController();
  /** When something passed last. */
  #last: number;

  constructor(port: Port, session: Session) {
    this.#port = port;
    this.#tasks = session.kernel.machine.tasks;
    this.#session = session;
    this.#last = this.#tasks.now();
  }

  /** Until `~.`, the end of input and a quiet moment, or the end of the port. @throws VirtioFault; the signal's reason */
  async run(): Promise<void> {
    const { signal, input } = this.#session;
    const end = AbortSignal.any([signal, this.#over.signal]);
    const printing = this.#print(end);
    try {
      await Promise.race([printing, input?.terminal === true ? this.#type(end) : this.#send(end)]);
    } finally {
      this.#over.abort();
      await printing.catch(() => {});
    }
    signal.throwIfAborted();
  }

  async #print(end: AbortSignal): Promise<void> {
    const reader = this.#port.readable.getReader();
    const stop = (): void => void reader.cancel().catch(() => {});
    end.addEventListener("abort", stop);
    const decoder = new TextDecoder();
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        this.#last = this.#tasks.now();
        this.#session.out(decoder.decode(value, { stream: true }));
      }
    } finally {
      end.removeEventListener("abort", stop);
    }
  }

  /** Keys of a terminal. They are read also while the port takes none: else nobody could leave. */
  async #type(end: AbortSignal): Promise<void> {
    const reader = this.#session.input?.open();
    const stop = (): void => reader?.close();
    end.addEventListener("abort", stop);
    const writer = this.#port.writable.getWriter();
    const escapes = new Escapes();
    let waiting = 0;
    let failed: unknown = null;
    try {
      for (;;) {
        const keys = await reader?.read();
        if (failed !== null) throw failed;
        const bytes = keys == null ? null : escapes.take(keys);
        if (bytes === null) return;
        if (waiting + bytes.length > KEYS_MAX) this.#session.out(BELL);
        else if (bytes.length > 0) {
          waiting += bytes.length;
          writer.write(bytes).then(
            () => {
              waiting -= bytes.length;
            },
            (error: unknown) => {
              failed = error;
              stop();
            },
          );
        }
        if (escapes.over) return;
      }
    } finally {
      end.removeEventListener("abort", stop);
      stop();
      // What the port did not take so far is not waited for.
      if (waiting > 0) void writer.abort(new Error("cu has ended")).catch(() => {});
      else writer.releaseLock();
    }
  }

  /** Input that is no terminal, then what the port answers. */
  async #send(end: AbortSignal): Promise<void> {
    const reader = this.#session.input?.open();
    const stop = (): void => reader?.close();
    end.addEventListener("abort", stop);
    const escapes = new Escapes();
    try {
      for (let piece = await reader?.read(); piece != null; piece = await reader?.read()) {
        await this.#write(escapes.take(piece), end);
        if (escapes.over) return;
      }
      await this.#write(escapes.rest(), end);
    } finally {
      end.removeEventListener("abort", stop);
      stop();
    }
    await this.#quiet(end);
  }

  /** @throws VirtioFault TIMED_OUT when the port does not take it */
  async #write(bytes: Uint8Array, end: AbortSignal): Promise<void> {
    if (bytes.length === 0) return;
    const writer = this.#port.writable.getWriter();
    const give = (reason: unknown): void => void writer.abort(reason).catch(() => {});
    const stop = (): void => give(end.reason);
    const late = this.#tasks.callout(STUCK_MS, () =>
      give(new VirtioFault("TIMED_OUT", `${this.#port.name}: nobody takes the input`)),
    );
    end.addEventListener("abort", stop);
    try {
      await writer.write(bytes);
      this.#last = this.#tasks.now();
      writer.releaseLock();
    } finally {
      late.stop();
      end.removeEventListener("abort", stop);
    }
  }

  /** Until the port has said nothing for a moment, with a bound. */
  async #quiet(end: AbortSignal): Promise<void> {
    const limit = this.#tasks.now() + TALK_MS;
    for (;;) {
      const now = this.#tasks.now();
      const left = Math.min(this.#last + QUIET_MS, limit) - now;
      if (left <= 0 || end.aborted) return;
      await new Promise<void>((resolve) => {
        const over = (): void => {
          callout.stop();
          end.removeEventListener("abort", over);
          resolve();
        };
        const callout = this.#tasks.callout(left, over);
        end.addEventListener("abort", over);
      });
    }
  }
}

/** cu(1). */
export const cu: Command = {
  name: "cu",
  usage: "cu -l line",
  summary: "connect to a console port; ~. at the beginning of a line ends it",
  async run(args, session) {
    const { values, operands } = getopt(args, "l:");
    const line = values.get("l");
    if (line === undefined) throw new UsageError("");
    noMore(operands);
    const port = session.kernel.port(line);
    if (port.readable.locked || port.writable.locked)
      throw new VirtioFault("BUSY", `${line}: Device busy`);
    session.err("Connected\n");
    try {
      await new Connection(port, session).run();
    } finally {
      session.err("\n[EOT]\n");
      await port.close();
    }
    return 0;
  },
  complete: async (_, { kernel }) => kernel.ports.flatMap(({ name }) => [name, `/dev/${name}`]),
};

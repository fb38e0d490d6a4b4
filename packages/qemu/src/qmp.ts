// QEMU's machine protocol: JSON lines, replies matched by id, events between them.
import type { Duplex } from "node:stream";
import { VirtioFault } from "@virtio/core";
import { Lines } from "./lines.js";

/** An event: `{ event: "RESET", data: {…} }`. */
export interface QmpEvent {
  /** QEMU's name of it. */
  readonly event: string;
  /** What it says; empty for an event that says nothing. */
  readonly data: Readonly<Record<string, unknown>>;
}

/** What a {@link QmpClient} tells its owner, and its bounds. */
export interface QmpOptions {
  /** Once: the connection cannot go on; every call from now on rejects. */
  readonly onFailure: (fault: VirtioFault) => void;
  /** Once: QEMU closed its end. The owner finds out why and calls `close`. */
  readonly onEnd: () => void;
  /** Milliseconds until a reply is overdue. Default 10 000. */
  readonly timeoutMs?: number | undefined;
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (fault: VirtioFault) => void;
}

/** Characters. The longest known reply, query-qmp-schema, has some 200 000. */
const MAX_LINE = 16 << 20;

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * The driver's end of a QMP connection. Numbers above 2^53 in replies lose their last digits: JSON.parse reads them.
 */
export class QmpClient {
  readonly #stream: Duplex;
  readonly #options: QmpOptions;
  readonly #timeoutMs: number;
  readonly #lines = new Lines(MAX_LINE);
  readonly #pending = new Map<number, Pending>();
  readonly #handlers = new Map<string, Set<(event: QmpEvent) => void>>();
  /** Those who wait for an event: told when the connection ends. */
  readonly #awaiting = new Set<(fault: VirtioFault) => void>();
  #greeting: Pending | null = null;
  #greeted: unknown;
  #nextId = 1;
  #closed: VirtioFault | null = null;
  #ended = false;

  constructor(stream: Duplex, options: QmpOptions) {
    this.#stream = stream;
    this.#options = options;
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    stream.setEncoding("utf8");
    stream.on("data", (chunk: string) => this.#receive(chunk));
    const end = (): void => {
      if (this.#ended) return;
      this.#ended = true;
      options.onEnd();
    };
    stream.on("end", end);
    stream.on("close", end);
    stream.on("error", end);
  }

  /**
   * Waits for the greeting and enters command mode. The answer comes when QEMU has made every device: a machine that cannot start
   * ends before.
   * @returns QEMU's version, `7.2.22`
   * @throws VirtioFault CLOSED, TIMED_OUT, DEVICE_MISBEHAVED
   */
  async negotiate(timeoutMs: number): Promise<string> {
    const greeting = await this.#wait("its greeting", timeoutMs, (pending) => {
      if (this.#greeted === undefined) this.#greeting = pending;
      else pending.resolve(this.#greeted);
    });
    await this.#send("qmp_capabilities", {}, timeoutMs);
    const version = isObject(greeting) ? greeting["version"] : undefined;
    const numbers = isObject(version) ? version["qemu"] : undefined;
    return isObject(numbers)
      ? ["major", "minor", "micro"].map((part) => String(numbers[part])).join(".")
      : "unknown";
  }

  /**
   * Runs one command.
   * @returns what QEMU returned, as JSON.parse gives it
   * @throws VirtioFault IO with QEMU's words, CLOSED, TIMED_OUT (the machine is then closed), DEVICE_MISBEHAVED
   */
  execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return this.#send(command, args, this.#timeoutMs);
  }

  /** Calls `handler` for every such event from now on. @returns takes the handler back */
  on(event: string, handler: (event: QmpEvent) => void): () => void {
    const handlers = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, handlers);
    handlers.add(handler);
    return () => handlers.delete(handler);
  }

  /**
   * The next such event, among those that are `wanted`.
   * @param timeoutMs default 10 000
   * @throws VirtioFault TIMED_OUT, CLOSED
   */
  next(
    event: string,
    timeoutMs = 10_000,
    wanted: (event: QmpEvent) => boolean = () => true,
  ): Promise<QmpEvent> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        off();
        this.#awaiting.delete(fail);
      };
      const fail = (fault: VirtioFault): void => {
        settle();
        reject(fault);
      };
      const timer = setTimeout(
        () => fail(new VirtioFault("TIMED_OUT", `no QMP event ${event} within ${timeoutMs} ms`)),
        timeoutMs,
      );
      const off = this.on(event, (seen) => {
        if (!wanted(seen)) return;
        settle();
        resolve(seen);
      });
      this.#awaiting.add(fail);
    });
  }

  /** Ends the connection: what is owed, and every later call, rejects with CLOSED. Again: nothing. */
  close(cause: VirtioFault): void {
    if (this.#closed !== null) return;
    const closed =
      cause.code === "CLOSED"
        ? cause
        : new VirtioFault("CLOSED", `the machine is closed: ${cause.message}`, { cause });
    this.#closed = closed;
    this.#ended = true;
    this.#stream.destroy();
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { reject } of pending) reject(closed);
    this.#greeting?.reject(closed);
    this.#greeting = null;
    for (const fail of [...this.#awaiting]) fail(closed);
  }

  #fail(fault: VirtioFault): void {
    if (this.#closed !== null) return;
    this.close(fault);
    this.#options.onFailure(fault);
  }

  #send(
    command: string,
    args: Readonly<Record<string, unknown>>,
    timeoutMs: number,
  ): Promise<unknown> {
    const id = this.#nextId++;
    return this.#wait(`QMP ${command}`, timeoutMs, (pending) => {
      this.#pending.set(id, {
        resolve: pending.resolve,
        reject: (fault) =>
          pending.reject(
            fault.code === "IO" ? new VirtioFault("IO", `QMP ${command}: ${fault.message}`) : fault,
          ),
      });
      this.#stream.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** A promise that settles within `timeoutMs`; when it is due, the connection ends. */
  #wait(what: string, timeoutMs: number, start: (pending: Pending) => void): Promise<unknown> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        const fault = new VirtioFault(
          "TIMED_OUT",
          `QEMU did not answer within ${timeoutMs} ms: ${what}`,
        );
        reject(fault);
        this.#fail(fault);
      }, timeoutMs);
      timer.unref();
      start({
        resolve: (value) => {
          clearTimeout(timer);
          resolve(value);
        },
        reject: (fault) => {
          clearTimeout(timer);
          reject(fault);
        },
      });
    });
  }

  #receive(chunk: string): void {
    try {
      for (const line of this.#lines.push(chunk)) {
        if (this.#closed !== null) return;
        this.#accept(line);
      }
    } catch (error) {
      if (!(error instanceof VirtioFault)) throw error;
      this.#fail(error);
    }
  }

  #accept(line: string): void {
    const misbehaved = (what: string, cause?: unknown): VirtioFault =>
      new VirtioFault("DEVICE_MISBEHAVED", `QMP: ${what}: '${line.slice(0, 80)}'`, { cause });
    let message: unknown;
    try {
      message = JSON.parse(line);
    } catch (cause) {
      throw misbehaved("a line that is not JSON", cause);
    }
    if (!isObject(message)) throw misbehaved("a line that is no object");
    if (typeof message["event"] === "string") {
      const data = isObject(message["data"]) ? message["data"] : {};
      this.#emit({ event: message["event"], data });
    } else if ("QMP" in message && this.#greeted === undefined) {
      this.#greeted = message["QMP"];
      this.#greeting?.resolve(this.#greeted);
      this.#greeting = null;
    } else {
      const id = message["id"];
      const pending = typeof id === "number" ? this.#pending.get(id) : undefined;
      if (typeof id !== "number" || pending === undefined)
        throw misbehaved("a reply to nothing that was asked");
      this.#pending.delete(id);
      const error = message["error"];
      if (isObject(error))
        pending.reject(
          new VirtioFault("IO", `${String(error["desc"])} (${String(error["class"])})`),
        );
      else pending.resolve(message["return"]);
    }
  }

  /** Each handler on its own: one that throws stops neither the others nor the client. */
  #emit(event: QmpEvent): void {
    for (const handler of this.#handlers.get(event.event) ?? [])
      process.nextTick(() => handler(event));
  }
}

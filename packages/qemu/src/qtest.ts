// QEMU's qtest protocol: requests and replies are lines, replies come in the order of the requests, and lines that tell of
// interrupts may stand between them, before the reply of the request that caused them.
import type { Duplex } from "node:stream";
import { VirtioFault } from "@virtio/core";
import { Lines } from "./lines.js";

/** Memory-mapped, or I/O ports. */
export type AddressSpace = "memory" | "io";

/** Bytes of an access. */
export type Width = 1 | 2 | 4;

/** What a {@link QtestClient} tells its owner, and its bounds. */
export interface QtestOptions {
  /** An interrupt line changed: `IRQ raise N`, `IRQ lower N`. */
  readonly onInterrupt: (line: number, level: "high" | "low") => void;
  /** Once: the connection cannot go on; every call from now on rejects. */
  readonly onFailure: (fault: VirtioFault) => void;
  /** Once: QEMU closed its end. The owner finds out why and calls `close`. */
  readonly onEnd: () => void;
  /** Milliseconds until a reply is overdue. Default 10 000. */
  readonly timeoutMs?: number | undefined;
}

/** A request whose reply is owed. `reply` is null for a posted write. */
interface Owed {
  readonly command: string;
  /** Bytes of the value in the reply; 0 when it has none. */
  readonly width: 0 | Width;
  readonly reply: {
    readonly resolve: (value: number) => void;
    readonly reject: (fault: VirtioFault) => void;
  } | null;
  sentAt: number;
}

/** Replies owed above which nothing more is sent: a QEMU that falls behind is not buried. */
const MAX_IN_FLIGHT = 4096;
/** Requests that may wait for that. Far above what a turn makes: reached only when QEMU stopped reading. */
const MAX_WAITING = 65536;
/** Characters; the longest line that qtest sends us is 21. */
const MAX_LINE = 1024;
/** More interrupt lines than any machine of this package has. */
const MAX_IRQ = 255;

const reads: Readonly<Record<AddressSpace, Readonly<Record<Width, string>>>> = {
  memory: { 1: "readb", 2: "readw", 4: "readl" },
  io: { 1: "inb", 2: "inw", 4: "inl" },
};
const writes: Readonly<Record<AddressSpace, Readonly<Record<Width, string>>>> = {
  memory: { 1: "writeb", 2: "writew", 4: "writel" },
  io: { 1: "outb", 2: "outw", 4: "outl" },
};
const lastAddress: Readonly<Record<AddressSpace, number>> = { memory: 0xffff_ffff, io: 0xffff };

const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;

/** A malformed number aborts QEMU: none is ever sent. */
function checkAccess(space: AddressSpace, address: number, width: Width): void {
  const name = reads[space][width];
  if (name === undefined)
    throw new VirtioFault("INVALID", `access of ${String(width)} bytes: not 1, 2 or 4`);
  if (!Number.isInteger(address) || address < 0 || address + width - 1 > lastAddress[space])
    throw new VirtioFault(
      "INVALID",
      `${space} address ${address}: not a whole number up to ${hex(lastAddress[space])}`,
    );
  if (address % width !== 0)
    throw new VirtioFault("INVALID", `${space} address ${hex(address)} is no multiple of ${width}`);
}

function checkValue(width: Width, value: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** (8 * width))
    throw new VirtioFault("INVALID", `value ${value} does not fit ${width} bytes`);
}

/**
 * The driver's end of a qtest connection. Accesses take effect in call order; all that are made in one turn of the event loop
 * (until no microtask is left) travel as one write to the socket, but for a post that is the first of them: it goes at once. Every
 * wait is bounded: a reply that does not come in time, or one that does not fit, ends the connection.
 */
export class QtestClient {
  /** Called after each posted write: something was asked of a device. */
  onPost: (() => void) | null = null;
  readonly #stream: Duplex;
  readonly #options: QtestOptions;
  readonly #timeoutMs: number;
  readonly #lines = new Lines(MAX_LINE);
  #waiting: Owed[] = [];
  /** Sent; the oldest at #head. */
  #inFlight: Owed[] = [];
  #head = 0;
  /** 16-bit posts that wait with nothing but posts behind them. */
  readonly #doorbells = new Set<string>();
  #flushing = false;
  #timer: NodeJS.Timeout | null = null;
  #closed: VirtioFault | null = null;
  #ended = false;

  constructor(stream: Duplex, options: QtestOptions) {
    this.#stream = stream;
    this.#options = options;
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    stream.setEncoding("latin1");
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

  /** Requests without a reply so far. */
  get outstanding(): number {
    return this.#waiting.length + this.#inFlight.length - this.#head;
  }

  /**
   * Reads 1, 2 or 4 bytes.
   * @throws VirtioFault INVALID, CLOSED, TIMED_OUT, BUSY, IO (QEMU refuses), DEVICE_MISBEHAVED
   */
  async read(space: AddressSpace, address: number, width: Width): Promise<number> {
    checkAccess(space, address, width);
    return this.#request(`${reads[space][width]} ${hex(address)}`, width);
  }

  /**
   * Writes 1, 2 or 4 bytes; resolves when the write has taken effect.
   * @throws VirtioFault INVALID, CLOSED, TIMED_OUT, BUSY, IO (QEMU refuses), DEVICE_MISBEHAVED
   */
  async write(space: AddressSpace, address: number, width: Width, value: number): Promise<void> {
    checkAccess(space, address, width);
    checkValue(width, value);
    await this.#request(`${writes[space][width]} ${hex(address)} ${hex(value)}`, 0);
  }

  /**
   * A write that nobody waits for; one that QEMU refuses ends the connection. A 16-bit one is a doorbell: while the first waits to
   * be sent, with nothing but posts behind it, the same again is merged with it. Does nothing once the connection is closed.
   * @throws VirtioFault INVALID
   */
  post(space: AddressSpace, address: number, width: Width, value: number): void {
    checkAccess(space, address, width);
    checkValue(width, value);
    if (this.#closed !== null) return;
    const command = `${writes[space][width]} ${hex(address)} ${hex(value)}`;
    if (width === 2) {
      if (this.#doorbells.has(command)) return;
      this.#doorbells.add(command);
    }
    if (this.#waiting.length >= MAX_WAITING) this.#fail(this.#overflow(command));
    else {
      const first = !this.#flushing;
      this.#enqueue({ command, width: 0, reply: null, sentAt: 0 });
      // A device that is told early works while this turn goes on.
      if (first) this.#send();
    }
    this.onPost?.();
  }

  /** From now on the inputs of the interrupt controller at this QOM path come as interrupt lines. @throws as `write` */
  async interceptInterrupts(path: string): Promise<void> {
    if (!/^[\w/-]+$/.test(path)) throw new VirtioFault("INVALID", `'${path}' is no QOM path`);
    await this.#request(`irq_intercept_in ${path}`, 0);
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
    if (this.#timer !== null) clearTimeout(this.#timer);
    const owed = [...this.#inFlight.slice(this.#head), ...this.#waiting];
    this.#inFlight = [];
    this.#head = 0;
    this.#waiting = [];
    this.#doorbells.clear();
    this.#stream.destroy();
    for (const { reply } of owed) reply?.reject(closed);
  }

  #fail(fault: VirtioFault): void {
    if (this.#closed !== null) return;
    this.close(fault);
    this.#options.onFailure(fault);
  }

  #overflow(command: string): VirtioFault {
    return new VirtioFault(
      "BUSY",
      `QEMU does not keep up: ${MAX_WAITING} requests wait to be sent (${command})`,
    );
  }

  #request(command: string, width: 0 | Width): Promise<number> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    if (this.#waiting.length >= MAX_WAITING) return Promise.reject(this.#overflow(command));
    this.#doorbells.clear();
    return new Promise((resolve, reject) =>
      this.#enqueue({ command, width, reply: { resolve, reject }, sentAt: 0 }),
    );
  }

  #enqueue(owed: Owed): void {
    this.#waiting.push(owed);
    this.#flushSoon();
  }

  /** After the microtasks of this turn: what they ask for travels too. */
  #flushSoon(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    queueMicrotask(() => process.nextTick(() => this.#flush()));
  }

  #flush(): void {
    this.#flushing = false;
    this.#send();
  }

  #send(): void {
    if (this.#waiting.length === 0 || this.#inFlight.length - this.#head >= MAX_IN_FLIGHT) return;
    const now = performance.now();
    let message = "";
    for (const owed of this.#waiting) {
      owed.sentAt = now;
      message += `${owed.command}\n`;
      this.#inFlight.push(owed);
    }
    this.#waiting = [];
    this.#doorbells.clear();
    this.#stream.write(message, "latin1");
    this.#watch(this.#timeoutMs);
  }

  #watch(delayMs: number): void {
    if (this.#timer !== null || this.#closed !== null) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#checkOldest();
    }, delayMs);
    this.#timer.unref();
  }

  #checkOldest(): void {
    const oldest = this.#inFlight[this.#head];
    if (oldest === undefined) return;
    const age = performance.now() - oldest.sentAt;
    if (age < this.#timeoutMs) {
      this.#watch(this.#timeoutMs - age);
      return;
    }
    // If it was this process that stood still, the reply lies in the socket: let it be read first.
    setImmediate(() => {
      if (this.#inFlight[this.#head] !== oldest) {
        this.#watch(this.#timeoutMs);
        return;
      }
      this.#failOldest(
        new VirtioFault(
          "TIMED_OUT",
          `QEMU did not answer '${oldest.command}' within ${this.#timeoutMs} ms`,
        ),
      );
    });
  }

  /** The oldest request is told the fault itself, the others CLOSED. */
  #failOldest(fault: VirtioFault): void {
    this.#shift()?.reply?.reject(fault);
    this.#fail(fault);
  }

  #shift(): Owed | undefined {
    const owed = this.#inFlight[this.#head];
    if (owed === undefined) return undefined;
    this.#head++;
    if (this.#head === this.#inFlight.length) {
      this.#inFlight = [];
      this.#head = 0;
    } else if (this.#head >= 1024) {
      this.#inFlight = this.#inFlight.slice(this.#head);
      this.#head = 0;
    }
    return owed;
  }

  #receive(chunk: string): void {
    if (this.#closed !== null) return;
    try {
      for (const line of this.#lines.push(chunk)) {
        this.#accept(line);
        if (this.#closed !== null) return;
      }
    } catch (error) {
      if (!(error instanceof VirtioFault)) throw error;
      this.#failOldest(error);
      return;
    }
    if (this.#waiting.length > 0) this.#flushSoon();
  }

  #accept(line: string): void {
    const irq = /^IRQ (raise|lower) (\d{1,3})$/.exec(line);
    if (irq !== null && Number(irq[2]) <= MAX_IRQ) {
      this.#options.onInterrupt(Number(irq[2]), irq[1] === "raise" ? "high" : "low");
      return;
    }
    const owed = this.#inFlight[this.#head];
    const misbehaved = (what: string): VirtioFault =>
      new VirtioFault(
        "DEVICE_MISBEHAVED",
        `QEMU ${what}: '${line.slice(0, 80)}'${owed === undefined ? "" : ` to '${owed.command}'`}`,
      );
    if (owed === undefined) throw misbehaved("sent a line that nothing asked for");
    if (line.startsWith("FAIL")) {
      const refused = new VirtioFault(
        "IO",
        `QEMU refused '${owed.command}': ${line.slice(5, 200) || "no reason given"}`,
      );
      if (owed.reply === null) throw refused;
      this.#shift();
      owed.reply.reject(refused);
      return;
    }
    const reply = /^OK(?: 0x([0-9a-f]{1,16}))?$/.exec(line);
    const hasValue = reply?.[1] !== undefined;
    if (reply === null || hasValue !== owed.width > 0) throw misbehaved("sent a malformed reply");
    const value = hasValue ? Number.parseInt(reply[1] ?? "", 16) : 0;
    if (hasValue && value >= 2 ** (8 * owed.width)) throw misbehaved("sent too large a value");
    this.#shift();
    owed.reply?.resolve(value);
  }
}

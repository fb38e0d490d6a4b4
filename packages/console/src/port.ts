// One port (FreeBSD's vtcon_port and its tty): bytes both ways, as streams and without.
import { ByteStreams, Errno, type Port, type TaskQueue, VirtioFault } from "@virtio/core";
import type { ReceiveQueue } from "./receive-queue.js";
import type { WindowSize } from "./sizes.js";
import type { TransmitQueue } from "./transmit-queue.js";

/** Longest that close() waits until the device has taken what was transmitted. */
const DRAIN_MS = 5000;

/** What a port needs of its device. */
export interface PortOptions {
  /** `ttyV0.0` */
  readonly name: string;
  readonly id: number;
  readonly receive: ReceiveQueue;
  readonly transmit: TransmitQueue;
  readonly tasks: TaskQueue;
  /** Tells the device that the port was opened or closed; null: it is not told (no MULTIPORT). */
  readonly announce: ((open: boolean) => Promise<void>) | null;
}

/**
 * A port. Bytes in order, none lost: what nobody reads stays with the device, and what the device does not take waits.
 *
 * The first use of a stream opens a port, `close()` closes it, and another use opens it again. One that the device took away, or whose
 * device was detached, ends: what came before can still be read, then everything fails with CLOSED (ENXIO).
 */
export class ConsolePort implements Port {
  readonly kind = "port";
  /** `ttyV0.0`: unit and number in FreeBSD's digits, 0 to 9 and then letters. */
  readonly name: string;
  /** The device's number of it. */
  readonly id: number;
  /** Called as a task when there is room again after transmit() took fewer bytes than it was given. */
  onRoom: (() => void) | null = null;
  #onReceive: (() => void) | null = null;
  readonly #options: PortOptions;
  readonly #streams: ByteStreams;
  #alias = "";
  #console = false;
  #connected: boolean;
  #opened = false;
  #size: WindowSize | null = null;
  /** Ends when what was announced before is over; never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  #wantsBytes = false;
  #wantsRoom = false;
  #gone: VirtioFault | null = null;
  /** Of one that is gone: what is left to read. */
  #rest: Uint8Array | null = null;

  /** @internal */
  constructor(options: PortOptions) {
    const { name, id, tasks, announce } = options;
    this.name = name;
    this.id = id;
    this.#options = options;
    this.#connected = announce === null;
    this.#streams = new ByteStreams({
      name,
      receive: (into) => Math.max(0, this.receive(into)),
      transmit: (bytes, start) => Math.max(0, this.transmit(bytes, start)),
      pending: () => this.pending,
      open: () => this.open(),
      wantBytes: () => this.#wantBytes(),
      wantRoom: () => this.#wantRoom(),
      later: (task) => tasks.enqueue(task),
    });
  }

  // ── what the device says of it ──────────────────────────────────────────────

  /** The name that the device gives it, `org.qemu.guest_agent.0`; empty: none. FreeBSD has it as /dev/vtcon/NAME. */
  get alias(): string {
    return this.#alias;
  }
  /** The device nominated it a console. */
  get console(): boolean {
    return this.#console;
  }
  /** Somebody has the other end open. Without MULTIPORT it always counts as open. */
  get connected(): boolean {
    return this.#connected;
  }
  /** The device was told that this end is open. */
  get opened(): boolean {
    return this.#opened;
  }
  /** Null: the device does not say. */
  get size(): WindowSize | null {
    return this.#size;
  }

  // ── bytes, synchronous: nothing is allocated for a buffer, nothing thrown ───

  /**
   * Takes bytes that came: how many were put into `into`, from index 0 on. 0: none now.
   * @returns -ENXIO: the port is gone, and what came before was taken
   */
  receive(into: Uint8Array): number {
    if (this.#gone !== null) return this.#receiveRest(into);
    const length = this.#options.receive.receive(into);
    // Who is called back is called again only after it has seen that there is nothing.
    if (length === 0 && into.length > 0 && this.#onReceive !== null && !this.#wantsBytes)
      this.#wantBytes();
    return length;
  }

  #receiveRest(into: Uint8Array): number {
    const rest = this.#rest;
    if (rest === null) return -Errno.ENXIO;
    const length = Math.min(rest.length, into.length);
    into.set(rest.subarray(0, length));
    this.#rest = length < rest.length ? rest.subarray(length) : null;
    return length;
  }

  /**
   * Gives the device bytes from `bytes[start]` on: how many there was room for, in order. Nobody takes the bytes of a port that is no
   * console and whose other end is not open: there is no room then.
   * @returns -ENXIO: the port is gone
   */
  transmit(bytes: Uint8Array, start: number = 0): number {
    if (this.#gone !== null) return -Errno.ENXIO;
    const taken =
      this.#connected || this.#console ? this.#options.transmit.transmit(bytes, start) : 0;
    if (start + taken < bytes.length && this.onRoom !== null) this.#wantRoom();
    return taken;
  }

  /** Bytes that were transmitted and that the device has not taken. */
  get pending(): number {
    return this.#gone === null ? this.#options.transmit.pending : 0;
  }

  /** Called as a task when bytes came; take them until receive() returns 0. While it is set, streams get none. */
  get onReceive(): (() => void) | null {
    return this.#onReceive;
  }
  set onReceive(handler: (() => void) | null) {
    this.#onReceive = handler;
    if (handler !== null) this.#wantBytes();
  }

  /** There are bytes, or will be: whoever waits is told, once. */
  #wantBytes(): void {
    this.#wantsBytes = true;
    if (this.#gone !== null || this.#options.receive.arm()) this.#later(() => this.arrived());
  }

  #wantRoom(): void {
    this.#wantsRoom = true;
    if (this.#gone !== null || this.#options.transmit.arm()) this.#later(() => this.moved());
  }

  #later(task: () => void): void {
    this.#options.tasks.enqueue(task);
  }

  /** @internal The receive queue has used buffers. */
  arrived(): void {
    if (!this.#wantsBytes) return;
    this.#wantsBytes = false;
    if (this.#onReceive === null) this.#streams.arrived();
    else this.#onReceive();
  }

  /** @internal The transmit queue has used buffers, or the other end was opened. */
  moved(): void {
    if (!this.#wantsRoom) return;
    this.#wantsRoom = false;
    this.#streams.moved();
    this.onRoom?.();
  }

  // ── streams ─────────────────────────────────────────────────────────────────

  /** Bytes as they come, at most 16 KiB a chunk. One that ended with close() is followed by another. */
  get readable(): ReadableStream<Uint8Array> {
    return this.#streams.readable;
  }
  /** A write is over when the device has taken its last byte; abort it, or the stream, to wait no longer. */
  get writable(): WritableStream<Uint8Array> {
    return this.#streams.writable;
  }
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.#streams[Symbol.asyncIterator]();
  }

  // ── open and closed ─────────────────────────────────────────────────────────

  /**
   * Tells the device that the port is open: it may give it bytes. Again: nothing.
   * @throws VirtioFault CLOSED (the port is gone), TIMED_OUT (the device does not take the message)
   */
  open(): Promise<void> {
    return this.#serial(async () => {
      if (this.#gone !== null) throw this.#gone;
      if (this.#opened) return;
      this.#opened = true;
      await this.#options.announce?.(true);
    });
  }

  /**
   * Waits until the device has taken what was transmitted, and tells it that the port is closed. Streams that are read end; what they
   * did not read is there for who opens the port next.
   * @throws VirtioFault TIMED_OUT (the device does not take what was transmitted, or the message)
   */
  close(): Promise<void> {
    return this.#serial(async () => {
      if (this.#gone !== null || !this.#opened) return;
      this.#streams.closeReadable();
      const late = new AbortController();
      const limit = this.#options.tasks.callout(DRAIN_MS, () =>
        late.abort(
          this.#fail("TIMED_OUT", `${this.pending} bytes are not taken after ${DRAIN_MS} ms`),
        ),
      );
      try {
        await this.drain({ signal: late.signal });
      } finally {
        limit.stop();
        this.#opened = false;
        await this.#options.announce?.(false);
      }
    });
  }

  /**
   * Waits until the device has taken what was transmitted (tcdrain(3)).
   * @throws VirtioFault CLOSED; the signal's reason
   */
  async drain({ signal }: { readonly signal?: AbortSignal } = {}): Promise<void> {
    for (;;) {
      if (this.#gone !== null) throw this.#gone;
      if (this.pending === 0) return;
      signal?.throwIfAborted();
      await this.#streams.settled(signal);
    }
  }

  /** Openings and closings take their turns. */
  #serial(work: () => Promise<void>): Promise<void> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }

  // ── what the device says, for the driver alone ──────────────────────────────

  /** @internal */
  setAlias(alias: string): void {
    this.#alias = alias;
  }

  /** @internal It is a console: the device is told that it is open. */
  setConsole(): void {
    this.#console = true;
    this.#opened = true;
    this.moved();
  }

  /** @internal */
  setConnected(connected: boolean): void {
    this.#connected = connected;
    if (connected) this.moved();
  }

  /** @internal */
  setSize(size: WindowSize): void {
    this.#size = size;
  }

  /**
   * @internal The device was reset, and may be given bytes again.
   * @param lost - null: nothing that was transmitted was
   */
  restarted(lost: VirtioFault | null): void {
    this.#connected = this.#options.announce === null;
    if (lost !== null) this.#streams.breakWrites(lost);
    this.goOn();
  }

  /** @internal The device goes on: interrupts are to be asked for anew, and who waits for room tries again. */
  goOn(): void {
    if (this.#wantsBytes) this.#wantBytes();
    this.#later(() => this.moved());
  }

  /** @internal The port is gone. What the device has written is its last. */
  end(fault: VirtioFault): void {
    if (this.#gone !== null) return;
    this.#rest = this.#options.receive.takeAll();
    this.#gone = fault;
    this.#opened = false;
    this.#connected = false;
    this.#streams.end(fault);
    if (this.#onReceive !== null) this.#later(() => this.#onReceive?.());
    if (this.onRoom !== null) this.#later(() => this.onRoom?.());
  }
}

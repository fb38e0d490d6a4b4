// The back of a console device: the other ends of its ports, in the hands of a test or of whoever owns the machine.
import { ByteStreams, type Endpoint, type TaskQueue, VirtioFault } from "@virtio/core";
import { ByteFifo } from "./byte-fifo.js";

/** Bytes that an end keeps in each direction: for the guest, and from it. */
const CAPACITY = 65_536;

/** Columns and rows of a window, in characters. */
export interface ConsoleSize {
  readonly cols: number;
  readonly rows: number;
}

/** What a port is. */
export interface ConsoleHostPortOptions {
  /** Its number. Default: the first that is free. Without MULTIPORT there is 0 alone. */
  readonly id?: number;
  /** Sent to the driver (PORT_NAME). Default: none. */
  readonly name?: string;
  /** The driver is to take it for a console (CONSOLE_PORT). Default false. */
  readonly console?: boolean;
  /** Default: none, which is 0 by 0. */
  readonly size?: ConsoleSize;
  /** Whether this end is open from the start. Default true. */
  readonly open?: boolean;
  /** What the guest writes comes back to it; then the end is nobody's. Default false. */
  readonly loop?: boolean;
}

/** What a host's ends tell the device. @internal */
export interface ConsoleModelEvents {
  readonly tasks: TaskQueue;
  added(port: ConsoleHostPort): void;
  removed(port: ConsoleHostPort): void;
  /** This end was opened or closed. */
  opened(port: ConsoleHostPort): void;
  resized(port: ConsoleHostPort): void;
  /** There are bytes for the guest, or room for the guest's. */
  moved(port: ConsoleHostPort): void;
  inject(message: Uint8Array): void;
}

/** One port, seen from the host. */
export class ConsoleHostPort implements Endpoint {
  readonly id: number;
  /** As the driver is told; empty: none. */
  readonly name: string;
  readonly console: boolean;
  /** What the guest wrote comes back to it. */
  readonly loop: boolean;
  /** Called as a task of the device after the guest wrote, while there is nothing read of it yet. */
  onReadable: (() => void) | null = null;
  /** Called as a task of the device after the guest opened or closed the port. */
  onGuestOpen: ((open: boolean) => void) | null = null;
  /** Bytes that the guest wrote while this end was closed: nobody has them. */
  discarded = 0;
  /** @internal */
  readonly toGuest: ByteFifo = new ByteFifo(CAPACITY);
  /** @internal */
  readonly fromGuest: ByteFifo;
  readonly #host: ConsoleHost;
  readonly #streams: ByteStreams;
  #opened: boolean;
  #guestOpen = false;
  #size: ConsoleSize | null;
  #gone = false;

  /** @internal */
  constructor(host: ConsoleHost, id: number, options: ConsoleHostPortOptions) {
    this.id = id;
    this.name = options.name ?? "";
    this.console = options.console ?? false;
    this.loop = options.loop ?? false;
    this.fromGuest = this.loop ? this.toGuest : new ByteFifo(CAPACITY);
    this.#host = host;
    this.#opened = options.open ?? true;
    this.#size = options.size ?? null;
    this.#streams = new ByteStreams({
      name: `port ${id}`,
      receive: (into) => this.read(into),
      transmit: (bytes, start) => this.write(bytes, start),
      pending: () => (this.#gone ? 0 : this.toGuest.length),
      open: async () => this.open(),
      wantBytes: () => {},
      wantRoom: () => {},
      later: (task) => this.#host.later(task),
    });
  }

  /** The guest has it open; without MULTIPORT, where it cannot say so: its driver runs. */
  get guestOpen(): boolean {
    return this.#guestOpen;
  }
  get opened(): boolean {
    return this.#opened;
  }
  get size(): ConsoleSize | null {
    return this.#size;
  }
  /** It was unplugged. */
  get gone(): boolean {
    return this.#gone;
  }

  /** Bytes that the guest wrote and that were not read. While there are 65536 of them, the guest's further bytes stay with the guest. */
  get readableLength(): number {
    return this.loop ? 0 : this.fromGuest.length;
  }
  /** Bytes for the guest that it has not received. */
  get pending(): number {
    return this.toGuest.length;
  }

  /** Takes bytes that the guest wrote: how many were put into `into`, from index 0 on. */
  read(into: Uint8Array): number {
    if (this.loop) return 0;
    const length = this.fromGuest.take(into);
    if (length > 0) this.#host.model?.moved(this);
    return length;
  }

  /** Gives the guest bytes from `bytes[start]` on: how many there was room for. They wait until the guest has the port open. */
  write(bytes: Uint8Array, start: number = 0): number {
    if (this.#gone) return 0;
    const length = this.toGuest.put(bytes, start);
    if (length > 0) this.#host.model?.moved(this);
    return length;
  }

  get readable(): ReadableStream<Uint8Array> {
    return this.#streams.readable;
  }
  /** A write is over when the guest's buffers have its last byte. */
  get writable(): WritableStream<Uint8Array> {
    return this.#streams.writable;
  }
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.#streams[Symbol.asyncIterator]();
  }

  /** Tells the driver that this end is open. Again: nothing. */
  open(): void {
    this.#setOpened(true);
  }
  /** Tells the driver that this end is closed: what the guest writes then is lost. Again: nothing. */
  close(): void {
    this.#setOpened(false);
  }
  #setOpened(opened: boolean): void {
    if (this.#opened === opened) return;
    this.#opened = opened;
    this.#host.model?.opened(this);
  }

  /** Gives the window another size: the driver is told, by the configuration for port 0 and by RESIZE. */
  resize(size: ConsoleSize): void {
    this.#size = size;
    this.#host.model?.resized(this);
  }

  /** @internal The guest opened or closed the port. */
  setGuestOpen(open: boolean): void {
    if (this.#guestOpen === open) return;
    this.#guestOpen = open;
    this.onGuestOpen?.(open);
  }
  /** @internal The guest wrote. */
  arrived(): void {
    this.#streams.arrived();
    this.onReadable?.();
  }
  /** @internal The guest has taken bytes. */
  taken(): void {
    this.#streams.moved();
  }
  /** @internal */
  end(): void {
    this.#gone = true;
    this.#streams.end(new VirtioFault("CLOSED", `port ${this.id} was unplugged`));
  }
}

/** The back of a console device: give one to `consoleDevice({ host })`, and keep it. */
export class ConsoleHost {
  /** Every byte that the driver wrote to `emerg_wr`. */
  readonly emergency: number[] = [];
  /** Called at once with each of them. */
  onEmergency: ((byte: number) => void) | null = null;
  readonly #ports = new Map<number, ConsoleHostPort>();
  /** @internal Set by the device. */
  model: ConsoleModelEvents | null = null;
  /** @internal Set by the device: ports that there can be. */
  maxPorts = 32;

  /** @param ports - those that are there from the start. Default: one, a console */
  constructor(ports: readonly ConsoleHostPortOptions[] = [{ console: true }]) {
    for (const port of ports) this.plug(port);
  }

  /** In order of their numbers. */
  get ports(): readonly ConsoleHostPort[] {
    return [...this.#ports.values()].sort((a, b) => a.id - b.id);
  }

  /** The port of this number, or of this name. @throws VirtioFault NOT_FOUND */
  port(which: number | string): ConsoleHostPort {
    const found = this.ports.find(({ id, name }) => id === which || name === which);
    if (found === undefined) throw new VirtioFault("NOT_FOUND", `console: no port ${which}`);
    return found;
  }

  /**
   * Adds a port; the driver is told when it runs.
   * @throws VirtioFault EXISTS, NO_SPACE (no number is free), INVALID
   */
  plug(options: ConsoleHostPortOptions = {}): ConsoleHostPort {
    let { id } = options;
    if (id === undefined) for (id = 0; this.#ports.has(id); id++);
    if (!Number.isInteger(id) || id < 0)
      throw new VirtioFault("INVALID", `console: ${id} is no number of a port`);
    if (id >= this.maxPorts)
      throw new VirtioFault("NO_SPACE", `console: port ${id} of ${this.maxPorts}`);
    if (this.#ports.has(id)) throw new VirtioFault("EXISTS", `console: port ${id} is there`);
    const port = new ConsoleHostPort(this, id, options);
    this.#ports.set(id, port);
    this.model?.added(port);
    return port;
  }

  /** Takes a port away, whatever it is doing. @throws VirtioFault NOT_FOUND */
  unplug(which: number | string): void {
    const port = this.port(which);
    this.#ports.delete(port.id);
    port.end();
    this.model?.removed(port);
  }

  /** Sends the driver a control message as it is, right or wrong; for tests of drivers. */
  inject(message: Uint8Array): void {
    this.model?.inject(message.slice());
  }

  /** @internal As a task of the device; at once before there is one. */
  later(task: () => void): void {
    if (this.model === null) task();
    else this.model.tasks.enqueue(task);
  }
}

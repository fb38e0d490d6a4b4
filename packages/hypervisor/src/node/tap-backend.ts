// A network backend over a tap interface of this computer (Linux, /dev/net/tun).
import { closeSync, constants, openSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { getSystemErrorName } from "node:util";
import { type TaskQueue, VirtioFault } from "@virtio/core";
import type * as Koffi from "koffi";
import { DEFAULT_MAX_FRAME, type NetBackend } from "../net-backend.js";

const TUN = "/dev/net/tun";
/** ioctl(2): makes a descriptor the other end of an interface; its struct ifreq has a name of 16 bytes, then the flags. */
const TUNSETIFF = 0x4004_54ca;
const IFREQ_SIZE = 40;
const NAME_SIZE = 16;
/** Ethernet frames, without a packet header. */
const IFF_TAP_NO_PI = 0x1002;
/** poll(2): something can be read. */
const POLLIN = 1;
const POLLFD_SIZE = 8;

/** Milliseconds of one wait: as long as `close` may take. */
const WAIT_MS = 100;
/** Frames that are taken before the device has its turn. */
const BATCH = 64;

/** The two calls of the C library that Node does not offer. */
interface Libc {
  ioctl(fd: number, request: number, argument: Buffer): number;
  /** poll(2) of one descriptor, on another thread. @returns the events */
  poll(pollfd: Buffer, ms: number): Promise<number>;
  errorName(): string;
}

/** @throws VirtioFault UNSUPPORTED: not Linux, or without the package koffi */
function libc(name: string): Libc {
  if (process.platform !== "linux")
    throw new VirtioFault("UNSUPPORTED", `${name}: a tap needs Linux; this is ${process.platform}`);
  try {
    const koffi = createRequire(import.meta.url)("koffi") as typeof Koffi;
    const symbols = koffi.load(null);
    const ioctl = symbols.func("int ioctl(int fd, unsigned long request, void *argument)");
    const poll = symbols.func("int poll(void *fds, unsigned long count, int timeout)");
    return {
      ioctl: ioctl as Libc["ioctl"],
      poll: (pollfd, ms) =>
        new Promise((resolve, reject) => {
          poll.async(pollfd, 1, ms, (error: Error | null, ready: number) =>
            error === null ? resolve(ready) : reject(error),
          );
        }),
      errorName: () => getSystemErrorName(-koffi.errno()),
    };
  } catch (cause) {
    throw new VirtioFault(
      "UNSUPPORTED",
      `${name}: a tap needs the package koffi, which does not load here: ${String(cause).split("\n")[0]}`,
      { cause },
    );
  }
}

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error ? String(error.code) : String(error);

/** Frames to and from the network stack of this computer. An interface that was not there before goes when this is closed. */
export class TapBackend implements NetBackend {
  readonly maxFrame: number = DEFAULT_MAX_FRAME;
  onLinkChange: NetBackend["onLinkChange"] = null;
  deliver: NetBackend["deliver"] = null;
  onReady: NetBackend["onReady"] = null;
  readonly #fd: number;
  readonly #libc: Libc;
  readonly #frame: Buffer = Buffer.alloc(DEFAULT_MAX_FRAME);
  /** Bytes of a frame that the device had no room for; 0: none waits. */
  #held = 0;
  #linkUp = true;
  #tasks: TaskQueue | null = null;
  /** Until the frame that waits was taken. */
  #resume: (() => void) | null = null;
  #reading: Promise<void> = Promise.resolve();
  #closing: Promise<void> | null = null;

  private constructor(fd: number, calls: Libc) {
    this.#fd = fd;
    this.#libc = calls;
  }

  /**
   * Opens an interface of this computer, and makes it if it is not there.
   * @param name - `tap0`
   * @param label - what errors call it
   * @throws VirtioFault UNSUPPORTED (no Linux, no koffi, no /dev/net/tun), INVALID (it may not be opened, is in use, or no tap)
   */
  static open(name: string, label: string = name): TapBackend {
    const calls = libc(label);
    let fd: number;
    try {
      fd = openSync(TUN, constants.O_RDWR | constants.O_NONBLOCK);
    } catch (cause) {
      throw new VirtioFault("UNSUPPORTED", `${label}: ${TUN} cannot be opened (${codeOf(cause)})`, {
        cause,
      });
    }
    const request = Buffer.alloc(IFREQ_SIZE);
    request.write(name.slice(0, NAME_SIZE - 1), "latin1");
    request.writeUInt16LE(IFF_TAP_NO_PI, NAME_SIZE);
    if (calls.ioctl(fd, TUNSETIFF, request) < 0) {
      const error = calls.errorName();
      closeSync(fd);
      throw new VirtioFault("INVALID", `${label}: cannot be opened (${error})`);
    }
    return new TapBackend(fd, calls);
  }

  get linkUp(): boolean {
    return this.#linkUp;
  }

  connect(tasks: TaskQueue): void {
    this.#tasks = tasks;
    this.#reading = this.#read();
  }

  room(): void {
    this.#tasks?.enqueue(() => {
      if (this.#held === 0 || this.deliver?.(this.#frame, 0, this.#held) !== true) return;
      this.#held = 0;
      this.#resume?.();
    });
  }

  /** An interface that is down, or full, drops frames. */
  send(bytes: Uint8Array, offset: number, length: number): boolean {
    if (!this.#linkUp) return true;
    try {
      writeSync(this.#fd, bytes, offset, length);
    } catch {
      // EIO: the interface is down. EAGAIN: it is full. As on a wire without an end.
    }
    return true;
  }

  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    this.#linkUp = false;
    this.#resume?.();
    await this.#reading;
    closeSync(this.#fd);
  }

  async #read(): Promise<void> {
    const pollfd = Buffer.alloc(POLLFD_SIZE);
    pollfd.writeInt32LE(this.#fd);
    pollfd.writeInt16LE(POLLIN, 4);
    while (this.#linkUp) {
      if ((await this.#libc.poll(pollfd, WAIT_MS)) <= 0) continue;
      // The device's lane, in which frames are delivered.
      await new Promise<void>((resume) => {
        this.#resume = resume;
        this.#tasks?.enqueue(() => {
          if (this.#linkUp) this.#take();
          if (this.#held === 0) resume();
        });
      });
      this.#resume = null;
    }
  }

  #lose(): void {
    this.#linkUp = false;
    this.onLinkChange?.();
  }

  #take(): void {
    for (let i = 0; i < BATCH; i++) {
      let length = 0;
      try {
        length = readSync(this.#fd, this.#frame);
      } catch (error) {
        // EAGAIN: that was all. EBADFD: the interface was deleted.
        if (codeOf(error) !== "EAGAIN") this.#lose();
        return;
      }
      if (this.deliver?.(this.#frame, 0, length) === true) continue;
      this.#held = length;
      return;
    }
  }
}

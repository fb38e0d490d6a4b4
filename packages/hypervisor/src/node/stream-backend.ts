// A network backend over a stream socket, with QEMU's framing: each frame goes as its length, 4 bytes big-endian, and its bytes.
import { createConnection } from "node:net";
import type { Duplex } from "node:stream";
import { type TaskQueue, VirtioFault } from "@virtio/core";
import { DEFAULT_MAX_FRAME, type NetBackend } from "../net-backend.js";

/** Bytes of the length before a frame. */
const LENGTH_SIZE = 4;

/**
 * Frames over a socket that QEMU's `-netdev stream`, another machine of this project, or a test is at the other end of. While the
 * device has no room the socket is not read; while the socket is full the device waits. When the socket ends, or a length is longer
 * than a frame can be, the link goes down for good.
 */
export class StreamBackend implements NetBackend {
  readonly maxFrame: number;
  onLinkChange: NetBackend["onLinkChange"] = null;
  deliver: NetBackend["deliver"] = null;
  onReady: NetBackend["onReady"] = null;
  readonly #socket: Duplex;
  #tasks: TaskQueue | null = null;
  #linkUp = true;
  /** Received, from `#at` on not yet delivered. */
  #received: Buffer = Buffer.alloc(0);
  #at = 0;
  #scheduled = false;
  /** The socket took as much as it wants to hold. */
  #full = false;

  /** @param socket connected; the backend's from now on */
  constructor(socket: Duplex, options: { readonly maxFrame?: number } = {}) {
    this.maxFrame = options.maxFrame ?? DEFAULT_MAX_FRAME;
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => {
      // Read on when this is delivered: what waits is never more than a chunk and a frame.
      socket.pause();
      const rest = this.#received.subarray(this.#at);
      this.#received = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      this.#at = 0;
      this.#run();
    });
    socket.on("drain", () => {
      this.#full = false;
      this.#tasks?.enqueue(() => this.onReady?.());
    });
    socket.on("error", () => this.#end());
    socket.on("end", () => this.#end());
    socket.on("close", () => this.#end());
    socket.pause();
  }

  /**
   * Connects to a UNIX socket.
   * @param name what errors call it
   * @throws VirtioFault NOT_FOUND (there is none), IO
   */
  static async connect(path: string, name: string = path): Promise<StreamBackend> {
    const socket = createConnection(path);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", (cause: NodeJS.ErrnoException) => {
        const missing = cause.code === "ENOENT";
        const why = missing ? "no such socket" : `cannot be connected to (${cause.code})`;
        reject(new VirtioFault(missing ? "NOT_FOUND" : "IO", `${name}: ${why}`, { cause }));
      });
    });
    return new StreamBackend(socket);
  }

  get linkUp(): boolean {
    return this.#linkUp;
  }

  connect(tasks: TaskQueue): void {
    this.#tasks = tasks;
    this.#socket.resume();
  }

  room(): void {
    this.#run();
  }

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    if (!this.#linkUp) return true;
    if (this.#full) return false;
    const framed = Buffer.allocUnsafe(LENGTH_SIZE + length);
    framed.writeUInt32BE(length);
    framed.set(bytes.subarray(offset, offset + length), LENGTH_SIZE);
    this.#full = !this.#socket.write(framed);
    return true;
  }

  async close(): Promise<void> {
    this.#linkUp = false;
    this.#socket.destroy();
  }

  #run(): void {
    if (this.#scheduled || this.#tasks === null) return;
    this.#scheduled = true;
    this.#tasks.enqueue(() => {
      this.#scheduled = false;
      this.#deliver();
    });
  }

  /** Whole frames to the device, until it has no room; then, or when there is no whole one left, the socket is read again. */
  #deliver(): void {
    const { deliver } = this;
    if (deliver === null || !this.#linkUp) return;
    for (;;) {
      const received = this.#received;
      if (received.length - this.#at < LENGTH_SIZE) break;
      const length = received.readUInt32BE(this.#at);
      if (length > this.maxFrame) {
        this.#socket.destroy();
        this.#end();
        return;
      }
      const from = this.#at + LENGTH_SIZE;
      if (received.length - from < length) break;
      if (!deliver(received, from, length)) return;
      this.#at = from + length;
    }
    this.#socket.resume();
  }

  #end(): void {
    if (!this.#linkUp) return;
    this.#linkUp = false;
    this.#tasks?.enqueue(() => this.onLinkChange?.());
  }
}

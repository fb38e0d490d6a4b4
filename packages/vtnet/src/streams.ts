// Frames as web streams of copies.
import { type Frame, VirtioFault } from "@virtio/core";
import { ETHERNET_HEADER_SIZE, VLAN_TAG_SIZE } from "@virtio/packets";
import { frameLength, wireCopy } from "./offload.js";

/** The interface, as its streams see it. */
export interface StreamPort {
  /** Bytes of payload. */
  mtu(): number;
  /** Most frames that are taken before other tasks get their turn. */
  readonly limit: number;
  /** Does it as a task. */
  later(task: () => void): void;
  /** The next received frame; null: there is none now. */
  take(): Frame | null;
  /** A frame to fill; null: there is none now, or nothing is transmitted. */
  allocate(): Frame | null;
  /** False: there is no room now, and the frame is still the caller's. */
  transmit(frame: Frame): boolean;
  release(frame: Frame): void;
  /** Frames are wanted from now on, or not any more: the port calls arrived(). */
  want(): void;
  /** Room is wanted: the port calls room(). */
  wantRoom(): void;
}

/**
 * The pair of streams. Nothing is taken from the device before somebody asks for it: a readable that nobody reads leaves received
 * frames in the ring, and the device drops what does not fit.
 */
export class FrameStreams {
  readonly #name: string;
  readonly #port: StreamPort;
  #readable: ReadableStream<Uint8Array> | null = null;
  #writable: WritableStream<Uint8Array> | null = null;
  #arrived: (() => void) | null = null;
  /** Frames that were taken since others had their turn. */
  #taken = 0;
  readonly #rooms = new Set<() => void>();
  /** Undefined: open; null: closed in order. */
  #ended: VirtioFault | null | undefined;

  /** @param name - `vtnet0` */
  constructor(name: string, port: StreamPort) {
    this.#name = name;
    this.#port = port;
  }

  /** Somebody reads: received frames are his. */
  get reading(): boolean {
    return this.#readable?.locked ?? false;
  }

  /** Somebody waits for a frame. */
  get waiting(): boolean {
    return this.#arrived !== null;
  }

  /** Somebody waits for room. */
  get waitingForRoom(): boolean {
    return this.#rooms.size > 0;
  }

  /** One that was cancelled is followed by another. */
  get readable(): ReadableStream<Uint8Array> {
    this.#readable ??= new ReadableStream<Uint8Array>(
      {
        pull: (controller) => this.#pull(controller),
        cancel: () => {
          this.#readable = null;
          this.arrived();
          this.#port.want();
        },
      },
      { highWaterMark: 0 },
    );
    return this.#readable;
  }

  async #pull(controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    const mine = this.#readable;
    while (this.#readable === mine && this.#ended === undefined) {
      if (this.#taken >= this.#port.limit) {
        this.#taken = 0;
        // Who finds a frame each time it asks would leave no other task a turn.
        await new Promise<void>((resolve) => this.#port.later(resolve));
        continue;
      }
      const frame = this.#port.take();
      if (frame !== null) {
        this.#taken += 1;
        const copy = wireCopy(frame, frameLength(frame));
        this.#port.release(frame);
        controller.enqueue(copy);
        return;
      }
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
        this.#port.want();
      });
    }
    if (this.#readable !== mine) return;
    if (this.#ended === null) controller.close();
    else controller.error(this.#ended);
  }

  /** There are frames. */
  arrived(): void {
    const arrived = this.#arrived;
    this.#arrived = null;
    arrived?.();
  }

  /** One that a frame was refused of, or that was closed, is followed by another. */
  get writable(): WritableStream<Uint8Array> {
    const forget = (): void => {
      this.#writable = null;
    };
    this.#writable ??= new WritableStream<Uint8Array>({
      write: async (frame, { signal }: { signal?: AbortSignal; error(reason?: unknown): void }) => {
        try {
          await this.#write(frame, signal);
        } catch (error) {
          forget();
          throw error;
        }
      },
      close: forget,
      abort: forget,
    });
    return this.#writable;
  }

  async #write(frame: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      if (this.#ended !== undefined)
        throw (
          this.#ended ??
          new VirtioFault("CLOSED", "the interface is detached", { device: this.#name })
        );
      signal?.throwIfAborted();
      if (this.transmit(frame)) return;
      await new Promise<void>((resolve) => {
        const over = (): void => {
          this.#rooms.delete(over);
          signal?.removeEventListener("abort", over);
          resolve();
        };
        this.#rooms.add(over);
        signal?.addEventListener("abort", over);
        this.#port.wantRoom();
      });
    }
  }

  /** Transmits a copy; false: there is no room now. @throws VirtioFault INVALID */
  transmit(bytes: Uint8Array): boolean {
    const port = this.#port;
    const tag = bytes[12] === 0x81 && bytes[13] === 0 ? VLAN_TAG_SIZE : 0;
    const most = port.mtu() + ETHERNET_HEADER_SIZE + tag;
    if (bytes.length < ETHERNET_HEADER_SIZE || bytes.length > most)
      throw new VirtioFault(
        "INVALID",
        `a frame of ${bytes.length} bytes, not ${ETHERNET_HEADER_SIZE} to ${most}`,
        { device: this.#name },
      );
    let head: Frame | null = null;
    let tail: Frame | null = null;
    for (let at = 0; at < bytes.length; ) {
      const part = port.allocate();
      if (part === null) {
        if (head !== null) port.release(head);
        return false;
      }
      const piece = bytes.subarray(at, at + part.room);
      part.bytes.set(piece, part.offset);
      part.length = piece.length;
      at += piece.length;
      if (tail !== null) tail.next = part;
      head ??= part;
      tail = part;
    }
    if (head === null) return false;
    const taken = port.transmit(head);
    if (!taken) port.release(head);
    return taken;
  }

  /** There may be room. */
  room(): void {
    for (const room of [...this.#rooms]) room();
  }

  /** The interface is gone: null when it was detached in order. */
  end(fault: VirtioFault | null): void {
    this.#ended = fault;
    this.arrived();
    this.room();
  }
}

// A capture file as a wire: its frames come in, and what the device sends is recorded.
import type { TaskQueue } from "@virtio/core";
import { type PcapFrame, PcapngWriter } from "@virtio/packets";
import { DEFAULT_MAX_FRAME, type NetBackend } from "../net-backend.js";
import { FrameLane } from "./frame-lane.js";

/** Ethernet's header: a shorter frame is none. */
const FRAME_MIN = 14;

/** What a {@link PcapBackend} plays, and where it records. */
export interface PcapOptions {
  /** Frames for the device, of `readPcap`; one that was cut short when it was captured is passed over. Default none. */
  readonly frames?: readonly PcapFrame[];
  /** Takes the blocks of a pcapng file with the frames that the device sends, in order. Default: they are not recorded. */
  readonly record?: (block: Uint8Array) => void;
  /** The interface that the record names. Default `wire`. */
  readonly name?: string;
}

/**
 * Plays frames, one after another, as fast as the device takes them. It begins when the device sends its first frame, as before
 * nobody may be listening; or by `play`.
 */
export class PcapBackend implements NetBackend {
  readonly maxFrame: number = DEFAULT_MAX_FRAME;
  readonly linkUp: boolean = true;
  onLinkChange: NetBackend["onLinkChange"] = null;
  onReady: NetBackend["onReady"] = null;
  readonly #frames: readonly Uint8Array[];
  /** To the device. */
  readonly #lane = new FrameLane(() => this.#feed());
  readonly #record: ((block: Uint8Array) => void) | null;
  readonly #writer = new PcapngWriter();
  #playing = false;
  /** The next frame to go into the lane. */
  #next = 0;

  constructor({ frames = [], record, name = "wire" }: PcapOptions = {}) {
    this.#frames = frames
      .filter(({ bytes, length }) => bytes.length === length)
      .map(({ bytes }) => bytes)
      .filter(({ length }) => length >= FRAME_MIN && length <= this.maxFrame);
    this.#record = record ?? null;
    record?.(this.#writer.header());
    record?.(this.#writer.addInterface(name));
  }

  get deliver(): NetBackend["deliver"] {
    return this.#lane.deliver;
  }

  set deliver(deliver: NetBackend["deliver"]) {
    this.#lane.deliver = deliver;
  }

  connect(tasks: TaskQueue): void {
    this.#lane.tasks = tasks;
    if (this.#playing) this.#feed();
  }

  room(): void {
    this.#lane.room();
  }

  /** Begins to play. */
  play(): void {
    if (this.#playing) return;
    this.#playing = true;
    this.#feed();
  }

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    const frame = bytes.subarray(offset, offset + length);
    const time = this.#lane.tasks?.now() ?? 0;
    this.#record?.(this.#writer.frame({ direction: "out", time, bytes: frame }));
    this.play();
    return true;
  }

  async close(): Promise<void> {
    this.#next = this.#frames.length;
    this.#lane.close();
  }

  /** As much as the lane has room for; it says when there is more. */
  #feed(): void {
    // Without a device frames would be lost.
    if (this.#lane.tasks === null) return;
    for (; this.#next < this.#frames.length; this.#next++) {
      const frame = this.#frames[this.#next] as Uint8Array;
      if (!this.#lane.send(frame, 0, frame.length)) return;
    }
  }
}

// One direction of a wire: frames wait in a ring until the device at its end has its turn, and room.
import type { TaskQueue } from "@virtio/core";
import type { NetBackend } from "../net-backend.js";
import { FrameRing } from "./frame-ring.js";

/** Bytes of frames that wait: a thousand small ones, or four hundred of 1514. */
const SIZE = 1 << 20;
/** Frames delivered in one task, so that others get their turn. */
const BATCH = 256;

/** One direction of a wire. */
export class FrameLane {
  deliver: NetBackend["deliver"] = null;
  /** The lane of the device that receives. */
  tasks: TaskQueue | null = null;
  readonly #frames = new FrameRing(SIZE);
  /** Called when there is room again after send() gave false. */
  readonly #onRoom: () => void;
  readonly #task = (): void => this.#run();
  #scheduled = false;
  /** The device has no room: it says when. */
  #blocked = false;
  /** A frame was refused. */
  #refused = false;
  #closed = false;

  constructor(onRoom: () => void) {
    this.#onRoom = onRoom;
  }

  /** Takes a frame; false: there is no room. Where no device is, frames are lost. */
  send(bytes: Uint8Array, offset: number, length: number): boolean {
    if (this.#closed || this.deliver === null) return true;
    if (!this.#frames.push(bytes, offset, length)) {
      this.#refused = true;
      return false;
    }
    this.#schedule();
    return true;
  }

  /** The device has room again. */
  room(): void {
    this.#blocked = false;
    if (this.#frames.count > 0) this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled || this.#blocked || this.tasks === null) return;
    this.#scheduled = true;
    this.tasks.enqueue(this.#task);
  }

  #run(): void {
    this.#scheduled = false;
    const frames = this.#frames;
    const { deliver } = this;
    if (deliver === null) frames.clear();
    else
      for (let n = 0; n < BATCH && frames.count > 0 && !this.#blocked; n++)
        if (!frames.shift(deliver)) this.#blocked = true;
    if (frames.count > 0) this.#schedule();
    if (this.#refused && !this.#blocked) {
      this.#refused = false;
      this.#onRoom();
    }
  }

  /** The frames that wait are lost. */
  clear(): void {
    this.#frames.clear();
    this.#blocked = false;
    if (!this.#refused) return;
    this.#refused = false;
    this.#onRoom();
  }

  close(): void {
    this.#closed = true;
    this.clear();
  }
}

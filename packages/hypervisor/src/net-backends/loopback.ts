// A plug that leads back into the device: each frame that it sends it gets.
import type { TaskQueue } from "@virtio/core";
import { DEFAULT_MAX_FRAME, type NetBackend } from "../net-backend.js";
import { FrameLane } from "./frame-lane.js";

/** Gives a device its own frames. One whose destination the device's filter does not know never reaches its driver. */
export class LoopbackBackend implements NetBackend {
  readonly maxFrame: number;
  onLinkChange: (() => void) | null = null;
  onReady: (() => void) | null = null;
  #linkUp = true;
  readonly #lane: FrameLane;

  /** @param options - `maxFrame`: bytes */
  constructor(options: { readonly maxFrame?: number } = {}) {
    this.maxFrame = options.maxFrame ?? DEFAULT_MAX_FRAME;
    this.#lane = new FrameLane(() => this.onReady?.());
  }

  get deliver(): NetBackend["deliver"] {
    return this.#lane.deliver;
  }

  set deliver(deliver: NetBackend["deliver"]) {
    this.#lane.deliver = deliver;
  }

  get linkUp(): boolean {
    return this.#linkUp;
  }

  /** Plugs it in, or pulls it. */
  set linkUp(up: boolean) {
    if (up === this.#linkUp) return;
    this.#linkUp = up;
    if (!up) this.#lane.clear();
    this.onLinkChange?.();
  }

  connect(tasks: TaskQueue): void {
    this.#lane.tasks = tasks;
  }

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    return this.#lane.send(bytes, offset, length);
  }

  room(): void {
    this.#lane.room();
  }

  async close(): Promise<void> {
    this.#lane.close();
  }
}

// A cable between two network devices, of one machine or of two.
import type { TaskQueue } from "@virtio/core";
import { DEFAULT_MAX_FRAME, type NetBackend } from "../net-backend.js";
import { FrameLane } from "./frame-lane.js";

/** One end of a wire: a device's backend. */
class WireEnd implements NetBackend {
  onLinkChange: (() => void) | null = null;
  onReady: (() => void) | null = null;
  readonly #wire: Wire;
  /** Frames for the device here, and those for the device at the other end. */
  readonly #inward: FrameLane;
  readonly #outward: FrameLane;

  constructor(wire: Wire, inward: FrameLane, outward: FrameLane) {
    this.#wire = wire;
    this.#inward = inward;
    this.#outward = outward;
  }

  get maxFrame(): number {
    return this.#wire.maxFrame;
  }

  get linkUp(): boolean {
    return this.#wire.linkUp;
  }

  get deliver(): NetBackend["deliver"] {
    return this.#inward.deliver;
  }

  set deliver(deliver: NetBackend["deliver"]) {
    this.#inward.deliver = deliver;
  }

  connect(tasks: TaskQueue): void {
    this.#inward.tasks = tasks;
  }

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    return this.#outward.send(bytes, offset, length);
  }

  room(): void {
    this.#inward.room();
  }

  async close(): Promise<void> {
    this.#inward.close();
  }
}

/** A cable: give each of its `ends` to a device. */
export class Wire {
  /** Bytes. */
  readonly maxFrame: number;
  readonly ends: readonly [NetBackend, NetBackend];
  readonly #lanes: readonly FrameLane[];
  #linkUp = true;

  /** @param options - `maxFrame`: bytes */
  constructor(options: { readonly maxFrame?: number } = {}) {
    this.maxFrame = options.maxFrame ?? DEFAULT_MAX_FRAME;
    // Room in the lane to an end is news for the end that sends into it.
    const first = new FrameLane(() => this.ends[1].onReady?.());
    const second = new FrameLane(() => this.ends[0].onReady?.());
    this.#lanes = [first, second];
    this.ends = [new WireEnd(this, first, second), new WireEnd(this, second, first)];
  }

  get linkUp(): boolean {
    return this.#linkUp;
  }

  /** Plugs it in, or pulls it: frames on it are lost. */
  set linkUp(up: boolean) {
    if (up === this.#linkUp) return;
    this.#linkUp = up;
    if (!up) for (const lane of this.#lanes) lane.clear();
    for (const end of this.ends) end.onLinkChange?.();
  }
}

// The control queue (virtio 1.4 §5.1.9.5): one command at a time, each with a bound.
import {
  type DmaMemory,
  type DmaRegion,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { NetControlAck } from "@virtio/core/net";

/** Longest that a command may take. */
const TIMEOUT_MS = 5000;
/** Bytes of the longest command: two tables of 128 addresses, or a receive-side scaling table. */
const DATA_MAX = 2048;
/** Class and command; data begins behind them, at an even place. */
const HEADER = 2;
const DATA = 16;
const ACK = DATA + DATA_MAX;

/** Most segments of a command: header, two of data, answer. */
export const CONTROL_SEGMENTS = 4;

/** A command that waits for its answer. */
interface Pending {
  readonly over: (fault: VirtioFault | null) => void;
}

export class ControlQueue {
  readonly #queue: Virtqueue;
  readonly #tasks: TaskQueue;
  readonly #device: string;
  readonly #region: DmaRegion;
  readonly #segments = new Uint32Array(2 * CONTROL_SEGMENTS);
  /** Ends when what was sent before is over; never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  #pending: Pending | null = null;
  /** The device has the memory of a command that nobody waits for any more. */
  #stuck = false;
  /** What commands are refused with until restart(). */
  #fault: VirtioFault | null = null;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, memory: DmaMemory, tasks: TaskQueue, device: string) {
    this.#queue = queue;
    this.#tasks = tasks;
    this.#device = device;
    this.#region = memory.allocate(ACK + 1);
    queue.onUsed = () => this.#used();
  }

  /** The device takes commands: after DRIVER_OK. */
  arm(): void {
    if (this.#queue.enableInterrupt()) this.#tasks.enqueue(() => this.#used());
  }

  /**
   * Sends a command when those before are over, and waits for the answer.
   * @param data - one or two pieces, each a descriptor of its own
   * @throws VirtioFault IO (refused), TIMED_OUT, or what broke the queue
   */
  command(type: number, command: number, ...data: readonly Uint8Array[]): Promise<void> {
    const what = `control command ${type}.${command}`;
    const result = this.#last.then(() => this.#run(type, command, data, what));
    this.#last = result.catch(() => {});
    return result;
  }

  async #run(
    type: number,
    command: number,
    data: readonly Uint8Array[],
    what: string,
  ): Promise<void> {
    const { bytes, address } = this.#region;
    if (this.#fault !== null) throw this.#fault;
    // The device may still read, and answer to, what it has.
    if (this.#stuck)
      throw this.#fail("TIMED_OUT", `${what}: the control queue still has one that timed out`);
    bytes[0] = type;
    bytes[1] = command;
    bytes[ACK] = NetControlAck.ERR;
    const segments = this.#segments;
    segments[0] = address;
    segments[1] = HEADER;
    let n = 2;
    let at = DATA;
    for (const piece of data) {
      if (at + piece.length > ACK) throw this.#fail("INVALID", `${what}: too many bytes`);
      bytes.set(piece, at);
      segments[n] = address + at;
      segments[n + 1] = piece.length;
      n += 2;
      at += piece.length;
    }
    segments[n] = address + ACK;
    segments[n + 1] = 1;
    const error = this.#queue.enqueue(0, segments, 0, n >> 1, 1);
    if (error !== 0)
      throw this.#queue.broken ?? this.#fail("IO", `${what}: not enqueued, errno ${-error}`);
    const fault = await new Promise<VirtioFault | null>((resolve) => {
      const late = this.#tasks.callout(TIMEOUT_MS, () => {
        // An interrupt may have been lost.
        this.#used();
        if (this.#pending === null) return;
        this.#pending = null;
        this.#stuck = true;
        resolve(this.#fail("TIMED_OUT", `${what}: no answer after ${TIMEOUT_MS} ms`));
      });
      const over = (fault: VirtioFault | null): void => {
        this.#pending = null;
        late.stop();
        resolve(fault);
      };
      this.#pending = { over };
      this.#queue.notify();
    });
    if (fault !== null) throw fault;
    const ack = bytes[ACK] as number;
    if (ack !== NetControlAck.OK) throw this.#fail("IO", `${what} failed: status ${ack}`);
  }

  #used(): void {
    // The ring may be gone.
    if (this.#fault !== null) return;
    do {
      while (this.#queue.dequeue() >= 0) {
        this.#stuck = false;
        this.#pending?.over(null);
      }
    } while (this.#queue.enableInterrupt());
  }

  /** The queue is broken, or the device is being reset: whoever waits is told, and whoever comes before restart(). */
  fail(fault: VirtioFault): void {
    this.#fault = fault;
    this.#pending?.over(fault);
  }

  /** The device was reset and has nothing any more. */
  restart(): void {
    this.#stuck = false;
    this.#fault = null;
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#region.free();
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#device, clause: "virtio 1.4 §5.1.9.5" });
  }
}

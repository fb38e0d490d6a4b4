// The control queue of a SCSI host: task management, and asynchronous notifications (virtio 1.4 §5.6.6.2).
import {
  type Callout,
  type DmaMemory,
  type DmaRegion,
  type ScsiAddress,
  type TaskQueue,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  ScsiAnAnswer,
  ScsiAnRequest,
  ScsiControl,
  ScsiControlResponse,
  ScsiTmf,
  ScsiTmfRequest,
} from "@virtio/core/scsi";
import { putAddress } from "./address.js";

/** How long an answer is waited for, milliseconds. */
export const CONTROL_MS = 5000;
/** Bytes between two slots, and of a request: the answer lies in the second half. */
const STRIDE = 64;
const ANSWER_AT = 32;
/** Most requests at a time. */
const SLOTS_MAX = 16;
/** What no device answers. */
const UNANSWERED = 0xff;

/** What the queue needs of its adapter. */
export interface ControlQueueOptions {
  /** `vtscsi0` */
  readonly adapter: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** The legacy interface: used lengths say nothing (§5.6.6.0.1). */
  readonly legacy: boolean;
  /** See Virtqueue. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** A request that is waited for. */
interface Waiting {
  readonly answerSize: number;
  readonly late: Callout;
  readonly settle: (fault: VirtioFault | null) => void;
}

/** An answer: the response, and of AN requests the notifications. */
interface Answer {
  readonly response: number;
  readonly events: number;
}

/** Asks, and waits with a bound. */
export class ControlQueue {
  readonly #queue: Virtqueue;
  readonly #options: ControlQueueOptions;
  readonly #region: DmaRegion;
  readonly #words: DataView;
  /** Slots that the device does not have. */
  #free: number[] = [];
  readonly #count: number;
  readonly #waiting = new Map<number, Waiting>();
  /** Why nothing can be asked; null: it can. */
  #fault: VirtioFault | null = null;
  #stopped = false;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, options: ControlQueueOptions) {
    this.#queue = queue;
    this.#options = options;
    // Two descriptors each: this queue has no indirect tables, as in FreeBSD.
    this.#count = Math.max(1, Math.min(queue.size >>> 1, SLOTS_MAX));
    this.#region = options.memory.allocate(this.#count * STRIDE, STRIDE);
    this.#words = new DataView(options.memory.buffer, this.#region.offset, this.#count * STRIDE);
    this.#reset();
    queue.onUsed = () => this.#completions();
    queue.onBroken = (fault) => {
      if (queue.broken === fault) options.onBroken(fault);
    };
  }

  #reset(): void {
    this.#free = Array.from({ length: this.#count }, (_, slot) => slot);
  }

  get stranded(): boolean {
    return this.#queue.broken?.code === "CLOSED" && this.#queue.used > 0;
  }

  arm(): void {
    if (this.#queue.enableInterrupt()) this.#options.tasks.enqueue(() => this.#completions());
  }

  stop(): void {
    this.#stopped = true;
  }

  /**
   * A task management function.
   * @param tag - of ABORT_TASK and QUERY_TASK: the id of the command, low word and high word
   * @returns FUNCTION_COMPLETE, FUNCTION_SUCCEEDED, FUNCTION_REJECTED
   * @throws VirtioFault TIMED_OUT, BUSY, CLOSED (no such target or unit), UNSUPPORTED (rejected), IO, DEVICE_MISBEHAVED
   */
  async manage(
    subtype: ScsiTmf,
    address: ScsiAddress,
    tag: readonly [low: number, high: number] = [0, 0],
  ): Promise<ScsiControlResponse> {
    const { response } = await this.#ask(ScsiTmfRequest.SIZE, 1, (at) => {
      this.#words.setUint32(at + ScsiTmfRequest.TYPE, ScsiControl.TMF, true);
      this.#words.setUint32(at + ScsiTmfRequest.SUBTYPE, subtype, true);
      this.#address(at + ScsiTmfRequest.LUN, address);
      this.#words.setUint32(at + ScsiTmfRequest.ID, tag[0], true);
      this.#words.setUint32(at + ScsiTmfRequest.ID + 4, tag[1], true);
    });
    if (
      response !== ScsiControlResponse.FUNCTION_COMPLETE &&
      response !== ScsiControlResponse.FUNCTION_SUCCEEDED
    )
      throw this.#refused(ScsiTmf[subtype], response);
    return response;
  }

  /**
   * Asks which asynchronous notifications there are, or subscribes to some.
   * @returns of `events` (ScsiAsyncEvent, a mask) those that there are
   * @throws VirtioFault as manage()
   */
  async notifications(
    type: ScsiControl.AN_QUERY | ScsiControl.AN_SUBSCRIBE,
    address: ScsiAddress,
    events: number,
  ): Promise<number> {
    const answer = await this.#ask(ScsiAnRequest.SIZE, ScsiAnAnswer.SIZE, (at) => {
      this.#words.setUint32(at + ScsiAnRequest.TYPE, type, true);
      this.#address(at + ScsiAnRequest.LUN, address);
      this.#words.setUint32(at + ScsiAnRequest.EVENT_REQUESTED, events, true);
    });
    if (answer.response !== ScsiControlResponse.FUNCTION_COMPLETE)
      throw this.#refused(ScsiControl[type], answer.response);
    return (answer.events & events) >>> 0;
  }

  #address(at: number, { target, lun }: ScsiAddress): void {
    putAddress(this.#region.bytes, at, target, lun);
  }

  /** Asks one thing: one readable segment, one writable. */
  async #ask(size: number, answerSize: number, write: (at: number) => void): Promise<Answer> {
    if (this.#fault !== null) throw this.#fault;
    const slot = this.#free.pop();
    if (slot === undefined)
      throw this.#fail("BUSY", `${this.#count} control requests wait for an answer`);
    const at = slot * STRIDE;
    write(at);
    const responseAt = at + ANSWER_AT + answerSize - 1;
    this.#words.setUint8(responseAt, UNANSWERED);
    const { address } = this.#region;
    const segments = Uint32Array.of(address + at, size, address + at + ANSWER_AT, answerSize);
    const error = this.#queue.enqueue(slot, segments, 0, 1, 1);
    if (error !== 0) {
      this.#free.push(slot);
      throw this.#queue.broken ?? this.#fail("BUSY", `control request refused: errno ${-error}`);
    }
    const fault = await new Promise<VirtioFault | null>((settle) => {
      const late = this.#options.tasks.callout(CONTROL_MS, () => {
        // The slot stays with the device.
        this.#waiting.delete(slot);
        settle(this.#fail("TIMED_OUT", `no answer to a control request after ${CONTROL_MS} ms`));
      });
      this.#waiting.set(slot, { answerSize, late, settle });
      this.#queue.notify();
    });
    if (fault !== null) throw fault;
    const answer = {
      response: this.#words.getUint8(responseAt),
      events: answerSize === ScsiAnAnswer.SIZE ? this.#words.getUint32(at + ANSWER_AT, true) : 0,
    };
    this.#free.push(slot);
    return answer;
  }

  #completions(): void {
    const queue = this.#queue;
    if (this.#stopped) return;
    queue.disableInterrupt();
    for (let taken = 0; taken < this.#count; taken++) {
      const slot = queue.dequeue();
      if (slot < 0) break;
      this.#complete(slot, queue.usedLength);
    }
    this.arm();
  }

  #complete(slot: number, used: number): void {
    const waiting = this.#waiting.get(slot);
    if (waiting === undefined) {
      // Nobody waits for it any more.
      this.#free.push(slot);
      return;
    }
    this.#waiting.delete(slot);
    waiting.late.stop();
    if (this.#options.legacy || used >= waiting.answerSize) {
      waiting.settle(null);
      return;
    }
    this.#free.push(slot);
    const what = `the device wrote ${used} of ${waiting.answerSize} bytes of its answer`;
    waiting.settle(this.#fail("IO", what));
  }

  /** What waits fails, and so does what is asked from now on; the device keeps what it has. */
  fail(fault: VirtioFault): void {
    this.#fault = fault;
    for (const [slot, { late, settle }] of [...this.#waiting]) {
      this.#waiting.delete(slot);
      late.stop();
      settle(fault);
    }
  }

  /** The device was reset and holds nothing any more. What waited for it has failed. */
  restart(): void {
    this.#reset();
    this.#fault = null;
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#region.free();
  }

  #refused(what: string, response: number): VirtioFault {
    const name = ScsiControlResponse[response] ?? String(response);
    switch (response) {
      case ScsiControlResponse.FUNCTION_REJECTED:
        return this.#fail("UNSUPPORTED", `${what}: ${name}`);
      case ScsiControlResponse.BAD_TARGET:
      case ScsiControlResponse.INCORRECT_LUN:
      case ScsiControlResponse.TRANSPORT_FAILURE:
      case ScsiControlResponse.NEXUS_FAILURE:
        return this.#fail("CLOSED", `${what}: ${name}`);
      case ScsiControlResponse.BUSY:
        return this.#fail("BUSY", `${what}: ${name}`);
      default:
        return this.#fail("IO", `${what}: response ${name}`);
    }
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#options.adapter });
  }
}

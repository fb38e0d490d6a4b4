// The control queues (virtio 1.4 §5.3.6.2): messages from the device one after the other, and messages to it.
//
// The device decides how many messages come, and some want an answer. They are taken also when there is no room for answers: else each
// side could wait for the other. What waits is bounded, because of each port the last word alone is sent.
//
// QEMU loses a message for which there is no buffer. So the device has all of them back before it is told anything that it answers, and
// is told no more at a time than its answers have room for.
import { type DmaMemory, type TaskQueue, VirtioFault, type Virtqueue } from "@virtio/core";
import { CONSOLE_CONTROL_SIZE, ConsoleControl, type ConsoleEvent } from "@virtio/core/console";
import { type Gate, Slots } from "./slots.js";

/** Bytes of a buffer for a message from the device: the longest name is what fits. FreeBSD's. */
const MESSAGE_SIZE = 128;
const RECEIVE_SLOTS = 64;
const TRANSMIT_SLOTS = 16;
/** What a device says of a port that was taken, at most: CONSOLE_PORT, PORT_NAME, RESIZE, PORT_OPEN. */
const ANSWERS_MAX = 4;
/** Messages that are taken before other tasks get their turn. */
const BATCH = 64;
/** Looks at both queues before other tasks get their turn. */
const ROUNDS = 8;
/** Longest that the device may take for a message. */
const TIMEOUT_MS = 5000;

/** A message from the device. */
export interface ControlMessage {
  readonly id: number;
  readonly event: number;
  readonly value: number;
  /** A copy of what follows: columns and rows, or a name. */
  readonly data: Uint8Array;
}

/** A message to the device. */
interface Outgoing {
  readonly id: number;
  readonly event: ConsoleEvent;
  value: number;
  /** Who waits: the device took it, or why it did not. */
  readonly over: ((fault: VirtioFault | null) => void)[];
}

/** What the queues need of their device. */
export interface ControlQueueOptions {
  readonly receive: Virtqueue;
  readonly transmit: Virtqueue;
  readonly memory: DmaMemory;
  readonly gate: Gate;
  readonly tasks: TaskQueue;
  /** `vtcon0` */
  readonly device: string;
  readonly onMessage: (message: ControlMessage) => void;
  /** A message of less than a header. */
  readonly onShort: (length: number) => void;
}

export class ControlQueue {
  readonly #options: ControlQueueOptions;
  readonly #receive: Slots;
  readonly #transmit: Slots;
  /** What is in each slot of `#transmit` that the device has. */
  readonly #sent: (Outgoing | null)[];
  /** What is not sent yet: of each port one message of each event. */
  #waiting: Outgoing[] = [];
  /** Most messages that the device has at a time. */
  readonly #most: number;
  /** Messages are being taken: answers wait until the device has its buffers back. */
  #serving = false;
  #settled: (() => void)[] = [];
  #scheduled = false;
  /** Null: messages are taken and sent. */
  #stopped: VirtioFault | null;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(options: ControlQueueOptions) {
    const { receive, transmit, memory, gate } = options;
    this.#options = options;
    this.#receive = new Slots(receive, memory, gate, MESSAGE_SIZE, RECEIVE_SLOTS);
    try {
      this.#transmit = new Slots(transmit, memory, gate, CONSOLE_CONTROL_SIZE, TRANSMIT_SLOTS);
    } catch (error) {
      this.#receive.free();
      throw error;
    }
    this.#most = Math.max(
      1,
      Math.min(this.#transmit.count, Math.floor(this.#receive.count / ANSWERS_MAX)),
    );
    this.#sent = Array.from({ length: this.#most }, () => null);
    this.#stopped = new VirtioFault("BUSY", "the device does not run yet", {
      device: options.device,
    });
    receive.onUsed = () => this.#serve();
    transmit.onUsed = () => this.#serve();
  }

  /** Gives the device buffers for its messages. After DRIVER_OK. */
  start(): void {
    this.#stopped = null;
    this.resume();
  }

  /** Gives the device what it could not be given while it was suspended. */
  resume(): void {
    for (let slot = 0; slot < this.#receive.count; slot++)
      if (this.#receive.held[slot] === 0 && this.#receive.enqueueWritable(slot) !== 0) break;
    this.#receive.notify();
    this.#serve();
  }

  /** Nothing is taken or sent until start(): whoever waits is told. */
  stop(fault: VirtioFault): void {
    this.#stopped = fault;
    this.#forget(fault);
  }

  /** The device was reset: it has no buffers any more, and what it was told, or was to be told, it will be told anew. */
  reclaim(): void {
    this.#receive.reclaim();
    this.#transmit.reclaim();
    this.#forget(null);
  }

  #forget(fault: VirtioFault | null): void {
    const all = [...this.#sent, ...this.#waiting];
    this.#sent.fill(null);
    this.#waiting = [];
    end(all, fault);
    this.#settle();
  }

  get stranded(): boolean {
    return this.#receive.stranded || this.#transmit.stranded;
  }

  /** Gives its memory back. Only when no device can reach it any more. */
  free(): void {
    this.#receive.free();
    this.#transmit.free();
  }

  // ── to the device ───────────────────────────────────────────────────────────

  /** Sends a message behind those before it, and waits until the device took it. @throws VirtioFault TIMED_OUT, or what stopped the queues */
  send(id: number, event: ConsoleEvent, value: number): Promise<void> {
    const { tasks, device } = this.#options;
    return new Promise((resolve, reject) => {
      const late = tasks.callout(TIMEOUT_MS, () => {
        // An interrupt may have been lost.
        this.#reap();
        const what = `control message ${event} for port ${id} is not taken after ${TIMEOUT_MS} ms`;
        reject(new VirtioFault("TIMED_OUT", what, { device, clause: "virtio 1.4 §5.3.6.2" }));
      });
      const over = (fault: VirtioFault | null): void => {
        late.stop();
        if (fault === null) resolve();
        else reject(fault);
      };
      this.#post(id, event, value, over);
    });
  }

  /** Sends a message for which nobody waits. */
  answer(id: number, event: ConsoleEvent, value: number): void {
    this.#post(id, event, value);
  }

  /** A port is gone: what waits to be said of it is not said. */
  drop(id: number): void {
    const dropped = this.#waiting.filter((message) => message.id === id);
    this.#waiting = this.#waiting.filter((message) => message.id !== id);
    end(dropped, null);
  }

  #post(id: number, event: ConsoleEvent, value: number, over?: Outgoing["over"][number]): void {
    if (this.#stopped !== null) {
      over?.(this.#stopped);
      return;
    }
    const last = this.#waiting.find((each) => each.id === id && each.event === event);
    if (last !== undefined) {
      last.value = value;
      if (over !== undefined) last.over.push(over);
      return;
    }
    this.#waiting.push({ id, event, value, over: over === undefined ? [] : [over] });
    if (!this.#serving) this.#flush();
  }

  /** Sends what waits, as far as there is room. */
  #flush(): void {
    let sent = 0;
    for (let [next] = this.#waiting; next !== undefined; [next] = this.#waiting) {
      if (!this.#enqueue(next)) break;
      this.#waiting.shift();
      sent += 1;
    }
    if (sent > 0) this.#transmit.notify();
  }

  /** False: there is no slot, or the queue takes none. */
  #enqueue(message: Outgoing): boolean {
    const slot = this.#sent.indexOf(null);
    if (slot < 0 || this.#transmit.held[slot] !== 0) return false;
    const { id, event, value } = message;
    const { bytes } = this.#transmit;
    const words = new DataView(bytes.buffer, bytes.byteOffset + slot * CONSOLE_CONTROL_SIZE);
    words.setUint32(ConsoleControl.ID, id, true);
    words.setUint16(ConsoleControl.EVENT, event, true);
    words.setUint16(ConsoleControl.VALUE, value, true);
    if (this.#transmit.enqueueReadable(slot, CONSOLE_CONTROL_SIZE) !== 0) return false;
    this.#sent[slot] = message;
    return true;
  }

  /** Takes back what the device has taken. */
  #reap(): void {
    for (let slot = this.#transmit.dequeue(); slot >= 0; slot = this.#transmit.dequeue()) {
      const message = this.#sent[slot] ?? null;
      this.#sent[slot] = null;
      end([message], null);
    }
  }

  // ── from the device ─────────────────────────────────────────────────────────

  /** Handles what there is, what comes meanwhile included, and asks for an interrupt for what comes then. */
  #serve(): void {
    for (let round = 0; this.#stopped === null; round++) {
      // First what was sent: what the device said before it took that is then in the ring.
      this.#reap();
      const all = this.#takeAll();
      this.#flush();
      if (round === ROUNDS || !all) {
        this.#later();
        return;
      }
      const sent = this.#transmit.queue.enableInterrupt();
      const came = this.#receive.queue.enableInterrupt();
      if (sent || came) continue;
      if (this.#idle) this.#settle();
      return;
    }
  }

  /** Handles the messages that there are, and gives their buffers back; false: there may be more. */
  #takeAll(): boolean {
    let taken = 0;
    this.#serving = true;
    while (taken < BATCH && this.#take()) taken += 1;
    this.#serving = false;
    if (taken > 0) this.#receive.notify();
    return taken < BATCH;
  }

  #later(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#options.tasks.enqueue(() => {
      this.#scheduled = false;
      this.#serve();
    });
  }

  /** Handles one message; false: there is none. */
  #take(): boolean {
    if (this.#stopped !== null) return false;
    const slot = this.#receive.dequeue();
    if (slot < 0) return false;
    const { usedLength } = this.#receive.queue;
    // What the device may still be writing to is read once.
    const message = (this.#receive.views[slot] as Uint8Array).slice(0, usedLength);
    this.#receive.enqueueWritable(slot);
    if (usedLength < CONSOLE_CONTROL_SIZE) {
      this.#options.onShort(usedLength);
      return true;
    }
    const words = new DataView(message.buffer);
    this.#options.onMessage({
      id: words.getUint32(ConsoleControl.ID, true),
      event: words.getUint16(ConsoleControl.EVENT, true),
      value: words.getUint16(ConsoleControl.VALUE, true),
      data: message.subarray(CONSOLE_CONTROL_SIZE),
    });
    return true;
  }

  // ── when all is said ────────────────────────────────────────────────────────

  get #idle(): boolean {
    return this.#waiting.length === 0 && this.#sent.every((message) => message === null);
  }

  #settle(): void {
    for (const settled of this.#settled.splice(0)) settled();
  }

  /**
   * Waits until the device has taken every message, and what it said before is handled: its answers, where it gives them at once.
   * No longer than for a message.
   */
  settled(): Promise<void> {
    return new Promise((resolve) => {
      const late = this.#options.tasks.callout(TIMEOUT_MS, resolve);
      this.#settled.push(() => {
        late.stop();
        resolve();
      });
      // It may be so already.
      this.#later();
    });
  }
}

function end(messages: readonly (Outgoing | null)[], fault: VirtioFault | null): void {
  for (const message of messages) for (const over of message?.over ?? []) over(fault);
}

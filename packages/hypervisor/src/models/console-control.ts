// The control queues of a console device with MULTIPORT (virtio 1.4 §5.3.6.2): which ports there are, and who has them open.
import {
  CONSOLE_CONTROL_SIZE,
  CONSOLE_RESIZE_SIZE,
  ConsoleEvent,
  ConsoleFeature,
  ConsoleQueue,
  ConsoleControl as Field,
} from "@virtio/core/console";
import type { DeviceQueue } from "@virtio/ring";
import type { ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";
import type { ConsoleRules } from "../rules/console-rules.js";
import type { ConsoleHost, ConsoleHostPort } from "./console-host.js";
import type { ConsoleLies } from "./console-lies.js";

/** Messages that are taken in one task. */
const BATCH = 64;

/** A message of the driver's. */
export interface ConsoleMessage {
  readonly id: number;
  readonly event: number;
  readonly value: number;
}

/** What the protocol needs. */
export interface ConsoleControlOptions {
  readonly host: ModelHost;
  readonly back: ConsoleHost;
  readonly lies: ConsoleLies;
  readonly rules: ConsoleRules | null;
  /** The driver opened or closed a port. */
  readonly opened: (port: ConsoleHostPort) => void;
}

export class ConsoleControl {
  readonly #options: ConsoleControlOptions;
  /** Messages that wait for a buffer of the driver's. While there are any, the driver's own wait too. */
  #outbox: Uint8Array[] = [];
  /** The driver said DEVICE_READY. */
  #ready = false;
  /** Ports that the driver was told of, by number: the value says whether it took them. */
  readonly #told = new Map<number, boolean>();
  #epoch = 0;

  constructor(options: ConsoleControlOptions) {
    this.#options = options;
  }

  /** In the device's lane, unless it is reset before. */
  later(task: () => void): void {
    const epoch = this.#epoch;
    this.#options.host.tasks.enqueue(() => {
      if (epoch === this.#epoch) task();
    });
  }

  get #multiport(): boolean {
    return hasBit(this.#options.host.features, ConsoleFeature.MULTIPORT);
  }

  // ── to the driver ───────────────────────────────────────────────────────────

  /** A port is there (§5.3.6.2.1: none of a number that the driver was told of). */
  add(port: ConsoleHostPort): void {
    if (!this.#ready || port.gone || this.#told.has(port.id)) return;
    this.#told.set(port.id, false);
    this.#options.rules?.added(port.id);
    this.#send(port.id, ConsoleEvent.DEVICE_ADD, 1);
  }

  /** A port is gone (§5.3.6.2.1: only one that the driver was told of). */
  remove(port: ConsoleHostPort): void {
    port.setGuestOpen(false);
    if (!this.#told.delete(port.id)) return;
    this.#options.rules?.removed(port.id);
    this.#send(port.id, ConsoleEvent.DEVICE_REMOVE, 1);
  }

  /** Something of a port that the driver took. */
  event(port: ConsoleHostPort, event: ConsoleEvent, value: number, data?: Uint8Array): void {
    if (!port.gone && this.#told.get(port.id) === true) this.#send(port.id, event, value, data);
  }

  /** Columns and rows of a console. */
  resized(port: ConsoleHostPort): void {
    if (port.size === null) return;
    const words = new DataView(new ArrayBuffer(CONSOLE_RESIZE_SIZE));
    words.setUint16(0, port.size.cols, true);
    words.setUint16(2, port.size.rows, true);
    this.event(port, ConsoleEvent.RESIZE, 0, new Uint8Array(words.buffer));
  }

  #send(id: number, event: ConsoleEvent, value: number, data: Uint8Array = new Uint8Array()): void {
    const message = new Uint8Array(CONSOLE_CONTROL_SIZE + data.length);
    const words = new DataView(message.buffer);
    words.setUint32(Field.ID, id, true);
    words.setUint16(Field.EVENT, event, true);
    words.setUint16(Field.VALUE, value, true);
    message.set(data, CONSOLE_CONTROL_SIZE);
    this.say(message);
  }

  /** Sends a message as it is. */
  say(message: Uint8Array): void {
    if (!this.#multiport) return;
    this.#outbox.push(message);
    this.flush();
  }

  /** Messages go into the driver's buffers, one each, as long as there are any. */
  flush(): void {
    const { host, rules, lies } = this.#options;
    const queue = host.queue(ConsoleQueue.CONTROL_RECEIVE);
    if (queue === null || lies.looks?.(queue.index) === false) return;
    let used = 0;
    for (let [message] = this.#outbox; message !== undefined; [message] = this.#outbox) {
      const chain = queue.take() ?? (queue.enableNotify() ? queue.take() : null);
      if (chain === null) {
        if (lies.forgetful === true) this.#outbox = [];
        break;
      }
      host.taken(queue, chain);
      rules?.receiveChain(chain, queue.index);
      this.#outbox.shift();
      const written = chain.write(0, message);
      queue.put(chain, lies.usedLength?.(queue.index, written) ?? written);
      used += 1;
    }
    if (used > 0) host.used(queue.index);
    // The driver's own messages waited for this.
    if (used > 0 && this.#outbox.length === 0) this.later(() => this.listen());
  }

  // ── from the driver ─────────────────────────────────────────────────────────

  /** Takes the driver's messages. What they lead to is said before they are given back. */
  listen(): void {
    const { host, lies } = this.#options;
    const queue = host.queue(ConsoleQueue.CONTROL_TRANSMIT);
    if (queue === null || lies.looks?.(queue.index) === false) return;
    let used = 0;
    while (this.#outbox.length === 0 && used < BATCH && this.#take(queue)) used += 1;
    if (used > 0) host.used(queue.index);
    if (used === BATCH) this.later(() => this.listen());
  }

  #take(queue: DeviceQueue): boolean {
    const { host, rules, lies } = this.#options;
    const chain = queue.take() ?? (queue.enableNotify() ? queue.take() : null);
    if (chain === null) return false;
    host.taken(queue, chain);
    rules?.transmitChain(chain, queue.index);
    rules?.controlChain(chain);
    const words = new DataView(new ArrayBuffer(CONSOLE_CONTROL_SIZE));
    if (chain.read(0, new Uint8Array(words.buffer)) === CONSOLE_CONTROL_SIZE)
      this.#process({
        id: words.getUint32(Field.ID, true),
        event: words.getUint16(Field.EVENT, true),
        value: words.getUint16(Field.VALUE, true),
      });
    queue.put(chain, lies.usedLength?.(queue.index, 0) ?? 0);
    return true;
  }

  #process(message: ConsoleMessage): void {
    const { back, rules, opened } = this.#options;
    const { id, event, value } = message;
    rules?.message(message);
    if (event === ConsoleEvent.DEVICE_READY) {
      this.#ready = value === 1;
      for (const port of back.ports) this.add(port);
      return;
    }
    const port = back.ports.find((each) => each.id === id);
    if (port === undefined || !this.#told.has(id)) return;
    if (event === ConsoleEvent.PORT_READY) {
      this.#told.set(id, value === 1);
      this.#introduce(port);
    } else if (event === ConsoleEvent.PORT_OPEN) {
      port.setGuestOpen(value === 1);
      opened(port);
    }
  }

  /** All there is to say of a port that the driver took. */
  #introduce(port: ConsoleHostPort): void {
    if (port.console && this.#told.get(port.id) === true) {
      this.#options.rules?.nominated(port.id);
      this.event(port, ConsoleEvent.CONSOLE_PORT, 1);
    }
    // In UTF-8, without a NUL.
    if (port.name !== "")
      this.event(port, ConsoleEvent.PORT_NAME, 1, new TextEncoder().encode(port.name));
    this.resized(port);
    if (port.opened) this.event(port, ConsoleEvent.PORT_OPEN, 1);
  }

  /** As after a reset. */
  reset(): void {
    this.#epoch += 1;
    this.#outbox = [];
    this.#ready = false;
    this.#told.clear();
  }
}

// Rules that a console device sees in its queues: virtio 1.4 §5.3.6.
import { ReservedFeature } from "@virtio/core";
import { CONSOLE_CONTROL_SIZE, ConsoleControl, ConsoleEvent } from "@virtio/core/console";
import type { DeviceChain } from "@virtio/ring";
import { hasBit } from "../feature-words.js";
import type { ConsoleMessage } from "../models/console-control.js";
import type { RuleBook } from "./rule-book.js";

/** Watches the driver of one console. */
export class ConsoleRules {
  readonly #book: RuleBook;
  readonly #device: string;
  /** Words of what the driver accepted. */
  readonly #features: ArrayLike<number>;
  /** The driver said that it is ready, or that it is not. */
  #ready = false;
  /** What the driver was told, in order. */
  #said = 0;
  /** By port: when it was named to the driver. */
  readonly #added = new Map<number, number>();
  /** By port: when it was nominated a console, which the driver has not answered. */
  readonly #nominated = new Map<number, number>();
  /** The last of what the driver was told that it has answered: it takes messages in order. */
  #answered = 0;

  constructor(book: RuleBook, device: string, features: ArrayLike<number>) {
    this.#book = book;
    this.#device = device;
    this.#features = features;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#device, what);
  }

  /** The device took a buffer of a receive queue. */
  receiveChain({ readableLength }: DeviceChain, queue: number): void {
    this.#check(
      "CONSOLE-OP-1",
      readableLength === 0,
      () => `${readableLength} readable bytes in receive queue ${queue}`,
    );
  }

  /** The device took a buffer of a transmit queue. */
  transmitChain({ writableLength }: DeviceChain, queue: number): void {
    this.#check(
      "CONSOLE-OP-2",
      writableLength === 0,
      () => `${writableLength} writable bytes in transmit queue ${queue}`,
    );
  }

  /** The device took a control message, of a legacy driver perhaps (§5.3.6.3, §5.3.6.4). */
  controlChain(chain: DeviceChain): void {
    if (hasBit(this.#features, ReservedFeature.VERSION_1)) return;
    const words = new DataView(new ArrayBuffer(CONSOLE_CONTROL_SIZE));
    chain.read(0, new Uint8Array(words.buffer));
    const known = (event: number): boolean => ConsoleEvent[event] !== undefined;
    const swapped = words.getUint16(ConsoleControl.EVENT, false);
    this.#check(
      "CONSOLE-LEGACY-1",
      known(words.getUint16(ConsoleControl.EVENT, true)) || !known(swapped),
      () => `event ${swapped} is in the other byte order`,
    );
    if (hasBit(this.#features, ReservedFeature.ANY_LAYOUT)) return;
    this.#check(
      "CONSOLE-FRAME-LEGACY-1",
      chain.segments === 1,
      () => `a control message in ${chain.segments} descriptors (no ANY_LAYOUT)`,
    );
  }

  /** The driver is told of a port. */
  added(id: number): void {
    this.#said += 1;
    this.#added.set(id, this.#said);
  }

  /** The driver is told that a port is a console. */
  nominated(id: number): void {
    this.#said += 1;
    this.#nominated.set(id, this.#said);
  }

  /** The driver is told that a port is gone: nothing is due of it any more. */
  removed(id: number): void {
    this.#added.delete(id);
    this.#nominated.delete(id);
  }

  /** What the driver says. Before it takes effect. */
  message({ id, event, value }: ConsoleMessage): void {
    if (event === ConsoleEvent.DEVICE_READY) this.#ready = true;
    this.#check("CONSOLE-MP-1", this.#ready, () => `event ${event} before DEVICE_READY`);
    if (event === ConsoleEvent.PORT_READY)
      this.#answered = Math.max(this.#answered, this.#added.get(id) ?? 0);
    const nominated = this.#nominated.get(id);
    if (event !== ConsoleEvent.PORT_OPEN || nominated === undefined) return;
    this.#nominated.delete(id);
    this.#answered = Math.max(this.#answered, nominated);
    this.#check("CONSOLE-MP-3", true, () => "");
    this.#check("CONSOLE-MP-4", value === 1, () => `console port ${id} opened with ${value}`);
  }

  /** The driver is over: it left unanswered what it read, for it answered what came later. */
  reset(): void {
    for (const [id, said] of this.#nominated)
      if (said < this.#answered)
        this.#book.broken("CONSOLE-MP-3", this.#device, `console port ${id} was never opened`);
    this.#ready = false;
    this.#said = 0;
    this.#answered = 0;
    this.#added.clear();
    this.#nominated.clear();
  }
}

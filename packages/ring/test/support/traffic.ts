// Chains of drawn shapes through both ends of a queue, every payload byte of them checked.
import { Errno } from "@virtio/core";
import type { Draw } from "./random.js";
import { type Chain, cookies, type DeviceEnd, type DriverEnd, type Rig, serve } from "./rig.js";
import type { Checker } from "./ring-checker.js";
import { CheckedRig } from "./ring-checker.js";

/** Bytes of payload memory for one cookie. */
const SLOT = 256;
const SLOTS = 256;

/** What goes into byte `i` of the request of `cookie`, and what comes back for it. */
const asked = (cookie: number, i: number): number => (cookie * 31 + i * 7 + 1) & 0xff;
const answered = (asked: number): number => asked ^ 0xa5;

interface Sent {
  readonly slot: number;
  readonly readableBytes: number;
  /** Writable segments: offset in the payload memory, length. */
  readonly writable: readonly (readonly [number, number])[];
  readonly writableBytes: number;
}

/** Two ends that exchange chains; each `step` of an end is one thing it can do. */
export class Traffic {
  readonly checked: CheckedRig;
  readonly #rig: Rig;
  readonly #draw: Draw;
  readonly #segments = new Uint32Array(64);
  readonly #slots: number[] = [];
  /** Sent and not come back, by cookie. */
  readonly outstanding = new Map<number, Sent>();
  /** Lengths that the device wrote, in the order in which it gave the chains back. */
  readonly #given: { readonly cookie: number; readonly written: number }[] = [];
  /** Taken and not given back. */
  readonly held: Chain[] = [];
  driver: DriverEnd;
  device: DeviceEnd;
  sent = 0;
  returned = 0;
  /** Cookies in the order in which chains were made available: what an in-order device must follow. */
  readonly order: number[] = [];
  readonly #payload = new Uint8Array(SLOT);

  constructor(rig: Rig, draw: Draw) {
    this.#rig = rig;
    this.#draw = draw;
    this.checked = new CheckedRig(rig);
    this.driver = rig.driver;
    this.device = rig.device;
    for (let slot = 0; slot < SLOTS; slot++) this.#slots.push(slot);
  }

  get checker(): Checker {
    return this.checked.checker;
  }

  /** Enqueues one chain of a drawn shape; false when there is no room for it. */
  send(): boolean {
    const draw = this.#draw;
    const slot = this.#slots.pop();
    if (slot === undefined) return false;
    const { maxSegments } = this.#rig;
    const total = 1 + draw(Math.min(maxSegments, this.#rig.mode.size));
    const readable = 1 + draw(total);
    const cookie = this.sent;
    const writable: [number, number][] = [];
    let at = slot * SLOT;
    let readableBytes = 0;
    let writableBytes = 0;
    for (let k = 0; k < total; k++) {
      const length = 1 + draw(16);
      this.#segments[2 * k] = this.#rig.data.address + at;
      this.#segments[2 * k + 1] = length;
      if (k < readable) {
        for (let i = 0; i < length; i++)
          this.#rig.data.bytes[at + i] = asked(cookie, readableBytes + i);
        readableBytes += length;
      } else {
        writable.push([at, length]);
        writableBytes += length;
      }
      at += length + draw(4);
    }
    const error = this.driver.enqueue(cookie, this.#segments, 0, readable, total - readable);
    if (error !== 0) {
      this.#slots.push(slot);
      if (error !== -Errno.ENOSPC && error !== -Errno.EMSGSIZE)
        throw new Error(`enqueue returned ${error}`);
      return false;
    }
    this.outstanding.set(cookie, { slot, readableBytes, writable, writableBytes });
    this.order.push(cookie);
    this.sent += 1;
    return true;
  }

  notify(): void {
    this.checked.notify(this.driver);
  }

  /** Takes one chain, if there is one. */
  take(): boolean {
    this.checked.checker.look(true);
    const chain = this.device.take();
    if (chain !== null) this.held.push(chain);
    return chain !== null;
  }

  /** Answers one held chain: with IN_ORDER the first, else a drawn one. */
  give(): boolean {
    const at = this.#rig.mode.inOrder || this.held.length === 0 ? 0 : this.#draw(this.held.length);
    const [chain] = this.held.splice(at, 1);
    if (chain === undefined) return false;
    const [cookie = -1] = this.order.splice(at, 1);
    const sent = this.outstanding.get(cookie);
    if (sent === undefined) throw new Error(`chain of cookie ${cookie} was never sent`);
    if (
      chain.readableLength !== sent.readableBytes ||
      chain.writableLength !== sent.writableBytes ||
      chain.read(0, this.#payload) !== sent.readableBytes
    )
      throw new Error(
        `cookie ${cookie} arrived as ${chain.readableLength}+${chain.writableLength}`,
      );
    for (let i = 0; i < sent.readableBytes; i++)
      if (this.#payload[i] !== asked(cookie, i)) throw new Error(`cookie ${cookie}: byte ${i}`);
    const written = this.#draw(sent.writableBytes + 1);
    for (let i = 0; i < written; i++) this.#payload[i] = answered(asked(cookie, i));
    if (chain.write(0, this.#payload.subarray(0, written)) !== written)
      throw new Error(`cookie ${cookie}: ${written} bytes had no room`);
    this.#given.push({ cookie, written });
    this.checked.give(chain, written, this.device);
    return true;
  }

  /** Takes back every chain that is used. */
  receive(): number {
    let n = 0;
    for (;;) {
      const cookie = this.checked.dequeue(this.driver);
      if (cookie < 0) return n;
      n += 1;
      const sent = this.outstanding.get(cookie);
      const next = this.#given.shift();
      if (sent === undefined || next === undefined || next.cookie !== cookie)
        throw new Error(`cookie ${cookie} came back, expected ${next?.cookie}`);
      this.#arrived(cookie, sent, next.written);
    }
  }

  #arrived(cookie: number, sent: Sent, written: number): void {
    if (this.driver.usedLength !== written)
      throw new Error(`cookie ${cookie}: length ${this.driver.usedLength}, written ${written}`);
    let i = 0;
    for (const [at, length] of sent.writable)
      for (let k = 0; k < length && i < written; k++, i++)
        if (this.#rig.data.bytes[at + k] !== answered(asked(cookie, i)))
          throw new Error(`cookie ${cookie}: answer byte ${i}`);
    this.outstanding.delete(cookie);
    this.#slots.push(sent.slot);
    this.returned += 1;
  }

  /** One drawn step of either end. */
  step(): void {
    const action = this.#draw(8);
    if (action < 3) this.send();
    else if (action === 3) this.notify();
    else if (action < 6) this.take();
    else if (action === 6) {
      this.give();
      if (this.#draw(2) === 0) this.device.wantsInterrupt();
    } else this.receive();
  }

  /** Steps until `count` chains came back, then until none is outstanding. */
  run(count: number): void {
    for (let steps = 0; this.returned < count; steps++) {
      if (steps > 1000 * count) throw new Error(`${this.returned} of ${count} chains came back`);
      this.step();
    }
    this.settle();
  }

  /** Goes on with another driver's end. */
  moveDriver(to: DriverEnd): void {
    this.driver = to;
  }

  /** Goes on with another device's end, which holds `held`. */
  moveDevice(to: DeviceEnd, held: readonly Chain[]): void {
    this.device = to;
    this.held.splice(0, this.held.length, ...held);
  }

  /** Brings every outstanding chain back. */
  settle(): void {
    this.notify();
    while (this.take() || this.give());
    this.device.wantsInterrupt();
    this.receive();
    if (this.outstanding.size > 0) throw new Error(`${this.outstanding.size} chains are lost`);
  }
}

/** Brings the ring's indices, and its wrap counters, to a few chains before they begin anew: 2^16 - 3 chains, in batches. */
export function runToWrap(rig: Rig): void {
  const { driver, device, data } = rig;
  const batch = Math.min(driver.size, 512);
  let left = 0x1_0000 - 3;
  while (left > 0) {
    const n = Math.min(batch, left);
    for (let i = 0; i < n; i++) driver.enqueueWritable(i, data.address, 16);
    driver.notify();
    serve(device);
    device.wantsInterrupt();
    if (cookies(driver).length !== n) throw new Error("chains were lost on the way");
    left -= n;
    rig.begun += n;
  }
}

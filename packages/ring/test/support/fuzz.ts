// Random steps of both ends of a queue and of a liar who changes any shared byte at any time. Whatever happens: nothing is thrown,
// no byte outside the ring is written, every cookie comes back at most once, and what is broken stays broken.
import { Errno, GuestRegions } from "@virtio/core";
import type { Draw } from "./random.js";
import {
  type Chain,
  type DeviceEnd,
  type DriverEnd,
  type Mode,
  nameOf,
  type Rig,
  rig,
} from "./rig.js";

/** What a run saw. */
export interface FuzzFigures {
  steps: number;
  lies: number;
  chains: number;
  /** Times the driver's end, or the device's, found a lie. */
  driverBroken: number;
  deviceBroken: number;
  /** What was found, by the first words of the fault. */
  readonly found: Map<string, number>;
}

const FILL = 0x5a;
const TEMPLATES = 2;

/** One queue under random steps. */
class Subject {
  readonly #rig: Rig;
  readonly #draw: Draw;
  readonly #figures: FuzzFigures;
  readonly #mode: Mode;
  readonly #liarRate: number;
  readonly #bytes: Uint8Array;
  readonly #segments = new Uint32Array(16);
  /** Writable bytes by cookie of what is outstanding. */
  readonly #outstanding = new Map<number, number>();
  readonly #held: Chain[] = [];
  readonly #driver: DriverEnd;
  readonly #guest: GuestRegions;
  #device: DeviceEnd;
  #template: ReturnType<DriverEnd["template"]> | null = null;
  #cookie = TEMPLATES;
  /** Steps since a chain came back. */
  #quiet = 0;

  constructor(mode: Mode, legacy: boolean, draw: Draw, figures: FuzzFigures) {
    const r = rig({ ...mode, legacy, memory: 0x1_8000 });
    this.#rig = r;
    this.#mode = mode;
    this.#draw = draw;
    this.#figures = figures;
    this.#liarRate = [16, 64, 512][draw(3)] ?? 64;
    this.#bytes = new Uint8Array(r.buffer);
    this.#driver = r.driver;
    r.data.bytes.fill(FILL);
    const region = (address: number, length: number) => ({
      address,
      length,
      bytes: this.#bytes.subarray(address - r.memory.base, address - r.memory.base + length),
    });
    // Guest memory is a part of the payload memory, and the rings: what lies around belongs to somebody else.
    this.#guest = new GuestRegions([
      region(r.data.address + 0x1000, 0x8000),
      region(r.memory.base + r.place.descriptors, 0x1_8000 - r.place.descriptors - 0x400),
    ]);
    this.#device = r.makeDevice(r.driver.addresses, this.#guest);
    this.#arm();
  }

  #arm(): void {
    const { format, inOrder, size } = this.#mode;
    this.#template = null;
    if ((format === "split" && inOrder) || size < 2 * TEMPLATES) return;
    this.#template = this.#driver.template(TEMPLATES, 1, 1);
    for (let slot = 0; slot < TEMPLATES; slot++)
      for (let k = 0; k < 2; k++)
        this.#template.set(slot, k, this.#rig.data.address + 0x1000 + 64 * slot + 32 * k, 32);
  }

  step(): void {
    const draw = this.#draw;
    if (draw(this.#liarRate) === 0) this.#lie();
    switch (draw(16)) {
      case 0:
      case 1:
      case 2:
        this.#enqueue();
        break;
      case 3:
        this.#driver.publish();
        break;
      case 4:
        this.#driver.notify();
        break;
      case 5:
      case 6:
      case 7:
        this.#dequeue();
        break;
      case 8:
        this.#arms();
        break;
      case 9:
      case 10:
      case 11:
        this.#take();
        break;
      case 12:
      case 13:
        this.#give();
        break;
      case 14:
        this.#device.wantsInterrupt();
        break;
      default:
        if (draw(2) === 0) this.#device.enableNotify();
        else this.#device.disableNotify();
    }
    // A lie can also hide a chain for ever: a reset is what a driver has against that.
    this.#quiet += 1;
    if (this.#driver.broken !== null || this.#device.broken || this.#quiet > 500) this.#mend();
  }

  #arms(): void {
    const which = this.#draw(5);
    if (which === 0) this.#driver.enableInterrupt();
    else if (which === 1) this.#driver.disableInterrupt();
    else
      this.#driver.postponeInterrupt((["short", "long", "emptied"] as const)[which - 2] ?? "short");
  }

  #enqueue(): void {
    const draw = this.#draw;
    const driver = this.#driver;
    const address = this.#rig.data.address + 0x1000 + draw(0x4000);
    let error: number;
    let cookie = this.#cookie;
    let writable = 0;
    const kind = draw(4);
    if (kind === 0 && this.#template !== null) {
      cookie = draw(TEMPLATES);
      if (this.#outstanding.has(cookie)) return;
      writable = 32;
      error = this.#template.enqueue(cookie);
    } else if (kind === 1) {
      writable = 1 + draw(64);
      error = driver.enqueueWritable(cookie, address, writable);
    } else if (kind === 2) error = driver.enqueueReadable(cookie, address, 1 + draw(64));
    else {
      const total = 1 + draw(6);
      const readable = draw(total + 1);
      for (let k = 0; k < total; k++) {
        const length = draw(64) === 0 ? 0 : 1 + draw(64);
        this.#segments[2 * k] = address + 64 * k;
        this.#segments[2 * k + 1] = length;
        if (k >= readable) writable += length;
      }
      error = driver.enqueue(cookie, this.#segments, 0, readable, total - readable);
    }
    if (error === 0) {
      this.#outstanding.set(cookie, writable);
      if (cookie >= TEMPLATES) this.#cookie += 1;
    } else if (![-Errno.ENOSPC, -Errno.EMSGSIZE, -Errno.EINVAL].includes(error))
      this.#fail(`enqueue returned ${error}`);
  }

  #dequeue(): void {
    const cookie = this.#driver.dequeue();
    if (cookie < 0) return;
    const writable = this.#outstanding.get(cookie);
    if (writable === undefined) this.#fail(`cookie ${cookie} came back and was not outstanding`);
    else if (this.#driver.usedLength > writable || this.#driver.usedLength < 0)
      this.#fail(`cookie ${cookie}: ${this.#driver.usedLength} of ${writable} bytes`);
    this.#outstanding.delete(cookie);
    this.#figures.chains += 1;
    this.#quiet = 0;
  }

  #take(): void {
    const chain = this.#device.take();
    if (chain === null) return;
    if (chain.segments > 2 * this.#mode.size) this.#fail(`a chain of ${chain.segments} segments`);
    const at = this.#draw(64);
    for (const pieces of [chain.readablePieces(at, 1 << 20), chain.writablePieces(at, 1 << 20)])
      for (const { byteOffset, length } of pieces)
        if (this.#guest.locate(this.#rig.memory.base + byteOffset, 0, length) < 0)
          this.#fail(`a segment of ${length} bytes at ${byteOffset} is outside guest memory`);
    this.#held.push(chain);
  }

  #give(): void {
    if (this.#held.length === 0) return;
    const [chain] = this.#held.splice(this.#mode.inOrder ? 0 : this.#draw(this.#held.length), 1);
    if (chain !== undefined) this.#device.give(chain, this.#draw(chain.writableLength + 1));
  }

  /** Changes a byte, a half word or a word of the ring. */
  #lie(): void {
    const draw = this.#draw;
    const { place } = this.#rig;
    const width = [1, 2, 4][draw(3)] ?? 1;
    const area = draw(4);
    const begin = [place.descriptors, place.driver, place.device, place.descriptors][area] ?? 0;
    const length =
      area === 3
        ? 0x400
        : ([place.size * 16, 4 + 2 * place.size + 2, 6 + 8 * place.size][area] ?? 4);
    const at = Math.floor((begin + draw(length)) / width) * width;
    const bytes = this.#bytes;
    const was = (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8);
    const values = [
      was + 1,
      was - 1,
      was ^ (1 << draw(16)),
      0,
      0xffff_ffff,
      place.size,
      draw(place.size),
      draw(0x1_0000),
    ];
    const value = values[draw(values.length)] ?? 0;
    for (let k = 0; k < width; k++) bytes[at + k] = value >>> (8 * k);
    this.#figures.lies += 1;
  }

  /** An end found a lie: it stays broken, all comes back once by drain(), and both begin anew. */
  #mend(): void {
    const driver = this.#driver;
    const { tasks, driverFaults, deviceFaults } = this.#rig;
    const { broken } = driver;
    tasks.run();
    if (broken !== null) {
      this.#figures.driverBroken += 1;
      this.#note(broken.message);
      const dead =
        driver.enqueueReadable(1, this.#rig.data.address, 1) === -Errno.EIO &&
        driver.dequeue() === -1 &&
        !driver.enableInterrupt() &&
        !driver.postponeInterrupt("short");
      driver.notify();
      tasks.run();
      if (
        !dead ||
        driver.broken !== broken ||
        driverFaults.length !== 1 ||
        driverFaults[0] !== broken
      )
        this.#fail(`what is broken does not stay so: ${broken.message}`);
    }
    if (this.#device.broken) {
      this.#figures.deviceBroken += 1;
      this.#note(deviceFaults[0]?.message ?? "?");
      if (this.#device.take() !== null || this.#device.enableNotify() || deviceFaults.length !== 1)
        this.#fail(`the device's end does not stay broken: ${deviceFaults.length} faults`);
    }
    for (let cookie = driver.drain(); cookie >= 0; cookie = driver.drain())
      if (!this.#outstanding.delete(cookie))
        this.#fail(`drain() gave cookie ${cookie}, not outstanding`);
    if (this.#outstanding.size > 0) this.#fail(`${this.#outstanding.size} chains are lost`);
    this.check();
    driver.restart();
    this.#quiet = 0;
    this.#held.length = 0;
    driverFaults.length = 0;
    deviceFaults.length = 0;
    this.#rig.doorbells.length = 0;
    this.#device = this.#rig.makeDevice(driver.addresses, this.#guest);
    this.#arm();
  }

  #note(message: string): void {
    const kind = message.replace(/0x[0-9a-f:]+|\d+/g, "N").replace(/ \(queue.*/, "");
    this.#figures.found.set(kind, (this.#figures.found.get(kind) ?? 0) + 1);
  }

  /** Nothing but the ring was written. */
  check(): void {
    const { data } = this.#rig;
    const words = new Uint32Array(this.#rig.buffer, data.offset, data.length >>> 2);
    for (const word of words) if (word !== 0x5a5a_5a5a) this.#fail("payload memory was written");
  }

  #fail(what: string): never {
    throw new Error(`${what} (${nameOf(this.#mode)}, step ${this.#figures.steps})`);
  }
}

/** Runs `steps` steps over queues of every mode in turn. */
export function fuzz(
  steps: number,
  draw: Draw,
  progress: (figures: FuzzFigures) => void,
): FuzzFigures {
  const figures: FuzzFigures = {
    steps: 0,
    lies: 0,
    chains: 0,
    driverBroken: 0,
    deviceBroken: 0,
    found: new Map(),
  };
  const life = Math.max(1000, Math.min(100_000, steps / 64));
  while (figures.steps < steps) {
    const format = draw(2) === 0 ? "split" : "packed";
    const sizes = format === "split" ? [1, 2, 4, 8, 32] : [1, 2, 3, 7, 8, 32];
    const mode: Mode = {
      format,
      size: sizes[draw(sizes.length)] ?? 8,
      indirect: draw(2) === 0,
      eventIdx: draw(2) === 0,
      inOrder: draw(2) === 0,
    };
    const subject = new Subject(mode, draw(2) === 0, draw, figures);
    const end = Math.min(steps, figures.steps + life);
    for (; figures.steps < end; figures.steps++) subject.step();
    subject.check();
    progress(figures);
  }
  return figures;
}

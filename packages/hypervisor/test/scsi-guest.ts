// A guest without a driver for a SCSI host: it drives one function by its registers and split rings, right or wrong.
import { DeviceStatus, type IoRegion, ReservedFeature } from "@virtio/core";
import { CommonConfig, LegacyRegister, PciCommand, PciRegister } from "@virtio/core/pci";
import {
  ScsiAnswer,
  ScsiConfig,
  type ScsiConfigField,
  ScsiControl,
  ScsiEventBuffer,
  ScsiFeature,
  ScsiQueue,
  ScsiRequest,
  ScsiSense,
  type ScsiTmf,
} from "@virtio/core/scsi";
import {
  type EmbeddedMachine,
  type EmbeddedScsiOptions,
  embedded,
  RuleBook,
  ScsiPort,
  scsi,
} from "../src/index.js";
import { BareQueue, type Part } from "./net-guest.js";

/** Where the structures lie in BAR 4. */
const DEVICE_AT = 0x2000;
const NOTIFY_AT = 0x3000;
const STRUCTURES_BAR = 4;
const LEGACY_CONFIG_AT = 20;

/** How a guest is made. */
export interface ScsiGuestOptions extends EmbeddedScsiOptions {
  /** Virtual time. */
  readonly seed?: number;
  /** Whether the machine has a rule book. Default true. */
  readonly watched?: boolean;
  /** Features to accept besides VERSION_1; default: all that is offered of the device type. */
  readonly accept?: readonly (ScsiFeature | ReservedFeature)[];
  /** Default true. */
  readonly start?: boolean;
}

/** A command; what is left out is 0, or the device's default. */
export interface Command {
  readonly cdb: readonly number[];
  readonly out?: Uint8Array;
  /** Bytes of room for data-in. */
  readonly into?: number;
  readonly target?: number;
  readonly lun?: number;
  /** In place of target and LUN. */
  readonly field?: readonly number[];
  readonly id?: number;
  /** Low word 0x12345678, say, and high word. */
  readonly idHigh?: number;
  readonly attribute?: number;
  readonly prio?: number;
  readonly crn?: number;
  readonly queue?: number;
  readonly cdbSize?: number;
  readonly senseSize?: number;
  /** All that can be read in one piece, and all that can be written. Default true. */
  readonly whole?: boolean;
}

/** What came back. */
export interface Answer {
  readonly response: number;
  readonly status: number;
  readonly senseLength: number;
  readonly residual: number;
  /** `key/asc` in hexadecimal: `5/2100`. */
  readonly sense: string;
  readonly data: Uint8Array;
  /** used.len */
  readonly used: number;
}

/** An event that came. */
export interface Event {
  readonly event: number;
  readonly lun: readonly number[];
  readonly reason: number;
  readonly used: number;
}

/** The `lun` field of a unit, flat. */
export const fieldOf = (target: number, lun: number): number[] => [
  1,
  target,
  0x40 | (lun >>> 8),
  lun & 0xff,
  0,
  0,
  0,
  0,
];

/** A whole life of one SCSI host, by hand. */
export class ScsiGuest {
  readonly rules = new RuleBook();
  readonly port: ScsiPort;
  machine!: EmbeddedMachine;
  #io!: IoRegion;
  queues: BareQueue[] = [];
  readonly #legacy: boolean;
  /** By request: bytes of sense data, and parts of its chain that can be read. */
  readonly #submitted = new Map<string, readonly [senseSize: number, readable: number]>();
  readonly #answers = new Map<string, Answer>();
  /** `queue/head` in the order of their coming back. */
  readonly order: string[] = [];
  #requestQueues = 1;
  #nextId = 1;

  constructor(port: ScsiPort, legacy: boolean) {
    this.port = port;
    this.#legacy = legacy;
  }

  static async start(options: ScsiGuestOptions = {}): Promise<ScsiGuest> {
    const { accept, start = true, seed, watched = true, port = new ScsiPort(), ...spec } = options;
    const guest = new ScsiGuest(port, spec.legacy === "on");
    const medium =
      spec.luns === undefined && spec.backend === undefined && spec.file === undefined
        ? { size: 1 << 20 }
        : {};
    await guest.#boot({ queueSize: 64, ...medium, ...spec, port }, watched, seed);
    if (start) await guest.run(accept);
    return guest;
  }

  async #boot(options: EmbeddedScsiOptions, watched: boolean, seed?: number): Promise<void> {
    this.#requestQueues = options.queues ?? 1;
    this.machine = await embedded({
      ...(seed === undefined ? {} : { seed }),
      devices: [scsi(options)],
      ...(watched ? { rules: this.rules } : {}),
      memory: 4 << 20,
    });
    const [fn] = await this.machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no function");
    const bar = this.#legacy ? 0 : STRUCTURES_BAR;
    await fn.write(PciRegister.BAR0 + bar * 4, 4, this.#legacy ? 0xc000 : 0xe000_0000);
    this.#io = await fn.mapBar(bar);
    await fn.write(
      PciRegister.COMMAND,
      2,
      PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER,
    );
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  status(value: number): Promise<void> {
    return this.#legacy
      ? this.#io.write(LegacyRegister.DEVICE_STATUS, 1, value)
      : this.#io.write(CommonConfig.DEVICE_STATUS, 1, value);
  }

  readStatus(): Promise<number> {
    return this.#io.read(
      this.#legacy ? LegacyRegister.DEVICE_STATUS : CommonConfig.DEVICE_STATUS,
      1,
    );
  }

  async reset(): Promise<void> {
    await this.status(0);
    for (let turn = 0; (await this.readStatus()) !== 0; turn++) {
      if (turn === 1000) throw new Error("the reset never ends");
      await this.settle();
    }
  }

  /** Words of what is offered. */
  async offered(): Promise<number[]> {
    if (this.#legacy) return [await this.#io.read(LegacyRegister.DEVICE_FEATURES, 4)];
    const words: number[] = [];
    for (let i = 0; i < 2; i++) {
      await this.#io.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, i);
      words.push(await this.#io.read(CommonConfig.DEVICE_FEATURE, 4));
    }
    return words;
  }

  async negotiate(accept?: readonly (ScsiFeature | ReservedFeature)[]): Promise<void> {
    await this.reset();
    await this.status(DeviceStatus.ACKNOWLEDGE);
    await this.status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER);
    const [low = 0] = await this.offered();
    const all = Object.values(ScsiFeature).filter((bit) => typeof bit === "number");
    const words = [0, 1];
    for (const bit of accept ?? all.filter((one) => (low & (1 << one)) !== 0))
      words[bit >>> 5] = ((words[bit >>> 5] ?? 0) | (1 << (bit & 31))) >>> 0;
    if (!this.#legacy && accept === undefined)
      words[1] = ((words[1] ?? 0) | (1 << (ReservedFeature.RING_RESET - 32))) >>> 0;
    if (this.#legacy) {
      await this.#io.write(LegacyRegister.DRIVER_FEATURES, 4, words[0] ?? 0);
      return;
    }
    for (const [i, word] of words.entries()) {
      await this.#io.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, i);
      await this.#io.write(CommonConfig.DRIVER_FEATURE, 4, word);
    }
    await this.status(11);
    if (((await this.readStatus()) & DeviceStatus.FEATURES_OK) === 0)
      throw new Error("the device did not agree");
  }

  async enable(index: number): Promise<void> {
    const io = this.#io;
    if (this.#legacy) {
      await io.write(LegacyRegister.QUEUE_SELECT, 2, index);
      const size = await io.read(LegacyRegister.QUEUE_SIZE, 2);
      const queue = new BareQueue(this.machine.memory, size, true);
      this.queues[index] = queue;
      await io.write(LegacyRegister.QUEUE_ADDRESS, 4, queue.ring.address / 4096);
      return;
    }
    await io.write(CommonConfig.QUEUE_SELECT, 2, index);
    const size = await io.read(CommonConfig.QUEUE_SIZE, 2);
    const queue = new BareQueue(this.machine.memory, size, false);
    this.queues[index] = queue;
    const { address } = queue.ring;
    for (const [at, value] of [
      [CommonConfig.QUEUE_DESC, address],
      [CommonConfig.QUEUE_DRIVER, address + queue.driverAt],
      [CommonConfig.QUEUE_DEVICE, address + queue.deviceAt(false)],
    ] as const) {
      await io.write(at, 4, value);
      await io.write(at + 4, 4, 0);
    }
    await io.write(CommonConfig.QUEUE_ENABLE, 2, 1);
  }

  async resetQueue(index: number): Promise<void> {
    await this.#io.write(CommonConfig.QUEUE_SELECT, 2, index);
    await this.#io.write(CommonConfig.QUEUE_RESET, 2, 1);
    for (let turn = 0; (await this.#io.read(CommonConfig.QUEUE_RESET, 2)) !== 0; turn++) {
      if (turn === 1000) throw new Error("the reset never ends");
      await this.settle();
    }
  }

  /** Everything up to DRIVER_OK. @param buffers - event buffers that are posted before */
  async run(accept?: readonly (ScsiFeature | ReservedFeature)[], buffers = 4): Promise<void> {
    await this.negotiate(accept);
    for (let index = 0; index < ScsiQueue.REQUEST + this.#requestQueues; index++)
      await this.enable(index);
    for (let n = 0; n < buffers; n++) this.queue(ScsiQueue.EVENT).offer([ScsiEventBuffer.SIZE]);
    await this.status(this.#legacy ? 7 : 15);
    await this.settle();
  }

  queue(index: number): BareQueue {
    const queue = this.queues[index];
    if (queue === undefined) throw new Error(`no queue ${index}`);
    return queue;
  }

  ring(index: number): Promise<void> {
    return this.#legacy
      ? this.#io.write(LegacyRegister.QUEUE_NOTIFY, 2, index)
      : this.#io.write(NOTIFY_AT + index * 4, 2, index);
  }

  field(name: ScsiConfigField): Promise<number> {
    const [offset, width] = ScsiConfig[name];
    return this.#io.read(
      (this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset,
      width as 1 | 2 | 4,
    );
  }

  writeConfig(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    return this.#io.write((this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset, width, value);
  }

  // ── commands ────────────────────────────────────────────────────────────────

  /** Makes a request available, without a doorbell; returns what names it. */
  submit(command: Command): string {
    const { cdb, out = new Uint8Array(0), into = 0, target = 0, lun = 0 } = command;
    const { queue = ScsiQueue.REQUEST, cdbSize = 32, senseSize = 96, whole = true } = command;
    const { id = this.#nextId++, idHigh = 0 } = command;
    const request = new Uint8Array(ScsiRequest.CDB + cdbSize);
    const words = new DataView(request.buffer);
    request.set(command.field ?? fieldOf(target, lun), ScsiRequest.LUN);
    words.setUint32(ScsiRequest.ID, id, true);
    words.setUint32(ScsiRequest.ID + 4, idHigh, true);
    request[ScsiRequest.TASK_ATTR] = command.attribute ?? 0;
    request[ScsiRequest.PRIO] = command.prio ?? 0;
    request[ScsiRequest.CRN] = command.crn ?? 0;
    request.set(cdb, ScsiRequest.CDB);
    const answerSize = ScsiAnswer.SENSE + senseSize;
    const head: Part[] = whole
      ? [Uint8Array.from([...request, ...out]), answerSize + into]
      : [request, ...(out.length > 0 ? [out] : []), answerSize, ...(into > 0 ? [into] : [])];
    const key = `${queue}/${this.queue(queue).offer(head)}`;
    const readable = head.filter((part) => typeof part !== "number").length;
    this.#submitted.set(key, [senseSize, readable]);
    return key;
  }

  /** Looks at what came back. */
  collect(): void {
    for (let index = ScsiQueue.REQUEST as number; index < this.queues.length; index++)
      for (const { head, regions, length } of this.queue(index).used()) {
        const key = `${index}/${head}`;
        const [senseSize, readable] = this.#submitted.get(key) ?? [0, 0];
        const written = regions.slice(readable).flatMap(({ bytes }) => [...bytes]);
        this.order.push(key);
        this.#answers.set(key, answerOf(Uint8Array.from(written), senseSize, length));
      }
  }

  /** Whether it came back. */
  came(key: string): boolean {
    this.collect();
    return this.#answers.has(key);
  }

  /** The answer to a request, when it comes. */
  async answer(key: string): Promise<Answer> {
    await this.until(() => this.came(key));
    const answer = this.#answers.get(key);
    if (answer === undefined) throw new Error(`${key} did not come back`);
    this.#answers.delete(key);
    return answer;
  }

  /** A request and its answer. */
  async command(command: Command): Promise<Answer> {
    const key = this.submit(command);
    await this.ring(command.queue ?? ScsiQueue.REQUEST);
    return this.answer(key);
  }

  /** The same, after what the unit has to say first. */
  async attended(command: Command): Promise<Answer> {
    for (let n = 0; n < 8; n++) {
      const answer = await this.command(command);
      if (!answer.sense.startsWith("6/")) return answer;
    }
    throw new Error("the unit never stops to ask for attention");
  }

  // ── control and events ──────────────────────────────────────────────────────

  /** A chain of the control queue: its writable bytes when it comes back. */
  async control(parts: readonly Part[]): Promise<{ answer: Uint8Array; used: number }> {
    const queue = this.queue(ScsiQueue.CONTROL);
    queue.offer(parts);
    await this.ring(ScsiQueue.CONTROL);
    let found = queue.used()[0];
    await this.until(() => {
      found ??= queue.used()[0];
      return found !== undefined;
    });
    const { regions = [], length = 0 } = found ?? {};
    return { answer: regions.at(-1)?.bytes ?? new Uint8Array(0), used: length };
  }

  /** A task management function: its response. */
  async manage(
    subtype: ScsiTmf,
    { target = 0, lun = 0, id = 0, idHigh = 0, field = fieldOf(target, lun) } = {},
  ): Promise<number> {
    const { answer, used } = await this.control([tmf(subtype, field, id, idHigh), 1]);
    if (used !== 1) throw new Error(`used.len ${used} of a TMF`);
    return answer[0] ?? -1;
  }

  /** AN_QUERY or AN_SUBSCRIBE: event_actual and response. */
  async notifications(
    type: ScsiControl,
    events: number,
    target = 0,
    lun = 0,
  ): Promise<[actual: number, response: number]> {
    const request = new DataView(new ArrayBuffer(16));
    request.setUint32(0, type, true);
    new Uint8Array(request.buffer).set(fieldOf(target, lun), 4);
    request.setUint32(12, events, true);
    const { answer } = await this.control([new Uint8Array(request.buffer), 5]);
    return [new DataView(answer.buffer, answer.byteOffset).getUint32(0, true), answer[4] ?? -1];
  }

  /** Events that came since the last look. */
  async events(): Promise<Event[]> {
    await this.settle();
    await this.settle();
    return this.queue(ScsiQueue.EVENT)
      .used()
      .map(({ regions, length }) => {
        const bytes = regions[0]?.bytes ?? new Uint8Array(16);
        const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
        const whole = bytes.length >= ScsiEventBuffer.SIZE;
        return {
          event: words.getUint32(ScsiEventBuffer.EVENT, true),
          lun: [...bytes.subarray(ScsiEventBuffer.LUN, ScsiEventBuffer.LUN + 4)],
          reason: whole ? words.getUint32(ScsiEventBuffer.REASON, true) : 0,
          used: length,
        };
      });
  }

  /** Supplies event buffers. */
  async post(count: number, size: number = ScsiEventBuffer.SIZE): Promise<void> {
    for (let n = 0; n < count; n++) this.queue(ScsiQueue.EVENT).offer([size]);
    await this.ring(ScsiQueue.EVENT);
    await this.settle();
  }

  // ── waiting ─────────────────────────────────────────────────────────────────

  async until(done: () => boolean): Promise<void> {
    for (let turn = 0; !done(); turn++) {
      if (turn === 1000) throw new Error("it never came");
      await this.settle();
    }
  }

  async settle(): Promise<void> {
    await new Promise<void>((resolve) => this.machine.tasks.enqueue(resolve));
    await new Promise<void>((resolve) => setImmediate(resolve));
  }

  /** Rules of SCSI that it broke: it looks for no capabilities, and so breaks others. */
  clauses(): string[] {
    const clauses = new Set(this.rules.violations.map(({ clause }) => clause));
    return [...clauses].filter((clause) => clause.startsWith("SCSI-"));
  }
}

/** A task management function's readable part. */
export function tmf(subtype: number, field: readonly number[], id: number, idHigh = 0): Uint8Array {
  const request = new DataView(new ArrayBuffer(24));
  request.setUint32(0, ScsiControl.TMF, true);
  request.setUint32(4, subtype, true);
  new Uint8Array(request.buffer).set(field, 8);
  request.setUint32(16, id, true);
  request.setUint32(20, idHigh, true);
  return new Uint8Array(request.buffer);
}

function answerOf(bytes: Uint8Array, senseSize: number, used: number): Answer {
  const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const sense = bytes.subarray(ScsiAnswer.SENSE, ScsiAnswer.SENSE + senseSize);
  const key = (sense[ScsiSense.KEY] ?? 0) & 0xf;
  const asc = ((sense[ScsiSense.ASC] ?? 0) << 8) | (sense[ScsiSense.ASCQ] ?? 0);
  const senseLength = words.getUint32(ScsiAnswer.SENSE_LEN, true);
  return {
    response: words.getUint8(ScsiAnswer.RESPONSE),
    status: words.getUint8(ScsiAnswer.STATUS),
    senseLength,
    residual: words.getUint32(ScsiAnswer.RESIDUAL, true),
    sense: senseLength === 0 ? "" : `${key.toString(16)}/${asc.toString(16).padStart(4, "0")}`,
    data: bytes.subarray(ScsiAnswer.SENSE + senseSize),
    used,
  };
}

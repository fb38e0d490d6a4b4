// A guest without a driver for a SCSI host: it drives one function by its registers and split rings, right or wrong.
import { ReservedFeature } from "@virtio/core";
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
import { type EmbeddedScsiOptions, ScsiPort, scsi } from "../src/index.js";
import { featureWords, type Part, QueueGuest } from "./hand-guest.js";

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
export class ScsiGuest extends QueueGuest {
  readonly port: ScsiPort;
  protected override readonly language = "SCSI-";
  /** By request: bytes of sense data, and parts of its chain that can be read. */
  readonly #submitted = new Map<string, readonly [senseSize: number, readable: number]>();
  readonly #answers = new Map<string, Answer>();
  /** `queue/head` in the order of their coming back. */
  readonly order: string[] = [];
  readonly #requestQueues: number;
  #nextId = 1;

  constructor(port: ScsiPort, legacy: boolean, requestQueues: number) {
    super(legacy);
    this.port = port;
    this.#requestQueues = requestQueues;
  }

  static async start(options: ScsiGuestOptions = {}): Promise<ScsiGuest> {
    const { accept, start = true, seed, watched = true, port = new ScsiPort(), ...spec } = options;
    const guest = new ScsiGuest(port, spec.legacy === "on", spec.queues ?? 1);
    const medium =
      spec.luns === undefined && spec.backend === undefined && spec.file === undefined
        ? { size: 1 << 20 }
        : {};
    await guest.boot(scsi({ queueSize: 64, ...medium, ...spec, port }), { seed, watched });
    if (start) await guest.run(accept);
    return guest;
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  async negotiate(accept?: readonly (ScsiFeature | ReservedFeature)[]): Promise<void> {
    await this.acknowledge();
    const [low = 0] = await this.offered();
    const all = Object.values(ScsiFeature).filter((bit) => typeof bit === "number");
    const reserved = this.onLegacy ? [] : [ReservedFeature.RING_RESET];
    const bits = accept ?? [...all.filter((bit) => (low & (1 << bit)) !== 0), ...reserved];
    if (!(await this.agree(featureWords(bits)))) throw new Error("the device did not agree");
  }

  /** Everything up to DRIVER_OK. @param buffers - event buffers that are posted before */
  async run(accept?: readonly (ScsiFeature | ReservedFeature)[], buffers = 4): Promise<void> {
    await this.negotiate(accept);
    for (let index = 0; index < ScsiQueue.REQUEST + this.#requestQueues; index++)
      await this.enable(index);
    for (let n = 0; n < buffers; n++) this.queue(ScsiQueue.EVENT).offer([ScsiEventBuffer.SIZE]);
    await this.driverOk();
    await this.settle();
  }

  field(name: ScsiConfigField): Promise<number> {
    const [offset, width] = ScsiConfig[name];
    return this.readConfig(offset, width as 1 | 2 | 4);
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

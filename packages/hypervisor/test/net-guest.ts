// A guest without a driver for a network device: it drives one function by its registers and split rings, right or wrong.
import { ReservedFeature, type TaskQueue } from "@virtio/core";
import { NetConfig, type NetConfigField, NetFeature } from "@virtio/core/net";
import { CommonConfig } from "@virtio/core/pci";
import { type EmbeddedNetOptions, type NetBackend, NetPort, net } from "../src/index.js";
import { featureWords, QueueGuest } from "./hand-guest.js";

/** Where it lies in BAR 4. */
const ISR_AT = 0x1000;

/** A wire in the test's hands. */
export class TestWire implements NetBackend {
  readonly maxFrame: number;
  readonly sent: Uint8Array[] = [];
  /** Frames that it takes before it has no room. */
  credit = Number.POSITIVE_INFINITY;
  /** How often the device said that it has room again. */
  rooms = 0;
  onLinkChange: (() => void) | null = null;
  onReady: (() => void) | null = null;
  deliver: NetBackend["deliver"] = null;
  tasks: TaskQueue | null = null;
  closed = false;
  #linkUp = true;

  constructor(maxFrame = 9234) {
    this.maxFrame = maxFrame;
  }

  get linkUp(): boolean {
    return this.#linkUp;
  }

  set linkUp(up: boolean) {
    this.#linkUp = up;
    this.onLinkChange?.();
  }

  connect(tasks: TaskQueue): void {
    this.tasks = tasks;
  }

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    if (this.credit <= 0) return false;
    this.credit -= 1;
    this.sent.push(bytes.slice(offset, offset + length));
    return true;
  }

  room(): void {
    this.rooms += 1;
  }

  /** Gives frames to the device; returns what it said to each. */
  give(...frames: readonly Uint8Array[]): boolean[] {
    return frames.map((bytes) => this.deliver?.(bytes, 0, bytes.length) ?? false);
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

/** A received frame. */
export interface Received {
  readonly header: DataView;
  readonly frame: Uint8Array;
  /** used.len of each of its buffers. */
  readonly buffers: readonly number[];
}

/** Header fields that a test sets; the others are 0. */
export interface HeaderFields {
  readonly flags?: number;
  readonly gsoType?: number;
  readonly hdrLen?: number;
  readonly gsoSize?: number;
  readonly csumStart?: number;
  readonly csumOffset?: number;
  readonly numBuffers?: number;
}

/** How a guest is made. */
export interface NetGuestOptions extends EmbeddedNetOptions {
  /** Virtual time. */
  readonly seed?: number;
  /** Features to accept besides VERSION_1; default: all that is offered of the device type. */
  readonly accept?: readonly NetFeature[];
  /** Default true. */
  readonly start?: boolean;
}

/** A whole life of one network device, by hand. */
export class NetGuest extends QueueGuest {
  readonly port = new NetPort();
  readonly wire: TestWire;
  accepted: readonly NetFeature[] = [];
  headerSize = 12;
  protected override readonly language = "NET-";
  protected override readonly turns = 4;

  constructor(wire: TestWire, legacy: boolean) {
    super(legacy);
    this.wire = wire;
  }

  static async start(options: NetGuestOptions = {}): Promise<NetGuest> {
    const { accept, start = true, seed, ...spec } = options;
    const wire = spec.backend instanceof TestWire ? spec.backend : new TestWire();
    const guest = new NetGuest(wire, spec.legacy === "on");
    const device = net({ port: guest.port, queueSize: 64, ...spec, backend: spec.backend ?? wire });
    await guest.boot(device, { seed, memory: 16 << 20 });
    if (start) await guest.run(accept);
    return guest;
  }

  async offeredFeatures(): Promise<NetFeature[]> {
    const words = await this.offered();
    const bits = Object.values(NetFeature).filter((bit) => typeof bit === "number");
    return bits.filter((bit) => ((words[bit >>> 5] ?? 0) & (1 << (bit & 31))) !== 0);
  }

  /** Up to FEATURES_OK; whether the device agreed. */
  async negotiate(
    accept?: readonly NetFeature[],
    reserved: readonly ReservedFeature[] = [ReservedFeature.RING_RESET],
  ): Promise<boolean> {
    await this.acknowledge();
    this.accepted = accept ?? (await this.offeredFeatures());
    const mergeable = this.accepted.includes(NetFeature.MRG_RXBUF);
    const legacySize = mergeable ? 12 : 10;
    const modernSize = this.accepted.includes(NetFeature.HASH_REPORT) ? 20 : 12;
    this.headerSize = this.onLegacy ? legacySize : modernSize;
    return this.agree(featureWords([...this.accepted, ...(this.onLegacy ? [] : reserved)]));
  }

  /** Everything up to DRIVER_OK. */
  async run(
    accept?: readonly NetFeature[],
    reserved: readonly ReservedFeature[] = [ReservedFeature.RING_RESET],
  ): Promise<void> {
    if (!(await this.negotiate(accept, reserved))) throw new Error("the device did not agree");
    // The legacy interface does not say: two pairs are the most that a test has there.
    const legacy = this.accepted.includes(NetFeature.MQ) ? 5 : 3;
    const count = this.onLegacy ? legacy : await this.io.read(CommonConfig.NUM_QUEUES, 2);
    for (let index = 0; index < count; index++) await this.enable(index);
    await this.driverOk();
    await this.settle();
  }

  /** A field of the configuration. */
  async field(name: NetConfigField): Promise<number> {
    const [offset, width] = NetConfig[name];
    return this.readConfig(offset, width as 1 | 2 | 4);
  }

  generation(): Promise<number> {
    return this.io.read(CommonConfig.CONFIG_GENERATION, 1);
  }

  /** Bit 0: a queue interrupted since the last read. Bit 1: the configuration changed. */
  isr(): Promise<number> {
    return this.io.read(ISR_AT, 1);
  }

  async mac(): Promise<number[]> {
    return Promise.all(Array.from({ length: 6 }, (_, i) => this.readConfig(i, 1)));
  }

  // ── traffic ─────────────────────────────────────────────────────────────────

  /** Posts receive buffers, header and frame in one piece. */
  async post(count: number, length: number, pair = 0): Promise<void> {
    for (let i = 0; i < count; i++) this.queue(2 * pair).offer([length]);
    await this.ring(2 * pair);
    await this.settle();
  }

  header(fields: HeaderFields = {}): Uint8Array {
    const header = new DataView(new ArrayBuffer(this.headerSize));
    header.setUint8(0, fields.flags ?? 0);
    header.setUint8(1, fields.gsoType ?? 0);
    header.setUint16(2, fields.hdrLen ?? 0, true);
    header.setUint16(4, fields.gsoSize ?? 0, true);
    header.setUint16(6, fields.csumStart ?? 0, true);
    header.setUint16(8, fields.csumOffset ?? 0, true);
    if (this.headerSize > 10) header.setUint16(10, fields.numBuffers ?? 0, true);
    return new Uint8Array(header.buffer);
  }

  /** Transmits frames, header and frame in one piece, and waits until the device has seen them; returns how many came back. */
  async transmit(
    frames: readonly Uint8Array[],
    fields: HeaderFields = {},
    pair = 0,
  ): Promise<number> {
    const queue = this.queue(2 * pair + 1);
    for (const frame of frames) queue.offer([Uint8Array.of(...this.header(fields), ...frame)]);
    await this.ring(2 * pair + 1);
    await this.settle();
    return queue.used().length;
  }

  /** Frames that came, by their num_buffers. */
  received(pair = 0): Received[] {
    const frames: Received[] = [];
    const used = this.queue(2 * pair).used();
    for (let first = used.shift(); first !== undefined; first = used.shift()) {
      const bytes = [...(first.regions[0]?.bytes.subarray(0, first.length) ?? [])];
      const header = new DataView(Uint8Array.from(bytes.slice(0, this.headerSize)).buffer);
      const count = this.headerSize > 10 ? header.getUint16(10, true) : 1;
      const buffers = [first.length];
      for (let i = 1; i < count; i++) {
        const more = used.shift();
        if (more === undefined) throw new Error("a frame is not whole");
        bytes.push(...(more.regions[0]?.bytes.subarray(0, more.length) ?? []));
        buffers.push(more.length);
      }
      frames.push({ header, frame: Uint8Array.from(bytes.slice(this.headerSize)), buffers });
    }
    return frames;
  }

  get controlIndex(): number {
    const several = [NetFeature.MQ, NetFeature.RSS].some((bit) => this.accepted.includes(bit));
    return several ? this.queues.length - 1 : 2;
  }

  /** A control command: its answer, and what was written before it; -1: none came. */
  async command(
    controlClass: number,
    command: number,
    data: readonly number[] = [],
    result = 0,
  ): Promise<{ ack: number; result: Uint8Array }> {
    const queue = this.queue(this.controlIndex);
    queue.offer([Uint8Array.of(controlClass, command, ...data), result + 1]);
    await this.ring(this.controlIndex);
    await this.settle();
    const [chain] = queue.used();
    const bytes = chain?.regions[1]?.bytes;
    return { ack: bytes?.[result] ?? -1, result: bytes?.slice(0, result) ?? new Uint8Array(0) };
  }

  close(): Promise<void> {
    return this.machine.close();
  }
}

export const le16 = (n: number): number[] => [n & 0xff, (n >>> 8) & 0xff];
export const le32 = (n: number): number[] => [...le16(n), ...le16(n >>> 16)];

// A guest without a driver for a network device: it drives one function by its registers and split rings, right or wrong.
import {
  DeviceStatus,
  type DmaRegion,
  type IoRegion,
  ReservedFeature,
  type TaskQueue,
} from "@virtio/core";
import { NetConfig, type NetConfigField, NetFeature } from "@virtio/core/net";
import { CommonConfig, LegacyRegister, PciCommand, PciRegister } from "@virtio/core/pci";
import {
  type EmbeddedMachine,
  type EmbeddedNetOptions,
  embedded,
  type NetBackend,
  NetPort,
  net,
  RuleBook,
} from "../src/index.js";

/** Where the structures lie in BAR 4. */
const ISR_AT = 0x1000;
const DEVICE_AT = 0x2000;
const NOTIFY_AT = 0x3000;
const STRUCTURES_BAR = 4;
const LEGACY_CONFIG_AT = 20;

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

/** One segment of a chain: its bytes, how many may be written, or which may be. */
export type Part = Uint8Array | number | DmaRegion;

/** One split ring. */
export class BareQueue {
  readonly size: number;
  readonly #memory: EmbeddedMachine["memory"];
  readonly ring: DmaRegion;
  #descriptors: Uint32Array;
  #available: Uint16Array;
  #used: Uint32Array;
  #next = 0;
  #seen = 0;
  #free: number[];
  /** By head: the regions of its chain, and its descriptors. */
  readonly #chains = new Map<number, { regions: DmaRegion[]; ids: readonly number[] }>();

  constructor(memory: EmbeddedMachine["memory"], size: number, legacy: boolean) {
    this.size = size;
    this.#memory = memory;
    this.ring = memory.allocate(16384, 4096);
    const { offset } = this.ring;
    this.#descriptors = new Uint32Array(memory.buffer, offset, size * 4);
    this.#available = new Uint16Array(memory.buffer, offset + this.driverAt, 3 + size);
    this.#used = new Uint32Array(memory.buffer, offset + this.deviceAt(legacy), 1 + 2 * size);
    this.#free = Array.from({ length: size }, (_, i) => size - 1 - i);
  }

  get driverAt(): number {
    return this.size * 16;
  }

  deviceAt(legacy: boolean): number {
    return legacy ? Math.ceil((this.size * 18 + 6) / 4096) * 4096 : 8192;
  }

  /** Makes one chain available; returns its head. */
  offer(parts: readonly Part[]): number {
    const ids = parts.map(() => this.#free.pop() ?? -1);
    const regions: DmaRegion[] = [];
    for (const [i, part] of parts.entries()) {
      const readable = part instanceof Uint8Array;
      const length = typeof part === "number" ? part : part.length;
      const own = readable || typeof part === "number";
      const region = own ? this.#memory.allocate(Math.max(length, 1), 16) : part;
      if (readable) region.bytes.set(part);
      regions.push(region);
      const last = i === parts.length - 1;
      const flags = (readable ? 0 : 2) | (last ? 0 : 1);
      const next = last ? 0 : (ids[i + 1] ?? 0);
      this.#descriptors.set(
        [region.address, 0, length, (flags | (next << 16)) >>> 0],
        (ids[i] ?? 0) * 4,
      );
    }
    const [head = -1] = ids;
    this.#chains.set(head, { regions, ids });
    this.#available[2 + (this.#next & (this.size - 1))] = head;
    this.#next = (this.#next + 1) & 0xffff;
    this.#available[1] = this.#next;
    return head;
  }

  /** Chains that came back since the last look: what was written, and used.len. */
  used(): { readonly head: number; readonly regions: DmaRegion[]; readonly length: number }[] {
    const all = [];
    for (; this.#seen !== (this.#used[0] ?? 0) >>> 16; this.#seen = (this.#seen + 1) & 0xffff) {
      const at = 1 + 2 * (this.#seen & (this.size - 1));
      const head = this.#used[at] ?? 0;
      const { regions, ids } = this.#chains.get(head) ?? { regions: [], ids: [] };
      this.#free.push(...ids);
      all.push({ head, regions, length: this.#used[at + 1] ?? 0 });
    }
    return all;
  }
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
export class NetGuest {
  readonly rules = new RuleBook();
  readonly port = new NetPort();
  readonly wire: TestWire;
  machine!: EmbeddedMachine;
  #io!: IoRegion;
  queues: BareQueue[] = [];
  accepted: readonly NetFeature[] = [];
  readonly #legacy: boolean;
  headerSize = 12;

  constructor(wire: TestWire, legacy: boolean) {
    this.wire = wire;
    this.#legacy = legacy;
  }

  static async start(options: NetGuestOptions = {}): Promise<NetGuest> {
    const { accept, start = true, seed, ...spec } = options;
    const wire = spec.backend instanceof TestWire ? spec.backend : new TestWire();
    const guest = new NetGuest(wire, spec.legacy === "on");
    await guest.#boot({ queueSize: 64, ...spec, backend: spec.backend ?? wire }, seed);
    if (start) await guest.run(accept);
    return guest;
  }

  async #boot(options: EmbeddedNetOptions, seed?: number): Promise<void> {
    this.machine = await embedded({
      ...(seed === undefined ? {} : { seed }),
      devices: [net({ port: this.port, ...options })],
      rules: this.rules,
      memory: 16 << 20,
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
    while ((await this.readStatus()) !== 0);
  }

  async offered(): Promise<NetFeature[]> {
    const words: number[] = [];
    if (this.#legacy) words.push(await this.#io.read(LegacyRegister.DEVICE_FEATURES, 4));
    else
      for (let i = 0; i < 2; i++) {
        await this.#io.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, i);
        words.push(await this.#io.read(CommonConfig.DEVICE_FEATURE, 4));
      }
    const bits = Object.values(NetFeature).filter((bit) => typeof bit === "number");
    return bits.filter((bit) => ((words[bit >>> 5] ?? 0) & (1 << (bit & 31))) !== 0);
  }

  /** Up to FEATURES_OK; whether the device agreed. */
  async negotiate(
    accept?: readonly NetFeature[],
    reserved: readonly ReservedFeature[] = [ReservedFeature.RING_RESET],
  ): Promise<boolean> {
    await this.reset();
    await this.status(DeviceStatus.ACKNOWLEDGE);
    await this.status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER);
    this.accepted = accept ?? (await this.offered());
    const words = [0, 1];
    for (const bit of [...this.accepted, ...(this.#legacy ? [] : reserved)])
      words[bit >>> 5] = ((words[bit >>> 5] ?? 0) | (1 << (bit & 31))) >>> 0;
    const mergeable = this.accepted.includes(NetFeature.MRG_RXBUF);
    const legacySize = mergeable ? 12 : 10;
    const modernSize = this.accepted.includes(NetFeature.HASH_REPORT) ? 20 : 12;
    this.headerSize = this.#legacy ? legacySize : modernSize;
    if (this.#legacy) {
      await this.#io.write(LegacyRegister.DRIVER_FEATURES, 4, words[0] ?? 0);
      return true;
    }
    for (const [i, word] of words.entries()) {
      await this.#io.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, i);
      await this.#io.write(CommonConfig.DRIVER_FEATURE, 4, word);
    }
    await this.status(11);
    return ((await this.readStatus()) & DeviceStatus.FEATURES_OK) !== 0;
  }

  /** Enables queues; default all of them. */
  async enable(indices?: readonly number[]): Promise<void> {
    // The legacy interface does not say: two pairs are the most that a test has there.
    const legacy = this.accepted.includes(NetFeature.MQ) ? 5 : 3;
    const count = this.#legacy ? legacy : await this.#io.read(CommonConfig.NUM_QUEUES, 2);
    for (let index = 0; index < count; index++) {
      if (indices !== undefined && !indices.includes(index)) continue;
      await this.enableOne(index);
    }
  }

  async enableOne(index: number): Promise<void> {
    const io = this.#io;
    if (this.#legacy) {
      await io.write(LegacyRegister.QUEUE_SELECT, 2, index);
      const size = await io.read(LegacyRegister.QUEUE_SIZE, 2);
      if (size === 0) return;
      const queue = new BareQueue(this.machine.memory, size, true);
      this.queues[index] = queue;
      await io.write(LegacyRegister.QUEUE_ADDRESS, 4, queue.ring.address / 4096);
      return;
    }
    await io.write(CommonConfig.QUEUE_SELECT, 2, index);
    const queue = new BareQueue(
      this.machine.memory,
      await io.read(CommonConfig.QUEUE_SIZE, 2),
      false,
    );
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
    while ((await this.#io.read(CommonConfig.QUEUE_RESET, 2)) !== 0);
  }

  /** Everything up to DRIVER_OK. */
  async run(
    accept?: readonly NetFeature[],
    reserved: readonly ReservedFeature[] = [ReservedFeature.RING_RESET],
  ): Promise<void> {
    if (!(await this.negotiate(accept, reserved))) throw new Error("the device did not agree");
    await this.enable();
    await this.status(this.#legacy ? 7 : 15);
    await this.settle();
  }

  ring(index: number): Promise<void> {
    return this.#legacy
      ? this.#io.write(LegacyRegister.QUEUE_NOTIFY, 2, index)
      : this.#io.write(NOTIFY_AT + index * 4, 2, index);
  }

  /** A field of the configuration. */
  async field(name: NetConfigField): Promise<number> {
    const [offset, width] = NetConfig[name];
    return this.config(offset, width as 1 | 2 | 4);
  }

  config(offset: number, width: 1 | 2 | 4): Promise<number> {
    return this.#io.read((this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset, width);
  }

  writeConfig(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    return this.#io.write((this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset, width, value);
  }

  generation(): Promise<number> {
    return this.#io.read(CommonConfig.CONFIG_GENERATION, 1);
  }

  /** Bit 0: a queue interrupted since the last read. Bit 1: the configuration changed. */
  isr(): Promise<number> {
    return this.#io.read(ISR_AT, 1);
  }

  async mac(): Promise<number[]> {
    return Promise.all(Array.from({ length: 6 }, (_, i) => this.config(i, 1)));
  }

  queue(index: number): BareQueue {
    const queue = this.queues[index];
    if (queue === undefined) throw new Error(`no queue ${index}`);
    return queue;
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

  /** Lets every waiting task of the machine run. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 4; turn++) {
      await new Promise<void>((resolve) => this.machine.tasks.enqueue(resolve));
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  /** Clauses of the network device that were broken. */
  clauses(): string[] {
    const seen = new Set(this.rules.violations.map(({ clause }) => clause));
    return [...seen].filter((clause) => clause.startsWith("NET-"));
  }

  close(): Promise<void> {
    return this.machine.close();
  }
}

export const le16 = (n: number): number[] => [n & 0xff, (n >>> 8) & 0xff];
export const le32 = (n: number): number[] => [...le16(n), ...le16(n >>> 16)];

// A network device without a transport: real queues, whose other end the test serves by hand.
import {
  attachContext,
  type Callout,
  type ConfigField,
  type ConfigSpace,
  DeviceType,
  DmaWindow,
  type FeatureSet,
  featureSetFromWords,
  GuestRegions,
  type InterruptKind,
  type QueueSpec,
  ReservedFeature,
  SysctlTree,
  type TaskQueue,
  type VirtioDevice,
  VirtioFault,
} from "@virtio/core";
import {
  NET_CONFIG_SIZE,
  NetConfig,
  type NetConfigField,
  NetControlAck,
  NetFeature,
} from "@virtio/core/net";
import { type DeviceChain, SplitDeviceQueue, SplitQueue } from "@virtio/ring";
import { type Vtnet, type VtnetOptions, vtnet } from "../src/index.js";

const BASE = 0x10_0000;

/** Time that passes when a test says so. */
class FakeTime implements TaskQueue {
  #now = 0;
  #callouts: { readonly due: number; readonly task: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  enqueue(task: () => void): void {
    setImmediate(task);
  }

  callout(delayMs: number, task: () => void): Callout {
    const callout = { due: this.#now + delayMs, task };
    this.#callouts.push(callout);
    return {
      stop: () => {
        this.#callouts = this.#callouts.filter((each) => each !== callout);
      },
    };
  }

  async pass(ms: number): Promise<void> {
    const until = this.#now + ms;
    for (;;) {
      const next = this.#callouts.reduce((a, b) => (b.due < a.due ? b : a), {
        due: Number.POSITIVE_INFINITY,
        task: () => {},
      });
      if (next.due > until) break;
      this.#now = next.due;
      this.#callouts = this.#callouts.filter((each) => each !== next);
      next.task();
      await turns();
    }
    this.#now = until;
  }
}

/** What is under way gets on. */
export async function turns(count = 8): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** A command as the device saw it. */
interface SeenCommand {
  readonly class: number;
  readonly command: number;
  readonly data: Uint8Array;
  /** Bytes of each readable segment. */
  readonly segments: readonly number[];
}

/** A frame as the device saw it. */
interface SeenFrame {
  readonly queue: number;
  readonly header: Uint8Array;
  readonly frame: Uint8Array;
  readonly segments: number;
}

/** What a fake device is like. */
export interface FakeOptions {
  readonly features?: readonly (NetFeature | ReservedFeature)[];
  /** Not VERSION_1. */
  readonly legacy?: boolean;
  readonly config?: Partial<Record<NetConfigField, number>>;
  readonly mac?: readonly number[];
  readonly size?: number;
  /** Bytes of guest memory. */
  readonly memory?: number;
  readonly cpus?: number;
  readonly driver?: VtnetOptions;
}

const nothing = (): never => {
  throw new Error("vtnet does not call this");
};

/** A VirtioDevice that does what a test says. */
class FakeDevice implements VirtioDevice {
  readonly type: number = DeviceType.NET;
  readonly location = "fake";
  readonly memory: DmaWindow;
  readonly tasks = new FakeTime();
  readonly config: ConfigSpace;
  readonly bytes = new DataView(new ArrayBuffer(NET_CONFIG_SIZE));
  /** Fields that were read, by offset. */
  readonly reads: number[] = [];
  readonly written: [offset: number, value: number][] = [];
  onConfigChange: (() => void) | null = null;
  onNeedsReset: (() => void) | null = null;
  drivers: SplitQueue[] = [];
  devices: SplitDeviceQueue[] = [];
  specs: readonly QueueSpec[] = [];
  readonly commands: SeenCommand[] = [];
  /** Answer to a command; null: none ever. */
  answer: (command: SeenCommand) => number | null = () => NetControlAck.OK;
  /** What used entries of transmitted frames and of commands say was written; undefined: what was. */
  usedLength: number | undefined;
  /** What is negotiated. */
  negotiated: FeatureSet<NetFeature | ReservedFeature> = featureSetFromWords([0, 0]);
  reinits = 0;
  dead = false;
  released = 0;
  suspends = 0;
  readonly #offered: readonly number[];
  readonly #size: number;

  constructor(options: FakeOptions) {
    const { features = [], legacy = false, memory = 8 << 20, size = 16 } = options;
    this.memory = new DmaWindow(new ArrayBuffer(memory), { base: BASE });
    this.#size = size;
    const words = [0, 0];
    for (const bit of [...features, ...(legacy ? [] : [ReservedFeature.VERSION_1])])
      words[bit >>> 5] = (words[bit >>> 5] ?? 0) | (1 << (bit & 31));
    this.#offered = words;
    const { bytes } = this;
    for (const [i, byte] of (options.mac ?? [0x52, 0x54, 0, 0x12, 0x34, 0x56]).entries())
      bytes.setUint8(i, byte);
    for (const [name, value] of Object.entries<number>({ status: 1, ...options.config }))
      this.configure(name as NetConfigField, value);
    const read = ([at, width]: ConfigField): number => {
      this.reads.push(at);
      return width === 1
        ? bytes.getUint8(at)
        : width === 2
          ? bytes.getUint16(at, true)
          : bytes.getUint32(at, true);
    };
    this.config = {
      length: NET_CONFIG_SIZE,
      read: nothing,
      write: async (offset, _width, value) => {
        this.written.push([offset, value]);
        bytes.setUint8(offset, value);
      },
      readAll: async <K extends string>(fields: Readonly<Record<K, ConfigField>>) =>
        Object.fromEntries(
          Object.entries<ConfigField>(fields).map(([name, field]) => [name, read(field)]),
        ) as Record<K, number>,
    };
  }

  configure(name: NetConfigField, value: number): void {
    const [at, width] = NetConfig[name];
    if (width === 1) this.bytes.setUint8(at, value);
    else if (width === 2) this.bytes.setUint16(at, value, true);
    else this.bytes.setUint32(at, value, true);
  }

  #choose<F extends number>(wanted: FeatureSet<F>): FeatureSet<F> {
    const asked = wanted.words();
    // VERSION_1 is the transport's own affair.
    const words = this.#offered.map((word, i) => word & ((asked[i] ?? 0) | (i === 1 ? 1 : 0)));
    this.negotiated = featureSetFromWords(words);
    return featureSetFromWords<F>(words);
  }

  async negotiate<F extends number>(wanted: FeatureSet<F>): Promise<FeatureSet<F>> {
    return this.#choose(wanted);
  }

  async finalizeFeatures(): Promise<void> {}

  async allocateQueues(specs: readonly QueueSpec[]): Promise<readonly SplitQueue[]> {
    this.specs = specs;
    this.drivers = specs.map(
      ({ name, maxSegments }, index) =>
        new SplitQueue({
          index,
          name,
          device: "vtnet0",
          size: this.#size,
          memory: this.memory,
          tasks: this.tasks,
          indirect: this.negotiated.has(ReservedFeature.INDIRECT_DESC),
          eventIdx: false,
          legacy: !this.negotiated.has(ReservedFeature.VERSION_1),
          maxSegments,
          doorbell: () => this.#kicked(index),
        }),
    );
    this.#open();
    return this.drivers;
  }

  #open(): void {
    const bytes = new Uint8Array(this.memory.buffer);
    const memory = new GuestRegions([{ address: BASE, length: bytes.length, bytes }]);
    this.devices = this.drivers.map(
      ({ index, size, addresses: { descriptors, driver, device } }) =>
        new SplitDeviceQueue({
          index,
          size,
          memory,
          descriptors: { low: descriptors, high: 0 },
          driver: { low: driver, high: 0 },
          device: { low: device, high: 0 },
          indirect: this.negotiated.has(ReservedFeature.INDIRECT_DESC),
          eventIdx: false,
          onBroken: (fault) => {
            throw fault;
          },
        }),
    );
  }

  get #control(): number {
    return this.negotiated.has(NetFeature.CTRL_VQ) ? this.drivers.length - 1 : -1;
  }

  #kicked(index: number): void {
    if (index === this.#control) this.tasks.enqueue(() => this.#serve(index));
  }

  /** Answers commands. */
  #serve(index: number): void {
    const queue = this.devices[index];
    for (let chain = queue?.take() ?? null; chain !== null; chain = queue?.take() ?? null) {
      const whole = new Uint8Array(chain.readableLength);
      chain.read(0, whole);
      const pieces = chain.readablePieces(0, whole.length).map((piece) => piece.length);
      const [type = -1, command = -1] = whole;
      const seen = { class: type, command, data: whole.slice(2), segments: pieces };
      this.commands.push(seen);
      const answer = this.answer(seen);
      if (answer === null) continue;
      chain.write(0, Uint8Array.of(answer));
      queue?.give(chain, 1);
      this.#lie(index);
    }
    this.interrupt(index);
  }

  /** Changes the lengths in a used ring to `usedLength`. */
  #lie(index: number): void {
    const queue = this.drivers[index];
    if (queue === undefined || this.usedLength === undefined) return;
    const used = new DataView(this.memory.buffer, queue.addresses.device - BASE);
    for (let i = 0; i < queue.size; i++) used.setUint32(8 + 8 * i, this.usedLength, true);
  }

  /** The device signals, whether the driver asked for it or not. */
  interrupt(index: number): void {
    const queue = this.drivers[index];
    this.tasks.enqueue(() => queue?.onUsed?.());
  }

  /** Signals if the driver wants it. */
  #signal(index: number): void {
    if (this.devices[index]?.wantsInterrupt() === true) this.interrupt(index);
  }

  /** Buffers that receive queue `pair` gave the device and that it still has. */
  readonly held: DeviceChain[][] = [];

  /** Takes all buffers that a receive queue has. */
  posted(pair: number): DeviceChain[] {
    this.held[pair] ??= [];
    const list = this.held[pair];
    const queue = this.devices[2 * pair];
    for (let chain = queue?.take() ?? null; chain !== null; chain = queue?.take() ?? null)
      list.push(chain);
    return list;
  }

  /** Puts bytes, a header first, into the next buffer; `length` is what the used entry says. */
  fill(pair: number, bytes: Uint8Array, length: number = bytes.length): void {
    const chain = this.posted(pair).shift();
    if (chain === undefined) throw new Error(`no buffer on receive queue ${pair}`);
    chain.write(0, bytes);
    this.devices[2 * pair]?.put(chain, length);
  }

  /** Buffers that were filled become visible. */
  deliver(pair: number): void {
    this.#signal(2 * pair);
  }

  /** One frame into one buffer, behind a header of `size` bytes. */
  receive(pair: number, frame: Uint8Array, header: Uint8Array = plainHeader()): void {
    const bytes = new Uint8Array(header.length + frame.length);
    bytes.set(header);
    bytes.set(frame, header.length);
    this.fill(pair, bytes);
    this.deliver(pair);
  }

  /** Takes what was transmitted and gives the buffers back. */
  sent(pair: number, headerSize = 12): SeenFrame[] {
    const queue = this.devices[2 * pair + 1];
    const seen: SeenFrame[] = [];
    for (let chain = queue?.take() ?? null; chain !== null; chain = queue?.take() ?? null) {
      const whole = new Uint8Array(chain.readableLength);
      chain.read(0, whole);
      seen.push({
        queue: pair,
        header: whole.slice(0, headerSize),
        frame: whole.slice(headerSize),
        segments: chain.readableSegments,
      });
      queue?.put(chain, 0);
      this.#lie(2 * pair + 1);
    }
    this.#signal(2 * pair + 1);
    return seen;
  }

  changed(): void {
    this.tasks.enqueue(() => this.onConfigChange?.());
  }

  fail(code: "CLOSED" | "NEEDS_RESET"): void {
    for (const queue of this.drivers) queue.fail(new VirtioFault(code, "said the test"));
  }

  async setupInterrupts(): Promise<InterruptKind> {
    return "msix";
  }

  async release(): Promise<void> {
    this.released += 1;
    for (const queue of this.drivers) queue.release();
  }

  poll(): void {}

  async reinit<F extends number>(wanted?: FeatureSet<F>): Promise<void> {
    this.reinits += 1;
    await turns(1);
    if (this.dead) throw new VirtioFault("TIMED_OUT", "the device does not reset");
    if (wanted !== undefined) this.#choose(wanted);
    for (const queue of this.drivers) queue.restart();
    this.held.length = 0;
    this.#open();
  }

  reset = nothing;
  resetQueue = nothing;
  async suspend(): Promise<void> {
    this.suspends += 1;
    for (const queue of this.drivers) if (queue.used > 0) throw new Error("chains in flight");
  }
  async resume(): Promise<void> {}
}

/** A header that says nothing, of a frame in one buffer. */
export function plainHeader(numBuffers = 1): Uint8Array {
  return header({ numBuffers });
}

/** A header of 12 bytes. */
export function header({
  flags = 0,
  gsoType = 0,
  hdrLen = 0,
  gsoSize = 0,
  csumStart = 0,
  csumOffset = 0,
  numBuffers = 1,
}: {
  flags?: number;
  gsoType?: number;
  hdrLen?: number;
  gsoSize?: number;
  csumStart?: number;
  csumOffset?: number;
  numBuffers?: number;
} = {}): Uint8Array {
  const view = new DataView(new ArrayBuffer(12));
  view.setUint8(0, flags);
  view.setUint8(1, gsoType);
  for (const [i, value] of [hdrLen, gsoSize, csumStart, csumOffset, numBuffers].entries())
    view.setUint16(2 + 2 * i, value, true);
  return new Uint8Array(view.buffer);
}

/** A frame of `length` bytes to some address, each one different. */
export function frameOf(length: number, seed = 0): Uint8Array {
  const bytes = Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff);
  bytes.set([0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
  return bytes;
}

/** An interface, its device, and what was said of them. */
export interface Fake {
  readonly net: Vtnet;
  readonly device: FakeDevice;
  readonly lines: string[];
  readonly sysctl: SysctlTree;
}

/** Features of a device as most are. */
export const usual: readonly (NetFeature | ReservedFeature)[] = [
  NetFeature.MAC,
  NetFeature.STATUS,
  NetFeature.MRG_RXBUF,
  NetFeature.CTRL_VQ,
  NetFeature.CTRL_RX,
  ReservedFeature.INDIRECT_DESC,
];

/** vtnet on a fake device, up to started(). */
export async function fake(options: FakeOptions = {}): Promise<Fake> {
  const device = new FakeDevice({ features: usual, ...options });
  const driver = vtnet(options.driver);
  const lines: string[] = [];
  const sysctl = new SysctlTree();
  const context = attachContext(
    driver,
    { name: "fake", tunables: [] },
    {
      cpus: options.cpus ?? 8,
      log: (line) => lines.push(line),
      sysctl: sysctl.node("vtnet", ""),
    },
  );
  const net = await driver.attach(device, context);
  await net.started();
  return { net, device, lines, sysctl };
}

/** The same, and up. */
export async function running(options: FakeOptions = {}): Promise<Fake> {
  const made = await fake(options);
  await made.net.up();
  return made;
}

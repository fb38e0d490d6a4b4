// A block device without a transport: virtqueues that a test serves by hand, over a disk of bytes.
import {
  attachContext,
  type Callout,
  type ConfigField,
  type ConfigSpace,
  DeviceType,
  DmaWindow,
  Errno,
  type FeatureSet,
  featureSetFromWords,
  type InterruptKind,
  type QueueCounters,
  type QueueSpec,
  ReservedFeature,
  SysctlTree,
  type TaskQueue,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  BLOCK_CONFIG_SIZE,
  BlockConfig,
  type BlockConfigField,
  type BlockFeature,
  BlockRequestType,
} from "@virtio/core/block";
import type { StrategyDisk } from "@virtio/storage";
import { type VtblkOptions, vtblk } from "../src/index.js";

const BASE = 0x10_0000;
const QUEUE_SIZE = 16;

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

  /** How many callouts wait. */
  get waiting(): number {
    return this.#callouts.length;
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
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#now = until;
  }
}

/** A chain that the driver enqueued: its segments, address and length in turn. */
interface Chain {
  readonly cookie: number;
  readonly segments: readonly number[];
  readonly readable: number;
}

const nothing = (): never => {
  throw new Error("vtblk does not call this");
};

/** A driver's end whose device's end is the test. */
export class FakeQueue implements Virtqueue {
  readonly index: number;
  readonly name: string;
  readonly size = QUEUE_SIZE;
  broken: VirtioFault | null = null;
  onBroken: ((fault: VirtioFault) => void) | null = null;
  onUsed: (() => void) | null = null;
  usedLength = 0;
  readonly counters: QueueCounters = {
    kicks: 0,
    kicksSuppressed: 0,
    interrupts: 0,
    buffers: 0,
    highWater: 0,
    clipped: 0,
  };
  /** Chains that the device has, in order. */
  readonly held: Chain[] = [];
  /** Called by notify() with new chains. */
  onNotify: () => void = () => {};
  /** Used chains interrupt. */
  interrupting = false;
  /** The device was released, and the ring's memory is somebody else's. */
  freed = false;
  readonly #indirect: boolean;
  readonly #used: { readonly chain: Chain; readonly length: number }[] = [];
  #added = 0;
  #taken = 0;

  constructor(
    index: number,
    name: string,
    indirect: boolean,
    readonly tasks: TaskQueue,
  ) {
    this.index = index;
    this.name = name;
    this.#indirect = indirect;
  }

  get used(): number {
    return this.#taken;
  }
  get free(): number {
    return this.size - this.#taken;
  }

  #descriptors(segments: number): number {
    return this.#indirect ? 1 : segments;
  }

  enqueue(
    cookie: number,
    segments: Uint32Array,
    at: number,
    readable: number,
    writable: number,
  ): number {
    if (this.broken !== null) return -Errno.EIO;
    const needed = this.#descriptors(readable + writable);
    if (needed > this.free) return -Errno.ENOSPC;
    this.#taken += needed;
    this.#added += 1;
    const list = [...segments.subarray(at, at + 2 * (readable + writable))];
    this.held.push({ cookie, segments: list, readable });
    return 0;
  }

  notify(): void {
    if (this.#added === 0 || this.broken !== null) return;
    this.#added = 0;
    this.counters.kicks += 1;
    this.onNotify();
  }

  /** The device's side: gives a chain back, and interrupts. */
  use(chain: Chain, length: number): void {
    this.held.splice(this.held.indexOf(chain), 1);
    this.#used.push({ chain, length });
    if (!this.interrupting) return;
    this.counters.interrupts += 1;
    this.tasks.enqueue(() => this.onUsed?.());
  }

  #touch(): void {
    if (this.freed) throw new Error("the ring is touched after it was freed");
  }

  dequeue(): number {
    this.#touch();
    const next = this.broken === null ? this.#used.shift() : undefined;
    if (next === undefined) return -1;
    this.#taken -= this.#descriptors(next.chain.segments.length / 2);
    this.usedLength = next.length;
    return next.chain.cookie;
  }

  /** As a transport's fail(). */
  fail(fault: VirtioFault): void {
    if (this.broken !== null) return;
    this.broken = fault;
    this.tasks.enqueue(() => this.onBroken?.(fault));
  }

  /** After a reset: the device has nothing any more. */
  restart(): void {
    this.broken = null;
    this.held.length = 0;
    this.#used.length = 0;
    this.#taken = 0;
    this.#added = 0;
  }

  enableInterrupt(): boolean {
    this.#touch();
    this.interrupting = true;
    return this.broken === null && this.#used.length > 0;
  }

  disableInterrupt(): void {
    this.#touch();
    this.interrupting = false;
  }

  enqueueReadable = nothing;
  enqueueWritable = nothing;
  template = nothing;
  publish = nothing;
  postponeInterrupt = nothing;
  poll = nothing;
  drain = nothing;
  dump = nothing;
}

const ranges: readonly number[] = [
  BlockRequestType.DISCARD,
  BlockRequestType.WRITE_ZEROES,
  BlockRequestType.SECURE_ERASE,
];

/** What a fake device is like. */
export interface FakeOptions {
  readonly features?: readonly (BlockFeature | ReservedFeature)[];
  /** Not VERSION_1. */
  readonly legacy?: boolean;
  readonly numQueues?: number;
  /** Fields of the configuration. */
  readonly config?: Partial<Record<BlockConfigField, number>>;
  /** Bytes of guest memory. */
  readonly memory?: number;
  /** What used.len says, by what it should say. */
  readonly usedLength?: (length: number) => number;
  readonly cpus?: number;
  readonly driver?: VtblkOptions;
  /** Sees the device after attach, before started(). */
  readonly attached?: (device: FakeDevice) => void;
}

/** A VirtioDevice that serves what it is told to. */
export class FakeDevice implements VirtioDevice {
  readonly type: number = DeviceType.BLOCK;
  readonly location = "fake";
  readonly memory: DmaWindow;
  readonly tasks = new FakeTime();
  readonly config: ConfigSpace;
  /** The device's configuration; offsets of BlockConfig. */
  readonly bytes = new DataView(new ArrayBuffer(BLOCK_CONFIG_SIZE));
  /** What was written to it: offset, value. */
  readonly written: [offset: number, value: number][] = [];
  onConfigChange: (() => void) | null = null;
  onNeedsReset: (() => void) | null = null;
  readonly disk = new Uint8Array(1 << 20);
  queues: readonly FakeQueue[] = [];
  /** Serves each chain at once; else the test calls serve(). */
  prompt = true;
  gone = false;
  released = 0;
  /** Answer to every request. */
  status = 0;
  /** Type and sector of each request that was served. */
  readonly requests: [type: number, sector: number][] = [];
  /** Segments of discards and the like: sector, sectors, flags. */
  readonly ranges: number[][] = [];
  /** Resets after which it works again; `dead`: it answers none. */
  reinits = 0;
  dead = false;
  /** Segment lengths of each chain that was served. */
  readonly shapes: number[][] = [];
  readonly #features: FeatureSet<BlockFeature | ReservedFeature>;
  readonly #usedLength: (length: number) => number;

  constructor(options: FakeOptions) {
    const { features = [], legacy = false, numQueues = 1, memory = 8 << 20 } = options;
    this.memory = new DmaWindow(new ArrayBuffer(memory), { base: BASE });
    this.#usedLength = options.usedLength ?? ((length) => length);
    const words = [0, 0];
    for (const bit of [...features, ...(legacy ? [] : [ReservedFeature.VERSION_1])])
      words[bit >>> 5] = (words[bit >>> 5] ?? 0) | (1 << (bit & 31));
    this.#features = featureSetFromWords(words);
    const { bytes } = this;
    for (const [name, value] of Object.entries<number>({
      capacity: this.disk.length / 512,
      segMax: QUEUE_SIZE - 2,
      numQueues,
      ...options.config,
    }))
      this.configure(name as BlockConfigField, value);
    const read = ([at, width]: ConfigField): number =>
      width === 1
        ? bytes.getUint8(at)
        : width === 2
          ? bytes.getUint16(at, true)
          : width === 4
            ? bytes.getUint32(at, true)
            : Number(bytes.getBigUint64(at, true));
    this.config = {
      length: BLOCK_CONFIG_SIZE,
      read: nothing,
      write: async (offset, width, value) => {
        if (width !== 1) throw new Error(`${width} bytes are written`);
        this.written.push([offset, value]);
        bytes.setUint8(offset, value);
      },
      readAll: async <K extends string>(fields: Readonly<Record<K, ConfigField>>) =>
        Object.fromEntries(
          Object.entries<ConfigField>(fields).map(([name, field]) => [name, read(field)]),
        ) as Record<K, number>,
    };
  }

  /** Sets a field of the configuration. */
  configure(name: BlockConfigField, value: number): void {
    const [at, width] = BlockConfig[name];
    if (width === 1) this.bytes.setUint8(at, value);
    else if (width === 2) this.bytes.setUint16(at, value, true);
    else if (width === 4) this.bytes.setUint32(at, value, true);
    else this.bytes.setBigUint64(at, BigInt(value), true);
  }

  async negotiate<F extends number>(wanted: FeatureSet<F>): Promise<FeatureSet<F>> {
    const asked = wanted.words();
    const words = this.#features.words().map((word, i) => {
      // VERSION_1 is the transport's own affair.
      const own = i === 1 ? word & 1 : 0;
      return (word & (asked[i] ?? 0)) | own;
    });
    return featureSetFromWords<F>(words);
  }

  async finalizeFeatures(): Promise<void> {}

  async allocateQueues(specs: readonly QueueSpec[]): Promise<readonly Virtqueue[]> {
    const indirect = this.#features.has(ReservedFeature.INDIRECT_DESC);
    this.queues = specs.map(({ name }, index) => new FakeQueue(index, name, indirect, this.tasks));
    for (const queue of this.queues)
      queue.onNotify = () => {
        if (this.prompt) this.serve(queue);
      };
    return this.queues;
  }

  async setupInterrupts(): Promise<InterruptKind> {
    return "msix";
  }

  /** Executes the chains of a queue, or the first of them. */
  serve(queue: FakeQueue, count: number = queue.held.length): void {
    for (const chain of queue.held.slice(0, count)) {
      const pieces: Uint8Array[] = [];
      for (let s = 0; s < chain.segments.length; s += 2)
        pieces.push(
          new Uint8Array(
            this.memory.buffer,
            (chain.segments[s] ?? 0) - BASE,
            chain.segments[s + 1] ?? 0,
          ),
        );
      this.shapes.push(pieces.map((piece) => piece.length));
      const [header, ...rest] = pieces;
      const status = rest.pop();
      if (header === undefined || status === undefined) throw new Error("no header, no status");
      const words = new DataView(header.buffer, header.byteOffset);
      let at = words.getUint32(8, true) * 512;
      const type = words.getUint32(0, true);
      this.requests.push([type, at / 512]);
      for (const piece of rest) {
        const there = this.disk.subarray(at, at + piece.length);
        if (type === BlockRequestType.OUT) there.set(piece);
        else if (type === BlockRequestType.IN) piece.set(there);
        else if (type === BlockRequestType.GET_LIFETIME) piece.set([1, 0, 3, 0, 4, 0]);
        else if (ranges.includes(type)) {
          const range = new DataView(piece.buffer, piece.byteOffset, piece.length);
          this.ranges.push([0, 8, 12].map((place) => range.getUint32(place, true)));
        }
        at += piece.length;
      }
      status[0] = this.status;
      const written = pieces.slice(chain.readable).reduce((sum, piece) => sum + piece.length, 0);
      queue.use(chain, this.#usedLength(written));
    }
  }

  /** Every queue fails, as a transport does it. */
  fail(code: "CLOSED" | "NEEDS_RESET"): void {
    this.gone = code === "CLOSED";
    for (const queue of this.queues) queue.fail(new VirtioFault(code, "said the test"));
  }

  async release(): Promise<void> {
    this.released += 1;
    for (const queue of this.queues) queue.freed = true;
    await new Promise((resolve) => setImmediate(resolve));
  }

  poll(): void {}
  async reinit(): Promise<void> {
    this.reinits += 1;
    await new Promise((resolve) => setImmediate(resolve));
    if (this.dead) throw new VirtioFault("TIMED_OUT", "the device does not reset");
    for (const queue of this.queues) queue.restart();
  }
  reset = nothing;
  resetQueue = nothing;
  async suspend(): Promise<void> {}
  async resume(): Promise<void> {}
}

/** A disk, its device, and what was said of them. */
export interface Fake {
  readonly disk: StrategyDisk;
  readonly device: FakeDevice;
  readonly lines: string[];
  readonly verbose: string[];
  readonly sysctl: SysctlTree;
}

/** vtblk on a fake device, up to started(). */
export async function fake(
  options: FakeOptions = {},
  device: FakeDevice = new FakeDevice(options),
): Promise<Fake> {
  const driver = vtblk({ noIdent: true, ...options.driver });
  const lines: string[] = [];
  const verbose: string[] = [];
  const sysctl = new SysctlTree();
  const context = attachContext(
    driver,
    { name: "fake", tunables: [] },
    {
      cpus: options.cpus ?? 8,
      log: (line) => lines.push(line),
      verbose: (line) => verbose.push(line),
      sysctl: sysctl.node("vtblk", ""),
    },
  );
  const disk = await driver.attach(device, context);
  options.attached?.(device);
  await disk.started?.();
  return { disk, device, lines, verbose, sysctl };
}

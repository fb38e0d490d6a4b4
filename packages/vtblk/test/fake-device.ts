// A block device without a transport: virtqueues that a test serves by hand, over a disk of bytes.
import {
  attachContext,
  type ConfigField,
  type ConfigSpace,
  DeviceType,
  type Disk,
  DmaWindow,
  Errno,
  type FeatureSet,
  featureSetFromWords,
  type InterruptKind,
  type QueueCounters,
  type QueueSpec,
  ReservedFeature,
  type TaskQueue,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  BLOCK_CONFIG_SIZE,
  BlockConfig,
  type BlockFeature,
  BlockRequestType,
} from "@virtio/core/block";
import { type VtblkOptions, vtblk } from "../src/index.js";

const BASE = 0x10_0000;
const QUEUE_SIZE = 16;

const tasks: TaskQueue = {
  now: () => performance.now(),
  enqueue: (task) => void setImmediate(task),
  callout: (delayMs, task) => {
    const timer = setTimeout(task, delayMs);
    return { stop: () => clearTimeout(timer) };
  },
};

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
  readonly #indirect: boolean;
  readonly #used: { readonly chain: Chain; readonly length: number }[] = [];
  #added = 0;
  #taken = 0;

  constructor(index: number, name: string, indirect: boolean) {
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
    if (this.#used.length === 1) tasks.enqueue(() => this.onUsed?.());
  }

  dequeue(): number {
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
    tasks.enqueue(() => this.onBroken?.(fault));
  }

  enableInterrupt = (): boolean => this.broken === null && this.#used.length > 0;
  disableInterrupt(): void {}
  enqueueReadable = nothing;
  enqueueWritable = nothing;
  template = nothing;
  publish = nothing;
  postponeInterrupt = nothing;
  poll = nothing;
  drain = nothing;
  dump = nothing;
}

/** What a fake device is like. */
export interface FakeOptions {
  readonly features?: readonly (BlockFeature | ReservedFeature)[];
  /** Not VERSION_1. */
  readonly legacy?: boolean;
  readonly numQueues?: number;
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
  readonly tasks: TaskQueue = tasks;
  readonly config: ConfigSpace;
  onConfigChange: (() => void) | null = null;
  onNeedsReset: (() => void) | null = null;
  readonly disk = new Uint8Array(1 << 20);
  queues: readonly FakeQueue[] = [];
  /** Serves each chain at once; else the test calls serve(). */
  prompt = true;
  gone = false;
  released = 0;
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
    const bytes = new DataView(new ArrayBuffer(BLOCK_CONFIG_SIZE));
    bytes.setUint32(BlockConfig.capacity[0], this.disk.length / 512, true);
    bytes.setUint32(BlockConfig.segMax[0], QUEUE_SIZE - 2, true);
    bytes.setUint16(BlockConfig.numQueues[0], numQueues, true);
    const read = ([at, width]: ConfigField): number =>
      width === 2 ? bytes.getUint16(at, true) : bytes.getUint32(at, true);
    this.config = {
      length: BLOCK_CONFIG_SIZE,
      read: nothing,
      write: nothing,
      readAll: async <K extends string>(fields: Readonly<Record<K, ConfigField>>) =>
        Object.fromEntries(
          Object.entries<ConfigField>(fields).map(([name, field]) => [name, read(field)]),
        ) as Record<K, number>,
    };
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
    this.queues = specs.map(({ name }, index) => new FakeQueue(index, name, indirect));
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
      for (const piece of rest) {
        const there = this.disk.subarray(at, at + piece.length);
        if (type === BlockRequestType.OUT) there.set(piece);
        else if (type === BlockRequestType.IN) piece.set(there);
        at += piece.length;
      }
      status[0] = 0;
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
  }

  poll(): void {}
  reinit = nothing;
  reset = nothing;
  resetQueue = nothing;
  async suspend(): Promise<void> {}
  async resume(): Promise<void> {}
}

/** vtblk on a fake device, up to started(). */
export async function fake(
  options: FakeOptions = {},
  device: FakeDevice = new FakeDevice(options),
): Promise<{ readonly disk: Disk; readonly device: FakeDevice; readonly lines: string[] }> {
  const driver = vtblk({ noIdent: true, ...options.driver });
  const lines: string[] = [];
  const context = attachContext(
    driver,
    { name: "fake", tunables: [] },
    { cpus: options.cpus ?? 8, log: (line) => lines.push(line) },
  );
  const disk = await driver.attach(device, context);
  options.attached?.(device);
  await disk.started?.();
  return { disk, device, lines };
}

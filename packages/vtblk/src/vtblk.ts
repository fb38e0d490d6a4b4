// vtblk: the VirtIO block driver (virtio 1.4 §5.2; FreeBSD's virtio_blk(4)).
// Each vtblkN offers one disk vtbdN. Data is bounced through pages of guest memory; bytes that lie there already are used in place.
import {
  DeviceType,
  type Driver,
  type DriverContext,
  Errno,
  type FeatureSet,
  ReservedFeature,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  BLOCK_ID_SIZE,
  BLOCK_LIFETIME_SIZE,
  BlockConfig,
  BlockFeature,
  BlockRequestType,
} from "@virtio/core/block";
import {
  type Bio,
  BioCommand,
  BouncePages,
  type DiskEvents,
  type DiskProvider,
  type RangeLimits,
  StrategyDisk,
} from "@virtio/storage";
import { CacheMode } from "./cache-mode.js";
import { type Features, featureNames, settle } from "./features.js";
import { fitted, type Geometry, mediaSizeOf, readGeometry } from "./geometry.js";
import { byTunable, tunables, type VtblkOptions } from "./options.js";
import { isOwn, OVERHEAD_SEGMENTS, RequestQueue } from "./request-queue.js";
import { Watchdog } from "./watchdog.js";
import type { DeviceZones } from "./zones.js";

/** Pages that data is bounced through: 4 MiB in flight. */
const PAGES = 256;
/** How long a new disk waits for its serial number before it does without. */
const IDENTIFY_MS = 5000;
/** How long a new disk waits for the report of its zones: it is of no use without. */
const REPORT_MS = 30_000;
/** How long suspend waits for what is in flight, as FreeBSD's vtblk_quiesce. */
const QUIESCE_MS = 30_000;

/** Resets one after the other, no request done between them, before the device counts as dead. */
const RESETS_MAX = 3;

const requestTypes: Readonly<Record<BioCommand, BlockRequestType>> = {
  [BioCommand.READ]: BlockRequestType.IN,
  [BioCommand.WRITE]: BlockRequestType.OUT,
  [BioCommand.FLUSH]: BlockRequestType.FLUSH,
  [BioCommand.DISCARD]: BlockRequestType.DISCARD,
  [BioCommand.WRITE_ZEROES]: BlockRequestType.WRITE_ZEROES,
  [BioCommand.SECURE_ERASE]: BlockRequestType.SECURE_ERASE,
  [BioCommand.ZONE_REPORT]: BlockRequestType.ZONE_REPORT,
  [BioCommand.ZONE_APPEND]: BlockRequestType.ZONE_APPEND,
  [BioCommand.ZONE_OPEN]: BlockRequestType.ZONE_OPEN,
  [BioCommand.ZONE_CLOSE]: BlockRequestType.ZONE_CLOSE,
  [BioCommand.ZONE_FINISH]: BlockRequestType.ZONE_FINISH,
  [BioCommand.ZONE_RESET]: BlockRequestType.ZONE_RESET,
  [BioCommand.ZONE_RESET_ALL]: BlockRequestType.ZONE_RESET_ALL,
};

/**
 * The block driver: `attach(node, vtblk())` gives a {@link @virtio/core#Disk}.
 * @see virtio_blk(4)
 */
export function vtblk(options: VtblkOptions = {}): Driver<StrategyDisk> {
  return {
    name: "vtblk",
    description: "VirtIO Block Adapter",
    types: [DeviceType.BLOCK],
    features: featureNames,
    tunables,
    options: byTunable(options),
    attach: async (device, context) => (await Vtblk.attach(device, context)).disk,
  };
}

/**
 * States: running, resetting, suspended, closed. Only a running driver gives the device requests; a closed one fails them, and in
 * the other states they wait.
 */
class Vtblk implements DiskProvider {
  readonly name: string;
  /** The disk that stands over this driver. */
  readonly disk: StrategyDisk;
  ident = "";
  mediaSize: number;
  readonly sectorSize: number;
  readonly stripeSize: number;
  readonly stripeOffset: number;
  readonly firmwareHeads: number;
  readonly firmwareSectors: number;
  readonly maxTransfer: number;
  readonly discard: RangeLimits | null;
  readonly writeZeroes: RangeLimits | null;
  readonly secureErase: RangeLimits | null;
  readonly zones: DeviceZones | null;
  readonly readOnly: boolean;
  readonly barrier: boolean;
  readonly closed: Promise<VirtioFault | null>;
  /** Absent where the device is elsewhere: it hears a doorbell only when this thread turns its event loop. */
  readonly poll?: () => boolean;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #features: FeatureSet<Features>;
  readonly #canFlush: boolean;
  readonly #cache: CacheMode;
  readonly #pages: BouncePages;
  readonly #queues: readonly RequestQueue[];
  readonly #watchdog: Watchdog;
  /** The disk over this; only `connect` sets it, when that is made. */
  #events: DiskEvents = { done: () => {}, room: () => {}, resized: () => {} };
  /** The queue that is tried first. */
  #turn = 0;
  /** Nothing is given to the device; `frozen`: it is told so. */
  #suspended: "no" | "quiescing" | "frozen" = "no";
  /** The reset that is under way; never rejects. */
  #reset: Promise<void> | null = null;
  /** Since a request succeeded. */
  #resets = 0;
  /** The configuration changed since it was read; `reading`: it is being read. */
  #config: "read" | "reading" | "changed" = "read";
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};
  #unpublish: () => void = () => {};
  #onIdle: (() => void) | null = null;

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  private constructor(
    device: VirtioDevice,
    context: DriverContext,
    features: FeatureSet<Features>,
    geometry: Geometry,
    queues: readonly Virtqueue[],
    cache: CacheMode,
  ) {
    this.name = `vtbd${context.unit}`;
    this.#device = device;
    this.#context = context;
    this.#features = features;
    this.#cache = cache;
    this.#canFlush = features.has(BlockFeature.FLUSH);
    this.readOnly = features.has(BlockFeature.RO);
    // Requests of several queues are in no order that the device could keep.
    this.barrier = features.has(BlockFeature.BARRIER) && queues.length === 1;
    this.mediaSize = geometry.mediaSize;
    this.sectorSize = geometry.sectorSize;
    this.stripeSize = geometry.stripeSize;
    this.stripeOffset = geometry.stripeOffset;
    this.firmwareHeads = geometry.firmwareHeads;
    this.firmwareSectors = geometry.firmwareSectors;
    this.maxTransfer = geometry.maxTransfer;
    this.discard = geometry.discard;
    this.writeZeroes = geometry.writeZeroes;
    this.secureErase = geometry.secureErase;
    this.zones = geometry.zones;
    const { memory, tasks } = device;
    const pages = new BouncePages(memory, PAGES, geometry.pageSize);
    const seconds = context.tunables.number("timeout");
    this.#watchdog = new Watchdog({
      tasks,
      timeoutMs: seconds * 1000,
      oldest: () => Math.min(...this.#queues.map(({ oldest }) => oldest)),
      onLate: () => {
        const why = `a request timed out after ${seconds} s`;
        this.#recover(why, this.#fail("TIMED_OUT", why));
      },
    });
    const options = {
      disk: this.name,
      memory,
      tasks,
      log: context.log,
      pages,
      watchdog: this.#watchdog,
      dataSegments: geometry.dataSegments,
      indirect: features.has(ReservedFeature.INDIRECT_DESC),
      legacy: !features.has(ReservedFeature.VERSION_1),
      barrier: this.barrier,
      mayUnmap: geometry.mayUnmap,
      zones: this.zones,
      onDone: (type: BlockRequestType, bio: Bio, fault: VirtioFault | null) =>
        this.#over(type, bio, fault),
      onProgress: () => this.#progress(),
      onBroken: (fault: VirtioFault) => this.#broken(fault),
    };
    const made: RequestQueue[] = [];
    try {
      for (const queue of queues) made.push(new RequestQueue(queue, options));
    } catch (error) {
      pages.free();
      for (const queue of made) queue.free();
      throw error;
    }
    this.#pages = pages;
    this.#queues = made;
    if (!memory.shared)
      this.poll = () => made.find(({ inFlight }) => inFlight > 0)?.poll() ?? false;
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    this.disk = new StrategyDisk(this);
  }

  /** virtio 1.4 §3.1.1, steps 4 to 7; §5.2.5. */
  static async attach(device: VirtioDevice, context: DriverContext): Promise<Vtblk> {
    const zoned = context.tunables.number("zoned_disable") === 0;
    const { features, model } = await settle(device, zoned, context.name);
    await device.finalizeFeatures();
    const geometry = await readGeometry(device, features, model, context.name);
    const cache = new CacheMode(device.config, features, geometry.writeback);
    const mode = context.tunables.number("writecache_mode");
    if (mode >= 0) await cache.set(mode);
    const most = Math.min(context.tunables.number("max_queues"), context.cpus);
    const count = Math.max(1, Math.min(geometry.queues, most));
    const name = `${context.name} request`;
    const queues = await device.allocateQueues(
      Array.from({ length: count }, (_, i) => ({
        name: count === 1 ? name : `${name} ${i}`,
        maxSegments: geometry.dataSegments + OVERHEAD_SEGMENTS,
        interrupt: true,
      })),
    );
    const size = Math.min(...queues.map((queue) => queue.size));
    const fit = fitted(geometry, size, context.name);
    await device.setupInterrupts();
    // Last, because nobody but the driver gives this memory back.
    const driver = new Vtblk(device, context, features, fit, queues, cache);
    cache.publish(context.sysctl, async () => {
      await driver.#reset;
    });
    device.onConfigChange = () => {
      // One that is being reset is not to be touched, and is read afterwards anyway.
      if (driver.#reset === null || driver.#config !== "read") void driver.#configChanged();
    };
    for (const queue of driver.#queues) queue.arm();
    return driver;
  }

  now(): number {
    return this.#device.tasks.now();
  }

  connect(events: DiskEvents): void {
    this.#events = events;
  }

  /** DRIVER_OK is set: serial number, wear and zones, then the disk becomes visible. */
  async started(): Promise<void> {
    if (this.#context.tunables.number("no_ident") === 0) await this.#identify();
    if (this.#features.has(BlockFeature.LIFETIME)) await this.#readLifetime();
    if (this.zones !== null) await this.#learnZones(this.zones);
    this.#context.log(this.#size);
    this.#unpublish = this.#context.publish(this.disk);
  }

  /** As FreeBSD prints it: `16MB (32768 512 byte sectors)`. */
  get #size(): string {
    const { mediaSize, sectorSize } = this;
    return `${Math.floor(mediaSize / 2 ** 20)}MB (${mediaSize / sectorSize} ${sectorSize} byte sectors)`;
  }

  async #identify(): Promise<void> {
    const bytes = new Uint8Array(BLOCK_ID_SIZE);
    const fault = await this.#ask(BlockRequestType.GET_ID, bytes);
    if (fault === null) this.ident = text(bytes);
    else this.#context.log(`error getting device identifier: ${Errno[fault.errno]}`);
  }

  /** What is refused before the device sees it is judged by this report. @throws VirtioFault what is wrong with it */
  async #learnZones({ model, zoneSize }: DeviceZones): Promise<void> {
    const count = Math.ceil(this.mediaSize / zoneSize);
    const abort = new AbortController();
    const late = this.#device.tasks.callout(REPORT_MS, () =>
      abort.abort(this.#fail("TIMED_OUT", `no report of the zones after ${REPORT_MS} ms`)),
    );
    try {
      if (count > 0) await this.disk.zones?.report(0, count, { signal: abort.signal });
    } finally {
      late.stop();
    }
    this.#context.log(`${model}: ${count} zones of ${zoneSize} bytes`);
  }

  /** How worn the device is (§5.2.6): once, as it is at attach. */
  async #readLifetime(): Promise<void> {
    const bytes = new Uint8Array(BLOCK_LIFETIME_SIZE);
    const fault = await this.#ask(BlockRequestType.GET_LIFETIME, bytes);
    if (fault !== null) {
      this.#context.log(`error getting device lifetime: ${Errno[fault.errno]}`);
      return;
    }
    const words = new DataView(bytes.buffer);
    const leaf = (at: number, name: string, description: string): void => {
      const value = words.getUint16(at, true);
      this.#context.sysctl.value(name, description, () => value);
    };
    leaf(0, "pre_eol_info", "Reserved blocks used up: 1 normal, 2 warning (80%), 3 urgent (90%)");
    leaf(2, "est_typ_a", "Wear of SLC cells, in tenths of their lifetime");
    leaf(4, "est_typ_b", "Wear of MLC cells, in tenths of their lifetime");
  }

  /** One of the driver's own requests. Resolves to why it failed: the disk does without. @throws VirtioFault what ended the device */
  async #ask(type: BlockRequestType, bytes: Uint8Array): Promise<VirtioFault | null> {
    const fault = await new Promise<VirtioFault | null>((resolve) => {
      const late = this.#device.tasks.callout(IDENTIFY_MS, () => {
        bio.data = null;
        resolve(this.#fail("TIMED_OUT", `no answer after ${IDENTIFY_MS} ms`));
      });
      const done = (fault: VirtioFault | null): void => {
        late.stop();
        resolve(fault);
      };
      const { length } = bytes;
      const command = BioCommand.READ;
      const bio: Bio = { command, position: 0, length, data: bytes, ordered: false, done };
      this.#start(type, bio);
      this.start();
    });
    if (fault === null || ["IO", "UNSUPPORTED", "TIMED_OUT"].includes(fault.code)) return fault;
    throw fault;
  }

  // ── requests ────────────────────────────────────────────────────────────────

  strategy(bio: Bio): boolean {
    if (bio.command === BioCommand.FLUSH && !this.#canFlush && this.#fault === null) {
      // Without FLUSH every write that is done is stable (§5.2.5.1).
      this.#events.done(bio, null);
      return true;
    }
    return this.#start(requestTypes[bio.command], bio);
  }

  /** One doorbell for a batch; the next batch goes to the next queue. */
  start(): void {
    if (this.#fault !== null) return;
    const queues = this.#queues;
    for (let i = 0; i < queues.length; i++) (queues[i] as RequestQueue).notify();
    this.#advance();
    this.#watchdog.watch();
  }

  inPlace(data: Uint8Array): boolean {
    return data.buffer === this.#device.memory.buffer;
  }

  #advance(): void {
    const next = this.#turn + 1;
    this.#turn = next === this.#queues.length ? 0 : next;
  }

  /** Gives a queue with room the request; false when there is none now. */
  #start(type: BlockRequestType, bio: Bio): boolean {
    if (this.#fault !== null) {
      this.#over(type, bio, this.#fault);
      return true;
    }
    if (this.#suspended !== "no" || this.#reset !== null) return false;
    const queues = this.#queues;
    for (let tries = 0; tries < queues.length; tries++) {
      if ((queues[this.#turn] as RequestQueue).start(type, bio)) return true;
      this.#advance();
    }
    return false;
  }

  #over(type: BlockRequestType, bio: Bio, fault: VirtioFault | null): void {
    if (fault === null) this.#resets = 0;
    if (isOwn(type)) bio.done(fault);
    else this.#events.done(bio, fault);
  }

  get #inFlight(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.inFlight, 0);
  }

  get #idle(): boolean {
    return this.#reset === null && this.#inFlight === 0;
  }

  #progress(): void {
    if (this.#onIdle !== null && this.#idle) this.#onIdle();
    this.#events.room();
  }

  // ── configuration ───────────────────────────────────────────────────────────

  /** Of all that may change only the capacity is looked at, as in FreeBSD. */
  async #configChanged(): Promise<void> {
    const reading = this.#config !== "read";
    this.#config = "changed";
    if (reading) return;
    try {
      while (this.#config === "changed") {
        this.#config = "reading";
        const { capacity } = await this.#device.config.readAll({ capacity: BlockConfig.capacity });
        const mediaSize = mediaSizeOf(capacity, this.sectorSize, this.name);
        this.zones?.resize(mediaSize);
        this.#resize(mediaSize);
      }
    } catch (error) {
      this.#context.log(`cannot read the capacity: ${String(error)}`);
    } finally {
      this.#config = "read";
    }
  }

  #resize(mediaSize: number): void {
    if (mediaSize === this.mediaSize || this.#fault !== null) return;
    this.mediaSize = mediaSize;
    this.#context.verbose(`resized to ${this.#size}`);
    this.#device.tasks.enqueue(() => this.#events.resized());
  }

  // ── faults ──────────────────────────────────────────────────────────────────

  #broken(fault: VirtioFault): void {
    if (fault.code === "NEEDS_RESET") this.#recover("the device needs a reset", fault);
    else this.#die(fault);
  }

  /** Resets the device, which then holds no memory any more: what was in flight fails, and the disk works again. */
  #recover(why: string, fault: VirtioFault): void {
    if (this.#fault !== null || this.#reset !== null) return;
    // One that is suspended cannot be set up.
    if (this.#suspended === "frozen" || this.#resets === RESETS_MAX) {
      this.#die(fault);
      return;
    }
    this.#resets += 1;
    this.#context.log(`${why}: resetting the device`);
    this.#reset = this.#reinit(fault).then(() => {
      this.#reset = null;
      this.#progress();
    });
  }

  async #reinit(fault: VirtioFault): Promise<void> {
    try {
      await this.#device.reinit();
      for (const queue of this.#queues) queue.reclaim();
      this.#failAll(fault);
      await this.#setUpAgain();
    } catch (error) {
      this.#failAll(fault);
      this.#die(error instanceof VirtioFault ? error : this.#fail("IO", String(error)));
    }
  }

  /** A reset took what was set, and what the device would have told meanwhile. */
  async #setUpAgain(): Promise<void> {
    await this.#cache.setAgain();
    for (const queue of this.#queues) queue.arm();
    await this.#configChanged();
  }

  /** The device broke a rule, cannot be reset, or is gone: each request fails once; memory it held waits for a reset. */
  #die(fault: VirtioFault): void {
    this.#fault ??= fault;
    if (this.#detaching === null) this.#close(this.#fault);
    this.#watchdog.stop();
    this.#failAll(this.#fault);
    this.#progress();
  }

  #failAll(fault: VirtioFault): void {
    for (const queue of this.#queues) queue.failAll(fault);
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  async #detach(): Promise<void> {
    this.#unpublish();
    this.#watchdog.stop();
    const orderly = this.#fault === null;
    this.#fault ??= this.#fail("CLOSED", "the disk is detached");
    for (const queue of this.#queues) queue.stop();
    await this.#reset;
    try {
      await this.#device.release();
      this.#free();
    } finally {
      this.#failAll(this.#fault);
      this.#progress();
      this.#close(orderly ? null : this.#fault);
    }
  }

  /** A device that went away was not reset: memory that it may still write to is never used again. */
  #free(): void {
    if (this.#queues.some((queue) => queue.stranded)) {
      this.#context.log("the device went away with requests in flight: their memory is lost");
      return;
    }
    this.#pages.free();
    for (const queue of this.#queues) queue.free();
  }

  async suspend(): Promise<void> {
    this.#suspended = "quiescing";
    if (!(await this.#quiesced())) {
      this.#goOn();
      throw this.#fail("BUSY", `${this.#inFlight} requests are in flight after ${QUIESCE_MS} ms`);
    }
    // One that failed meanwhile has nothing to suspend.
    if (this.#fault !== null) return;
    this.#suspended = "frozen";
    await this.#device.suspend();
  }

  /** Waits until nothing is in flight, with a bound. */
  async #quiesced(): Promise<boolean> {
    if (this.#idle) return true;
    const idle = await new Promise<boolean>((resolve) => {
      const late = this.#device.tasks.callout(QUIESCE_MS, () => resolve(false));
      this.#onIdle = () => {
        late.stop();
        resolve(true);
      };
    });
    this.#onIdle = null;
    return idle;
  }

  async resume(): Promise<void> {
    if (this.#fault === null) {
      await this.#device.resume();
      await this.#setUpAgain();
    }
    this.#goOn();
  }

  #goOn(): void {
    this.#suspended = "no";
    this.#events.room();
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

/** A NUL-padded string; what is not printable ASCII shows as a question mark. */
function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return Array.from(end < 0 ? bytes : bytes.subarray(0, end), (byte) =>
    byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "?",
  ).join("");
}

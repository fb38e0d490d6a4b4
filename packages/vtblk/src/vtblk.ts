// vtblk: the VirtIO block driver (virtio 1.4 §5.2; FreeBSD's virtio_blk(4)).
// Each vtblkN offers one disk vtbdN. Data is bounced through pages of guest memory; bytes that lie there already are used in place.
import {
  type ConfigField,
  DeviceType,
  type Disk,
  type Driver,
  type DriverContext,
  Errno,
  type FeatureName,
  type FeatureSet,
  featureSet,
  ReservedFeature,
  type TunableSpec,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  BLOCK_ID_SIZE,
  BlockConfig,
  BlockFeature,
  BlockRequestType,
  SECTOR_SIZE,
} from "@virtio/core/block";
import { type Bio, BioCommand, type DiskProvider, StrategyDisk } from "@virtio/storage";
import { BouncePages } from "./bounce-pages.js";
import { OVERHEAD_SEGMENTS, RequestQueue } from "./request-queue.js";

// ── features: what is asked for, and the name that FreeBSD prints ─────────────

/** Feature bits of a block device by FreeBSD's names (virtio_blk.c). */
const featureNames: readonly FeatureName[] = [
  { bit: BlockFeature.BARRIER, name: "HostBarrier" },
  { bit: BlockFeature.SIZE_MAX, name: "MaxSegSize" },
  { bit: BlockFeature.SEG_MAX, name: "MaxNumSegs" },
  { bit: BlockFeature.GEOMETRY, name: "DiskGeometry" },
  { bit: BlockFeature.RO, name: "ReadOnly" },
  { bit: BlockFeature.BLK_SIZE, name: "BlockSize" },
  { bit: BlockFeature.SCSI, name: "SCSICmds" },
  { bit: BlockFeature.FLUSH, name: "FlushCmd" },
  { bit: BlockFeature.TOPOLOGY, name: "Topology" },
  { bit: BlockFeature.CONFIG_WCE, name: "ConfigWCE" },
  { bit: BlockFeature.MQ, name: "Multiqueue" },
  { bit: BlockFeature.DISCARD, name: "Discard" },
  { bit: BlockFeature.WRITE_ZEROES, name: "WriteZeros" },
];

type Features = BlockFeature | ReservedFeature;

const wanted: FeatureSet<Features> = featureSet<Features>().with(
  BlockFeature.SIZE_MAX,
  BlockFeature.SEG_MAX,
  BlockFeature.RO,
  BlockFeature.BLK_SIZE,
  BlockFeature.FLUSH,
  BlockFeature.MQ,
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

/** Request queues of a disk: the bound, and the default. */
const MAX_QUEUES = 64;
const DEFAULT_QUEUES = 8;

/** `hw.vtblk.no_ident` (virtio_blk(4)), and `hw.vtblk.max_queues`, which FreeBSD's driver of one queue does not have. */
const tunables: readonly TunableSpec[] = [
  {
    name: "no_ident",
    default: 0,
    min: 0,
    max: 1,
    description: "Do not ask the device for its serial number",
  },
  {
    name: "max_queues",
    default: DEFAULT_QUEUES,
    min: 1,
    max: MAX_QUEUES,
    description: "Most request queues of a disk; never more than CPUs",
  },
];

// ── limits ────────────────────────────────────────────────────────────────────

/** Bytes of a page to bounce through, and of one data segment. */
const PAGE_SIZE = 16384;
/** 4 MiB of them in flight. */
const PAGES = 256;
/** Most data segments of a request: with header and status, what fits an indirect table of one 4 KiB page. */
const DATA_SEGMENTS_MAX = 254;
/** Most bytes of one request: maxphys on a 64-bit FreeBSD. */
const TRANSFER_MAX = 1 << 20;
/** Sector sizes beyond this are no disk's. */
const SECTOR_SIZE_MAX = 65536;
/** How long a new disk waits for its serial number before it does without. */
const IDENTIFY_MS = 5000;
/** How long suspend waits for what is in flight, as FreeBSD's vtblk_quiesce. */
const QUIESCE_MS = 30_000;

const requestTypes: Readonly<Record<BioCommand, BlockRequestType>> = {
  [BioCommand.READ]: BlockRequestType.IN,
  [BioCommand.WRITE]: BlockRequestType.OUT,
  [BioCommand.FLUSH]: BlockRequestType.FLUSH,
};

/** Options of {@link vtblk}: tunables by another way. */
export interface VtblkOptions {
  /** Do not ask the device for its serial number. Default false. */
  readonly noIdent?: boolean;
  /** Most request queues, 1 to 64; never more than the machine has CPUs. Default 8. */
  readonly maxQueues?: number;
}

/**
 * The block driver: `attach(node, vtblk())` gives a {@link @virtio/core#Disk}.
 * @see virtio_blk(4)
 */
export function vtblk(options: VtblkOptions = {}): Driver<Disk> {
  return {
    name: "vtblk",
    description: "VirtIO Block Adapter",
    types: [DeviceType.BLOCK],
    features: featureNames,
    tunables,
    options: {
      ...(options.noIdent === undefined ? {} : { no_ident: Number(options.noIdent) }),
      ...(options.maxQueues === undefined ? {} : { max_queues: options.maxQueues }),
    },
    attach: async (device, context) => (await Vtblk.attach(device, context)).disk,
  };
}

/** What the driver learnt of the device at attach. */
interface Geometry {
  readonly sectorSize: number;
  readonly mediaSize: number;
  readonly readOnly: boolean;
  readonly canFlush: boolean;
  readonly dataSegments: number;
  readonly pageSize: number;
  /** Request queues of the device. */
  readonly queues: number;
}

/** States: running, suspended, closed. Only a running driver gives the device requests; a closed one fails them. */
class Vtblk implements DiskProvider {
  readonly name: string;
  /** The disk that stands over this driver. */
  readonly disk: StrategyDisk;
  ident = "";
  onRoom: (() => void) | null = null;
  readonly closed: Promise<VirtioFault | null>;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #geometry: Geometry;
  readonly #pages: BouncePages;
  readonly #queues: readonly RequestQueue[];
  /** The queue that is tried first. */
  #turn = 0;
  #suspended = false;
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
  ) {
    this.name = `vtbd${context.unit}`;
    this.#device = device;
    this.#context = context;
    this.#geometry = geometry;
    const { memory, tasks } = device;
    const pages = new BouncePages(memory, PAGES, geometry.pageSize);
    const options = {
      disk: this.name,
      memory,
      tasks,
      log: context.log,
      pages,
      dataSegments: geometry.dataSegments,
      indirect: features.has(ReservedFeature.INDIRECT_DESC),
      legacy: !features.has(ReservedFeature.VERSION_1),
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
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    this.disk = new StrategyDisk(this);
  }

  /** virtio 1.4 §3.1.1, steps 4 to 7; §5.2.5. */
  static async attach(device: VirtioDevice, context: DriverContext): Promise<Vtblk> {
    const features = await device.negotiate(wanted);
    await device.finalizeFeatures();
    const geometry = await readGeometry(device, features, context.name);
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
    const driver = new Vtblk(device, context, features, fit, queues);
    for (const queue of driver.#queues) queue.arm();
    return driver;
  }

  get sectorSize(): number {
    return this.#geometry.sectorSize;
  }
  get mediaSize(): number {
    return this.#geometry.mediaSize;
  }
  get readOnly(): boolean {
    return this.#geometry.readOnly;
  }
  get maxTransfer(): number {
    const { dataSegments, pageSize } = this.#geometry;
    return Math.min(TRANSFER_MAX, dataSegments * pageSize);
  }

  /** DRIVER_OK is set: the serial number, then the disk becomes visible. */
  async started(): Promise<void> {
    if (this.#context.tunables.number("no_ident") === 0) await this.#identify();
    const { sectorSize, mediaSize } = this;
    this.#context.log(
      `${Math.floor(mediaSize / 2 ** 20)}MB (${mediaSize / sectorSize} ${sectorSize} byte sectors)`,
    );
    this.#unpublish = this.#context.publish(this.disk);
  }

  async #identify(): Promise<void> {
    const bytes = new Uint8Array(BLOCK_ID_SIZE);
    const fault = await new Promise<VirtioFault | null>((resolve) => {
      const late = this.#device.tasks.callout(IDENTIFY_MS, () => {
        bio.data = null;
        resolve(this.#fail("TIMED_OUT", `no answer to GET_ID after ${IDENTIFY_MS} ms`));
      });
      const done = (fault: VirtioFault | null): void => {
        late.stop();
        resolve(fault);
      };
      const bio: Bio = { command: BioCommand.READ, position: 0, data: bytes, done };
      this.#start(BlockRequestType.GET_ID, bio);
      this.start();
    });
    if (fault === null) this.ident = text(bytes);
    // The request failed, and the disk does without; or the device did, and there is no disk.
    else if (!["IO", "UNSUPPORTED", "TIMED_OUT"].includes(fault.code)) throw fault;
    else this.#context.log(`error getting device identifier: ${Errno[fault.errno]}`);
  }

  // ── requests ────────────────────────────────────────────────────────────────

  strategy(bio: Bio): boolean {
    if (bio.command === BioCommand.FLUSH && !this.#geometry.canFlush && this.#fault === null) {
      // Without FLUSH every write that is done is stable (§5.2.5.1).
      bio.done(null);
      return true;
    }
    return this.#start(requestTypes[bio.command], bio);
  }

  /** One doorbell for a batch; the next batch goes to the next queue. */
  start(): void {
    const queues = this.#queues;
    for (let i = 0; i < queues.length; i++) (queues[i] as RequestQueue).notify();
    this.#advance();
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
      bio.done(this.#fault);
      return true;
    }
    if (this.#suspended) return false;
    const queues = this.#queues;
    for (let tries = 0; tries < queues.length; tries++) {
      if ((queues[this.#turn] as RequestQueue).start(type, bio)) return true;
      this.#advance();
    }
    return false;
  }

  get #inFlight(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.inFlight, 0);
  }

  #progress(): void {
    if (this.#onIdle !== null && this.#inFlight === 0) this.#onIdle();
    this.onRoom?.();
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  /** The device broke a rule, wants a reset, or is gone: each request fails once; memory it held waits for a reset. */
  #broken(fault: VirtioFault): void {
    this.#fault ??= fault;
    this.#close(this.#fault);
    this.#failAll(this.#fault);
  }

  #failAll(fault: VirtioFault): void {
    for (const queue of this.#queues) queue.failAll(fault);
    this.#progress();
  }

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  async #detach(): Promise<void> {
    this.#unpublish();
    const orderly = this.#fault === null;
    this.#fault ??= this.#fail("CLOSED", "the disk is detached");
    try {
      await this.#device.release();
      this.#free();
    } finally {
      this.#failAll(this.#fault);
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
    this.#suspended = true;
    if (!(await this.#quiesced())) {
      this.#goOn();
      throw this.#fail("BUSY", `${this.#inFlight} requests are in flight after ${QUIESCE_MS} ms`);
    }
    // One that failed meanwhile has nothing to suspend.
    if (this.#fault === null) await this.#device.suspend();
  }

  /** Waits until nothing is in flight, with a bound. */
  async #quiesced(): Promise<boolean> {
    if (this.#inFlight === 0) return true;
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
    if (this.#fault === null) await this.#device.resume();
    for (const queue of this.#queues) queue.arm();
    this.#goOn();
  }

  #goOn(): void {
    this.#suspended = false;
    this.onRoom?.();
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

/** Device configuration, each field only with its feature (§5.2.4), and nothing believed that is no disk's. */
async function readGeometry(
  device: VirtioDevice,
  features: FeatureSet<Features>,
  name: string,
): Promise<Geometry> {
  const fields: Record<string, ConfigField> = { capacity: BlockConfig.capacity };
  if (features.has(BlockFeature.SIZE_MAX)) fields["sizeMax"] = BlockConfig.sizeMax;
  if (features.has(BlockFeature.SEG_MAX)) fields["segMax"] = BlockConfig.segMax;
  if (features.has(BlockFeature.BLK_SIZE)) fields["blkSize"] = BlockConfig.blkSize;
  if (features.has(BlockFeature.MQ)) fields["numQueues"] = BlockConfig.numQueues;
  const {
    capacity = 0,
    sizeMax = PAGE_SIZE,
    segMax = 1,
    blkSize: sectorSize = SECTOR_SIZE,
    numQueues: queues = 1,
  } = await device.config.readAll(fields);
  const refuse = (what: string): never => {
    throw new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: ${what}`, {
      device: name,
      clause: "virtio 1.4 §5.2.4",
    });
  };
  if (
    sectorSize < SECTOR_SIZE ||
    sectorSize > SECTOR_SIZE_MAX ||
    (sectorSize & (sectorSize - 1)) !== 0
  )
    refuse(`blk_size is ${sectorSize}`);
  if (sizeMax < sectorSize) refuse(`size_max is ${sizeMax}, less than a sector`);
  if (segMax < 1) refuse(`seg_max is ${segMax}`);
  if (queues < 1) refuse(`num_queues is ${queues}`);
  const mediaSize = Math.floor((capacity * SECTOR_SIZE) / sectorSize) * sectorSize;
  if (!Number.isSafeInteger(capacity * SECTOR_SIZE)) refuse(`capacity is ${capacity} sectors`);
  return {
    sectorSize,
    mediaSize,
    readOnly: features.has(BlockFeature.RO),
    canFlush: features.has(BlockFeature.FLUSH),
    dataSegments: Math.min(segMax, DATA_SEGMENTS_MAX),
    pageSize: Math.min(PAGE_SIZE, 2 ** Math.floor(Math.log2(sizeMax))),
    queues,
  };
}

/** What a queue of this size can carry: a chain is never longer than it. @throws VirtioFault INVALID */
function fitted(geometry: Geometry, size: number, name: string): Geometry {
  const dataSegments = Math.min(geometry.dataSegments, size - OVERHEAD_SEGMENTS);
  if (dataSegments < 1)
    throw new VirtioFault("INVALID", `fewer than minimum number of segments allowed: ${size}`, {
      device: name,
    });
  return { ...geometry, dataSegments };
}

/** A NUL-padded string; what is not printable ASCII shows as a question mark. */
function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return Array.from(end < 0 ? bytes : bytes.subarray(0, end), (byte) =>
    byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "?",
  ).join("");
}

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
  BLOCK_HEADER_SIZE,
  BLOCK_ID_SIZE,
  BlockConfig,
  BlockFeature,
  BlockRequestType,
  BlockStatus,
  SECTOR_SIZE,
} from "@virtio/core/block";
import { type Bio, BioCommand, type DiskProvider, StrategyDisk } from "@virtio/storage";
import { RequestMemory } from "./requests.js";

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
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

/** `hw.vtblk.no_ident` (virtio_blk(4)). */
const tunables: readonly TunableSpec[] = [
  {
    name: "no_ident",
    default: 0,
    min: 0,
    max: 1,
    description: "Do not ask the device for its serial number",
  },
];

// ── limits ────────────────────────────────────────────────────────────────────

/** Bytes of a page to bounce through, and of one data segment. */
const PAGE_SIZE = 16384;
/** 4 MiB of them in flight. */
const PAGES = 256;
/** Most data segments of a request: with header and status, what fits an indirect table of one 4 KiB page. */
const DATA_SEGMENTS_MAX = 254;
/** Segments of a request besides data: header and status. */
const OVERHEAD_SEGMENTS = 2;
/** Most bytes of one request: maxphys on a 64-bit FreeBSD. */
const TRANSFER_MAX = 1 << 20;
/** Sector sizes beyond this are no disk's. */
const SECTOR_SIZE_MAX = 65536;
/** Used requests taken before other tasks get their turn. */
const BATCH = 256;
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
    options: options.noIdent === undefined ? {} : { no_ident: Number(options.noIdent) },
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
}

/** A request that the device may hold: what to do when it is done. */
interface Request {
  readonly type: BlockRequestType;
  readonly bio: Bio;
  /** First page it is bounced through; -1: in place, or no data. */
  readonly page: number;
  readonly length: number;
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
  readonly #queue: Virtqueue;
  readonly #memory: RequestMemory;
  /** By slot. */
  readonly #requests: (Request | null)[];
  readonly #segments: Uint32Array;
  #inFlight = 0;
  #suspended = false;
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};
  #unpublish: () => void = () => {};
  #onIdle: (() => void) | null = null;

  private constructor(
    device: VirtioDevice,
    context: DriverContext,
    geometry: Geometry,
    queue: Virtqueue,
  ) {
    this.name = `vtbd${context.unit}`;
    this.#device = device;
    this.#context = context;
    this.#geometry = geometry;
    this.#queue = queue;
    this.#memory = new RequestMemory(device.memory, queue.size, PAGES, geometry.pageSize);
    this.#requests = new Array(queue.size).fill(null);
    this.#segments = new Uint32Array(2 * (geometry.dataSegments + OVERHEAD_SEGMENTS));
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    this.disk = new StrategyDisk(this);
    queue.onUsed = () => this.#completions();
    queue.onBroken = (fault) => this.#broken(fault);
  }

  /** virtio 1.4 §3.1.1, steps 4 to 7; §5.2.5. */
  static async attach(device: VirtioDevice, context: DriverContext): Promise<Vtblk> {
    const features = await device.negotiate(wanted);
    await device.finalizeFeatures();
    const geometry = await readGeometry(device, features, context.name);
    const [queue] = await device.allocateQueues([
      {
        name: `${context.name} request`,
        maxSegments: geometry.dataSegments + OVERHEAD_SEGMENTS,
        interrupt: true,
      },
    ]);
    if (queue === undefined)
      throw new VirtioFault("NOT_FOUND", "cannot allocate virtqueue", { device: context.name });
    const driver = new Vtblk(device, context, fitted(geometry, queue.size, context.name), queue);
    await device.setupInterrupts();
    queue.enableInterrupt();
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
      this.#queue.notify();
    });
    if (fault === null) this.ident = text(bytes);
    else this.#context.log(`error getting device identifier: ${Errno[fault.errno]}`);
  }

  // ── the hot path ────────────────────────────────────────────────────────────

  strategy(bio: Bio): boolean {
    if (bio.command === BioCommand.FLUSH && !this.#geometry.canFlush && this.#fault === null) {
      // Without FLUSH every write that is done is stable (§5.2.5.1).
      bio.done(null);
      return true;
    }
    return this.#start(requestTypes[bio.command], bio);
  }

  start(): void {
    this.#queue.notify();
  }

  inPlace(data: Uint8Array): boolean {
    return data.buffer === this.#device.memory.buffer;
  }

  /** Gives the device one request; false when there is no room for it now. */
  #start(type: BlockRequestType, bio: Bio): boolean {
    if (this.#fault !== null) {
      bio.done(this.#fault);
      return true;
    }
    if (this.#suspended) return false;
    const memory = this.#memory;
    const segments = this.#segments;
    const data = bio.data ?? new Uint8Array(0);
    const { length } = data;
    const inPlace = length > 0 && this.inPlace(data);
    const { pageSize } = memory;
    const pieces = Math.ceil(length / pageSize);
    if (!inPlace && pieces > memory.pagesFree) return false;
    const slot = memory.takeSlot();
    if (slot < 0) return false;

    memory.begin(slot, type, bio.position / SECTOR_SIZE);
    let at = 0;
    segments[at++] = memory.headerAddress(slot);
    segments[at++] = BLOCK_HEADER_SIZE;
    // Pages are taken from the last piece to the first, each linked in front of the one before.
    let page = -1;
    for (let i = pieces - 1; i >= 0; i--) {
      const from = i * pageSize;
      const size = Math.min(pageSize, length - from);
      const place = 2 + 2 * i;
      if (inPlace) segments[place] = this.#device.memory.base + data.byteOffset + from;
      else {
        page = memory.takePage(page);
        if (type === BlockRequestType.OUT) memory.fill(page, data.subarray(from, from + size));
        segments[place] = memory.pageAddress(page);
      }
      segments[place + 1] = size;
    }
    at += 2 * pieces;
    segments[at++] = memory.statusAddress(slot);
    segments[at] = 1;

    const readable = type === BlockRequestType.OUT ? 1 + pieces : 1;
    const error = this.#queue.enqueue(
      slot,
      segments,
      0,
      readable,
      pieces + OVERHEAD_SEGMENTS - readable,
    );
    if (error !== 0) {
      memory.givePages(page);
      memory.giveSlot(slot);
      if (error === -Errno.ENOSPC || error === -Errno.EMSGSIZE) return false;
      bio.done(this.#queue.broken ?? this.#fail("IO", `request refused: errno ${-error}`));
      return true;
    }
    this.#requests[slot] = { type, bio, page, length };
    this.#inFlight += 1;
    return true;
  }

  /** The device signalled: take what is used, arm, and look again. */
  #completions(): void {
    const queue = this.#queue;
    queue.disableInterrupt();
    let left = BATCH;
    do {
      for (let slot = queue.dequeue(); slot >= 0; slot = queue.dequeue()) {
        this.#complete(slot, queue.usedLength);
        left -= 1;
        if (left === 0) {
          this.#device.tasks.enqueue(() => this.#completions());
          this.#room();
          return;
        }
      }
    } while (queue.enableInterrupt());
    this.#room();
  }

  #room(): void {
    if (this.#inFlight === 0) this.#onIdle?.();
    this.onRoom?.();
  }

  #complete(slot: number, used: number): void {
    const request = this.#requests[slot];
    if (request === null || request === undefined) return;
    const { type, bio, page, length } = request;
    const memory = this.#memory;
    this.#requests[slot] = null;
    this.#inFlight -= 1;
    const reads = type === BlockRequestType.IN || type === BlockRequestType.GET_ID;
    const fault = this.#outcome(request, memory.status(slot), used >= (reads ? length : 0) + 1);
    if (fault === null && reads && page >= 0 && bio.data !== null) {
      let at = 0;
      for (let p = page; p >= 0; p = memory.nextPage(p)) {
        memory.copy(p, bio.data.subarray(at, Math.min(at + memory.pageSize, length)));
        at += memory.pageSize;
      }
    }
    memory.givePages(page);
    memory.giveSlot(slot);
    bio.done(fault);
  }

  /** Status to errno. Success counts only when used.len covers data and status: beyond it nothing is said (§2.7.8.3). */
  #outcome({ type, bio, length }: Request, status: number, covered: boolean): VirtioFault | null {
    if (status === BlockStatus.OK && covered) return null;
    if (status === BlockStatus.UNSUPP)
      return this.#fail("UNSUPPORTED", `${BlockRequestType[type]} is not supported by the device`);
    const first = bio.position / SECTOR_SIZE;
    const range = length === 0 ? "" : ` ${first}-${first + length / SECTOR_SIZE - 1}`;
    if (type !== BlockRequestType.GET_ID)
      this.#context.log(`hard error cmd=${bio.command}${range}`);
    return this.#fail(
      "IO",
      `${bio.command} failed:${range === "" ? "" : ` sectors${range},`} status ${status}`,
    );
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  /** The device broke a rule, wants a reset, or is gone: each request fails once; memory it held waits for a reset. */
  #broken(fault: VirtioFault): void {
    this.#fault ??= fault;
    this.#close(this.#fault);
    this.#failAll(this.#fault);
  }

  #failAll(fault: VirtioFault): void {
    for (const [slot, request] of this.#requests.entries()) {
      if (request === null) continue;
      this.#requests[slot] = null;
      this.#inFlight -= 1;
      request.bio.done(fault);
    }
    this.#room();
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
      this.#memory.free();
    } finally {
      this.#failAll(this.#fault);
      this.#close(orderly ? null : this.#fault);
    }
  }

  async suspend(): Promise<void> {
    this.#suspended = true;
    if (this.#inFlight === 0) return;
    const idle = await new Promise<boolean>((resolve) => {
      const late = this.#device.tasks.callout(QUIESCE_MS, () => resolve(false));
      this.#onIdle = () => {
        late.stop();
        resolve(true);
      };
    });
    this.#onIdle = null;
    if (idle) return;
    await this.resume();
    throw this.#fail("BUSY", `${this.#inFlight} requests are in flight after ${QUIESCE_MS} ms`);
  }

  async resume(): Promise<void> {
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
  const {
    capacity = 0,
    sizeMax = PAGE_SIZE,
    segMax = 1,
    blkSize: sectorSize = SECTOR_SIZE,
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
  const mediaSize = Math.floor((capacity * SECTOR_SIZE) / sectorSize) * sectorSize;
  if (!Number.isSafeInteger(capacity * SECTOR_SIZE)) refuse(`capacity is ${capacity} sectors`);
  return {
    sectorSize,
    mediaSize,
    readOnly: features.has(BlockFeature.RO),
    canFlush: features.has(BlockFeature.FLUSH),
    dataSegments: Math.min(segMax, DATA_SEGMENTS_MAX),
    pageSize: Math.min(PAGE_SIZE, 2 ** Math.floor(Math.log2(sizeMax))),
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

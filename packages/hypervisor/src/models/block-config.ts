// What a block device offers and says of itself: struct virtio_blk_config (virtio 1.4 §5.2.3 to §5.2.5).
import { ReservedFeature, VirtioFault } from "@virtio/core";
import {
  BLOCK_CONFIG_SIZE,
  BlockConfig,
  type BlockConfigField,
  BlockFeature,
  BlockZonedModel,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { BlockBackend } from "../block-backend.js";
import { hasBit } from "../feature-words.js";
import type { RegisterSpace } from "../registers.js";
import { blockConfigGate } from "../rules/block-rules.js";
import { checkZones, type ZonedCharacteristics } from "./zones.js";

/** Bounds of the requests that name ranges of sectors. */
export interface RangeLimits {
  /** Sectors of one segment. Default 0x3fffff, QEMU's. */
  readonly maxSectors?: number | undefined;
  /** Segments of one request. Default 16. */
  readonly maxSegments?: number | undefined;
  /** Sectors: where a driver best cuts a range in two. Default: a block's. Write zeroes has none. */
  readonly alignment?: number | undefined;
}

/** What a block device says of itself besides its size. What is left out is as QEMU has it. */
export interface BlockCharacteristics {
  /** Bytes of a block, a power of two from 512 on: requests that are not made of whole blocks fail. Default 512. */
  readonly blockSize?: number | undefined;
  /** Most bytes of a data segment: SIZE_MAX is offered, and a request with a longer one fails. */
  readonly sizeMax?: number | undefined;
  /** In blocks, but for the exponent: physical blocks are `blockSize << physicalBlockExp` bytes. Default: nothing special. */
  readonly topology?:
    | {
        readonly physicalBlockExp?: number;
        readonly alignmentOffset?: number;
        readonly minIoSize?: number;
        readonly optIoSize?: number;
      }
    | undefined;
  readonly discard?: RangeLimits | undefined;
  readonly writeZeroes?: RangeLimits | undefined;
  /** SECURE_ERASE is offered. */
  readonly secureErase?: RangeLimits | undefined;
  /** ZONED is offered. A zoned device has no legacy interface (§5.2.5.2). */
  readonly zoned?: ZonedCharacteristics | undefined;
  /** The answer to GET_LIFETIME, values of §5.2.6: LIFETIME is offered. Default, with `lifetime=on`: a new disk's. */
  readonly lifetime?:
    | { readonly preEolInfo: number; readonly estTypA: number; readonly estTypB: number }
    | undefined;
}

/** Offered unless held back: what QEMU's device offers. */
const offeredByDefault: readonly BlockFeature[] = [
  BlockFeature.SEG_MAX,
  BlockFeature.GEOMETRY,
  BlockFeature.BLK_SIZE,
  BlockFeature.FLUSH,
  BlockFeature.TOPOLOGY,
  BlockFeature.CONFIG_WCE,
  BlockFeature.DISCARD,
  BlockFeature.WRITE_ZEROES,
];

/** Offered when named, or when a characteristic gives what they need. */
const offeredOnDemand: readonly BlockFeature[] = [
  BlockFeature.BARRIER,
  BlockFeature.SIZE_MAX,
  BlockFeature.LIFETIME,
  BlockFeature.SECURE_ERASE,
];

/** Features that a specification can name. RO comes with the backend, MQ with the number of queues, ZONED with zones. */
export const blockModelFeatures: readonly BlockFeature[] = [
  ...offeredByDefault,
  ...offeredOnDemand,
];

const models = {
  none: BlockZonedModel.NONE,
  "host-managed": BlockZonedModel.HM,
  "host-aware": BlockZonedModel.HA,
} as const;

const SIZE_MAX_DEFAULT = 0x1_0000;
const MAX_SECTORS_DEFAULT = 0x3f_ffff;
const MAX_SEGMENTS_DEFAULT = 16;

/** What the configuration is made of. */
export interface BlockConfigurationOptions {
  readonly backend: BlockBackend;
  /** Most data segments of a request. */
  readonly segMax: number;
  readonly queues: number;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: BlockCharacteristics;
}

/** The device's configuration space, and the cache mode that it shows. */
export class BlockConfiguration implements RegisterSpace {
  readonly length: number = BLOCK_CONFIG_SIZE;
  readonly offered: readonly BlockFeature[];
  readonly #bytes = new DataView(new ArrayBuffer(BLOCK_CONFIG_SIZE));
  readonly #backend: BlockBackend;
  #accepted: ArrayLike<number> = [];
  readonly #offersFlush: boolean;
  readonly #offersWce: boolean;
  readonly #zoned: BlockZonedModel;
  /** What the driver wrote to `writeback`; null: nothing. */
  #writeback: number | null = null;

  /** @throws VirtioFault INVALID */
  constructor(options: BlockConfigurationOptions) {
    const { backend, segMax, queues, characteristics } = options;
    const { blockSize = SECTOR_SIZE, sizeMax = SIZE_MAX_DEFAULT, topology = {} } = characteristics;
    if (blockSize < SECTOR_SIZE || (blockSize & (blockSize - 1)) !== 0)
      throw new VirtioFault("INVALID", `blockSize ${blockSize} is not a power of two from 512 on`);
    if (backend.size % blockSize !== 0)
      throw new VirtioFault(
        "INVALID",
        `a disk of ${backend.size} bytes is not made of blocks of ${blockSize}`,
      );
    this.#backend = backend;
    this.offered = offer(options);
    this.#offersFlush = this.offered.includes(BlockFeature.FLUSH);
    this.#offersWce = this.offered.includes(BlockFeature.CONFIG_WCE);
    const { discard = {}, writeZeroes = {}, secureErase = {}, zoned } = characteristics;
    this.#zoned = models[zoned?.model ?? "none"];
    const sectors = blockSize / SECTOR_SIZE;
    this.#set({
      sizeMax,
      segMax,
      blkSize: blockSize,
      physicalBlockExp: topology.physicalBlockExp ?? 0,
      alignmentOffset: topology.alignmentOffset ?? 0,
      minIoSize: topology.minIoSize ?? 0,
      optIoSize: topology.optIoSize ?? 0,
      numQueues: queues,
      maxDiscardSectors: discard.maxSectors ?? MAX_SECTORS_DEFAULT,
      maxDiscardSeg: discard.maxSegments ?? MAX_SEGMENTS_DEFAULT,
      discardSectorAlignment: discard.alignment ?? sectors,
      maxWriteZeroesSectors: writeZeroes.maxSectors ?? MAX_SECTORS_DEFAULT,
      maxWriteZeroesSeg: writeZeroes.maxSegments ?? MAX_SEGMENTS_DEFAULT,
      writeZeroesMayUnmap: Number(backend.mayUnmap ?? false),
      maxSecureEraseSectors: secureErase.maxSectors ?? MAX_SECTORS_DEFAULT,
      maxSecureEraseSeg: secureErase.maxSegments ?? MAX_SEGMENTS_DEFAULT,
      secureEraseSectorAlignment: secureErase.alignment ?? sectors,
    });
    if (zoned !== undefined) this.#setZones(zoned, secureErase, segMax, blockSize);
    this.resized();
  }

  /** @param accepted - words of the bits the driver accepted, in which they change */
  connect(accepted: ArrayLike<number>): void {
    this.#accepted = accepted;
  }

  /** Fields as the driver reads them; those of a feature that is not offered stay 0. */
  #set(fields: Partial<Record<BlockConfigField, number>>): void {
    for (const [name, value = 0] of Object.entries(fields)) {
      const [offset, width] = BlockConfig[name as BlockConfigField];
      const gate = blockConfigGate(offset);
      if (gate !== undefined && !this.offered.includes(gate)) continue;
      if (width === 1) this.#bytes.setUint8(offset, value);
      else if (width === 2) this.#bytes.setUint16(offset, value, true);
      else this.#bytes.setUint32(offset, value % 0x1_0000_0000, true);
      if (width === 8) this.#bytes.setUint32(offset + 4, Math.floor(value / 0x1_0000_0000), true);
    }
  }

  /** @throws VirtioFault INVALID */
  #setZones(
    zoned: ZonedCharacteristics,
    { alignment }: RangeLimits,
    segMax: number,
    blockSize: number,
  ): void {
    const { zoneSectors, zoneCapacity = zoneSectors, maxOpen = 0, maxActive = 0 } = zoned;
    const { writeGranularity = blockSize } = zoned;
    checkZones(zoned, writeGranularity, blockSize);
    if (this.#zoned === BlockZonedModel.NONE) return;
    // An append is no longer than a request can be; and on a host-aware device there is none (§5.2.5.2, §5.2.6.2).
    const sizeMax = this.field("sizeMax") || Number.POSITIVE_INFINITY;
    const carried = Math.floor((segMax * sizeMax) / writeGranularity) * writeGranularity;
    const most = Math.min(zoneCapacity, carried / SECTOR_SIZE);
    const { maxAppendSectors = this.#zoned === BlockZonedModel.HM ? most : 0 } = zoned;
    if (maxAppendSectors * SECTOR_SIZE > segMax * sizeMax)
      throw new VirtioFault(
        "INVALID",
        `zoned: maxAppendSectors ${maxAppendSectors} is more than a request of ${segMax} segments carries`,
      );
    const secureEraseSectorAlignment = alignment ?? zoneSectors;
    if (secureEraseSectorAlignment % zoneSectors !== 0)
      throw new VirtioFault(
        "INVALID",
        `zoned: secureErase.alignment ${alignment} is not made of zones of ${zoneSectors}`,
      );
    this.#set({
      secureEraseSectorAlignment,
      zoneSectors,
      maxOpenZones: maxOpen,
      maxActiveZones: maxActive,
      maxAppendSectors,
      writeGranularity,
      zonedModel: this.#zoned,
    });
  }

  /** A host-managed device runs with no driver that does not know zones (§5.2.5.2). */
  get acceptable(): boolean {
    return !this.hostManaged || hasBit(this.#accepted, BlockFeature.ZONED);
  }

  get hostManaged(): boolean {
    return this.#zoned === BlockZonedModel.HM;
  }

  /** The backend has another size now. */
  resized(): void {
    const capacity = this.#backend.size / SECTOR_SIZE;
    const [heads, sectors] = [16, 63];
    const cylinders = Math.min(0xffff, Math.floor(capacity / (heads * sectors)));
    this.#set({ capacity, cylinders, heads, sectors });
  }

  /** The value of a field of at most 4 bytes. */
  field(name: BlockConfigField): number {
    const [offset, width] = BlockConfig[name];
    return this.read(offset, width === 8 ? 4 : width);
  }

  read(offset: number, width: 1 | 2 | 4): number {
    const bytes = this.#bytes;
    if (this.#offersWce) bytes.setUint8(BlockConfig.writeback[0], this.#cacheMode());
    // Without ZONED accepted a device that is not host-managed is a disk as any other (§5.2.5.2).
    const plain = this.modern && !hasBit(this.#accepted, BlockFeature.ZONED);
    if (offset >= BlockConfig.zoneSectors[0] && plain && !this.hostManaged) return 0;
    return width === 1
      ? bytes.getUint8(offset)
      : width === 2
        ? bytes.getUint16(offset, true)
        : bytes.getUint32(offset, true);
  }

  /** `writeback` is the only field that can be written. */
  write(offset: number, _width: 1 | 2 | 4, value: number): void {
    if (offset !== BlockConfig.writeback[0] || !this.writebackWritable) return;
    this.#writeback = (value & 0xff) === 0 ? 0 : 1;
  }

  /** Whether the driver may write `writeback`: a legacy driver also before it says what it accepts (§5.2.5.3). */
  get writebackWritable(): boolean {
    return this.modern ? hasBit(this.#accepted, BlockFeature.CONFIG_WCE) : this.#offersWce;
  }

  /** The driver accepted VERSION_1. */
  get modern(): boolean {
    return hasBit(this.#accepted, ReservedFeature.VERSION_1);
  }

  /** Whether a write must be stable when it is over (§5.2.6.2). */
  get writethrough(): boolean {
    const accepted = this.#accepted;
    if (hasBit(accepted, BlockFeature.CONFIG_WCE)) return this.#cacheMode() === 0;
    return this.#offersFlush && !hasBit(accepted, BlockFeature.FLUSH);
  }

  /** 0 writethrough, 1 writeback. A legacy driver's choice of features does not change it (§5.2.5.2, §5.2.5.3). */
  #cacheMode(): number {
    if (this.#writeback !== null) return this.#writeback;
    const accepted = this.#accepted;
    const cannotFlush =
      hasBit(accepted, BlockFeature.CONFIG_WCE) && !hasBit(accepted, BlockFeature.FLUSH);
    return this.modern && cannotFlush ? 0 : 1;
  }

  /** As after a reset of the device. */
  reset(): void {
    this.#writeback = null;
  }
}

function offer({
  backend,
  queues,
  features,
  characteristics,
}: BlockConfigurationOptions): readonly BlockFeature[] {
  const given = new Map<BlockFeature, unknown>([
    [BlockFeature.SIZE_MAX, characteristics.sizeMax],
    [BlockFeature.LIFETIME, characteristics.lifetime],
    [BlockFeature.SECURE_ERASE, characteristics.secureErase],
  ]);
  const named = (bit: BlockFeature): boolean | undefined => features[BlockFeature[bit]];
  const offered = blockModelFeatures.filter(
    (bit) => named(bit) ?? (offeredByDefault.includes(bit) || given.get(bit) !== undefined),
  );
  if (backend.readOnly) offered.push(BlockFeature.RO);
  if (queues > 1) offered.push(BlockFeature.MQ);
  if (characteristics.zoned !== undefined) offered.push(BlockFeature.ZONED);
  if (offered.includes(BlockFeature.FLUSH)) return offered;
  // A device that offers CONFIG_WCE offers FLUSH (§5.2.5.2).
  if (named(BlockFeature.CONFIG_WCE) === true)
    throw new VirtioFault("INVALID", "config_wce=on does not go with flush=off");
  return offered.filter((bit) => bit !== BlockFeature.CONFIG_WCE);
}

// What a block device says of itself in its configuration (virtio 1.4 §5.2.4), checked.
import { type ConfigField, type FeatureSet, type VirtioDevice, VirtioFault } from "@virtio/core";
import {
  BlockConfig,
  type BlockConfigField,
  BlockFeature,
  type BlockZonedModel,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { RangeLimits } from "@virtio/storage";
import type { Features } from "./features.js";
import { OVERHEAD_SEGMENTS } from "./request-queue.js";
import { DeviceZones } from "./zones.js";

/** Bytes of a page to bounce through, and of one data segment. */
const PAGE_SIZE = 16384;
/** Most data segments of a request: with header and status, what fits an indirect table of one 4 KiB page. */
const DATA_SEGMENTS_MAX = 254;
/** Most bytes of one request: maxphys on a 64-bit FreeBSD. */
const TRANSFER_MAX = 1 << 20;
/** Sector sizes beyond this are no disk's. */
const SECTOR_SIZE_MAX = 65536;
/** Physical blocks of more than 2^16 sectors are no disk's: nothing is said of them. */
const BLOCK_EXP_MAX = 16;

/** What the driver learnt of the device at attach. Bytes. */
export interface Geometry {
  readonly sectorSize: number;
  readonly mediaSize: number;
  readonly stripeSize: number;
  readonly stripeOffset: number;
  readonly firmwareHeads: number;
  readonly firmwareSectors: number;
  readonly dataSegments: number;
  readonly pageSize: number;
  readonly maxTransfer: number;
  readonly discard: RangeLimits | null;
  readonly writeZeroes: RangeLimits | null;
  readonly secureErase: RangeLimits | null;
  /** Writing zeroes may give space back. */
  readonly mayUnmap: boolean;
  /** Null: it has none, or they are its own affair. */
  readonly zones: DeviceZones | null;
  /** The cache mode it is in; 0 without CONFIG_WCE. */
  readonly writeback: number;
  /** Request queues of the device. */
  readonly queues: number;
}

/** The fields that are there with each feature. `capacity` always is. */
const fieldsOf: readonly (readonly [BlockFeature, ...BlockConfigField[]])[] = [
  [BlockFeature.SIZE_MAX, "sizeMax"],
  [BlockFeature.SEG_MAX, "segMax"],
  [BlockFeature.GEOMETRY, "heads", "sectors"],
  [BlockFeature.BLK_SIZE, "blkSize"],
  [BlockFeature.TOPOLOGY, "physicalBlockExp", "alignmentOffset"],
  [BlockFeature.CONFIG_WCE, "writeback"],
  [BlockFeature.MQ, "numQueues"],
  [BlockFeature.DISCARD, "maxDiscardSectors", "maxDiscardSeg", "discardSectorAlignment"],
  [BlockFeature.WRITE_ZEROES, "maxWriteZeroesSectors", "maxWriteZeroesSeg", "writeZeroesMayUnmap"],
  [
    BlockFeature.SECURE_ERASE,
    "maxSecureEraseSectors",
    "maxSecureEraseSeg",
    "secureEraseSectorAlignment",
  ],
  [
    BlockFeature.ZONED,
    "zoneSectors",
    "maxOpenZones",
    "maxActiveZones",
    "maxAppendSectors",
    "writeGranularity",
    "zonedModel",
  ],
];

/**
 * Reads each field only with its feature, and believes nothing that is no disk's.
 * @param model - what the device said of its zones
 * @param name - `vtblk0`, for errors
 * @throws VirtioFault DEVICE_MISBEHAVED
 */
export async function readGeometry(
  device: VirtioDevice,
  features: FeatureSet<Features>,
  model: BlockZonedModel,
  name: string,
): Promise<Geometry> {
  const fields: Partial<Record<BlockConfigField, ConfigField>> = { capacity: BlockConfig.capacity };
  for (const [feature, ...names] of fieldsOf)
    if (features.has(feature)) for (const field of names) fields[field] = BlockConfig[field];
  const read: Partial<Record<BlockConfigField, number>> = await device.config.readAll(
    fields as Record<BlockConfigField, ConfigField>,
  );
  const { capacity = 0, sizeMax = PAGE_SIZE, segMax = 1, blkSize: sectorSize = SECTOR_SIZE } = read;
  const { numQueues: queues = 1, heads = 0, sectors = 0, writeback = 0 } = read;
  if (
    sectorSize < SECTOR_SIZE ||
    sectorSize > SECTOR_SIZE_MAX ||
    (sectorSize & (sectorSize - 1)) !== 0
  )
    throw refused(`blk_size is ${sectorSize}`, name);
  if (sizeMax < sectorSize) throw refused(`size_max is ${sizeMax}, less than a sector`, name);
  if (segMax < 1) throw refused(`seg_max is ${segMax}`, name);
  if (queues < 1) throw refused(`num_queues is ${queues}`, name);
  const dataSegments = Math.min(segMax, DATA_SEGMENTS_MAX);
  const pageSize = Math.min(PAGE_SIZE, 2 ** Math.floor(Math.log2(sizeMax)));
  const mediaSize = mediaSizeOf(capacity, sectorSize, name);
  const zones = DeviceZones.of(read, model, { mediaSize, sectorSize }, name);
  const erased = range(
    sectorSize,
    read.maxSecureEraseSectors,
    read.maxSecureEraseSeg,
    read.secureEraseSectorAlignment,
  );
  return {
    sectorSize,
    mediaSize,
    ...stripe(read.physicalBlockExp ?? 0, read.alignmentOffset ?? 0, sectorSize),
    firmwareHeads: heads,
    firmwareSectors: sectors,
    dataSegments,
    pageSize,
    maxTransfer: Math.min(TRANSFER_MAX, dataSegments * pageSize),
    discard: range(
      sectorSize,
      read.maxDiscardSectors,
      read.maxDiscardSeg,
      read.discardSectorAlignment,
    ),
    writeZeroes: range(sectorSize, read.maxWriteZeroesSectors, read.maxWriteZeroesSeg),
    secureErase: zones === null ? erased : wholeZones(erased, zones.zoneSize),
    zones,
    mayUnmap: (read.writeZeroesMayUnmap ?? 0) !== 0,
    writeback: writeback === 0 ? 0 : 1,
    queues,
  };
}

/** Bytes of whole sectors that `capacity` says. @throws VirtioFault DEVICE_MISBEHAVED */
export function mediaSizeOf(capacity: number, sectorSize: number, name: string): number {
  const bytes = capacity * SECTOR_SIZE;
  if (!Number.isSafeInteger(bytes)) throw refused(`capacity is ${capacity} sectors`, name);
  return Math.floor(bytes / sectorSize) * sectorSize;
}

/** What a queue of this size can carry: a chain is never longer than it. @throws VirtioFault INVALID */
export function fitted(geometry: Geometry, size: number, name: string): Geometry {
  const dataSegments = Math.min(geometry.dataSegments, size - OVERHEAD_SEGMENTS);
  if (dataSegments < 1)
    throw new VirtioFault("INVALID", `fewer than minimum number of segments allowed: ${size}`, {
      device: name,
    });
  const { pageSize } = geometry;
  const most = Math.min(geometry.maxTransfer, dataSegments * pageSize);
  if (geometry.zones === null) return { ...geometry, dataSegments, maxTransfer: most };
  const { writeGranularity } = geometry.zones;
  const maxTransfer = Math.floor(most / writeGranularity) * writeGranularity;
  if (maxTransfer === 0)
    throw refused(`write_granularity is ${writeGranularity}, more than a request of ${most}`, name);
  const zones = geometry.zones.fitted({ dataSegments, pageSize, maxTransfer });
  return { ...geometry, dataSegments, maxTransfer, zones };
}

/** A secure erase takes whole zones (§5.2.6.2). */
function wholeZones(limits: RangeLimits | null, zoneSize: number): RangeLimits | null {
  const max = limits === null ? 0 : Math.floor(limits.max / zoneSize) * zoneSize;
  return max === 0 ? null : { max, align: zoneSize };
}

/** FreeBSD's formula: the first physical block that is whole begins `alignment_offset` sectors in. */
function stripe(
  exp: number,
  alignment: number,
  sectorSize: number,
): Pick<Geometry, "stripeSize" | "stripeOffset"> {
  if (exp === 0 || exp > BLOCK_EXP_MAX) return { stripeSize: 0, stripeOffset: 0 };
  const stripeSize = sectorSize * 2 ** exp;
  const before = (alignment * sectorSize) % stripeSize;
  return { stripeSize, stripeOffset: (stripeSize - before) % stripeSize };
}

/** One segment a request; null when the device takes none, or less than a sector. In 512-byte sectors. */
function range(sectorSize: number, sectors = 0, segments = 0, align = 0): RangeLimits | null {
  const max = Math.floor((sectors * SECTOR_SIZE) / sectorSize) * sectorSize;
  if (segments < 1 || max < 1) return null;
  const bytes = align * SECTOR_SIZE;
  // Parts are whole sectors: an alignment that is none of them cannot be kept.
  return { max, align: bytes % sectorSize === 0 ? bytes : 0 };
}

function refused(what: string, device: string): VirtioFault {
  return new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: ${what}`, {
    device,
    clause: "virtio 1.4 §5.2.4",
  });
}

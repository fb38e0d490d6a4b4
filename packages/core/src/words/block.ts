// The words of the block device: virtio 1.4 §5.2. Offsets and sizes in bytes; a sector is always 512 bytes.

import type { ConfigField } from "../device.js";

/** Bytes of a sector: the unit of `capacity` and of a request's `sector`, whatever blk_size says (virtio 1.4 §5.2.4). */
export const SECTOR_SIZE = 512;

/** Feature bits (virtio 1.4 §5.2.3). Bit numbers. */
export enum BlockFeature {
  /** §5.2.3.1, legacy interface only */
  BARRIER = 0,
  /** `size_max` is valid */
  SIZE_MAX = 1,
  /** `seg_max` is valid */
  SEG_MAX = 2,
  /** `geometry` is valid */
  GEOMETRY = 4,
  /** read-only */
  RO = 5,
  /** `blk_size` is valid */
  BLK_SIZE = 6,
  /** §5.2.3.1, legacy interface only */
  SCSI = 7,
  /** flush command */
  FLUSH = 9,
  /** `topology` is valid */
  TOPOLOGY = 10,
  /** cache mode can be read and written */
  CONFIG_WCE = 11,
  /** several request queues */
  MQ = 12,
  /** discard command */
  DISCARD = 13,
  /** write zeroes command */
  WRITE_ZEROES = 14,
  /** lifetime command */
  LIFETIME = 15,
  /** secure erase command */
  SECURE_ERASE = 16,
  /** zoned block device */
  ZONED = 17,
}

/** Names of the fields of `struct virtio_blk_config`. */
export type BlockConfigField =
  | "capacity"
  | "sizeMax"
  | "segMax"
  | "cylinders"
  | "heads"
  | "sectors"
  | "blkSize"
  | "physicalBlockExp"
  | "alignmentOffset"
  | "minIoSize"
  | "optIoSize"
  | "writeback"
  | "numQueues"
  | "maxDiscardSectors"
  | "maxDiscardSeg"
  | "discardSectorAlignment"
  | "maxWriteZeroesSectors"
  | "maxWriteZeroesSeg"
  | "writeZeroesMayUnmap"
  | "maxSecureEraseSectors"
  | "maxSecureEraseSeg"
  | "secureEraseSectorAlignment"
  | "zoneSectors"
  | "maxOpenZones"
  | "maxActiveZones"
  | "maxAppendSectors"
  | "writeGranularity"
  | "zonedModel";

/** Fields of `struct virtio_blk_config` (virtio 1.4 §5.2.4): offset, width. */
export const BlockConfig: Readonly<Record<BlockConfigField, ConfigField>> = {
  capacity: [0, 8],
  sizeMax: [8, 4],
  segMax: [12, 4],
  cylinders: [16, 2],
  heads: [18, 1],
  sectors: [19, 1],
  blkSize: [20, 4],
  physicalBlockExp: [24, 1],
  alignmentOffset: [25, 1],
  minIoSize: [26, 2],
  optIoSize: [28, 4],
  writeback: [32, 1],
  numQueues: [34, 2],
  maxDiscardSectors: [36, 4],
  maxDiscardSeg: [40, 4],
  discardSectorAlignment: [44, 4],
  maxWriteZeroesSectors: [48, 4],
  maxWriteZeroesSeg: [52, 4],
  writeZeroesMayUnmap: [56, 1],
  maxSecureEraseSectors: [60, 4],
  maxSecureEraseSeg: [64, 4],
  secureEraseSectorAlignment: [68, 4],
  zoneSectors: [72, 4],
  maxOpenZones: [76, 4],
  maxActiveZones: [80, 4],
  maxAppendSectors: [84, 4],
  writeGranularity: [88, 4],
  zonedModel: [92, 1],
};

/** Bytes of `struct virtio_blk_config` (virtio 1.4 §5.2.4). */
export const BLOCK_CONFIG_SIZE = 96;

/** Request types (virtio 1.4 §5.2.6). */
export enum BlockRequestType {
  IN = 0,
  OUT = 1,
  FLUSH = 4,
  GET_ID = 8,
  GET_LIFETIME = 10,
  DISCARD = 11,
  WRITE_ZEROES = 13,
  SECURE_ERASE = 14,
  ZONE_APPEND = 15,
  ZONE_REPORT = 16,
  ZONE_OPEN = 18,
  ZONE_CLOSE = 20,
  ZONE_FINISH = 22,
  ZONE_RESET = 24,
  ZONE_RESET_ALL = 26,
}

/** Bytes of the request header: le32 type, le32 reserved, le64 sector (virtio 1.4 §5.2.6). */
export const BLOCK_HEADER_SIZE = 16;
/** Bytes of the answer to GET_ID: an ASCII string, NUL-padded, not terminated when 20 long (virtio 1.4 §5.2.6). */
export const BLOCK_ID_SIZE = 20;
/** Flag of a request's type on the legacy interface, with BARRIER: ordered with everything before and after (virtio 1.4 §5.2.6.3). */
export const BLOCK_BARRIER = 0x8000_0000;
/** Bytes of a discard, write zeroes or secure erase segment: le64 sector, le32 num_sectors, le32 flags (virtio 1.4 §5.2.6). */
export const BLOCK_RANGE_SIZE = 16;
/** Bytes of the answer to GET_LIFETIME: le16 pre_eol_info, le16 est_typ_a, le16 est_typ_b (virtio 1.4 §5.2.6). */
export const BLOCK_LIFETIME_SIZE = 6;

/** Flags of a write zeroes segment (virtio 1.4 §5.2.6). Values. */
export enum BlockRangeFlag {
  UNMAP = 1,
}

/** Request status (virtio 1.4 §5.2.6). */
export enum BlockStatus {
  OK = 0,
  IOERR = 1,
  UNSUPP = 2,
  /** with ZONED, as those below: what the zone cannot do */
  ZONE_INVALID_CMD = 3,
  /** a write that does not begin at the write pointer, or does not end at a multiple of write_granularity */
  ZONE_UNALIGNED_WP = 4,
  /** max_open_zones would be exceeded */
  ZONE_OPEN_RESOURCE = 5,
  /** max_active_zones would be exceeded */
  ZONE_ACTIVE_RESOURCE = 6,
}

/** Values of `zoned.model` (virtio 1.4 §5.2.4). */
export enum BlockZonedModel {
  /** drive-managed, or not zoned: a regular disk */
  NONE = 0,
  /** host-managed: zones must be written in order */
  HM = 1,
  /** host-aware: zones are best written in order */
  HA = 2,
}

/** Values of `z_type` (virtio 1.4 §5.2.6). */
export enum BlockZoneType {
  /** conventional: as a regular disk */
  CONV = 1,
  /** sequential write required */
  SWR = 2,
  /** sequential write preferred */
  SWP = 3,
}

/** Values of `z_state` (virtio 1.4 §5.2.6). */
export enum BlockZoneState {
  /** no write pointer: a conventional zone */
  NOT_WP = 0,
  EMPTY = 1,
  /** implicitly open */
  IOPEN = 2,
  /** explicitly open */
  EOPEN = 3,
  CLOSED = 4,
  RDONLY = 13,
  FULL = 14,
  OFFLINE = 15,
}

/** Bytes of the header of a zone report: le64 nr_zones, zones that follow, and 56 reserved (virtio 1.4 §5.2.6). */
export const BLOCK_ZONE_REPORT_HEADER_SIZE = 64;
/** Bytes of a zone descriptor (virtio 1.4 §5.2.6). */
export const BLOCK_ZONE_DESCRIPTOR_SIZE = 64;
/** Bytes of `append_sector`, what the device writes before the status of ZONE_APPEND (virtio 1.4 §5.2.6). */
export const BLOCK_APPEND_SECTOR_SIZE = 8;

/** Names of the fields of `struct virtio_blk_zone_descriptor`. */
export type BlockZoneDescriptorField = "zCap" | "zStart" | "zWp" | "zType" | "zState";

/** Fields of `struct virtio_blk_zone_descriptor` (virtio 1.4 §5.2.6): offset, width. Capacity, start and write pointer are in sectors. */
export const BlockZoneDescriptor: Readonly<Record<BlockZoneDescriptorField, ConfigField>> = {
  zCap: [0, 8],
  zStart: [8, 8],
  zWp: [16, 8],
  zType: [24, 1],
  zState: [25, 1],
};

// Zones of a disk (FreeBSD's disk_zone(4) and BIO_ZONE), whatever command set they come from.
import type { TransferOptions } from "./disk.js";

/**
 * How a zoned disk is written (DISK_ZONE_MODE): the zones of a host-managed one in order only; those of a host-aware one anywhere, best
 * in order. A drive-managed one is no zoned disk here: nothing shows.
 */
export type ZoneModel = "host-managed" | "host-aware";

/** DISK_ZONE_TYPE: conventional ones are written anywhere; sequential-required ones at their write pointer only. */
export type ZoneType = "conventional" | "sequential-required" | "sequential-preferred";

/** DISK_ZONE_COND. Open zones and closed ones are *active*: written in part. */
export type ZoneCondition =
  | "not-write-pointer"
  | "empty"
  | "implicit-open"
  | "explicit-open"
  | "closed"
  | "read-only"
  | "full"
  | "offline";

/** One zone, as a report has it (struct disk_zone_rep_entry). Bytes. */
export interface Zone {
  readonly position: number;
  /** The disk's zone size; of the last zone perhaps less. */
  readonly length: number;
  /** What can be written of it, from its start on. */
  readonly capacity: number;
  readonly type: ZoneType;
  readonly condition: ZoneCondition;
  /** Where the next write goes; null where there is none: conventional, full, read-only, offline. */
  readonly writePointer: number | null;
}

/**
 * The zones of a disk. Positions are in bytes; those of `open`, `close`, `finish`, `reset` and `append` are a zone's start (else
 * INVALID). Reads and writes of the disk itself are cut at zone ends; a write to a sequential zone must be of whole
 * `writeGranularity`, and end within the zone's capacity (else INVALID). Rejections are those of Disk, and BUSY: too many zones are
 * open or active.
 */
export interface ZonedDisk {
  readonly model: ZoneModel;
  /** Bytes of a zone; the last one may be smaller. */
  readonly zoneSize: number;
  /** Most zones that may be open, and active, at a time; 0: no limit. */
  readonly maxOpen: number;
  readonly maxActive: number;
  /** Most bytes of an append; 0: the disk has no append. */
  readonly maxAppend: number;
  /** Bytes: what writes to sequential zones are multiples of, and begin at multiples of. */
  readonly writeGranularity: number;
  /** At most `count` zones, from the one that `position` lies in (DISK_ZONE_REPORT_ZONES). @throws INVALID, DEVICE_MISBEHAVED */
  report(position: number, count: number, options?: TransferOptions): Promise<readonly Zone[]>;
  /** Opens a zone explicitly (DISK_ZONE_OPEN). @throws BUSY, IO */
  open(position: number, options?: TransferOptions): Promise<void>;
  /** Closes an open zone (DISK_ZONE_CLOSE). @throws IO */
  close(position: number, options?: TransferOptions): Promise<void>;
  /** No more is written to an open zone: it is full (DISK_ZONE_FINISH). @throws IO */
  finish(position: number, options?: TransferOptions): Promise<void>;
  /** Empties a zone (DISK_ZONE_RWP). @throws IO */
  reset(position: number, options?: TransferOptions): Promise<void>;
  /** Empties every sequential zone. */
  resetAll(options?: TransferOptions): Promise<void>;
  /**
   * Writes at the write pointer of the zone that begins at `position`; any number may be under way at once.
   * @returns where the data is
   * @throws UNSUPPORTED (no append), INVALID (more than `maxAppend`, or than there is room), BUSY, IO, DEVICE_MISBEHAVED
   */
  append(position: number, data: Uint8Array, options?: TransferOptions): Promise<number>;
}

// What a driver gives to make a disk of (FreeBSD's struct disk).
import type { Disk, VirtioFault, Zone, ZonedDisk } from "@virtio/core";
import type { Bio } from "./bio.js";

/** What a disk takes of one range command. Bytes. */
export interface RangeLimits {
  /** Most of one bio; at least a sector. */
  readonly max: number;
  /** Parts of a range that is split best end at multiples of it; 0 or a sector: anywhere. */
  readonly align: number;
}

/** The zones of a disk: what it is like, and how its reports read. Bytes. */
export interface ZoneProvider
  extends Pick<
    ZonedDisk,
    "model" | "zoneSize" | "maxOpen" | "maxActive" | "maxAppend" | "writeGranularity"
  > {
  /** Bytes of a report of `count` zones. */
  reportSize(count: number): number;
  /**
   * The zones of a report that begins with zone `first`: at least one, at most `count`.
   * @throws VirtioFault DEVICE_MISBEHAVED: it is no report of these zones
   */
  readReport(bytes: Uint8Array, first: number, count: number): readonly Zone[];
}

/** What a provider tells the disk that stands over it. Never from inside `strategy`, but for `done`. */
export interface DiskEvents {
  /** A bio that `strategy` took is over. Each once. */
  done(bio: Bio, fault: VirtioFault | null): void;
  /** After a batch of bios that are done: there may be room. */
  room(): void;
  /** `mediaSize` is another one. */
  resized(): void;
}

/** What a driver gives to make a disk of. Sizes are read at each call: a disk may be resized. */
export interface DiskProvider {
  readonly name: string;
  readonly ident: string;
  readonly sectorSize: number;
  readonly mediaSize: number;
  readonly readOnly: boolean;
  readonly stripeSize: number;
  readonly stripeOffset: number;
  readonly firmwareHeads: number;
  readonly firmwareSectors: number;
  /** Most bytes of one read or write; a multiple of the sector size, at least one. */
  readonly maxTransfer: number;
  /** Null: not done at all. */
  readonly discard: RangeLimits | null;
  readonly writeZeroes: RangeLimits | null;
  readonly secureErase: RangeLimits | null;
  /** Null: the disk has no zones. */
  readonly zones: ZoneProvider | null;
  /** The device keeps ordered bios in order; else they are kept apart from all others. */
  readonly barrier: boolean;
  readonly closed: Disk["closed"];
  /** Milliseconds, monotonic. */
  now(): number;
  /** Once, before anything else: whom to tell. */
  connect(events: DiskEvents): void;
  /** Takes a bio, or returns false when there is no room for it now: then `room` is called when there may be. */
  strategy(bio: Bio): boolean;
  /** After a batch of bios: tells the device. */
  start(): void;
  /** Whether the device reads and writes these bytes where they are. */
  inPlace(data: Uint8Array): boolean;
  /**
   * Lets the device run without interrupts and takes one bio that is done; false when there is none yet. Never waits. Absent: the
   * disk takes no dump.
   */
  poll?(): boolean;
  started?(): Promise<void>;
  detach(): Promise<void>;
  suspend(): Promise<void>;
  resume(): Promise<void>;
}

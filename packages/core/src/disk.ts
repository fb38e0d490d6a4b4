// What block and SCSI drivers offer (FreeBSD's disk(9)).
import type { Attached } from "./attached.js";
import type { ZonedDisk } from "./zones.js";

/** Options of a transfer. */
export interface TransferOptions {
  /** Ends the wait: a bounced request rejects at once, one in the caller's own DMA region when the device gave it back. */
  readonly signal?: AbortSignal;
  /**
   * Starts when everything that was asked for before is over, and is over before anything asked for later starts (BIO_ORDERED).
   * Default false.
   */
  readonly ordered?: boolean;
}

/** Options of a write of zeroes. */
export interface WriteZeroesOptions extends TransferOptions {
  /** The device may give their space back, where it says that it can. Default false. */
  readonly unmap?: boolean;
}

/** What a disk has done since it attached (devstat(9)). */
export interface DiskStatistics {
  /** By command: requests to the device that are over, whether they succeeded or not. */
  readonly reads: number;
  readonly writes: number;
  readonly flushes: number;
  /** Discards, write zeroes and secure erases. */
  readonly deletes: number;
  /** Bytes. */
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly bytesDeleted: number;
  /** Requests that failed. */
  readonly errors: number;
  /** Requests that are under way. */
  readonly busy: number;
  /** Milliseconds during which at least one request was under way. */
  readonly busyTime: number;
  /** By command: milliseconds that requests took, all added up; of those under way, so far. */
  readonly readTime: number;
  readonly writeTime: number;
  readonly flushTime: number;
  readonly deleteTime: number;
}

/**
 * vtbd, da: one contract, one contract suite. Positions and lengths are in bytes, multiples of sectorSize (else INVALID), and end
 * within mediaSize (else INVALID). Rejections are VirtioFaults: IO, READ_ONLY, UNSUPPORTED, CLOSED, DEVICE_MISBEHAVED, TIMED_OUT, and of
 * a disk with zones BUSY (see ZonedDisk); an aborted call rejects with the signal's reason.
 */
export interface Disk extends Attached {
  readonly kind: "disk";
  /** `vtbd0` */
  readonly name: string;
  /** Serial number; empty when the device has none. */
  readonly ident: string;
  /** Bytes. */
  readonly sectorSize: number;
  /** Bytes. May change: see onResize. */
  readonly mediaSize: number;
  readonly readOnly: boolean;
  /** Bytes of the device's own blocks: transfers are best multiples of it; 0 when it does not say (d_stripesize). */
  readonly stripeSize: number;
  /** Bytes from the start of the disk to the first of these blocks that is whole (d_stripeoffset). */
  readonly stripeOffset: number;
  /** Heads, and sectors of a track, as firmware counts; 0 when the device does not say (d_fwheads, d_fwsectors). */
  readonly firmwareHeads: number;
  readonly firmwareSectors: number;
  /** Most bytes of one request to the device; a longer transfer is split (d_maxsize). */
  readonly maxTransfer: number;
  /** Which of discard, writeZeroes and secureErase the device does. */
  readonly can: {
    readonly discard: boolean;
    readonly writeZeroes: boolean;
    readonly secureErase: boolean;
  };
  /** Its zones; null: it has none. */
  readonly zones: ZonedDisk | null;
  readonly statistics: DiskStatistics;
  /** Calls `listener` as a task after the media size changed; call what it returns to stop. */
  onResize(listener: (mediaSize: number) => void): () => void;
  read(position: number, into: Uint8Array, options?: TransferOptions): Promise<void>;
  write(position: number, from: Uint8Array, options?: TransferOptions): Promise<void>;
  /** One transfer into several arrays, one after the other; each a multiple of sectorSize. */
  readv(position: number, into: readonly Uint8Array[], options?: TransferOptions): Promise<void>;
  /** One transfer from several arrays. */
  writev(position: number, from: readonly Uint8Array[], options?: TransferOptions): Promise<void>;
  /** Resolves when every write that resolved before is on stable storage. */
  flush(options?: TransferOptions): Promise<void>;
  /** Their content is no longer needed (BIO_DELETE). @throws UNSUPPORTED, READ_ONLY */
  discard(position: number, length: number, options?: TransferOptions): Promise<void>;
  /** They read as zeroes afterwards. @throws UNSUPPORTED, READ_ONLY */
  writeZeroes(position: number, length: number, options?: WriteZeroesOptions): Promise<void>;
  /** Their content cannot be got back by any means. @throws UNSUPPORTED, READ_ONLY */
  secureErase(position: number, length: number, options?: TransferOptions): Promise<void>;
}

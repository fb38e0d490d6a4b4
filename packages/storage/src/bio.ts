// One request to a disk, as FreeBSD's struct bio.
import type { VirtioFault } from "@virtio/core";

/** What a bio asks for (bio(9)). */
export enum BioCommand {
  READ = "read",
  WRITE = "write",
  FLUSH = "flush",
}

/** A request that a disk's strategy takes, within the disk's limits. */
export interface Bio {
  readonly command: BioCommand;
  /** Bytes; a multiple of the sector size. 0 for a flush. */
  readonly position: number;
  /** What is read or written; empty for a flush. Null once the caller has given up: the answer goes nowhere. */
  data: Uint8Array | null;
  /** Once, when the device is done with it: null, or why not. */
  readonly done: (fault: VirtioFault | null) => void;
}

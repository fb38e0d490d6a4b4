// One request to a disk, as FreeBSD's struct bio.
import type { VirtioFault } from "@virtio/core";

/** What a bio asks for (bio(9)). */
export enum BioCommand {
  READ,
  WRITE,
  FLUSH,
  /** BIO_DELETE */
  DISCARD,
  WRITE_ZEROES,
  SECURE_ERASE,
  /** From here on: of disks that have zones (BIO_ZONE). Position: any in the first zone to report; data: the report, as the device has it. */
  ZONE_REPORT,
  /** Position: the zone's start. Once it is done: where the data was written. */
  ZONE_APPEND,
  ZONE_OPEN,
  ZONE_CLOSE,
  ZONE_FINISH,
  ZONE_RESET,
  /** Position 0. */
  ZONE_RESET_ALL,
}

/** A request that a disk's strategy takes, within the disk's limits. Once it is done its owner may change it and give it again. */
export interface Bio {
  command: BioCommand;
  /** Bytes; a multiple of the sector size. 0 for a flush. */
  position: number;
  /** Bytes, a multiple of the sector size: of `data`, or of the range of a command that has none. 0 for a flush and for zones. */
  length: number;
  /**
   * What is read or written, `length` bytes; null for a flush, a range, or what is done to a zone. Becomes null, too, once the caller has given up: the
   * answer goes nowhere.
   */
  data: Uint8Array | null;
  /** Starts when everything before is over, and is over before anything after it starts (BIO_ORDERED). */
  ordered: boolean;
  /** Of a write of zeroes: their space may be given back, where the device can. Default false. */
  unmap?: boolean;
  /** Once, when the device is done with it: null, or why not (biodone). */
  done: (fault: VirtioFault | null) => void;
}

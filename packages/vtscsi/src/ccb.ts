// A SCSI command on its way (CAM's ccb_scsiio).
import type { VirtioFault } from "@virtio/core";
import { SCSI_CDB_SIZE, SCSI_SENSE_SIZE, ScsiTaskAttribute } from "@virtio/core/scsi";
import type { LogicalUnit } from "./logical-unit.js";

/** Which way data goes. */
export enum Direction {
  NONE,
  /** The device reads it. */
  OUT,
  /** The device writes it. */
  IN,
}

/** Whose bytes are moved. Null: nobody's, or their owner has given up. A bio is one. */
export interface Transfer {
  data: Uint8Array | null;
}

/** Of a command without data. */
export const noData: Transfer = { data: null };

/** Whom to tell. */
export type Done = (ccb: Ccb) => void;

/**
 * One command control block. Its owner fills in the first part, gives it to a unit, and is told once by `done`; then the second part
 * says how it ended, and it may be given again.
 */
export class Ccb {
  /** Command descriptor block, the rest of it zeroes. */
  readonly cdb: Uint8Array = new Uint8Array(SCSI_CDB_SIZE);
  attribute: ScsiTaskAttribute = ScsiTaskAttribute.SIMPLE;
  direction: Direction = Direction.NONE;
  transfer: Transfer = noData;
  /** Milliseconds. */
  timeout = 0;
  done: Done;

  /** Why it was not answered; null: it was, and the rest is valid. */
  fault: VirtioFault | null = null;
  /** ScsiResponse; of the fields below only OK says anything. */
  response = 0;
  /** ScsiStatus. */
  status = 0;
  /** Bytes of the data that were not moved. */
  residual = 0;
  /** Bytes of `sense` that the device gave. */
  senseLength = 0;
  readonly sense: Uint8Array = new Uint8Array(SCSI_SENSE_SIZE);

  /** Where it is; null: nowhere. Its unit's and its queue's to set. */
  unit: LogicalUnit | null = null;
  /** Its tag's two words: of a task management function. */
  tagLow = 0;
  tagHigh = 0;
  /** It was late: an abort is meant for it. */
  late = false;
  /** Times it was given again. */
  retries = 0;

  constructor(done: Done) {
    this.done = done;
  }
}

// What a SCSI host says of itself in its configuration (virtio 1.4 §5.6.4), checked.
import { type ConfigSpace, type VirtioDevice, VirtioFault } from "@virtio/core";
import {
  SCSI_CDB_SIZE,
  SCSI_MAX_LUN,
  SCSI_MAX_TARGET,
  SCSI_SENSE_SIZE,
  ScsiConfig,
  ScsiEventBuffer,
} from "@virtio/core/scsi";
import { OVERHEAD_SEGMENTS } from "./request-queue.js";

/** Bytes of a page to bounce through, and of one data segment. */
export const PAGE_SIZE = 16384;
/** Most data segments of a command: with request and response, what fits an indirect table of one 4 KiB page. */
const DATA_SEGMENTS_MAX = 254;
/** Most bytes of one command: maxphys on a 64-bit FreeBSD. */
const TRANSFER_MAX = 1 << 20;
/** The unit of max_sectors (§5.6.4). */
const SECTOR_SIZE = 512;
/** No event is longer. */
const EVENT_SIZE_MAX = 4096;

/** What the driver learnt of the device at attach. */
export interface Host {
  readonly requestQueues: number;
  readonly dataSegments: number;
  /** Bytes. */
  readonly maxTransfer: number;
  /** Commands that a unit may have at a time (cmd_per_lun). */
  readonly openings: number;
  /** Bytes of an event buffer. */
  readonly eventSize: number;
  readonly maxTarget: number;
  readonly maxLun: number;
}

/**
 * All fields are always there. What no host can have is refused; what is merely more than can be used is cut.
 * @param name - `vtscsi0`, for errors
 * @throws VirtioFault DEVICE_MISBEHAVED
 */
export async function readHost(device: VirtioDevice, name: string): Promise<Host> {
  const read = await device.config.readAll(ScsiConfig);
  if (read.numQueues < 1) throw refused("num_queues is 0", name);
  const dataSegments = Math.min(Math.max(read.segMax, 1), DATA_SEGMENTS_MAX);
  return {
    requestQueues: read.numQueues,
    dataSegments,
    maxTransfer: Math.min(
      TRANSFER_MAX,
      dataSegments * PAGE_SIZE,
      // A hint, and of no use when it allows nothing.
      read.maxSectors === 0 ? TRANSFER_MAX : read.maxSectors * SECTOR_SIZE,
    ),
    openings: Math.max(read.cmdPerLun, 1),
    eventSize: Math.min(Math.max(read.eventInfoSize, ScsiEventBuffer.SIZE), EVENT_SIZE_MAX),
    maxTarget: Math.min(read.maxTarget, SCSI_MAX_TARGET),
    maxLun: Math.min(read.maxLun, SCSI_MAX_LUN),
  };
}

/** Sets the sizes of sense data and CDBs, as FreeBSD does, after each reset. Nothing else may be written (§5.6.4.1). */
export async function writeSizes(config: ConfigSpace): Promise<void> {
  await config.write(ScsiConfig.senseSize[0], 4, SCSI_SENSE_SIZE);
  await config.write(ScsiConfig.cdbSize[0], 4, SCSI_CDB_SIZE);
}

/** What queues of this size can carry: a chain is never longer than its queue. @throws VirtioFault INVALID */
export function fitted(host: Host, size: number, name: string): Host {
  const dataSegments = Math.min(host.dataSegments, size - OVERHEAD_SEGMENTS);
  if (dataSegments < 1)
    throw new VirtioFault("INVALID", `fewer than minimum number of segments allowed: ${size}`, {
      device: name,
    });
  return {
    ...host,
    dataSegments,
    maxTransfer: Math.min(host.maxTransfer, dataSegments * PAGE_SIZE),
    // Never more than the queue has (§5.6.4.1).
    openings: Math.min(host.openings, size),
  };
}

function refused(what: string, device: string): VirtioFault {
  return new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: ${what}`, {
    device,
    clause: "virtio 1.4 §5.6.4",
  });
}

// How one says which logical unit a SCSI host has.
import { VirtioFault } from "@virtio/core";
import { SCSI_MAX_LUN, SCSI_MAX_TARGET } from "@virtio/core/scsi";
import type { BlockBackend } from "../block-backend.js";
import { ScsiDisk } from "./scsi-disk.js";
import type { ScsiTargets } from "./scsi-target.js";
import { ScsiUnit } from "./scsi-unit.js";

/** A logical unit. */
export interface ScsiUnitOptions {
  /** 0 to 255; default 0. */
  readonly target?: number | undefined;
  /** 0 to 16383; default 0. */
  readonly lun?: number | undefined;
  /** Null: removable, and no medium is in it. */
  readonly backend: BlockBackend | null;
  /** At most 20 printable ASCII characters. Default: none. */
  readonly serial?: string | undefined;
  /** Default: as the backend. A CD-ROM always is. */
  readonly readonly?: boolean | undefined;
  /** Default disk. */
  readonly type?: "disk" | "cd" | undefined;
  /** Bytes of a block, a power of two from 512 on. Default 512, of a CD-ROM 2048. */
  readonly blockSize?: number | undefined;
  /** Whether its medium can be exchanged. Default: of a CD-ROM yes, of a disk no. */
  readonly removable?: boolean | undefined;
}

const CD_BLOCK_SIZE = 2048;
const DISK_BLOCK_SIZE = 512;

const fail = (what: string): never => {
  throw new VirtioFault("INVALID", what);
};

/** A medium that such a unit can have. @throws VirtioFault INVALID */
export function checkMedium(backend: BlockBackend, blockSize: number): void {
  if (backend.size % blockSize !== 0)
    fail(`a disk of ${backend.size} bytes is not made of blocks of ${blockSize}`);
}

/**
 * Makes a unit; it is not at its address yet.
 * @param host - the device's name
 * @throws VirtioFault INVALID
 */
export function makeUnit(host: string, options: ScsiUnitOptions, targets: ScsiTargets): ScsiUnit {
  const { target = 0, lun = 0, backend, serial = "", type = "disk" } = options;
  const cdRom = type === "cd";
  const { blockSize = cdRom ? CD_BLOCK_SIZE : DISK_BLOCK_SIZE, removable = cdRom } = options;
  for (const [name, value, most] of [
    ["target", target, SCSI_MAX_TARGET],
    ["lun", lun, SCSI_MAX_LUN],
  ] as const)
    if (!Number.isInteger(value) || value < 0 || value > most)
      fail(`${name} ${value} is not a whole number from 0 to ${most}`);
  if (blockSize < DISK_BLOCK_SIZE || (blockSize & (blockSize - 1)) !== 0)
    fail(`blockSize ${blockSize} is not a power of two from 512 on`);
  if (!/^[\x21-\x7e]{0,20}$/.test(serial))
    fail(`serial '${serial}' is not at most 20 printable ASCII characters`);
  if (backend === null && !removable) fail("a unit that is not removable has a backend");
  if (backend !== null) checkMedium(backend, blockSize);
  const disk = new ScsiDisk({
    backend,
    cdRom,
    removable,
    readOnly: cdRom || (options.readonly ?? false),
    blockSize,
    serial,
    designation: `${host}-${target}-${lun}`,
  });
  return new ScsiUnit(target, lun, disk, (command) => targets.target(target).reportLuns(command));
}

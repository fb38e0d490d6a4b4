// Addresses of logical units on the wire (virtio 1.4 §5.6.6.1, SAM-5).
import type { ScsiAddress } from "@virtio/core";
import {
  SCSI_LUN_ADDRESS,
  SCSI_LUN_FLAT,
  SCSI_LUN_HIGH_MASK,
  SCSI_LUN_SIZE,
  ScsiLun,
} from "@virtio/core/scsi";

/** Writes a `lun` field: 1, the target, the LUN by flat space addressing, zeroes. */
export function putAddress(bytes: Uint8Array, at: number, target: number, lun: number): void {
  bytes[at + ScsiLun.FIRST] = SCSI_LUN_ADDRESS;
  bytes[at + ScsiLun.TARGET] = target;
  bytes[at + ScsiLun.HIGH] = SCSI_LUN_FLAT | (lun >>> 8);
  bytes[at + ScsiLun.LOW] = lun;
  for (let i = ScsiLun.LOW + 1; i < SCSI_LUN_SIZE; i++) bytes[at + i] = 0;
}

/** Reads one; null when it is no target's unit. */
export function addressAt(bytes: Uint8Array, at: number): ScsiAddress | null {
  if (bytes[at + ScsiLun.FIRST] !== SCSI_LUN_ADDRESS) return null;
  const high = (bytes[at + ScsiLun.HIGH] as number) & SCSI_LUN_HIGH_MASK;
  return {
    target: bytes[at + ScsiLun.TARGET] as number,
    lun: (high << 8) | (bytes[at + ScsiLun.LOW] as number),
  };
}

/** How a LUN of REPORT LUNS is addressed: the top two bits (SAM-5). */
enum Method {
  PERIPHERAL = 0,
  FLAT = 1,
}

/** The LUN of an entry of REPORT LUNS; null: a well-known one, or one of several levels. */
export function lunAt(bytes: Uint8Array, at: number): number | null {
  const first = bytes[at] as number;
  const low = bytes[at + 1] as number;
  for (let i = 2; i < SCSI_LUN_SIZE; i++) if (bytes[at + i] !== 0) return null;
  const high = first & SCSI_LUN_HIGH_MASK;
  if (first >>> 6 === Method.FLAT) return (high << 8) | low;
  // The low bits are a bus then, and there is one.
  return first >>> 6 === Method.PERIPHERAL && high === 0 ? low : null;
}

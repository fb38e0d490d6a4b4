// Sense data: what a unit says of a command that failed (SPC-4 §4.5), as CAM prints it.
import type { ScsiSenseData } from "@virtio/core";
import { ScsiAsc, ScsiSense, ScsiSenseFormat, ScsiSenseKey } from "@virtio/core/scsi";

/** Fields of descriptor format sense data (SPC-4 §4.5.2): offsets. */
enum Descriptor {
  KEY = 1,
  ASC = 2,
  ASCQ = 3,
  ADDITIONAL_LENGTH = 7,
  FIRST = 8,
}
/** The descriptor of INFORMATION: type 0, 12 bytes, VALID in bit 7 of the third, be64 from the fifth on. */
const INFORMATION_DESCRIPTOR = 0;
const INFORMATION_SIZE = 12;

const keyNames: Readonly<Record<number, string>> = {
  [ScsiSenseKey.NO_SENSE]: "NO SENSE",
  [ScsiSenseKey.RECOVERED_ERROR]: "RECOVERED ERROR",
  [ScsiSenseKey.NOT_READY]: "NOT READY",
  [ScsiSenseKey.MEDIUM_ERROR]: "MEDIUM ERROR",
  [ScsiSenseKey.HARDWARE_ERROR]: "HARDWARE FAILURE",
  [ScsiSenseKey.ILLEGAL_REQUEST]: "ILLEGAL REQUEST",
  [ScsiSenseKey.UNIT_ATTENTION]: "UNIT ATTENTION",
  [ScsiSenseKey.DATA_PROTECT]: "DATA PROTECT",
  [ScsiSenseKey.BLANK_CHECK]: "BLANK CHECK",
  9: "Vendor Specific",
  [ScsiSenseKey.COPY_ABORTED]: "COPY ABORTED",
  [ScsiSenseKey.ABORTED_COMMAND]: "ABORTED COMMAND",
  12: "EQUAL",
  13: "VOLUME OVERFLOW",
  [ScsiSenseKey.MISCOMPARE]: "MISCOMPARE",
  15: "COMPLETED",
};

/** The common ones, in words of our own. */
const codeNames: Readonly<Record<number, string>> = {
  [ScsiAsc.NO_ADDITIONAL_SENSE]: "No additional sense information",
  6: "I/O process terminated",
  1025: "Logical unit is in process of becoming ready",
  [ScsiAsc.NOT_READY_START_REQUIRED]: "Logical unit not ready, initializing command required",
  [ScsiAsc.WRITE_ERROR]: "Write error",
  [ScsiAsc.UNRECOVERED_READ_ERROR]: "Unrecovered read error",
  [ScsiAsc.PARAMETER_LIST_LENGTH_ERROR]: "Parameter list length error",
  [ScsiAsc.MISCOMPARE_DURING_VERIFY]: "Miscompare during verify operation",
  [ScsiAsc.INVALID_OPCODE]: "Invalid command operation code",
  [ScsiAsc.LBA_OUT_OF_RANGE]: "Logical block address out of range",
  [ScsiAsc.INVALID_FIELD_IN_CDB]: "Invalid field in CDB",
  [ScsiAsc.LUN_NOT_SUPPORTED]: "Logical unit not supported",
  [ScsiAsc.INVALID_FIELD_IN_PARAMETER_LIST]: "Invalid field in parameter list",
  [ScsiAsc.WRITE_PROTECTED]: "Write protected",
  9991: "Space allocation failed write protect",
  [ScsiAsc.MEDIUM_MAY_HAVE_CHANGED]: "Not ready to ready change, medium may have changed",
  [ScsiAsc.POWER_ON_OR_RESET]: "Power on, reset, or bus device reset occurred",
  [ScsiAsc.BUS_DEVICE_RESET]: "Bus device reset function occurred",
  [ScsiAsc.I_T_NEXUS_LOSS]: "I_T nexus loss occurred",
  [ScsiAsc.MODE_PARAMETERS_CHANGED]: "Mode parameters changed",
  [ScsiAsc.CAPACITY_DATA_CHANGED]: "Capacity data has changed",
  [ScsiAsc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR]: "Commands cleared by another initiator",
  [ScsiAsc.SAVING_PARAMETERS_NOT_SUPPORTED]: "Saving parameters not supported",
  [ScsiAsc.MEDIUM_NOT_PRESENT]: "Medium not present",
  [ScsiAsc.REPORTED_LUNS_DATA_CHANGED]: "Reported LUNs data has changed",
  [ScsiAsc.INTERNAL_TARGET_FAILURE]: "Internal target failure",
  [ScsiAsc.MEDIUM_REMOVAL_PREVENTED]: "Medium removal prevented",
};

const formatOf = (bytes: Uint8Array): number => (bytes[ScsiSense.RESPONSE_CODE] as number) & 0x7f;
const isDescriptor = (format: number): boolean =>
  format === ScsiSenseFormat.DESCRIPTOR || format === ScsiSenseFormat.DESCRIPTOR_DEFERRED;
const isSense = (format: number): boolean =>
  format >= ScsiSenseFormat.FIXED && format <= ScsiSenseFormat.DESCRIPTOR_DEFERRED;

/** The sense key in so many bytes of sense data; -1: they are none. */
export function senseKey(bytes: Uint8Array, length: number): number {
  if (length < 3 || !isSense(formatOf(bytes))) return -1;
  return (bytes[isDescriptor(formatOf(bytes)) ? Descriptor.KEY : ScsiSense.KEY] as number) & 15;
}

/** Whether a command with this key did what it should. */
export const succeeded = (key: number): boolean =>
  key === ScsiSenseKey.NO_SENSE || key === ScsiSenseKey.RECOVERED_ERROR;

/** Sense data of either format in the first `length` bytes; null: they are none. Fields beyond the end are 0. */
export function decodeSense(from: Uint8Array, length: number): ScsiSenseData | null {
  const key = senseKey(from, length);
  if (key < 0) return null;
  const bytes = from.slice(0, length);
  const format = formatOf(bytes);
  const descriptor = isDescriptor(format);
  const asc = bytes[descriptor ? Descriptor.ASC : ScsiSense.ASC] ?? 0;
  const ascq = bytes[descriptor ? Descriptor.ASCQ : ScsiSense.ASCQ] ?? 0;
  const name = codeNames[(asc << 8) | ascq] ?? (ascq === 0 ? undefined : codeNames[asc << 8]);
  return {
    key,
    asc,
    ascq,
    deferred:
      format === ScsiSenseFormat.FIXED_DEFERRED || format === ScsiSenseFormat.DESCRIPTOR_DEFERRED,
    information: descriptor ? informationDescriptor(bytes) : fixedInformation(bytes),
    bytes,
    text: `${keyNames[key]} asc:${asc.toString(16)},${ascq.toString(16)} (${name ?? "Unknown"})`,
  };
}

function fixedInformation(bytes: Uint8Array): number | null {
  if (bytes.length < ScsiSense.INFORMATION + 4) return null;
  if (((bytes[ScsiSense.RESPONSE_CODE] as number) & 0x80) === 0) return null;
  return new DataView(bytes.buffer).getUint32(ScsiSense.INFORMATION);
}

function informationDescriptor(bytes: Uint8Array): number | null {
  const said = Descriptor.FIRST + (bytes[Descriptor.ADDITIONAL_LENGTH] ?? 0);
  const end = Math.min(bytes.length, said);
  for (let at = Descriptor.FIRST; at + 2 <= end; at += 2 + (bytes[at + 1] as number)) {
    if (bytes[at] !== INFORMATION_DESCRIPTOR || at + INFORMATION_SIZE > end) continue;
    if (((bytes[at + 2] as number) & 0x80) === 0) return null;
    const words = new DataView(bytes.buffer, at + 4);
    return words.getUint32(0) * 0x1_0000_0000 + words.getUint32(4);
  }
  return null;
}

// The mode pages of a SCSI unit: MODE SENSE (SPC-4 §6.11, §6.12; SBC-3 §6.5).
import { ScsiAsc, ScsiModePage, ScsiOpcode, ScsiSenseKey } from "@virtio/core/scsi";
import { put16, put32 } from "@virtio/packets";
import { checkCondition, type ScsiCommand, type ScsiReply } from "./scsi-command.js";
import type { ScsiMedium } from "./scsi-medium.js";

/** Bit of byte 1 of the CDB: no block descriptor. */
const DBD = 0x08;
/** Page control, the top bits of byte 2. */
enum PageControl {
  CURRENT = 0,
  CHANGEABLE = 1,
  DEFAULT = 2,
  SAVED = 3,
}

/** Device-specific parameter (SBC-3 §6.5.1). */
const WRITE_PROTECTED = 0x80;
const DPO_FUA = 0x10;
/** Caching page: a write may be over before it is stable. */
const WCE = 0x04;
const BLOCK_DESCRIPTOR_SIZE = 8;
const HEADER_6_SIZE = 4;
const HEADER_10_SIZE = 8;

/** Pages: code, bytes behind their header, and what in them is not 0. */
const pages: readonly (readonly [page: ScsiModePage, length: number, byte2: number])[] = [
  [ScsiModePage.READ_WRITE_ERROR_RECOVERY, 0x0a, 0],
  [ScsiModePage.CACHING, 0x12, WCE],
  [ScsiModePage.CONTROL, 0x0a, 0],
];

const refused = (asc: ScsiAsc): ScsiReply => checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, asc);

/** Answers MODE SENSE (6) and (10). No parameter can be changed. `medium`: null while there is none. */
export function modeSense(command: ScsiCommand, medium: ScsiMedium | null): ScsiReply {
  const short = command.opcode === ScsiOpcode.MODE_SENSE_6;
  const control = (command.byte(2) >>> 6) as PageControl;
  const code = command.byte(2) & ScsiModePage.ALL;
  const subpage = command.byte(3);
  const wanted = pages.filter(([page]) => code === ScsiModePage.ALL || code === page);
  if (control === PageControl.SAVED) return refused(ScsiAsc.SAVING_PARAMETERS_NOT_SUPPORTED);
  if (wanted.length === 0 || (subpage !== 0 && subpage !== 0xff))
    return refused(ScsiAsc.INVALID_FIELD_IN_CDB);
  const descriptor =
    medium === null || (command.byte(1) & DBD) !== 0 ? [] : blockDescriptor(medium);
  const body = wanted.flatMap(([page, length, byte2]) => {
    const bytes = new Uint8Array(2 + length);
    bytes[0] = page;
    bytes[1] = length;
    bytes[2] = control === PageControl.CHANGEABLE ? 0 : byte2;
    return [...bytes];
  });
  const specific = DPO_FUA | (medium?.readOnly === true ? WRITE_PROTECTED : 0);
  const header = new Uint8Array(short ? HEADER_6_SIZE : HEADER_10_SIZE);
  const total = header.length + descriptor.length + body.length;
  if (short) header.set([total - 1, 0, specific, descriptor.length]);
  else {
    put16(header, 0, total - 2);
    header[3] = specific;
    put16(header, 6, descriptor.length);
  }
  const allocation = short ? command.byte(4) : command.word16(7);
  return command.answer(Uint8Array.from([...header, ...descriptor, ...body]), allocation);
}

/** Blocks, all ones where they are too many, and bytes of each. */
function blockDescriptor({ blocks, blockSize }: ScsiMedium): readonly number[] {
  const descriptor = new Uint8Array(BLOCK_DESCRIPTOR_SIZE);
  put32(descriptor, 0, Math.min(blocks, 0xffff_ffff));
  put32(descriptor, 4, blockSize);
  return [...descriptor];
}

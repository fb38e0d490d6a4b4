// The mode pages of a SCSI unit: MODE SENSE and MODE SELECT (SPC-4 §6.9 to §6.12; SBC-3 §6.5). What can be changed is the write cache.
import { ScsiAsc, ScsiModePage, ScsiOpcode, ScsiSenseKey } from "@virtio/core/scsi";
import { get16, put16, put32 } from "@virtio/packets";
import { checkCondition, type ScsiCommand, type ScsiReply, took } from "./scsi-command.js";
import type { ScsiMedium } from "./scsi-medium.js";

/** Bit of byte 1 of MODE SENSE: no block descriptor. */
const DBD = 0x08;
/** Byte 1 of MODE SELECT: pages as here, and not to be saved. */
const PF = 0x10;
const SP = 0x01;
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
/** Caching page, byte 2: a write may be over before it is stable. */
const WCE = 0x04;
const BLOCK_DESCRIPTOR_SIZE = 8;
const HEADER_6_SIZE = 4;
const HEADER_10_SIZE = 8;
const PAGE_HEADER_SIZE = 2;

/** Pages, and bytes of each behind its header. Each byte is 0, but for WCE. */
const pages: readonly (readonly [page: ScsiModePage, length: number])[] = [
  [ScsiModePage.READ_WRITE_ERROR_RECOVERY, 0x0a],
  [ScsiModePage.CACHING, 0x12],
  [ScsiModePage.CONTROL, 0x0a],
];

const illegal = (asc: ScsiAsc): ScsiReply => checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, asc);

/** Whether a command is the one of 6 bytes. */
const isShort = ({ opcode }: ScsiCommand): boolean =>
  opcode === ScsiOpcode.MODE_SENSE_6 || opcode === ScsiOpcode.MODE_SELECT_6;

/** Bytes that MODE SENSE may answer with, or that MODE SELECT brings. */
export const modeLength = (command: ScsiCommand): number =>
  isShort(command) ? command.byte(4) : command.word16(7);

/** The mode parameters of one unit. */
export class ScsiModePages {
  /** A write may be over before it is stable. */
  writeCache = true;

  /** As after power-on: nothing is saved. */
  reset(): void {
    this.writeCache = true;
  }

  #page(page: ScsiModePage, length: number, control: PageControl): Uint8Array {
    const bytes = new Uint8Array(PAGE_HEADER_SIZE + length);
    bytes[0] = page;
    bytes[1] = length;
    const cached = control !== PageControl.CURRENT || this.writeCache;
    if (page === ScsiModePage.CACHING && cached) bytes[2] = WCE;
    return bytes;
  }

  /** MODE SENSE. @param medium - null while there is none */
  sense(command: ScsiCommand, medium: ScsiMedium | null): ScsiReply {
    const short = isShort(command);
    const control = (command.byte(2) >>> 6) as PageControl;
    const code = command.byte(2) & ScsiModePage.ALL;
    const subpage = command.byte(3);
    const wanted = pages.filter(([page]) => code === ScsiModePage.ALL || code === page);
    if (control === PageControl.SAVED) return illegal(ScsiAsc.SAVING_PARAMETERS_NOT_SUPPORTED);
    if (wanted.length === 0 || (subpage !== 0 && subpage !== 0xff))
      return illegal(ScsiAsc.INVALID_FIELD_IN_CDB);
    const without = medium === null || (command.byte(1) & DBD) !== 0;
    const descriptor = without ? [] : blockDescriptor(medium);
    const body = wanted.flatMap(([page, length]) => [...this.#page(page, length, control)]);
    const specific = DPO_FUA | (medium?.readOnly === true ? WRITE_PROTECTED : 0);
    const header = new Uint8Array(short ? HEADER_6_SIZE : HEADER_10_SIZE);
    const total = header.length + descriptor.length + body.length;
    if (short) header.set([total - 1, 0, specific, descriptor.length]);
    else {
      put16(header, 0, total - 2);
      header[3] = specific;
      put16(header, 6, descriptor.length);
    }
    const data = Uint8Array.from([...header, ...descriptor, ...body]);
    return command.answer(data, modeLength(command));
  }

  /** MODE SELECT: every page is checked before the first takes effect. */
  select(command: ScsiCommand, medium: ScsiMedium | null): ScsiReply {
    const flags = command.byte(1);
    if ((flags & PF) === 0 || (flags & SP) !== 0) return illegal(ScsiAsc.INVALID_FIELD_IN_CDB);
    const list = new Uint8Array(modeLength(command));
    command.copyOut(list);
    if (list.length === 0) return took(0);
    const headerSize = isShort(command) ? HEADER_6_SIZE : HEADER_10_SIZE;
    if (list.length < headerSize) return illegal(ScsiAsc.PARAMETER_LIST_LENGTH_ERROR);
    const described = isShort(command) ? (list[3] as number) : get16(list, 6);
    const body = list.subarray(headerSize + described);
    const kept = described === 0 || keepsBlocks(list.subarray(headerSize), described, medium);
    const writeCache = kept ? this.#selected(body) : null;
    if (writeCache === null) return illegal(ScsiAsc.INVALID_FIELD_IN_PARAMETER_LIST);
    this.writeCache = writeCache;
    return took(list.length);
  }

  /** What these pages make of the write cache; null: one of them cannot be. */
  #selected(body: Uint8Array): boolean | null {
    let { writeCache } = this;
    for (let at = 0; at < body.length; ) {
      const row = pages.find(([page]) => page === body[at]);
      if (row === undefined) return null;
      const now = this.#page(...row, PageControl.CURRENT);
      const page = body.slice(at, at + now.length);
      if (row[0] === ScsiModePage.CACHING && page.length === now.length) {
        // The one bit that may differ.
        const [, , byte2 = 0] = page;
        writeCache = (byte2 & WCE) !== 0;
        page[2] = (byte2 & ~WCE) | ((now[2] as number) & WCE);
      }
      if (!now.every((byte, i) => byte === page[i])) return null;
      at += now.length;
    }
    return writeCache;
  }
}

/** Whether a block descriptor says what is so. */
function keepsBlocks(bytes: Uint8Array, described: number, medium: ScsiMedium | null): boolean {
  if (described !== BLOCK_DESCRIPTOR_SIZE || medium === null) return false;
  const wanted = blockDescriptor(medium);
  return wanted.every((byte, i) => bytes[i] === byte);
}

/** Blocks, all ones where they are too many, and bytes of each. */
function blockDescriptor({ blocks, blockSize }: ScsiMedium): readonly number[] {
  const descriptor = new Uint8Array(BLOCK_DESCRIPTOR_SIZE);
  put32(descriptor, 0, Math.min(blocks, 0xffff_ffff));
  put32(descriptor, 4, blockSize);
  return [...descriptor];
}

// What a SCSI unit says of itself: INQUIRY and its vital product data (SPC-4 §6.6, §7.8; SBC-3 §6.6).
import {
  SCSI_INQUIRY_SIZE,
  ScsiAsc,
  ScsiPeripheral,
  ScsiSenseKey,
  ScsiVpd,
} from "@virtio/core/scsi";
import { put16, put32 } from "@virtio/packets";
import { checkCondition, type ScsiCommand, type ScsiReply } from "./scsi-command.js";
import { UNMAP_DESCRIPTORS_MAX } from "./scsi-medium.js";

/** Bit of byte 1 of the CDB: a page is wanted. */
const EVPD = 1;

const VENDOR = "VIRTIO";
const REVISION = "1.4";
/** Version of SPC that is claimed: SPC-4. */
const VERSION_SPC_4 = 6;
/** Response data format 2, and LUNs that are more than one level deep can be reported (HISUP). */
const FORMAT = 0x12;
const REMOVABLE = 0x80;
/** In byte 7: a task set (CMDQUE). */
const CMDQUE = 2;

/** Designator of the device identification page (SPC-4 §7.8.6): ASCII, of the unit, with the vendor's name first. */
const CODE_SET_ASCII = 2;
const TYPE_T10_VENDOR = 1;

/** Bytes of the pages of SBC, behind their header. */
const BLOCK_PAGE_LENGTH = 0x3c;
const PROVISIONING_PAGE_LENGTH = 4;
/** The block limits page: WRITE SAME of 0 blocks is refused (WSNZ). */
const WSNZ = 1;
/** The medium does not turn. */
const NON_ROTATING = 1;
/** UNMAP, WRITE SAME (16) and WRITE SAME (10) give space back (LBPU, LBPWS, LBPWS10). */
const PROVISIONING = 0xe0;
const THIN = 2;

/** Who a unit is. */
export interface ScsiIdentity {
  readonly type: ScsiPeripheral;
  readonly product: string;
  readonly removable: boolean;
  /** Empty: it has none. */
  readonly serial: string;
  /** What tells it from all other units of the machine where it has no serial number. */
  readonly designation: string;
}

/** Writes ASCII into a field of blanks. */
function putText(bytes: Uint8Array, at: number, length: number, text: string): void {
  bytes.fill(0x20, at, at + length);
  new TextEncoder().encodeInto(text.slice(0, length), bytes.subarray(at));
}

/** Standard INQUIRY data. */
export function standardInquiry(type: number, product: string, removable: boolean): Uint8Array {
  const data = new Uint8Array(SCSI_INQUIRY_SIZE);
  data[0] = type;
  data[1] = removable ? REMOVABLE : 0;
  data[2] = VERSION_SPC_4;
  data[3] = FORMAT;
  data[4] = SCSI_INQUIRY_SIZE - 5;
  data[7] = CMDQUE;
  putText(data, 8, 8, VENDOR);
  putText(data, 16, 16, product);
  putText(data, 32, 4, REVISION);
  return data;
}

/** Answers INQUIRY. */
export function inquire(command: ScsiCommand, identity: ScsiIdentity): ScsiReply {
  const allocation = command.word16(3);
  const page = command.byte(2);
  if ((command.byte(1) & EVPD) !== 0) {
    const data = vitalProductData(page, identity);
    if (data !== null) return command.answer(data, allocation);
  } else if (page === 0) {
    const { type, product, removable } = identity;
    return command.answer(standardInquiry(type, product, removable), allocation);
  }
  return checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_FIELD_IN_CDB);
}

/** Pages of a unit, in order. */
function pagesOf({ type, serial }: ScsiIdentity): readonly ScsiVpd[] {
  return [
    ScsiVpd.SUPPORTED_PAGES,
    ...(serial === "" ? [] : [ScsiVpd.UNIT_SERIAL_NUMBER]),
    ...(type === ScsiPeripheral.WELL_KNOWN ? [] : [ScsiVpd.DEVICE_IDENTIFICATION]),
    ...(type === ScsiPeripheral.DISK
      ? [
          ScsiVpd.BLOCK_LIMITS,
          ScsiVpd.BLOCK_DEVICE_CHARACTERISTICS,
          ScsiVpd.LOGICAL_BLOCK_PROVISIONING,
        ]
      : []),
  ];
}

/** A page with its header of 4 bytes; null: the unit has none such. */
function vitalProductData(page: ScsiVpd, identity: ScsiIdentity): Uint8Array | null {
  const pages = pagesOf(identity);
  if (!pages.includes(page)) return null;
  const payload = payloadOf(page, pages, identity);
  const data = new Uint8Array(4 + payload.length);
  data[0] = identity.type;
  data[1] = page;
  put16(data, 2, payload.length);
  data.set(payload, 4);
  return data;
}

function payloadOf(
  page: ScsiVpd,
  pages: readonly ScsiVpd[],
  { serial, designation }: ScsiIdentity,
): Uint8Array {
  switch (page) {
    case ScsiVpd.UNIT_SERIAL_NUMBER:
      return new TextEncoder().encode(serial);
    case ScsiVpd.DEVICE_IDENTIFICATION:
      return designator(serial === "" ? designation : serial);
    case ScsiVpd.BLOCK_LIMITS:
      return blockLimits();
    case ScsiVpd.BLOCK_DEVICE_CHARACTERISTICS: {
      const payload = new Uint8Array(BLOCK_PAGE_LENGTH);
      put16(payload, 0, NON_ROTATING);
      return payload;
    }
    case ScsiVpd.LOGICAL_BLOCK_PROVISIONING: {
      const payload = new Uint8Array(PROVISIONING_PAGE_LENGTH);
      payload[1] = PROVISIONING;
      payload[2] = THIN;
      return payload;
    }
    default:
      return Uint8Array.from(pages);
  }
}

function designator(text: string): Uint8Array {
  const name = new TextEncoder().encode(text);
  const payload = new Uint8Array(4 + 8 + name.length);
  payload[0] = CODE_SET_ASCII;
  payload[1] = TYPE_T10_VENDOR;
  payload[3] = 8 + name.length;
  putText(payload, 4, 8, VENDOR);
  payload.set(name, 12);
  return payload;
}

/** What is 0 has no limit. */
function blockLimits(): Uint8Array {
  const payload = new Uint8Array(BLOCK_PAGE_LENGTH);
  payload[0] = WSNZ;
  put32(payload, 16, 0xffff_ffff);
  put32(payload, 20, UNMAP_DESCRIPTORS_MAX);
  return payload;
}

// CDBs as a driver makes them (SPC-4, SBC-3).
import { ScsiOpcode, ScsiServiceAction } from "@virtio/core/scsi";

const be16 = (n: number): number[] => [(n >>> 8) & 0xff, n & 0xff];
const be32 = (n: number): number[] => [...be16(n >>> 16), ...be16(n & 0xffff)];
const be64 = (n: number): number[] => [...be32(Math.floor(n / 2 ** 32)), ...be32(n % 2 ** 32)];

/** A CDB of 6, 10, 12 or 16 bytes that names blocks. `flags`: byte 1. */
export function blockCdb(opcode: ScsiOpcode, lba: number, blocks: number, flags = 0): number[] {
  switch (opcode >>> 5) {
    case 0:
      return [opcode, (lba >>> 16) & 0x1f, ...be16(lba & 0xffff), blocks & 0xff, 0];
    case 4:
      return [opcode, flags, ...be64(lba), ...be32(blocks), 0, 0];
    case 5:
      return [opcode, flags, ...be32(lba), ...be32(blocks), 0, 0];
    default:
      return [opcode, flags, ...be32(lba), 0, ...be16(blocks), 0];
  }
}

export const read10 = (lba: number, blocks: number): number[] =>
  blockCdb(ScsiOpcode.READ_10, lba, blocks);
export const write10 = (lba: number, blocks: number, flags = 0): number[] =>
  blockCdb(ScsiOpcode.WRITE_10, lba, blocks, flags);

/** INQUIRY of a page, or of standard data. */
export const inquiryCdb = (length: number, page?: number): number[] => [
  ScsiOpcode.INQUIRY,
  page === undefined ? 0 : 1,
  page ?? 0,
  ...be16(length),
  0,
];

export const readCapacity16 = (length = 32): number[] => [
  ScsiOpcode.SERVICE_ACTION_IN_16,
  ScsiServiceAction.READ_CAPACITY_16,
  ...be64(0),
  ...be32(length),
  0,
  0,
];

export const modeSense6 = (page: number, length: number, dbd = false): number[] => [
  ScsiOpcode.MODE_SENSE_6,
  dbd ? 8 : 0,
  page,
  0,
  length,
  0,
];

export const modeSense10 = (page: number, length: number): number[] => [
  ScsiOpcode.MODE_SENSE_10,
  0,
  page,
  0,
  0,
  0,
  0,
  ...be16(length),
  0,
];

export const unmapCdb = (length: number, flags = 0): number[] => [
  ScsiOpcode.UNMAP,
  flags,
  0,
  0,
  0,
  0,
  0,
  ...be16(length),
  0,
];

/** UNMAP's parameter list. */
export function unmapList(
  ...ranges: readonly (readonly [lba: number, blocks: number])[]
): Uint8Array {
  const descriptors = ranges.flatMap(([lba, blocks]) => [
    ...be64(lba),
    ...be32(blocks),
    0,
    0,
    0,
    0,
  ]);
  const length = descriptors.length;
  return Uint8Array.of(...be16(length + 6), ...be16(length), 0, 0, 0, 0, ...descriptors);
}

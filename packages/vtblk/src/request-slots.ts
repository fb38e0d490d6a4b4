// Guest memory of a queue's requests: a header, a range and a status for each (virtio 1.4 §5.2.6).
import type { DmaMemory } from "@virtio/core";
import { Slots } from "@virtio/storage";

/** Bytes between two headers: 16 of header, 16 of range, 1 of status, and the rest so that none crosses a page. */
const STRIDE = 64;
const RANGE_AT = 16;
const STATUS_AT = 32;

/** A slot for each request. */
export class RequestSlots extends Slots {
  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(memory: DmaMemory, count: number) {
    super(memory, count, STRIDE);
  }

  headerAddress(slot: number): number {
    return this.region.address + slot * STRIDE;
  }

  rangeAddress(slot: number): number {
    return this.region.address + slot * STRIDE + RANGE_AT;
  }

  /** Where the device answers an append: in place of the range. */
  appendAddress(slot: number): number {
    return this.rangeAddress(slot);
  }

  /** What it answered: le64 append_sector. */
  appendSector(slot: number): number {
    const w = (slot * STRIDE + RANGE_AT) >>> 2;
    return (this.words[w] as number) + (this.words[w + 1] as number) * 0x1_0000_0000;
  }

  statusAddress(slot: number): number {
    return this.region.address + slot * STRIDE + STATUS_AT;
  }

  /** Writes a header, le32 type, le32 reserved, le64 sector, and presets the status to what no device writes. */
  begin(slot: number, type: number, sector: number): void {
    const w = (slot * STRIDE) >>> 2;
    this.words[w] = type;
    this.words[w + 1] = 0;
    this.words[w + 2] = sector;
    this.words[w + 3] = sector / 0x1_0000_0000;
    this.region.bytes[slot * STRIDE + STATUS_AT] = 0xff;
  }

  /** Writes the one segment of a range command: le64 sector, le32 num_sectors, le32 flags. */
  range(slot: number, sector: number, sectors: number, flags: number): void {
    const w = (slot * STRIDE + RANGE_AT) >>> 2;
    this.words[w] = sector;
    this.words[w + 1] = sector / 0x1_0000_0000;
    this.words[w + 2] = sectors;
    this.words[w + 3] = flags;
  }

  status(slot: number): number {
    return this.region.bytes[slot * STRIDE + STATUS_AT] as number;
  }
}

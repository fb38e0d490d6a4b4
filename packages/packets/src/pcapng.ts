// Captures as files: the pcapng format (draft-ietf-opsawg-pcapng), written.
import { type CapturedFrame, VirtioFault } from "@virtio/core";

/** Types of blocks. */
export enum PcapBlock {
  INTERFACE = 1,
  SIMPLE_PACKET = 3,
  ENHANCED_PACKET = 6,
  SECTION = 0x0a0d0d0a,
}

/** Options of an interface description; 0 ends the options of every block. */
export enum IfOption {
  END = 0,
  NAME = 2,
  TSRESOL = 9,
  TSOFFSET = 14,
}

/** Option of an enhanced packet: how it passed. */
export const EPB_FLAGS = 2;

/** Byte-order magic of a section. */
export const PCAPNG_MAGIC = 0x1a2b3c4d;
/** Link type of Ethernet. */
export const LINKTYPE_ETHERNET = 1;

/** epb_flags: bits 0 and 1. */
export enum EpbDirection {
  IN = 1,
  OUT = 2,
}

/** Decimals of a second in a timestamp: nanoseconds. */
const RESOLUTION = 9;

/** Writes one capture: `header()` first, then `addInterface()`, then frames, each a block to append. Little-endian. */
export class PcapngWriter {
  #interfaces = 0;

  /** The section header. */
  header(): Uint8Array<ArrayBuffer> {
    const body = new DataView(new ArrayBuffer(16));
    body.setUint32(0, PCAPNG_MAGIC, true);
    body.setUint16(4, 1, true);
    // The length of the section is not known.
    body.setBigInt64(8, -1n, true);
    return block(PcapBlock.SECTION, body);
  }

  /**
   * An interface description. Interfaces count from 0.
   *
   * @param name - `vtnet0`
   */
  addInterface(name: string): Uint8Array<ArrayBuffer> {
    const text = Uint8Array.from(name, (character) => character.charCodeAt(0) & 0x7f);
    const body = new DataView(new ArrayBuffer(8 + 4 + padded(text.length) + 8 + 4));
    body.setUint16(0, LINKTYPE_ETHERNET, true);
    body.setUint16(8, IfOption.NAME, true);
    body.setUint16(10, text.length, true);
    new Uint8Array(body.buffer).set(text, 12);
    const at = 12 + padded(text.length);
    body.setUint16(at, IfOption.TSRESOL, true);
    body.setUint16(at + 2, 1, true);
    body.setUint8(at + 4, RESOLUTION);
    this.#interfaces++;
    return block(PcapBlock.INTERFACE, body);
  }

  /**
   * A frame that passed an interface, whole.
   *
   * @param id - of the interface; default 0
   * @throws VirtioFault INVALID: no such interface
   */
  frame(frame: CapturedFrame, id = 0): Uint8Array<ArrayBuffer> {
    if (!(id >= 0 && id < this.#interfaces)) {
      throw new VirtioFault("INVALID", `interface ${id} of a capture of ${this.#interfaces}`);
    }
    const { length } = frame.bytes;
    const options = 20 + padded(length);
    const body = new DataView(new ArrayBuffer(options + 12));
    const time = Math.round(frame.time * 1e6);
    body.setUint32(0, id, true);
    body.setUint32(4, Math.floor(time / 2 ** 32), true);
    body.setUint32(8, time, true);
    body.setUint32(12, length, true);
    body.setUint32(16, length, true);
    new Uint8Array(body.buffer).set(frame.bytes, 20);
    body.setUint16(options, EPB_FLAGS, true);
    body.setUint16(options + 2, 4, true);
    const direction = frame.direction === "in" ? EpbDirection.IN : EpbDirection.OUT;
    body.setUint32(options + 4, direction, true);
    return block(PcapBlock.ENHANCED_PACKET, body);
  }
}

/** Bytes that `length` takes, in whole 32-bit words. */
export function padded(length: number): number {
  return (length + 3) & ~3;
}

/** A block: type, length, body, length. */
function block(type: PcapBlock, body: DataView): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(12 + body.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, bytes.length, true);
  bytes.set(new Uint8Array(body.buffer), 8);
  view.setUint32(bytes.length - 4, bytes.length, true);
  return bytes;
}

// Captures as files, read: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), in either byte order.
import { VirtioFault } from "@virtio/core";
import {
  EPB_FLAGS,
  EpbDirection,
  IfOption,
  LINKTYPE_ETHERNET,
  PCAPNG_MAGIC,
  PcapBlock,
  padded,
} from "./pcapng.js";

/** A frame of a capture. */
export interface PcapFrame {
  /** Milliseconds; since 1970, or what the writer counted from. 0: not said. */
  readonly time: number;
  /** Which way it passed; null: not said. */
  readonly direction: "in" | "out" | null;
  /** Name of the interface that it passed; null: not said. */
  readonly interface: string | null;
  /** What was captured: a view of the file. */
  readonly bytes: Uint8Array;
  /** Bytes that it had on the wire. */
  readonly length: number;
}

/** pcap's magic, with microseconds and with nanoseconds. */
const MAGIC_MICRO = 0xa1b2c3d4;
const MAGIC_NANO = 0xa1b23c4d;

/**
 * The Ethernet frames of a pcap or pcapng file. Blocks that are not known are passed over.
 *
 * @throws VirtioFault INVALID: not such a file, or cut short; UNSUPPORTED: frames of another link type than Ethernet
 */
export function readPcap(file: Uint8Array): PcapFrame[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length >= 24) {
    for (const little of [true, false]) {
      const magic = view.getUint32(0, little);
      if (magic === PcapBlock.SECTION) return readPcapng(file, view);
      if (magic === MAGIC_MICRO) return readClassic(file, view, little, 1e-3);
      if (magic === MAGIC_NANO) return readClassic(file, view, little, 1e-6);
    }
  }
  throw new VirtioFault("INVALID", "neither a pcap nor a pcapng file");
}

function cut(at: number): VirtioFault {
  return new VirtioFault("INVALID", `capture: a wrong length, or the end of the file, at ${at}`);
}

function checkLink(type: number): void {
  if (type !== LINKTYPE_ETHERNET) {
    throw new VirtioFault("UNSUPPORTED", `capture of link type ${type}, not Ethernet`);
  }
}

/** @param unit - milliseconds of the fraction of a second */
function readClassic(file: Uint8Array, view: DataView, little: boolean, unit: number): PcapFrame[] {
  // The upper bits say how long the FCS is.
  checkLink(view.getUint32(20, little) & 0xffff);
  const frames: PcapFrame[] = [];
  for (let at = 24; at < file.length; ) {
    if (file.length - at < 16) throw cut(at);
    const captured = view.getUint32(at + 8, little);
    if (captured > file.length - at - 16) throw cut(at);
    frames.push({
      time: view.getUint32(at, little) * 1000 + view.getUint32(at + 4, little) * unit,
      direction: null,
      interface: null,
      bytes: file.subarray(at + 16, at + 16 + captured),
      length: view.getUint32(at + 12, little),
    });
    at += 16 + captured;
  }
  return frames;
}

interface CaptureInterface {
  readonly linkType: number;
  readonly snapLength: number;
  readonly name: string | null;
  /** Milliseconds of one unit of its timestamps. */
  readonly unit: number;
  /** Milliseconds to add. */
  readonly base: number;
}

function readPcapng(file: Uint8Array, view: DataView): PcapFrame[] {
  const frames: PcapFrame[] = [];
  let interfaces: CaptureInterface[] = [];
  let little = true;
  let length = 0;
  for (let at = 0; at < file.length; at += length) {
    if (file.length - at < 12) throw cut(at);
    // The same in either order.
    if (view.getUint32(at, true) === PcapBlock.SECTION) {
      little = view.getUint32(at + 8, true) === PCAPNG_MAGIC;
      if (!little && view.getUint32(at + 8, false) !== PCAPNG_MAGIC) throw cut(at);
      interfaces = [];
    }
    length = view.getUint32(at + 4, little);
    if (length < 12 || length % 4 !== 0 || length > file.length - at) throw cut(at);
    const body = file.subarray(at + 8, at + length - 4);
    const type = view.getUint32(at, little);
    if (type === PcapBlock.INTERFACE) {
      if (body.length < 8) throw cut(at);
      interfaces.push(readInterface(body, little));
    }
    if (type === PcapBlock.ENHANCED_PACKET || type === PcapBlock.SIMPLE_PACKET) {
      const simple = type === PcapBlock.SIMPLE_PACKET;
      if (body.length < (simple ? 4 : 20)) throw cut(at);
      const from = interfaces[simple ? 0 : viewOf(body).getUint32(0, little)];
      if (from === undefined) throw cut(at);
      checkLink(from.linkType);
      const frame = simple ? readSimple(body, little, from) : readEnhanced(body, little, from);
      if (frame === null) throw cut(at);
      frames.push(frame);
    }
  }
  return frames;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function readInterface(body: Uint8Array, little: boolean): CaptureInterface {
  const view = viewOf(body);
  const options = readOptions(body, 8, little);
  const name = options.get(IfOption.NAME);
  const offset = options.get(IfOption.TSOFFSET);
  const resolution = options.get(IfOption.TSRESOL)?.[0] ?? 6;
  return {
    linkType: view.getUint16(0, little),
    snapLength: view.getUint32(4, little),
    name: name === undefined ? null : String.fromCharCode(...name),
    unit: resolution < 0x80 ? 1000 / 10 ** resolution : 1000 / 2 ** (resolution & 0x7f),
    base: offset?.length === 8 ? Number(viewOf(offset).getBigInt64(0, little)) * 1000 : 0,
  };
}

function readEnhanced(body: Uint8Array, little: boolean, from: CaptureInterface): PcapFrame | null {
  const view = viewOf(body);
  const captured = view.getUint32(12, little);
  if (captured > body.length - 20) return null;
  const time = view.getUint32(4, little) * 2 ** 32 + view.getUint32(8, little);
  const flags = readOptions(body, 20 + padded(captured), little).get(EPB_FLAGS);
  const direction = flags?.length === 4 ? viewOf(flags).getUint32(0, little) & 3 : 0;
  return {
    time: from.base + time * from.unit,
    direction: direction === EpbDirection.IN ? "in" : direction === EpbDirection.OUT ? "out" : null,
    interface: from.name,
    bytes: body.subarray(20, 20 + captured),
    length: view.getUint32(16, little),
  };
}

/** Its length is the original's, cut to what its interface captures. */
function readSimple(body: Uint8Array, little: boolean, from: CaptureInterface): PcapFrame | null {
  const length = viewOf(body).getUint32(0, little);
  const captured = from.snapLength === 0 ? length : Math.min(length, from.snapLength);
  if (captured > body.length - 4) return null;
  const bytes = body.subarray(4, 4 + captured);
  return { time: 0, direction: null, interface: from.name, bytes, length };
}

/** The first value of each option; one that is cut short ends them. */
function readOptions(body: Uint8Array, from: number, little: boolean): Map<number, Uint8Array> {
  const options = new Map<number, Uint8Array>();
  const view = viewOf(body);
  for (let at = from; at + 4 <= body.length; ) {
    const option = view.getUint16(at, little);
    const to = at + 4 + view.getUint16(at + 2, little);
    if (option === IfOption.END || to > body.length) break;
    if (!options.has(option)) options.set(option, body.subarray(at + 4, to));
    at += 4 + padded(to - at - 4);
  }
  return options;
}

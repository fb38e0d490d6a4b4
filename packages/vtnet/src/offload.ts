// What is done in software: checksums over chains, VLAN tags, and a look at headers. Nothing is allocated.
import type { Frame } from "@virtio/core";
import { NetHeaderFlag } from "@virtio/core/net";
import {
  complete,
  ETHERNET_HEADER_SIZE,
  EtherType,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  sum,
  TCP_HEADER_SIZE,
  TcpFlag,
  UDP_HEADER_SIZE,
  VLAN_TAG_SIZE,
} from "@virtio/packets";

/** Bytes of both addresses: a VLAN tag is behind them. */
const ADDRESSES = 12;
/** Where TCP and UDP have their checksum. */
export const TCP_CHECKSUM = 16;

/** Most buffers of a frame, which are as many as a receive queue ever has; a longer chain is none. */
export const BUFFERS_MAX = 512;

/** Bytes of a whole frame; -1: it has more buffers than any. */
export function frameLength(frame: Frame): number {
  if (frame.next === null) return frame.length;
  let length = 0;
  let count = 0;
  for (let part: Frame | null = frame; part !== null; part = part.next) {
    length += part.length;
    count += 1;
    if (count > BUFFERS_MAX) return -1;
  }
  return length;
}

/** Copies a whole frame to `into`, from `at` on. */
export function copyFrame(frame: Frame, into: Uint8Array, at: number): void {
  let to = at;
  for (let part: Frame | null = frame; part !== null; part = part.next) {
    into.set(part.bytes.subarray(part.offset, part.offset + part.length), to);
    to += part.length;
  }
}

/** Where the checksum that a frame lacks is: its two bytes lie within the frame. */
export function hasChecksumPlace(frame: Frame, length: number): boolean {
  const { csumStart, csumOffset } = frame;
  return csumStart >= ETHERNET_HEADER_SIZE && csumStart + csumOffset + 2 <= length;
}

/** Does what NEEDS_CSUM asks for, in place (virtio 1.4 §5.1.6.2). The place was looked at by `hasChecksumPlace`. */
export function completeChecksum(frame: Frame): void {
  const checksum = frameChecksum(frame);
  const at = frame.csumStart + frame.csumOffset;
  putByte(frame, at, checksum >>> 8);
  putByte(frame, at + 1, checksum & 0xff);
  frame.flags &= ~NetHeaderFlag.NEEDS_CSUM;
}

/** Of the bytes from `csumStart` on. Never 0, which for UDP means that there is none; TCP takes both. */
function frameChecksum(frame: Frame): number {
  let skip = frame.csumStart;
  let total = 0;
  let odd = false;
  for (let part: Frame | null = frame; part !== null; part = part.next) {
    if (skip >= part.length) {
      skip -= part.length;
      continue;
    }
    let from = part.offset + skip;
    const to = part.offset + part.length;
    skip = 0;
    // The part before ended within a word: this byte is its other half.
    if (odd) {
      total += part.bytes[from] as number;
      from += 1;
    }
    total += sum(part.bytes, from, to);
    odd = ((to - from) & 1) !== 0;
  }
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return complete(total) || 0xffff;
}

function putByte(frame: Frame, at: number, value: number): void {
  let skip = at;
  for (let part: Frame | null = frame; part !== null; part = part.next) {
    if (skip < part.length) {
      part.bytes[part.offset + skip] = value;
      return;
    }
    skip -= part.length;
  }
}

/** What follows the addresses, wherever it lies: EtherType, or that of a VLAN tag; 0: nothing does. */
export const etherTypeOf = (frame: Frame): number =>
  (byteAt(frame, ADDRESSES) << 8) | byteAt(frame, ADDRESSES + 1);

function byteAt(frame: Frame, at: number): number {
  let skip = at;
  for (let part: Frame | null = frame; part !== null; part = part.next) {
    if (skip < part.length) return part.bytes[part.offset + skip] as number;
    skip -= part.length;
  }
  return 0;
}

/** Whether a frame has a VLAN tag in the bytes of its first buffer. */
export function isTagged({ bytes, offset, length }: Frame): boolean {
  return (
    length >= ETHERNET_HEADER_SIZE + VLAN_TAG_SIZE &&
    bytes[offset + 12] === EtherType.VLAN >>> 8 &&
    bytes[offset + 13] === (EtherType.VLAN & 0xff)
  );
}

/** Takes the VLAN tag out of the bytes: `vlanTag` (ether_vlan_mtag). */
export function stripTag(frame: Frame): void {
  const { bytes, offset } = frame;
  frame.vlanTag = ((bytes[offset + 14] as number) << 8) | (bytes[offset + 15] as number);
  bytes.copyWithin(offset + VLAN_TAG_SIZE, offset, offset + ADDRESSES);
  frame.offset += VLAN_TAG_SIZE;
  frame.length -= VLAN_TAG_SIZE;
  if ((frame.flags & NetHeaderFlag.NEEDS_CSUM) !== 0) frame.csumStart -= VLAN_TAG_SIZE;
}

/** Puts `vlanTag` into the bytes (ether_vlanencap). There are 4 bytes in front, and 12 in the first buffer. */
export function insertTag(frame: Frame): void {
  const { bytes, offset, vlanTag } = frame;
  bytes.copyWithin(offset - VLAN_TAG_SIZE, offset, offset + ADDRESSES);
  bytes[offset + 8] = EtherType.VLAN >>> 8;
  bytes[offset + 9] = EtherType.VLAN & 0xff;
  bytes[offset + 10] = vlanTag >>> 8;
  bytes[offset + 11] = vlanTag & 0xff;
  frame.offset -= VLAN_TAG_SIZE;
  frame.length += VLAN_TAG_SIZE;
  if ((frame.flags & NetHeaderFlag.NEEDS_CSUM) !== 0) frame.csumStart += VLAN_TAG_SIZE;
  frame.vlanTag = -1;
}

/** What a frame that asks for an offload is: read by `parse`, used again. Offsets from the start of the frame. */
export interface Transport {
  /** 4, 6; 0: another EtherType. */
  ip: number;
  /** IpProtocol */
  protocol: number;
  /** Where TCP or UDP begins. */
  start: number;
  /** Where their payload begins. */
  payload: number;
  /** TCP's CWR. */
  cwr: boolean;
}

/**
 * Reads the headers of a frame, of which at most one VLAN tag (vtnet_txq_offload_ctx). They must lie in the first buffer; extension
 * headers of IPv6 are passed over by trusting `csumStart`, as FreeBSD does.
 * @returns false: not what it says, or cut short
 */
export function parseTransport(frame: Frame, into: Transport): boolean {
  const { bytes, offset, length } = frame;
  into.ip = 0;
  const l3 = isTagged(frame) ? ETHERNET_HEADER_SIZE + VLAN_TAG_SIZE : ETHERNET_HEADER_SIZE;
  if (length < l3) return false;
  const etherType = ((bytes[offset + l3 - 2] as number) << 8) | (bytes[offset + l3 - 1] as number);
  if (etherType === EtherType.IPV4) {
    if (length < l3 + IPV4_HEADER_SIZE) return false;
    into.ip = 4;
    into.start = l3 + ((bytes[offset + l3] as number) & 0xf) * 4;
    into.protocol = bytes[offset + l3 + 9] as number;
  } else if (etherType === EtherType.IPV6) {
    if (length < l3 + IPV6_HEADER_SIZE) return false;
    into.ip = 6;
    into.start = Math.max(l3 + IPV6_HEADER_SIZE, frame.csumStart);
    into.protocol = bytes[offset + l3 + 6] as number;
    // Behind extension headers, the place of the checksum tells.
    if (into.start > l3 + IPV6_HEADER_SIZE)
      into.protocol = frame.csumOffset === TCP_CHECKSUM ? IpProtocol.TCP : IpProtocol.UDP;
  } else return false;
  const { start } = into;
  if (into.protocol === IpProtocol.TCP) {
    if (length < start + TCP_HEADER_SIZE) return false;
    into.payload = start + ((bytes[offset + start + 12] as number) >>> 4) * 4;
    into.cwr = ((bytes[offset + start + 13] as number) & TcpFlag.CWR) !== 0;
    return into.payload >= start + TCP_HEADER_SIZE;
  }
  into.payload = start + UDP_HEADER_SIZE;
  into.cwr = false;
  return true;
}

/** Most bytes that are looked at for a flow: IPv4 with all its options, and ports. */
const FLOW_BYTES = ETHERNET_HEADER_SIZE + VLAN_TAG_SIZE + 60 + 4;
const flowBytes = new Uint8Array(FLOW_BYTES);

/** A number that all frames of a flow share: of addresses, and of ports unless it is a fragment; 0: not IP. */
export function flowHash(frame: Frame): number {
  const { bytes, offset, length } = frame;
  if (frame.next === null || length >= FLOW_BYTES) return headersHash(bytes, offset, length);
  // A flow stays on its queue however its frames are cut up.
  let gathered = 0;
  let part: Frame | null = frame;
  for (let count = 0; part !== null && count < BUFFERS_MAX; count++) {
    for (let i = 0; i < part.length && gathered < FLOW_BYTES; i++) {
      flowBytes[gathered] = bytes[part.offset + i] as number;
      gathered += 1;
    }
    part = gathered < FLOW_BYTES ? part.next : null;
  }
  return headersHash(flowBytes, 0, gathered);
}

function headersHash(bytes: Uint8Array, offset: number, length: number): number {
  let l3 = offset + ETHERNET_HEADER_SIZE;
  if (length < ETHERNET_HEADER_SIZE + IPV4_HEADER_SIZE + 4) return 0;
  let etherType = ((bytes[l3 - 2] as number) << 8) | (bytes[l3 - 1] as number);
  if (etherType === EtherType.VLAN) {
    l3 += VLAN_TAG_SIZE;
    etherType = ((bytes[l3 - 2] as number) << 8) | (bytes[l3 - 1] as number);
  }
  const left = offset + length - l3;
  if (etherType === EtherType.IPV4 && left >= IPV4_HEADER_SIZE + 4) {
    const fragment = ((bytes[l3 + 6] as number) & 0x3f) | (bytes[l3 + 7] as number);
    const l4 = l3 + ((bytes[l3] as number) & 0xf) * 4;
    return mix(
      bytes,
      l3 + 12,
      8,
      fragment === 0 ? l4 : -1,
      offset + length,
      bytes[l3 + 9] as number,
    );
  }
  if (etherType === EtherType.IPV6 && left >= IPV6_HEADER_SIZE + 4)
    return mix(bytes, l3 + 8, 32, l3 + IPV6_HEADER_SIZE, offset + length, bytes[l3 + 6] as number);
  return 0;
}

/** FNV-1a, which spreads the last byte over the low bits. */
function mix(
  bytes: Uint8Array,
  addresses: number,
  size: number,
  l4: number,
  end: number,
  protocol: number,
): number {
  let hash = 0x811c9dc5 ^ protocol;
  for (let i = 0; i < size; i++)
    hash = Math.imul(hash ^ (bytes[addresses + i] as number), 0x01000193);
  const ports = protocol === IpProtocol.TCP || protocol === IpProtocol.UDP;
  if (ports && l4 >= 0 && l4 + 4 <= end)
    for (let i = 0; i < 4; i++) hash = Math.imul(hash ^ (bytes[l4 + i] as number), 0x01000193);
  return (hash ^ (hash >>> 16)) & 0x7fff_ffff;
}

/** A copy of a frame as it would be on a wire: tag in its bytes, checksum complete. Of one of several segments: the whole. */
export function wireCopy(frame: Frame, length: number): Uint8Array {
  const tag = frame.vlanTag >= 0 ? VLAN_TAG_SIZE : 0;
  const bytes = new Uint8Array(length + tag);
  copyFrame(frame, bytes, tag);
  const copy: Frame = {
    bytes,
    offset: tag,
    length,
    next: null,
    room: length,
    flags: frame.flags,
    gsoType: frame.gsoType,
    gsoSize: frame.gsoSize,
    csumStart: frame.csumStart,
    csumOffset: frame.csumOffset,
    vlanTag: frame.vlanTag,
    queue: -1,
    hash: 0,
    hashType: 0,
  };
  if (tag !== 0) insertTag(copy);
  if ((copy.flags & NetHeaderFlag.NEEDS_CSUM) !== 0 && hasChecksumPlace(copy, copy.length))
    completeChecksum(copy);
  return bytes;
}

// Writers of headers, for what is not on a data path: each returns a new array, header and payload. Addresses are text.
import { VirtioFault } from "@virtio/core";
import { parseIpv4, parseIpv6, parseMac } from "./addresses.js";
import { complete, pseudoSum4, pseudoSum6, sum } from "./checksum.js";
import {
  ETHERNET_HEADER_SIZE,
  EtherType,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  TCP_HEADER_SIZE,
  UDP_HEADER_SIZE,
  VLAN_TAG_SIZE,
} from "./headers.js";
import { put16, put32 } from "./words.js";

/** What `ethernet` writes. */
export interface EthernetHeader {
  /** `52:54:00:12:34:56` */
  readonly destination: string;
  readonly source: string;
  /** EtherType of the payload. */
  readonly etherType: number;
  /** PCP, DEI and id of a VLAN tag; default: not tagged. */
  readonly vlan?: number;
}

/** From where to where: both IPv4 addresses, or both IPv6 addresses. */
export interface IpPath {
  readonly source: string;
  readonly destination: string;
  /** TTL of IPv4, hop limit of IPv6: 0 to 255; default 64. */
  readonly hopLimit?: number;
}

/** What `ipv4` and `ipv6` write. */
export interface IpHeader extends IpPath {
  /** IpProtocol of the payload. */
  readonly protocol: number;
}

/** What `udp` writes. */
export interface UdpHeader extends IpPath {
  readonly sourcePort: number;
  readonly destinationPort: number;
}

/** What `tcp` writes. */
export interface TcpHeader extends UdpHeader {
  readonly sequence: number;
  /** Default 0. */
  readonly acknowledgement?: number;
  /** Bits of TcpFlag. */
  readonly flags: number;
  /** Default 65535. */
  readonly window?: number;
  /** Options as they stand in the header, whole 32-bit words, at most 40 bytes; default none. */
  readonly options?: Uint8Array;
}

/**
 * An Ethernet frame without FCS. Not padded.
 *
 * @throws VirtioFault INVALID: an address
 */
export function ethernet(header: EthernetHeader, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const { vlan } = header;
  const size = ETHERNET_HEADER_SIZE + (vlan === undefined ? 0 : VLAN_TAG_SIZE);
  const frame = new Uint8Array(size + payload.length);
  frame.set(parseMac(header.destination));
  frame.set(parseMac(header.source), 6);
  if (vlan !== undefined) {
    put16(frame, 12, EtherType.VLAN);
    put16(frame, 14, vlan);
  }
  put16(frame, size - 2, header.etherType);
  frame.set(payload, size);
  return frame;
}

/**
 * An IPv4 packet (RFC 791): no options, not a fragment, DF set, so its id is 0 (RFC 6864 §4.1).
 *
 * @throws VirtioFault INVALID: an address, or more than 65535 bytes
 */
export function ipv4(header: IpHeader, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const packet = new Uint8Array(IPV4_HEADER_SIZE + payload.length);
  packet[0] = 0x45;
  put16(packet, 2, checkLength(packet.length));
  put16(packet, 6, 0x4000);
  packet[8] = header.hopLimit ?? 64;
  packet[9] = header.protocol;
  packet.set(parseIpv4(header.source), 12);
  packet.set(parseIpv4(header.destination), 16);
  put16(packet, 10, complete(sum(packet, 0, IPV4_HEADER_SIZE)));
  packet.set(payload, IPV4_HEADER_SIZE);
  return packet;
}

/**
 * An IPv6 packet (RFC 8200) without extension headers.
 *
 * @throws VirtioFault INVALID: an address, or more than 65535 bytes of payload
 */
export function ipv6(header: IpHeader, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const packet = new Uint8Array(IPV6_HEADER_SIZE + payload.length);
  packet[0] = 0x60;
  put16(packet, 4, checkLength(payload.length));
  packet[6] = header.protocol;
  packet[7] = header.hopLimit ?? 64;
  packet.set(parseIpv6(header.source), 8);
  packet.set(parseIpv6(header.destination), 24);
  packet.set(payload, IPV6_HEADER_SIZE);
  return packet;
}

function checkLength(length: number): number {
  if (length <= 0xffff) return length;
  throw new VirtioFault("INVALID", `an IP packet of ${length} bytes, more than 65535`);
}

/**
 * An IP packet around a segment whose checksum is of a pseudo header as well. IPv6 where the source address has a colon.
 *
 * @param checksum - offset of the checksum in `segment`, where 0 stands now
 */
export function transport(
  path: IpPath,
  protocol: IpProtocol,
  segment: Uint8Array,
  checksum: number,
): Uint8Array<ArrayBuffer> {
  const header = { ...path, protocol };
  const v6 = path.source.includes(":");
  const packet = v6 ? ipv6(header, segment) : ipv4(header, segment);
  const l4 = packet.length - segment.length;
  const pseudo = v6 ? pseudoSum6 : pseudoSum4;
  const total = sum(packet, l4, packet.length, pseudo(packet, 0, protocol, segment.length));
  const value = complete(total);
  // UDP's 0 says that there is none (RFC 768).
  put16(packet, l4 + checksum, value === 0 && protocol === IpProtocol.UDP ? 0xffff : value);
  return packet;
}

/**
 * An IP packet with a UDP datagram (RFC 768), its checksum complete.
 *
 * @throws VirtioFault INVALID: an address, or too long
 */
export function udp(header: UdpHeader, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const datagram = new Uint8Array(UDP_HEADER_SIZE + payload.length);
  put16(datagram, 0, header.sourcePort);
  put16(datagram, 2, header.destinationPort);
  put16(datagram, 4, datagram.length);
  datagram.set(payload, UDP_HEADER_SIZE);
  return transport(header, IpProtocol.UDP, datagram, 6);
}

/**
 * An IP packet with a TCP segment (RFC 9293 §3.1), its checksum complete.
 *
 * @throws VirtioFault INVALID: an address, options, or too long
 */
export function tcp(header: TcpHeader, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const { options = new Uint8Array(0) } = header;
  if (options.length > 40 || options.length % 4 !== 0) {
    throw new VirtioFault(
      "INVALID",
      `TCP options of ${options.length} bytes, not whole words up to 40`,
    );
  }
  const size = TCP_HEADER_SIZE + options.length;
  const segment = new Uint8Array(size + payload.length);
  put16(segment, 0, header.sourcePort);
  put16(segment, 2, header.destinationPort);
  put32(segment, 4, header.sequence);
  put32(segment, 8, header.acknowledgement ?? 0);
  segment[12] = (size / 4) << 4;
  segment[13] = header.flags;
  put16(segment, 14, header.window ?? 0xffff);
  segment.set(options, TCP_HEADER_SIZE);
  segment.set(payload, size);
  return transport(header, IpProtocol.TCP, segment, 16);
}

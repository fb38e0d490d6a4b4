// What a frame holds, found without making anything: Ethernet II, 802.1Q, IPv4 (RFC 791), IPv6 (RFC 8200), TCP, UDP.
import { get16 } from "./words.js";

/** EtherTypes. Values. */
export enum EtherType {
  IPV4 = 0x0800,
  ARP = 0x0806,
  /** IEEE 802.1Q */
  VLAN = 0x8100,
  IPV6 = 0x86dd,
}

/** Protocols above IP. Values. */
export enum IpProtocol {
  ICMP = 1,
  TCP = 6,
  UDP = 17,
  ICMPV6 = 58,
}

/** Flags of a TCP header (RFC 9293 §3.1). Values. */
export enum TcpFlag {
  FIN = 0x01,
  SYN = 0x02,
  RST = 0x04,
  PSH = 0x08,
  ACK = 0x10,
  URG = 0x20,
  ECE = 0x40,
  CWR = 0x80,
}

/** Bytes of an Ethernet header. */
export const ETHERNET_HEADER_SIZE = 14;
/** Bytes of a VLAN tag. */
export const VLAN_TAG_SIZE = 4;
/** Bytes of an IPv4 header without options. */
export const IPV4_HEADER_SIZE = 20;
/** Bytes of an IPv6 header. */
export const IPV6_HEADER_SIZE = 40;
/** Bytes of a TCP header without options. */
export const TCP_HEADER_SIZE = 20;
/** Bytes of a UDP header. */
export const UDP_HEADER_SIZE = 8;

/** IPv6 extension headers that may stand before the upper layer's (RFC 8200 §4). Values. */
enum Extension {
  HOP_BY_HOP = 0,
  ROUTING = 43,
  FRAGMENT = 44,
  DESTINATION = 60,
}

/** Most extension headers that are followed; RFC 8200 §4.1 recommends no more than seven. */
const EXTENSIONS_MAX = 8;

/**
 * The headers of one frame. Made once, filled by each `parse`, nothing allocated. Offsets count from the start of the frame; -1:
 * there is none.
 */
export class Headers {
  /** Behind the VLAN tag, if there is one. Below 0x600: the length of an 802.3 frame. */
  etherType = 0;
  /** PCP, DEI and id of the VLAN tag; -1: not tagged. A second tag is not looked into. */
  vlan = -1;
  /** Offset of what the EtherType names. */
  l3 = -1;
  /** IP version; 0: not IP. */
  ip: 0 | 4 | 6 = 0;
  /** What the IP packet carries; of IPv6 what stands behind the extension headers. */
  protocol = 0;
  /** The packet is a fragment: checksums above IP are of the whole datagram. */
  fragment = false;
  /** Offset of what IP carries; -1: not IP, or a fragment. */
  l4 = -1;
  /** Bytes of the TCP or UDP header; 0: another protocol. */
  l4HeaderLength = 0;
  /** Bits of TcpFlag; 0: not TCP. */
  tcpFlags = 0;
  /** Offset of the first byte that no header was found in; of a fragment, what it carries. */
  payload = -1;
  /** Offset where the packet ends, without the padding of Ethernet: IP's length, or UDP's own. */
  end = -1;

  /**
   * Finds the headers of the frame `bytes[offset]` to `bytes[offset + length - 1]`.
   *
   * @returns false: a header is cut short, or says a length that is not there. What stands before it is filled in, the rest is as
   * if it were not there.
   */
  parse(bytes: Uint8Array, offset: number, length: number): boolean {
    this.etherType = 0;
    this.vlan = -1;
    this.l3 = -1;
    this.ip = 0;
    this.protocol = 0;
    this.fragment = false;
    this.l4 = -1;
    this.l4HeaderLength = 0;
    this.tcpFlags = 0;
    this.payload = -1;
    this.end = -1;
    if (length < ETHERNET_HEADER_SIZE || offset < 0 || offset + length > bytes.length) return false;
    let l3 = ETHERNET_HEADER_SIZE;
    let etherType = get16(bytes, offset + 12);
    if (etherType === EtherType.VLAN) {
      if (length < ETHERNET_HEADER_SIZE + VLAN_TAG_SIZE) return false;
      this.vlan = get16(bytes, offset + 14);
      etherType = get16(bytes, offset + 16);
      l3 += VLAN_TAG_SIZE;
    }
    this.etherType = etherType;
    this.l3 = l3;
    this.payload = l3;
    this.end = length;
    if (etherType === EtherType.IPV4) return this.#ipv4(bytes, offset, length);
    if (etherType === EtherType.IPV6) return this.#ipv6(bytes, offset, length);
    return true;
  }

  #ipv4(bytes: Uint8Array, frame: number, length: number): boolean {
    const room = length - this.l3;
    if (room < IPV4_HEADER_SIZE) return false;
    const at = frame + this.l3;
    const first = bytes[at] as number;
    const size = (first & 15) * 4;
    const total = get16(bytes, at + 2);
    if (first >>> 4 !== 4 || size < IPV4_HEADER_SIZE || total < size || total > room) return false;
    this.ip = 4;
    this.protocol = bytes[at + 9] as number;
    // More fragments, or not the first.
    this.fragment = (get16(bytes, at + 6) & 0x3fff) !== 0;
    this.payload = this.l3 + size;
    this.end = this.l3 + total;
    return this.fragment || this.#upper(bytes, frame);
  }

  #ipv6(bytes: Uint8Array, frame: number, length: number): boolean {
    const room = length - this.l3 - IPV6_HEADER_SIZE;
    if (room < 0) return false;
    const at = frame + this.l3;
    const total = get16(bytes, at + 4);
    if ((bytes[at] as number) >>> 4 !== 6 || total > room) return false;
    this.ip = 6;
    this.payload = this.l3 + IPV6_HEADER_SIZE;
    this.end = this.payload + total;
    this.protocol = bytes[at + 6] as number;
    for (let count = 0; isExtension(this.protocol); count++) {
      const here = frame + this.payload;
      const left = this.end - this.payload;
      if (left < 8 || count === EXTENSIONS_MAX) return false;
      const fragment = this.protocol === Extension.FRAGMENT;
      const size = fragment ? 8 : ((bytes[here + 1] as number) + 1) * 8;
      if (size > left) return false;
      this.protocol = bytes[here] as number;
      this.payload += size;
      // More fragments, or not the first; both zero is an atomic fragment, which is whole (RFC 6946).
      if (fragment && (get16(bytes, here + 2) & 0xfff9) !== 0) {
        this.fragment = true;
        return true;
      }
    }
    return this.#upper(bytes, frame);
  }

  #upper(bytes: Uint8Array, frame: number): boolean {
    const l4 = this.payload;
    const at = frame + l4;
    const room = this.end - l4;
    if (this.protocol === IpProtocol.TCP) {
      if (room < TCP_HEADER_SIZE) return false;
      const size = ((bytes[at + 12] as number) >>> 4) * 4;
      if (size < TCP_HEADER_SIZE || size > room) return false;
      this.l4HeaderLength = size;
      this.tcpFlags = bytes[at + 13] as number;
    } else if (this.protocol === IpProtocol.UDP) {
      if (room < UDP_HEADER_SIZE) return false;
      const size = get16(bytes, at + 4);
      if (size < UDP_HEADER_SIZE || size > room) return false;
      this.l4HeaderLength = UDP_HEADER_SIZE;
      this.end = l4 + size;
    }
    this.l4 = l4;
    this.payload = l4 + this.l4HeaderLength;
    return true;
  }
}

function isExtension(protocol: number): boolean {
  return (
    protocol === Extension.HOP_BY_HOP ||
    protocol === Extension.ROUTING ||
    protocol === Extension.FRAGMENT ||
    protocol === Extension.DESTINATION
  );
}

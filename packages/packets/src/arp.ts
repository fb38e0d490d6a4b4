// The Address Resolution Protocol for IPv4 over Ethernet (RFC 826).
import { formatIpv4, formatMac, parseIpv4, parseMac } from "./addresses.js";
import { EtherType, type Headers } from "./headers.js";
import { get16, put16 } from "./words.js";

/** Operations. Values. */
export enum ArpOperation {
  REQUEST = 1,
  REPLY = 2,
}

/** An ARP packet. Of a request, `targetMac` is `00:00:00:00:00:00`. */
export interface Arp {
  readonly operation: number;
  readonly senderMac: string;
  readonly senderIp: string;
  readonly targetMac: string;
  readonly targetIp: string;
}

const ARP_SIZE = 28;

/**
 * The bytes of an ARP packet, to be the payload of a frame.
 *
 * @throws VirtioFault INVALID: an address
 */
export function arp(packet: Arp): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ARP_SIZE);
  put16(bytes, 0, 1);
  put16(bytes, 2, EtherType.IPV4);
  bytes[4] = 6;
  bytes[5] = 4;
  put16(bytes, 6, packet.operation);
  bytes.set(parseMac(packet.senderMac), 8);
  bytes.set(parseIpv4(packet.senderIp), 14);
  bytes.set(parseMac(packet.targetMac), 18);
  bytes.set(parseIpv4(packet.targetIp), 24);
  return bytes;
}

/**
 * The ARP packet of a frame; null: it holds none, or one that is not of IPv4 over Ethernet.
 *
 * @param headers - `parse` of the frame gave true
 */
export function parseArp(frame: Uint8Array, headers: Headers): Arp | null {
  const at = headers.l3;
  if (headers.etherType !== EtherType.ARP || headers.end - at < ARP_SIZE) return null;
  if (get16(frame, at) !== 1 || get16(frame, at + 2) !== EtherType.IPV4) return null;
  if (frame[at + 4] !== 6 || frame[at + 5] !== 4) return null;
  return {
    operation: get16(frame, at + 6),
    senderMac: formatMac(frame, at + 8),
    senderIp: formatIpv4(frame, at + 14),
    targetMac: formatMac(frame, at + 18),
    targetIp: formatIpv4(frame, at + 24),
  };
}

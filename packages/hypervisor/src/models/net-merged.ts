// A frame made of several that were received, which the driver gets as one (virtio 1.4 §5.1.9.4.1).
import { NetGso } from "@virtio/core/net";
import {
  complete,
  IPV6_HEADER_SIZE,
  IpProtocol,
  pseudoSum4,
  pseudoSum6,
  put16,
  sum,
} from "@virtio/packets";

/** Most bytes of an IP packet. */
export const IP_MAX = 0xffff;
/** An Ethernet header and a VLAN tag before it, and an IPv6 header, which its own length does not count. */
const FRAME_ROOM = IP_MAX + 14 + 4 + IPV6_HEADER_SIZE;

/** One frame made of segments of TCP, of whole datagrams of UDP, or of the fragments of one. */
export interface Merged {
  readonly bytes: Uint8Array;
  length: number;
  /** Frames in it; 0: not in use. */
  segments: number;
  pair: number;
  /** NetGso, ECN or'ed to it. */
  gsoType: number;
  /** Payload bytes of its segments; of its fragments, IP payload. */
  size: number;
  ip: 0 | 4 | 6;
  /** IpProtocol: TCP, or UDP. */
  protocol: number;
  l3: number;
  l4: number;
  payload: number;
  /** Offset of its checksum behind `l4`. */
  csumOffset: number;
  /** Of TCP: sequence number that follows. */
  next: number;
  /** Its last segment is in it. */
  ended: boolean;
  hash: number;
  hashReport: number;
}

/** One that is not in use. */
export const emptyMerged = (): Merged => ({
  bytes: new Uint8Array(FRAME_ROOM),
  length: 0,
  segments: 0,
  pair: 0,
  gsoType: NetGso.NONE,
  size: 0,
  ip: 0,
  protocol: 0,
  l3: 0,
  l4: 0,
  payload: 0,
  csumOffset: 0,
  next: 0,
  ended: false,
  hash: 0,
  hashReport: 0,
});

/** Whether bytes `from` to `to - 1` of a frame at `bytes[offset]` are those of a frame at `own[0]`. */
export function isSame(
  own: Uint8Array,
  bytes: Uint8Array,
  offset: number,
  from: number,
  to: number,
): boolean {
  for (let i = from; i < to; i++) if (own[i] !== bytes[offset + i]) return false;
  return true;
}

/** Makes lengths and checksums those of the whole: the checksum of TCP or UDP partial (NEEDS_CSUM). */
export function finish({ bytes, length, ip, protocol, l3, l4, csumOffset }: Merged): void {
  const upper = length - l4;
  if (ip === 4) {
    put16(bytes, l3 + 2, length - l3);
    put16(bytes, l3 + 10, 0);
    put16(bytes, l3 + 10, complete(sum(bytes, l3, l4)));
  } else put16(bytes, l3 + 4, length - l3 - IPV6_HEADER_SIZE);
  if (protocol === IpProtocol.UDP) put16(bytes, l4 + 4, upper);
  const pseudo = ip === 4 ? pseudoSum4 : pseudoSum6;
  put16(bytes, l4 + csumOffset, pseudo(bytes, l3, protocol, upper));
}

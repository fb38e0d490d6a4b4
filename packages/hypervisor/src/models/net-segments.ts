// Checksums and segments that a driver leaves to its device (virtio 1.4 §5.1.9.2).
import { NetGso } from "@virtio/core/net";
import {
  complete,
  get16,
  get32,
  type Headers,
  IpProtocol,
  pseudoSum4,
  pseudoSum6,
  put16,
  put32,
  sum,
  TcpFlag,
} from "@virtio/packets";

/** Offsets of the checksums of TCP and UDP in their headers. */
export const TCP_CHECKSUM = 16;
export const UDP_CHECKSUM = 6;

/** Longest headers of a frame that is cut: Ethernet, VLAN tag, IP with everything there can be before TCP. */
export const HEADERS_MAX = 512;

/**
 * Completes the partial checksum of a frame at `bytes[0]`: the sum from `start` to its end is stored at `start + offset`, where that
 * of the pseudo header is.
 * @returns false: the checksum is not in the frame
 */
export function completeChecksum(
  bytes: Uint8Array,
  length: number,
  start: number,
  offset: number,
): boolean {
  if (start + offset + 2 > length) return false;
  storeChecksum(bytes, start + offset, complete(sum(bytes, start, length)), offset);
  return true;
}

/** Whether the checksum of TCP or UDP is there and right: of a header at `l4` in the IP packet at `l3`, and of what follows up to `end`. */
export function isChecksumRight(
  bytes: Uint8Array,
  ip: 0 | 4 | 6,
  protocol: number,
  l3: number,
  l4: number,
  end: number,
): boolean {
  if (protocol === IpProtocol.UDP && get16(bytes, l4 + UDP_CHECKSUM) === 0) return false;
  const pseudo = ip === 4 ? pseudoSum4 : pseudoSum6;
  return sum(bytes, l4, end, pseudo(bytes, l3, protocol, end - l4)) === 0xffff;
}

/** UDP says "no checksum" with 0, and 0xffff where it is 0 (RFC 768). */
export function storeChecksum(
  bytes: Uint8Array,
  at: number,
  checksum: number,
  offset: number,
): void {
  put16(bytes, at, checksum === 0 && offset === UDP_CHECKSUM ? 0xffff : checksum);
}

/** Cuts one frame into segments, each made in the place of its payload. */
export class NetSegmenter {
  readonly #headers: Headers;
  /** The headers that each segment begins with. */
  readonly #template = new Uint8Array(HEADERS_MAX);
  #bytes: Uint8Array = new Uint8Array(0);
  #end = 0;
  #payload = 0;
  #size = 0;
  #tcp = false;
  /** Segments of the frame. */
  count = 0;
  /** Of the segment made last: where it begins, and its bytes. */
  offset = 0;
  length = 0;

  /** @param headers - those of the frame, parsed when `begin` is called */
  constructor(headers: Headers) {
    this.#headers = headers;
  }

  /**
   * Takes a frame at `bytes[0]` whose headers were found.
   * @param gsoType - without ECN
   * @param size - payload bytes of a segment
   * @param max - most bytes of a segment
   * @returns false: it is not what `gsoType` says, or segments would be too long
   */
  begin(bytes: Uint8Array, gsoType: number, size: number, max: number): boolean {
    const { ip, protocol, l4, payload, end } = this.#headers;
    const tcp = gsoType === NetGso.TCPV4 || gsoType === NetGso.TCPV6;
    const version = gsoType === NetGso.TCPV4 ? 4 : gsoType === NetGso.TCPV6 ? 6 : ip;
    if (l4 < 0 || ip !== version || protocol !== (tcp ? IpProtocol.TCP : IpProtocol.UDP))
      return false;
    if (size === 0 || payload > HEADERS_MAX || payload + Math.min(size, end - payload) > max)
      return false;
    for (let i = 0; i < payload; i++) this.#template[i] = bytes[i] as number;
    this.#bytes = bytes;
    this.#end = end;
    this.#payload = payload;
    this.#size = size;
    this.#tcp = tcp;
    // A frame without payload is one segment.
    this.count = Math.max(1, Math.ceil((end - payload) / size));
    return true;
  }

  /** Makes segment `index`: its headers over the end of the payload before it, which must have been sent. */
  make(index: number): void {
    const { l3, l4, ip } = this.#headers;
    const bytes = this.#bytes;
    const skipped = index * this.#size;
    const start = this.#payload + skipped;
    const end = Math.min(this.#end, start + this.#size);
    const at = start - this.#payload;
    for (let i = 0; i < this.#payload; i++) bytes[at + i] = this.#template[i] as number;
    this.offset = at;
    this.length = end - at;
    const network = at + l3;
    const transport = at + l4;
    const upper = end - transport;
    if (ip === 4) {
      put16(bytes, network + 2, end - network);
      put16(bytes, network + 4, (get16(this.#template, l3 + 4) + index) & 0xffff);
      put16(bytes, network + 10, 0);
      put16(bytes, network + 10, complete(sum(bytes, network, transport)));
    } else put16(bytes, network + 4, end - network - 40);
    if (this.#tcp) this.#finishTcp(transport, index, skipped);
    else put16(bytes, transport + 4, upper);
    const offset = this.#tcp ? TCP_CHECKSUM : UDP_CHECKSUM;
    const protocol = this.#tcp ? IpProtocol.TCP : IpProtocol.UDP;
    put16(bytes, transport + offset, 0);
    const pseudo = (ip === 4 ? pseudoSum4 : pseudoSum6)(bytes, network, protocol, upper);
    storeChecksum(bytes, transport + offset, complete(sum(bytes, transport, end, pseudo)), offset);
  }

  /** Sequence number; FIN and PSH belong to the last segment, CWR to the first (RFC 3168 §6.1.2). */
  #finishTcp(transport: number, index: number, skipped: number): void {
    const bytes = this.#bytes;
    put32(bytes, transport + 4, get32(bytes, transport + 4) + skipped);
    let flags = bytes[transport + 13] as number;
    if (index < this.count - 1) flags &= ~(TcpFlag.FIN | TcpFlag.PSH);
    if (index > 0) flags &= ~TcpFlag.CWR;
    bytes[transport + 13] = flags;
  }
}

// Fragments of a UDP datagram that a driver leaves to its device (virtio 1.4 §5.1.9.2, RFC 791 §3.2, RFC 8200 §4.5).
import {
  complete,
  type Headers,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  pseudoSum4,
  pseudoSum6,
  put16,
  put32,
  sum,
} from "@virtio/packets";
import { HEADERS_MAX, storeChecksum, UDP_CHECKSUM } from "./net-segments.js";

/** Bytes of an IPv6 fragment header: fragments are made where there is so much room behind the frame. */
export const FRAGMENT_HEADER_SIZE = 8;

/** IPv6 extension headers (RFC 8200 §4). Values. */
export enum Extension {
  FRAGMENT = 44,
  DESTINATION = 60,
}

/** Flag of an IPv4 header: more fragments follow. */
export const MORE_FRAGMENTS = 0x2000;

/** IPv4 options (RFC 791 §3.1): two that are a single byte, and the flag of those that each fragment has. */
const OPTION_END = 0;
const OPTION_NOP = 1;
const OPTION_COPIED = 0x80;

/** Cuts one UDP datagram into fragments, each made in the place of its data. */
export class NetFragmenter {
  readonly #headers: Headers;
  /** The headers that each fragment begins with, and their bytes. */
  readonly #template = new Uint8Array(HEADERS_MAX + FRAGMENT_HEADER_SIZE);
  #room = 0;
  #bytes: Uint8Array = new Uint8Array(0);
  /** Where what is cut begins, and ends. */
  #from = 0;
  #end = 0;
  #size = 0;
  /** Fragments of the datagram; 1: it stays whole. */
  count = 0;
  /** Of the fragment made last: where it begins, and its bytes. */
  offset = 0;
  length = 0;

  /** @param headers - those of the frame, parsed when `begin` is called */
  constructor(headers: Headers) {
    this.#headers = headers;
  }

  /**
   * Takes a frame at `bytes[0]` whose headers were found, and completes its checksum, which is of the whole datagram.
   * @param size - most bytes of IP payload in a fragment; all but the last have a multiple of 8
   * @param max - most bytes of a fragment's frame
   * @param identification - of the fragments, with IPv6; with IPv4 the driver's is in its header
   * @returns false: it is no datagram of UDP, or a fragment already, or fragments would be too long
   */
  begin(bytes: Uint8Array, size: number, max: number, identification: number): boolean {
    const { ip, protocol, l3, l4, end } = this.#headers;
    if (l4 < 0 || protocol !== IpProtocol.UDP || l4 > HEADERS_MAX) return false;
    const naming = ip === 4 ? 0 : this.#naming(bytes);
    if (naming < 0) return false;
    const from = ip === 4 ? l4 : behind(bytes, l3, naming);
    const whole = end - from <= size;
    const piece = whole ? end - from : size & ~7;
    const header = ip === 4 || whole ? 0 : FRAGMENT_HEADER_SIZE;
    if (piece === 0 || from + header + piece > max) return false;
    const pseudo = (ip === 4 ? pseudoSum4 : pseudoSum6)(bytes, l3, IpProtocol.UDP, end - l4);
    put16(bytes, l4 + UDP_CHECKSUM, 0);
    storeChecksum(bytes, l4 + UDP_CHECKSUM, complete(sum(bytes, l4, end, pseudo)), UDP_CHECKSUM);
    const template = this.#template;
    for (let i = 0; i < from; i++) template[i] = bytes[i] as number;
    if (header > 0) {
      // The first fragment is longer than what was there by this header.
      bytes.copyWithin(from + header, from, end);
      put16(template, from, (template[naming] as number) << 8);
      template[naming] = Extension.FRAGMENT;
      put32(template, from + 4, identification);
    }
    this.#room = from + header;
    this.#bytes = bytes;
    this.#from = from + header;
    this.#end = end + header;
    this.#size = piece;
    this.count = Math.ceil((end - from) / piece);
    return true;
  }

  /**
   * Where the IPv6 packet names what follows the headers that every fragment has: those up to the routing header, or the hop-by-hop
   * options. -1: it has a fragment header.
   */
  #naming(bytes: Uint8Array): number {
    const { l3, l4 } = this.#headers;
    let naming = l3 + 6;
    let found = naming;
    for (let at = l3 + IPV6_HEADER_SIZE; at < l4; at = behind(bytes, l3, naming)) {
      const extension = bytes[naming] as number;
      if (extension === Extension.FRAGMENT) return -1;
      naming = at;
      // Options for the destination belong to every fragment only where a routing header follows them.
      if (extension !== Extension.DESTINATION) found = naming;
    }
    return found;
  }

  /** Makes fragment `index`: its headers over the end of the data before it, which must have been sent. */
  make(index: number): void {
    const { ip, l3, l4 } = this.#headers;
    const bytes = this.#bytes;
    const skipped = index * this.#size;
    const start = this.#from + skipped;
    const end = Math.min(this.#end, start + this.#size);
    const at = start - this.#room;
    for (let i = 0; i < this.#room; i++) bytes[at + i] = this.#template[i] as number;
    this.offset = at;
    this.length = end - at;
    const network = at + l3;
    const more = index < this.count - 1;
    if (ip === 6) {
      put16(bytes, network + 4, end - network - IPV6_HEADER_SIZE);
      if (this.count > 1) put16(bytes, start - FRAGMENT_HEADER_SIZE + 2, skipped | Number(more));
      return;
    }
    put16(bytes, network + 2, end - network);
    // "Don't fragment" is not for who is asked to.
    if (this.count > 1) put16(bytes, network + 6, (skipped >>> 3) | (more ? MORE_FRAGMENTS : 0));
    if (index > 0) blankOptions(bytes, network + IPV4_HEADER_SIZE, at + l4);
    put16(bytes, network + 10, 0);
    put16(bytes, network + 10, complete(sum(bytes, network, at + l4)));
  }
}

/** Where the IPv6 header or the extension header ends whose "next header" is at `naming`. */
export function behind(bytes: Uint8Array, l3: number, naming: number): number {
  if (naming === l3 + 6) return l3 + IPV6_HEADER_SIZE;
  return naming + ((bytes[naming + 1] as number) + 1) * 8;
}

/** Options that only the first fragment has become nothing (RFC 791 §3.1). */
function blankOptions(bytes: Uint8Array, from: number, to: number): void {
  for (let at = from; at < to; ) {
    const option = bytes[at] as number;
    if (option === OPTION_END) return;
    // No option of several bytes is shorter than its own header.
    const size = option === OPTION_NOP ? 1 : Math.max(2, bytes[at + 1] as number);
    if ((option & OPTION_COPIED) === 0) bytes.fill(OPTION_NOP, at, Math.min(at + size, to));
    at += size;
  }
}

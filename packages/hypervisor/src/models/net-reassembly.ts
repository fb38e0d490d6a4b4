// Received IP fragments of one UDP datagram, put together for a driver that takes it unfragmented (virtio 1.4 §5.1.9.4.1, RFC 791 §3.2,
// RFC 8200 §4.5). There are no timers: a datagram has come whole and in order by the end of a batch, or the driver gets its fragments.
import { NetFeature, NetGso } from "@virtio/core/net";
import {
  get16,
  get32,
  type Headers,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  put16,
  sum,
  UDP_HEADER_SIZE,
} from "@virtio/packets";
import { hasBit } from "../feature-words.js";
import { FrameRing } from "../net-backends/frame-ring.js";
import { behind, Extension, FRAGMENT_HEADER_SIZE, MORE_FRAGMENTS } from "./net-fragments.js";
import type { ToeplitzHash } from "./net-hash.js";
import { emptyMerged, finish, IP_MAX, isSame, type Merged } from "./net-merged.js";
import { isChecksumRight, UDP_CHECKSUM } from "./net-segments.js";

/** Bytes of fragments that are kept as they came: those of 64 KiB, unless they are shorter than 100 bytes. */
const FRAGMENTS_ROOM = 1 << 17;

/** Flags of an IPv4 header that the datagram has as its fragments have them. */
const FLAGS_KEPT = 0xc000;

/** Takes what the driver is to get. */
export interface ReassemblyTarget {
  /** A whole datagram. False: there is no room for it, or its queue never has as much. */
  whole(datagram: Merged): boolean;
  /** A fragment of `datagram`, as it came. False: there is no room. */
  fragment(datagram: Merged, bytes: Uint8Array, offset: number, length: number): boolean;
}

/** Puts the fragments of one datagram at a time together. */
export class NetReassembler {
  /** Whether there is anything to be done. */
  on = false;
  readonly #target: ReassemblyTarget;
  readonly #datagram: Merged = emptyMerged();
  #datagramId = 0;
  /** What it is made of, as it came: until it is whole, and while there is no room. */
  readonly #fragments = new FrameRing(FRAGMENTS_ROOM);
  // Of the fragment in hand: its datagram, where its data is in that, and whether others follow.
  #id = 0;
  #position = 0;
  #more = false;
  readonly #give = (bytes: Uint8Array, offset: number, length: number): boolean =>
    this.#target.fragment(this.#datagram, bytes, offset, length);

  constructor(target: ReassemblyTarget) {
    this.#target = target;
  }

  /** Words of bits of NetFeature. */
  setOffloads(offloads: readonly number[]): void {
    this.on = hasBit(offloads, NetFeature.GUEST_UFO) && hasBit(offloads, NetFeature.GUEST_CSUM);
  }

  /**
   * Takes a fragment. Any other frame ends what was begun, and comes behind it.
   * @param headers - of the frame; cleared where they make no sense
   * @returns null: what is before the frame finds no room. False: it is not taken, and goes by itself
   */
  offer(
    headers: Headers,
    bytes: Uint8Array,
    offset: number,
    length: number,
    pair: number,
    hash: ToeplitzHash,
  ): boolean | null {
    const fragment = headers.fragment && this.#look(headers, bytes, offset);
    if (this.#fragments.count > 0) {
      if (fragment && this.#add(headers, bytes, offset, length)) return true;
      this.flush();
      // What still waits does so for buffers of its own pair.
      if (this.#fragments.count > 0) return this.#datagram.pair === pair ? null : false;
    }
    if (!fragment || this.#position > 0 || !this.#begin(headers, bytes, offset, length))
      return false;
    this.#datagram.pair = pair;
    this.#datagram.hash = hash.value;
    this.#datagram.hashReport = hash.report;
    return true;
  }

  /** Finds out what a fragment says of itself; false: it is none of UDP, or makes no sense. */
  #look({ ip, protocol, l3, payload, end }: Headers, bytes: Uint8Array, offset: number): boolean {
    if (protocol !== IpProtocol.UDP || end === payload) return false;
    if (ip === 4) {
      const word = get16(bytes, offset + l3 + 6);
      this.#id = get16(bytes, offset + l3 + 4);
      this.#position = (word << 3) & 0xffff;
      this.#more = (word & MORE_FRAGMENTS) !== 0;
      return sum(bytes, offset + l3, offset + payload) === 0xffff;
    }

    const header = offset + payload - FRAGMENT_HEADER_SIZE;
    const word = get16(bytes, header + 2);
    this.#id = get32(bytes, header + 4);
    this.#position = word & 0xfff8;
    this.#more = (word & 1) !== 0;
    return true;
  }

  /** Begins a datagram with its first fragment, whose headers it gets; false: it cannot be one. */
  #begin(headers: Headers, bytes: Uint8Array, offset: number, length: number): boolean {
    const { ip, l3, payload, end } = headers;
    const datagram = this.#datagram;
    const own = datagram.bytes;
    const l4 = ip === 4 ? payload : payload - FRAGMENT_HEADER_SIZE;
    own.set(bytes.subarray(offset, offset + payload));
    if (ip === 4) put16(own, l3 + 6, get16(own, l3 + 6) & ~MORE_FRAGMENTS);
    else if (!removeFragmentHeader(own, l3, l4)) return false;
    if (!this.#fragments.push(bytes, offset, length)) return false;
    own.set(bytes.subarray(offset + payload, offset + end), l4);
    this.#datagramId = this.#id;
    datagram.length = l4 + end - payload;
    datagram.segments = 1;
    datagram.gsoType = NetGso.UDP;
    datagram.size = end - payload;
    datagram.ip = ip;
    datagram.protocol = IpProtocol.UDP;
    datagram.l3 = l3;
    datagram.l4 = l4;
    datagram.payload = l4 + UDP_HEADER_SIZE;
    datagram.csumOffset = UDP_CHECKSUM;
    datagram.ended = false;
    return true;
  }

  /** Adds the fragment that follows; false: it does not. */
  #add(headers: Headers, bytes: Uint8Array, offset: number, length: number): boolean {
    const { payload, end } = headers;
    const datagram = this.#datagram;
    const added = end - payload;
    const follows =
      !datagram.ended &&
      this.#id === this.#datagramId &&
      this.#position === datagram.length - datagram.l4 &&
      datagram.length - datagram.l3 + added <= IP_MAX &&
      isOfDatagram(datagram, bytes, offset);
    if (!follows || !this.#fragments.push(bytes, offset, length)) return false;
    datagram.bytes.set(bytes.subarray(offset + payload, offset + end), datagram.length);
    datagram.length += added;
    datagram.segments += 1;
    datagram.size = Math.max(datagram.size, added);
    if (!this.#more) this.#complete();
    return true;
  }

  /** All of it is there. */
  #complete(): void {
    const datagram = this.#datagram;
    if (isValid(datagram)) {
      finish(datagram);
      if (this.#target.whole(datagram)) {
        this.#fragments.clear();
        return;
      }
    }
    this.flush();
  }

  /** Gives the driver the fragments that there are. What finds no room stays. */
  flush(): void {
    this.#datagram.ended = true;
    let room = true;
    while (room && this.#fragments.count > 0) room = this.#fragments.shift(this.#give);
  }

  /** Forgets all, or what is for one pair of queues. */
  reset(pair?: number): void {
    if (pair === undefined || pair === this.#datagram.pair) this.#fragments.clear();
  }
}

/** Takes the fragment header at `l4` out of the chain of IPv6 headers; false: the chain does not lead to it. */
function removeFragmentHeader(own: Uint8Array, l3: number, l4: number): boolean {
  let naming = l3 + 6;
  let next = behind(own, l3, naming);
  for (; next < l4; next = behind(own, l3, naming)) naming = next;
  if (next !== l4 || own[naming] !== Extension.FRAGMENT) return false;
  own[naming] = own[l4] as number;
  return true;
}

/**
 * Whether a fragment has the Ethernet header, addresses and class of service of the first. Options may differ: those of the first are
 * the datagram's.
 */
function isOfDatagram({ bytes: own, ip, l3 }: Merged, bytes: Uint8Array, offset: number): boolean {
  if (!isSame(own, bytes, offset, 0, l3)) return false;
  if (ip === 6)
    return (
      isSame(own, bytes, offset, l3, l3 + 4) &&
      isSame(own, bytes, offset, l3 + 7, l3 + IPV6_HEADER_SIZE)
    );
  // "Don't fragment" is one of the flags.
  const flags = (get16(own, l3 + 6) ^ get16(bytes, offset + l3 + 6)) & FLAGS_KEPT;
  return (
    flags === 0 &&
    isSame(own, bytes, offset, l3 + 1, l3 + 2) &&
    isSame(own, bytes, offset, l3 + 8, l3 + 10) &&
    isSame(own, bytes, offset, l3 + 12, l3 + IPV4_HEADER_SIZE)
  );
}

/** Whether the datagram fills its packet, and its checksum is there and right. */
function isValid({ bytes, length, ip, protocol, l3, l4 }: Merged): boolean {
  const fills = get16(bytes, l4 + 4) === length - l4;
  return fills && isChecksumRight(bytes, ip, protocol, l3, l4, length);
}

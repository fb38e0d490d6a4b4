// Received TCP segments, or UDP datagrams, that follow each other, put together into one frame that the driver gets unsegmented
// (virtio 1.4 §5.1.9.4.1).
import { NetFeature, NetGso } from "@virtio/core/net";
import {
  get16,
  get32,
  type Headers,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  put16,
  TCP_HEADER_SIZE,
  TcpFlag,
} from "@virtio/packets";
import { hasBit } from "../feature-words.js";
import type { ToeplitzHash } from "./net-hash.js";
import { emptyMerged, finish, IP_MAX, isSame, type Merged } from "./net-merged.js";
import { TCP_CHECKSUM, UDP_CHECKSUM } from "./net-segments.js";

/** Flows whose segments are put together at a time. */
const FLOWS = 8;

/** Puts segments together. */
export class NetLro {
  /** Whether there is anything to be done. */
  on = false;
  /** Guest offloads that are on: words of bits of NetFeature. */
  #offloads: readonly number[] = [];
  #tcp = false;
  #udp = false;
  readonly #push: (merged: Merged) => boolean;
  /** Made when there is something to put together. */
  #flows: Merged[] = [];
  /** The one to be emptied next when all are in use. */
  #oldest = 0;

  /** @param push - gives a frame to the driver; false: there is no room */
  constructor(push: (merged: Merged) => boolean) {
    this.#push = push;
  }

  /** Words of bits of NetFeature. */
  setOffloads(offloads: readonly number[]): void {
    this.#offloads = offloads;
    this.#tcp = this.#has(NetFeature.GUEST_TSO4) || this.#has(NetFeature.GUEST_TSO6);
    this.#udp = this.#has(NetFeature.GUEST_USO4) || this.#has(NetFeature.GUEST_USO6);
    this.on = this.#tcp || this.#udp;
    if (this.on && this.#flows.length === 0)
      this.#flows = Array.from({ length: FLOWS }, emptyMerged);
  }

  /**
   * Takes a segment. One that does not fit sends out what there is of its flow, so that the order stays.
   * @param valid - its checksum was found right
   * @returns null: what is before it in its flow finds no room. False: it is not taken, and goes by itself
   */
  offer(
    headers: Headers,
    bytes: Uint8Array,
    offset: number,
    pair: number,
    valid: boolean,
    hash: ToeplitzHash,
  ): boolean | null {
    const { protocol, l4 } = headers;
    const tcp = protocol === IpProtocol.TCP;
    if (l4 < 0 || !(tcp ? this.#tcp : this.#udp && protocol === IpProtocol.UDP)) return false;
    const good = valid && (tcp || fillsPacket(headers, bytes, offset));
    for (const merged of this.#flows) {
      if (merged.segments === 0 || !isSameFlow(merged, headers, bytes, offset)) continue;
      if (good && merged.pair === pair && fits(merged, headers, bytes, offset)) {
        append(merged, headers, bytes, offset);
        if (merged.ended) this.#sendOut(merged);
        return true;
      }
      if (!this.#sendOut(merged)) return null;
      break;
    }
    const gsoType = good ? this.#typeOf(headers) : NetGso.NONE;
    if (gsoType === NetGso.NONE) return false;
    const merged = this.#free();
    if (merged === null) return null;
    begin(merged, headers, bytes, offset);
    merged.gsoType = gsoType;
    merged.pair = pair;
    merged.hash = hash.value;
    merged.hashReport = hash.report;
    return true;
  }

  /** What a segment could become the first part of. */
  #typeOf(headers: Headers): number {
    const { ip, l3, l4, protocol, payload, end } = headers;
    const plain = l4 === l3 + (ip === 4 ? IPV4_HEADER_SIZE : IPV6_HEADER_SIZE);
    if (!plain || end === payload) return NetGso.NONE;
    if (protocol === IpProtocol.TCP) return this.#tcpTypeOf(headers);
    const feature = ip === 4 ? NetFeature.GUEST_USO4 : NetFeature.GUEST_USO6;
    return this.#has(feature) ? NetGso.UDP_L4 : NetGso.NONE;
  }

  #tcpTypeOf({ ip, tcpFlags }: Headers): number {
    const feature = ip === 4 ? NetFeature.GUEST_TSO4 : NetFeature.GUEST_TSO6;
    const others = tcpFlags & ~(TcpFlag.ACK | TcpFlag.ECE | TcpFlag.CWR);
    if (!this.#has(feature) || others !== 0) return NetGso.NONE;
    const type = ip === 4 ? NetGso.TCPV4 : NetGso.TCPV6;
    if ((tcpFlags & TcpFlag.CWR) === 0) return type;
    return this.#has(NetFeature.GUEST_ECN) ? type | NetGso.ECN : NetGso.NONE;
  }

  #has(bit: NetFeature): boolean {
    return hasBit(this.#offloads, bit);
  }

  #free(): Merged | null {
    for (const merged of this.#flows) if (merged.segments === 0) return merged;
    const merged = this.#flows[this.#oldest] as Merged;
    if (!this.#sendOut(merged)) return null;
    this.#oldest = (this.#oldest + 1) % FLOWS;
    return merged;
  }

  /** Gives it to the driver, and empties it; false: there is no room, and it takes nothing more. */
  #sendOut(merged: Merged): boolean {
    if (merged.segments > 1) finish(merged);
    merged.ended = true;
    if (!this.#push(merged)) return false;
    merged.segments = 0;
    return true;
  }

  /** Gives all that there is to the driver. What finds no room stays. */
  flush(): void {
    for (const merged of this.#flows) if (merged.segments > 0) this.#sendOut(merged);
  }

  /** Forgets all, or what is for one pair of queues. */
  reset(pair?: number): void {
    for (const merged of this.#flows)
      if (pair === undefined || merged.pair === pair) merged.segments = 0;
  }
}

/** Whether a datagram is all that its IP packet has; what would be behind it could not be kept. */
function fillsPacket({ ip, l3, end }: Headers, bytes: Uint8Array, offset: number): boolean {
  return ip === 4
    ? l3 + get16(bytes, offset + l3 + 2) === end
    : l3 + IPV6_HEADER_SIZE + get16(bytes, offset + l3 + 4) === end;
}

/** Protocol, addresses and ports. */
function isSameFlow(
  { bytes: own, protocol, l3, l4 }: Merged,
  headers: Headers,
  bytes: Uint8Array,
  offset: number,
): boolean {
  if (headers.l3 !== l3 || headers.l4 !== l4 || headers.protocol !== protocol) return false;
  if (get32(own, l4) !== get32(bytes, offset + l4)) return false;
  const first = l3 + (headers.ip === 4 ? 12 : 8);
  return isSame(own, bytes, offset, first, first + (headers.ip === 4 ? 8 : 32));
}

/** Whether a segment of the same flow goes on where these end. */
function fits(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): boolean {
  const { bytes: own, l3, payload } = merged;
  const added = headers.end - headers.payload;
  return (
    !merged.ended &&
    headers.payload === payload &&
    (merged.protocol === IpProtocol.UDP || isNext(merged, headers, bytes, offset)) &&
    added > 0 &&
    added <= merged.size &&
    merged.length - l3 + added <= IP_MAX &&
    isSame(own, bytes, offset, 0, l3) &&
    isSameNetwork(own, bytes, offset, l3, headers.ip)
  );
}

/** Whether a TCP segment has the sequence number that follows, and flags and options of the others. */
function isNext(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): boolean {
  const { bytes: own, l4, payload } = merged;
  const flags = headers.tcpFlags & ~TcpFlag.PSH;
  // CWR belongs to the first segment alone (RFC 3168 §6.1.2).
  const first = (own[l4 + 13] as number) & ~(TcpFlag.CWR | TcpFlag.PSH);
  return (
    get32(bytes, offset + l4 + 4) === merged.next &&
    flags === first &&
    isSame(own, bytes, offset, l4 + TCP_HEADER_SIZE, payload)
  );
}

/** What an IP header says besides length, id, checksum and addresses. */
function isSameNetwork(
  own: Uint8Array,
  bytes: Uint8Array,
  offset: number,
  l3: number,
  ip: 0 | 4 | 6,
): boolean {
  return ip === 4
    ? isSame(own, bytes, offset, l3, l3 + 2) && isSame(own, bytes, offset, l3 + 6, l3 + 10)
    : isSame(own, bytes, offset, l3, l3 + 4) && isSame(own, bytes, offset, l3 + 6, l3 + 8);
}

function begin(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): void {
  const { ip, protocol, l3, l4, payload, end } = headers;
  // Without the padding of Ethernet.
  merged.bytes.set(bytes.subarray(offset, offset + end));
  merged.length = end;
  merged.segments = 1;
  merged.size = end - payload;
  merged.ip = ip;
  merged.protocol = protocol;
  merged.l3 = l3;
  merged.l4 = l4;
  merged.payload = payload;
  merged.csumOffset = protocol === IpProtocol.TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
  merged.next = (get32(bytes, offset + l4 + 4) + merged.size) >>> 0;
  merged.ended = false;
}

function append(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): void {
  const { payload, end } = headers;
  const added = end - payload;
  merged.bytes.set(bytes.subarray(offset + payload, offset + end), merged.length);
  merged.length += added;
  merged.segments += 1;
  merged.ended = added < merged.size;
  if (merged.protocol === IpProtocol.TCP) appendTcp(merged, headers, bytes, offset);
}

/** What the header of a TCP segment adds. */
function appendTcp(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): void {
  const { bytes: own, l4 } = merged;
  const { payload, end, tcpFlags } = headers;
  const push = tcpFlags & TcpFlag.PSH;
  merged.next = (merged.next + end - payload) >>> 0;
  own[l4 + 13] = (own[l4 + 13] as number) | push;
  // The newest acknowledgement and window.
  for (const at of [8, 10, 14]) put16(own, l4 + at, get16(bytes, offset + l4 + at));
  if (push !== 0) merged.ended = true;
}

// Received TCP segments that follow each other, put together into one frame that the driver gets unsegmented (virtio 1.4 §5.1.9.4.1).
import { NetFeature, NetGso } from "@virtio/core/net";
import {
  complete,
  get16,
  get32,
  type Headers,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  pseudoSum4,
  pseudoSum6,
  put16,
  sum,
  TCP_HEADER_SIZE,
  TcpFlag,
} from "@virtio/packets";
import type { ToeplitzHash } from "./net-hash.js";

/** Flows whose segments are put together at a time. */
const FLOWS = 8;
/** Most bytes of an IP packet. */
const IP_MAX = 0xffff;
/** An Ethernet header and a VLAN tag before it. */
const FRAME_ROOM = IP_MAX + 32;

/** One frame made of segments. */
export interface Merged {
  readonly bytes: Uint8Array;
  length: number;
  /** Segments in it; 0: not in use. */
  segments: number;
  pair: number;
  /** NetGso, ECN or'ed to it. */
  gsoType: number;
  /** Payload bytes of its segments. */
  size: number;
  l3: number;
  l4: number;
  payload: number;
  /** Sequence number that follows. */
  next: number;
  /** Its last segment is in it. */
  ended: boolean;
  hash: number;
  hashReport: number;
}

const empty = (): Merged => ({
  bytes: new Uint8Array(FRAME_ROOM),
  length: 0,
  segments: 0,
  pair: 0,
  gsoType: NetGso.NONE,
  size: 0,
  l3: 0,
  l4: 0,
  payload: 0,
  next: 0,
  ended: false,
  hash: 0,
  hashReport: 0,
});

/** Puts segments together. */
export class NetLro {
  /** Bits of the guest offloads that are on. */
  #offloads = 0;
  readonly #push: (merged: Merged) => boolean;
  /** Made when there is something to put together. */
  #flows: Merged[] = [];
  /** The one to be emptied next when all are in use. */
  #oldest = 0;

  /** @param push - gives a frame to the driver; false: there is no room */
  constructor(push: (merged: Merged) => boolean) {
    this.#push = push;
  }

  /** Whether there is anything to be done. */
  get on(): boolean {
    return (this.#offloads & ((1 << NetFeature.GUEST_TSO4) | (1 << NetFeature.GUEST_TSO6))) !== 0;
  }

  /** Bits of NetFeature. */
  setOffloads(offloads: number): void {
    this.#offloads = offloads;
    if (this.on && this.#flows.length === 0) this.#flows = Array.from({ length: FLOWS }, empty);
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
    if (headers.protocol !== IpProtocol.TCP || headers.l4 < 0) return false;
    for (const merged of this.#flows) {
      if (merged.segments === 0 || !isSameFlow(merged, headers, bytes, offset)) continue;
      if (valid && merged.pair === pair && fits(merged, headers, bytes, offset)) {
        append(merged, headers, bytes, offset);
        if (merged.ended) this.#sendOut(merged);
        return true;
      }
      if (!this.#sendOut(merged)) return null;
      break;
    }
    const gsoType = valid ? this.#typeOf(headers) : NetGso.NONE;
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
    const { ip, l3, l4, tcpFlags, payload, end } = headers;
    const four = ip === 4;
    const feature = four ? NetFeature.GUEST_TSO4 : NetFeature.GUEST_TSO6;
    const plain = l4 === l3 + (four ? IPV4_HEADER_SIZE : IPV6_HEADER_SIZE);
    const others = tcpFlags & ~(TcpFlag.ACK | TcpFlag.ECE | TcpFlag.CWR);
    if (!this.#has(feature) || !plain || others !== 0 || end === payload) return NetGso.NONE;
    const type = four ? NetGso.TCPV4 : NetGso.TCPV6;
    if ((tcpFlags & TcpFlag.CWR) === 0) return type;
    return this.#has(NetFeature.GUEST_ECN) ? type | NetGso.ECN : NetGso.NONE;
  }

  #has(bit: NetFeature): boolean {
    return (this.#offloads & (1 << bit)) !== 0;
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

/** Addresses and ports. */
function isSameFlow(
  { bytes: own, l3, l4 }: Merged,
  headers: Headers,
  bytes: Uint8Array,
  offset: number,
): boolean {
  if (headers.l3 !== l3 || headers.l4 !== l4) return false;
  if (get32(own, l4) !== get32(bytes, offset + l4)) return false;
  const first = l3 + (headers.ip === 4 ? 12 : 8);
  return isSame(own, bytes, offset, first, first + (headers.ip === 4 ? 8 : 32));
}

/** Whether a segment of the same flow goes on where these end. */
function fits(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): boolean {
  const { bytes: own, l3, l4, payload } = merged;
  const added = headers.end - headers.payload;
  const flags = headers.tcpFlags & ~TcpFlag.PSH;
  // CWR belongs to the first segment alone (RFC 3168 §6.1.2).
  const first = (own[l4 + 13] as number) & ~(TcpFlag.CWR | TcpFlag.PSH);
  return (
    !merged.ended &&
    headers.payload === payload &&
    get32(bytes, offset + l4 + 4) === merged.next &&
    flags === first &&
    added > 0 &&
    added <= merged.size &&
    merged.length - l3 + added <= IP_MAX &&
    isSame(own, bytes, offset, 0, l3) &&
    isSameNetwork(own, bytes, offset, l3, headers.ip) &&
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

function isSame(
  own: Uint8Array,
  bytes: Uint8Array,
  offset: number,
  from: number,
  to: number,
): boolean {
  for (let i = from; i < to; i++) if (own[i] !== bytes[offset + i]) return false;
  return true;
}

function begin(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): void {
  const { l3, l4, payload, end } = headers;
  // Without the padding of Ethernet.
  merged.bytes.set(bytes.subarray(offset, offset + end));
  merged.length = end;
  merged.segments = 1;
  merged.size = end - payload;
  merged.l3 = l3;
  merged.l4 = l4;
  merged.payload = payload;
  merged.next = (get32(bytes, offset + l4 + 4) + merged.size) >>> 0;
  merged.ended = false;
}

function append(merged: Merged, headers: Headers, bytes: Uint8Array, offset: number): void {
  const { bytes: own, l4 } = merged;
  const { payload, end, tcpFlags } = headers;
  const added = end - payload;
  own.set(bytes.subarray(offset + payload, offset + end), merged.length);
  merged.length += added;
  merged.segments += 1;
  merged.next = (merged.next + added) >>> 0;
  own[l4 + 13] = (own[l4 + 13] as number) | (tcpFlags & TcpFlag.PSH);
  // The newest acknowledgement and window.
  for (const at of [8, 10, 14]) put16(own, l4 + at, get16(bytes, offset + l4 + at));
  merged.ended = added < merged.size || (tcpFlags & TcpFlag.PSH) !== 0;
}

/** Makes lengths and checksums those of the whole: the TCP checksum partial (NEEDS_CSUM). */
function finish({ bytes, length, gsoType, l3, l4 }: Merged): void {
  const upper = length - l4;
  if ((gsoType & ~NetGso.ECN) === NetGso.TCPV4) {
    put16(bytes, l3 + 2, length - l3);
    put16(bytes, l3 + 10, 0);
    put16(bytes, l3 + 10, complete(sum(bytes, l3, l4)));
    put16(bytes, l4 + 16, pseudoSum4(bytes, l3, IpProtocol.TCP, upper));
  } else {
    put16(bytes, l3 + 4, upper);
    put16(bytes, l4 + 16, pseudoSum6(bytes, l3, IpProtocol.TCP, upper));
  }
}

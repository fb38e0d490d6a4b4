// A transmit queue (virtio 1.4 §5.1.9.2; FreeBSD's vtnet_txq).
//
// What the device is done with is taken back at the start of each burst; it is asked to interrupt only when there is no room.
import { type DmaMemory, Errno, type Frame, type Virtqueue } from "@virtio/core";
import { NET_GSO_FRAME_MAX, NET_HEADER_SIZE, NetGso, NetHeaderFlag } from "@virtio/core/net";
import {
  ETHERNET_HEADER_SIZE,
  EtherType,
  IpProtocol,
  TCP_HEADER_SIZE,
  UDP_HEADER_SIZE,
  VLAN_TAG_SIZE,
} from "@virtio/packets";
import { type Cluster, type FramePool, HEADROOM, Owner } from "./buffers.js";
import {
  completeChecksum,
  copyFrame,
  etherTypeOf,
  frameLength,
  hasChecksumPlace,
  insertTag,
  parseTransport,
  TCP_CHECKSUM,
  type Transport,
} from "./offload.js";
import { Count, type Counters, TxCount } from "./statistics.js";

/** Ticks of a second after which a queue that did not become empty is hung. */
const WATCHDOG_TICKS = 5;
/** Most rounds of taking back within one burst. */
const TRIES = 4;

/** What a queue does with frames until the next init. */
export interface TransmitMode {
  readonly pool: FramePool;
  readonly headerSize: number;
  /** The header may share a descriptor with the frame (VERSION_1 or ANY_LAYOUT). */
  readonly inline: boolean;
  /** A chain takes one descriptor. */
  readonly indirect: boolean;
  /** `hdr_len` is looked at: some segmentation was negotiated (§5.1.9.2.1). */
  readonly lengths: boolean;
  /** ECN goes with TSO. */
  readonly ecn: boolean;
}

/** What is switched while a queue runs. */
export interface TransmitFlags {
  /** By IP version. */
  csum4: boolean;
  csum6: boolean;
  /** Bit `1 << NetGso` of each type that may be asked for (below ECN). */
  gsoTypes: number;
  /** Bytes of payload. */
  mtu: number;
}

/** What became of a frame. */
enum Sent {
  /** it is in the ring */
  YES,
  /** it cannot be sent at all, and was given back */
  NEVER,
  /** there is no room */
  NOT_NOW,
}

/** What a queue needs of its interface. */
export interface TransmitQueueOptions {
  readonly queue: Virtqueue;
  readonly memory: DmaMemory;
  readonly flags: TransmitFlags;
  readonly count: Counters<TxCount>;
  readonly device: Counters<Count>;
  /** Longest chain. */
  readonly maxSegments: number;
  /** A frame was dropped because its ECN marks cannot go with TSO. */
  readonly onEcn: () => void;
}

/** See the head of this file. */
export class TransmitQueue {
  /** Somebody waits for room. */
  starved = false;
  /** Sees each frame that is sent; null: nobody looks. */
  tap: ((frame: Frame, length: number) => void) | null = null;
  readonly #queue: Virtqueue;
  readonly #flags: TransmitFlags;
  readonly #count: Counters<TxCount>;
  readonly #device: Counters<Count>;
  readonly #onEcn: () => void;
  /** All of guest memory, as words of three sizes: headers. */
  readonly #words: Int32Array;
  readonly #halves: Uint16Array;
  readonly #bytes: Uint8Array;
  readonly #base: number;
  readonly #segments: Uint32Array;
  readonly #maxSegments: number;
  readonly #transport: Transport = { ip: 0, protocol: 0, start: 0, payload: 0, cwr: false };
  #mode: TransmitMode | null = null;
  #inFlight = 0;
  #unsent = 0;
  /** Ticks until the queue counts as hung; 0: nothing is in flight. */
  #watchdog = 0;

  constructor(options: TransmitQueueOptions) {
    const { queue, memory, flags, count, device, maxSegments, onEcn } = options;
    this.#queue = queue;
    this.#flags = flags;
    this.#count = count;
    this.#device = device;
    this.#onEcn = onEcn;
    this.#bytes = new Uint8Array(memory.buffer);
    this.#words = new Int32Array(memory.buffer, 0, memory.buffer.byteLength >>> 2);
    this.#halves = new Uint16Array(memory.buffer, 0, memory.buffer.byteLength >>> 1);
    this.#base = memory.base;
    this.#maxSegments = Math.min(maxSegments, queue.size);
    this.#segments = new Uint32Array(2 * maxSegments);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** The device has no frames of this queue: after a reset. */
  begin(mode: TransmitMode): void {
    this.#mode = mode;
  }

  /** No more: the device was reset, and what it had was not sent, or nobody knows. */
  end(): void {
    this.#mode = null;
    this.#add(TxCount.OQDROPS, this.#inFlight);
    this.#inFlight = 0;
    this.#unsent = 0;
    this.#watchdog = 0;
  }

  /** Transmits frames from `at` to `count`; returns the first that was not taken. */
  burst(frames: readonly (Frame | null)[], at: number, count: number): number {
    const mode = this.#mode;
    if (mode === null) return at;
    this.reap();
    let n = at;
    for (let tries = 0; n < count; ) {
      const frame = frames[n] as Cluster | null;
      if (frame === null || this.#send(mode, frame) !== Sent.NOT_NOW) n += 1;
      else if (tries++ === TRIES || !this.wait()) break;
    }
    this.flush();
    return n;
  }

  /** Transmits one frame, without flush(); false: there is no room. */
  send(frame: Frame): boolean {
    const mode = this.#mode;
    if (mode === null) return false;
    if (this.#send(mode, frame as Cluster) !== Sent.NOT_NOW) return true;
    return this.wait() && this.#send(mode, frame as Cluster) !== Sent.NOT_NOW;
  }

  /** Tells the device. */
  flush(): void {
    if (this.#unsent === 0) return;
    this.#unsent = 0;
    this.#watchdog = WATCHDOG_TICKS;
    this.#queue.notify();
  }

  /** There is no room: true when there is after all, else the device will interrupt when three quarters are done. */
  wait(): boolean {
    if (this.reap() > 0) return true;
    // What is postponed counts from what the device was told of.
    this.flush();
    if (this.#queue.postponeInterrupt("long") && this.reap() > 0) {
      this.#queue.disableInterrupt();
      return true;
    }
    this.starved = true;
    this.#add(TxCount.RESCHEDULED, 1);
    return false;
  }

  /** Takes back what the device is done with (vtnet_txq_eof); returns how many frames. */
  reap(): number {
    if (this.#inFlight === 0) return 0;
    const mode = this.#mode;
    if (mode === null) return 0;
    const queue = this.#queue;
    const { pool } = mode;
    const { clusters } = pool;
    const bytes = this.#bytes;
    let packets = 0;
    let total = 0;
    let multicasts = 0;
    for (let id = queue.dequeue(); id >= 0; id = queue.dequeue()) {
      const cluster = clusters[id] as Cluster;
      packets += 1;
      total += cluster.next === null ? cluster.length : frameLength(cluster);
      multicasts += (bytes[cluster.offset] as number) & 1;
      pool.give(cluster, Owner.DEVICE);
    }
    if (packets === 0) return 0;
    this.#inFlight -= packets;
    if (this.#inFlight === 0) this.#watchdog = 0;
    this.#add(TxCount.OPACKETS, packets);
    this.#add(TxCount.OBYTES, total);
    this.#add(TxCount.OMCASTS, multicasts);
    return packets;
  }

  disarm(): void {
    this.#queue.disableInterrupt();
  }

  /** A second passed; true: the queue is hung (vtnet_watchdog). */
  tick(): boolean {
    this.reap();
    if (this.#watchdog === 0) return false;
    this.#watchdog -= 1;
    return this.#watchdog === 0;
  }

  #add(count: TxCount, more: number): void {
    this.#count[count] = (this.#count[count] as number) + more;
  }

  #send(mode: TransmitMode, frame: Cluster): Sent {
    const { pool, headerSize } = mode;
    const { offset, length } = frame;
    const from = offset - headerSize;
    // A whole frame in one cluster that asks for nothing.
    if (
      frame.next !== null ||
      (frame.flags & NetHeaderFlag.NEEDS_CSUM) !== 0 ||
      frame.gsoType !== NetGso.NONE ||
      frame.vlanTag >= 0 ||
      !mode.inline ||
      frame.pool !== pool ||
      frame.owner !== Owner.USER ||
      from < frame.start ||
      offset + length > frame.end ||
      length < ETHERNET_HEADER_SIZE ||
      length > this.#flags.mtu + ETHERNET_HEADER_SIZE
    )
      return this.#sendOther(mode, frame);
    if (this.#queue.free === 0) return Sent.NOT_NOW;
    const hdrLen = mode.lengths ? length : 0;
    if (headerSize === NET_HEADER_SIZE && (from & 3) === 0) {
      // Three stores for six: 3 ns.
      const words = this.#words;
      const w = from >>> 2;
      words[w] = hdrLen << 16;
      words[w + 1] = 0;
      words[w + 2] = 0;
    } else this.#header(from, headerSize, 0, hdrLen, 0, 0, 0);
    if (this.#queue.enqueueReadable(frame.index, this.#base + from, length + headerSize) !== 0)
      return Sent.NOT_NOW;
    frame.owner = Owner.DEVICE;
    this.#inFlight += 1;
    this.#unsent += 1;
    if (this.tap !== null) this.tap(frame, length);
    return Sent.YES;
  }

  /** Writes a header: `word` is flags and, above them, gso_type; num_buffers and a hash are 0 (§5.1.9.2.1). */
  #header(
    at: number,
    size: number,
    word: number,
    hdrLen: number,
    gsoSize: number,
    csumStart: number,
    csumOffset: number,
  ): void {
    if ((at & 1) === 0) {
      const halves = this.#halves;
      const h = at >>> 1;
      halves[h] = word;
      halves[h + 1] = hdrLen;
      halves[h + 2] = gsoSize;
      halves[h + 3] = csumStart;
      halves[h + 4] = csumOffset;
      for (let i = 5; i < size >>> 1; i++) halves[h + i] = 0;
      return;
    }
    this.#put(at, word);
    this.#put(at + 2, hdrLen);
    this.#put(at + 4, gsoSize);
    this.#put(at + 6, csumStart);
    this.#put(at + 8, csumOffset);
    for (let i = 10; i < size; i += 2) this.#put(at + i, 0);
  }

  #put(at: number, value: number): void {
    this.#bytes[at] = value & 0xff;
    this.#bytes[at + 1] = value >>> 8;
  }

  /** A frame that cannot be sent at all. */
  #never(frame: Cluster): Sent {
    this.#add(TxCount.OERRORS, 1);
    frame.pool.give(frame, Owner.USER);
    return Sent.NEVER;
  }

  #refuse(frame: Cluster, why: Count): Sent {
    this.#device[why] = (this.#device[why] as number) + 1;
    return this.#never(frame);
  }

  #sendOther(mode: TransmitMode, given: Cluster): Sent {
    let frame = given;
    const tagLength = frame.vlanTag >= 0 ? VLAN_TAG_SIZE : 0;
    // One that was sent or released before, or lies in clusters of another size, is no frame of this interface.
    if (!this.#isWhole(mode, frame)) return this.#never(frame);
    const length = frameLength(frame) + tagLength;
    const gso = frame.gsoType !== NetGso.NONE;
    const tagged = tagLength !== 0 || etherTypeOf(frame) === EtherType.VLAN ? VLAN_TAG_SIZE : 0;
    const most = gso ? NET_GSO_FRAME_MAX : this.#flags.mtu + ETHERNET_HEADER_SIZE + tagged;
    if (length < ETHERNET_HEADER_SIZE + tagLength || length > most) return this.#never(frame);

    // Room is looked for first: one that has to wait is left as it is.
    const overhead = mode.inline ? 0 : 1;
    let parts = 0;
    for (let part: Frame | null = frame; part !== null; part = part.next)
      if (part.length > 0) parts += 1;
    // Headers that are looked at are in the first buffer.
    const headers = (frame.flags & NetHeaderFlag.NEEDS_CSUM) === 0 ? 0 : frame.csumStart;
    const transport = frame.csumOffset === TCP_CHECKSUM ? TCP_HEADER_SIZE : UDP_HEADER_SIZE;
    const fits =
      parts + overhead <= this.#maxSegments &&
      frame.length >=
        Math.min(length - tagLength, Math.max(headers + transport, ETHERNET_HEADER_SIZE)) &&
      frame.offset - tagLength - mode.headerSize >= frame.start;
    const descriptors = fits
      ? parts + overhead
      : Math.ceil(length / (mode.pool.size - HEADROOM)) + overhead;
    if (descriptors > this.#maxSegments) return this.#refuse(frame, Count.TX_DEFRAG_FAILED);
    if (this.#queue.free < (mode.indirect ? 1 : descriptors)) return Sent.NOT_NOW;
    if (!fits) {
      const copy = this.#defragment(mode.pool, frame, length - tagLength);
      if (copy === null) return this.#refuse(frame, Count.TX_DEFRAG_FAILED);
      frame = copy;
    }
    if (tagLength !== 0) insertTag(frame);
    return this.#sendOffloads(mode, frame, length);
  }

  /** Every part is the user's, of this pool, and lies within its cluster. */
  #isWhole({ pool }: TransmitMode, frame: Cluster): boolean {
    let parts = 0;
    for (let part: Cluster | null = frame; part !== null; part = part.next as Cluster | null) {
      if (part.pool !== pool || part.owner !== Owner.USER || parts === pool.clusters.length)
        return false;
      if (part.length < 0 || part.offset < part.start || part.offset + part.length > part.end)
        return false;
      parts += 1;
    }
    return frameLength(frame) >= 0;
  }

  /** What the frame asks for, then into the ring (vtnet_txq_offload). */
  #sendOffloads(mode: TransmitMode, frame: Cluster, length: number): Sent {
    let word = 0;
    let hdrLen = mode.lengths ? Math.min(length, 0xffff) : 0;
    let csumStart = 0;
    let csumOffset = 0;
    const gso = frame.gsoType;
    if ((frame.flags & NetHeaderFlag.NEEDS_CSUM) !== 0) {
      const transport = this.#transport;
      if (!parseTransport(frame, transport))
        return this.#refuse(frame, Count.TX_CSUM_UNKNOWN_ETHTYPE);
      if (!hasChecksumPlace(frame, length) || frame.csumStart < transport.start)
        return this.#refuse(frame, Count.TX_CSUM_PROTO_MISMATCH);
      if (gso !== NetGso.NONE) {
        const error = this.#segmentation(mode, frame, transport);
        if (error !== null) return this.#refuse(frame, error);
        hdrLen = transport.payload;
        word = ((transport.cwr ? gso | NetGso.ECN : gso & ~NetGso.ECN) << 8) | 1;
      } else if (transport.ip === 4 ? this.#flags.csum4 : this.#flags.csum6)
        word = NetHeaderFlag.NEEDS_CSUM;
      else completeChecksum(frame);
      if (word !== 0) ({ csumStart, csumOffset } = frame);
    } else if (gso !== NetGso.NONE) return this.#refuse(frame, Count.TX_TSO_WITHOUT_CSUM);

    const from = frame.offset - mode.headerSize;
    const gsoSize = gso === NetGso.NONE ? 0 : frame.gsoSize;
    this.#header(from, mode.headerSize, word, hdrLen, gsoSize, csumStart, csumOffset);
    if (this.#enqueue(mode, frame) !== 0) return this.#never(frame);
    for (let part: Frame | null = frame; part !== null; part = part.next)
      (part as Cluster).owner = Owner.DEVICE;
    this.#inFlight += 1;
    this.#unsent += 1;
    if (word !== 0) this.#add(TxCount.CSUM, 1);
    if (gso !== NetGso.NONE) this.#add(TxCount.TSO, 1);
    if (this.tap !== null) this.tap(frame, length);
    return Sent.YES;
  }

  /** Whether the device is to cut this frame, as it asks (vtnet_txq_offload_tso). Null: yes. */
  #segmentation(mode: TransmitMode, frame: Cluster, transport: Transport): Count | null {
    const type = frame.gsoType & ~NetGso.ECN;
    const tcp = type === NetGso.TCPV4 || type === NetGso.TCPV6;
    if ((transport.protocol === IpProtocol.TCP) !== tcp) return Count.TX_TSO_NOT_TCP;
    if (!tcp && transport.protocol !== IpProtocol.UDP) return Count.TX_TSO_NOT_TCP;
    if (
      (type === NetGso.TCPV4 && transport.ip !== 4) ||
      (type === NetGso.TCPV6 && transport.ip !== 6) ||
      frame.csumStart !== transport.start ||
      (this.#flags.gsoTypes & (1 << type)) === 0 ||
      frame.gsoSize < 1 ||
      frame.gsoSize > 0xffff
    )
      return Count.TX_CSUM_PROTO_MISMATCH;
    if (transport.cwr && !mode.ecn) {
      this.#onEcn();
      return Count.TX_CSUM_PROTO_MISMATCH;
    }
    return null;
  }

  #enqueue(mode: TransmitMode, frame: Cluster): number {
    const segments = this.#segments;
    const { headerSize } = mode;
    let n = 0;
    for (let part: Frame | null = frame; part !== null; part = part.next) {
      let { offset, length } = part;
      if (part === frame) {
        offset -= headerSize;
        if (mode.inline) length += headerSize;
        else {
          // On old devices the header has a descriptor of its own (§5.1.9.8).
          segments[0] = this.#base + offset;
          segments[1] = headerSize;
          n = 2;
          offset += headerSize;
        }
      }
      if (length === 0) continue;
      segments[n] = this.#base + offset;
      segments[n + 1] = length;
      n += 2;
    }
    if (n === 0) return -Errno.EINVAL;
    return this.#queue.enqueue(frame.index, segments, 0, n >> 1, 0);
  }

  /** A copy in as few clusters as it takes, with room in front; the frame is given back. Null: there are not as many (m_defrag). */
  #defragment(pool: FramePool, frame: Cluster, length: number): Cluster | null {
    const room = pool.size - HEADROOM;
    const count = Math.max(1, Math.ceil(length / room));
    if (pool.free < count) return null;
    let head: Cluster | null = null;
    const whole = new Uint8Array(length);
    copyFrame(frame, whole, 0);
    for (let i = count - 1; i >= 0; i--) {
      const part = pool.take(Owner.USER) as Cluster;
      part.clear();
      const piece = whole.subarray(i * room, Math.min(length, (i + 1) * room));
      part.bytes.set(piece, part.offset);
      part.length = piece.length;
      part.next = head;
      head = part;
    }
    if (head === null) return null;
    head.flags = frame.flags;
    head.gsoType = frame.gsoType;
    head.gsoSize = frame.gsoSize;
    head.csumStart = frame.csumStart;
    head.csumOffset = frame.csumOffset;
    head.vlanTag = frame.vlanTag;
    pool.give(frame, Owner.USER);
    this.#device[Count.TX_DEFRAGGED] = (this.#device[Count.TX_DEFRAGGED] as number) + 1;
    return head;
  }
}

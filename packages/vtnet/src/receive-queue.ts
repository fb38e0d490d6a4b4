// A receive queue (virtio 1.4 §5.1.9.3, §5.1.9.4; FreeBSD's vtnet_rxq): its buffers, and what becomes of those that come back.
//
// Replace first: no frame is accepted unless another buffer takes its place, so that the device always has as many as it had.
import type { DmaMemory, Frame, Virtqueue } from "@virtio/core";
import { NET_GSO_FRAME_MAX, NetGso, NetHash, NetHeaderFlag } from "@virtio/core/net";
import { ETHERNET_HEADER_SIZE } from "@virtio/packets";
import { type Cluster, type FramePool, HEADROOM, Owner } from "./buffers.js";
import { completeChecksum, hasChecksumPlace, isTagged, stripTag } from "./offload.js";
import { Count, type Counters, RxCount } from "./statistics.js";

/**
 * Bytes of a buffer that takes a frame of several segments without merging (virtio 1.4 §5.1.9.3.1), and how many of them a queue has at
 * most: 2 MiB.
 */
const WHOLE_BUFFER = 65_609;
export const WHOLE_BUFFERS_MAX = 32;

/** Bits of UDP tunnels, in gso_type and in flags (virtio 1.4 §5.1.9): their features are not negotiated. */
const TUNNEL_GSO = 0x60;
const TUNNEL_CSUM = 8;

/** Clusters of such a buffer. */
export const clustersOfWhole = (capacity: number): number => Math.ceil(WHOLE_BUFFER / capacity);

/** What a queue does with frames until the next init. */
export interface ReceiveMode {
  readonly pool: FramePool;
  readonly headerSize: number;
  /** The header may share a descriptor with the frame (VERSION_1 or ANY_LAYOUT). */
  readonly inline: boolean;
  /** HASH_REPORT. */
  readonly hashes: boolean;
  /** MRG_RXBUF. */
  readonly mergeable: boolean;
  /** A buffer is a chain of clusters: several segments, and no MRG_RXBUF ("LRO without merge"). */
  readonly whole: boolean;
  /** Most clusters that the device has. */
  readonly most: number;
}

/** What is switched while a queue runs. */
export interface ReceiveFlags {
  /** The stack is told what the device says of checksums; else they are completed here. */
  rxcsum: boolean;
  /** Partial checksums are completed here in any case. */
  fixup: boolean;
  /** The VLAN tag is taken out of the bytes. */
  tagging: boolean;
  /** Bit `1 << NetGso` of each type that may come (below ECN). */
  gsoTypes: number;
}

/** What a queue needs of its interface. */
export interface ReceiveQueueOptions {
  readonly queue: Virtqueue;
  /** Its pair. */
  readonly index: number;
  readonly memory: DmaMemory;
  readonly flags: ReceiveFlags;
  readonly count: Counters<RxCount>;
  readonly device: Counters<Count>;
  /** Longest chain. */
  readonly maxSegments: number;
  /** Frees clusters that the device has transmitted: called when there is none. */
  readonly reap: () => void;
}

/** See the head of this file. */
export class ReceiveQueue {
  readonly index: number;
  readonly #queue: Virtqueue;
  readonly #flags: ReceiveFlags;
  readonly #count: Counters<RxCount>;
  readonly #device: Counters<Count>;
  readonly #reap: () => void;
  /** All of guest memory as 16-bit words: headers. */
  readonly #halves: Uint16Array;
  readonly #bytes: Uint8Array;
  /** Added to an offset: a guest-physical address. */
  readonly #base: number;
  readonly #segments: Uint32Array;
  /** Somebody wants to be told of frames: burst() asks for an interrupt when it leaves the ring empty. */
  wanted = false;
  #armed = false;
  #mode: ReceiveMode | null = null;
  /** Buffers that take the place of those dequeued in this burst. */
  readonly #replacements: Cluster[] = [];
  #replaced = 0;
  /** Buffers that the device has. */
  #posted = 0;
  #most = 0;

  constructor(options: ReceiveQueueOptions) {
    const { queue, index, memory, flags, count, device, maxSegments, reap } = options;
    this.index = index;
    this.#queue = queue;
    this.#flags = flags;
    this.#count = count;
    this.#device = device;
    this.#reap = reap;
    this.#bytes = new Uint8Array(memory.buffer);
    this.#halves = new Uint16Array(memory.buffer, 0, memory.buffer.byteLength >>> 1);
    this.#base = memory.base;
    this.#segments = new Uint32Array(2 * maxSegments);
  }

  /** Buffers that the device has. */
  get posted(): number {
    return this.#posted;
  }

  /** The device has no buffers of this queue: after a reset. */
  begin(mode: ReceiveMode): void {
    const { whole, most } = mode;
    this.#mode = mode;
    this.#posted = 0;
    this.#armed = false;
    const each = whole || mode.inline ? 1 : 2;
    this.#most = Math.min(
      whole ? WHOLE_BUFFERS_MAX : most,
      most,
      Math.max(1, Math.floor(this.#queue.size / each)),
    );
  }

  /** No more: the device was reset. */
  end(): void {
    this.#mode = null;
    this.#posted = 0;
  }

  /** Gives the device as many buffers as it may have, or as there are (vtnet_rxq_populate). */
  fill(): void {
    const mode = this.#mode;
    if (mode === null || this.#posted >= this.#most) return;
    const before = this.#posted;
    for (let left = this.#most - before; left > 0; left--) {
      const cluster = mode.whole ? this.#gather(mode) : mode.pool.take(Owner.DEVICE);
      if (cluster === null) break;
      this.#replace(cluster);
    }
    this.#postReplacements(mode);
    if (this.#posted > before) this.#queue.notify();
  }

  /** A chain of clusters for a frame of any size. */
  #gather({ pool, headerSize }: ReceiveMode): Cluster | null {
    const count = clustersOfWhole(pool.size - HEADROOM + headerSize);
    if (pool.free < count) return null;
    let head: Cluster | null = null;
    for (let i = 0; i < count; i++) {
      const cluster = pool.take(Owner.DEVICE);
      if (cluster === null) return null;
      cluster.next = head;
      head = cluster;
    }
    return head;
  }

  /** Broken, or suspended: fill() tries again. */
  #unposted(mode: ReceiveMode, cluster: Cluster): void {
    this.#device[Count.RX_ENQ_REPLACEMENT_FAILED] =
      (this.#device[Count.RX_ENQ_REPLACEMENT_FAILED] as number) + 1;
    mode.pool.give(cluster, Owner.DEVICE);
  }

  #postSegments({ headerSize, inline }: ReceiveMode, head: Cluster): number {
    const segments = this.#segments;
    let n = 0;
    for (let part: Cluster | null = head; part !== null; part = part.next as Cluster | null) {
      let from = part.start + HEADROOM - headerSize;
      if (n === 0 && !inline) {
        // On old devices the header has a descriptor of its own (§5.1.9.8).
        segments[0] = this.#base + from;
        segments[1] = headerSize;
        n = 2;
        from += headerSize;
      }
      segments[n] = this.#base + from;
      segments[n + 1] = part.end - from;
      n += 2;
    }
    return this.#queue.enqueue(head.index, segments, 0, 0, n >> 1);
  }

  /** Takes at most `max` frames; they are the user's. */
  burst(frames: (Frame | null)[], max: number): number {
    const mode = this.#mode;
    if (mode === null) return 0;
    const queue = this.#queue;
    const { pool, headerSize, mergeable } = mode;
    const { clusters } = pool;
    const halves = this.#halves;
    const bytes = this.#bytes;
    const simple = mode.inline && !mode.whole;
    const { tagging } = this.#flags;
    let n = 0;
    let taken = 0;
    let packets = 0;
    let total = 0;
    let multicasts = 0;
    while (n < max) {
      const id = queue.dequeue();
      if (id < 0) {
        if (this.#sleep()) break;
        continue;
      }
      taken += 1;
      this.#posted -= 1;
      const cluster = clusters[id] as Cluster;
      const length = queue.usedLength - headerSize;
      const at = cluster.start + HEADROOM;
      // What the device may still be writing to is read once.
      const h = (at - headerSize) >>> 1;
      const word = halves[h] as number;
      const buffers = mergeable ? (halves[h + 5] as number) : 1;
      if (simple && length >= ETHERNET_HEADER_SIZE && buffers === 1) {
        const fresh = pool.take(Owner.DEVICE) ?? this.#scarce(mode);
        if (fresh === null) {
          this.#drop(cluster);
          continue;
        }
        this.#replace(fresh);
        cluster.owner = Owner.USER;
        cluster.length = length;
      } else if (!this.#takeOther(mode, cluster, length, buffers)) continue;
      cluster.offset = at;
      cluster.vlanTag = -1;
      cluster.queue = this.index;
      if (mode.hashes) this.#hash(cluster, h);
      if (word === 0) {
        cluster.flags = 0;
        cluster.gsoType = 0;
        cluster.gsoSize = 0;
      } else if (!this.#offloads(cluster, h, word)) {
        pool.give(cluster, Owner.USER);
        continue;
      }
      if (tagging && bytes[at + 12] === 0x81 && isTagged(cluster)) stripTag(cluster);
      frames[n] = cluster;
      n += 1;
      packets += 1;
      total += cluster.length;
      if (cluster.next !== null) total += this.#rest(cluster);
      multicasts += (bytes[cluster.offset] as number) & 1;
    }
    if (taken > 0) {
      const count = this.#count;
      count[RxCount.IPACKETS] = (count[RxCount.IPACKETS] as number) + packets;
      count[RxCount.IBYTES] = (count[RxCount.IBYTES] as number) + total;
      count[RxCount.IMCASTS] = (count[RxCount.IMCASTS] as number) + multicasts;
      this.#postReplacements(mode);
      queue.notify();
    }
    if (this.#posted < this.#most) this.fill();
    return n;
  }

  /** It goes to the device with all others of this burst: a queue that is enqueued to and dequeued from in turns is slow (20 ns a frame). */
  #replace(cluster: Cluster): void {
    this.#replacements[this.#replaced] = cluster;
    this.#replaced += 1;
  }

  /** Puts them into the ring; what it does not take goes back to the pool. */
  #postReplacements(mode: ReceiveMode): void {
    const replacements = this.#replacements;
    const queue = this.#queue;
    const { headerSize } = mode;
    const lead = this.#base + HEADROOM - headerSize;
    const capacity = mode.pool.size - HEADROOM + headerSize;
    const simple = mode.inline && !mode.whole;
    const count = this.#replaced;
    this.#replaced = 0;
    this.#posted += count;
    for (let i = 0; i < count; i++) {
      const cluster = replacements[i] as Cluster;
      const error = simple
        ? queue.enqueueWritable(cluster.index, lead + cluster.start, capacity)
        : this.#postSegments(mode, cluster);
      if (error === 0) continue;
      this.#posted -= 1;
      this.#unposted(mode, cluster);
    }
  }

  #rest(cluster: Cluster): number {
    let length = 0;
    for (let part = cluster.next; part !== null; part = part.next) length += part.length;
    return length;
  }

  /** No cluster is free: what the device transmitted may be. */
  #scarce({ pool }: ReceiveMode): Cluster | null {
    this.#reap();
    const cluster = pool.take(Owner.DEVICE);
    if (cluster === null) this.#add(Count.MBUF_ALLOC_FAILED);
    return cluster;
  }

  /** The frame is dropped for want of a buffer: its own goes back to the device. */
  #drop(cluster: Cluster): void {
    this.#count[RxCount.IQDROPS] = (this.#count[RxCount.IQDROPS] as number) + 1;
    this.#replace(cluster);
  }

  /** What the device says is no frame: its buffer goes back to it. */
  #refuse(cluster: Cluster): false {
    this.#count[RxCount.IERRORS] = (this.#count[RxCount.IERRORS] as number) + 1;
    this.#replace(cluster);
    return false;
  }

  #add(count: Count): void {
    this.#device[count] = (this.#device[count] as number) + 1;
  }

  /** A frame that is not whole in one buffer, or none at all. */
  #takeOther(mode: ReceiveMode, cluster: Cluster, length: number, buffers: number): boolean {
    if (length < ETHERNET_HEADER_SIZE || buffers === 0) return this.#refuse(cluster);
    if (mode.whole) return this.#takeWhole(mode, cluster, length);
    const fresh = mode.pool.take(Owner.DEVICE) ?? this.#scarce(mode);
    if (fresh === null) {
      this.#drop(cluster);
      this.#discard(mode, buffers - 1);
      return false;
    }
    this.#replace(fresh);
    cluster.owner = Owner.USER;
    cluster.length = length;
    cluster.next = null;
    return buffers === 1 || this.#merge(mode, cluster, buffers - 1);
  }

  /** The further buffers of a merged frame (vtnet_rxq_merged_eof). Bounded by what the ring has. */
  #merge(mode: ReceiveMode, head: Cluster, more: number): boolean {
    const queue = this.#queue;
    const { pool } = mode;
    let tail = head;
    let total = head.length;
    let empty = false;
    for (let left = more; left > 0; left--) {
      const id = queue.dequeue();
      if (id < 0) {
        this.#count[RxCount.IERRORS] = (this.#count[RxCount.IERRORS] as number) + 1;
        this.#add(Count.RX_MERGEABLE_FAILED);
        pool.give(head, Owner.USER);
        return false;
      }
      this.#posted -= 1;
      const cluster = pool.clusters[id] as Cluster;
      const length = queue.usedLength;
      const fresh = pool.take(Owner.DEVICE) ?? this.#scarce(mode);
      if (fresh === null) {
        this.#drop(cluster);
        this.#discard(mode, left - 1);
        this.#add(Count.RX_MERGEABLE_FAILED);
        pool.give(head, Owner.USER);
        return false;
      }
      this.#replace(fresh);
      cluster.clear();
      cluster.owner = Owner.USER;
      cluster.offset = cluster.start + HEADROOM - mode.headerSize;
      cluster.length = length;
      tail.next = cluster;
      tail = cluster;
      total += length;
      empty ||= length === 0;
    }
    if (!empty && total <= NET_GSO_FRAME_MAX) return true;
    this.#count[RxCount.IERRORS] = (this.#count[RxCount.IERRORS] as number) + 1;
    if (!empty) this.#add(Count.RX_FRAME_TOO_LARGE);
    pool.give(head, Owner.USER);
    return false;
  }

  /** The rest of a merged frame that is dropped goes back to the device (vtnet_rxq_discard_merged_bufs). */
  #discard(mode: ReceiveMode, more: number): void {
    for (let left = more; left > 0; left--) {
      const id = this.#queue.dequeue();
      if (id < 0) return;
      this.#posted -= 1;
      this.#replace(mode.pool.clusters[id] as Cluster);
    }
  }

  /**
   * LRO without merge: the clusters that hold bytes are the frame, as many new ones take their place, and the rest of the chain hangs
   * on them (vtnet_rxq_replace_lro_nomrg_buf).
   */
  #takeWhole(mode: ReceiveMode, head: Cluster, length: number): boolean {
    const { pool } = mode;
    let left = length;
    let last = head;
    let used = 1;
    head.length = Math.min(left, head.end - head.start - HEADROOM);
    left -= head.length;
    while (left > 0) {
      const next = last.next as Cluster | null;
      if (next === null) {
        this.#add(Count.RX_FRAME_TOO_LARGE);
        return this.#refuse(head);
      }
      next.offset = next.start + HEADROOM - mode.headerSize;
      next.length = Math.min(left, next.end - next.offset);
      left -= next.length;
      last = next;
      used += 1;
    }
    if (pool.free < used) this.#reap();
    if (pool.free < used) {
      this.#add(Count.MBUF_ALLOC_FAILED);
      this.#drop(head);
      return false;
    }
    let chain = last.next as Cluster | null;
    last.next = null;
    for (let i = 0; i < used; i++) {
      const fresh = pool.take(Owner.DEVICE) as Cluster;
      fresh.next = chain;
      chain = fresh;
    }
    if (chain !== null) this.#replace(chain);
    for (let part: Frame | null = head; part !== null; part = part.next)
      (part as Cluster).owner = Owner.USER;
    return true;
  }

  /** What the device says of the flow (virtio 1.4 §5.1.9.4.4). */
  #hash(frame: Cluster, h: number): void {
    const halves = this.#halves;
    const type = halves[h + 8] as number;
    const known = type > 0 && type <= NetHash.UDP_EX + 1;
    frame.hashType = known ? type : 0;
    frame.hash = known ? (((halves[h + 7] as number) << 16) | (halves[h + 6] as number)) >>> 0 : 0;
  }

  /** What the header says, as far as it makes sense (vtnet_rxq_csum). False: the frame is not to be trusted. */
  #offloads(frame: Cluster, h: number, word: number): boolean {
    const halves = this.#halves;
    const flags = this.#flags;
    const gso = word >>> 8;
    frame.flags = 0;
    frame.gsoType = NetGso.NONE;
    frame.gsoSize = 0;
    const needsCsum = (word & NetHeaderFlag.NEEDS_CSUM) !== 0;
    // Such a frame is not to be taken (§5.1.9.4.2); an outer checksum alone is a flag like any unknown one.
    if ((gso & TUNNEL_GSO) !== 0 || (needsCsum && (word & TUNNEL_CSUM) !== 0)) {
      this.#count[RxCount.IERRORS] = (this.#count[RxCount.IERRORS] as number) + 1;
      return false;
    }
    const gsoSize = halves[h + 2] as number;
    if ((flags.gsoTypes & (1 << (gso & ~NetGso.ECN))) !== 0 && gsoSize > 0) {
      frame.gsoType = gso;
      frame.gsoSize = gsoSize;
      this.#count[RxCount.HOST_LRO] = (this.#count[RxCount.HOST_LRO] as number) + 1;
    }
    // With RSC_INFO these fields are no offsets (§5.1.9.4.2).
    if (needsCsum && (word & NetHeaderFlag.RSC_INFO) === 0) {
      frame.csumStart = halves[h + 3] as number;
      frame.csumOffset = halves[h + 4] as number;
      const length = frame.next === null ? frame.length : frame.length + this.#rest(frame);
      if (!hasChecksumPlace(frame, length)) {
        this.#add(Count.RX_CSUM_BAD_OFFSET);
        this.#count[RxCount.CSUM_FAILED] = (this.#count[RxCount.CSUM_FAILED] as number) + 1;
        return true;
      }
      frame.flags = NetHeaderFlag.NEEDS_CSUM;
      if (flags.fixup || !flags.rxcsum) {
        completeChecksum(frame);
        if (flags.rxcsum) frame.flags = NetHeaderFlag.DATA_VALID;
      }
    } else if ((word & NetHeaderFlag.DATA_VALID) !== 0 && flags.rxcsum)
      frame.flags = NetHeaderFlag.DATA_VALID;
    if (frame.flags !== 0) this.#count[RxCount.CSUM] = (this.#count[RxCount.CSUM] as number) + 1;
    return true;
  }

  /** The ring is empty: false when there are frames after all. */
  #sleep(): boolean {
    if (!this.wanted || this.#armed) return true;
    this.#armed = this.#queue.broken === null;
    if (!this.#queue.enableInterrupt()) return true;
    this.disarm();
    return false;
  }

  /** Whether an interrupt will come. */
  get armed(): boolean {
    return this.#armed;
  }

  /** Asks for no interrupt any more. */
  disarm(): void {
    this.#armed = false;
    this.#queue.disableInterrupt();
  }
}

// The queues of an interface, and all ways to their frames: bursts, streams, captures.
import {
  type Callout,
  type CapturedFrame,
  type DriverContext,
  type FeatureSet,
  type Frame,
  InterfaceCapability,
  ReservedFeature,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  NET_HEADER_HASH_SIZE,
  NET_HEADER_LEGACY_SIZE,
  NET_HEADER_SIZE,
  NetFeature,
  NetGso,
} from "@virtio/core/net";
import { ETHERNET_HEADER_SIZE, VLAN_TAG_SIZE } from "@virtio/packets";
import { type Cluster, FramePool, HEADROOM, Owner } from "./buffers.js";
import {
  type Features,
  receivesSegments,
  type Settled,
  transmitsSegments,
  withoutReceiveSegments,
} from "./features.js";
import { flowHash, frameLength, wireCopy } from "./offload.js";
import {
  clustersOfWhole,
  type ReceiveFlags,
  ReceiveQueue,
  WHOLE_BUFFERS_MAX,
} from "./receive-queue.js";
import { RxCount, type Statistics } from "./statistics.js";
import { FrameStreams } from "./streams.js";
import { type TransmitFlags, TransmitQueue } from "./transmit-queue.js";

/** Sizes of a cluster (MCLBYTES, MJUMPAGESIZE). */
const CLUSTER = 2048;
const PAGE = 4096;
/** Clusters of a queue besides what its ring holds, at most and at least. */
const SHARE_MAX = 512;
const SHARE_MIN = 16;
/** Clusters for those who hold frames for a while. */
const SPARE = 64;
/** Longest chains to transmit (VTNET_TX_SEGS_MAX, VTNET_TX_SEGS_MIN). */
const TX_SEGMENTS_MAX = 64;
const TX_SEGMENTS_MIN = 32;
const TICK_MS = 1000;

const { TXCSUM, TXCSUM_IPV6, RXCSUM, TSO4, TSO6, LRO, VLAN_HWTAGGING } = InterfaceCapability;

/** Longest chains of both directions (vtnet_alloc_virtqueues). */
export function segmentsOf(features: FeatureSet<Features>): { receive: number; transmit: number } {
  const header = isInline(features) ? 0 : 1;
  return {
    receive: header + (isWhole(features) ? clustersOfWhole(CLUSTER - HEADROOM) : 1),
    transmit: transmitsSegments(features) ? TX_SEGMENTS_MAX : TX_SEGMENTS_MIN,
  };
}

/** What goes with rings of these sizes: a chain is never longer than its ring (virtio 1.4 §2.7.5.3.1). */
export function fitted(
  settled: Settled,
  [receiver]: readonly Virtqueue[],
  { log }: DriverContext,
): Settled {
  const { features } = settled;
  const size = receiver?.size ?? 0;
  if (!isWhole(features) || size >= segmentsOf(features).receive) return settled;
  log(`LRO disabled due to a receive queue of ${size} descriptors without mergeable buffers`);
  return withoutReceiveSegments(settled);
}

/** A header may share a descriptor with its frame; not on old devices (virtio 1.4 §5.1.9.8). */
const isInline = (features: FeatureSet<Features>): boolean =>
  features.has(ReservedFeature.VERSION_1) || features.has(ReservedFeature.ANY_LAYOUT);

/** A receive buffer must take several segments by itself ("LRO without merge"). */
const isWhole = (features: FeatureSet<Features>): boolean =>
  !features.has(NetFeature.MRG_RXBUF) && receivesSegments(features);

/** What the traffic needs of its interface. */
export interface TrafficOptions {
  readonly device: VirtioDevice;
  readonly context: DriverContext;
  readonly settled: Settled;
  readonly virtqueues: readonly Virtqueue[];
  readonly statistics: Statistics;
  /** Bytes of payload. */
  readonly mtu: number;
  /** A transmit queue does not get on. */
  readonly onHung: (queue: number) => void;
}

/** Stopped, or begun: the device has buffers; then started: frames are received, and while the link is up transmitted. */
export class Traffic {
  onRoom: (() => void) | null = null;
  readonly #name: string;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #settled: Settled;
  readonly #virtqueues: readonly Virtqueue[];
  readonly #statistics: Statistics;
  readonly #onHung: (queue: number) => void;
  readonly #rx: ReceiveQueue[] = [];
  readonly #tx: TransmitQueue[] = [];
  readonly #streams: FrameStreams;
  readonly #receiveFlags: ReceiveFlags;
  readonly #transmitFlags: TransmitFlags;
  readonly #captures = new Set<(frame: CapturedFrame) => void>();
  readonly #single: (Frame | null)[] = [null];
  #pool: FramePool;
  /** Buffers of a receive queue. */
  #most = 0;
  #running = false;
  /** Running, and the link is up. */
  #sending = false;
  #closed = false;
  #pairs = 1;
  /** The queue that a stream takes from next. */
  #turn = 0;
  #onReceive: ((queue: number) => void) | null = null;
  /** transmitBurst() took less than it was given. */
  #starved = false;
  #roomTold = false;
  #tick: Callout | null = null;
  #toldEcn = Number.NEGATIVE_INFINITY;

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  constructor(options: TrafficOptions) {
    const { device, context, settled, virtqueues, statistics, mtu } = options;
    this.#name = context.name;
    this.#device = device;
    this.#context = context;
    this.#settled = settled;
    this.#virtqueues = virtqueues;
    this.#statistics = statistics;
    this.#onHung = options.onHung;
    this.#receiveFlags = {
      rxcsum: false,
      fixup: context.tunables.number("fixup_needs_csum") !== 0,
      tagging: false,
      gsoTypes: 0,
    };
    this.#transmitFlags = { csum4: false, csum6: false, gsoTypes: 0, mtu };
    this.#pool = this.#makePool(mtu);
    const { memory } = device;
    const { receive, transmit } = segmentsOf(settled.features);
    const { rx, tx, device: counters } = statistics;
    for (let i = 0; i < settled.pairs; i++) {
      const receiver = virtqueues[2 * i] as Virtqueue;
      const sender = virtqueues[2 * i + 1] as Virtqueue;
      receiver.onUsed = () => this.#received(i);
      sender.onUsed = () => this.#transmitted(i);
      this.#rx.push(
        new ReceiveQueue({
          queue: receiver,
          index: i,
          memory,
          flags: this.#receiveFlags,
          count: rx[i] as Float64Array,
          device: counters,
          maxSegments: receive,
          reap: () => this.reap(),
        }),
      );
      this.#tx.push(
        new TransmitQueue({
          queue: sender,
          memory,
          flags: this.#transmitFlags,
          count: tx[i] as Float64Array,
          device: counters,
          maxSegments: transmit,
          onEcn: () => this.#noEcn(),
        }),
      );
    }
    this.#streams = new FrameStreams({
      name: this.#name,
      take: () => this.#takeCopy(),
      put: (frame) => this.putCopy(frame),
      want: () => this.#interest(),
      wantRoom: () => this.#wantRoom(),
    });
  }

  get mtu(): number {
    return this.#transmitFlags.mtu;
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  /** Buffers are given to all receive queues; nothing is taken back yet. @throws VirtioFault OUT_OF_MEMORY */
  begin(features: FeatureSet<Features>): void {
    const pool = this.#pool;
    const mergeable = features.has(NetFeature.MRG_RXBUF);
    const modern = features.has(ReservedFeature.VERSION_1);
    const hashes = features.has(NetFeature.HASH_REPORT);
    const plainSize = modern || mergeable ? NET_HEADER_SIZE : NET_HEADER_LEGACY_SIZE;
    const headerSize = hashes ? NET_HEADER_HASH_SIZE : plainSize;
    const inline = isInline(features);
    const whole = isWhole(features);
    const ecn = features.has(NetFeature.GSO) || features.has(NetFeature.HOST_ECN);
    const indirect = features.has(ReservedFeature.INDIRECT_DESC);
    const lengths = transmitsSegments(features);
    for (const [i, rx] of this.#rx.entries()) {
      rx.begin({ pool, headerSize, inline, hashes, mergeable, whole, most: this.#most });
      rx.fill();
      if (rx.posted === 0)
        throw this.#fail("OUT_OF_MEMORY", `cannot allocate mbufs for Rx queue ${i}`);
    }
    for (const tx of this.#tx) tx.begin({ pool, headerSize, inline, indirect, lengths, ecn });
  }

  /** Frames pass, on so many pairs; transmitted ones only after `setLink`. */
  start(pairs: number): void {
    this.#pairs = pairs;
    this.#running = true;
    this.#interest();
  }

  /** Whether frames may be transmitted. */
  setLink(up: boolean): void {
    this.#sending = this.#running && up;
    if (this.#sending) this.#room();
  }

  /** No frame passes any more. The device still has what it has. */
  stop(): void {
    this.#running = false;
    this.#sending = false;
    this.#tick?.stop();
    this.#tick = null;
  }

  /** The device was reset, and has nothing. */
  end(): void {
    for (const rx of this.#rx) rx.end();
    for (const tx of this.#tx) tx.end();
    this.#pool.reclaim();
  }

  /** No frame will ever pass: null when that is in order. */
  close(fault: VirtioFault | null): void {
    this.stop();
    this.#closed = true;
    this.#streams.end(fault);
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#pool.destroy();
  }

  /** What the queues look at, by what is negotiated and switched on. */
  setFlags(features: FeatureSet<Features>, enabled: ReadonlySet<InterfaceCapability>): void {
    const on = (capability: InterfaceCapability): boolean => enabled.has(capability);
    const bits = (...types: readonly (readonly [boolean, NetGso])[]): number =>
      types.reduce((sum, [is, type]) => (is ? sum | (1 << type) : sum), 0);
    const rx = this.#receiveFlags;
    rx.rxcsum = on(RXCSUM) && features.has(NetFeature.GUEST_CSUM);
    rx.tagging = on(VLAN_HWTAGGING);
    const lro = on(LRO);
    rx.gsoTypes = bits(
      [lro && features.has(NetFeature.GUEST_TSO4), NetGso.TCPV4],
      [lro && features.has(NetFeature.GUEST_TSO6), NetGso.TCPV6],
      [lro && features.has(NetFeature.GUEST_UFO), NetGso.UDP],
      [
        lro && (features.has(NetFeature.GUEST_USO4) || features.has(NetFeature.GUEST_USO6)),
        NetGso.UDP_L4,
      ],
    );
    const tx = this.#transmitFlags;
    tx.csum4 = on(TXCSUM);
    tx.csum6 = on(TXCSUM_IPV6);
    const udp = tx.csum4 && tx.csum6;
    tx.gsoTypes = bits(
      [tx.csum4 && on(TSO4), NetGso.TCPV4],
      [tx.csum6 && on(TSO6), NetGso.TCPV6],
      [udp && (features.has(NetFeature.HOST_UFO) || features.has(NetFeature.GSO)), NetGso.UDP],
      [udp && features.has(NetFeature.HOST_USO), NetGso.UDP_L4],
    );
  }

  // ── buffers ─────────────────────────────────────────────────────────────────

  /** Bytes of a cluster for an MTU (vtnet_rx_cluster_size). */
  #clusterSize(mtu: number): number {
    const { features, mtu: advised } = this.#settled;
    const mergeable = features.has(NetFeature.MRG_RXBUF);
    // Without merging a buffer takes the largest frame that the device may send (§5.1.4.2).
    const largest = mergeable ? mtu : Math.max(mtu, advised ?? 0);
    const need = HEADROOM + ETHERNET_HEADER_SIZE + VLAN_TAG_SIZE + largest;
    if (need <= CLUSTER) return CLUSTER;
    return mergeable ? PAGE : need;
  }

  /** As many as the rings hold, or as half of the memory has room for. @throws VirtioFault OUT_OF_MEMORY */
  #makePool(mtu: number): FramePool {
    const size = this.#clusterSize(mtu);
    const { features, pairs } = this.#settled;
    const whole = isWhole(features);
    const [rx, tx] = this.#virtqueues as readonly [Virtqueue, Virtqueue];
    const { memory } = this.#device;
    for (let share = SHARE_MAX; ; share >>>= 1) {
      const most = Math.min(rx.size, share);
      const each = whole
        ? Math.min(most, WHOLE_BUFFERS_MAX) * clustersOfWhole(size - HEADROOM)
        : most;
      const count = pairs * (each + Math.min(tx.size, share)) + SPARE;
      // Other devices need memory too.
      if (share > SHARE_MIN && count * size > memory.available / 2) continue;
      const pool = new FramePool(memory, size, count);
      this.#most = most;
      return pool;
    }
  }

  /** Whether an MTU needs clusters of another size: then the device must not have any when it is set. */
  needsClusters(mtu: number): boolean {
    return FramePool.clusterSize(this.#clusterSize(mtu)) !== this.#pool.size;
  }

  /** @throws VirtioFault OUT_OF_MEMORY, nothing changed then */
  setMtu(mtu: number): void {
    if (this.needsClusters(mtu)) {
      const pool = this.#makePool(mtu);
      this.#pool.retire();
      this.#pool = pool;
    }
    this.#transmitFlags.mtu = mtu;
  }

  allocate(): Frame | null {
    if (this.#closed) return null;
    let cluster = this.#pool.take(Owner.USER);
    if (cluster === null) {
      this.reap();
      cluster = this.#pool.take(Owner.USER);
    }
    cluster?.clear();
    return cluster;
  }

  release(frame: Frame): void {
    (frame as Cluster).pool.give(frame, Owner.USER);
    if (this.#streams.waitingForRoom) this.#room();
  }

  /** Takes back what was transmitted. */
  reap(): void {
    for (const tx of this.#tx) tx.reap();
  }

  // ── bursts ──────────────────────────────────────────────────────────────────

  receiveBurst(queue: number, frames: (Frame | null)[], max: number): number {
    if (!this.#running) return 0;
    const rx = this.#rx[queue];
    if (rx === undefined) return 0;
    const n = rx.burst(frames, max);
    if (this.#captures.size > 0)
      for (let i = 0; i < n; i++) {
        const frame = frames[i] as Frame;
        this.#captured("in", frame, frameLength(frame));
      }
    return n;
  }

  transmitBurst(queue: number, frames: readonly (Frame | null)[], count: number): number {
    let n = 0;
    if (this.#sending) {
      if (this.#pairs === 1) n = (this.#tx[0] as TransmitQueue).burst(frames, 0, count);
      else if (queue >= 0)
        n = (this.#tx[queue % this.#pairs] as TransmitQueue).burst(frames, 0, count);
      else n = this.#spread(frames, count);
      if (this.#tick === null && n > 0) this.#watch();
    }
    if (n < count) this.#starved = true;
    return n;
  }

  /** Each frame to its queue; a flow stays on one (vtnet_select_tx_queue). */
  #spread(frames: readonly (Frame | null)[], count: number): number {
    const pairs = this.#pairs;
    for (let i = 0; i < pairs; i++) (this.#tx[i] as TransmitQueue).reap();
    let n = 0;
    while (n < count) {
      const frame = frames[n] as Frame | null;
      if (frame !== null) {
        const chosen = frame.queue >= 0 ? frame.queue : flowHash(frame);
        if (!(this.#tx[chosen % pairs] as TransmitQueue).send(frame)) break;
      }
      n += 1;
    }
    for (let i = 0; i < pairs; i++) (this.#tx[i] as TransmitQueue).flush();
    return n;
  }

  get onReceive(): ((queue: number) => void) | null {
    return this.#onReceive;
  }

  set onReceive(handler: ((queue: number) => void) | null) {
    this.#onReceive = handler;
    this.#interest();
  }

  /** Somebody wants received frames, or nobody does any more. */
  #interest(): void {
    const wanted =
      this.#onReceive !== null ||
      this.#streams.waiting ||
      (this.#captures.size > 0 && !this.#streams.reading);
    for (const rx of this.#rx) {
      rx.wanted = wanted;
      if (wanted && this.#running && !rx.armed)
        this.#device.tasks.enqueue(() => this.#received(rx.index));
    }
  }

  /** A receive queue has frames, or may have (vtnet_rx_vq_process). */
  #received(index: number): void {
    const rx = this.#rx[index] as ReceiveQueue;
    rx.disarm();
    if (!this.#running) return;
    const count = this.#statistics.rx[index] as Float64Array;
    const before = count[RxCount.IPACKETS];
    if (this.#onReceive !== null) this.#onReceive(index);
    else if (this.#streams.waiting) this.#streams.arrived();
    else if (this.#captures.size > 0 && !this.#streams.reading) this.#watchOnly(rx, count);
    else return;
    // It took some, and did not see the end.
    if (!rx.armed && count[RxCount.IPACKETS] !== before) {
      count[RxCount.RESCHEDULED] = (count[RxCount.RESCHEDULED] as number) + 1;
      this.#device.tasks.enqueue(() => this.#received(index));
    }
  }

  /** Nobody takes frames, but somebody looks at them. */
  #watchOnly(rx: ReceiveQueue, count: Float64Array): void {
    const limit = this.#context.tunables.number("rx_process_limit");
    for (let n = 0; limit < 0 || n < limit; n++) {
      if (this.receiveBurst(rx.index, this.#single, 1) === 0) return;
      this.release(this.#single[0] as Frame);
      count[RxCount.IQDROPS] = (count[RxCount.IQDROPS] as number) + 1;
    }
  }

  /** The device interrupted because somebody waits for room (vtnet_tx_vq_process). */
  #transmitted(index: number): void {
    const tx = this.#tx[index] as TransmitQueue;
    tx.disarm();
    tx.reap();
    if (!tx.starved) return;
    tx.starved = false;
    this.#room();
  }

  #wantRoom(): void {
    // One that cannot transmit is told when it can.
    if (this.#sending) for (const tx of this.#tx) if (tx.wait()) this.#room();
  }

  /** Whoever waits for room tries again, as a task. */
  #room(): void {
    if (this.#roomTold) return;
    this.#roomTold = true;
    this.#device.tasks.enqueue(() => {
      this.#roomTold = false;
      this.#streams.room();
      if (!this.#starved || !this.#sending) return;
      this.#starved = false;
      this.onRoom?.();
    });
  }

  #noEcn(): void {
    const now = this.#device.tasks.now();
    if (now - this.#toldEcn < 1000) return;
    this.#toldEcn = now;
    this.#context.log("TSO with ECN not negotiated with host");
  }

  // ── streams and capture ─────────────────────────────────────────────────────

  get readable(): ReadableStream<Uint8Array> {
    return this.#streams.readable;
  }

  get writable(): WritableStream<Uint8Array> {
    return this.#streams.writable;
  }

  /** From the queues in use, one after the other. */
  #takeCopy(): Uint8Array | null {
    if (this.#onReceive !== null) return null;
    const { length } = this.#rx;
    for (let i = 0; i < length; i++) {
      const queue = this.#turn;
      this.#turn = (queue + 1) % length;
      if (this.receiveBurst(queue, this.#single, 1) === 0) continue;
      const frame = this.#single[0] as Frame;
      const bytes = wireCopy(frame, frameLength(frame));
      this.release(frame);
      return bytes;
    }
    return null;
  }

  /** Transmits a copy; false: there is no room now. @throws VirtioFault INVALID */
  putCopy(bytes: Uint8Array): boolean {
    const tag = bytes[12] === 0x81 && bytes[13] === 0 ? VLAN_TAG_SIZE : 0;
    const most = this.mtu + ETHERNET_HEADER_SIZE + tag;
    if (bytes.length < ETHERNET_HEADER_SIZE || bytes.length > most)
      throw this.#fail(
        "INVALID",
        `a frame of ${bytes.length} bytes, not ${ETHERNET_HEADER_SIZE} to ${most}`,
      );
    if (!this.#sending) return false;
    let head: Frame | null = null;
    let tail: Frame | null = null;
    for (let at = 0; at < bytes.length; ) {
      const part = this.allocate();
      if (part === null) break;
      const piece = bytes.subarray(at, at + part.room);
      part.bytes.set(piece, part.offset);
      part.length = piece.length;
      at += piece.length;
      if (tail !== null) tail.next = part;
      head ??= part;
      tail = part;
    }
    if (head === null) return false;
    this.#single[0] = head;
    if (frameLength(head) === bytes.length && this.transmitBurst(-1, this.#single, 1) === 1)
      return true;
    this.release(head);
    return false;
  }

  capture(listener: (frame: CapturedFrame) => void): () => void {
    // One that is given twice is two.
    const own = (frame: CapturedFrame): void => listener(frame);
    this.#captures.add(own);
    const changed = (): void => {
      const tap = (frame: Frame, length: number): void => this.#captured("out", frame, length);
      for (const tx of this.#tx) tx.tap = this.#captures.size > 0 ? tap : null;
      this.#interest();
    };
    changed();
    return () => {
      this.#captures.delete(own);
      changed();
    };
  }

  #captured(direction: "in" | "out", frame: Frame, length: number): void {
    const time = this.#device.tasks.now();
    const bytes = wireCopy(frame, length);
    for (const listener of this.#captures) listener({ direction, time, bytes });
  }

  #watch(): void {
    this.#tick = this.#device.tasks.callout(TICK_MS, () => {
      this.#tick = null;
      if (!this.#running) return;
      let late = -1;
      let busy = false;
      for (const [i, tx] of this.#tx.entries()) {
        if (tx.tick()) late = i;
        if (tx.starved && tx.inFlight === 0) tx.starved = false;
        busy ||= tx.inFlight > 0;
      }
      if (this.#starved || this.#streams.waitingForRoom) this.#room();
      if (late >= 0) this.#onHung(late);
      else if (busy) this.#watch();
    });
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#name });
  }
}

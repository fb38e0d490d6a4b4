// The queues of an interface, and the ways to their frames: bursts and streams; whom to wake when frames or room come.
import {
  type Callout,
  type DriverContext,
  type FeatureSet,
  type Frame,
  type InterfaceCapability,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { type Cluster, Owner } from "./buffers.js";
import { Captures } from "./captures.js";
import type { Features } from "./features.js";
import { receiveMode, setReceiveFlags, setTransmitFlags, transmitMode } from "./modes.js";
import { flowHash } from "./offload.js";
import { type ReceiveFlags, ReceiveQueue } from "./receive-queue.js";
import type { Settled } from "./settle.js";
import { type Clusters, clusterSizeFor, makeClusters, segmentsOf } from "./sizes.js";
import { RxCount, type Statistics } from "./statistics.js";
import { FrameStreams } from "./streams.js";
import { type TransmitFlags, TransmitQueue } from "./transmit-queue.js";

const TICK_MS = 1000;

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
  readonly streams: FrameStreams;
  readonly captures: Captures;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #settled: Settled;
  readonly #virtqueues: readonly Virtqueue[];
  readonly #statistics: Statistics;
  readonly #onHung: (queue: number) => void;
  /** Most frames that are taken before others get their turn (rx_process_limit). */
  readonly #limit: number;
  readonly #rx: ReceiveQueue[] = [];
  readonly #tx: TransmitQueue[] = [];
  readonly #receiveFlags: ReceiveFlags;
  readonly #transmitFlags: TransmitFlags;
  readonly #single: (Frame | null)[] = [null];
  #clusters: Clusters;
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
    this.#device = device;
    this.#context = context;
    this.#settled = settled;
    this.#virtqueues = virtqueues;
    this.#statistics = statistics;
    this.#onHung = options.onHung;
    const limit = context.tunables.number("rx_process_limit");
    this.#limit = limit < 0 ? Number.POSITIVE_INFINITY : Math.max(1, limit);
    this.#receiveFlags = {
      rxcsum: false,
      fixup: context.tunables.number("fixup_needs_csum") !== 0,
      tagging: false,
      gsoTypes: 0,
    };
    this.#transmitFlags = { csum4: false, csum6: false, gsoTypes: 0, mtu };
    this.#clusters = this.#makeClusters(mtu);
    this.captures = new Captures(device.tasks, context.log, () => this.#captured());
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
    this.streams = new FrameStreams(context.name, {
      mtu: () => this.mtu,
      limit: this.#limit,
      later: (task) => device.tasks.enqueue(task),
      take: () => this.#takeAny(),
      allocate: () => (this.#sending ? this.allocate() : null),
      transmit: (frame) => this.#transmit(frame),
      release: (frame) => this.release(frame),
      want: () => this.#interest(),
      wantRoom: () => this.#wantRoom(),
    });
  }

  get mtu(): number {
    return this.#transmitFlags.mtu;
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  /** Buffers are given to all receive queues; nothing is taken back yet. @throws VirtioFault OUT_OF_MEMORY, or what broke a queue */
  begin(features: FeatureSet<Features>): void {
    const { pool, most } = this.#clusters;
    for (const [i, rx] of this.#rx.entries()) {
      rx.begin(receiveMode(features, pool, most));
      rx.fill();
      if (rx.posted === 0)
        throw (
          this.#virtqueues[2 * i]?.broken ??
          this.#fail("OUT_OF_MEMORY", `cannot allocate mbufs for Rx queue ${i}`)
        );
    }
    for (const tx of this.#tx) tx.begin(transmitMode(features, pool));
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
    this.#clusters.pool.reclaim();
  }

  /** No frame will ever pass: null when that is in order. */
  close(fault: VirtioFault | null): void {
    this.stop();
    this.#closed = true;
    this.streams.end(fault);
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.end();
    this.#clusters.pool.destroy();
  }

  /** What the queues look at, by what is negotiated and switched on. */
  setFlags(features: FeatureSet<Features>, enabled: ReadonlySet<InterfaceCapability>): void {
    setReceiveFlags(this.#receiveFlags, features, enabled);
    setTransmitFlags(this.#transmitFlags, features, enabled);
  }

  // ── buffers ─────────────────────────────────────────────────────────────────

  #makeClusters(mtu: number): Clusters {
    const [rx, tx] = this.#virtqueues as readonly [Virtqueue, Virtqueue];
    return makeClusters(this.#device.memory, this.#settled, [rx, tx], mtu);
  }

  /** Whether an MTU needs clusters of another size: then the device must not have any when it is set. */
  needsClusters(mtu: number): boolean {
    return clusterSizeFor(this.#settled, mtu) !== this.#clusters.pool.size;
  }

  /** @throws VirtioFault OUT_OF_MEMORY, nothing changed then */
  setMtu(mtu: number): void {
    if (this.needsClusters(mtu)) {
      const clusters = this.#makeClusters(mtu);
      this.#clusters.pool.retire();
      this.#clusters = clusters;
    }
    this.#transmitFlags.mtu = mtu;
  }

  allocate(): Frame | null {
    if (this.#closed) return null;
    const { pool } = this.#clusters;
    let cluster = pool.take(Owner.USER);
    if (cluster === null) {
      this.reap();
      cluster = pool.take(Owner.USER);
    }
    cluster?.clear();
    return cluster;
  }

  release(frame: Frame): void {
    (frame as Cluster).pool.give(frame, Owner.USER);
    if (this.streams.waitingForRoom) this.#room();
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
    if (this.captures.any) for (let i = 0; i < n; i++) this.captures.see("in", frames[i] as Frame);
    return n;
  }

  /** One frame, or null. Who captures it may use `#single` too. */
  #take(rx: ReceiveQueue): Frame | null {
    if (!this.#running || rx.burst(this.#single, 1) === 0) return null;
    const frame = this.#single[0] as Frame;
    if (this.captures.any) this.captures.see("in", frame);
    return frame;
  }

  /** For a stream: from one queue after the other. */
  #takeAny(): Frame | null {
    if (this.#onReceive !== null) return null;
    for (let i = 0; i < this.#rx.length; i++) {
      const rx = this.#rx[this.#turn] as ReceiveQueue;
      this.#turn = (this.#turn + 1) % this.#rx.length;
      const frame = this.#take(rx);
      if (frame !== null) return frame;
    }
    return null;
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

  #transmit(frame: Frame): boolean {
    this.#single[0] = frame;
    return this.transmitBurst(-1, this.#single, 1) === 1;
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
      this.streams.waiting ||
      (this.captures.any && !this.streams.reading);
    for (const rx of this.#rx) {
      rx.wanted = wanted;
      if (wanted && this.#running && !rx.armed)
        this.#device.tasks.enqueue(() => this.#received(rx.index));
    }
  }

  /** A receive queue has frames, or may have (vtnet_rx_vq_process). */
  #received(index: number): void {
    // The ring may be gone.
    if (!this.#running) return;
    const rx = this.#rx[index] as ReceiveQueue;
    rx.disarm();
    const count = this.#statistics.rx[index] as Float64Array;
    const before = count[RxCount.IPACKETS];
    if (this.#onReceive !== null) this.#onReceive(index);
    else if (this.streams.waiting) this.streams.arrived();
    else if (this.captures.any && !this.streams.reading) this.#watchOnly(rx, count);
    else return;
    // It took some, and did not see the end.
    if (!rx.armed && count[RxCount.IPACKETS] !== before) {
      count[RxCount.RESCHEDULED] = (count[RxCount.RESCHEDULED] as number) + 1;
      this.#device.tasks.enqueue(() => this.#received(index));
    }
  }

  /** Nobody takes frames, but somebody looks at them. */
  #watchOnly(rx: ReceiveQueue, count: Float64Array): void {
    for (let n = 0; n < this.#limit; n++) {
      const frame = this.#take(rx);
      if (frame === null) return;
      this.release(frame);
      count[RxCount.IQDROPS] = (count[RxCount.IQDROPS] as number) + 1;
    }
  }

  /** The device interrupted because somebody waits for room (vtnet_tx_vq_process). */
  #transmitted(index: number): void {
    if (!this.#running) return;
    const tx = this.#tx[index] as TransmitQueue;
    tx.disarm();
    tx.reap();
    if (!tx.starved) return;
    tx.starved = false;
    this.#room();
  }

  /** Somebody looks at frames from now on, or does not any more. */
  #captured(): void {
    const tap = (frame: Frame): void => this.captures.see("out", frame);
    for (const tx of this.#tx) tx.tap = this.captures.any ? tap : null;
    this.#interest();
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
      this.streams.room();
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
      if (this.#starved || this.streams.waitingForRoom) this.#room();
      if (late >= 0) this.#onHung(late);
      else if (busy) this.#watch();
    });
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#context.name });
  }
}

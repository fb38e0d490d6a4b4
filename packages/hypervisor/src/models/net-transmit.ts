// From the driver to the wire (virtio 1.4 §5.1.9.2): headers, checksums, segments, fragments.
import {
  NET_GSO_FRAME_MAX,
  NET_HEADER_HASH_SIZE,
  NetFeature,
  NetGso,
  NetHeader,
  NetHeaderFlag,
} from "@virtio/core/net";
import { ETHERNET_HEADER_SIZE, EtherType, get16, Headers, VLAN_TAG_SIZE } from "@virtio/packets";
import type { DeviceChain } from "@virtio/ring";
import { FRAGMENT_HEADER_SIZE, NetFragmenter } from "./net-fragments.js";
import type { NetParts } from "./net-receive.js";
import { completeChecksum, NetSegmenter } from "./net-segments.js";

/** Chains taken in one task; more wait for the next, so that other devices get their turn. */
const BATCH = 64;
/** Segments after which a task ends. */
const SEGMENTS = 1024;

/** A transmit queue. */
interface TransmitQueue {
  /** The wire has no room: it says when. */
  stalled: boolean;
  /** Segments of the next frame that the wire has already. */
  sent: number;
  /** What its fragments say that they are of, with IPv6. */
  identification: number;
  readonly again: () => void;
}

/** The features of which one permits each kind of segmentation: GSO all that there were before UDP_L4 (§5.1.3.2). */
const gsoFeatures: readonly (readonly [type: NetGso, features: readonly NetFeature[]])[] = [
  [NetGso.TCPV4, [NetFeature.HOST_TSO4, NetFeature.GSO]],
  [NetGso.TCPV6, [NetFeature.HOST_TSO6, NetFeature.GSO]],
  [NetGso.UDP, [NetFeature.HOST_UFO, NetFeature.GSO]],
  [NetGso.UDP_L4, [NetFeature.HOST_USO]],
];

/** What became of a frame. */
enum Outcome {
  SENT = 0,
  MALFORMED = 1,
  /** The wire has no room for all of it. */
  WAITS = 2,
}

/** The transmitting half of a network device. */
export class NetTransmitter {
  readonly #parts: NetParts;
  readonly #headers = new Headers();
  readonly #segmenter = new NetSegmenter(this.#headers);
  readonly #fragmenter = new NetFragmenter(this.#headers);
  /** Of the next datagram that becomes fragments. */
  #identification = 0;
  readonly #queues: readonly TransmitQueue[];
  /** The frame in hand, behind its header: both are read at once. */
  readonly #bytes: Uint8Array;
  readonly #frame: Uint8Array;
  #header: Uint8Array;
  /** Pairs whose transmit queues the driver enabled. */
  pairs = 1;
  // What was accepted, while the driver runs.
  #running = false;
  #headerSize = 0;
  #sums = false;
  /** Values of NetGso. */
  #gsoTypes: ReadonlySet<number> = new Set();
  #untaggedMax = 0;
  #taggedMax = 0;

  constructor(parts: NetParts) {
    this.#parts = parts;
    this.#queues = Array.from({ length: parts.configuration.pairs }, (_, pair) => ({
      stalled: false,
      sent: 0,
      identification: 0,
      again: () => this.notified(pair),
    }));
    const most = Math.max(parts.backend.maxFrame, NET_GSO_FRAME_MAX + FRAGMENT_HEADER_SIZE);
    // Frames begin where a word begins.
    this.#bytes = new Uint8Array(NET_HEADER_HASH_SIZE + most);
    this.#frame = this.#bytes.subarray(NET_HEADER_HASH_SIZE);
    this.#header = this.#bytes.subarray(0, NET_HEADER_HASH_SIZE);
  }

  /** The driver runs with what it accepted. */
  start(): void {
    const { configuration, backend } = this.#parts;
    const size = configuration.headerSize;
    this.#running = true;
    this.#headerSize = size;
    this.#header = this.#bytes.subarray(NET_HEADER_HASH_SIZE - size, NET_HEADER_HASH_SIZE);
    this.#sums = configuration.has(NetFeature.CSUM);
    const permitted = gsoFeatures.filter(([, features]) =>
      features.some((bit) => configuration.has(bit)),
    );
    this.#gsoTypes = new Set(permitted.map(([type]) => type));
    const mtu = configuration.has(NetFeature.MTU) ? configuration.mtu : undefined;
    this.#untaggedMax = mtu === undefined ? backend.maxFrame : mtu + ETHERNET_HEADER_SIZE;
    this.#taggedMax = mtu === undefined ? backend.maxFrame : this.#untaggedMax + VLAN_TAG_SIZE;
  }

  /** The driver rang this pair's doorbell, or there is more to do. */
  notified(pair: number): void {
    const { host, coalescing, counters, rules } = this.#parts;
    const segments = counters.segments + SEGMENTS;
    const index = 2 * pair + 1;
    const queue = host.queue(index);
    const state = this.#queues[pair] as TransmitQueue;
    // A task of before a reset finds nothing settled yet.
    if (queue === null || state.stalled || !this.#running) return;
    if (pair >= this.pairs) {
      const chain = queue.take();
      if (chain !== null) queue.untake(chain);
      rules?.beyondPairs(pair, chain !== null);
      queue.enableNotify();
      return;
    }
    let count = 0;
    let more = true;
    while (more && count < BATCH && counters.segments < segments && !state.stalled) {
      const chain = queue.take();
      if (chain === null) {
        // Doorbells were asked for before the last look, so no chain is missed.
        more = queue.enableNotify();
        continue;
      }
      const outcome = this.#transmit(chain, pair, state);
      if (outcome === Outcome.WAITS) {
        queue.untake(chain);
        state.stalled = true;
        continue;
      }
      if (outcome === Outcome.MALFORMED) counters.malformed += 1;
      if (rules !== null) host.taken(queue, chain);
      queue.put(chain, 0);
      state.sent = 0;
      count += 1;
    }
    if (count > 0) coalescing.used(index, count);
    if (more && !state.stalled) host.tasks.enqueue(state.again);
  }

  /** The wire has room again. */
  ready(): void {
    for (const [pair, state] of this.#queues.entries()) {
      if (!state.stalled) continue;
      state.stalled = false;
      this.notified(pair);
    }
  }

  /** One frame. */
  #transmit(chain: DeviceChain, pair: number, state: TransmitQueue): Outcome {
    const { backend, counters, rules, steering } = this.#parts;
    const size = this.#headerSize;
    const header = this.#header;
    const bytes = this.#frame;
    const length = chain.readableLength - size;
    const fits = length >= ETHERNET_HEADER_SIZE && length <= bytes.length;
    const first = state.sent === 0;
    if (rules !== null && first) rules.transmitted.length(chain, size);
    if (!fits) return Outcome.MALFORMED;
    chain.read(0, this.#bytes, NET_HEADER_HASH_SIZE - size, NET_HEADER_HASH_SIZE + length);
    if (rules !== null && first) rules.transmitted.frame(header, bytes, length);
    // With one pair of queues there is nothing to learn.
    if (steering.pairs > 1 && this.#headers.parse(bytes, 0, length))
      steering.learn(this.#headers, bytes, 0, pair);
    const flags = header[NetHeader.FLAGS] as number;
    const partial = (flags & NetHeaderFlag.NEEDS_CSUM) !== 0;
    if (partial && !this.#sums) return Outcome.MALFORMED;
    const gso = (header[NetHeader.GSO_TYPE] as number) & ~NetGso.ECN;
    if (gso !== NetGso.NONE) {
      if (!this.#gsoTypes.has(gso) || !partial) return Outcome.MALFORMED;
      return this.#sendSegments(bytes, length, gso, state);
    }
    const tagged = get16(bytes, 12) === EtherType.VLAN;
    if (length > (tagged ? this.#taggedMax : this.#untaggedMax)) return Outcome.MALFORMED;
    if (partial) {
      const start = le16(header, NetHeader.CSUM_START);
      const offset = le16(header, NetHeader.CSUM_OFFSET);
      if (!completeChecksum(bytes, length, start, offset)) return Outcome.MALFORMED;
    }
    if (!backend.linkUp) {
      counters.unlinked += 1;
      return Outcome.SENT;
    }
    if (!backend.send(bytes, 0, length)) return Outcome.WAITS;
    counters.transmitted += 1;
    return Outcome.SENT;
  }

  /** A frame to be cut. The driver's hdr_len is not needed: the headers are looked at (§5.1.9.2.2). */
  #sendSegments(bytes: Uint8Array, length: number, gso: number, state: TransmitQueue): Outcome {
    const { backend, counters } = this.#parts;
    if (length > NET_GSO_FRAME_MAX || !this.#headers.parse(bytes, 0, length))
      return Outcome.MALFORMED;
    const cutter =
      gso === NetGso.UDP ? this.#beginFragments(bytes, state) : this.#beginSegments(bytes, gso);
    if (cutter === null) return Outcome.MALFORMED;
    if (!backend.linkUp) {
      counters.unlinked += 1;
      return Outcome.SENT;
    }
    for (let index = state.sent; index < cutter.count; index++) {
      cutter.make(index);
      if (!backend.send(bytes, cutter.offset, cutter.length)) {
        state.sent = index;
        return Outcome.WAITS;
      }
      counters.segments += 1;
    }
    counters.transmitted += 1;
    return Outcome.SENT;
  }

  #beginSegments(bytes: Uint8Array, gso: number): NetSegmenter | null {
    const size = le16(this.#header, NetHeader.GSO_SIZE);
    const segmenter = this.#segmenter;
    return segmenter.begin(bytes, gso, size, this.#parts.backend.maxFrame) ? segmenter : null;
  }

  #beginFragments(bytes: Uint8Array, state: TransmitQueue): NetFragmenter | null {
    // The rest of a datagram has the identification of what was sent of it.
    if (state.sent === 0) {
      state.identification = this.#identification;
      this.#identification += 1;
    }
    const size = le16(this.#header, NetHeader.GSO_SIZE);
    const { maxFrame } = this.#parts.backend;
    const fragmenter = this.#fragmenter;
    return fragmenter.begin(bytes, size, maxFrame, state.identification) ? fragmenter : null;
  }

  /** As after a reset of the device, or of one transmit queue. */
  reset(pair?: number): void {
    if (pair === undefined) {
      this.pairs = 1;
      this.#running = false;
    }
    for (const [index, state] of this.#queues.entries())
      if (pair === undefined || pair === index) Object.assign(state, { stalled: false, sent: 0 });
  }
}

const le16 = (bytes: Uint8Array, at: number): number =>
  (bytes[at] as number) | ((bytes[at + 1] as number) << 8);

// From the wire to the driver (virtio 1.4 §5.1.9.4): filter, queue, offloads, buffers.
import {
  NET_HEADER_HASH_SIZE,
  NET_HEADER_SIZE,
  NetFeature,
  NetHeader,
  NetHeaderFlag,
} from "@virtio/core/net";
import {
  ETHERNET_HEADER_SIZE,
  EtherType,
  get16,
  Headers,
  IpProtocol,
  pseudoSum4,
  pseudoSum6,
  put16,
  sum,
  VLAN_TAG_SIZE,
} from "@virtio/packets";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";
import type { NetBackend } from "../net-backend.js";
import type { NetRules } from "../rules/net-rules.js";
import type { NetCoalescing } from "./net-coalescing.js";
import type { NetConfiguration } from "./net-config.js";
import type { NetFilter } from "./net-filter.js";
import type { NetLies } from "./net-lies.js";
import { NetLro } from "./net-lro.js";
import type { Merged } from "./net-merged.js";
import type { NetCounters } from "./net-port.js";
import { NetReassembler } from "./net-reassembly.js";
import { isChecksumRight, TCP_CHECKSUM, UDP_CHECKSUM } from "./net-segments.js";
import type { NetSteering } from "./net-steering.js";

/** What both halves of a network device work with. */
export interface NetParts {
  readonly host: ModelHost;
  readonly backend: NetBackend;
  readonly configuration: NetConfiguration;
  readonly filter: NetFilter;
  readonly steering: NetSteering;
  readonly coalescing: NetCoalescing;
  readonly counters: NetCounters;
  readonly lies: NetLies;
  readonly rules: NetRules | null;
  /** See NetCharacteristics. */
  readonly partialChecksums: boolean;
}

/** A receive queue. */
interface ReceiveQueue {
  /** The queue, for the frames of one batch. */
  queue: DeviceQueue | null;
  /** It had no room for a frame: nothing is tried before its doorbell rings. */
  starved: boolean;
  /** Frames put into it that the driver was not told of. */
  frames: number;
}

/** The last word of a header: num_buffers is 1. */
const ONE_BUFFER = 0x1_0000;

/** The receiving half of a network device. */
export class NetReceiver {
  readonly #parts: NetParts;
  readonly #headers = new Headers();
  readonly #queues: readonly ReceiveQueue[];
  readonly #lro: NetLro;
  readonly #reassembler: NetReassembler;
  readonly #header = new Uint8Array(NET_HEADER_HASH_SIZE);
  readonly #lies: boolean;
  /** The header holds more than flags and the number of buffers. */
  #described = false;
  /** A frame that is changed before the driver gets it. */
  readonly #changed: Uint8Array;
  /** Buffers of the frame in hand. */
  readonly #chains: DeviceChain[] = [];
  /** The wire was refused a frame: it is told when there is room. */
  #refused = false;
  #flushing = false;
  readonly #flushTask = (): void => this.#flush();
  // What was accepted, while the driver runs.
  #running = false;
  #headerSize = 0;
  #mergeable = false;
  #reportsHash = false;
  #untaggedMax = 0;
  #taggedMax = 0;
  /** Checksums are looked at. */
  #sums = false;
  /** Frames are kept for others that belong to them. */
  #holding = false;

  constructor(parts: NetParts) {
    this.#parts = parts;
    this.#queues = Array.from({ length: parts.configuration.pairs }, () => ({
      queue: null,
      starved: false,
      frames: 0,
    }));
    this.#lies = Object.keys(parts.lies).length > 0;
    this.#lro = new NetLro((merged) => this.#pushMerged(merged));
    this.#reassembler = new NetReassembler({
      whole: (datagram) => this.#pushDatagram(datagram),
      fragment: ({ pair, hash, hashReport }, bytes, offset, length) => {
        this.#describe(0, hash, hashReport);
        return this.#push(pair, bytes, offset, length);
      },
    });
    this.#changed = new Uint8Array(parts.partialChecksums ? parts.backend.maxFrame : 0);
  }

  /** The driver runs with what it accepted. */
  start(): void {
    const { configuration, backend } = this.#parts;
    this.#headerSize = configuration.headerSize;
    this.#mergeable = configuration.has(NetFeature.MRG_RXBUF);
    this.#reportsHash = configuration.has(NetFeature.HASH_REPORT);
    const mtu = configuration.has(NetFeature.MTU) ? configuration.mtu : undefined;
    this.#untaggedMax = mtu === undefined ? backend.maxFrame : mtu + ETHERNET_HEADER_SIZE;
    this.#taggedMax = mtu === undefined ? backend.maxFrame : this.#untaggedMax + VLAN_TAG_SIZE;
    this.#running = true;
  }

  /** Switches what is done to received frames: words of bits of NetFeature. */
  setOffloads(offloads: readonly number[]): void {
    this.#flushHeld();
    this.#lro.setOffloads(offloads);
    this.#reassembler.setOffloads(offloads);
    this.#holding = this.#lro.on || this.#reassembler.on;
    this.#sums = hasBit(offloads, NetFeature.GUEST_CSUM);
  }

  /** A frame from the wire: see NetBackend. */
  deliver(bytes: Uint8Array, offset: number, length: number): boolean {
    const { backend, counters, filter, steering } = this.#parts;
    if (!backend.linkUp) return this.#refuse();
    if (!this.#running) {
      counters.undelivered += 1;
      return true;
    }
    if (length < ETHERNET_HEADER_SIZE || length > this.#longest(bytes, offset)) {
      counters.oversized += 1;
      return true;
    }
    if (!filter.passes(bytes, offset, length)) {
      counters.filtered += 1;
      return true;
    }
    const headers = this.#headers;
    const steers = steering.hashing || steering.pairs > 1;
    const whole = (steers || this.#sums) && headers.parse(bytes, offset, length);
    const pair = steers ? this.#choose(bytes, offset) : 0;
    if (pair < 0) {
      counters.undelivered += 1;
      return true;
    }
    if ((this.#queues[pair] as ReceiveQueue).starved) return this.#refuse();
    const valid = this.#sums && whole && isValid(headers, bytes, offset);
    if (this.#holding) {
      const taken = this.#hold(bytes, offset, length, pair, valid);
      if (taken === null) return this.#refuse();
      if (taken) return true;
    }
    const { value, report } = steering.hash;
    this.#describe(valid ? NetHeaderFlag.DATA_VALID : 0, value, report);
    if (!valid || !this.#parts.partialChecksums)
      return this.#push(pair, bytes, offset, length) || this.#refuse();
    this.#changed.set(bytes.subarray(offset, offset + length));
    this.#makePartial();
    return this.#push(pair, this.#changed, 0, length) || this.#refuse();
  }

  /** Keeps the frame whose headers were found for others that belong to it: see `offer` of both. */
  #hold(
    bytes: Uint8Array,
    offset: number,
    length: number,
    pair: number,
    valid: boolean,
  ): boolean | null {
    const headers = this.#headers;
    const { hash } = this.#parts.steering;
    this.#schedule();
    if (this.#reassembler.on) {
      const taken = this.#reassembler.offer(headers, bytes, offset, length, pair, hash);
      if (taken !== false) return taken;
    }
    return this.#lro.on && this.#lro.offer(headers, bytes, offset, pair, valid, hash);
  }

  #longest(bytes: Uint8Array, offset: number): number {
    return get16(bytes, offset + 12) === EtherType.VLAN ? this.#taggedMax : this.#untaggedMax;
  }

  #refuse(): false {
    this.#refused = true;
    return false;
  }

  /** The pair of queues for the frame whose headers were found; -1: none takes it. */
  #choose(bytes: Uint8Array, offset: number): number {
    const { host, steering } = this.#parts;
    if (steering.hashing) steering.hash.compute(this.#headers, bytes, offset);
    const chosen = steering.choose(this.#headers, bytes, offset);
    if (host.queue(2 * chosen) !== null) return chosen;
    // A queue that is being reset: with RSS the frame is dropped, else another queue takes it (§5.1.9.5.6.1, §5.1.9.5.7.3).
    if (steering.rss) return -1;
    for (let pair = 0; pair < steering.pairs; pair++)
      if (host.queue(2 * pair) !== null) return pair;
    return -1;
  }

  // ── the header of a frame ───────────────────────────────────────────────────

  /** Begins a header: all but the number of buffers. */
  #describe(flags: number, hash: number, hashReport: number): void {
    const header = this.#header;
    if (this.#described) header.fill(0);
    this.#described = this.#reportsHash;
    header[NetHeader.FLAGS] = flags;
    if (!this.#reportsHash) return;
    this.#putLe16(NetHeader.HASH_VALUE, hash & 0xffff);
    this.#putLe16(NetHeader.HASH_VALUE + 2, hash >>> 16);
    this.#putLe16(NetHeader.HASH_REPORT, hashReport);
  }

  #putLe16(at: number, value: number): void {
    this.#header[at] = value;
    this.#header[at + 1] = value >>> 8;
  }

  /** The checksum of `changed` is the pseudo header's, and the header says so. */
  #makePartial(): void {
    const { ip, l3, l4, protocol, end } = this.#headers;
    const bytes = this.#changed;
    const at = protocol === IpProtocol.TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
    const pseudo = ip === 4 ? pseudoSum4 : pseudoSum6;
    put16(bytes, l4 + at, pseudo(bytes, l3, protocol, end - l4));
    this.#described = true;
    this.#header[NetHeader.FLAGS] = NetHeaderFlag.NEEDS_CSUM;
    this.#putLe16(NetHeader.CSUM_START, l4);
    this.#putLe16(NetHeader.CSUM_OFFSET, at);
  }

  /** The same for a frame made of several. */
  #describeMerged({ l4, payload, gsoType, size, csumOffset, hash, hashReport }: Merged): void {
    this.#describe(NetHeaderFlag.NEEDS_CSUM, hash, hashReport);
    this.#described = true;
    this.#header[NetHeader.GSO_TYPE] = gsoType;
    this.#putLe16(NetHeader.HDR_LEN, payload);
    this.#putLe16(NetHeader.GSO_SIZE, size);
    this.#putLe16(NetHeader.CSUM_START, l4);
    this.#putLe16(NetHeader.CSUM_OFFSET, csumOffset);
  }

  #pushMerged(merged: Merged): boolean {
    const { segments, hash, hashReport } = merged;
    if (segments > 1) this.#describeMerged(merged);
    else this.#describe(NetHeaderFlag.DATA_VALID, hash, hashReport);
    if (!this.#push(merged.pair, merged.bytes, 0, merged.length)) return this.#refuse();
    if (segments > 1) this.#parts.counters.coalesced += segments;
    return true;
  }

  /** False: the driver is to get its fragments. */
  #pushDatagram(datagram: Merged): boolean {
    const { pair, bytes, length, segments } = datagram;
    if (!this.#hasRoom(pair, length)) return false;
    this.#describeMerged(datagram);
    this.#parts.counters.coalesced += segments;
    return this.#push(pair, bytes, 0, length);
  }

  // ── buffers ─────────────────────────────────────────────────────────────────

  /** Puts a frame and its header into the driver's buffers; false: there are not enough. */
  #push(pair: number, bytes: Uint8Array, offset: number, length: number): boolean {
    const { host, counters } = this.#parts;
    const state = this.#queues[pair] as ReceiveQueue;
    if (state.queue === null) {
      state.queue = host.queue(2 * pair);
      // It is forgotten when the batch is over.
      this.#schedule();
    }
    const { queue } = state;
    if (queue === null) {
      counters.undelivered += 1;
      return true;
    }
    const size = this.#headerSize;
    this.#parts.rules?.receiveQueue(pair);
    const chain = this.#take(queue, state);
    if (chain === null) return false;
    if (chain.writableLength < size + length) {
      if (this.#mergeable) return this.#pushMany(queue, state, chain, bytes, offset, length);
      // The buffer stays for a frame that fits.
      queue.untake(chain);
      counters.oversized += 1;
      return true;
    }
    // Nearly every header says flags and one buffer, and nothing else.
    const plain = !this.#described && !this.#lies && size === NET_HEADER_SIZE;
    if (!plain || !chain.writeWords(0, this.#header[NetHeader.FLAGS] as number, 0, ONE_BUFFER)) {
      this.#finishHeader(1);
      chain.write(0, this.#header, 0, size);
    }
    chain.write(size, bytes, offset, offset + length);
    this.#put(queue, chain, size + length);
    this.#delivered(state);
    return true;
  }

  /** Whether the buffers that there are now hold a frame of so many bytes. */
  #hasRoom(pair: number, length: number): boolean {
    const queue = this.#parts.host.queue(2 * pair);
    // Nobody is to get it.
    if (queue === null) return true;
    const chains = this.#chains;
    let needed = this.#headerSize + length;
    chains.length = 0;
    do {
      const chain = queue.take();
      if (chain === null) break;
      chains.push(chain);
      needed -= chain.writableLength;
    } while (needed > 0 && this.#mergeable && chains.length < queue.size);
    for (let last = chains.pop(); last !== undefined; last = chains.pop()) queue.untake(last);
    return needed <= 0;
  }

  /** A frame in several buffers, each but the last filled whole (§5.1.9.4.1). */
  #pushMany(
    queue: DeviceQueue,
    state: ReceiveQueue,
    first: DeviceChain,
    bytes: Uint8Array,
    offset: number,
    length: number,
  ): boolean {
    const chains = this.#chains;
    const size = this.#headerSize;
    const needed = size + length;
    chains.length = 0;
    let room = 0;
    let chain: DeviceChain | null = first;
    while (chain !== null) {
      chains.push(chain);
      room += chain.writableLength;
      if (room >= needed || chains.length === queue.size) break;
      chain = this.#take(queue, state);
    }
    if (room < needed) {
      for (let last = chains.pop(); last !== undefined; last = chains.pop()) queue.untake(last);
      // All of the queue's buffers together are too few: no wait helps.
      if (chain === null) return false;
      this.#parts.counters.oversized += 1;
      return true;
    }
    this.#finishHeader(chains.length);
    let at = 0;
    for (const part of chains) {
      const n = Math.min(part.writableLength, needed - at);
      const head = Math.min(n, Math.max(0, size - at));
      if (head > 0) part.write(0, this.#header, at, at + head);
      const from = offset + at + head - size;
      part.write(head, bytes, from, from + n - head);
      this.#put(queue, part, n);
      at += n;
    }
    this.#delivered(state);
    return true;
  }

  /** The next buffer; null: there is none, and a doorbell will tell of one. */
  #take(queue: DeviceQueue, state: ReceiveQueue): DeviceChain | null {
    const chain = queue.take();
    if (chain !== null) return chain;
    // Doorbells are asked for before the last look, so no buffer is missed.
    if (queue.enableNotify()) return queue.take() ?? this.#starve(state);
    return this.#starve(state);
  }

  #starve(state: ReceiveQueue): null {
    state.starved = true;
    return null;
  }

  #finishHeader(buffers: number): void {
    const { lies } = this.#parts;
    this.#putLe16(NetHeader.NUM_BUFFERS, lies.numBuffers?.(buffers) ?? buffers);
    if (lies.header === undefined) return;
    lies.header(this.#header);
    this.#described = true;
  }

  /** Gives a buffer back; the driver sees it when the batch is over, with all others of its frame. */
  #put(queue: DeviceQueue, chain: DeviceChain, length: number): void {
    const { host, rules, lies } = this.#parts;
    if (rules !== null) {
      host.taken(queue, chain);
      rules.receiveBuffer(chain);
    }
    const lie = this.#lies ? lies.usedLength?.(length) : undefined;
    queue.put(chain, lie === undefined ? length : Math.min(length, lie));
  }

  #delivered(state: ReceiveQueue): void {
    state.frames += 1;
    this.#parts.counters.received += 1;
    this.#schedule();
  }

  // ── batches ─────────────────────────────────────────────────────────────────

  /** At the end of what the lane has to do now, the driver sees what it got. */
  #schedule(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    this.#parts.host.tasks.enqueue(this.#flushTask);
  }

  #flush(): void {
    this.#flushing = false;
    this.#flushHeld();
    for (let pair = 0; pair < this.#queues.length; pair++) {
      const state = this.#queues[pair] as ReceiveQueue;
      state.queue = null;
      if (state.frames === 0) continue;
      this.#parts.coalescing.used(2 * pair, state.frames);
      state.frames = 0;
    }
  }

  /** What was kept for more of its kind goes to the driver as it is. */
  #flushHeld(): void {
    this.#lro.flush();
    this.#reassembler.flush();
  }

  /** The driver rang this pair's doorbell: there may be buffers. */
  notified(pair: number): void {
    const state = this.#queues[pair] as ReceiveQueue;
    state.starved = false;
    // While there are buffers no doorbell is needed.
    this.#parts.host.queue(2 * pair)?.disableNotify();
    this.#flushHeld();
    this.#schedule();
    this.room();
  }

  /** The wire may try again. */
  room(): void {
    if (!this.#refused) return;
    this.#refused = false;
    this.#parts.backend.room?.();
  }

  /** As after a reset of the device, or of one receive queue. */
  reset(pair?: number): void {
    if (pair === undefined) this.#running = false;
    this.#lro.reset(pair);
    this.#reassembler.reset(pair);
    for (const [index, state] of this.#queues.entries())
      if (pair === undefined || pair === index)
        Object.assign(state, { queue: null, starved: false, frames: 0 });
  }
}

/** Whether a whole frame's TCP or UDP checksum is there, and it and those before it are right (§5.1.9.4.1). */
function isValid(headers: Headers, bytes: Uint8Array, offset: number): boolean {
  const { ip, l3, l4, protocol, end, l4HeaderLength } = headers;
  if (l4 < 0 || l4HeaderLength === 0) return false;
  if (ip === 4 && sum(bytes, offset + l3, offset + l4) !== 0xffff) return false;
  return isChecksumRight(bytes, ip, protocol, offset + l3, offset + l4, offset + end);
}

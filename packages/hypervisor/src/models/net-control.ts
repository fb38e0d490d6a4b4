// The commands of the control queue (virtio 1.4 §5.1.9.5): every one is answered, bad ones with ERR.
import {
  MAC_SIZE,
  NetControlAck,
  NetControlClass,
  NetControlMac,
  NetControlMq,
  NetControlNotfCoal,
  NetControlRx,
  NetControlVlan,
  NetFeature,
} from "@virtio/core/net";
import type { DeviceChain } from "@virtio/ring";
import { withBits } from "../feature-words.js";
import { Direction } from "./net-coalescing.js";
import { HASH_KEY_SIZE, SUPPORTED_HASH_TYPES } from "./net-hash.js";
import type { NetParts } from "./net-receive.js";

/** Commands taken in one task. */
const BATCH = 16;
/** Longest command: a filter table of ten thousand addresses, or the largest indirection table. */
const COMMAND_MAX = 0x1_8000;
/** Bytes of class and command, before the data. */
const COMMAND_HEADER_SIZE = 2;
/** Bytes of the pair of coalescing parameters, and of what names a queue before them. */
const COALESCING_SIZE = 8;
const QUEUE_NAME_SIZE = 4;

/** Offloads of received frames that a driver can switch. */
const guestOffloads: readonly NetFeature[] = [
  NetFeature.GUEST_CSUM,
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_ECN,
  NetFeature.GUEST_UFO,
  NetFeature.GUEST_USO4,
  NetFeature.GUEST_USO6,
];

/** One command, as it was read. */
export interface NetCommand {
  readonly controlClass: number;
  readonly command: number;
  readonly data: DataView;
}

/** What commands do to the device's halves. */
export interface NetControlled {
  /** Words of bits of NetFeature. */
  setOffloads(offloads: readonly number[]): void;
  /** Pairs by which the driver may transmit. */
  setTransmitPairs(pairs: number): void;
}

/** The control queue's commands. */
export class NetControl {
  readonly #parts: NetParts;
  readonly #device: NetControlled;
  readonly #bytes = new Uint8Array(COMMAND_MAX);
  readonly #answer = new Uint8Array(1);
  #running = false;
  /** Offloads that the driver accepted: low word and high word. */
  #offloads: readonly number[] = [0, 0];

  constructor(parts: NetParts, device: NetControlled) {
    this.#parts = parts;
    this.#device = device;
  }

  /** The driver runs with what it accepted: all guest offloads of it are on (§5.1.9.5.9.1). */
  start(): void {
    const accepted = guestOffloads.filter((bit) => this.#parts.configuration.has(bit));
    this.#offloads = withBits([0, 0], accepted);
    this.#device.setOffloads(this.#offloads);
    this.#running = true;
  }

  /** As after a reset. */
  reset(): void {
    this.#running = false;
  }

  /** The driver rang the control queue's doorbell. */
  notified(index: number): void {
    const { host, counters, rules } = this.#parts;
    const queue = host.queue(index);
    // A task of before a reset finds nothing settled yet.
    if (queue === null || !this.#running) return;
    for (let n = 0; n < BATCH; n++) {
      const chain = queue.take();
      if (chain !== null) {
        host.taken(queue, chain);
        rules?.controlChain(chain);
        counters.commands += 1;
        const written = this.#answerTo(chain);
        if (written !== null) queue.put(chain, written);
      } else if (!queue.enableNotify()) {
        host.used(index);
        return;
      }
    }
    host.used(index);
    host.tasks.enqueue(() => this.notified(index));
  }

  /** Executes a chain; returns bytes written, or null when it is never answered. */
  #answerTo(chain: DeviceChain): number | null {
    const { counters, lies } = this.#parts;
    const at = chain.writableLength - 1;
    const length = chain.read(0, this.#bytes);
    // No room for an answer, or more than any command has: nothing is done.
    const fits = length >= COMMAND_HEADER_SIZE && chain.readableLength === length && at >= 0;
    const [controlClass = 0, command = 0] = this.#bytes;
    const { buffer } = this.#bytes;
    const data = new DataView(buffer, COMMAND_HEADER_SIZE, fits ? length - COMMAND_HEADER_SIZE : 0);
    const done = fits && this.#execute({ controlClass, command, data }, chain);
    if (!done) counters.refused += 1;
    if (at < 0) return 0;
    const honest = done ? NetControlAck.OK : NetControlAck.ERR;
    const ack = lies.ack === undefined ? honest : lies.ack(controlClass, command, honest);
    if (ack === null) return null;
    // used.len counts from the first writable byte: what comes before the answer was written, or is cleared now (§2.7.8.2).
    if (!done) chain.fill(0, at);
    this.#answer[0] = ack;
    chain.write(at, this.#answer);
    return chain.writableLength;
  }

  /** Whether it was done. */
  #execute(command: NetCommand, chain: DeviceChain): boolean {
    const { rules } = this.#parts;
    rules?.command(command);
    switch (command.controlClass) {
      case NetControlClass.RX:
        return this.#setMode(command);
      case NetControlClass.MAC:
        return this.#has(NetFeature.CTRL_RX) || this.#has(NetFeature.CTRL_MAC_ADDR)
          ? this.#setAddresses(command)
          : false;
      case NetControlClass.VLAN:
        return this.#has(NetFeature.CTRL_VLAN) && this.#setVlan(command);
      case NetControlClass.ANNOUNCE:
        return this.#has(NetFeature.GUEST_ANNOUNCE) && this.#acknowledge(command);
      case NetControlClass.MQ:
        return this.#setSteering(command);
      case NetControlClass.GUEST_OFFLOADS:
        return this.#has(NetFeature.CTRL_GUEST_OFFLOADS) && this.#setOffloads(command);
      case NetControlClass.NOTF_COAL:
        return this.#setCoalescing(command, chain);
      default:
        return false;
    }
  }

  #has(bit: NetFeature): boolean {
    return this.#parts.configuration.has(bit);
  }

  // ── receive filter (§5.1.9.5.1 to §5.1.9.5.3) ───────────────────────────────

  #setMode({ command, data }: NetCommand): boolean {
    const extra = command > NetControlRx.ALLMULTI;
    if (command > NetControlRx.NOBCAST || data.byteLength !== 1) return false;
    if (!this.#has(extra ? NetFeature.CTRL_RX_EXTRA : NetFeature.CTRL_RX)) return false;
    const on = data.getUint8(0);
    if (on > 1) return false;
    this.#parts.filter.setMode(command, on === 1);
    return true;
  }

  #setAddresses({ command, data }: NetCommand): boolean {
    const { configuration, filter } = this.#parts;
    if (command === NetControlMac.ADDR_SET) {
      if (!this.#has(NetFeature.CTRL_MAC_ADDR) || data.byteLength !== MAC_SIZE) return false;
      // An address of one station.
      if ((data.getUint8(0) & 1) !== 0) return false;
      for (let i = 0; i < MAC_SIZE; i++) configuration.mac[i] = data.getUint8(i);
      return true;
    }
    if (command !== NetControlMac.TABLE_SET || !this.#has(NetFeature.CTRL_RX)) return false;
    const tables = macTables(data);
    if (tables === null) return false;
    const { unicast, multicast } = tables;
    const bytes = this.#bytes;
    filter.unicast.set(bytes, COMMAND_HEADER_SIZE + 4, unicast);
    filter.multicast.set(bytes, COMMAND_HEADER_SIZE + 8 + unicast * MAC_SIZE, multicast);
    return true;
  }

  #setVlan({ command, data }: NetCommand): boolean {
    if (command > NetControlVlan.DEL || data.byteLength !== 2) return false;
    const id = data.getUint16(0, true);
    if (id > 0xfff) return false;
    this.#parts.filter.setVlan(id, command === NetControlVlan.ADD);
    return true;
  }

  /** S_ANNOUNCE is clear before the answer is seen (§5.1.9.5.4.2). */
  #acknowledge({ command, data }: NetCommand): boolean {
    if (command !== 0 || data.byteLength !== 0) return false;
    this.#parts.configuration.announcing = false;
    return true;
  }

  // ── steering and hashes (§5.1.9.5.5 to §5.1.9.5.7) ──────────────────────────

  #setSteering(command: NetCommand): boolean {
    switch (command.command) {
      case NetControlMq.VQ_PAIRS_SET:
        return this.#has(NetFeature.MQ) && this.#setPairs(command.data);
      case NetControlMq.RSS_CONFIG:
        return this.#has(NetFeature.RSS) && this.#setRss(command.data);
      case NetControlMq.HASH_CONFIG:
        return this.#has(NetFeature.HASH_REPORT) && this.#setHash(command.data);
      default:
        return false;
    }
  }

  #setPairs(data: DataView): boolean {
    const { configuration, steering } = this.#parts;
    if (data.byteLength !== 2) return false;
    const pairs = data.getUint16(0, true);
    if (pairs < 1 || pairs > configuration.maxPairs) return false;
    steering.setPairs(pairs);
    this.#device.setTransmitPairs(pairs);
    return true;
  }

  #setRss(data: DataView): boolean {
    const { configuration, steering } = this.#parts;
    const rss = rssOf(data);
    if (rss === null || rss.table.length > configuration.indirectionTable) return false;
    const { types, table, unclassified, transmitPairs, key } = rss;
    const pairs = configuration.maxPairs;
    if ([...table, unclassified].some((pair) => pair >= pairs)) return false;
    if (transmitPairs < 1 || transmitPairs > pairs || !this.#setKey(types, key)) return false;
    steering.setTable(table, unclassified, pairs);
    steering.hashing = true;
    this.#device.setTransmitPairs(transmitPairs);
    return true;
  }

  #setHash(data: DataView): boolean {
    if (data.byteLength < 13 || data.byteLength !== 13 + data.getUint8(12)) return false;
    const key = new Uint8Array(data.buffer, data.byteOffset + 13, data.getUint8(12));
    if (!this.#setKey(data.getUint32(0, true), key)) return false;
    const { steering } = this.#parts;
    steering.hashing = steering.hash.types !== 0 || steering.rss;
    return true;
  }

  #setKey(types: number, key: Uint8Array): boolean {
    const { hash } = this.#parts.steering;
    if ((types & ~SUPPORTED_HASH_TYPES) !== 0 || key.length > HASH_KEY_SIZE) return false;
    hash.setKey(key);
    hash.types = types;
    return true;
  }

  // ── offloads and notifications (§5.1.9.5.9, §5.1.9.5.10) ────────────────────

  #setOffloads({ command, data }: NetCommand): boolean {
    if (command !== 0 || data.byteLength !== 8) return false;
    const wanted = [data.getUint32(0, true), data.getUint32(4, true)];
    if (wanted.some((word, i) => (word & ~(this.#offloads[i] as number)) !== 0)) return false;
    this.#device.setOffloads(wanted);
    return true;
  }

  #setCoalescing({ command, data }: NetCommand, chain: DeviceChain): boolean {
    const { coalescing } = this.#parts;
    const all = command === NetControlNotfCoal.TX_SET || command === NetControlNotfCoal.RX_SET;
    if (!this.#has(all ? NetFeature.NOTF_COAL : NetFeature.VQ_NOTF_COAL)) return false;
    if (all) {
      if (data.byteLength !== COALESCING_SIZE) return false;
      const direction =
        command === NetControlNotfCoal.TX_SET ? Direction.TRANSMIT : Direction.RECEIVE;
      coalescing.setAll(direction, data.getUint32(0, true), data.getUint32(4, true));
      return true;
    }
    const get = command === NetControlNotfCoal.VQ_GET;
    if (!get && command !== NetControlNotfCoal.VQ_SET) return false;
    if (data.byteLength < QUEUE_NAME_SIZE) return false;
    const queue = data.getUint16(0, true);
    if (!this.#isEnabled(queue)) return false;
    if (get) return this.#readCoalescing(queue, chain);
    if (data.byteLength !== QUEUE_NAME_SIZE + COALESCING_SIZE) return false;
    coalescing.set(queue, data.getUint32(4, true), data.getUint32(8, true));
    return true;
  }

  /** Whether it is a receive or transmit queue that is enabled. */
  #isEnabled(queue: number): boolean {
    const { host, configuration } = this.#parts;
    return queue < 2 * configuration.maxPairs && host.queue(queue) !== null;
  }

  /** The parameters stand before the answer. */
  #readCoalescing(queue: number, chain: DeviceChain): boolean {
    if (chain.writableLength !== COALESCING_SIZE + 1) return false;
    const { maxPackets, maxMicroseconds } = this.#parts.coalescing.get(queue);
    const result = new DataView(new ArrayBuffer(COALESCING_SIZE));
    result.setUint32(0, maxPackets, true);
    result.setUint32(4, maxMicroseconds, true);
    chain.write(0, new Uint8Array(result.buffer));
    return true;
  }
}

/** How many addresses of each kind MAC_TABLE_SET has; null when its length is not theirs. */
export function macTables(data: DataView): { unicast: number; multicast: number } | null {
  if (data.byteLength < 8) return null;
  const unicast = data.getUint32(0, true);
  const second = 4 + unicast * MAC_SIZE;
  if (second + 4 > data.byteLength) return null;
  const multicast = data.getUint32(second, true);
  return data.byteLength === second + 4 + multicast * MAC_SIZE ? { unicast, multicast } : null;
}

/** RSS_CONFIG's data. */
export interface RssParameters {
  readonly types: number;
  /** Pairs. */
  readonly table: Uint16Array;
  readonly unclassified: number;
  readonly transmitPairs: number;
  readonly key: Uint8Array;
}

/** struct virtio_net_rss_config (§5.1.9.5.7.1); null when the length is not its own, or the table no power of two. */
export function rssOf(data: DataView): RssParameters | null {
  if (data.byteLength < 8) return null;
  const entries = data.getUint16(4, true) + 1;
  const behind = 8 + 2 * entries;
  if ((entries & (entries - 1)) !== 0 || behind + 3 > data.byteLength) return null;
  const keyLength = data.getUint8(behind + 2);
  if (data.byteLength !== behind + 3 + keyLength) return null;
  return {
    types: data.getUint32(0, true),
    unclassified: data.getUint16(6, true),
    table: Uint16Array.from({ length: entries }, (_, i) => data.getUint16(8 + 2 * i, true)),
    transmitPairs: data.getUint16(behind, true),
    key: new Uint8Array(data.buffer, data.byteOffset + behind + 3, keyLength),
  };
}

// What is said to the device on the control queue (virtio 1.4 §5.1.9.5), as bytes.
import type { Coalescing } from "@virtio/core";
import {
  NetControlAnnounce,
  NetControlClass,
  NetControlGuestOffloads,
  NetControlMac,
  NetControlMq,
  NetControlNotfCoal,
  NetControlRx,
  NetControlVlan,
  NetHash,
} from "@virtio/core/net";
import type { ControlQueue } from "./control-queue.js";
import type { MacTables } from "./filters.js";
import type { HashLimits } from "./settle.js";

/** Most entries of a table of queues. */
const TABLE_MAX = 128;

/** Flows that are told apart. */
const hashTypes =
  (1 << NetHash.IPV4) |
  (1 << NetHash.TCPV4) |
  (1 << NetHash.UDPV4) |
  (1 << NetHash.IPV6) |
  (1 << NetHash.TCPV6) |
  (1 << NetHash.UDPV6);

/** Of the Toeplitz hash: 6d5a over and over, by which both directions of a flow have one hash. */
const hashKey = Uint8Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? 0x6d : 0x5a));

/** Little-endian words; on the legacy interface they are the guest's, which is little-endian too (§5.1.9.5). */
function words(width: 2 | 4, ...values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(width * values.length);
  const view = new DataView(bytes.buffer);
  for (const [i, value] of values.entries())
    if (width === 2) view.setUint16(2 * i, value, true);
    else view.setUint32(4 * i, value, true);
  return bytes;
}

/** Commands. Each rejects with IO (refused), TIMED_OUT, or what broke the queue. */
export class Commands {
  readonly #queue: ControlQueue;

  constructor(queue: ControlQueue) {
    this.#queue = queue;
  }

  promiscuous(on: boolean): Promise<void> {
    return this.#mode(NetControlRx.PROMISC, on);
  }

  allMulticast(on: boolean): Promise<void> {
    return this.#mode(NetControlRx.ALLMULTI, on);
  }

  #mode(command: NetControlRx, on: boolean): Promise<void> {
    return this.#queue.command(NetControlClass.RX, command, Uint8Array.of(on ? 1 : 0));
  }

  macTables({ unicast, multicast }: MacTables): Promise<void> {
    return this.#queue.command(NetControlClass.MAC, NetControlMac.TABLE_SET, unicast, multicast);
  }

  mac(address: Uint8Array): Promise<void> {
    return this.#queue.command(NetControlClass.MAC, NetControlMac.ADDR_SET, address);
  }

  vlan(id: number, on: boolean): Promise<void> {
    const command = on ? NetControlVlan.ADD : NetControlVlan.DEL;
    return this.#queue.command(NetControlClass.VLAN, command, words(2, id));
  }

  ackAnnounce(): Promise<void> {
    return this.#queue.command(NetControlClass.ANNOUNCE, NetControlAnnounce.ACK);
  }

  pairs(count: number): Promise<void> {
    return this.#queue.command(NetControlClass.MQ, NetControlMq.VQ_PAIRS_SET, words(2, count));
  }

  /**
   * Receive-side scaling: enables so many pairs, and spreads flows over them (§5.1.9.5.7).
   * @param limits - of a device with RSS; its table has an entry at least
   */
  rss(count: number, { keySize, tableLength, types }: HashLimits): Promise<void> {
    const length = 2 ** Math.floor(Math.log2(Math.min(TABLE_MAX, tableLength)));
    const table = Array.from({ length }, (_, i) => i % count);
    const key = hashKey.subarray(0, keySize);
    const data = Uint8Array.from([
      ...words(4, (types & hashTypes) >>> 0),
      // Mask, the queue of frames without a hash, the table, and pairs to transmit on.
      ...words(2, length - 1, 0, ...table, count),
      key.length,
      ...key,
    ]);
    return this.#queue.command(NetControlClass.MQ, NetControlMq.RSS_CONFIG, data);
  }

  /** Hash reports without receive-side scaling (§5.1.9.5.6.4). */
  hashReports({ keySize, types }: HashLimits): Promise<void> {
    const key = hashKey.subarray(0, keySize);
    const data = Uint8Array.from([
      ...words(4, (types & hashTypes) >>> 0),
      ...words(2, 0, 0, 0, 0),
      key.length,
      ...key,
    ]);
    return this.#queue.command(NetControlClass.MQ, NetControlMq.HASH_CONFIG, data);
  }

  /** @param offloads - feature bits, low word and high word */
  guestOffloads(offloads: readonly [number, number]): Promise<void> {
    const set = NetControlGuestOffloads.SET;
    return this.#queue.command(NetControlClass.GUEST_OFFLOADS, set, words(4, ...offloads));
  }

  coalescing(direction: "receive" | "transmit", coalescing: Coalescing): Promise<void> {
    const { RX_SET, TX_SET } = NetControlNotfCoal;
    const { maxPackets, maxMicroseconds } = coalescing;
    return this.#queue.command(
      NetControlClass.NOTF_COAL,
      direction === "receive" ? RX_SET : TX_SET,
      words(4, maxPackets, maxMicroseconds),
    );
  }
}

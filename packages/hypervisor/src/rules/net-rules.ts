// Rules that a network device sees: virtio 1.4 §5.1.4 to §5.1.9.
import { ReservedFeature } from "@virtio/core";
import {
  MAC_SIZE,
  NetConfig,
  NetControlClass,
  NetControlMac,
  NetControlMq,
  NetControlNotfCoal,
  NetControlRx,
  NetFeature,
  NetStatus,
} from "@virtio/core/net";
import { ETHERNET_HEADER_SIZE } from "@virtio/packets";
import type { DeviceChain } from "@virtio/ring";
import { macTables, type NetCommand, rssOf } from "../models/net-control.js";
import { SUPPORTED_HASH_TYPES } from "../models/net-hash.js";
import { NetChecker, type NetRulesOptions } from "./net-checker.js";
import { NetTransmitRules } from "./net-transmit-rules.js";

/** Largest VLAN identifier (IEEE 802.1Q). */
const VLAN_ID_MAX = 4095;

/** Smallest receive buffers without MRG_RXBUF and segments (§5.1.9.3.1). */
const BUFFER_MIN = 1526;

/** The same with segments, without HASH_REPORT and with it. */
const WHOLE_BUFFER_MIN = [65_601, 65_609] as const;
const receiveSegments = [
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_UFO,
  NetFeature.GUEST_USO4,
  NetFeature.GUEST_USO6,
];

/** Classes of commands of features that are not offered here (§5.1.9.4.4.5, §5.1.9.5.8.4). */
const HASH_TUNNEL_CLASS = 7;
const RSS_CONTEXT_CLASS = 9;

/** Commands that need a feature: the clause, the class, first and last command, and the feature; null: it is never offered. */
const gatedCommands: readonly (readonly [
  clause: string,
  controlClass: number,
  first: number,
  last: number,
  feature: NetFeature | null,
])[] = [
  ["NET-CTRL-RX-1", NetControlClass.RX, 0, NetControlRx.ALLMULTI, NetFeature.CTRL_RX],
  ["NET-CTRL-RX-2", NetControlClass.RX, NetControlRx.ALLMULTI + 1, 255, NetFeature.CTRL_RX_EXTRA],
  ["NET-CTRL-MAC-1", NetControlClass.MAC, 0, 255, NetFeature.CTRL_RX],
  [
    "NET-RSS-1",
    NetControlClass.MQ,
    NetControlMq.RSS_CONFIG,
    NetControlMq.RSS_CONFIG,
    NetFeature.RSS,
  ],
  ["NET-COAL-2", NetControlClass.NOTF_COAL, 0, NetControlNotfCoal.RX_SET, NetFeature.NOTF_COAL],
  [
    "NET-COAL-3",
    NetControlClass.NOTF_COAL,
    NetControlNotfCoal.RX_SET + 1,
    255,
    NetFeature.VQ_NOTF_COAL,
  ],
  ["NET-INNERHASH-1", HASH_TUNNEL_CLASS, 0, 255, null],
  ["NET-RSSCTX-1", RSS_CONTEXT_CLASS, 0, 255, null],
];

/** Watches one network driver. */
export class NetRules {
  /** Those of transmitted frames. */
  readonly transmitted: NetTransmitRules;
  readonly #options: NetRulesOptions;
  readonly #checker: NetChecker;
  /** The driver sent VQ_PAIRS_SET or RSS_CONFIG. */
  #pairsSet = false;
  /** Receive queues whose buffers were looked at. */
  #supplied = new Set<number>();
  /** The driver was told to announce itself, and has read so. */
  #announcing: "no" | "told" | "read" = "no";

  constructor(options: NetRulesOptions) {
    this.#options = options;
    this.#checker = new NetChecker(options);
    this.transmitted = new NetTransmitRules(this.#checker);
  }

  // ── negotiation and configuration (§5.1.4) ──────────────────────────────────

  /** The driver runs with what it accepted. */
  start(): void {
    const { offered } = this.#options.configuration;
    for (const [clause, bit] of [
      ["NET-CFG-2", NetFeature.MAC],
      ["NET-CFG-7", NetFeature.MTU],
      ["NET-TX-44", NetFeature.GUEST_HDRLEN],
    ] as const)
      if (offered.includes(bit))
        this.#checker.check(
          clause,
          this.#checker.has(bit),
          () => `${NetFeature[bit]} was not accepted`,
        );
    for (const [clause, bit] of [
      ["NET-CFG-13", NetFeature.HASH_REPORT],
      ["NET-CFG-14", NetFeature.CTRL_RX_EXTRA],
    ] as const)
      this.#checker.check(
        clause,
        !this.#checker.has(bit) || this.#checker.has(NetFeature.CTRL_VQ),
        () => `${NetFeature[bit]} was accepted without CTRL_VQ`,
      );
  }

  configWrite(offset: number): void {
    if (!this.#checker.has(ReservedFeature.VERSION_1)) return;
    this.#checker.check("NET-CFG-1", false, () => `configuration offset ${offset} was written`);
  }

  configRead(offset: number, width: number): void {
    const [status] = NetConfig.status;
    if (this.#announcing === "told" && offset <= status && offset + width > status)
      this.#announcing = "read";
  }

  /** S_ANNOUNCE was set. */
  announcing(): void {
    this.#announcing = "told";
  }

  /** The device is reset. */
  reset(): void {
    // A driver that did nothing wrong until the end is shown to have kept it.
    if (this.#pairsSet || this.#supplied.size > 0) this.#checker.check("NET-CFG-1", true, () => "");
    this.#announceEnds(false);
    this.#pairsSet = false;
    this.#supplied.clear();
  }

  #announceEnds(acknowledged: boolean): void {
    if (this.#announcing === "read" || acknowledged)
      this.#checker.check(
        "NET-ANNOUNCE-2",
        acknowledged,
        () => `status ${NetStatus.ANNOUNCE} was read and never acknowledged`,
      );
    this.#announcing = "no";
  }

  // ── queues and receive buffers (§5.1.9.3.1, §5.1.9.5.6) ─────────────────────

  /** A doorbell of a transmit queue that is not enabled; `queued`: buffers are in it. */
  beyondPairs(pair: number, queued: boolean): void {
    if (!queued) return;
    this.#checker.check(
      this.#pairsSet ? "NET-MQ-4" : "NET-MQ-3",
      false,
      () => `transmit queue ${pair + 1} is used, and was not enabled`,
    );
  }

  /** The device is about to use the queue: whether the driver supplied enough. Undoes what it takes. */
  receiveQueue(pair: number): void {
    if (this.#supplied.has(pair)) return;
    const { host, configuration } = this.#options;
    const queue = host.queue(2 * pair);
    if (queue === null) return;
    const { headerSize, mtu } = configuration;
    const mergeable = this.#checker.has(NetFeature.MRG_RXBUF);
    const chains: DeviceChain[] = [];
    for (let chain = queue.take(); chain !== null; chain = queue.take()) chains.push(chain);
    const lengths = chains.map(({ writableLength }) => writableLength);
    for (const chain of chains.toReversed()) queue.untake(chain);
    if (lengths.length === 0) return;
    this.#supplied.add(pair);
    const room = mergeable ? lengths.reduce((sum, n) => sum + n, 0) : Math.min(...lengths);
    if (mtu === undefined || !this.#checker.has(NetFeature.MTU)) return;
    const needed = mtu + ETHERNET_HEADER_SIZE + headerSize;
    this.#checker.check("NET-CFG-8", room >= needed, () => `room for ${room} bytes of ${needed}`);
  }

  /** A receive buffer was taken for use. */
  receiveBuffer(chain: DeviceChain): void {
    const { headerSize } = this.#options.configuration;
    const { writableLength } = chain;
    const is = (): string => `a receive buffer of ${writableLength} bytes`;
    if (this.#checker.has(NetFeature.MRG_RXBUF))
      this.#checker.check("NET-RXBUF-3", writableLength >= headerSize, is);
    else if (receiveSegments.some((bit) => this.#checker.has(bit)))
      this.#checker.check(
        "NET-RXBUF-1",
        writableLength >= WHOLE_BUFFER_MIN[this.#checker.has(NetFeature.HASH_REPORT) ? 1 : 0],
        is,
      );
    else this.#checker.check("NET-RXBUF-2", writableLength >= BUFFER_MIN, is);
    if (!this.#checker.legacyFraming) return;
    const [first] = chain.writablePieces(0, writableLength);
    this.#checker.check(
      "NET-FRAME-LEGACY-1",
      this.#checker.has(NetFeature.MRG_RXBUF) || first?.length === headerSize,
      () => `${first?.length} bytes in the descriptor of the header (no ANY_LAYOUT)`,
    );
  }

  // ── commands (§5.1.9.5) ─────────────────────────────────────────────────────

  /** A chain of the control queue was taken. */
  controlChain(chain: DeviceChain): void {
    if (!this.#checker.legacyFraming) return;
    const readable = chain.readablePieces(0, chain.readableLength);
    const writable = chain.writablePieces(0, chain.writableLength);
    const lengths = readable.map(({ length }) => length);
    const is = (): string => `a command in ${lengths.join(", ")} bytes (no ANY_LAYOUT)`;
    this.#checker.check("NET-FRAME-LEGACY-2", lengths[0] === 2, is);
    const head = new Uint8Array(2);
    chain.read(0, head);
    const table = head[0] === NetControlClass.MAC && head[1] === NetControlMac.TABLE_SET;
    this.#checker.check(
      table ? "NET-FRAME-LEGACY-4" : "NET-FRAME-LEGACY-3",
      table ? lengths.length === 3 : lengths.length <= 2,
      is,
    );
    this.#checker.check("NET-FRAME-LEGACY-5", writable.at(-1)?.length === 1, is);
  }

  /** One command, before it is executed. */
  command(command: NetCommand): void {
    this.#checkFeature(command);
    switch (command.controlClass) {
      case NetControlClass.MAC:
        if (command.command === NetControlMac.TABLE_SET) this.#checkTable(command);
        return;
      case NetControlClass.VLAN:
        this.#checkVlan(command);
        return;
      case NetControlClass.ANNOUNCE:
        this.#announceEnds(true);
        return;
      case NetControlClass.MQ:
        this.#checkSteering(command);
        return;
      case NetControlClass.GUEST_OFFLOADS:
        this.#checkOffloads(command);
        return;
      case NetControlClass.NOTF_COAL:
        this.#checkCoalescing(command);
        return;
      default:
    }
  }

  #checkFeature({ controlClass, command }: NetCommand): void {
    for (const [clause, gated, first, last, feature] of gatedCommands) {
      const needed = controlClass === gated && command >= first && command <= last;
      this.#checker.check(
        clause,
        !needed || (feature !== null && this.#checker.has(feature)),
        () => `class ${controlClass} command ${command} without its feature`,
      );
    }
  }

  /** Both tables are there, unicast addresses in the first, groups in the second. */
  #checkTable({ data }: NetCommand): void {
    const tables = macTables(data);
    const kind = (from: number, count: number, group: number): boolean =>
      Array.from({ length: count }, (_, i) => data.getUint8(from + i * MAC_SIZE) & 1).every(
        (bit) => bit === group,
      );
    this.#checker.check(
      "NET-CTRL-MAC-3",
      tables !== null &&
        kind(4, tables.unicast, 0) &&
        kind(8 + tables.unicast * MAC_SIZE, tables.multicast, 1),
      () => `a table of ${data.byteLength} bytes`,
    );
    if (this.#checker.legacy && data.byteLength >= 4)
      this.#checker.check(
        "NET-CTRL-MAC-LEGACY-1",
        data.getUint32(0, true) * MAC_SIZE < data.byteLength,
        () => `${data.getUint32(0, true)} addresses in ${data.byteLength} bytes`,
      );
  }

  #checkVlan({ data }: NetCommand): void {
    if (!this.#checker.legacy || data.byteLength < 2) return;
    const id = data.getUint16(0, true);
    this.#checker.check("NET-VLAN-LEGACY-1", id <= VLAN_ID_MAX, () => `VLAN ${id}`);
  }

  #checkSteering({ command, data }: NetCommand): void {
    const { maxPairs } = this.#options.configuration;
    if (command === NetControlMq.RSS_CONFIG) this.#checkRss(data);
    if (command === NetControlMq.HASH_CONFIG)
      this.#checker.check(
        "NET-HASHCFG-1",
        data.byteLength >= 12 && data.getUint32(4, true) === 0 && data.getUint32(8, true) === 0,
        () => "reserved fields of HASH_CONFIG are not 0",
      );
    if (command !== NetControlMq.VQ_PAIRS_SET || data.byteLength < 2) return;
    const pairs = data.getUint16(0, true);
    const possible = pairs >= 1 && pairs <= maxPairs;
    const is = (): string => `${pairs} pairs of ${maxPairs}`;
    this.#checker.check("NET-MQ-2", possible, is);
    if (this.#checker.legacy) this.#checker.check("NET-MQ-LEGACY-1", possible, is);
    if (!possible) return;
    this.#checkEnabled("NET-MQ-1", pairs);
    if (!this.#pairsSet) {
      this.#checkSupplied(pairs);
      this.#checker.check("NET-MQ-3", true, () => "");
    } else this.#checker.check("NET-MQ-4", true, () => "");
    this.#pairsSet = true;
  }

  #checkEnabled(clause: string, pairs: number): void {
    const { host } = this.#options;
    const missing = Array.from({ length: 2 * pairs }, (_, i) => i).find(
      (index) => host.queue(index) === null,
    );
    this.#checker.check(clause, missing === undefined, () => `queue ${missing} is not enabled`);
  }

  /** Every receive queue that is to be used has buffers; those of the first may be used up by now. */
  #checkSupplied(pairs: number): void {
    const { host } = this.#options;
    const empty = Array.from({ length: pairs - 1 }, (_, i) => i + 1).find((pair) => {
      const queue = host.queue(2 * pair);
      const chain = queue?.take() ?? null;
      if (chain !== null) queue?.untake(chain);
      return chain === null;
    });
    this.#checker.check(
      "NET-RXBUF-5",
      empty === undefined,
      () => `receive queue ${empty} has no buffer, and is to be used`,
    );
  }

  #checkRss(data: DataView): void {
    const { host, configuration } = this.#options;
    const types = data.byteLength >= 4 ? data.getUint32(0, true) : 0;
    this.#checker.check(
      "NET-RSS-5",
      (types & ~SUPPORTED_HASH_TYPES) === 0,
      () => `hash types ${types} of ${SUPPORTED_HASH_TYPES}`,
    );
    const entries = data.byteLength >= 6 ? data.getUint16(4, true) + 1 : 0;
    this.#checker.check("NET-RSS-3", isPowerOf2(entries), () => `${entries} entries`);
    const most = configuration.indirectionTable;
    this.#checker.check("NET-RSS-4", entries <= most, () => `${entries} entries of ${most}`);
    const rss = rssOf(data);
    if (rss === null) return;
    const bad = rss.table.find(
      (pair) => pair >= configuration.maxPairs || host.queue(2 * pair) === null,
    );
    this.#checker.check(
      "NET-RSS-2",
      bad === undefined,
      () => `receive queue ${bad} is not enabled`,
    );
    this.#pairsSet = true;
  }

  #checkOffloads({ data }: NetCommand): void {
    if (data.byteLength !== 8) return;
    const bits = Array.from({ length: 64 }, (_, bit) => bit);
    const extra = bits.find(
      (bit) =>
        (data.getUint32(bit < 32 ? 0 : 4, true) & (1 << (bit & 31))) !== 0 &&
        !this.#checker.has(bit),
    );
    const is = (): string => `offload ${extra} was not negotiated`;
    this.#checker.check("NET-OFFLOAD-1", extra === undefined, is);
    if (this.#checker.legacy) this.#checker.check("NET-OFFLOAD-LEGACY-1", extra === undefined, is);
  }

  #checkCoalescing({ command, data }: NetCommand): void {
    if (command <= NetControlNotfCoal.RX_SET || data.byteLength < 2) return;
    const { host, configuration } = this.#options;
    const queue = data.getUint16(0, true);
    this.#checker.check(
      "NET-COAL-1",
      queue < 2 * configuration.maxPairs && host.queue(queue) !== null,
      () => `queue ${queue} is no receive or transmit queue that is enabled`,
    );
  }
}

const isPowerOf2 = (n: number): boolean => n > 0 && (n & (n - 1)) === 0;

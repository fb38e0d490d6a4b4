// What one interface sends to another in the network matrix: frames of many flows, and what the interface is asked to do for each.
import { product } from "@virtio/testing";
import { pattern } from "./machines.js";
import {
  ACK,
  build,
  CWR,
  checksumOffsetOf,
  ECE,
  FIN,
  headersOf,
  type Packet,
  PSH,
  transportOf,
} from "./wire-frames.js";

/** A kind of interface and device. */
export interface Kind {
  readonly mergeable: boolean;
  /** Checksum offload of both directions; "partial": the device hands them over incomplete. */
  readonly csum: "off" | "on" | "partial";
  readonly tso4: boolean;
  readonly tso6: boolean;
  readonly ecn: boolean;
  readonly lro: boolean;
  readonly vlan: "none" | "metadata" | "bytes";
  readonly pairs: number;
  readonly ring: "split" | "packed";
  readonly mtu: number;
}

/** Payload of the largest IP packet, and Ethernet's least frame. */
const IP_MAX = 65_535;
const ETHERNET_MIN = 60;
/** Flows of each of TCP and UDP over IPv4 and IPv6. */
const FLOWS = 7;
const SENDER = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const RECEIVER = [0x52, 0x54, 0, 0x12, 0x34, 0x57];

/** A whole number below `limit`. */
export type Random = (limit: number) => number;

export function generator(from: number): Random {
  let state = from;
  return (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

/** A frame, and what the interface is asked to do for it. */
export interface Sending {
  readonly packet: Packet;
  /** Complete its checksum; a number: cut it into segments of so many bytes. */
  readonly ask: "nothing" | "checksum" | number;
  /** In buffers of any size. */
  readonly scattered?: boolean;
  /** The interface is to count an error, and send nothing. */
  readonly refused?: boolean;
}

/** All frames of one flow, in groups that are not to be torn apart. */
export class Flow {
  readonly groups: Sending[][] = [];
  readonly #kind: Kind;
  readonly #random: Random;
  #next: Packet;

  constructor(kind: Kind, random: Random, what: Pick<Packet, "ip" | "protocol" | "port">) {
    this.#kind = kind;
    this.#random = random;
    // Sequence numbers and ids wrap here and there.
    const wraps = random(2) === 0;
    this.#next = {
      to: RECEIVER,
      from: SENDER,
      tag: kind.vlan === "none" ? -1 : 1 + random(0xfffe),
      id: wraps ? 0xfffe : random(0x1_0000),
      sequence: wraps ? 0xffff_fc00 : random(2 ** 32),
      flags: ACK,
      options: 4 * random(4),
      payload: new Uint8Array(),
      padding: 0,
      checksum: "right",
      ...what,
    };
  }

  /** Most bytes of payload. */
  get #room(): number {
    return this.#kind.mtu - headersOf(this.#next);
  }

  #packet(length: number, change: Partial<Packet> = {}): Packet {
    const payload = pattern(length, this.#random(1 << 30));
    const packet = { ...this.#next, payload, ...change };
    this.#next = {
      ...this.#next,
      id: (packet.id + 1) & 0xffff,
      sequence: (packet.sequence + payload.length) >>> 0,
    };
    return packet;
  }

  #add(...sendings: Sending[]): void {
    this.groups.push(sendings);
  }

  /** A few odd ones. */
  some(): void {
    for (let i = 0; i < 3; i++)
      this.#add({ packet: this.#packet(2 * this.#random(600) + 1), ask: "checksum" });
  }

  /** Those of least and of largest size, those whose checksum is wrong, and those that get a special one. */
  common(): void {
    this.#add(
      { packet: this.#padded(0), ask: "nothing" },
      { packet: this.#padded(3), ask: "nothing" },
    );
    this.#add({ packet: this.#packet(0), ask: "checksum" });
    this.#add({ packet: this.#packet(1), ask: "checksum", scattered: true });
    this.#add({ packet: this.#packet(this.#room), ask: "checksum", scattered: true });
    this.#add({ packet: this.#packet(this.#room), ask: "nothing" });
    this.#add({ packet: this.#packet(this.#room + 1), ask: "checksum", refused: true });
    // Payload that makes the sum 0xffff, and so the checksum 0.
    const packet = this.#packet(2, { payload: new Uint8Array(2) });
    const at = transportOf(packet, false) + checksumOffsetOf(packet);
    const payload = build(packet, false).slice(at, at + 2);
    this.#add({ packet: { ...packet, payload }, ask: "checksum" });
  }

  /** Neither IPv4 nor IPv6: an Ethernet header and no more, and all sizes up to the largest. */
  raw(): void {
    const { mtu } = this.#kind;
    for (const length of [0, 1, 46, mtu - 1, mtu])
      this.#add({ packet: this.#packet(length), ask: "nothing", scattered: length === mtu - 1 });
    this.#add({ packet: this.#packet(mtu + 1), ask: "nothing", refused: true });
  }

  /** As short as Ethernet has them, with bytes behind the packet that are none of it. */
  #padded(length: number): Packet {
    const bytes = 14 + headersOf(this.#next) + length;
    return this.#packet(length, { padding: Math.max(0, ETHERNET_MIN - bytes) });
  }

  /** What another machine may send: packets whose checksum is wrong or missing, that follow a lost one, that have bytes behind them. */
  foreign(): Packet[] {
    const { protocol } = this.#next;
    const room = this.#room;
    const padded = [this.#padded(0), this.#padded(3)];
    const sums = ["right", "right", "right", "right", "wrong", "right", "right"] as const;
    const stream = sums.map((checksum) => this.#packet(room, { checksum }));
    return [
      ...padded,
      // The third is lost.
      ...stream.toSpliced(2, 1),
      this.#packet(301, { checksum: protocol === "udp" ? "none" : "wrong" }),
      this.#packet(1),
    ];
  }

  /** Segments of TCP one after the other: LRO puts them together again. */
  stream(): void {
    const run = Array.from({ length: 6 }, () => this.#packet(this.#room));
    const last = this.#packet(this.#room - 1 - 2 * this.#random(300), { flags: ACK | PSH });
    this.#add(...[...run, last].map((packet): Sending => ({ packet, ask: "checksum" })));
    this.#add({ packet: this.#packet(77, { flags: ACK | FIN }), ask: "checksum" });
  }

  /** Frames for the device to cut: of one segment, of some, of as many as there can be; with ECN. */
  segmented(): void {
    const { tso4, tso6, ecn } = this.#kind;
    const room = this.#room;
    const is = this.#next.ip === 4 ? tso4 : tso6;
    const most = IP_MAX - headersOf(this.#next);
    const cut = (length: number, size: number, flags: number): void => {
      const packet = this.#packet(length, { flags });
      this.#next = { ...this.#next, id: (packet.id + Math.ceil(length / size)) & 0xffff };
      this.#add({ packet, ask: size, refused: !is || ((flags & CWR) !== 0 && !ecn) });
    };
    cut(room, room, ACK | PSH);
    cut(room + 1, room, ACK);
    cut(2 * room, room, ACK | PSH | FIN);
    cut(3 * room + 2 * this.#random(room / 2) + 1, room, ACK | ECE | CWR);
    cut(2 * this.#random(10_000) + 3001, 2 * this.#random(200) + 601, ACK | PSH | CWR);
    cut(most, room, ACK | PSH);
  }
}

/** Of IP and protocol. */
export const families = product({ ip: [4, 6], protocol: ["tcp", "udp"] } as const);

/** What goes from one interface to the other, flow by flow in order. */
export function load(kind: Kind, random: Random): Sending[] {
  const flows: Flow[] = [];
  let port = 1024;
  for (const family of families)
    for (let i = 0; i < FLOWS; i++) {
      const flow = new Flow(kind, random, { ...family, port: port++ });
      flow.some();
      flows.push(flow);
      if (i > 0) continue;
      flow.common();
      if (family.protocol === "udp") continue;
      flow.stream();
      flow.segmented();
    }
  const other = new Flow(kind, random, { ip: 0, protocol: "udp", port: 0 });
  other.raw();
  flows.push(other);
  const sendings: Sending[] = [];
  for (let left = flows; left.length > 0; left = left.filter(({ groups }) => groups.length > 0))
    sendings.push(...(left[random(left.length)]?.groups.shift() ?? []));
  return sendings;
}

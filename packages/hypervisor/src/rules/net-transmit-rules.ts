// Rules that a network device sees in transmitted frames: virtio 1.4 §5.1.4.2, §5.1.9.2.1.
import { ReservedFeature } from "@virtio/core";
import {
  MAC_SIZE,
  NetControlRx,
  NetFeature,
  NetGso,
  NetHeader,
  NetHeaderFlag,
} from "@virtio/core/net";
import {
  complete,
  ETHERNET_HEADER_SIZE,
  EtherType,
  get16,
  Headers,
  IpProtocol,
  pseudoSum4,
  pseudoSum6,
  sum,
  TcpFlag,
  VLAN_TAG_SIZE,
} from "@virtio/packets";
import type { DeviceChain } from "@virtio/ring";
import { TCP_CHECKSUM, UDP_CHECKSUM } from "../models/net-segments.js";
import type { NetChecker } from "./net-checker.js";

/** The kinds of segmentation: the clause that permits each, the one that forbids it, and the feature that it needs. */
const gsoRules: readonly (readonly [
  permitted: string,
  forbidden: string,
  type: NetGso,
  feature: NetFeature,
])[] = [
  ["NET-TX-6", "NET-TX-7", NetGso.TCPV4, NetFeature.HOST_TSO4],
  ["NET-TX-8", "NET-TX-9", NetGso.TCPV6, NetFeature.HOST_TSO6],
  ["NET-TX-10", "NET-TX-11", NetGso.UDP, NetFeature.HOST_UFO],
  ["NET-TX-12", "NET-TX-13", NetGso.UDP_L4, NetFeature.HOST_USO],
];

/** Features that the legacy GSO stands for: segmentation of every kind that there was then (§5.1.3.2). */
const gsoImplies: readonly NetFeature[] = [
  NetFeature.HOST_TSO4,
  NetFeature.HOST_TSO6,
  NetFeature.HOST_ECN,
  NetFeature.HOST_UFO,
];

/** Sizes of a header: a driver that counts wrong takes another of them. */
const headerSizes = [10, 12, 20, 24, 32];

/** Bits of tunnels, in gso_type and in flags (virtio 1.4 §5.1.9): their features are not offered. */
const TUNNEL_GSO = 0x60;
const TUNNEL_CSUM = 8;

/** Watches what a driver transmits. */
export class NetTransmitRules {
  readonly #checker: NetChecker;
  readonly #headers = new Headers();

  constructor(checker: NetChecker) {
    this.#checker = checker;
  }

  /** A chain of a transmit queue was taken: whether there is a frame in it. */
  length(chain: DeviceChain, headerSize: number): void {
    const { readableLength } = chain;
    const kept = readableLength >= headerSize + ETHERNET_HEADER_SIZE;
    const what = (): string => `${readableLength} bytes with a header of ${headerSize}`;
    if (!kept) this.#checkHeaderSize(false, what);
    if (this.#checker.legacyFraming) {
      const [first] = chain.readablePieces(0, readableLength);
      this.#checker.check(
        "NET-FRAME-LEGACY-1",
        first?.length === headerSize,
        () => `${first?.length} bytes in the descriptor of the header (no ANY_LAYOUT)`,
      );
    }
  }

  #checkHeaderSize(kept: boolean, what: () => string): void {
    this.#checker.check("NET-TX-1", kept, what);
    this.#checker.check("NET-RXBUF-4", kept, what);
  }

  /** One frame and its header, as the device read them: `bytes[0]` to `bytes[length - 1]`. */
  frame(header: Uint8Array, bytes: Uint8Array, length: number): void {
    const headers = this.#headers;
    const whole = headers.parse(bytes, 0, length);
    const flags = header[NetHeader.FLAGS] as number;
    const gsoType = header[NetHeader.GSO_TYPE] as number;
    this.#checkSource(header, bytes);
    this.#checkFlags(header, flags, gsoType);
    this.#checkGso(header, gsoType, flags);
    this.#checkLength(bytes, length, gsoType);
    const partial = (flags & NetHeaderFlag.NEEDS_CSUM) !== 0;
    if (partial && this.#checker.has(NetFeature.CSUM))
      this.#checkPartial(header, bytes, length, whole);
    else if (!this.#checker.has(NetFeature.CSUM) && whole) this.#checkComplete(bytes);
  }

  /** The address of the card, at the place where a frame has it. */
  #checkSource(header: Uint8Array, bytes: Uint8Array): void {
    const { configuration, filter } = this.#checker.options;
    const { mac, headerSize } = configuration;
    if (filter.mode(NetControlRx.PROMISC) || !this.#checker.has(NetFeature.MAC)) return;
    const own = isAt(mac, bytes, MAC_SIZE) || filter.unicast.has(bytes, MAC_SIZE);
    // What was read, header and frame, with the address where another header's size would place it.
    const read = Uint8Array.of(...header.subarray(0, headerSize), ...bytes.subarray(0, 64));
    const other = headerSizes.find(
      (size) => size !== headerSize && isAt(mac, read, size + MAC_SIZE),
    );
    this.#checkHeaderSize(
      own || other === undefined,
      () => `a header of ${other} bytes, not ${headerSize}`,
    );
    if (own || other === undefined)
      this.#checker.check(
        "NET-CFG-3",
        own,
        () => `a frame from ${hex(bytes, MAC_SIZE)}, not ${hex(mac)}`,
      );
  }

  #checkFlags(header: Uint8Array, flags: number, gsoType: number): void {
    const is = (): string => `flags ${flags}, gso_type ${gsoType}`;
    if (this.#checker.has(ReservedFeature.VERSION_1)) {
      const buffers = le16(header, NetHeader.NUM_BUFFERS);
      this.#checker.check("NET-TX-2", buffers === 0, () => `num_buffers ${buffers}`);
    }
    if (!this.#checker.has(NetFeature.CSUM)) this.#checker.check("NET-TX-3", flags === 0, is);
    if ((flags & NetHeaderFlag.NEEDS_CSUM) !== 0)
      this.#checker.check("NET-TX-27", this.#checker.has(NetFeature.CSUM), is);
    const looked = flags & (NetHeaderFlag.DATA_VALID | NetHeaderFlag.RSC_INFO);
    this.#checker.check("NET-TX-45", looked === 0, is);
    const tunnel = gsoType & TUNNEL_GSO;
    for (const clause of ["NET-TX-17", "NET-TX-42"]) this.#checker.check(clause, tunnel === 0, is);
    for (const clause of ["NET-TX-22", "NET-TX-43"])
      this.#checker.check(clause, (flags & TUNNEL_CSUM) === 0, is);
    this.#checker.check("NET-TX-25", tunnel !== TUNNEL_GSO, is);
    this.#checker.check("NET-TX-26", (flags & TUNNEL_CSUM) === 0 || tunnel !== 0, is);
    // An outer checksum that is left to the device is what this flag says.
    for (const clause of ["NET-TX-20", "NET-TX-23"])
      this.#checker.check(clause, (flags & TUNNEL_CSUM) === 0 || tunnel === 0, is);
    const type = gsoType & ~(NetGso.ECN | TUNNEL_GSO);
    this.#checker.check("NET-TX-24", type !== NetGso.UDP || tunnel === 0, is);
    const valid = (flags & NetHeaderFlag.DATA_VALID) !== 0;
    this.#checker.check("NET-TX-46", !valid || tunnel === 0, is);
  }

  #checkGso(header: Uint8Array, gsoType: number, flags: number): void {
    const type = gsoType & ~(NetGso.ECN | TUNNEL_GSO);
    const is = (): string => `gso_type ${gsoType}, flags ${flags}`;
    for (const [permitted, forbidden, gso, feature] of gsoRules) {
      if (type === gso) this.#checker.check(permitted, this.#may(feature), is);
      if (!this.#may(feature)) this.#checker.check(forbidden, type !== gso, is);
    }
    if (gsoRules.every(([, , , feature]) => !this.#may(feature)))
      this.#checker.check("NET-TX-31", gsoType === NetGso.NONE, is);
    if (type === NetGso.NONE) return;
    const size = le16(header, NetHeader.GSO_SIZE);
    this.#checker.check("NET-TX-32", (flags & NetHeaderFlag.NEEDS_CSUM) !== 0, is);
    this.#checker.check("NET-TX-33", size > 0, () => `gso_size ${size}`);
    const { tcpFlags, payload } = this.#headers;
    const marked = (tcpFlags & TcpFlag.CWR) !== 0;
    if (!this.#may(NetFeature.HOST_ECN)) this.#checker.check("NET-TX-14", !marked, is);
    else if (marked) this.#checker.check("NET-TX-15", (gsoType & NetGso.ECN) !== 0, is);
    const length = le16(header, NetHeader.HDR_LEN);
    if (this.#checker.has(NetFeature.GUEST_HDRLEN))
      this.#checker.check(
        "NET-TX-34",
        length === payload,
        () => `hdr_len ${length}, not ${payload}`,
      );
    else
      this.#checker.check("NET-TX-35", length >= payload, () => `hdr_len ${length} of ${payload}`);
  }

  /** Whether the driver may use a kind of segmentation. */
  #may(feature: NetFeature): boolean {
    const implied = gsoImplies.includes(feature) && this.#checker.has(NetFeature.GSO);
    return implied || this.#checker.has(feature);
  }

  #checkLength(bytes: Uint8Array, length: number, gsoType: number): void {
    const { mtu } = this.#checker.options.configuration;
    if (mtu === undefined || !this.#checker.has(NetFeature.MTU)) return;
    if ((gsoType & ~NetGso.ECN) !== NetGso.NONE) return;
    const tag = get16(bytes, 12) === EtherType.VLAN ? VLAN_TAG_SIZE : 0;
    this.#checker.check(
      "NET-CFG-9",
      length <= mtu + ETHERNET_HEADER_SIZE + tag,
      () => `a frame of ${length} bytes with an MTU of ${mtu}`,
    );
  }

  #checkPartial(header: Uint8Array, bytes: Uint8Array, length: number, whole: boolean): void {
    const { ip, l3, l4, protocol, end } = this.#headers;
    const start = le16(header, NetHeader.CSUM_START);
    const offset = le16(header, NetHeader.CSUM_OFFSET);
    const is = (): string => `csum_start ${start}, csum_offset ${offset} of ${length} bytes`;
    const place = checksumPlace(protocol);
    const known = whole && l4 >= 0 && place >= 0;
    const right = !known || (start === l4 && offset === place);
    const inside = start + offset + 2 <= length;
    this.#checker.check("NET-TX-30", inside && right, is);
    if (this.#checker.legacy && known)
      this.#checker.check(
        "NET-HDR-LEGACY-1",
        swap16(start) !== l4 || swap16(offset) !== place,
        () => `${is()}: in the other byte order they are right`,
      );
    if (!inside || !right || !known) return;
    if (ip === 4)
      this.#checker.check(
        "NET-TX-28",
        complete(sum(bytes, l3, l3 + ((bytes[l3] as number) & 15) * 4)) === 0,
        () => "the IPv4 header's checksum is wrong",
      );
    const pseudo = (ip === 4 ? pseudoSum4 : pseudoSum6)(bytes, l3, protocol, end - l4);
    const stored = get16(bytes, l4 + offset);
    this.#checker.check("NET-TX-29", stored === pseudo, () => `${stored} is stored, not ${pseudo}`);
  }

  #checkComplete(bytes: Uint8Array): void {
    const { ip, l3, l4, protocol, end } = this.#headers;
    const place = checksumPlace(protocol);
    if (l4 < 0 || place < 0) return;
    if (protocol === IpProtocol.UDP && get16(bytes, l4 + place) === 0) return;
    const pseudo = (ip === 4 ? pseudoSum4 : pseudoSum6)(bytes, l3, protocol, end - l4);
    this.#checker.check(
      "NET-TX-4",
      sum(bytes, l4, end, pseudo) === 0xffff,
      () => `the checksum of protocol ${protocol} is wrong`,
    );
  }
}

const checksumPlace = (protocol: number): number => {
  if (protocol === IpProtocol.TCP) return TCP_CHECKSUM;
  return protocol === IpProtocol.UDP ? UDP_CHECKSUM : -1;
};

const le16 = (bytes: Uint8Array, at: number): number =>
  (bytes[at] as number) | ((bytes[at + 1] as number) << 8);

const swap16 = (n: number): number => (n >>> 8) | ((n & 0xff) << 8);

const isAt = (mac: Uint8Array, bytes: Uint8Array, at: number): boolean =>
  mac.every((byte, i) => bytes[at + i] === byte);

const hex = (bytes: Uint8Array, at = 0): string =>
  Array.from(bytes.subarray(at, at + MAC_SIZE), (byte) => byte.toString(16).padStart(2, "0")).join(
    ":",
  );

// Neighbor discovery for IPv6 (RFC 4861), with the DNS option of RFC 8106.
import { VirtioFault } from "@virtio/core";
import { formatIpv6, formatMac, IPV6_SIZE, parseIpv4, parseIpv6, parseMac } from "./addresses.js";
import { type Headers, IpProtocol } from "./headers.js";
import { type IpPath, transport } from "./packet.js";
import { verify } from "./verify.js";
import { get16, get32 } from "./words.js";

/** A prefix of a router advertisement (RFC 4861 §4.6.2). Lifetimes in seconds, 0xffffffff: for ever. */
export interface Prefix {
  readonly address: string;
  /** Bits. */
  readonly length: number;
  readonly onLink: boolean;
  /** Addresses may be made of it (SLAAC). */
  readonly autonomous: boolean;
  readonly validLifetime: number;
  readonly preferredLifetime: number;
}

/** RFC 4861 §4.1; `mac` is of who asks. */
export interface RouterSolicitation {
  readonly type: "router-solicitation";
  readonly mac?: string;
}

/** RFC 4861 §4.2. */
export interface RouterAdvertisement {
  readonly type: "router-advertisement";
  /** 0: not said. */
  readonly hopLimit: number;
  /** Addresses come by DHCPv6. */
  readonly managed: boolean;
  /** Other things come by DHCPv6. */
  readonly other: boolean;
  /** Seconds as a default router; 0: it is none. */
  readonly lifetime: number;
  /** The router's. */
  readonly mac?: string;
  readonly mtu?: number;
  readonly prefixes: readonly Prefix[];
  /** Recursive name servers. */
  readonly dnsServers: readonly string[];
}

/** RFC 4861 §4.3; `mac` is of who asks. */
export interface NeighborSolicitation {
  readonly type: "neighbor-solicitation";
  readonly target: string;
  readonly mac?: string;
}

/** RFC 4861 §4.4; `mac` is the target's. */
export interface NeighborAdvertisement {
  readonly type: "neighbor-advertisement";
  readonly target: string;
  readonly router: boolean;
  readonly solicited: boolean;
  readonly override: boolean;
  readonly mac?: string;
}

/** A message of neighbor discovery. */
export type NeighborMessage =
  | RouterSolicitation
  | RouterAdvertisement
  | NeighborSolicitation
  | NeighborAdvertisement;

/** ICMPv6 types. */
enum Type {
  ROUTER_SOLICITATION = 133,
  ROUTER_ADVERTISEMENT = 134,
  NEIGHBOR_SOLICITATION = 135,
  NEIGHBOR_ADVERTISEMENT = 136,
}

enum Option {
  SOURCE_LINK_LAYER = 1,
  TARGET_LINK_LAYER = 2,
  PREFIX = 3,
  MTU = 5,
  DNS = 25,
}

/** Bytes before the options. */
const sizes: Readonly<Record<Type, number>> = {
  [Type.ROUTER_SOLICITATION]: 8,
  [Type.ROUTER_ADVERTISEMENT]: 16,
  [Type.NEIGHBOR_SOLICITATION]: 24,
  [Type.NEIGHBOR_ADVERTISEMENT]: 24,
};

/** All hop limits of neighbor discovery: no router passed it on (RFC 4861 §3.1). */
const HOP_LIMIT = 255;

/**
 * The group that whoever has `address` listens to (RFC 4291 §2.7.1): `ff02::1:ff00:2` of `fec0::2`.
 *
 * @throws VirtioFault INVALID
 */
export function solicitedNode(address: string): string {
  const group = parseIpv6("ff02::1:ff00:0");
  group.set(parseIpv6(address).subarray(13), 13);
  return formatIpv6(group);
}

/**
 * The MAC address that frames to an IP group go to: `01:00:5e` and 23 bits (RFC 1112 §6.4), `33:33` and 32 bits (RFC 2464 §7).
 *
 * @throws VirtioFault INVALID: not an address of a group
 */
export function multicastMac(group: string): string {
  const v6 = group.includes(":");
  const address = v6 ? parseIpv6(group) : parseIpv4(group);
  const first = address[0] as number;
  if (v6 ? first !== 0xff : first >>> 4 !== 14) {
    throw new VirtioFault("INVALID", `not an address of a group: "${group}"`);
  }
  const mac = v6 ? parseMac("33:33:00:00:00:00") : parseMac("01:00:5e:00:00:00");
  if (v6) mac.set(address.subarray(12), 2);
  else mac.set([(address[1] as number) & 0x7f, address[2] as number, address[3] as number], 3);
  return formatMac(mac);
}

/**
 * An IPv6 packet with a message of neighbor discovery. `path.hopLimit` is not used: it is 255 always.
 *
 * @throws VirtioFault INVALID: an address
 */
export function neighbor(path: IpPath, message: NeighborMessage): Uint8Array<ArrayBuffer> {
  const bytes = Uint8Array.from(write(message));
  return transport({ ...path, hopLimit: HOP_LIMIT }, IpProtocol.ICMPV6, bytes, 2);
}

function write(message: NeighborMessage): number[] {
  switch (message.type) {
    case "router-solicitation":
      return [...head(Type.ROUTER_SOLICITATION), ...link(Option.SOURCE_LINK_LAYER, message.mac)];
    case "router-advertisement": {
      const bytes = head(Type.ROUTER_ADVERTISEMENT);
      bytes[4] = message.hopLimit;
      bytes[5] = (message.managed ? 0x80 : 0) | (message.other ? 0x40 : 0);
      bytes[6] = message.lifetime >>> 8;
      bytes[7] = message.lifetime;
      bytes.push(...link(Option.SOURCE_LINK_LAYER, message.mac));
      if (message.mtu !== undefined) bytes.push(Option.MTU, 1, 0, 0, ...word(message.mtu));
      for (const prefix of message.prefixes) bytes.push(...prefixOption(prefix));
      const { dnsServers } = message;
      if (dnsServers.length > 0) {
        bytes.push(Option.DNS, 1 + 2 * dnsServers.length, 0, 0, ...word(message.lifetime));
        for (const server of dnsServers) bytes.push(...parseIpv6(server));
      }
      return bytes;
    }
    case "neighbor-solicitation": {
      const bytes = head(Type.NEIGHBOR_SOLICITATION);
      bytes.splice(8, IPV6_SIZE, ...parseIpv6(message.target));
      return [...bytes, ...link(Option.SOURCE_LINK_LAYER, message.mac)];
    }
    case "neighbor-advertisement": {
      const bytes = head(Type.NEIGHBOR_ADVERTISEMENT);
      bytes[4] =
        (message.router ? 0x80 : 0) |
        (message.solicited ? 0x40 : 0) |
        (message.override ? 0x20 : 0);
      bytes.splice(8, IPV6_SIZE, ...parseIpv6(message.target));
      return [...bytes, ...link(Option.TARGET_LINK_LAYER, message.mac)];
    }
  }
}

function head(type: Type): number[] {
  const bytes = new Array<number>(sizes[type]).fill(0);
  bytes[0] = type;
  return bytes;
}

function link(option: Option, mac: string | undefined): number[] {
  return mac === undefined ? [] : [option, 1, ...parseMac(mac)];
}

function prefixOption(prefix: Prefix): number[] {
  const flags = (prefix.onLink ? 0x80 : 0) | (prefix.autonomous ? 0x40 : 0);
  const lifetimes = [...word(prefix.validLifetime), ...word(prefix.preferredLifetime)];
  const address = parseIpv6(prefix.address);
  return [Option.PREFIX, 4, prefix.length, flags, ...lifetimes, 0, 0, 0, 0, ...address];
}

function word(value: number): number[] {
  return [value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];
}

/**
 * The message of neighbor discovery that a frame holds; null: it holds none, or one that is to be discarded (RFC 4861 §6.1, §7.1): hop
 * limit, code, checksum, a target that is a group, an option of no length or one cut short. Options not known are passed over.
 *
 * @param headers - `parse` of the frame gave true
 */
export function parseNeighbor(frame: Uint8Array, headers: Headers): NeighborMessage | null {
  const { l3, l4, end } = headers;
  if (headers.ip !== 6 || headers.protocol !== IpProtocol.ICMPV6 || l4 < 0) return null;
  const type = frame[l4] as Type;
  const size: number | undefined = sizes[type];
  if (size === undefined || end - l4 < size) return null;
  if (frame[l3 + 7] !== HOP_LIMIT || frame[l4 + 1] !== 0 || !verify(frame, 0, headers)) return null;
  const options = parseOptions(frame, l4 + size, end);
  if (options === null) return null;
  const source = options.source === undefined ? {} : { mac: options.source };
  const flags = frame[l4 + (type === Type.ROUTER_ADVERTISEMENT ? 5 : 4)] as number;
  switch (type) {
    case Type.ROUTER_SOLICITATION:
      return { type: "router-solicitation", ...source };
    case Type.ROUTER_ADVERTISEMENT:
      return {
        type: "router-advertisement",
        hopLimit: frame[l4 + 4] as number,
        managed: (flags & 0x80) !== 0,
        other: (flags & 0x40) !== 0,
        lifetime: get16(frame, l4 + 6),
        ...source,
        ...(options.mtu === undefined ? {} : { mtu: options.mtu }),
        prefixes: options.prefixes,
        dnsServers: options.dnsServers,
      };
    default: {
      if (frame[l4 + 8] === 0xff) return null;
      const target = formatIpv6(frame, l4 + 8);
      if (type === Type.NEIGHBOR_SOLICITATION) {
        return { type: "neighbor-solicitation", target, ...source };
      }
      return {
        type: "neighbor-advertisement",
        target,
        router: (flags & 0x80) !== 0,
        solicited: (flags & 0x40) !== 0,
        override: (flags & 0x20) !== 0,
        ...(options.target === undefined ? {} : { mac: options.target }),
      };
    }
  }
}

interface Options {
  source?: string;
  target?: string;
  mtu?: number;
  readonly prefixes: Prefix[];
  readonly dnsServers: string[];
}

function parseOptions(frame: Uint8Array, from: number, end: number): Options | null {
  const options: Options = { prefixes: [], dnsServers: [] };
  let size = 0;
  for (let at = from; at < end; at += size) {
    size = end - at < 2 ? 0 : (frame[at + 1] as number) * 8;
    if (size === 0 || size > end - at) return null;
    const option = frame[at] as Option;
    if (option === Option.SOURCE_LINK_LAYER) options.source = formatMac(frame, at + 2);
    if (option === Option.TARGET_LINK_LAYER) options.target = formatMac(frame, at + 2);
    if (option === Option.MTU) options.mtu = get32(frame, at + 4);
    if (option === Option.PREFIX && size === 32) options.prefixes.push(parsePrefix(frame, at));
    if (option === Option.DNS) {
      for (let server = at + 8; server + IPV6_SIZE <= at + size; server += IPV6_SIZE) {
        options.dnsServers.push(formatIpv6(frame, server));
      }
    }
  }
  return options;
}

function parsePrefix(frame: Uint8Array, at: number): Prefix {
  const flags = frame[at + 3] as number;
  return {
    address: formatIpv6(frame, at + 16),
    length: frame[at + 2] as number,
    onLink: (flags & 0x80) !== 0,
    autonomous: (flags & 0x40) !== 0,
    validLifetime: get32(frame, at + 4),
    preferredLifetime: get32(frame, at + 8),
  };
}

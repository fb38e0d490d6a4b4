// Addresses of an interface: an IP address and how many bits of it are the network's.
import { VirtioFault } from "@virtio/core";
import { formatIpv4, formatIpv6, parseIpv4, parseIpv6, parseMac } from "@virtio/packets";

/** An address of an interface. */
export interface InterfaceAddress {
  /** `10.0.2.15`, `fe80::5054:ff:fe12:3456`; without a zone. */
  readonly address: string;
  /** Bits of the network. */
  readonly prefix: number;
}

/** Whether an address is IPv6's. */
export const isInet6 = (address: string): boolean => address.includes(":");

const bytesOf = (address: string): Uint8Array =>
  isInet6(address) ? parseIpv6(address) : parseIpv4(address);
const format = (bytes: Uint8Array): string =>
  bytes.length === 4 ? formatIpv4(bytes) : formatIpv6(bytes);

/** The bits that `keep` says, by byte: a mask of `prefix` ones. */
const maskByte = (prefix: number, at: number): number =>
  (0xff00 >> Math.min(8, Math.max(0, prefix - 8 * at))) & 0xff;

/**
 * Reads `10.0.2.15/24`, `fec0::15/64`, or an address alone, whose network is that of its class, or 64 bits.
 * @throws VirtioFault INVALID
 */
export function parseInterfaceAddress(text: string): InterfaceAddress {
  const [written = "", length, ...rest] = text.split("/");
  const bytes = bytesOf(written);
  const [first = 0] = bytes;
  const classful = first < 128 ? 8 : first < 192 ? 16 : 24;
  const prefix = length === undefined ? (bytes.length === 4 ? classful : 64) : Number(length);
  const bits = 8 * bytes.length;
  if (rest.length > 0 || !/^\d*$/.test(length ?? "") || length === "" || prefix > bits)
    throw new VirtioFault("INVALID", `${text}: bad value (width too large)`);
  return { address: format(bytes), prefix };
}

/** Bits of `255.255.255.0` or `0xffffff00`. @throws VirtioFault INVALID when its ones are not all in front */
export function parseNetmask(text: string): number {
  const number = /^0x[\da-f]{8}$/i.test(text) ? Number(text) : null;
  const bytes =
    number === null
      ? parseIpv4(text)
      : Uint8Array.of(number >>> 24, number >>> 16, number >>> 8, number);
  const prefix = bytes.reduce((sum, byte) => sum + byte.toString(2).replaceAll("0", "").length, 0);
  if (bytes.some((byte, at) => byte !== maskByte(prefix, at)))
    throw new VirtioFault("INVALID", `${text}: bad netmask`);
  return prefix;
}

/** The network that an address is in: `10.0.2.0`. */
export function networkOf({ address, prefix }: InterfaceAddress): string {
  return format(bytesOf(address).map((byte, at) => byte & maskByte(prefix, at)));
}

/** Address of all stations of an IPv4 network: `10.0.2.255`. */
export function broadcastOf({ address, prefix }: InterfaceAddress): string {
  return format(bytesOf(address).map((byte, at) => byte | (~maskByte(prefix, at) & 0xff)));
}

/** Mask of an IPv4 network, as ifconfig(8) has it: `0xffffff00`. */
export function netmaskOf(prefix: number): string {
  const bytes = [0, 1, 2, 3].map((at) => maskByte(prefix, at).toString(16).padStart(2, "0"));
  return `0x${bytes.join("")}`;
}

/** Whether `other` is in the network of an address. */
export function isNeighbor(of: InterfaceAddress, other: string): boolean {
  return (
    isInet6(of.address) === isInet6(other) &&
    networkOf(of) === networkOf({ address: other, prefix: of.prefix })
  );
}

/** Whether an address is of this link alone, fe80::/10: it is said with the interface, `fe80::2%vtnet0`. */
export function isLinkLocal(address: string): boolean {
  return isInet6(address) && isNeighbor({ address: "fe80::", prefix: 10 }, address);
}

/** The link-local address that a MAC address gives (RFC 4291 appendix A). */
export function linkLocalOf(mac: string): InterfaceAddress {
  const station = parseMac(mac);
  const bytes = parseIpv6("fe80::ff:fe00:0");
  bytes.set(station.subarray(0, 3), 8);
  bytes.set(station.subarray(3), 13);
  bytes[8] = (station[0] ?? 0) ^ 2;
  return { address: formatIpv6(bytes), prefix: 64 };
}

/** The canonical form of an address, and its zone: of `fe80::2%vtnet0` the zone is `vtnet0`. @throws VirtioFault INVALID */
export function parseZoned(text: string): {
  readonly address: string;
  readonly zone: string | null;
} {
  const [written = "", zone] = text.split("%");
  return { address: format(bytesOf(written)), zone: zone ?? null };
}

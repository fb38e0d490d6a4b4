// What ifconfig(8) prints of an interface.
import { InterfaceCapability as Capability, type NetworkInterface } from "@virtio/core";
import {
  broadcastOf,
  type InterfaceAddress,
  isInet6,
  isLinkLocal,
  netmaskOf,
} from "../../net/interface-address.js";
import type { Station } from "../../net/station.js";

/** Bits of IFCAP_*, in FreeBSD's numbers, which is the order in which they print. */
const capabilityBits: readonly (readonly [Capability, bit: number])[] = [
  [Capability.RXCSUM, 0],
  [Capability.TXCSUM, 1],
  [Capability.VLAN_MTU, 3],
  [Capability.VLAN_HWTAGGING, 4],
  [Capability.JUMBO_MTU, 5],
  [Capability.VLAN_HWCSUM, 7],
  [Capability.TSO4, 8],
  [Capability.TSO6, 9],
  [Capability.LRO, 10],
  [Capability.VLAN_HWFILTER, 16],
  [Capability.VLAN_HWTSO, 18],
  [Capability.LINKSTATE, 19],
  [Capability.RXCSUM_IPV6, 21],
  [Capability.TXCSUM_IPV6, 22],
];

/** `8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST>`: a number and the names of its bits (%b of printf(9)). */
function bits(set: readonly (readonly [name: string, bit: number])[]): string {
  const value = set.reduce((sum, [, bit]) => sum + 2 ** bit, 0);
  const names = set.length === 0 ? "" : `<${set.map(([name]) => name).join(",")}>`;
  return `${value.toString(16)}${names}`;
}

const capabilities = (has: ReadonlySet<Capability>): string =>
  bits(
    capabilityBits.flatMap(([capability, bit]) =>
      has.has(capability) ? [[Capability[capability], bit] as const] : [],
    ),
  );

function flags({ running, promiscuous, allMulticast }: NetworkInterface): string {
  return bits([
    ...(running ? ([["UP", 0]] as const) : []),
    ["BROADCAST", 1],
    ...(running ? ([["RUNNING", 6]] as const) : []),
    ...(promiscuous ? ([["PROMISC", 8]] as const) : []),
    ...(allMulticast ? ([["ALLMULTI", 9]] as const) : []),
    ["SIMPLEX", 11],
    ["MULTICAST", 15],
  ]);
}

function address(each: InterfaceAddress, name: string, index: number): string {
  if (!isInet6(each.address)) {
    const mask = `netmask ${netmaskOf(each.prefix)}`;
    return `inet ${each.address} ${mask} broadcast ${broadcastOf(each)}`;
  }
  const local = isLinkLocal(each.address);
  const scope = local ? ` scopeid 0x${index.toString(16)}` : "";
  return `inet6 ${each.address}${local ? `%${name}` : ""} prefixlen ${each.prefix}${scope}`;
}

/** ifmedia(4)'s word for a speed in Mbit/s. */
function mediaWord(mbits: number): string {
  if (mbits === 1000) return "1000baseT";
  return mbits > 1000 ? `${mbits / 1000}Gbase-T` : `${mbits}baseTX`;
}

function media({ link: { up, speed, duplex } }: NetworkInterface): string {
  if (!up) return "media: Ethernet autoselect";
  // What a device that does not say is taken for, as vtnet(4) has it: 10 Gbit/s.
  return `media: Ethernet autoselect (${mediaWord(speed ?? 10_000)} <${duplex ?? "full"}-duplex>)`;
}

/** @param more - with -m: what the interface could do too */
export function describe(
  { interface: what, addresses }: Station,
  index: number,
  more: boolean,
): string {
  const lines = [
    `${what.name}: flags=${flags(what)} metric 0 mtu ${what.mtu}`,
    `\toptions=${capabilities(what.enabled)}`,
    ...(more ? [`\tcapabilities=${capabilities(what.capabilities)}`] : []),
    `\tether ${what.mac}`,
    ...addresses.map((each) => `\t${address(each, what.name, index)}`),
    `\t${media(what)}`,
    `\tstatus: ${what.link.up ? "active" : "no carrier"}`,
  ];
  return `${lines.join("\n")}\n`;
}

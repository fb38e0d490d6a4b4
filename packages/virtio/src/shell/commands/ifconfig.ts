// ifconfig(8): what interfaces are, and how they are set.
import {
  InterfaceCapability as Capability,
  type NetworkInterface,
  VirtioFault,
} from "@virtio/core";
import {
  type InterfaceAddress,
  isInet6,
  parseInterfaceAddress,
  parseNetmask,
  parseZoned,
} from "../../net/interface-address.js";
import type { IpHost } from "../../net/ip-host.js";
import type { Station } from "../../net/station.js";
import { type Command, type Session, UsageError } from "../command.js";
import { describe } from "./ifconfig-list.js";

/** Words that switch capabilities, and with a minus in front of them switch them off. */
const capabilities: Readonly<Record<string, readonly Capability[]>> = {
  txcsum: [Capability.TXCSUM],
  txcsum6: [Capability.TXCSUM_IPV6],
  rxcsum: [Capability.RXCSUM],
  rxcsum6: [Capability.RXCSUM_IPV6],
  tso: [Capability.TSO4, Capability.TSO6],
  tso4: [Capability.TSO4],
  tso6: [Capability.TSO6],
  lro: [Capability.LRO],
  vlanmtu: [Capability.VLAN_MTU],
  vlanhwtag: [Capability.VLAN_HWTAGGING],
  vlanhwcsum: [Capability.VLAN_HWCSUM],
  vlanhwfilter: [Capability.VLAN_HWFILTER],
  vlanhwtso: [Capability.VLAN_HWTSO],
};

/** Sets a word's capabilities: those of them that the interface has. @throws VirtioFault UNSUPPORTED: it has none to switch on */
async function switchCapability(what: NetworkInterface, word: string, on: boolean): Promise<void> {
  const named = capabilities[word] ?? [];
  const has = named.filter((each) => what.capabilities.has(each));
  if (on && has.length === 0)
    throw new VirtioFault("UNSUPPORTED", `${word}: not a capability of it (ifconfig -m)`, {
      device: what.name,
    });
  for (const each of has) await what.setCapability(each, on);
}

/** The words behind an interface's name, one after another. */
class Words {
  readonly #words: readonly string[];
  #at = 0;

  constructor(words: readonly string[]) {
    this.#words = words;
  }

  next(): string | null {
    const word = this.#words[this.#at];
    if (word !== undefined) this.#at += 1;
    return word ?? null;
  }

  /** Takes the next word if it is this one. */
  take(...words: readonly string[]): boolean {
    const is = words.includes(this.#words[this.#at] ?? "");
    if (is) this.#at += 1;
    return is;
  }

  /** @throws UsageError when there is none */
  value(of: string): string {
    const word = this.next();
    if (word === null) throw new UsageError(`'${of}' requires argument`);
    return word;
  }

  /** @throws UsageError when it is no whole number */
  number(of: string): number {
    const text = this.value(of);
    if (!/^\d{1,9}$/.test(text)) throw new UsageError(`${of} ${text}: not a number`);
    return Number(text);
  }
}

/** An address with what may follow it: `netmask M`, `prefixlen N`, `broadcast B`, `alias`, `delete`. */
async function setAddress(station: Station, text: string, words: Words): Promise<void> {
  const { name } = station.interface;
  const { zone } = parseZoned(text.split("/")[0] ?? "");
  if (zone !== null && zone !== name) throw new UsageError(`${text}: not an address of ${name}`);
  let given: InterfaceAddress = parseInterfaceAddress(text.replace(/%[^/]*/, ""));
  let what: "set" | "alias" | "delete" = "set";
  for (;;) {
    if (words.take("netmask")) given = { ...given, prefix: parseNetmask(words.value("netmask")) };
    else if (words.take("prefixlen"))
      given = parseInterfaceAddress(`${given.address}/${words.number("prefixlen")}`);
    else if (words.take("broadcast")) parseInterfaceAddress(words.value("broadcast"));
    else if (words.take("alias", "add")) what = "alias";
    else if (words.take("delete", "-alias", "remove")) what = "delete";
    else break;
  }
  if (what === "delete") return station.remove(given.address);
  // Without `alias` an IPv4 address takes the place of the first.
  const [first] = station.addresses;
  if (what === "set" && first !== undefined && ![first.address, given.address].some(isInet6))
    await station.remove(first.address);
  await station.add(given);
}

/** Does what the words say. @throws UsageError, VirtioFault */
async function configure(station: Station, args: readonly string[]): Promise<void> {
  const { interface: what } = station;
  const words = new Words(args);
  for (let word = words.next(); word !== null; word = words.next()) {
    const on = !word.startsWith("-");
    const name = on ? word : word.slice(1);
    if (word === "up") await station.up();
    else if (word === "down") await what.down();
    else if (word === "mtu") await what.setMtu(words.number("mtu"));
    else if (word === "lladdr" || word === "ether") await what.setMac(words.value(word));
    else if (name === "promisc") await what.setPromiscuous(on);
    else if (name === "allmulti") await what.setAllMulticast(on);
    else if (Object.hasOwn(capabilities, name)) await switchCapability(what, name, on);
    else if (word === "inet" || word === "inet6") {
      const address = words.value(word);
      if (isInet6(address) !== (word === "inet6")) throw new UsageError(`${address}: bad value`);
      await setAddress(station, address, words);
    } else if (/^[\da-f:.]+[.:]/i.test(word)) await setAddress(station, word, words);
    else if (name === "alias" || word === "delete")
      throw new UsageError(`'${word}' goes behind an address: inet 10.0.2.16/24 ${word}`);
    else throw new UsageError(`${word}: bad value`);
  }
}

function list(net: IpHost, { out }: Session, more: boolean): void {
  for (const [index, station] of net.stations.entries()) out(describe(station, index + 1, more));
}

/** ifconfig(8). */
export const ifconfig: Command = {
  name: "ifconfig",
  usage:
    "ifconfig [-alm] | ifconfig [-m] interface | ifconfig interface [inet | inet6] address[/len] [netmask mask] [alias | delete] | ifconfig interface parameter ...",
  summary:
    "show interfaces, or set one: up down mtu N lladdr M [-]promisc [-]allmulti inet A/len [-]txcsum [-]rxcsum [-]tso [-]lro [-]vlanhwtag [-]vlanhwfilter [-]vlanmtu",
  async run(args, session) {
    const { net, out, kernel } = session;
    const flags = new Set(args.filter((arg) => /^-[alm]$/.test(arg)).map((arg) => arg.slice(1)));
    const [name, ...words] = args.filter((arg) => !/^-[alm]$/.test(arg));
    if (flags.has("l")) out(`${kernel.interfaces.map((each) => each.name).join(" ")}\n`);
    else if (name === undefined) list(net, session, flags.has("m"));
    else {
      const station = net.station(name);
      if (words.length > 0) await configure(station, words);
      else {
        const index = kernel.interfaces.indexOf(station.interface) + 1;
        out(describe(station, index, flags.has("m")));
      }
    }
    return 0;
  },
  complete: async (args, { kernel }) =>
    args.length <= 1
      ? kernel.interfaces.map(({ name }) => name)
      : [
          ...["up", "down", "mtu", "lladdr", "promisc", "allmulti", "inet", "inet6"],
          ...Object.keys(capabilities).flatMap((word) => [word, `-${word}`]),
        ],
};

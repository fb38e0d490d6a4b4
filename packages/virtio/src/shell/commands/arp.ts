// arp(8) and ndp(8): what is known of the neighbors.
import { VirtioFault } from "@virtio/core";
import { isInet6, isLinkLocal } from "../../net/interface-address.js";
import type { Station } from "../../net/station.js";
import { type Command, getopt, type Session, UsageError } from "../command.js";

/** A neighbor, or the station itself. */
interface Row {
  readonly address: string;
  readonly mac: string;
  readonly name: string;
  /** Seconds; null: permanent. */
  readonly expires: number | null;
  readonly router: boolean;
}

function rows(station: Station, inet6: boolean): readonly Row[] {
  const { interface: what, neighbors, tasks, addresses } = station;
  const own = addresses.map(({ address }) => ({
    ...{ address, mac: what.mac, name: what.name, expires: null, router: false },
  }));
  const others = neighbors.entries.map(({ address, mac, expires, router }) => ({
    ...{ address, mac, name: what.name, router },
    expires: Math.ceil((expires - tasks.now()) / 1000),
  }));
  return [...others, ...own].filter(({ address }) => isInet6(address) === inet6);
}

/** `-a` lists, `-d` forgets; what `ndp -c` does is `-d -a`. */
function parse(args: readonly string[], letters: string): { list: boolean; host: string | null } {
  const { flags, operands } = getopt(args, letters);
  const [host, extra] = operands;
  const all = flags.has("a") || flags.has("c");
  if (extra !== undefined || all === (host !== undefined)) throw new UsageError("");
  return { list: !flags.has("d") && !flags.has("c"), host: host ?? null };
}

function run(
  { list, host }: { list: boolean; host: string | null },
  inet6: boolean,
  { net, out }: Session,
): number {
  const address = host?.split("%")[0];
  const shown = net.stations.flatMap((station) => rows(station, inet6));
  const wanted = shown.filter((row) => host === null || row.address === address);
  if (host !== null && wanted.length === 0)
    throw new VirtioFault("NOT_FOUND", `${host} -- no entry`);
  if (!list) {
    for (const { neighbors } of net.stations)
      neighbors.forget(
        (entry) => isInet6(entry.address) === inet6 && (host === null || entry.address === address),
      );
    return 0;
  }
  if (inet6) out(ndpLine("Neighbor", "Linklayer Address", "Netif", "Expire", "S", "Flags"));
  for (const row of wanted) out(inet6 ? ndpRow(row) : arpRow(row));
  return 0;
}

function arpRow({ address, mac, name, expires }: Row): string {
  const until = expires === null ? "permanent" : `expires in ${expires} seconds`;
  return `? (${address}) at ${mac} on ${name} ${until} [ethernet]\n`;
}

function ndpRow({ address, mac, name, expires, router }: Row): string {
  const scoped = isLinkLocal(address) ? `${address}%${name}` : address;
  const until = expires === null ? "permanent" : `${expires}s`;
  return ndpLine(scoped, mac, name, until, "R", router ? "R" : "");
}

function ndpLine(...[address, mac, name, expires, state, flags]: string[]): string {
  const columns = [address?.padEnd(36), mac?.padEnd(17), name?.padStart(6), expires?.padEnd(9)];
  return `${[...columns, state, flags].join(" ").trimEnd()}\n`;
}

/** arp(8). */
export const arpCommand: Command = {
  name: "arp",
  usage: "arp [-n] -a | [-n] hostname | -d hostname | -d -a",
  summary: "list the IPv4 neighbors; -d forget one, or all",
  run: async (args, session) => run(parse(args, "adn"), false, session),
};

/** ndp(8). */
export const ndpCommand: Command = {
  name: "ndp",
  usage: "ndp [-n] -a | -c | [-n] hostname | -d hostname",
  summary: "list the IPv6 neighbors; -d forget one, -c all",
  run: async (args, session) => run(parse(args, "acdn"), true, session),
};

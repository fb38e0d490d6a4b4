import { isInet6, isLinkLocal, networkOf } from "../../net/interface-address.js";
import type { Station } from "../../net/station.js";
import { type Command, getopt, noMore, UsageError } from "../command.js";

/** Columns before the counters, of which all but the second are aligned left. */
const FACTS = ["Name", "Mtu", "Network", "Address"];

/** Columns of counters. */
function countersOf(flags: ReadonlySet<string>): readonly string[] {
  const bytes = flags.has("b");
  return [
    ...["Ipkts", "Ierrs", "Idrop"],
    ...(bytes ? ["Ibytes"] : []),
    ...["Opkts", "Oerrs"],
    ...(bytes ? ["Obytes"] : []),
    "Coll",
    ...(flags.has("d") ? ["Drop"] : []),
  ];
}

/** The interface, then its addresses: drivers do not count for each address. */
function rowsOf(
  { interface: what, addresses }: Station,
  index: number,
  columns: readonly string[],
  flags: ReadonlySet<string>,
): readonly (readonly string[])[] {
  const { name, mtu, mac, running, statistics } = what;
  const counters: Readonly<Record<string, number>> = {
    ...{ Ipkts: statistics.ipackets, Ierrs: statistics.ierrors, Idrop: statistics.iqdrops },
    ...{ Ibytes: statistics.ibytes, Opkts: statistics.opackets, Oerrs: statistics.oerrors },
    ...{ Obytes: statistics.obytes, Coll: 0, Drop: statistics.oqdrops },
  };
  const link = [running ? name : `${name}*`, String(mtu), `<Link#${index + 1}>`, mac];
  return [
    [...link, ...columns.map((column) => String(counters[column]))],
    ...addresses
      .filter(({ address }) => !flags.has(isInet6(address) ? "4" : "6"))
      .map((each) => {
        const scope = isLinkLocal(each.address) ? `%${name}` : "";
        const network = `${networkOf(each)}${scope}/${each.prefix}`;
        const facts = [name, "-", network, `${each.address}${scope}`];
        return [...facts, ...columns.map(() => "-")];
      }),
  ];
}

/** netstat(1), of which there is `-i`: interfaces and what they counted. */
export const netstat: Command = {
  name: "netstat",
  usage: "netstat -i [-bdnW] [-4 | -6] [-I interface]",
  summary: "-i: what interfaces counted; -b bytes too, -d frames dropped on the way out too",
  async run(args, { net, out }) {
    const { flags, values, operands } = getopt(args, "46bdinWI:");
    noMore(operands);
    const only = values.get("I");
    if (!flags.has("i") && only === undefined) throw new UsageError("");
    if (only !== undefined) net.station(only);
    const columns = countersOf(flags);
    const rows = net.stations.flatMap((station, index) =>
      only === undefined || station.interface.name === only
        ? rowsOf(station, index, columns, flags)
        : [],
    );
    const table = [[...FACTS, ...columns], ...rows];
    const widths = [...FACTS, ...columns].map((_, at) =>
      Math.max(...table.map((row) => row[at]?.length ?? 0)),
    );
    for (const row of table) {
      const cells = row.map((cell, at) => {
        const width = widths[at] ?? 0;
        return at < FACTS.length && at !== 1 ? cell.padEnd(width) : cell.padStart(width);
      });
      out(`${cells.join(" ")}\n`);
    }
    return 0;
  },
  complete: async (_, { kernel }) => kernel.interfaces.map(({ name }) => name),
};

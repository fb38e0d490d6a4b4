import { lease } from "../../net/dhcp-client.js";
import { type Command, getopt, noMore, UsageError } from "../command.js";

/** dhclient(8): gets one lease, and returns. */
export const dhclient: Command = {
  name: "dhclient",
  usage: "dhclient [-q] interface",
  summary: "bring an interface up and ask a DHCP server for its address; -q say less",
  async run(args, { net, out, signal }) {
    const { flags, operands } = getopt(args, "q");
    const [name, ...rest] = operands;
    if (name === undefined) throw new UsageError("");
    noMore(rest);
    const say = flags.has("q") ? () => {} : (line: string) => out(`${line}\n`);
    const { address, time } = await lease(net.station(name), say, signal);
    // As dhclient has it, half of the lease; there is no renewal.
    say(`bound to ${address} -- renewal in ${Math.floor(time / 2)} seconds.`);
    return 0;
  },
  complete: async (_, { kernel }) => kernel.interfaces.map(({ name }) => name),
};

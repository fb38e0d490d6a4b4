import { type Command, getopt, noMore } from "../command.js";

/** dmesg(8): the kernel's messages. */
export const dmesg: Command = {
  name: "dmesg",
  usage: "dmesg [-c]",
  summary: "print the kernel's messages; -c forgets them",
  async run(args, { kernel, out }) {
    const { flags, operands } = getopt(args, "ac");
    noMore(operands);
    for (const line of kernel.messages.lines) out(`${line}\n`);
    if (flags.has("c")) kernel.messages.clear();
    return 0;
  },
};

import { VirtioFault } from "@virtio/core";
import { parseSetting } from "../../loader-conf.js";
import { type Command, getopt, noMore } from "../command.js";

/** kenv(1): the kernel environment. */
export const kenv: Command = {
  name: "kenv",
  usage: "kenv [-Nqv] [variable[=value]] | kenv [-q] -u variable",
  summary: "print or change the kernel environment, which tunables are read from",
  async run(args, { kernel, out }) {
    const { flags, operands } = getopt(args, "Nquv");
    const [operand, ...rest] = operands;
    noMore(rest);
    const { environment } = kernel;
    const unable = (what: string): number => {
      if (flags.has("q")) return 1;
      throw new VirtioFault("NOT_FOUND", `unable to ${what}`);
    };
    if (operand === undefined) {
      if (flags.has("u")) throw new VirtioFault("INVALID", "-u needs the name of a variable");
      for (const [name, value] of environment.values)
        out(flags.has("N") ? `${name}\n` : `${name}="${value}"\n`);
      return 0;
    }
    if (flags.has("u")) return environment.unset(operand) ? 0 : unable(`unset ${operand}`);
    if (operand.includes("=")) {
      const setting = parseSetting(operand, "kenv");
      environment.set(setting);
      out(`${setting.name}="${setting.value}"\n`);
      return 0;
    }
    const value = environment.get(operand);
    if (value === undefined) return unable(`get ${operand}`);
    out(flags.has("v") ? `${operand}="${value}"\n` : `${value}\n`);
    return 0;
  },
  complete: async (_, { kernel }) => [...kernel.environment.values.keys()],
};

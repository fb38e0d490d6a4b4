import { type SysctlLeaf, type SysctlTree, VirtioFault } from "@virtio/core";
import { type Command, getopt, UsageError } from "../command.js";

/** The leaves that one operand means. */
function leavesOf(sysctl: SysctlTree, name: string): readonly SysctlLeaf[] {
  const leaves = sysctl.find(name.replace(/\.$/, ""));
  if (leaves.length === 0) throw new VirtioFault("NOT_FOUND", `unknown oid '${name}'`);
  return leaves;
}

/** What `NAME=VALUE` does. @returns the leaf, and what it held. */
async function assign(
  sysctl: SysctlTree,
  name: string,
  value: string,
): Promise<readonly [leaf: SysctlLeaf, was: string]> {
  const leaf = leavesOf(sysctl, name).find((each) => each.name === name);
  if (leaf === undefined) throw new VirtioFault("INVALID", `oid '${name}' isn't a leaf node`);
  if (leaf.write === undefined) throw new VirtioFault("INVALID", `oid '${name}' is read only`);
  const was = String(leaf.read());
  await leaf.write(value);
  return [leaf, was];
}

/** sysctl(8). */
export const sysctl: Command = {
  name: "sysctl",
  usage: "sysctl [-deNnqi] name[=value] ... | sysctl [-deNn] -a",
  summary: "print or change kernel state",
  async run(args, { kernel, out, err }) {
    const { flags, operands } = getopt(args, "aAdeiNnqX");
    if (operands.length === 0 && !flags.has("a") && !flags.has("A")) throw new UsageError("");
    const separator = flags.has("e") ? "=" : ": ";
    const line = (leaf: SysctlLeaf, value: string): void => {
      if (flags.has("N")) out(`${leaf.name}\n`);
      else out(flags.has("n") ? `${value}\n` : `${leaf.name}${separator}${value}\n`);
    };
    const shown = (leaf: SysctlLeaf): string =>
      flags.has("d") ? leaf.description : String(leaf.read());

    if (operands.length === 0) for (const leaf of kernel.sysctl.find()) line(leaf, shown(leaf));
    let status = 0;
    for (const operand of operands) {
      const equals = operand.indexOf("=");
      const name = equals < 0 ? operand : operand.slice(0, equals);
      try {
        if (equals >= 0) {
          const [leaf, was] = await assign(kernel.sysctl, name, operand.slice(equals + 1));
          if (!flags.has("q"))
            line(leaf, flags.has("n") ? shown(leaf) : `${was} -> ${leaf.read()}`);
        } else if (!flags.has("i") || kernel.sysctl.find(name).length > 0)
          for (const leaf of leavesOf(kernel.sysctl, name)) line(leaf, shown(leaf));
      } catch (fault) {
        if (!(fault instanceof VirtioFault)) throw fault;
        const prefix = fault.message.includes(name) ? "" : `${operand}: `;
        err(`sysctl: ${prefix}${fault.message}\n`);
        status = 1;
      }
    }
    return status;
  },
  complete: async (_, { kernel }) => kernel.sysctl.find().map((leaf) => leaf.name),
};

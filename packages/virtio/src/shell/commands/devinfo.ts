import type { DeviceNode } from "../../device-tree.js";
import { type Command, getopt, noMore } from "../command.js";

/** devinfo(8): the device tree. */
export const devinfo: Command = {
  name: "devinfo",
  usage: "devinfo [-v]",
  summary: "print the device tree; -v with what each bus knows of its devices",
  async run(args, { kernel, out }) {
    const { flags, operands } = getopt(args, "v");
    noMore(operands);
    const show = (device: DeviceNode, indent: string): void => {
      const facts = [
        device.pnpinfo === "" ? "" : ` pnpinfo ${device.pnpinfo}`,
        device.location === "" ? "" : ` at ${device.location}`,
      ];
      out(`${indent}${device.name}${flags.has("v") ? facts.join("") : ""}\n`);
      for (const child of device.children) show(child, `${indent}  `);
    };
    show(kernel.devices.root, "");
    return 0;
  },
};

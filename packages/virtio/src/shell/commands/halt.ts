import { type Command, noMore } from "../command.js";

/** halt(8): flushes disks, detaches devices, ends the machine. */
export const halt: Command = {
  name: "halt",
  usage: "halt",
  summary: "flush the disks and end the machine",
  async run(args, { kernel }) {
    noMore(args);
    await kernel.shutdown();
    return 0;
  },
};

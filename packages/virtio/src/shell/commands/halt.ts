import { type Command, noMore } from "../command.js";

/** halt(8): ends captures, flushes disks, detaches devices, ends the machine. */
export const halt: Command = {
  name: "halt",
  usage: "halt",
  summary: "flush the disks and end the machine",
  async run(args, { kernel, jobs }) {
    noMore(args);
    await jobs.stop();
    await kernel.shutdown();
    return 0;
  },
};

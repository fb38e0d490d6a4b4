import type { Disk } from "@virtio/core";
import { type Command, getopt, UsageError } from "../command.js";

/** Bytes in at most four characters: `512B`, `1.0M`, `16M`. (humanize_number(3)) */
export function humanize(bytes: number): string {
  const units = ["B", "K", "M", "G", "T", "P"];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit > 0 && value < 9.95 ? value.toFixed(1) : Math.round(value)}${units[unit]}`;
}

const table = ({ sectorSize, mediaSize, ident }: Disk): readonly (readonly [string, string])[] => [
  [String(sectorSize), "sectorsize"],
  [String(mediaSize), `mediasize in bytes (${humanize(mediaSize)})`],
  [String(mediaSize / sectorSize), "mediasize in sectors"],
  ["0", "stripesize"],
  ["0", "stripeoffset"],
  ...(ident === "" ? [] : ([[ident, "Disk ident."]] as const)),
];

/** diskinfo(8). */
export const diskinfo: Command = {
  name: "diskinfo",
  usage: "diskinfo [-sv] disk ...",
  summary: "print the size of disks; -v in full, -s the serial number",
  async run(args, { kernel, out, err }) {
    const { flags, operands } = getopt(args, "sv");
    if (operands.length === 0) throw new UsageError("no disk is given");
    let status = 0;
    for (const name of operands) {
      const disk = kernel.disk(name);
      if (flags.has("s")) {
        if (disk.ident === "") {
          err(`diskinfo: ${name}: the disk has no ident\n`);
          status = 1;
        } else out(`${disk.ident}\n`);
      } else if (flags.has("v")) {
        out(`${name}\n`);
        for (const [value, what] of table(disk)) out(`\t${value.padEnd(12)}\t# ${what}\n`);
        out("\n");
      } else {
        const { sectorSize, mediaSize } = disk;
        out(`${[name, sectorSize, mediaSize, mediaSize / sectorSize, 0, 0].join("\t")}\n`);
      }
    }
    return status;
  },
  complete: async (_, { kernel }) => kernel.disks.flatMap(({ name }) => [name, `/dev/${name}`]),
};

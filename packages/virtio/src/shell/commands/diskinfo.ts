import type { Disk } from "@virtio/core";
import { type Command, getopt, UsageError } from "../command.js";
import { speedTest } from "./diskinfo-speed.js";

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

/** Cylinders, heads and sectors of a track as firmware counts them; nothing when the device does not say. */
function geometry(disk: Disk): readonly number[] {
  const { sectorSize, mediaSize, firmwareHeads: heads, firmwareSectors: sectors } = disk;
  if (heads === 0 || sectors === 0) return [];
  return [Math.floor(mediaSize / (sectors * heads * sectorSize)), heads, sectors];
}

/** What -v says, by line. */
function table(disk: Disk): readonly (readonly [value: number | string, what: string])[] {
  const { sectorSize, mediaSize, stripeSize, stripeOffset, ident, can } = disk;
  const counted = ["Cylinders", "Heads", "Sectors"];
  return [
    [sectorSize, "sectorsize"],
    [mediaSize, `mediasize in bytes (${humanize(mediaSize)})`],
    [mediaSize / sectorSize, "mediasize in sectors"],
    [stripeSize, "stripesize"],
    [stripeOffset, "stripeoffset"],
    ...geometry(disk).map((value, i) => [value, `${counted[i]} according to firmware.`] as const),
    ...(ident === "" ? [] : ([[ident, "Disk ident."]] as const)),
    [can.discard ? "Yes" : "No", "TRIM/UNMAP support"],
    ["Unknown", "Rotation rate in RPM"],
  ];
}

/** What is said without -v. */
function line(disk: Disk): string {
  const { sectorSize, mediaSize, stripeSize, stripeOffset } = disk;
  const sizes = [sectorSize, mediaSize, mediaSize / sectorSize, stripeSize, stripeOffset];
  return [...sizes, ...geometry(disk)].join("\t");
}

/** diskinfo(8). */
export const diskinfo: Command = {
  name: "diskinfo",
  usage: "diskinfo [-stv] disk ...",
  summary:
    "print the size of disks; -v in full, -s the serial number, -t seek times, transfer rates",
  async run(args, { kernel, out, err, signal }) {
    const { flags, operands } = getopt(args, "stv");
    if (operands.length === 0) throw new UsageError("no disk is given");
    if (flags.has("s") && flags.size > 1)
      throw new UsageError("-s cannot be used with other options");
    let status = 0;
    for (const name of operands) {
      const disk = kernel.disk(name);
      if (flags.has("s")) {
        if (disk.ident === "") {
          err(`diskinfo: ${name}: the disk has no ident\n`);
          status = 1;
        } else out(`${disk.ident}\n`);
      } else if (flags.size > 0) {
        out(`${name}\n`);
        for (const [value, what] of table(disk)) out(`\t${String(value).padEnd(12)}\t# ${what}\n`);
        out("\n");
        if (flags.has("t")) await speedTest(disk, { tasks: kernel.machine.tasks, out, signal });
      } else out(`${name}\t${line(disk)}\n`);
    }
    return status;
  },
  complete: async (_, { kernel }) => kernel.disks.flatMap(({ name }) => [name, `/dev/${name}`]),
};

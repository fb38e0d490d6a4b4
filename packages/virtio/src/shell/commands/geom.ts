import { type Disk, VirtioFault } from "@virtio/core";
import { type Command, getopt, type Session, UsageError } from "../command.js";
import { humanize } from "./diskinfo.js";

/** One geom of class DISK and its provider. */
function list(disk: Disk): string {
  const { name, ident, mediaSize, sectorSize, stripeSize, stripeOffset } = disk;
  const striped = stripeSize > 0 || stripeOffset > 0;
  const lines = [
    `Mediasize: ${mediaSize} (${humanize(mediaSize)})`,
    `Sectorsize: ${sectorSize}`,
    ...(striped ? [`Stripesize: ${stripeSize}`, `Stripeoffset: ${stripeOffset}`] : []),
    // Nothing opens a disk here: whoever has it may use it.
    "Mode: r0w0e0",
    "descr: (null)",
    `ident: ${ident === "" ? "(null)" : ident}`,
    "rotationrate: unknown",
    `fwsectors: ${disk.firmwareSectors}`,
    `fwheads: ${disk.firmwareHeads}`,
  ].map((line) => `   ${line}\n`);
  return `Geom name: ${name}\nProviders:\n1. Name: ${name}\n${lines.join("")}\n`;
}

function status(disks: readonly Disk[]): string {
  const width = Math.max(4, ...disks.map(({ name }) => name.length));
  const rows = disks.map(({ name }) => `${name.padStart(width)}     N/A  N/A\n`);
  return `${"Name".padStart(width)}  Status  Components\n${rows.join("")}`;
}

/** The disks of these names; every one when there is none. @throws VirtioFault NOT_FOUND */
function geoms(names: readonly string[], { kernel }: Session): readonly Disk[] {
  if (names.length === 0) return kernel.disks;
  return names.map((name) => {
    const disk = kernel.disks.find((each) => each.name === name.replace(/^\/dev\//, ""));
    if (disk === undefined) throw new VirtioFault("NOT_FOUND", `No such geom: ${name}.`);
    return disk;
  });
}

/** geom(8), of which there is class DISK. */
export const geom: Command = {
  name: "geom",
  usage: "geom disk list [name ...] | geom disk status [name ...]",
  summary: "list: print what disks say of themselves; status: their names",
  async run([name, command, ...rest], session) {
    if (name === undefined) throw new UsageError("");
    if (name.toLowerCase() !== "disk") throw new UsageError(`no class '${name}' (there is: disk)`);
    if (command !== "list" && command !== "status")
      throw new UsageError(command === undefined ? "" : `Unknown command: ${command}.`);
    const disks = geoms(getopt(rest, "").operands, session);
    session.out(command === "list" ? disks.map(list).join("") : status(disks));
    return 0;
  },
  async complete(args, { kernel }) {
    if (args.length === 1) return ["disk"];
    return args.length === 2 ? ["list", "status"] : kernel.disks.map(({ name }) => name);
  },
};

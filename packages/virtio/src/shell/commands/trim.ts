import { type Disk, parseSize, VirtioFault } from "@virtio/core";
import { type Command, getopt, UsageError } from "../command.js";

/** What to trim of each disk, in bytes. */
interface Region {
  readonly offset: number;
  /** Null up to the end of the disk. */
  readonly length: number | null;
}

/** A number with K, M, G or T behind it. */
function size(what: string, text: string): number {
  if (!/^\d+[kmgt]?$/i.test(text))
    throw new VirtioFault("INVALID", `invalid ${what} of the region: ${text}`);
  return parseSize(text);
}

function parseRegion(values: ReadonlyMap<string, string>): Region {
  const length = values.get("l");
  const region = {
    offset: size("offset", values.get("o") ?? "0"),
    length: length === undefined ? null : size("length", length),
  };
  if (region.length === 0)
    throw new VirtioFault("INVALID", `invalid length of the region: ${length}`);
  return region;
}

/** The bytes of `disk` that the region means. @throws VirtioFault INVALID when it ends behind the disk, or within a sector */
function within(disk: Disk, { offset, length }: Region): readonly [offset: number, length: number] {
  const { mediaSize, sectorSize } = disk;
  const bytes = length ?? Math.max(0, mediaSize - offset);
  const invalid = (why: string): never => {
    const what = `Invalid argument: offset ${offset} length ${bytes} ${why}`;
    throw new VirtioFault("INVALID", what, { device: disk.name });
  };
  if (bytes === 0 || offset + bytes > mediaSize) invalid(`ends behind the disk (${mediaSize})`);
  if (offset % sectorSize !== 0 || bytes % sectorSize !== 0)
    invalid(`is not a multiple of the sector size ${sectorSize}`);
  return [offset, bytes];
}

/** trim(8): says what it would do, and does it with -f. */
export const trim: Command = {
  name: "trim",
  usage: "trim [-[lo] offset[K|k|M|m|G|g|T|t]] [-Nfqv] device ...",
  summary: "erase what disks hold that is no longer needed; without -f say what would be done",
  async run(args, { kernel, out, err, signal }) {
    const { flags, values, operands } = getopt(args, "Nfl:o:qv");
    if (operands.length === 0) throw new UsageError("");
    const region = parseRegion(values);
    const dry = flags.has("N") || !flags.has("f");
    const verbose = flags.has("N") || flags.has("v") || !flags.has("q");
    let status = 0;
    for (const name of operands) {
      try {
        const disk = kernel.disk(name);
        const [offset, length] = within(disk, region);
        if (verbose) out(`trim ${name} offset ${offset} length ${length}\n`);
        if (dry) out("dry run: add -f to actually perform the operation\n");
        else await disk.discard(offset, length, { signal });
      } catch (fault) {
        if (!(fault instanceof VirtioFault)) throw fault;
        err(`trim: ${fault.message}\n`);
        status = 1;
      }
    }
    return status;
  },
  complete: async (_, { kernel }) => kernel.disks.flatMap(({ name }) => [name, `/dev/${name}`]),
};

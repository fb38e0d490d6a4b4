// dd(1): copies between host files and disks, many requests in flight, in bounded memory.
import { parseSize, VirtioFault } from "@virtio/core";
import { type Command, type Session, UsageError } from "../command.js";
import { type CopyCount, copy } from "./dd-copy.js";
import { openSink, openSource, type Sink, type Source } from "./dd-ends.js";

/** What the operands say. */
interface Operands {
  readonly input: string;
  readonly output: string;
  /** Bytes of a block of the input, and of the output. */
  readonly ibs: number;
  readonly obs: number;
  /** Blocks of the input; Infinity when not given. */
  readonly count: number;
  readonly skip: number;
  /** Blocks of the output. */
  readonly seek: number;
  readonly conversions: ReadonlySet<string>;
  readonly status: "summary" | "none" | "noxfer" | "progress";
}

const OPERANDS = [
  ...["if", "of", "bs", "ibs", "obs", "count", "conv", "status"],
  // The same by two names, as on FreeBSD.
  ...["skip", "iseek", "seek", "oseek"],
];
const CONVERSIONS = [
  // Leave what the output holds past the copy.
  "notrunc",
  // Fill the last block of the input with zeros; of the output.
  ...["sync", "osync"],
  // Make holes of blocks of zeros; wait for stable storage.
  ...["sparse", "fsync"],
];
const STATUS = ["none", "noxfer", "progress"] as const;
/** Milliseconds between two progress lines. */
const PROGRESS_INTERVAL = 1000;

/** `2x512`, `64k` */
function number(name: string, text: string): number {
  try {
    const value = text.split("x").reduce((product, factor) => product * parseSize(factor), 1);
    if (Number.isSafeInteger(value)) return value;
  } catch (cause) {
    if (!(cause instanceof VirtioFault)) throw cause;
  }
  throw new UsageError(`${name}=${text}: not a number such as 512, 64k or 2x512`);
}

function parseOperands(args: readonly string[]): Operands {
  const given = new Map<string, string>();
  for (const arg of args) {
    const [, name = arg, value = ""] = /^(\w+)=(.*)$/s.exec(arg) ?? [];
    if (!OPERANDS.includes(name)) throw new UsageError(`unknown operand ${name}`);
    if (given.has(name)) throw new UsageError(`operand ${name} is given twice`);
    if (value === "") throw new UsageError(`no value specified for ${name}`);
    given.set(name, value);
  }
  const blocks = (name: string, other: string): number => {
    const key = given.has(other) ? other : name;
    return number(key, given.get(key) ?? "0");
  };
  const need = (name: string): string => {
    const value = given.get(name);
    if (value === undefined) throw new UsageError(`${name}= is not given`);
    return value;
  };
  const conversions = given.get("conv")?.split(",") ?? [];
  const unknown = conversions.find((conversion) => !CONVERSIONS.includes(conversion));
  if (unknown !== undefined)
    throw new UsageError(`unknown conversion ${unknown} (there is: ${CONVERSIONS.join(", ")})`);
  const status = given.get("status");
  const known = STATUS.find((word) => word === status);
  if (status !== undefined && known === undefined)
    throw new UsageError(`unknown status ${status} (there is: ${STATUS.join(", ")})`);
  if (given.has("bs") && (given.has("ibs") || given.has("obs")))
    throw new UsageError("bs: illegal argument combination or already set");
  const blockSize = (name: string): number => {
    const key = given.has("bs") ? "bs" : name;
    const size = number(key, given.get(key) ?? "512");
    if (size === 0) throw new UsageError(`${key} must be greater than 0`);
    return size;
  };
  return {
    input: need("if"),
    output: need("of"),
    ibs: blockSize("ibs"),
    obs: blockSize("obs"),
    count: given.has("count")
      ? number("count", given.get("count") ?? "")
      : Number.POSITIVE_INFINITY,
    skip: blocks("skip", "iseek"),
    seek: blocks("seek", "oseek"),
    conversions: new Set(conversions),
    status: known ?? "summary",
  };
}

/** Refuses what a disk cannot do, before anything is written. */
function checkSectors({ name, sectorSize }: Source | Sink, bs: number, last: number): void {
  const invalid = (what: string): never => {
    throw new VirtioFault(
      "INVALID",
      `${name}: Invalid argument: ${what} is not a multiple of the sector size ${sectorSize}`,
    );
  };
  if (bs % sectorSize !== 0) invalid(`a block of ${bs} bytes`);
  if (last % sectorSize !== 0)
    invalid(`the last block, ${last} bytes (conv=sync fills it with zeros),`);
}

/** `16+1`: whole blocks, and whether there was a part of one. */
const records = (bytes: number, bs: number): string =>
  `${Math.floor(bytes / bs)}+${bytes % bs === 0 ? 0 : 1}`;

/** At most four digits: `1074 MB`, `1024 MiB`. (humanize_number(3)) */
function scaled(bytes: number, step: 1000 | 1024): string {
  const units = step === 1000 ? ["", "k", "M", "G", "T", "P"] : ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
  let value = bytes;
  let unit = 0;
  while (value >= 9999.5 && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  return `${unit > 0 && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}B`;
}

/** dd(1). */
export const dd: Command = {
  name: "dd",
  usage:
    "dd if=FROM of=TO [bs=N | ibs=N obs=N] [count=N] [skip=N] [seek=N] [conv=notrunc,sync,osync,sparse,fsync] [status=none|noxfer|progress]",
  summary: "copy between host files and disks such as /dev/vtbd0",
  run: async (args, session) => transfer(parseOperands(args), session),
  async complete(args, { kernel, host }) {
    const [, operand, typed] = /^(if=|of=)(.*)$/s.exec(args.at(-1) ?? "") ?? [];
    if (operand === undefined || typed === undefined) return OPERANDS.map((name) => `${name}=`);
    const devices = [...kernel.disks.map(({ name }) => name), "null", "zero"];
    const files = typed.startsWith("/dev/") ? [] : await host.list(typed);
    return [...devices.map((name) => `/dev/${name}`), ...files].map((path) => operand + path);
  },
};

async function transfer(operands: Operands, session: Session): Promise<number> {
  const { ibs, obs, skip, conversions } = operands;
  const source = await openSource(operands.input, session);
  try {
    checkSectors(source, ibs, 0);
    const data = Math.max(0, Math.min(source.size - skip * ibs, operands.count * ibs));
    let length = data;
    if (conversions.has("sync")) length = roundUp(length, ibs);
    if (conversions.has("osync")) length = roundUp(length, obs);
    const sink = await openSink(operands.output, session);
    try {
      checkSectors(sink, obs, Number.isFinite(length) ? length % obs : 0);
      return await run(operands, session, source, sink, data, length);
    } finally {
      await sink.close();
    }
  } finally {
    await source.close();
  }
}

const roundUp = (bytes: number, to: number): number =>
  Number.isFinite(bytes) ? Math.ceil(bytes / to) * to : bytes;

/** The copy and what is printed about it, once both ends are open and fit. */
async function run(
  operands: Operands,
  { kernel, terminal, err, signal }: Session,
  source: Source,
  sink: Sink,
  data: number,
  length: number,
): Promise<number> {
  const { ibs, obs, skip, seek, conversions, status } = operands;
  const { tasks } = kernel.machine;
  const count: CopyCount = { read: 0, written: 0 };
  const started = tasks.now();
  const seconds = (): number => Math.max(1e-6, (tasks.now() - started) / 1000);

  const shows = status === "progress" || (terminal && status === "summary");
  let shownAt = started;
  let drawn = "";
  const progress = (): void => {
    if (!shows || tasks.now() - shownAt < PROGRESS_INTERVAL) return;
    shownAt = tasks.now();
    const { written } = count;
    const line = `  ${written} bytes (${scaled(written, 1000)}, ${scaled(written, 1024)}) transferred ${seconds().toFixed(3)}s, ${scaled(written / seconds(), 1000)}/s`;
    err(`${line.padEnd(drawn.length)}\r`);
    drawn = line;
  };

  const from = skip * ibs;
  const to = seek * obs;
  const room = Math.max(0, sink.capacity - to);
  const fits = Math.min(length, room);
  const sparse = conversions.has("sparse");
  // Reads are of the output's size too: what is written, or made a hole, are its blocks.
  const blockSize = roundUp(obs, source.sectorSize);
  let failure: unknown = null;
  try {
    if (!conversions.has("notrunc")) await sink.truncate(to);
    const plan = { source, sink, blockSize, sparse, from, to };
    await copy({ ...plan, data: Math.min(data, fits), length: fits }, count, {
      tasks,
      signal,
      progress,
    });
    if (fits < length) {
      // As on FreeBSD the block that finds no room was read.
      count.read += Math.min(Math.max(ibs, obs), data - count.read);
      throw new VirtioFault("NO_SPACE", `${sink.name}: end of device`);
    }
    if (sparse) await sink.extend(to + count.written);
    if (conversions.has("fsync")) await sink.flush(signal);
  } catch (cause) {
    if (!(cause instanceof VirtioFault) && !signal.aborted) throw cause;
    failure = cause;
  }

  if (drawn !== "") err("\n");
  if (failure instanceof VirtioFault && !signal.aborted) err(`dd: ${failure.message}\n`);
  const { read, written } = count;
  if (status !== "none")
    err(`${records(read, ibs)} records in\n${records(written, obs)} records out\n`);
  if (status !== "none" && status !== "noxfer")
    err(
      `${written} bytes transferred in ${seconds().toFixed(6)} secs (${(written / seconds()).toFixed(0)} bytes/sec)\n`,
    );
  // Ctrl-C counts as a failure of the command, with the shell's status for it.
  signal.throwIfAborted();
  return failure === null ? 0 : 1;
}

// camcontrol(8): what is on SCSI buses, and commands by hand.
import { type ScsiCommand, type ScsiResult, type ScsiUnit, VirtioFault } from "@virtio/core";
import { ScsiOpcode, ScsiStatus } from "@virtio/core/scsi";
import {
  type Command,
  getopt,
  noMore,
  type Options,
  type Session,
  UsageError,
} from "../command.js";
import {
  busesOf,
  busOf,
  type CamDevice,
  deviceNames,
  deviceOf,
  numberOf,
  parseAddress,
} from "./cam-devices.js";
import { decode, dump, parseBytes, statusName } from "./cam-format.js";
import { humanize } from "./diskinfo.js";

/** Tries of a command that only tells that something happened. */
const ATTENTIONS_MAX = 8;
const UNIT_ATTENTION = 6;
const REPORT_LUNS_BYTES = 4096;

/** What each subcommand works with: the unit that was named first, and options. */
type Run = (device: CamDevice, options: Options, session: Session) => Promise<number>;

/** One of them: its own option letters besides -n, -t, -u, -v. */
interface Subcommand {
  readonly letters: string;
  readonly run: Run;
}

// ── commands ────────────────────────────────────────────────────────────────

/** Gives a unit a command until it does more than to tell what happened (the retries of camcontrol). */
async function send(
  { bus, target, lun }: CamDevice,
  { values }: Options,
  { signal }: Session,
  command: Omit<ScsiCommand, "target" | "lun">,
): Promise<ScsiResult> {
  const seconds = values.get("t");
  const timeout = seconds === undefined ? {} : { timeout: whole(seconds) * 1000 };
  for (let tries = 0; ; tries++) {
    const result = await bus.execute({ target, lun, signal, ...timeout, ...command });
    if (result.sense?.key !== UNIT_ATTENTION || tries === ATTENTIONS_MAX) return result;
  }
}

function whole(text: string): number {
  if (!/^\d+$/.test(text)) throw new UsageError(`'${text}' is no whole number`);
  return Number(text);
}

/** Whether a command ended well; else what it ended with, in CAM's words. */
function succeeded(
  { name, bus, target, lun }: CamDevice,
  { status, sense }: ScsiResult,
  { flags }: Options,
  { err }: Session,
): boolean {
  if (status === ScsiStatus.GOOD) return true;
  const path = `(${name}:${bus.adapter}:0:${target}:${lun}):`;
  err("camcontrol: error sending command\n");
  if (!flags.has("v")) return false;
  err(`${path} CAM status: SCSI Status Error\n`);
  err(`${path} SCSI status: ${statusName(status)}\n`);
  if (sense !== null) err(`${path} SCSI sense: ${sense.text}\n`);
  return false;
}

const inquiry: Run = async ({ name, unit }, { flags }, { out }) => {
  if (unit === undefined) throw new VirtioFault("NOT_FOUND", `${name}: there is no such unit`);
  const all = !["D", "S", "R"].some((letter) => flags.has(letter));
  const queueing = unit.queueing ? ", Command Queueing Enabled" : "";
  if (all || flags.has("D")) out(`${name}: ${inBrackets(unit)} ${unit.description}\n`);
  // Only -S prints it without a name.
  if (flags.has("S")) out(`${unit.serial}\n`);
  else if (all && unit.serial !== "") out(`${name}: Serial Number ${unit.serial}\n`);
  if (all || flags.has("R")) out(`${name}: 300.000MB/s transfers${queueing}\n`);
  return 0;
};

const tur: Run = async (device, options, session) => {
  const result = await send(device, options, session, { cdb: new Uint8Array(6) });
  const ready = result.status === ScsiStatus.GOOD;
  session.out(`Unit is ${ready ? "" : "not "}ready\n`);
  if (!ready && options.flags.has("v") && result.sense !== null)
    session.err(`${device.name}: ${result.sense.text}\n`);
  return ready ? 0 : 1;
};

const readcap: Run = async (device, options, session) => {
  const { flags } = options;
  const dataIn = new Uint8Array(32);
  const cdb = new Uint8Array(16);
  // READ CAPACITY(16)
  cdb.set([ScsiOpcode.SERVICE_ACTION_IN_16, 0x10]);
  cdb[13] = dataIn.length;
  const result = await send(device, options, session, { cdb, dataIn });
  if (!succeeded(device, result, options, session)) return 1;
  const words = new DataView(dataIn.buffer);
  const last = words.getUint32(0) * 0x1_0000_0000 + words.getUint32(4);
  const length = words.getUint32(8);
  const block = `Block Length: ${length} bytes`;
  if (flags.has("b")) session.out(`${length}\n`);
  else if (flags.has("s")) session.out(`${flags.has("N") ? last + 1 : last}\n`);
  else if (flags.has("h")) session.out(`Device Size: ${humanize((last + 1) * length)}, ${block}\n`);
  else if (flags.has("N")) session.out(`Number of Blocks: ${last + 1}, ${block}\n`);
  else session.out(`Last Block: ${last}, ${block}\n`);
  return 0;
};

const reportluns: Run = async (device, options, session) => {
  const { flags } = options;
  const dataIn = new Uint8Array(REPORT_LUNS_BYTES);
  const cdb = new Uint8Array(12);
  cdb[0] = ScsiOpcode.REPORT_LUNS;
  cdb[8] = REPORT_LUNS_BYTES >>> 8;
  // QEMU answers it at LUN 0 alone, where every target does.
  const zero = { ...device, lun: 0 };
  const result = await send(zero, options, session, { cdb, dataIn });
  if (!succeeded(device, result, options, session)) return 1;
  const words = new DataView(dataIn.buffer);
  const end = Math.min(8 + words.getUint32(0), dataIn.length - result.residual);
  const luns: number[] = [];
  for (let at = 8; at + 8 <= end; at += 8) luns.push(words.getUint16(at) & 0x3fff);
  if (!flags.has("l")) session.out(`${luns.length} LUN${luns.length === 1 ? "" : "s"} found\n`);
  if (!flags.has("c")) session.out(luns.map((lun) => `${lun}\n`).join(""));
  return 0;
};

/** `-c cdb [-i length format | -o length byte ...]` */
const cmd: Run = async (device, options, session) => {
  const { values, operands } = options;
  const text = values.get("c");
  if (text === undefined) throw new UsageError("no command is given: -c");
  const [inward, outward] = [values.get("i"), values.get("o")];
  if (inward !== undefined && outward !== undefined)
    throw new UsageError("data goes one way: -i or -o");
  const command: Omit<ScsiCommand, "target" | "lun"> = { cdb: parseBytes(text) };
  if (outward !== undefined) {
    const dataOut = new Uint8Array(whole(outward));
    dataOut.set(parseBytes(operands.join(" ")).subarray(0, dataOut.length));
    const result = await send(device, options, session, { ...command, dataOut });
    return succeeded(device, result, options, session) ? 0 : 1;
  }
  const dataIn = inward === undefined ? null : new Uint8Array(whole(inward));
  const result = await send(device, options, session, {
    ...command,
    ...(dataIn === null ? {} : { dataIn }),
  });
  if (!succeeded(device, result, options, session)) return 1;
  if (dataIn === null) return 0;
  const came = dataIn.subarray(0, dataIn.length - result.residual);
  const format = operands.join(" ");
  session.out(format === "" || format === "-" ? dump(came) : decode(came, format));
  return 0;
};

const subcommands: Readonly<Record<string, Subcommand>> = {
  inquiry: { letters: "DSR", run: inquiry },
  tur: { letters: "", run: tur },
  readcap: { letters: "bhsNq", run: readcap },
  reportluns: { letters: "clr:", run: reportluns },
  cmd: { letters: "c:i:o:", run: cmd },
};

// ── buses ───────────────────────────────────────────────────────────────────

const inBrackets = ({ vendor, product, revision }: ScsiUnit): string =>
  `<${vendor} ${product} ${revision}>`;

function devlist(args: readonly string[], { kernel, out }: Session): number {
  const { flags, operands } = getopt(args, "bv");
  noMore(operands);
  for (const bus of busesOf(kernel)) {
    const number = numberOf(bus);
    if (flags.has("v")) out(`scbus${number} on ${bus.adapter} bus 0:\n`);
    else if (flags.has("b")) out(`scbus${number} on ${bus.adapter} bus 0\n`);
    if (flags.has("b")) continue;
    for (const unit of bus.units) {
      const where = `scbus${number} target ${unit.target} lun ${unit.lun.toString(16)}`;
      out(`${inBrackets(unit).padEnd(33)}  at ${where} (${unit.peripheral ?? ""})\n`);
    }
  }
  return 0;
}

/** `all`, a bus, a unit by where it is, or by its name. */
async function overBuses(
  what: "Re-scan" | "Reset",
  args: readonly string[],
  { kernel, out, err }: Session,
): Promise<number> {
  const [which, ...rest] = getopt(args, "").operands;
  if (which === undefined) throw new UsageError("all, a bus or a device is to be given");
  noMore(rest);
  const attempt = async (name: string, work: () => Promise<unknown>): Promise<number> => {
    try {
      await work();
      out(`${what} of ${name} was successful\n`);
      return 0;
    } catch (fault) {
      if (!(fault instanceof VirtioFault)) throw fault;
      err(`camcontrol: ${what} of ${name} returned error ${fault.errno}: ${fault.message}\n`);
      return 1;
    }
  };
  if (which === "all" || /^\d+$/.test(which)) {
    const buses = which === "all" ? busesOf(kernel) : [busOf(kernel, Number(which))];
    let status = 0;
    for (const bus of buses)
      status |= await attempt(`bus ${numberOf(bus)}`, () =>
        what === "Reset" ? bus.reset() : bus.rescan(),
      );
    return status;
  }
  const device = deviceOf(kernel, which);
  const { bus, target, lun } = device;
  const name = parseAddress(which) === null ? `${numberOf(bus)}:${target}:${lun}` : which;
  return attempt(name, () =>
    what === "Reset" ? bus.manage("resetLun", { target, lun }) : bus.rescan(target),
  );
}

/** camcontrol(8), of SCSI. */
export const camcontrol: Command = {
  name: "camcontrol",
  usage:
    "camcontrol devlist [-b] [-v] | {inquiry [-DSR] | tur | readcap [-bhNs] | reportluns [-cl] | cmd -c cdb [-i len fmt | -o len byte ...]} device [-t seconds] [-v] | {rescan | reset} all | bus | device",
  summary: "list SCSI devices, ask them, look for them again, reset them; send them a command",
  async run([name, ...args], session) {
    if (name === undefined) throw new UsageError("");
    if (name === "devlist") return devlist(args, session);
    if (name === "rescan") return overBuses("Re-scan", args, session);
    if (name === "reset") return overBuses("Reset", args, session);
    const subcommand = subcommands[name];
    if (subcommand === undefined) throw new UsageError(`unrecognized command '${name}'`);
    // The device comes first, or by -n and -u.
    const [first = ""] = args;
    const named = first !== "" && !first.startsWith("-");
    const options = getopt(named ? args.slice(1) : args, `n:t:u:v${subcommand.letters}`);
    const byFlags = `${options.values.get("n") ?? "da"}${options.values.get("u") ?? ""}`;
    if (!named && !options.values.has("u")) throw new UsageError("no device is given");
    if (name !== "cmd") noMore(options.operands);
    const device = deviceOf(session.kernel, named ? first : byFlags);
    return subcommand.run(device, options, session);
  },
  async complete(args, { kernel }) {
    if (args.length === 1) return ["devlist", "rescan", "reset", ...Object.keys(subcommands)];
    if (args.length > 2) return [];
    const [name] = args;
    const buses = busesOf(kernel).map((bus) => String(numberOf(bus)));
    const ofBuses = name === "rescan" || name === "reset" ? ["all", ...buses] : [];
    return name === "devlist" ? [] : [...ofBuses, ...deviceNames(kernel)];
  },
};

// The command line of `virtio`.
import { parseArgs } from "node:util";
import { type DeviceSpec, parseDeviceSpec, VirtioFault } from "@virtio/core";
import { parseSetting } from "../loader-conf.js";
import { type MachineSpec, parseMachineSpec } from "../node/machine.js";

/** What the user asks for. */
export type Invocation =
  | { readonly kind: "help" | "version" }
  | {
      readonly kind: "boot";
      readonly machine: MachineSpec;
      /** Undefined: the default devices. */
      readonly devices: readonly DeviceSpec[] | undefined;
      readonly kernelConf: string | undefined;
      readonly loaderConf: string | undefined;
      readonly set: readonly string[];
      /** Undefined: commands come from a terminal, or standard input. */
      readonly commands: readonly string[] | undefined;
      readonly quiet: boolean;
    };

/** A command line that cannot be read: exit status 2. */
export class UsageFault extends Error {
  override readonly name: string = "UsageFault";
}

/** What `virtio --help` prints. */
export const help = `usage: virtio boot [options]
       virtio --help | --version

Boots a machine with virtio devices and FreeBSD's drivers for them, and gives a shell on it.

  --machine SPEC      embedded[,ncpus=N] (default), or
                      qemu[,type=q35|pc][,ncpus=N][,interrupts=intx|msix]
  --device SPEC       a device; once for each. Default: one of each kind
                        blk[,file=IMAGE][,format=raw|qcow2][,serial=S][,readonly=on][,size=N][,queues=N]
                        net[,mac=M][,backend=gateway|loop|pcap:FILE|stream:SOCKET|tap:IF][,queues=N][,mtu=N]
                        console[,ports=N]
                      for every device: legacy=, packed=, indirect=, event_idx=, queue-size=, vectors=,
                      and any feature of it by name: discard=off
  --kernel-conf FILE  what is compiled into the kernel, config(5). Default: GENERIC, everything
  --loader-conf FILE  modules to load and tunables, loader.conf(5)
  --set NAME=VALUE    a kernel environment variable; wins over loader.conf
  -c, --command "COMMAND; COMMAND"
                      run commands and exit with the status of the first that fails
  -q, --quiet         print no kernel messages
  -h, --help          print this
      --version       print the version

Without -c: a shell on a terminal, else commands from standard input. Type 'help' there.
`;

/**
 * Reads a command line.
 * @throws UsageFault with one line
 */
export function parseArguments(argv: readonly string[]): Invocation {
  const { values, positionals } = parse(argv);
  if (values.help === true) return { kind: "help" };
  if (values.version === true) return { kind: "version" };
  const [command, extra] = positionals;
  if (command === undefined) throw new UsageFault("what to do? Try 'virtio --help'");
  if (command !== "boot") throw new UsageFault(`no such command '${command}': try 'virtio --help'`);
  if (extra !== undefined)
    throw new UsageFault(`unexpected argument '${extra}': try 'virtio --help'`);
  return usage(() => {
    for (const setting of values.set ?? []) parseSetting(setting, "--set");
    return {
      kind: "boot",
      machine: parseMachineSpec(values.machine ?? "embedded"),
      devices: values.device?.map(parseDeviceSpec),
      kernelConf: values["kernel-conf"],
      loaderConf: values["loader-conf"],
      set: values.set ?? [],
      commands: values.command,
      quiet: values.quiet ?? false,
    };
  });
}

/** What is wrong with a specification on the command line is wrong usage. */
function usage<T>(read: () => T): T {
  try {
    return read();
  } catch (cause) {
    if (cause instanceof VirtioFault) throw new UsageFault(cause.message, { cause });
    throw cause;
  }
}

const options = {
  machine: { type: "string" },
  device: { type: "string", multiple: true },
  "kernel-conf": { type: "string" },
  "loader-conf": { type: "string" },
  set: { type: "string", multiple: true },
  command: { type: "string", short: "c", multiple: true },
  quiet: { type: "boolean", short: "q" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

function parse(
  argv: readonly string[],
): ReturnType<typeof parseArgs<{ options: typeof options; allowPositionals: true }>> {
  try {
    return parseArgs({ args: [...argv], options, allowPositionals: true });
  } catch (cause) {
    // Node explains at length; its first sentence says what is wrong.
    const [what] = (cause instanceof Error ? cause.message : String(cause)).split(/\. |\n/);
    throw new UsageFault(`${what?.replace(/\.$/, "")}: try 'virtio --help'`, { cause });
  }
}

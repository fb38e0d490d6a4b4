// From files and specifications to a running kernel: what `virtio boot` does before its shell.
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { type DeviceSpec, type Log, type Machine, parseDeviceSpec } from "@virtio/core";
import { Kernel } from "../kernel.js";
import { parseKernelConf } from "../kernel-conf.js";
import { load } from "../loader.js";
import { parseLoaderConf, parseSetting } from "../loader-conf.js";
import { fileFault } from "./file-fault.js";
import {
  defaultDevices,
  type MachineOptions,
  type MachineSpec,
  openMachine,
  parseMachineSpec,
} from "./machine.js";
import { release } from "./release.js";
import { importModule } from "./user-modules.js";

/** What to boot. */
export interface BootOptions {
  /** Default `embedded`. */
  readonly machine?: string | MachineSpec | undefined;
  /** Default one of each kind. */
  readonly devices?: readonly (string | DeviceSpec)[] | undefined;
  /** File of config(5). Default: GENERIC. */
  readonly kernelConf?: string | undefined;
  /** File of loader.conf(5). */
  readonly loaderConf?: string | undefined;
  /** `NAME=VALUE`: wins over the loader.conf. */
  readonly set?: readonly string[] | undefined;
  /** Folder that relative paths and packages start from. Default the process's. */
  readonly cwd?: string | undefined;
  /** Prints the kernel's messages as they come. Default: they are only kept. */
  readonly console?: Log | undefined;
  /** Ends the boot; what was started is ended too. */
  readonly signal?: AbortSignal | undefined;
  /** Starts the machine. Default {@link openMachine}. */
  readonly open?: ((spec: MachineSpec, options: MachineOptions) => Promise<Machine>) | undefined;
}

/**
 * Boots. Every file and setting is read and checked before the machine is started; when anything fails nothing is left running.
 * @throws VirtioFault with one clear line; the signal's reason when it is aborted
 */
export async function boot(options: BootOptions = {}): Promise<Kernel> {
  const { machine = "embedded", devices = defaultDevices, set = [], signal } = options;
  const { cwd = process.cwd(), open = openMachine } = options;
  const spec = typeof machine === "string" ? parseMachineSpec(machine) : machine;
  const specs = devices.map((device) =>
    typeof device === "string" ? parseDeviceSpec(device) : device,
  );
  const { kernelConf, loaderConf } = options;
  const settings = [
    ...(loaderConf === undefined ? [] : parseLoaderConf(await text(loaderConf, cwd), loaderConf)),
    ...set.map((setting) => parseSetting(setting, "--set")),
  ];
  const image = await load({
    settings,
    importPackage: (name) => importModule(name, cwd),
    ...(kernelConf === undefined
      ? {}
      : { kernelConf: parseKernelConf(await text(kernelConf, cwd), kernelConf) }),
  });

  let kernel: Kernel | null = null;
  const early: string[] = [];
  const log: Log = (line) => {
    if (kernel === null) early.push(line);
    else kernel.messages.log(line);
  };
  signal?.throwIfAborted();
  const started = await open(spec, { devices: specs, cwd, log, signal });
  const { console } = options;
  kernel = new Kernel({
    machine: started,
    image,
    release,
    ...(console === undefined ? {} : { console }),
  });
  try {
    await kernel.boot();
    for (const line of early) kernel.messages.log(line);
    signal?.throwIfAborted();
    return kernel;
  } catch (cause) {
    await kernel.shutdown();
    throw cause;
  }
}

/** A configuration file. */
async function text(path: string, cwd: string): Promise<string> {
  try {
    return await readFile(resolve(cwd, path), "utf8");
  } catch (cause) {
    throw fileFault(path, cause);
  }
}

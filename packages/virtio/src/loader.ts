// The loader (loader(8)): from configuration files and settings to a kernel that is linked but does not run yet.
import { type KernelModule, VirtioFault } from "@virtio/core";
import { GENERIC, type KernelConf } from "./kernel-conf.js";
import { KernelEnvironment } from "./kernel-environment.js";
import { Linker } from "./linker.js";
import type { Assignment } from "./loader-conf.js";
import { ModuleDirectory, type ModuleTable, moduleTable } from "./modules.js";
import { syntaxFault } from "./syntax.js";

/** What the loader takes. */
export interface LoaderOptions {
  /** Modules there are. Default: those of this project. */
  readonly modules?: ModuleTable;
  /** What is compiled in. Default: GENERIC, every module of this project. */
  readonly kernelConf?: KernelConf;
  /** loader.conf, then what was set by hand: the last of one name wins. */
  readonly settings?: readonly Assignment[];
  /** Imports the npm package that a `foo_name="package"` names; rejects with NOT_FOUND. Without it, loading such a module fails. */
  readonly importPackage?: (name: string) => Promise<{ readonly kernelModule: KernelModule }>;
}

/** A kernel as the loader leaves it: what is linked, and the environment. For one kernel. */
export interface KernelImage {
  readonly conf: KernelConf;
  readonly environment: KernelEnvironment;
  readonly linker: Linker;
  /** What the loader has to say at boot. */
  readonly messages: readonly string[];
}

/** The modules a kernel configuration compiles in. */
async function compiledIn(
  conf: KernelConf,
  directory: ModuleDirectory,
): Promise<readonly KernelModule[]> {
  const generic = conf.generic ? await directory.all() : [];
  const listed: KernelModule[] = [];
  for (const [name, position] of [...conf.devices, ...conf.without]) {
    // The PCI bus is part of every kernel, as a configuration from FreeBSD says it should be.
    if (name === "pci") continue;
    const all = await directory.all();
    const module = all.find((each) => each.name === name);
    if (module === undefined)
      throw syntaxFault(
        position,
        `unknown device '${name}' (there is: ${all.map((each) => each.name).join(", ")})`,
      );
    if (conf.devices.has(name)) listed.push(module);
  }
  return [...generic, ...listed].filter((module) => !conf.without.has(module.name));
}

/** What happens to a `foo_name` where no packages can be imported. */
const refusePackage = async (name: string): Promise<never> => {
  throw new VirtioFault("UNSUPPORTED", `the package '${name}' can be imported in Node only`);
};

/**
 * Links a kernel: what the configuration compiles in, then each `foo_load="YES"` in order. `foo_name` names an npm package to take the
 * module foo from. Every assignment is in the kernel environment.
 * @throws VirtioFault NOT_FOUND no such module; INVALID no such device, or a tunable of a linked driver is unknown or out of range
 */
export async function load(options: LoaderOptions = {}): Promise<KernelImage> {
  const { modules = moduleTable, kernelConf: conf = GENERIC, settings = [] } = options;
  const { importPackage = refusePackage } = options;
  const environment = new KernelEnvironment(settings);
  const thirdParty: ModuleTable = Object.fromEntries(
    [...environment.values].flatMap(([name, packageName]) => {
      const module = /^(.+)_name$/.exec(name)?.[1] ?? "";
      if (environment.get(`${module}_load`) === undefined) return [];
      return [[module, (): ReturnType<typeof importPackage> => importPackage(packageName)]];
    }),
  );

  const own = new ModuleDirectory(modules);
  const linker = new Linker(new ModuleDirectory({ ...modules, ...thirdParty }), (module) =>
    environment.check(module),
  );
  for (const module of await compiledIn(conf, own)) await linker.compileIn(module);

  const messages: string[] = [];
  for (const name of environment.values.keys()) {
    const module = /^(.+)_load$/.exec(name)?.[1];
    if (module === undefined || !environment.enabled(name)) continue;
    try {
      await linker.load(module);
    } catch (cause) {
      if (!(cause instanceof VirtioFault)) throw cause;
      if (cause.code === "EXISTS") messages.push(`module ${module} already present!`);
      else if (cause.code === "INVALID") throw cause;
      else
        throw new VirtioFault(
          cause.code,
          `${environment.origin(name)}: can't load ${module}: ${cause.message}`,
          { cause },
        );
    }
  }
  return { conf, environment, linker, messages };
}

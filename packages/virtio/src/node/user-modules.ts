// Kernel modules from npm packages of the user: `foo_load="YES"`, `foo_name="npm-package"`.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { type KernelModule, VirtioFault } from "@virtio/core";

/** Conditions under which Node imports a package. */
const CONDITIONS = ["node", "import", "module-sync", "default"];

/**
 * Imports a package, or a file such as `./driver.js`, as a program in `folder` would.
 * @throws VirtioFault NOT_FOUND there is none, it does not load, or it exports no `kernelModule`
 */
export async function importModule(
  name: string,
  folder: string,
): Promise<{ readonly kernelModule: KernelModule }> {
  const path = await locate(name, folder);
  let exports: unknown;
  try {
    exports = await import(pathToFileURL(path).href);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new VirtioFault("NOT_FOUND", `the package '${name}' does not load: ${why}`, { cause });
  }
  const kernelModule =
    typeof exports === "object" && exports !== null && "kernelModule" in exports
      ? exports.kernelModule
      : undefined;
  if (isKernelModule(kernelModule)) return { kernelModule };
  throw new VirtioFault("NOT_FOUND", `the package '${name}' exports no kernelModule`);
}

/** The file that `import name` means in a folder. */
async function locate(name: string, folder: string): Promise<string> {
  if (/^\.{0,2}\//.test(name)) return resolve(folder, name);
  try {
    return createRequire(join(folder, "loader.conf")).resolve(name);
  } catch (cause) {
    // require() does not see packages that offer themselves to import alone.
    const path = await locateImportOnly(name, folder);
    if (path !== undefined) return path;
    throw new VirtioFault("NOT_FOUND", `there is no package '${name}' in ${folder}`, { cause });
  }
}

async function locateImportOnly(name: string, folder: string): Promise<string | undefined> {
  for (let at = resolve(folder); ; at = dirname(at)) {
    const home = join(at, "node_modules", name);
    const text = await readFile(join(home, "package.json"), "utf8").catch(() => undefined);
    if (text !== undefined) {
      const entry = entryOf((JSON.parse(text) as { exports?: unknown }).exports);
      return entry === undefined ? undefined : join(home, entry);
    }
    if (dirname(at) === at) return undefined;
  }
}

/** The main entry of a package's `exports`, under import's conditions. */
function entryOf(exports: unknown): string | undefined {
  if (typeof exports === "string") return exports;
  if (typeof exports !== "object" || exports === null) return undefined;
  for (const [key, value] of Object.entries(exports))
    if (key === "." || CONDITIONS.includes(key)) {
      const entry = entryOf(value);
      if (entry !== undefined) return entry;
    }
  return undefined;
}

/** Whether a value has the shape of a module: others wrote it. */
function isKernelModule(value: unknown): value is KernelModule {
  if (typeof value !== "object" || value === null) return false;
  const { file, name, version, depends, drivers, busDrivers } = value as Partial<
    Record<keyof KernelModule, unknown>
  >;
  return (
    typeof file === "string" &&
    typeof name === "string" &&
    typeof version === "number" &&
    [depends, drivers, busDrivers].every(Array.isArray)
  );
}

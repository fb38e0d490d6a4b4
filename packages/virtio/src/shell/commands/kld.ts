// kldstat(8), kldload(8), kldunload(8).
import { VirtioFault } from "@virtio/core";
import type { Kernel } from "../../kernel.js";
import type { LinkerFile } from "../../linker.js";
import { fileOf } from "../../modules.js";
import { type Command, getopt, noMore, UsageError } from "../command.js";

/** A file as it is printed: the kernel has no suffix. */
const shown = ({ id, name }: LinkerFile): string => (id === 1 ? name : `${name}.ko`);

const loaded = ({ linker }: Kernel): readonly string[] =>
  linker.files.filter(({ id }) => id !== 1).map(({ name }) => name);

/** kldstat(8), without addresses and sizes: modules here have none. */
export const kldstat: Command = {
  name: "kldstat",
  usage: "kldstat [-v] [-i id] [-n filename] [-m modname]",
  summary: "list what is linked into the kernel; -v with the modules inside",
  async run(args, { kernel, out }) {
    const { flags, values, operands } = getopt(args, "i:m:n:v");
    noMore(operands);
    const { linker } = kernel;
    const [id, file, name] = ["i", "n", "m"].map((letter) => values.get(letter));
    if (name !== undefined) {
      const at = linker.modules.findIndex((module) => module.name === name);
      if (at < 0) throw new VirtioFault("NOT_FOUND", `can't find module ${name}`);
      out(`Id  Refs Name\n${String(at + 1).padStart(3)}    1 ${name}\n`);
      return 0;
    }
    const files = linker.files.filter(
      (each) =>
        (id === undefined || String(each.id) === id) &&
        (file === undefined || each.name === fileOf(file)),
    );
    if (files.length === 0) throw new VirtioFault("NOT_FOUND", `can't find file ${file ?? id}`);
    out("Id Refs Name\n");
    for (const each of files) {
      const refs = linker.references(each);
      out(`${String(each.id).padStart(2)} ${String(refs).padStart(4)} ${shown(each)}\n`);
      if (!flags.has("v")) continue;
      out("\tContains modules:\n\t\t Id Name\n");
      for (const module of each.modules)
        out(`\t\t${String(linker.modules.indexOf(module) + 1).padStart(3)} ${module.name}\n`);
    }
    return 0;
  },
};

/** kldload(8). */
export const kldload: Command = {
  name: "kldload",
  usage: "kldload [-nqv] file ...",
  summary: "load modules; -n when not loaded yet",
  async run(args, { kernel, out, err }) {
    const { flags, operands } = getopt(args, "nqv");
    if (operands.length === 0) throw new UsageError("");
    let status = 0;
    for (const file of operands) {
      try {
        const id = await kernel.load(file);
        if (flags.has("v")) out(`Loaded ${file}, id=${id}\n`);
      } catch (fault) {
        if (!(fault instanceof VirtioFault)) throw fault;
        if (fault.code === "EXISTS" && flags.has("n")) continue;
        if (!flags.has("q")) err(`kldload: can't load ${file}: ${fault.message}\n`);
        status = 1;
      }
    }
    return status;
  },
  complete: async (_, { kernel }) =>
    kernel.linker.available.filter(
      (file) => !kernel.linker.modules.some((module) => module.file === file),
    ),
};

/** kldunload(8). */
export const kldunload: Command = {
  name: "kldunload",
  usage: "kldunload [-v] [-i id | file] ...",
  summary: "detach the devices of modules and unload them",
  async run(args, { kernel, out, err }) {
    const { flags, values, operands } = getopt(args, "i:v");
    const id = values.get("i");
    const byId = kernel.linker.files.find((file) => String(file.id) === id);
    if (id !== undefined && byId === undefined)
      throw new VirtioFault(
        "NOT_FOUND",
        `can't find file with id ${id}: No such file or directory`,
      );
    const files = [...(byId === undefined ? [] : [byId.name]), ...operands];
    if (files.length === 0) throw new UsageError("");
    let status = 0;
    for (const file of files) {
      try {
        await kernel.unload(file);
        if (flags.has("v")) out(`Unloading ${file}\n`);
      } catch (fault) {
        if (!(fault instanceof VirtioFault)) throw fault;
        const what = fault.code === "NOT_FOUND" ? `can't find file ${file}` : "can't unload file";
        err(`kldunload: ${what}: ${fault.message}\n`);
        status = 1;
      }
    }
    return status;
  },
  complete: async (_, { kernel }) => loaded(kernel),
};

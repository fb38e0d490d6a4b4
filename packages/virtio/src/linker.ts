// The kernel linker (kld(4)): which modules are in, who needs whom, and who may go.
import { type KernelModule, VirtioFault } from "@virtio/core";
import { fileOf, type ModuleDirectory } from "./modules.js";

/** One file that is linked: the kernel, or a loaded module. */
export interface LinkerFile {
  /** kldstat's Id. The kernel has 1. */
  readonly id: number;
  /** `kernel`, `virtio_blk` */
  readonly name: string;
  readonly modules: readonly KernelModule[];
}

interface Loaded {
  readonly id: number;
  readonly module: KernelModule;
  /** Loaded because someone asked for it, not because another module needs it. */
  asked: boolean;
}

/** What every kernel holds, so that a module may name it as a dependency. */
const BUILT_IN: readonly string[] = ["kernel", "pci"];

/** The linked files of one kernel. */
export class Linker {
  readonly #directory: ModuleDirectory;
  readonly #check: (module: KernelModule) => void;
  readonly #compiled: KernelModule[] = [];
  #loaded: Loaded[] = [];
  #lastId = 1;

  /** @param check - throws when a module may not come in: its tunables are wrong. */
  constructor(directory: ModuleDirectory, check: (module: KernelModule) => void = () => {}) {
    this.#directory = directory;
    this.#check = check;
  }

  /** KLD files that could be loaded, or are. */
  get available(): readonly string[] {
    return this.#directory.files;
  }

  /** The kernel first, then what was loaded, in order. */
  get files(): readonly LinkerFile[] {
    return [
      { id: 1, name: "kernel", modules: this.#compiled },
      ...this.#loaded.map(({ id, module }) => ({ id, name: module.file, modules: [module] })),
    ];
  }

  /** Every module, in the order in which they came in. */
  get modules(): readonly KernelModule[] {
    return this.files.flatMap((file) => file.modules);
  }

  /** kldstat's Refs: who asked for the file, and each file that needs it. Every file needs the kernel. */
  references(file: LinkerFile): number {
    if (file.id === 1) return 1 + this.#loaded.length;
    const loaded = this.#loaded.find(({ id }) => id === file.id);
    return loaded === undefined ? 0 : Number(loaded.asked) + this.#dependents(loaded).length;
  }

  /** Links a module and what it needs into the kernel file. What is in already stays as it is. @throws VirtioFault */
  async compileIn(module: KernelModule): Promise<void> {
    this.#compiled.push(...(await this.#resolve(module)));
  }

  /**
   * Loads a file, and first what it needs.
   * @param name - KLD file (`if_vtnet`), or module (`vtnet`).
   * @returns the modules that came in by this, in order.
   * @throws VirtioFault NOT_FOUND no such module, or none that it needs; EXISTS it is in already; INVALID its tunables are wrong.
   */
  async load(name: string): Promise<readonly KernelModule[]> {
    const module = await this.#directory.find(name);
    if (module === undefined)
      throw new VirtioFault(
        "NOT_FOUND",
        `No such file or directory (there is: ${this.available.join(", ")})`,
      );
    if (this.#has(module.name))
      throw new VirtioFault("EXISTS", "module already loaded or in kernel");
    const added = await this.#resolve(module);
    for (const each of added) {
      this.#lastId++;
      this.#loaded.push({ id: this.#lastId, module: each, asked: each === module });
    }
    return added;
  }

  /**
   * What would go with a file: the file, and what was loaded only for its sake; last in, first out.
   * @throws VirtioFault NOT_FOUND no such file is loaded; BUSY others need it.
   */
  unloadable(name: string): readonly KernelModule[] {
    const wanted = this.#loaded.find(({ module }) => module.file === fileOf(name));
    if (wanted === undefined)
      throw new VirtioFault(
        "NOT_FOUND",
        this.modules.some((module) => module.file === fileOf(name))
          ? "it is part of the kernel"
          : "no such file is loaded",
      );
    const dependents = this.#dependents(wanted);
    if (dependents.length > 0)
      throw new VirtioFault(
        "BUSY",
        `${dependents.map(({ module }) => module.file).join(", ")} needs it`,
      );
    const gone = new Set([wanted]);
    for (const candidate of this.#loaded.toReversed())
      if (!candidate.asked && this.#dependents(candidate).every((by) => gone.has(by)))
        gone.add(candidate);
    return [...gone].map(({ module }) => module);
  }

  /** Takes modules out that `unloadable` named. */
  unlink(modules: readonly KernelModule[]): void {
    this.#loaded = this.#loaded.filter(({ module }) => !modules.includes(module));
  }

  #has(name: string): boolean {
    return BUILT_IN.includes(name) || this.modules.some((module) => module.name === name);
  }

  #dependents(file: Loaded): readonly Loaded[] {
    return this.#loaded.filter(({ module }) => module.depends.includes(file.module.name));
  }

  /** A module and what it needs and is not in yet; what is needed comes first. */
  async #resolve(module: KernelModule, above: readonly string[] = []): Promise<KernelModule[]> {
    if (this.#has(module.name)) return [];
    if (above.includes(module.name))
      throw new VirtioFault(
        "INVALID",
        `modules need each other: ${[...above, module.name].join(" -> ")}`,
      );
    const needed: KernelModule[] = [];
    for (const name of module.depends) {
      if (this.#has(name) || needed.some((each) => each.name === name)) continue;
      const found = await this.#directory.find(name);
      if (found === undefined)
        throw new VirtioFault(
          "NOT_FOUND",
          `${module.file} needs the module '${name}', and there is none`,
        );
      for (const each of await this.#resolve(found, [...above, module.name]))
        if (!needed.includes(each)) needed.push(each);
    }
    this.#check(module);
    return [...needed, module];
  }
}

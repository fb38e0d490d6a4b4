// Where modules come from: a table of dynamic imports, so that only what is asked for is loaded.
import type { KernelModule } from "@virtio/core";

/** How each module gets into memory, by KLD file name. */
export type ModuleTable = Readonly<
  Record<string, () => Promise<{ readonly kernelModule: KernelModule }>>
>;

/** The module `virtio`: rings and the words that all drivers share. It is in this package, and attaches to nothing. */
export const virtioModule: KernelModule = {
  file: "virtio",
  name: "virtio",
  version: 1,
  depends: [],
  drivers: [],
  busDrivers: [],
};

/** The modules of this project. */
export const moduleTable: ModuleTable = {
  virtio: async () => ({ kernelModule: virtioModule }),
  virtio_pci: () => import("@virtio/pci-transport"),
  virtio_blk: () => import("@virtio/vtblk"),
  virtio_scsi: () => import("@virtio/vtscsi"),
  if_vtnet: () => import("@virtio/vtnet"),
  virtio_balloon: () => import("@virtio/balloon"),
  virtio_console: () => import("@virtio/console"),
};

/** Finds modules by either of their names, as linker.hints does on FreeBSD. Each is brought into memory once. */
export class ModuleDirectory {
  readonly #modules = new Map<string, () => Promise<KernelModule>>();

  constructor(table: ModuleTable = moduleTable) {
    for (const [file, load] of Object.entries(table)) {
      let loading: Promise<KernelModule> | undefined;
      this.#modules.set(file, () => {
        loading ??= load().then(({ kernelModule }) => kernelModule);
        return loading;
      });
    }
  }

  /** KLD file names, without `.ko`. */
  get files(): readonly string[] {
    return [...this.#modules.keys()];
  }

  /** Every module there is. */
  all(): Promise<readonly KernelModule[]> {
    return Promise.all([...this.#modules.values()].map((load) => load()));
  }

  /** By KLD file name (`if_vtnet`, `if_vtnet.ko`), else by the name of the module inside (`vtnet`). */
  async find(name: string): Promise<KernelModule | undefined> {
    const load = this.#modules.get(fileOf(name));
    return load === undefined ? (await this.all()).find((module) => module.name === name) : load();
  }
}

/** `virtio_blk` of `virtio_blk.ko`. */
export function fileOf(name: string): string {
  return name.replace(/\.ko$/, "");
}

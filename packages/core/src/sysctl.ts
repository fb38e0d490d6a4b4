// The sysctl(8) tree: every driver publishes its state here.

/** One node that a driver may publish under. */
export interface SysctlNode {
  node(name: string, description: string): SysctlNode;
  /** A leaf; `write` takes the text a person typed and throws a VirtioFault when it will not have it. */
  value(
    name: string,
    description: string,
    read: () => number | string,
    write?: (value: string) => void | Promise<void>,
  ): void;
}

/** A leaf of the tree. */
export interface SysctlLeaf {
  /** Whole name: `dev.vtblk.0.writecache_mode`. */
  readonly name: string;
  readonly description: string;
  readonly read: () => number | string;
  /** Absent: read-only. */
  readonly write: ((value: string) => void | Promise<void>) | undefined;
}

/** Names in order, `vq2` before `vq10`. */
const byName = (a: SysctlLeaf, b: SysctlLeaf): number =>
  a.name.localeCompare(b.name, "en", { numeric: true });

/** A whole tree. Publishing a name again replaces it. */
export class SysctlTree implements SysctlNode {
  readonly #leaves = new Map<string, SysctlLeaf>();
  readonly #descriptions = new Map<string, string>();

  node(name: string, description: string): SysctlNode {
    return this.#under("", name, description);
  }

  value(
    name: string,
    description: string,
    read: SysctlLeaf["read"],
    write?: SysctlLeaf["write"],
  ): void {
    this.#leaves.set(name, { name, description, read, write });
  }

  #under(prefix: string, name: string, description: string): SysctlNode {
    const path = prefix + name;
    this.#descriptions.set(path, description);
    return {
      node: (child, text) => this.#under(`${path}.`, child, text),
      value: (child, text, read, write) => this.value(`${path}.${child}`, text, read, write),
    };
  }

  /** What a node is for; empty when nothing said. */
  description(name: string): string {
    return this.#leaves.get(name)?.description ?? this.#descriptions.get(name) ?? "";
  }

  /** The leaf of this whole name, or all leaves below the node of this name, or all leaves when no name is given; in order of names. */
  find(name?: string): readonly SysctlLeaf[] {
    const all = [...this.#leaves.values()].sort(byName);
    if (name === undefined) return all;
    return all.filter((leaf) => leaf.name === name || leaf.name.startsWith(`${name}.`));
  }

  /** Takes a node and everything below it out of the tree: its device is gone. */
  remove(name: string): void {
    for (const map of [this.#leaves, this.#descriptions])
      for (const key of [...map.keys()])
        if (key === name || key.startsWith(`${name}.`)) map.delete(key);
  }
}

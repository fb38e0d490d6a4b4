// What QEMU makes a device of, on its command line and by QMP alike.

/** One thing that QEMU makes. */
export interface Part {
  readonly kind: "blockdev" | "netdev" | "object" | "chardev" | "device";
  /** As JSON has them on the command line and in QMP; but a `chardev`, which has no JSON, is made on the command line alone. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** The commands of QMP that make each kind, and take it away by one of its options. */
const commands: Readonly<
  Record<Exclude<Part["kind"], "chardev">, readonly [add: string, remove: string, name: string]>
> = {
  blockdev: ["blockdev-add", "blockdev-del", "node-name"],
  netdev: ["netdev_add", "netdev_del", "id"],
  object: ["object-add", "object-del", "id"],
  device: ["device_add", "device_del", "id"],
};

/** The option of the command line that makes a part, and its value. */
export function optionOf({ kind, options }: Part): readonly [option: string, value: string] {
  const option = `-${kind}`;
  if (kind !== "chardev") return [option, JSON.stringify(options)];
  const { backend, ...rest } = options;
  const pairs = Object.entries(rest).map(([key, value]) => `${key}=${value}`);
  return [option, [backend, ...pairs].join(",")];
}

/** QMP's command with its arguments. */
export interface Command {
  readonly name: string;
  readonly arguments: Readonly<Record<string, unknown>>;
}

/** The commands that make a part and take it away; null for what the command line alone makes. */
export function commandsOf({ kind, options }: Part): { add: Command; remove: Command } | null {
  if (kind === "chardev") return null;
  const [add, remove, name] = commands[kind];
  return {
    add: { name: add, arguments: options },
    remove: { name: remove, arguments: { [name]: options[name] } },
  };
}

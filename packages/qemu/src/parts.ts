// What QEMU makes a device of, on its command line and by QMP alike.

/** One thing that QEMU makes: a block node, a network back end, a character device, an object, a device. */
export interface Part {
  readonly kind: keyof typeof ways;
  /** As JSON has them on the command line and in QMP; but a `chardev`, which has no JSON, is made on the command line alone. */
  readonly options: Readonly<Record<string, unknown>>;
}

const byId = (options: Part["options"]): Part["options"] => ({ id: options["id"] });

/** How each kind is asked for, and how it is taken away. */
const ways = {
  blockdev: {
    option: "-blockdev",
    add: "blockdev-add",
    remove: "blockdev-del",
    name: (options: Part["options"]) => ({ "node-name": options["node-name"] }),
  },
  netdev: { option: "-netdev", add: "netdev_add", remove: "netdev_del", name: byId },
  object: { option: "-object", add: "object-add", remove: "object-del", name: byId },
  device: { option: "-device", add: "device_add", remove: "device_del", name: byId },
  chardev: { option: "-chardev", add: null, remove: null, name: byId },
} as const;

/** The option of the command line that makes a part, and its value. */
export function optionOf({ kind, options }: Part): readonly [option: string, value: string] {
  const { option } = ways[kind];
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
  const { add, remove, name } = ways[kind];
  if (add === null) return null;
  return {
    add: { name: add, arguments: options },
    remove: { name: remove, arguments: name(options) },
  };
}

// The tree of devices, as newbus keeps it and devinfo(8) prints it.

/** What is known of a device. */
export interface DeviceFacts {
  /** `VirtIO Block Adapter` */
  readonly description: string;
  /** `slot=1 function=0`; empty when the bus has no places. */
  readonly location: string;
  /** `vendor=0x1af4 device=0x1042`; empty when the bus does not tell. */
  readonly pnpinfo: string;
  /** Where it sits, as pciconf selects it: `pci0:0:1:0`; empty when it has no address. */
  readonly address: string;
}

/** One device of the tree. */
export interface DeviceNode extends DeviceFacts {
  /** Name of its driver: `vtblk`. */
  readonly driver: string;
  readonly unit: number;
  /** `vtblk0` */
  readonly name: string;
  readonly parent: DeviceNode | null;
  readonly children: readonly DeviceNode[];
}

interface Node extends DeviceNode {
  readonly parent: Node | null;
  readonly children: Node[];
}

const NOTHING: DeviceFacts = { description: "", location: "", pnpinfo: "", address: "" };

/** Devices by name, each below the one it was found on. */
export class DeviceTree {
  readonly #nodes = new Map<string, Node>();
  readonly root: DeviceNode = this.#place("nexus", null, {});

  #place(driver: string, parent: Node | null, facts: Partial<DeviceFacts>): Node {
    let unit = 0;
    while (this.#nodes.has(`${driver}${unit}`)) unit++;
    const name = `${driver}${unit}`;
    const node: Node = { ...NOTHING, ...facts, driver, unit, name, parent, children: [] };
    this.#nodes.set(name, node);
    parent?.children.push(node);
    return node;
  }

  /** Adds a device with the lowest unit that is free. */
  add(parent: DeviceNode, driver: string, facts: Partial<DeviceFacts> = {}): DeviceNode {
    return this.#place(driver, this.#nodes.get(parent.name) ?? null, facts);
  }

  /** Takes a device and all below it away; its unit is free again. */
  remove(device: DeviceNode): void {
    const node = this.#nodes.get(device.name);
    if (node === undefined) return;
    for (const child of [...node.children]) this.remove(child);
    this.#nodes.delete(node.name);
    const siblings = node.parent?.children ?? [];
    siblings.splice(siblings.indexOf(node), 1);
  }

  find(name: string): DeviceNode | undefined {
    return this.#nodes.get(name);
  }

  /** Every device, a parent before its children. */
  *walk(from: DeviceNode = this.root): Generator<DeviceNode> {
    yield from;
    for (const child of from.children) yield* this.walk(child);
  }
}

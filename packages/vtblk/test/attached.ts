// A disk on the embedded machine, and backends that do what a test says.
import { type Machine, SysctlTree, type VirtioNode } from "@virtio/core";
import {
  type BlockBackend,
  blk,
  type EmbeddedBlkOptions,
  type EmbeddedMachine,
  embedded,
  MemoryBackend,
  RuleBook,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import type { StrategyDisk } from "@virtio/storage";
import { type VtblkOptions, vtblk } from "../src/index.js";

/** A disk, its machine, the rule book that watches it and what was logged. */
export interface Bench {
  readonly disk: StrategyDisk;
  readonly machine: EmbeddedMachine;
  readonly rules: RuleBook;
  readonly lines: string[];
  /** `dev.vtblk.0` is `vtblk` here. */
  readonly sysctl: SysctlTree;
}

/** Attaches vtblk to one block device. Closing the machine is the test's. */
export async function bench(
  options: EmbeddedBlkOptions & { seed?: number; driver?: VtblkOptions } = {},
): Promise<Bench> {
  const { seed, driver, ...device } = options;
  const rules = new RuleBook();
  const lines: string[] = [];
  const machine = await embedded({
    devices: [
      blk({
        ...(device.backend === undefined && device.size === undefined ? { size: 8 << 20 } : {}),
        ...device,
      }),
    ],
    rules,
    ...(seed === undefined ? {} : { seed }),
  });
  const { cpus } = machine;
  const sysctl = new SysctlTree();
  const disk = await attach(await nodeOf(machine), vtblk(driver), {
    cpus,
    log: (line) => lines.push(line),
    sysctl: sysctl.node("vtblk", ""),
  });
  return { disk, machine, rules, lines, sysctl };
}

/** The machine's first virtio device. */
export async function nodeOf(machine: Machine): Promise<VirtioNode> {
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no device");
  return node;
}

/** A backend whose answers wait until the test lets them go, or fail. */
export class HeldBackend implements BlockBackend {
  readonly size: number;
  readonly readOnly = false;
  readonly memory: MemoryBackend;
  /** What was asked for, in order. */
  readonly asked: string[] = [];
  #waiting: (() => void)[] = [];
  held = false;
  failing = false;

  constructor(size = 4 << 20) {
    this.size = size;
    this.memory = new MemoryBackend(size);
  }

  read(position: number, into: readonly Uint8Array[]): Promise<number> {
    return this.#answer(`read ${position}`, () => this.memory.read(position, into));
  }

  write(position: number, from: readonly Uint8Array[]): Promise<number> {
    return this.#answer(`write ${position}`, () => this.memory.write(position, from));
  }

  flush(): Promise<void> {
    return this.#answer("flush", () => {});
  }

  async #answer<T>(what: string, work: () => T): Promise<T> {
    this.asked.push(what);
    if (this.held)
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
      });
    if (this.failing) throw new Error("bad sector");
    return work();
  }

  /** How many answers wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  letGo(): void {
    this.held = false;
    for (const go of this.#waiting.splice(0)) go();
  }

  async close(): Promise<void> {}
}

/** Turns of the event loop until it is so. */
export async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error("it never came");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

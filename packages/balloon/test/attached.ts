// A balloon on the embedded machine, watched by the rule book.
import {
  type DmaMemory,
  type MemoryRange,
  SysctlTree,
  type VirtioDevice,
  type VirtioNode,
} from "@virtio/core";
import {
  BalloonPort,
  balloon,
  type EmbeddedBalloonOptions,
  type EmbeddedMachine,
  embedded,
  RuleBook,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { onTestFinished } from "vitest";
import { type BalloonDevice, type VtballoonOptions, vtballoon } from "../src/index.js";

export const PAGE = 4096;

/** A balloon, both its ends, and what was logged. */
export interface Bench {
  readonly balloon: BalloonDevice;
  readonly port: BalloonPort;
  readonly machine: EmbeddedMachine;
  readonly rules: RuleBook;
  readonly lines: string[];
  /** `dev.vtballoon.0` is `vtballoon` here. */
  readonly sysctl: SysctlTree;
}

export interface BenchOptions extends EmbeddedBalloonOptions {
  /** Bytes of guest memory; default 8 MiB. */
  readonly memory?: number;
  /** Undefined: time is the host's. */
  readonly seed?: number | undefined;
  readonly driver?: VtballoonOptions;
  /** Sees the device before the driver does. */
  readonly before?: (device: VirtioDevice) => void;
}

/** A machine with one balloon; it is closed when the test is over. */
async function machineOf({
  memory = 8 << 20,
  seed,
  port,
  ...device
}: Omit<BenchOptions, "driver" | "before">): Promise<Omit<Bench, "balloon" | "lines" | "sysctl">> {
  const rules = new RuleBook();
  const back = port ?? new BalloonPort();
  const machine = await embedded({
    devices: [balloon({ ...device, port: back })],
    memory,
    rules,
    ...(seed === undefined ? {} : { seed }),
  });
  onTestFinished(() => machine.close());
  return { port: back, machine, rules };
}

/** Attaches vtballoon. With a seed, which is the default, time is virtual. */
export async function bench({ driver, before, ...options }: BenchOptions = {}): Promise<Bench> {
  const parts = await machineOf({ seed: 1, ...options });
  return { ...parts, ...(await attached(parts.machine, driver, before)) };
}

/** The same on a machine that is there. */
async function attached(
  machine: EmbeddedMachine,
  options?: VtballoonOptions,
  before: (device: VirtioDevice) => void = () => {},
): Promise<Pick<Bench, "balloon" | "lines" | "sysctl">> {
  const lines: string[] = [];
  const sysctl = new SysctlTree();
  const driver = vtballoon(options);
  const watched: typeof driver = {
    ...driver,
    attach: (device, context) => {
      before(device);
      return driver.attach(device, context);
    },
  };
  const device = await attach(await nodeOf(machine), watched, {
    log: (line) => lines.push(line),
    sysctl: sysctl.node("vtballoon", ""),
  });
  return { balloon: device, lines, sysctl };
}

async function nodeOf(machine: EmbeddedMachine): Promise<VirtioNode> {
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  return node;
}

/** The guest is busy with all memory that is free: every byte is written to. */
export function scribble(memory: DmaMemory, byte = 0xff): void {
  const taken: MemoryRange[] = [];
  for (let most = memory.buffer.byteLength; most >= 16; most /= 2)
    for (;;) {
      const range = memory.take({ align: 16, least: most, most });
      if (range === null) break;
      new Uint8Array(memory.buffer, range.address - memory.base, range.length).fill(byte);
      taken.push(range);
    }
  for (const range of taken) memory.give(range);
}

/** Whether every byte is this one. */
export function isFull(bytes: Uint8Array, byte = 0): boolean {
  const { buffer, byteOffset, length } = bytes;
  const words = new Uint32Array(buffer, byteOffset, length >>> 2);
  const word = byte * 0x0101_0101;
  for (let i = 0; i < words.length; i++) if (words[i] !== word) return false;
  return bytes.subarray(length & ~3).every((last) => last === byte);
}

/** Virtual time passes, and what falls due in it is done. */
export const pass = (machine: EmbeddedMachine, ms: number): Promise<void> =>
  new Promise((resolve) => {
    machine.tasks.callout(ms, resolve);
  });

/** Turns of the machine until it is so, in no time. */
export async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error("it never came");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

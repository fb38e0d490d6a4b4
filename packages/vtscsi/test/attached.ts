// A SCSI bus on the embedded machine, watched by the rule book.
import { SysctlTree } from "@virtio/core";
import { ScsiConfig } from "@virtio/core/scsi";
import {
  type EmbeddedMachine,
  type EmbeddedScsiOptions,
  embedded,
  RuleBook,
  ScsiPort,
  scsi,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import type { Bio, BioCommand, StrategyDisk } from "@virtio/storage";
import { onTestFinished } from "vitest";
import { type VtscsiBus, type VtscsiOptions, vtscsi } from "../src/index.js";

const [MAX_TARGET] = ScsiConfig.maxTarget;

/** A bus, its machine, the back of its host, the rule book that watches it and what was said. */
export interface Bench {
  readonly bus: VtscsiBus;
  readonly machine: EmbeddedMachine;
  readonly port: ScsiPort;
  readonly rules: RuleBook;
  /** With and without the adapter's name in front, in order. */
  readonly lines: string[];
  /** Names of what is published. */
  readonly published: Set<string>;
  /** `dev.vtscsi.0` is `vtscsi` here. */
  readonly sysctl: SysctlTree;
}

/** Attaches vtscsi to one SCSI host, of 16 targets unless said otherwise. The machine is closed with the test, unless it is to be kept. */
export async function bench(
  options: EmbeddedScsiOptions & {
    seed?: number;
    driver?: VtscsiOptions;
    targets?: number;
    keep?: boolean;
  } = {},
): Promise<Bench> {
  const { seed, driver, targets = 16, keep = false, lies = {}, ...host } = options;
  const rules = new RuleBook();
  const lines: string[] = [];
  const published = new Set<string>();
  const port = new ScsiPort();
  const described = host.backend !== undefined || host.size !== undefined || host.luns;
  const machine = await embedded({
    devices: [
      scsi({
        port,
        ...(described ? {} : { size: 4 << 20 }),
        ...host,
        // A scan of few targets is a short one.
        lies: {
          config: (offset, _, honest) => (offset === MAX_TARGET ? targets - 1 : honest),
          ...lies,
        },
      }),
    ],
    rules,
    ...(seed === undefined ? {} : { seed }),
  });
  if (!keep) onTestFinished(() => machine.close());
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  const sysctl = new SysctlTree();
  const bus = await attach(node, vtscsi(driver), {
    cpus: machine.cpus,
    log: (line) => lines.push(`vtscsi0: ${line}`),
    announce: (line) => lines.push(line),
    sysctl: sysctl.node("vtscsi", ""),
    publish: ({ name }) => {
      published.add(name);
      return () => published.delete(name);
    },
  });
  return { bus, machine, port, rules, lines, published, sysctl };
}

/** The only disk. */
export function only({ disks }: VtscsiBus): StrategyDisk {
  const [disk] = disks;
  if (disk === undefined || disks.length > 1) throw new Error(`${disks.length} disks`);
  return disk;
}

/** `done`, or code and errno. */
export const outcome = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "done",
    (fault: { code?: string; errno?: string }) => `${fault.code} ${fault.errno}`,
  );

/** Turns of the event loop until it is so. */
export async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error("it never came");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Bytes that differ from place to place and from seed to seed. */
export function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/**
 * One bio of each place, a sector.
 * @returns every end of each of them: a promise would not show a second one
 */
export async function endsOf(
  disk: StrategyDisk,
  command: BioCommand.READ | BioCommand.WRITE,
  count: number,
): Promise<string[][]> {
  const ends: string[][] = Array.from({ length: count }, () => []);
  await new Promise<void>((resolve) => {
    const waiting = ends.map(
      (seen, n): Bio => ({
        command,
        position: n * 512,
        length: 512,
        data: pattern(512, n),
        ordered: false,
        done: (fault) => {
          seen.push(fault === null ? "done" : `${fault.code} ${fault.errno}`);
          if (ends.every(({ length }) => length > 0)) resolve();
        },
      }),
    );
    disk.onRoom = () => {
      for (let bio = waiting[0]; bio !== undefined && disk.strategy(bio); bio = waiting[0])
        waiting.shift();
      disk.start();
    };
    disk.onRoom();
  });
  // Turns in which a second end would come.
  for (let n = 0; n < 20; n++) await new Promise((resolve) => setImmediate(resolve));
  return ends;
}

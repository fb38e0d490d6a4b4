// One driver on every kind of PCI function and of interrupt that a machine has: contents checked, the kind that was chosen asserted.
import type { Disk, Driver, InterruptKind, Machine, PciBus } from "@virtio/core";
import { embedded, blk as embeddedBlk, RuleBook } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { qemu, blk as qemuBlk } from "@virtio/qemu";
import { vtblk } from "@virtio/vtblk";
import { describe, expect, it } from "vitest";
import { hasQemu, pattern } from "./machines.js";

const QUEUES = 4;
const SIZE = 8 << 20;
const BLOCK = 8192;
const IN_FLIGHT = 16;
const REQUESTS = 400;

/** How a function is made, and by which interface it is to be driven. */
const interfaces = [
  { name: "legacy", legacy: "on", transitional: true, by: "legacy", id: "0x1001" },
  {
    name: "transitional, driven legacy",
    legacy: "transitional",
    transitional: false,
    by: "legacy",
    id: "0x1001",
  },
  {
    name: "transitional, driven modern",
    legacy: "transitional",
    transitional: true,
    by: "modern",
    id: "0x1001",
  },
  { name: "modern", legacy: "off", transitional: false, by: "modern", id: "0x1042" },
] as const;

/** Vectors of the function, and what must be chosen: one for configuration changes and one for each of four queues. */
const vectors: readonly (readonly [kind: InterruptKind, vectors: number])[] = [
  ["msix", 1 + QUEUES],
  ["msix-shared", 2],
  ["msi", 0],
  ["intx", 0],
];

/** vtblk that tells which kind of interrupt it got, and how many queues. */
function watched(): { driver: Driver<Disk>; seen: { kind?: InterruptKind; queues?: number } } {
  const seen: { kind?: InterruptKind; queues?: number } = {};
  const real = vtblk();
  const driver: Driver<Disk> = {
    ...real,
    attach: (device, context) => {
      const setup = device.setupInterrupts.bind(device);
      const allocate = device.allocateQueues.bind(device);
      device.setupInterrupts = async () => {
        seen.kind = await setup();
        return seen.kind;
      };
      device.allocateQueues = async (specs) => {
        seen.queues = specs.length;
        return allocate(specs);
      };
      return real.attach(device, context);
    },
  };
  return { driver, seen };
}

/** Blocks are written and read at random, many at once; each must hold what was last written to it. */
async function exercise(disk: Disk, seed: number): Promise<void> {
  const blocks = SIZE / BLOCK;
  const written = new Int32Array(blocks);
  const busy = new Set<number>();
  let state = seed;
  const random = (limit: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
  let left = REQUESTS;
  const worker = async (): Promise<void> => {
    while (left-- > 0) {
      let block = random(blocks);
      while (busy.has(block)) block = random(blocks);
      busy.add(block);
      const length = random(2) === 0 ? BLOCK : 512 * (1 + random(BLOCK / 512));
      const tag = written[block] as number;
      if (tag === 0 || random(2) === 0) {
        written[block] = 1 + random(1 << 30);
        await disk.write(block * BLOCK, pattern(BLOCK, written[block] as number));
      } else {
        const into = new Uint8Array(length);
        await disk.read(block * BLOCK, into);
        if (!Buffer.from(into).equals(pattern(BLOCK, tag).subarray(0, length)))
          throw new Error(`block ${block} does not hold what was written to it`);
      }
      busy.delete(block);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
  await disk.flush();
}

async function run(
  machine: Machine,
  bus: PciBus,
  expected: { by: string; id: string; transitional: boolean; kind: InterruptKind },
): Promise<void> {
  const [node] = await probe(bus, { transitional: expected.transitional });
  expect(node?.description).toBe(`VirtIO PCI (${expected.by}) Block adapter`);
  expect(node?.properties.pnpinfo).toContain(`device=${expected.id}`);
  if (node === undefined) return;
  const { driver, seen } = watched();
  const disk = await attach(node, driver, { cpus: machine.cpus });
  expect(seen).toEqual({ kind: expected.kind, queues: QUEUES });
  await exercise(disk, 20_261_121);
  // Every kind counted, by the names that vmstat -i shows.
  const counted = machine.interrupts().filter(({ count }) => count > 0);
  const names = counted.flatMap((counter) => counter.names);
  if (expected.kind === "msix")
    for (let queue = 0; queue < QUEUES; queue++) expect(names).toContain(`vtblk0 request ${queue}`);
  else expect(names).toContain("virtio_pci0");
  await disk.detach();
}

describe.each(interfaces)("vtblk with four queues on a function that is $name", (by) => {
  for (const [kind, count] of vectors)
    it(`gets ${kind} on the embedded machine`, async () => {
      const rules = new RuleBook();
      const machine = await embedded({
        devices: [embeddedBlk({ size: SIZE, queues: QUEUES, vectors: count, legacy: by.legacy })],
        msi: kind === "msi",
        rules,
      });
      await run(machine, machine.buses[0].bus, { ...by, kind });
      await machine.close();
      expect(rules.violations).toEqual([]);
    });

  for (const type of ["pc", "q35"] as const)
    for (const [kind, count] of vectors.filter(([each]) => each !== "msi"))
      it.skipIf(!hasQemu)(`gets ${kind} on QEMU's ${type} (needs QEMU)`, async () => {
        const machine = await qemu({
          type,
          devices: [qemuBlk({ size: SIZE, queues: QUEUES, vectors: count, legacy: by.legacy })],
          interrupts: kind === "intx" ? "intx" : "msix",
        });
        try {
          await run(machine, machine.buses[0].bus, { ...by, kind });
        } finally {
          await machine.close();
        }
      });
});

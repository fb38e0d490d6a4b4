// Hot-plug on QEMU's machines: by QMP alone, as somebody outside would, and a kernel that follows.
import type { Disk, PciAddress } from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { type QemuMachine, qemu } from "@virtio/qemu";
import { vtblk } from "@virtio/vtblk";
import { boot } from "virtio/node";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu, pattern } from "./machines.js";

const IN_FLIGHT = 32;
const BLOCK = 4096;

async function machineOf(options: Parameters<typeof qemu>[0]): Promise<QemuMachine> {
  const machine = await qemu(options);
  onTestFinished(() => machine.close());
  return machine;
}

/** Adds a disk whose requests wait behind a throttle, one a second, by QMP. */
async function addSlowDisk(machine: QemuMachine, id: string): Promise<void> {
  const { qmp } = machine;
  await qmp.execute("object-add", {
    "qom-type": "throttle-group",
    id: `${id}-group`,
    limits: { "iops-total": 1 },
  });
  await qmp.execute("blockdev-add", {
    driver: "throttle",
    "node-name": `${id}-slow`,
    "throttle-group": `${id}-group`,
    file: { driver: "null-co", "node-name": `${id}-null`, size: 64 << 20, "read-zeroes": true },
  });
  await qmp.execute("device_add", { driver: "virtio-blk-pci", id, drive: `${id}-slow` });
}

const nextChange = (machine: QemuMachine, wanted: "added" | "removed"): Promise<PciAddress> =>
  new Promise((resolve) => {
    machine.buses[0].bus.onChange = (address, what) => {
      if (what === wanted) resolve(address);
    };
  });

const nodeAt = async (machine: QemuMachine, { bus, device }: PciAddress) => {
  const node = (await probe(machine.buses[0].bus)).find(
    ({ location }) => location === `pci0:${bus}:${device}:0`,
  );
  if (node === undefined) throw new Error(`nothing at ${bus}:${device}`);
  return node;
};

async function checked(disk: Disk, seed: number): Promise<void> {
  const bytes = pattern(8 * BLOCK, seed);
  await disk.write(BLOCK, bytes);
  const into = new Uint8Array(bytes.length);
  await disk.read(BLOCK, into);
  expect(Buffer.from(into).equals(Buffer.from(bytes))).toBe(true);
}

describe.skipIf(!hasQemu)("hot-plug on pc (needs QEMU)", () => {
  it("fails each of 32 requests in flight once with ENXIO when device_del takes their disk", async () => {
    const machine = await machineOf({ type: "pc", devices: ["blk,size=1m"] });
    // Functions that were there before are no news.
    const [first] = await probe(machine.buses[0].bus);
    if (first === undefined) throw new Error("no device");
    const other = await attach(first, vtblk());
    for (let life = 0; life < 2; life++) {
      const added = nextChange(machine, "added");
      await addSlowDisk(machine, `slow${life}`);
      const disk = await attach(await nodeAt(machine, await added), vtblk({ noIdent: true }), {
        name: "vtblk1",
        unit: 1,
      });
      const ends = new Map<number, string[]>();
      const read = (n: number): Promise<void> =>
        // Apart, or QEMU makes one request of several.
        disk.read(n * 8 * BLOCK, new Uint8Array(BLOCK)).then(
          () => void ends.set(n, [...(ends.get(n) ?? []), "done"]),
          (fault: { code: string; errno: string }) =>
            void ends.set(n, [...(ends.get(n) ?? []), `${fault.code} ${fault.errno}`]),
        );
      // The first few take what the throttle allows at once; those that follow wait behind them.
      const before = Array.from({ length: 8 }, (_, n) => read(n));
      await Promise.race(before);
      const all = Array.from({ length: IN_FLIGHT }, (_, n) => read(100 + n));
      const removed = nextChange(machine, "removed");
      const deleted = machine.qmp.next("DEVICE_DELETED", 10_000);
      await machine.qmp.execute("device_del", { id: `slow${life}` });
      await removed;
      await Promise.all([...before, ...all]);
      await deleted;
      for (let n = 0; n < IN_FLIGHT; n++)
        expect([n, ends.get(100 + n)]).toEqual([n, ["CLOSED ENXIO"]]);
      await expect(disk.read(0, new Uint8Array(512))).rejects.toMatchObject({ errno: "ENXIO" });
      await disk.detach();
      // Nobody else noticed.
      await checked(other, life);
    }
  });
});

describe.skipIf(!hasQemu)("hot-plug on q35 (needs QEMU)", () => {
  it("attaches a disk that was added behind a root port, and another one after it", async () => {
    const machine = await machineOf({ type: "q35", devices: ["blk,size=1m"], rootPorts: 1 });
    await probe(machine.buses[0].bus);
    for (let life = 0; life < 2; life++) {
      const added = nextChange(machine, "added");
      const address = await machine.plug("blk,size=2m,queues=2");
      expect(await added).toEqual(address);
      expect(address.bus).toBeGreaterThan(0);
      const disk = await attach(await nodeAt(machine, address), vtblk(), { cpus: 2 });
      expect(disk.mediaSize).toBe(2 << 20);
      await checked(disk, life);
      const removed = nextChange(machine, "removed");
      await Promise.all([removed, machine.unplug(address)]);
      await expect(disk.read(0, new Uint8Array(512))).rejects.toMatchObject({ errno: "ENXIO" });
      await disk.detach();
    }
  });
});

describe.skipIf(!hasQemu)("a kernel on QEMU (needs QEMU)", () => {
  for (const machine of ["qemu,type=pc", "qemu,type=q35"])
    it(`of ${machine} attaches what is plugged in and takes leave of what is taken out`, async () => {
      const q35 = machine.endsWith("q35");
      const made = await qemu({
        type: q35 ? "q35" : "pc",
        devices: ["blk,size=1m"],
        ...(q35 ? { rootPorts: 1 } : {}),
      });
      const kernel = await boot({ machine, open: async () => made });
      onTestFinished(() => kernel.shutdown());
      const disks = (): string[] => kernel.disks.map(({ name }) => name);
      expect(disks()).toEqual(["vtbd0"]);
      const address = await made.plug("blk,size=2m");
      await expect.poll(disks).toEqual(["vtbd0", "vtbd1"]);
      await checked(kernel.disk("vtbd1"), 5);
      await made.unplug(address);
      await expect.poll(disks).toEqual(["vtbd0"]);
      expect(kernel.messages.lines.slice(-2)).toEqual([
        "vtblk1: detached",
        "virtio_pci1: detached",
      ]);
      await checked(kernel.disk("vtbd0"), 6);
    });
});

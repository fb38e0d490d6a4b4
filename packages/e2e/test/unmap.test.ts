// Zeroes whose space may be given back: the UNMAP flag of write zeroes (virtio 1.4 §5.2.6).
import { statSync, writeFileSync } from "node:fs";
import type { Disk, Machine } from "@virtio/core";
import { blk, embedded, MemoryBackend, RuleBook } from "@virtio/hypervisor";
import { qemu } from "@virtio/qemu";
import { describe, expect, it, onTestFinished } from "vitest";
import { disksOf, folder, hasQemu, pattern } from "./machines.js";

const MIB = 1 << 20;
const file = folder();

async function diskOf(machine: Machine): Promise<Disk> {
  onTestFinished(() => machine.close());
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [disk] = await disksOf(bus.bus);
  if (disk === undefined) throw new Error("no disk");
  return disk;
}

async function zeroes(disk: Disk, position: number, length: number): Promise<boolean> {
  const bytes = new Uint8Array(length).fill(1);
  await disk.read(position, bytes);
  return bytes.every((byte) => byte === 0);
}

describe("zeroes whose space may be given back", () => {
  for (const mayUnmap of [true, false])
    it(`are ${mayUnmap ? "" : "not "}marked where the device ${mayUnmap ? "can" : "cannot"}, and only when asked for`, async () => {
      const flags: boolean[] = [];
      class Backend extends MemoryBackend {
        override writeZeroes(position: number, length: number, unmap = false): undefined {
          flags.push(unmap);
          super.writeZeroes(position, length);
        }
      }
      const rules = new RuleBook();
      const backend = new Backend(pattern(MIB, 1), { mayUnmap });
      const disk = await diskOf(await embedded({ devices: [blk({ backend })], rules }));
      await disk.writeZeroes(0, 4096);
      await disk.writeZeroes(4096, 4096, { unmap: true });
      await disk.writeZeroes(8192, 4096, { unmap: false });
      expect(flags).toEqual([false, mayUnmap, false]);
      expect(await zeroes(disk, 0, 12288)).toBe(true);
      expect(rules.violations).toEqual([]);
    });

  it.skipIf(!hasQemu)("take no room in QEMU's image any more (needs QEMU)", async () => {
    const path = file("unmap.img");
    writeFileSync(path, pattern(8 * MIB, 1));
    const node = { driver: "file", filename: path, discard: "unmap" };
    const machine = await qemu({
      devices: [],
      args: [
        ...["-blockdev", JSON.stringify({ "node-name": "under-test", ...node })],
        ...["-device", "virtio-blk-pci,drive=under-test,disable-legacy=on"],
      ],
    });
    const disk = await diskOf(machine);
    const taken = (): number => statSync(path).blocks * 512;
    await disk.writeZeroes(0, 2 * MIB);
    await disk.flush();
    expect(taken()).toBeGreaterThanOrEqual(8 * MIB);
    await disk.writeZeroes(4 * MIB, 2 * MIB, { unmap: true });
    await disk.flush();
    expect(taken()).toBeLessThanOrEqual(6.5 * MIB);
    expect([await zeroes(disk, 0, 2 * MIB), await zeroes(disk, 4 * MIB, 2 * MIB)]).toEqual([
      true,
      true,
    ]);
    expect(await zeroes(disk, 6 * MIB, 512)).toBe(false);
  });
});

// A dump where the device cannot answer without the event loop: one clear error at once, and the disk works on.
import { readFileSync, writeFileSync } from "node:fs";
import type { Machine } from "@virtio/core";
import { blk, embedded } from "@virtio/hypervisor";
import { openImage } from "@virtio/hypervisor/node";
import { attach, probe } from "@virtio/pci-transport";
import { qemu } from "@virtio/qemu";
import type { StrategyDisk } from "@virtio/storage";
import { vtblk } from "@virtio/vtblk";
import { describe, expect, it, onTestFinished } from "vitest";
import { folder, hasQemu, pattern } from "./machines.js";

const MIB = 1 << 20;
const file = folder();

async function diskOf(machine: Machine): Promise<StrategyDisk> {
  onTestFinished(() => machine.close());
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no device");
  return attach(node, vtblk());
}

/** Of 4 MiB. */
function image(name: string): { path: string; content: Uint8Array } {
  const path = file(name);
  const content = pattern(4 * MIB, 1);
  writeFileSync(path, content);
  return { path, content };
}

/** What a dump of a megabyte ends with, and that it blocks for a short time only. */
function dumped(disk: StrategyDisk): unknown {
  const start = performance.now();
  try {
    disk.dump(MIB, pattern(MIB, 2));
    return null;
  } catch (error) {
    expect(performance.now() - start).toBeLessThan(2000);
    return error;
  }
}

describe("a dump of a megabyte", () => {
  it.skipIf(!hasQemu)("to QEMU is refused at once, and gives it nothing (needs QEMU)", async () => {
    const { path, content } = image("qemu.img");
    const machine = await qemu({ devices: [`blk,file=${path}`] });
    const disk = await diskOf(machine);
    const data = pattern(MIB, 3);
    const writing = disk.write(0, data);
    expect(dumped(disk)).toMatchObject({
      code: "UNSUPPORTED",
      message: "vtbd0: the disk takes no dump: its device cannot be polled",
    });
    await writing;
    await disk.detach();
    await machine.close();
    content.set(data);
    expect(Buffer.compare(readFileSync(path), content)).toBe(0);
  });

  for (const seed of [undefined, 1])
    it(`to a file of the embedded machine times out at once, ${seed === undefined ? "by the host's clock" : "in virtual time"}, and is written later`, async () => {
      const { path, content } = image(`embedded${seed}.img`);
      const machine = await embedded({
        devices: [blk({ file: path })],
        open: (spec) => openImage(spec, "/"),
        ...(seed === undefined ? {} : { seed }),
      });
      const disk = await diskOf(machine);
      expect(dumped(disk)).toMatchObject({
        code: "TIMED_OUT",
        message: "vtbd0: no answer to a dump in 10000 polls",
      });
      const data = pattern(MIB, 3);
      await disk.write(0, data);
      // Nothing orders the two.
      await expect.poll(() => disk.statistics.busy).toBe(0);
      const read = new Uint8Array(MIB);
      await disk.read(MIB, read);
      await disk.detach();
      await machine.close();
      content.set(data);
      content.set(pattern(MIB, 2), MIB);
      expect(Buffer.compare(readFileSync(path), content)).toBe(0);
      expect(Buffer.compare(read, content.subarray(MIB, 2 * MIB))).toBe(0);
    });

  it("to the memory of the embedded machine is there when the call is over", async () => {
    const machine = await embedded({ devices: [blk({ size: 4 * MIB })] });
    const disk = await diskOf(machine);
    expect(dumped(disk)).toBeNull();
    const read = new Uint8Array(MIB);
    await disk.read(MIB, read);
    expect(Buffer.compare(read, pattern(MIB, 2))).toBe(0);
  });
});

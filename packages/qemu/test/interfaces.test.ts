import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PciFunction } from "@virtio/core";
import { CommonConfig, LegacyRegister, PciCommand, PciRegister } from "@virtio/core/pci";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { InterruptLines } from "../src/interrupt-lines.js";
import { hasQemu, launch, temporaryFolder, until } from "./support/machine.js";
import { RawDevice, virtioFunction, virtioFunctions } from "./support/raw-device.js";

/** Sizes a BAR by hand, with nothing decoded. @returns what stuck of all ones */
async function mask(fn: PciFunction, index: number): Promise<number> {
  const at = PciRegister.BAR0 + 4 * index;
  await fn.write(at, 4, 0xffff_ffff);
  const stuck = await fn.read(at, 4);
  await fn.write(at, 4, 0);
  return stuck;
}

/** I/O, 128 bytes; memory, 4 KiB; memory, 64 bit, prefetchable, 16 KiB. */
const IO = 0xffff_ff81;
const MSIX = 0xffff_f000;
const MODERN = 0xffff_c00c;

const interfaces = [
  { legacy: "off", id: 0x1042, revision: 1, bars: [0, MSIX, 0, 0, MODERN] },
  { legacy: "transitional", id: 0x1001, revision: 0, bars: [IO, MSIX, 0, 0, MODERN] },
  { legacy: "on", id: 0x1001, revision: 0, bars: [IO, MSIX, 0, 0, 0] },
] as const;

const cases = (["pc", "q35"] as const).flatMap((type) => interfaces.map((of) => ({ type, ...of })));

/** A device that is driven by its legacy interface, as far as DRIVER_OK: its ISR is read by the returned function. */
async function startLegacy(fn: PciFunction): Promise<() => Promise<number>> {
  await fn.write(PciRegister.BAR0, 4, 0xc000 + fn.address.device * 0x100);
  await fn.write(PciRegister.COMMAND, 2, PciCommand.IO | PciCommand.BUS_MASTER);
  const bar = await fn.mapBar(0);
  await bar.write(LegacyRegister.DEVICE_STATUS, 1, 7);
  return () => bar.read(LegacyRegister.ISR_STATUS, 1);
}

describe.skipIf(!hasQemu)("the interfaces of a device (needs QEMU)", () => {
  it.each(cases)("of a $type with legacy=$legacy are what it says", async (of) => {
    const machine = await launch({ type: of.type, devices: [`blk,size=1m,legacy=${of.legacy}`] });
    const fn = await virtioFunction(machine);
    expect(await fn.read(PciRegister.DEVICE_ID, 2)).toBe(of.id);
    expect(await fn.read(PciRegister.REVISION_ID, 1)).toBe(of.revision);
    const masks: number[] = [];
    for (const index of of.bars.keys()) masks.push(await mask(fn, index));
    expect(masks).toEqual(of.bars);
    if (of.legacy !== "off") {
      await startLegacy(fn);
      const bar = await fn.mapBar(0);
      expect(bar.length).toBe(128);
      expect(await bar.read(LegacyRegister.DEVICE_STATUS, 1)).toBe(7);
      expect(await bar.read(LegacyRegister.QUEUE_SIZE, 2)).toBe(256);
      await bar.write(LegacyRegister.DEVICE_STATUS, 1, 0);
      expect(await bar.read(LegacyRegister.DEVICE_STATUS, 1)).toBe(0);
    }
    if (of.legacy !== "on")
      expect(await (await RawDevice.open(machine, fn)).capacity()).toBe((1 << 20) / 512);
  });

  it.each([
    ["pc", 2],
    ["pc", 5],
    ["q35", 2],
    ["q35", 5],
  ] as const)(
    "of a %s with vectors=%s are a table of as many, for messages of their own",
    async (type, vectors) => {
      const folder = temporaryFolder();
      writeFileSync(join(folder, "disk.img"), Buffer.alloc(4096));
      const devices = [`blk,file=disk.img,queues=4,vectors=${vectors}`];
      const machine = await launch({ type, cwd: folder, devices, interrupts: "msix" });
      const fn = await virtioFunction(machine);
      expect(((await fn.read(0x9a, 2)) & 0x7ff) + 1).toBe(vectors);
      const device = await RawDevice.open(machine, fn);
      await device.start();
      const seen: string[] = [];
      const last = vectors - 1;
      const config = await fn.interrupts.message(0, "config", () => seen.push("config"));
      const queue = await fn.interrupts.message(last, "queue", () => seen.push("queue"));
      await device.useMessage(config);
      await device.useMessage(queue, last, CommonConfig.QUEUE_MSIX_VECTOR);
      await expect(
        device.useMessage(queue, vectors, CommonConfig.QUEUE_MSIX_VECTOR),
      ).rejects.toThrow();
      await device.useMessage(queue, last, CommonConfig.QUEUE_MSIX_VECTOR);
      await machine.qmp.execute("block_resize", { "node-name": "blk0", size: 8192 });
      await until("the change is told", () => seen.length === 1);
      await device.readFirstSector();
      await until("the used buffer is told", () => seen.length === 2);
      expect(seen).toEqual(["config", "queue"]);
    },
  );
});

describe.skipIf(!hasQemu)("the line of a slot of a pc (needs QEMU)", () => {
  it.each(["off", "on"] as const)("is the one that QEMU raises, with legacy=%s", async (legacy) => {
    const folder = temporaryFolder();
    const devices = Array.from({ length: 8 }, (_, i) => {
      writeFileSync(join(folder, `${i}.img`), Buffer.alloc(4096));
      return `blk,file=${i}.img,legacy=${legacy}`;
    });
    const machine = await launch({ type: "pc", cwd: folder, devices });
    const functions = await virtioFunctions(machine);
    expect(functions.map(({ address }) => address.device)).toEqual([2, 3, 4, 5, 6, 7, 8, 9]);
    const changed = vi.spyOn(InterruptLines.prototype, "changed");
    onTestFinished(() => changed.mockRestore());
    for (const [i, fn] of functions.entries()) {
      const device = legacy === "off" ? await RawDevice.open(machine, fn) : null;
      await device?.start();
      const isr = device === null ? await startLegacy(fn) : () => device.isr();
      await machine.qmp.execute("block_resize", { "node-name": `blk${i}`, size: 8192 });
      expect((await isr()) & 2).toBe(2);
      const { irq } = fn.interrupts;
      expect(changed.mock.calls.splice(0)).toEqual([
        [irq, "high"],
        [irq, "low"],
      ]);
    }
  });
});

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PciAddress, PciFunction } from "@virtio/core";
import { PciRegister } from "@virtio/core/pci";
import type { QemuMachine, QemuOptions } from "@virtio/qemu";
import { qemu } from "@virtio/qemu";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { InterruptLines } from "../src/interrupt-lines.js";
import { hasQemu, launch, temporaryFolder, until } from "./support/machine.js";
import { openBridges, RawDevice } from "./support/raw-device.js";

const at = (bus: number, device: number): PciAddress => ({ domain: 0, bus, device, function: 0 });

interface Followed {
  readonly machine: QemuMachine;
  /** What `onChange` was told: `added 0:3`. */
  readonly changes: string[];
  /** The function at this address. */
  readonly find: (address: PciAddress) => Promise<PciFunction | undefined>;
}

/** A machine whose changes are kept. */
async function followed(options: QemuOptions): Promise<Followed> {
  const machine = await launch(options);
  const { bus } = machine.buses[0];
  const changes: string[] = [];
  bus.onChange = (address, what) => changes.push(`${what} ${address.bus}:${address.device}`);
  const find = async ({ bus: number, device }: PciAddress) =>
    (await bus.functions()).find(
      ({ address }) => address.bus === number && address.device === device,
    );
  return { machine, changes, find };
}

/** Reads the first sector through a function that was found, wherever it is. */
async function readSector(machine: QemuMachine, fn: PciFunction | undefined): Promise<void> {
  if (fn === undefined) throw new Error("no function there");
  await openBridges(await machine.buses[0].bus.functions());
  const device = await RawDevice.open(machine, fn);
  await device.start();
  const isr = new Promise<number>((resolve, reject) => {
    fn.interrupts.line("test", device.service(resolve)).catch(reject);
  });
  const { used } = await device.readFirstSector();
  await until("the request is used", () => used() === 1);
  expect(await isr).toBe(1);
  fn.interrupts.release();
}

const nodes = async (machine: QemuMachine): Promise<readonly unknown[]> => {
  const all = await machine.qmp.execute("query-named-block-nodes", { flat: true });
  return (all as { "node-name": string }[]).map((node) => node["node-name"]);
};

const machines: readonly (readonly [QemuOptions, number, number])[] = [
  [{ type: "pc", devices: [] }, 0, 2],
  [{ type: "q35", devices: [], rootPorts: 1 }, 1, 0],
];

describe.skipIf(!hasQemu)("hot-plug (needs QEMU)", () => {
  it.each(machines)("adds a device that works: %j", async (options, bus, device) => {
    const { machine, changes, find } = await followed(options);
    const address = await machine.plug("blk,size=1m");
    expect(address).toEqual(at(bus, device));
    expect(machine.devices).toMatchObject([{ id: "blk0", address }]);
    expect(changes).toEqual([`added ${bus}:${device}`]);
    await readSector(machine, await find(address));
  });

  it.each(machines)("takes a device out, and its slot is free again: %j", async (options, bus) => {
    const { machine, changes, find } = await followed(options);
    const address = await machine.plug("blk,size=1m");
    const fn = await find(address);
    await readSector(machine, fn);
    const region = await fn?.mapBar(4);
    await machine.unplug(machine.devices[0]?.id ?? "");
    expect(await fn?.gone).toMatchObject({
      code: "CLOSED",
      errno: "ENXIO",
      message: `pci0:${bus}:${address.device}:0 was taken out`,
    });
    expect(machine.devices).toEqual([]);
    expect(await find(address)).toBeUndefined();
    expect(await nodes(machine)).not.toContain("blk0");
    expect(await machine.plug("blk,size=2m")).toEqual(address);
    expect(machine.devices).toMatchObject([{ id: "blk1" }]);
    expect(changes).toEqual(
      ["added", "removed", "added"].map((what) => `${what} ${bus}:${address.device}`),
    );
    // The old function's registers are not the new one's.
    await expect(fn?.read(PciRegister.VENDOR_ID, 2)).rejects.toMatchObject({ code: "CLOSED" });
    await expect(fn?.mapBar(4)).rejects.toMatchObject({ code: "CLOSED" });
    await expect(region?.read(0, 4)).rejects.toMatchObject({ code: "CLOSED" });
    const again = await find(address);
    expect(again).not.toBe(fn);
    await readSector(machine, again);
    await machine.unplug(address);
    expect(machine.devices).toEqual([]);
  });

  it.each(machines)("by QMP alone is seen too: %j", async (options, bus, device) => {
    const { machine, changes } = await followed(options);
    await machine.qmp.execute("blockdev-add", {
      driver: "null-co",
      "node-name": "null",
      size: 4096,
    });
    const name = options.type === "pc" ? "pci.0" : "rp0";
    const arguments_ = { driver: "virtio-blk-pci", id: "own", drive: "null", bus: name };
    await machine.qmp.execute("device_add", arguments_);
    await until("the addition is told", () => changes.length === 1);
    const deleted = machine.qmp.next(
      "DEVICE_DELETED",
      5_000,
      ({ data }) => data["device"] === "own",
    );
    await machine.qmp.execute("device_del", { id: "own" });
    await deleted;
    expect(changes).toEqual([`added ${bus}:${device}`, `removed ${bus}:${device}`]);
    expect(machine.interrupts()).toMatchObject([{ irq: "irq9", names: ["acpi0"], count: 2 }]);
  });

  it("takes out a device that the machine was started with, and one whose id it does not know", async () => {
    const { machine, changes, find } = await followed({ type: "pc", devices: ["blk", "blk"] });
    expect(machine.devices.map(({ address }) => address)).toEqual([at(0, 2), at(0, 3)]);
    await machine.unplug(at(0, 2));
    expect(machine.devices.map(({ id }) => id)).toEqual(["blk1"]);
    await machine.qmp.execute("device_add", { driver: "virtio-rng-pci", id: "rng", bus: "pci.0" });
    await until("the addition is told", () => changes.length === 2);
    await machine.unplug("rng");
    expect(changes).toEqual(["removed 0:2", "added 0:2", "removed 0:2"]);
    expect(await find(at(0, 3))).toBeDefined();
  });

  it("tells the driver before QEMU ends the requests of the device", async () => {
    const { machine, find } = await followed({
      type: "pc",
      devices: [],
      args: [
        ...["-object", "throttle-group,id=slow,x-iops-total=1,x-iops-total-max=1"],
        ...["-blockdev", "driver=null-co,node-name=fast,size=1048576,read-zeroes=on"],
        ...["-blockdev", "driver=throttle,node-name=n,throttle-group=slow,file=fast"],
        ...["-device", "virtio-blk-pci,id=slow,drive=n,addr=5,disable-legacy=on"],
      ],
    });
    const fn = await find(at(0, 5));
    if (fn === undefined) throw new Error("no function there");
    const device = await RawDevice.open(machine, fn);
    await device.start();
    // The first takes what the throttle gives in a second: the next waits.
    const first = await device.readFirstSector();
    await until("the first request is used", () => first.used() === 1);
    await device.start();
    const second = await device.readFirstSector();
    const order: string[] = [];
    void fn.gone.then(() => order.push(`gone, ${second.used()} used`));
    machine.qmp.on("DEVICE_DELETED", ({ data }) => order.push(`deleted ${String(data["device"])}`));
    await machine.unplug("slow");
    expect(order.filter((what) => !what.endsWith("undefined"))).toEqual([
      "gone, 0 used",
      "deleted slow",
    ]);
    expect(second.used()).toBe(1);
  });

  it("lowers the line of a device that is taken out while it interrupts", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "disk.img"), Buffer.alloc(4096));
    const devices = ["blk,file=disk.img"];
    const { machine, find } = await followed({ type: "pc", cwd: folder, devices });
    const fn = await find(at(0, 2));
    if (fn === undefined) throw new Error("no function there");
    const device = await RawDevice.open(machine, fn);
    await device.start();
    const changed = vi.spyOn(InterruptLines.prototype, "changed");
    onTestFinished(() => changed.mockRestore());
    await machine.qmp.execute("block_resize", { "node-name": "blk0", size: 8192 });
    await machine.unplug("blk0");
    const { irq } = fn.interrupts;
    expect(changed.mock.calls.filter(([line]) => line === irq)).toEqual([
      [irq, "high"],
      [irq, "low"],
    ]);
  });

  it("finds what a reset took out, and works after it", async () => {
    const { machine, changes, find } = await followed({ type: "pc", devices: ["blk,size=1m"] });
    const fn = await find(at(0, 2));
    const reset = machine.qmp.next("RESET");
    await Promise.all([
      machine.qmp.execute("device_del", { id: "blk0" }),
      machine.qmp.execute("system_reset"),
    ]);
    await reset;
    await until("the removal is told", () => changes.length > 0);
    expect(await fn?.gone).toMatchObject({ code: "CLOSED" });
    const address = await machine.plug("blk,size=1m");
    await readSector(machine, await find(address));
    expect(changes).toEqual(["removed 0:2", "added 0:2"]);
  });

  it("numbers the root ports of a q35 again after a reset", async () => {
    const { machine, find } = await followed({ devices: [], rootPorts: 2 });
    await machine.plug("blk,size=1m");
    const second = await machine.plug("blk,size=1m");
    expect(second).toEqual(at(2, 0));
    const reset = machine.qmp.next("RESET");
    await machine.qmp.execute("system_reset");
    await reset;
    await until("the bus is numbered", async () => (await find(second)) !== undefined);
    await readSector(machine, await find(second));
  });

  it("that the end of the machine meets halfway rejects with CLOSED", async () => {
    for (const type of ["pc", "q35"] as const) {
      const rootPorts = type === "pc" ? 0 : 1;
      const machine = await qemu({ type, rootPorts, devices: [] });
      const plugging = machine.plug("blk,size=1m");
      const unplugging = machine.unplug("blk0");
      await Promise.all([
        expect(plugging).rejects.toMatchObject({ code: "CLOSED" }),
        expect(unplugging).rejects.toMatchObject({ code: "CLOSED" }),
        machine.close(),
      ]);
    }
  });

  it("takes its turns: what is asked for at once happens one after the other", async () => {
    const { machine } = await followed({ devices: [], rootPorts: 2 });
    const plugs = [machine.plug("blk,size=1m"), machine.plug("blk,size=1m")];
    expect(await Promise.all(plugs)).toEqual([at(1, 0), at(2, 0)]);
    await Promise.all([machine.unplug("blk0"), machine.unplug("blk1")]);
    expect(machine.devices).toEqual([]);
  });

  it("of what QEMU or this package refuses is one line, and leaves nothing behind", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "disk.img"), Buffer.alloc(4096));
    const devices = ["blk,file=disk.img"];
    const { machine, changes } = await followed({ cwd: folder, devices, rootPorts: 1 });
    const refused = async (what: Promise<unknown>, code: string, message: string) => {
      await expect(what).rejects.toMatchObject({ name: "VirtioFault", code, message });
    };
    const file = "blk,file=disk.img";
    await refused(
      machine.plug(file),
      "BUSY",
      "blk,file=disk.img: blk0 has the same file: give each its own, or both readonly=on",
    );
    await refused(machine.plug("blk,file=nosuch"), "NOT_FOUND", "blk,file=nosuch: no such file");
    await refused(
      machine.plug("blk,file=disk.img,readonly=on,format=qcow2"),
      "BUSY",
      "blk,file=disk.img: blk0 has the same file: give each its own, or both readonly=on",
    );
    writeFileSync(join(folder, "other.img"), Buffer.alloc(4096));
    await refused(
      machine.plug("blk,file=other.img,format=qcow2"),
      "INVALID",
      "blk,file=other.img: is not in qcow2 format: use format=raw",
    );
    await refused(
      machine.plug("blk,file=other.img,legacy=transitional,access_platform=on"),
      "INVALID",
      "blk,file=other.img: QEMU refuses it: VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device",
    );
    await refused(machine.unplug("blk0"), "UNSUPPORTED", "blk0: sits on a bus without hot-plug");
    await refused(machine.unplug("nosuch"), "NOT_FOUND", "nosuch: no such device");
    await expect(machine.unplug(at(0, 9))).rejects.toMatchObject({ code: "NOT_FOUND" });
    expect(changes).toEqual([]);
    await machine.plug("blk,file=other.img");
    await refused(machine.plug("blk,size=1m"), "NO_SPACE", "blk2: no slot is free");
    expect((await nodes(machine)).filter((name) => String(name).startsWith("blk"))).toEqual([
      "blk1",
      "blk0",
    ]);
    const other = await launch({ devices: [] });
    await refused(
      other.plug("blk"),
      "UNSUPPORTED",
      "qemu: a q35 takes devices behind root ports only: make it with rootPorts",
    );
  });
});

import { VirtioFault } from "@virtio/core";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { Kernel, load, moduleTable, parseKernelConf, parseLoaderConf } from "../src/index.js";
import { FakeBlockDriver, FakeMachine, fakeModules, pciFunction } from "./fakes.js";

const start = async ({ kernelConf = "include GENERIC", loaderConf = "" } = {}) => {
  const machine = new FakeMachine([pciFunction(1), pciFunction(2)]);
  const driver = new FakeBlockDriver();
  const image = await load({
    modules: fakeModules(driver),
    kernelConf: parseKernelConf(kernelConf),
    settings: parseLoaderConf(loaderConf),
  });
  const kernel = new Kernel({ machine, image });
  await kernel.boot();
  kernel.messages.clear();
  return { kernel, machine, driver };
};

const names = (kernel: Kernel): string[] => [...kernel.devices.walk()].map(({ name }) => name);
const disks = (kernel: Kernel): string[] => kernel.disks.map(({ name }) => name);
const lines = (kernel: Kernel): readonly string[] => kernel.messages.lines;

describe("a device that is plugged in", () => {
  it("is found, attached and told of as at boot, and the others are left alone", async () => {
    const { kernel, machine, driver } = await start();
    const before = [...driver.disks];
    machine.plug(pciFunction(3));
    await expect.poll(() => disks(kernel)).toEqual(["vtbd0", "vtbd1", "vtbd2"]);
    await expect
      .poll(() => lines(kernel))
      .toEqual([
        "virtio_pci2: <VirtIO PCI (modern) Block adapter> mem 0xfe000000-0xfe000fff irq 21 at device 3.0 on pci0",
        "vtblk2: <VirtIO Block Adapter> on virtio_pci2",
        "vtblk2: 1MB (2048 512 byte sectors)",
      ]);
    expect(driver.disks.slice(0, 2)).toEqual(before);
    expect(kernel.sysctl.find("dev.virtio_pci.2")).not.toEqual([]);
  });

  it("that is not ours changes nothing", async () => {
    const { kernel, machine } = await start();
    const before = names(kernel);
    machine.plug(pciFunction(3, { vendor: 0x8086 }));
    machine.plug(pciFunction(4));
    await expect.poll(() => names(kernel)).toEqual([...before, "virtio_pci2", "vtblk2"]);
  });

  it("does not make a device that failed to attach try again", async () => {
    const { kernel, machine, driver } = await start();
    driver.before = async () => {
      throw new VirtioFault("IO", "broken");
    };
    machine.plug(pciFunction(3));
    await expect.poll(() => lines(kernel).at(-1)).toMatch(/attach returned 5/);
    driver.before = async () => {};
    machine.plug(pciFunction(4));
    await expect.poll(() => lines(kernel).at(-1)).toBe("vtblk2: 1MB (2048 512 byte sectors)");
    expect(lines(kernel).filter((line) => line.startsWith("vtblk2: <"))).toEqual([
      "vtblk2: <VirtIO Block Adapter> on virtio_pci2",
      "vtblk2: <VirtIO Block Adapter> on virtio_pci3",
    ]);
  });

  it("waits, idle, for its driver's module", async () => {
    const { kernel, machine } = await start({
      kernelConf: "",
      loaderConf: 'virtio_pci_load="YES"',
    });
    machine.plug(pciFunction(3));
    await expect.poll(() => names(kernel)).toContain("virtio_pci2");
    expect(disks(kernel)).toEqual([]);
    await kernel.load("virtio_blk");
    expect(disks(kernel)).toEqual(["vtbd0", "vtbd1", "vtbd2"]);
  });

  it("is not looked for without a bus driver", async () => {
    const { kernel, machine } = await start({ kernelConf: "" });
    machine.plug(pciFunction(3));
    await kernel.load("virtio_blk");
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0"]);
  });
});

describe("a device that is taken out", () => {
  it("is detached, and its nodes, disks, sysctl leaves and units go", async () => {
    const { kernel, machine, driver } = await start();
    machine.unplug(1);
    await expect.poll(() => lines(kernel)).toEqual(["vtblk0: detached", "virtio_pci0: detached"]);
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0", "virtio_pci1", "vtblk1"]);
    expect(disks(kernel)).toEqual(["vtbd1"]);
    expect(driver.disks.map(({ detached }) => detached)).toEqual([true, false]);
    for (const gone of ["dev.vtblk.0", "dev.virtio_pci.0"])
      expect(kernel.sysctl.find(gone)).toEqual([]);
    machine.plug(pciFunction(7));
    await expect.poll(() => disks(kernel)).toEqual(["vtbd1", "vtbd0"]);
    expect(names(kernel)).toContain("virtio_pci0");
  });

  it("goes though its driver fails to detach", async () => {
    const { kernel, machine, driver } = await start();
    const [disk] = driver.disks;
    if (disk !== undefined)
      disk.onDetach = async () => {
        throw new VirtioFault("IO", "cannot", { device: "vtblk0" });
      };
    machine.unplug(1);
    await expect
      .poll(() => lines(kernel))
      .toEqual(["vtblk0: cannot", "vtblk0: detached", "virtio_pci0: detached"]);
    expect(disks(kernel)).toEqual(["vtbd1"]);
    expect(kernel.sysctl.find("dev.vtblk.0")).toEqual([]);
  });

  it("goes though its driver never ends", async () => {
    const { kernel, machine, driver } = await start();
    const [disk] = driver.disks;
    if (disk !== undefined) disk.onDetach = () => new Promise(() => {});
    machine.unplug(1);
    await expect.poll(() => machine.callouts.size).toBe(1);
    machine.pass(30_000);
    await expect.poll(() => lines(kernel).at(-1)).toBe("virtio_pci0: detached");
    expect(lines(kernel)[0]).toBe("vtblk0: detach took more than 30 s");
    expect(disks(kernel)).toEqual(["vtbd1"]);
  });

  it("and another put into its place is another device", async () => {
    const { kernel, machine, driver } = await start();
    machine.unplug(1);
    machine.plug(pciFunction(1));
    await expect.poll(() => driver.disks.length).toBe(3);
    await expect.poll(() => disks(kernel)).toEqual(["vtbd1", "vtbd0"]);
    expect(driver.disks.map(({ detached }) => detached)).toEqual([true, false, false]);
  });

  it("before it was looked at leaves no trace", async () => {
    const { kernel, machine } = await start();
    const before = names(kernel);
    machine.plug(pciFunction(3));
    machine.unplug(3);
    await kernel.unload("nosuch").catch(() => {});
    expect(names(kernel)).toEqual(before);
    expect(lines(kernel)).toEqual([]);
  });

  it("while it attaches is detached when that has ended", async () => {
    const { kernel, machine, driver } = await start();
    let go = (): void => {};
    driver.before = () =>
      new Promise((resolve) => {
        go = resolve;
      });
    machine.plug(pciFunction(3));
    await expect.poll(() => disks(kernel)).toContain("vtbd2");
    machine.unplug(3);
    go();
    await expect.poll(() => lines(kernel).at(-1)).toBe("virtio_pci2: detached");
    expect(disks(kernel)).toEqual(["vtbd0", "vtbd1"]);
  });
});

describe("hot-plug", () => {
  it("takes its turn with kldload and kldunload", async () => {
    const { kernel, machine } = await start({
      kernelConf: "",
      loaderConf: 'virtio_pci_load="YES"',
    });
    const loaded = kernel.load("virtio_blk");
    machine.plug(pciFunction(3));
    const unloaded = kernel.unload("if_virtio_blk");
    machine.unplug(2);
    const again = kernel.load("virtio_blk");
    await Promise.all([loaded, unloaded, again]);
    expect(disks(kernel)).toEqual(["vtbd0", "vtbd1"]);
    expect(names(kernel).filter((name) => name.startsWith("virtio_pci"))).toEqual([
      "virtio_pci0",
      "virtio_pci2",
    ]);
  });

  it("says what a bus driver fails with, and goes on", async () => {
    const { kernel, machine } = await start();
    const fn = pciFunction(3);
    machine.plug({ ...fn, read: () => Promise.reject(new VirtioFault("CLOSED", "no answer")) });
    await expect.poll(() => lines(kernel)).toEqual(["virtio_pci: no answer"]);
    machine.unplug(3);
    machine.plug(pciFunction(4));
    await expect.poll(() => disks(kernel)).toEqual(["vtbd0", "vtbd1", "vtbd2"]);
  });

  it("is no longer heard while the system halts, and after", async () => {
    const { kernel, machine, driver } = await start();
    let go = (): void => {};
    const [disk] = driver.disks;
    if (disk !== undefined)
      disk.onDetach = () =>
        new Promise((resolve) => {
          go = resolve;
        });
    const halted = kernel.shutdown();
    await expect.poll(() => kernel.state).toBe("halting");
    machine.plug(pciFunction(3));
    machine.unplug(2);
    await expect.poll(() => machine.callouts.size).toBe(1);
    go();
    await halted;
    machine.plug(pciFunction(4));
    await kernel.load("virtio_blk").catch(() => {});
    expect(driver.disks).toHaveLength(2);
    expect(machine.closed).toBe(1);
  });
});

describe("hot-plug on the embedded machine", () => {
  const boot = async () => {
    const rules = new RuleBook();
    const machine = await embedded({ devices: ["blk,size=1m"], rules });
    const image = await load({
      modules: moduleTable,
      kernelConf: parseKernelConf("include GENERIC"),
      settings: [],
    });
    const kernel = new Kernel({ machine, image });
    await kernel.boot();
    kernel.messages.clear();
    return { kernel, machine, rules };
  };

  it("attaches what is plugged in beside a disk at work, again and again", async () => {
    const { kernel, machine, rules } = await boot();
    const written = Uint8Array.from({ length: 4096 }, (_, i) => i % 251);
    const busy = kernel.disk("vtbd0");
    for (let round = 0; round < 3; round++) {
      const work = Array.from({ length: 16 }, (_, i) => busy.write(i * 4096, written));
      const address = await machine.plug("blk,size=2m");
      await expect.poll(() => kernel.disks.map(({ name }) => name)).toEqual(["vtbd0", "vtbd1"]);
      const disk = kernel.disk("vtbd1");
      await disk.write(8192, written);
      const read = new Uint8Array(4096);
      await disk.read(8192, read);
      expect(read).toEqual(written);
      await Promise.all(work);
      await machine.unplug(address);
      await expect.poll(() => kernel.messages.lines.at(-1)).toBe("virtio_pci1: detached");
      expect(kernel.disks).toEqual([busy]);
    }
    await kernel.shutdown();
    expect(rules.violations).toEqual([]);
  });

  it("ends each request in flight once with ENXIO when the device is taken out", async () => {
    const { kernel, machine } = await boot();
    const [fn] = await machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no function");
    const disk = kernel.disk("vtbd0");
    const requests = Array.from({ length: 32 }, (_, i) =>
      disk.read(i * 4096, new Uint8Array(4096)).then(
        () => "done",
        (fault: VirtioFault) => fault.errno,
      ),
    );
    await machine.unplug(fn.address);
    expect(await Promise.all(requests)).toEqual(requests.map(() => "ENXIO"));
    await expect
      .poll(() => kernel.messages.lines.slice(-2))
      .toEqual(["vtblk0: detached", "virtio_pci0: detached"]);
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0"]);
    await kernel.shutdown();
  });
});

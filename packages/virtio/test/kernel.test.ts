import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { Kernel, load, parseKernelConf, parseLoaderConf } from "../src/index.js";
import { FakeBlockDriver, FakeMachine, fakeModules, pciFunction } from "./fakes.js";

interface Booted {
  readonly kernel: Kernel;
  readonly machine: FakeMachine;
  readonly driver: FakeBlockDriver;
}

const start = async ({
  kernelConf = "include GENERIC",
  loaderConf = "",
  machine = new FakeMachine(),
  driver = new FakeBlockDriver(),
} = {}): Promise<Booted> => {
  const image = await load({
    modules: fakeModules(driver),
    kernelConf: parseKernelConf(kernelConf, "TEST"),
    settings: parseLoaderConf(loaderConf),
  });
  const kernel = new Kernel({ machine, image, release: "1.2.3" });
  await kernel.boot();
  return { kernel, machine, driver };
};

const names = (kernel: Kernel): string[] => [...kernel.devices.walk()].map(({ name }) => name);

describe("boot", () => {
  it("prints machine, buses, transports and devices as FreeBSD does", async () => {
    const { kernel } = await start({ kernelConf: "include GENERIC\nident GENERIC" });
    expect(kernel.messages.lines).toEqual([
      "virtio 1.2.3 GENERIC fake",
      "real memory  = 1048576 (1 MB)",
      "avail memory = 1048576 (1 MB)",
      "virtio/SMP: Multiprocessor System Detected: 8 CPUs",
      "pcib0: <Host to PCI bridge> on nexus0",
      "pci0: <PCI bus> on pcib0",
      "virtio_pci0: <VirtIO PCI (modern) Block adapter> mem 0xfe000000-0xfe000fff irq 21 at device 1.0 on pci0",
      "vtblk0: <VirtIO Block Adapter> on virtio_pci0",
      "vtblk0: 1MB (2048 512 byte sectors)",
    ]);
  });

  it("prints more when boot_verbose is set", async () => {
    const { kernel } = await start({ loaderConf: 'boot_verbose="YES"' });
    expect(kernel.messages.lines).toContain("virtio_pci0: host features: 0x100000000 <Version1>");
  });

  it("gives units in bus order before any attach, and keeps each device's lines together", async () => {
    const machine = new FakeMachine([pciFunction(1), pciFunction(2), pciFunction(3)]);
    const driver = new FakeBlockDriver();
    const attaching: number[] = [];
    let open = (): void => {};
    const slow = new Promise<void>((resolve) => {
      open = resolve;
    });
    driver.before = async (unit) => {
      attaching.push(unit);
      // The first waits until the last began: they overlap, and the first is the last to finish.
      if (unit === 2) open();
      if (unit === 0) await slow;
    };
    const { kernel } = await start({ machine, driver });
    expect(attaching).toEqual([0, 1, 2]);
    expect(kernel.messages.lines.slice(6).map((line) => line.replace(/[:].*/, ""))).toEqual(
      [0, 1, 2].flatMap((unit) => [`virtio_pci${unit}`, `vtblk${unit}`, `vtblk${unit}`]),
    );
    expect(kernel.disks.map(({ name }) => name)).toEqual(["vtbd0", "vtbd1", "vtbd2"]);
  });

  it("says why a device does not attach, takes back what it published, and goes on", async () => {
    const machine = new FakeMachine([pciFunction(1), pciFunction(2)]);
    const driver = new FakeBlockDriver();
    driver.before = async (unit) => {
      if (unit === 0) throw new VirtioFault("NEGOTIATION", "no VERSION_1", { device: "vtblk0" });
    };
    const { kernel } = await start({ machine, driver });
    const lines = kernel.messages.lines.filter((line) => /vtblk/.test(line));
    expect(lines).toEqual([
      "vtblk0: <VirtIO Block Adapter> on virtio_pci0",
      "vtblk0: no VERSION_1",
      "device_attach: vtblk0 attach returned 22",
      "vtblk1: <VirtIO Block Adapter> on virtio_pci1",
      "vtblk1: 1MB (2048 512 byte sectors)",
    ]);
    expect([...kernel.published.keys()]).toEqual(["vtbd1"]);
    expect(names(kernel)).not.toContain("vtblk0");
    expect(kernel.sysctl.find("dev.vtblk.0")).toEqual([]);
  });

  it("says what ended a device later", async () => {
    const { kernel, driver } = await start();
    driver.disks[0]?.fail(new VirtioFault("DEVICE_MISBEHAVED", "used.id 300", { device: "vtbd0" }));
    await expect.poll(() => kernel.messages.lines.at(-1)).toBe("vtblk0: vtbd0: used.id 300");
  });

  it("happens once", async () => {
    const { kernel } = await start();
    await expect(kernel.boot()).rejects.toThrow("kernel: cannot boot, it is running");
  });

  it.each([
    ["", undefined],
    ["hw.vtblk.no_ident=1", "vtblk0: no ident"],
    ["hw.vtblk.no_ident=1\nhw.vtblk.0.no_ident=0", undefined],
    ["hw.vtblk.no_ident=0\nhw.vtblk.0.no_ident=1", "vtblk0: no ident"],
  ])("lets the unit's tunable beat the global one: %j", async (loaderConf, line) => {
    const { kernel } = await start({ loaderConf });
    expect(kernel.messages.lines.find((each) => each.includes("no ident"))).toBe(line);
  });
});

describe("modules at run time", () => {
  const kernelConf = "";

  it("probes nothing with virtio alone", async () => {
    const { kernel } = await start({ kernelConf, loaderConf: 'virtio_load="YES"' });
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0"]);
  });

  it("shows a device idle with the transport, and attaches it when its driver is loaded", async () => {
    const { kernel } = await start({ kernelConf, loaderConf: 'virtio_pci_load="YES"' });
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0", "virtio_pci0"]);
    await kernel.load("virtio_blk");
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0", "virtio_pci0", "vtblk0"]);
    expect(kernel.disk("/dev/vtbd0").name).toBe("vtbd0");
  });

  it("attaches as well when the transport comes after the driver", async () => {
    const { kernel } = await start({ kernelConf });
    await kernel.load("if_virtio_blk.ko");
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0"]);
    await kernel.load("virtio_pci");
    expect(names(kernel)).toContain("vtblk0");
  });

  it("pulls in what a module needs, and counts who needs what", async () => {
    const { kernel } = await start({ kernelConf });
    await kernel.load("virtio_blk");
    const refs = kernel.linker.files.map((file) => [file.name, kernel.linker.references(file)]);
    expect(refs).toEqual([
      ["kernel", 3],
      ["virtio", 1],
      ["if_virtio_blk", 1],
    ]);
  });

  it("refuses to load what is there, and what does not exist", async () => {
    const { kernel } = await start();
    await expect(kernel.load("virtio_blk")).rejects.toMatchObject({ code: "EXISTS" });
    await expect(kernel.load("nosuch")).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("checks tunables when the module comes in", async () => {
    const { kernel } = await start({ kernelConf, loaderConf: "hw.vtblk.no_ident=2" });
    await expect(kernel.load("virtio_blk")).rejects.toThrow(
      "loader.conf:1: hw.vtblk.no_ident: '2' is not a whole number from 0 to 1",
    );
    expect(kernel.linker.modules).toEqual([]);
  });

  it("detaches a module's devices when it is unloaded, and what only it needed goes too", async () => {
    const { kernel, driver } = await start({ kernelConf });
    await kernel.load("virtio_blk");
    await kernel.load("virtio_pci");
    await kernel.unload("virtio_pci");
    expect(driver.disks[0]?.detached).toBe(true);
    expect(names(kernel)).toEqual(["nexus0", "pcib0", "pci0"]);
    expect(kernel.messages.lines.at(-1)).toBe("vtblk0: detached");
    await kernel.unload("if_virtio_blk");
    expect(kernel.linker.files.map(({ name }) => name)).toEqual(["kernel"]);
  });

  it("gives the device and its unit to the driver again after a reload", async () => {
    const { kernel } = await start({ kernelConf, loaderConf: 'virtio_pci_load="YES"' });
    for (let round = 0; round < 3; round++) {
      await kernel.load("virtio_blk");
      expect(names(kernel)).toContain("vtblk0");
      await kernel.unload("if_virtio_blk");
      expect(names(kernel)).not.toContain("vtblk0");
      expect(kernel.disks).toEqual([]);
      expect(kernel.sysctl.find("dev.vtblk")).toEqual([]);
    }
  });

  it("does not unload what others need, what is compiled in, or what is not there", async () => {
    const { kernel } = await start({ kernelConf, loaderConf: 'virtio_blk_load="YES"' });
    await expect(kernel.unload("virtio")).rejects.toMatchObject({ code: "BUSY" });
    await expect(kernel.unload("virtio_pci")).rejects.toThrow("no such file is loaded");
    const generic = await start();
    await expect(generic.kernel.unload("virtio_pci")).rejects.toThrow("it is part of the kernel");
  });
});

describe("shutdown", () => {
  it("flushes the disks, detaches last found first, then closes the machine", async () => {
    const machine = new FakeMachine([pciFunction(1), pciFunction(2)]);
    const { kernel, driver } = await start({ machine });
    const order: string[] = [];
    for (const disk of driver.disks)
      disk.onDetach = async () => void order.push(`${disk.name} ${disk.requests.at(-1)?.what}`);
    await kernel.shutdown();
    expect(order).toEqual(["vtbd1 flush", "vtbd0 flush"]);
    expect(machine.closed).toBe(1);
    expect(kernel.state).toBe("halted");
    expect(kernel.messages.lines).toEqual(
      expect.arrayContaining(["Syncing disks... done", "The operating system has halted."]),
    );
  });

  it("happens once, whoever asks", async () => {
    const { kernel, machine } = await start();
    await Promise.all([kernel.shutdown(), kernel.shutdown()]);
    await kernel.shutdown();
    expect(machine.closed).toBe(1);
  });

  it("does everything though a flush fails, and says so at the end", async () => {
    const { kernel, machine, driver } = await start();
    const [disk] = driver.disks;
    if (disk !== undefined) disk.flushFault = new VirtioFault("IO", "vtbd0: flush failed");
    await expect(kernel.shutdown()).rejects.toThrow("vtbd0: flush failed");
    expect(kernel.messages.lines).toContain("Syncing disks... giving up");
    expect(disk?.detached).toBe(true);
    expect(machine.closed).toBe(1);
  });

  it("asks nothing of a disk without a cache", async () => {
    const { kernel, driver } = await start();
    const [disk] = driver.disks;
    if (disk !== undefined) disk.flushFault = new VirtioFault("UNSUPPORTED", "no cache");
    await expect(kernel.shutdown()).resolves.toBeUndefined();
  });

  it("does not wait for ever for a driver", async () => {
    const { kernel, machine, driver } = await start();
    const [disk] = driver.disks;
    if (disk !== undefined) disk.onDetach = () => new Promise(() => {});
    const halting = kernel.shutdown();
    const seen = expect(halting).rejects.toThrow("vtblk0: detach took more than 30 s");
    await expect.poll(() => machine.callouts.size).toBe(1);
    machine.pass(30_000);
    await seen;
    expect(machine.closed).toBe(1);
  });

  it("lets nothing be loaded afterwards", async () => {
    const { kernel } = await start();
    await kernel.shutdown();
    await expect(kernel.load("virtio_blk")).rejects.toThrow("kernel: it is halted, not running");
  });
});

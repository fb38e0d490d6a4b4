import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { VirtioFault } from "@virtio/core";
import { PciRegister } from "@virtio/core/pci";
import { blk, qemu } from "@virtio/qemu";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { InterruptLines } from "../src/interrupt-lines.js";
import { hasQemu, isRunning, launch, qemuImg, temporaryFolder, until } from "./support/machine.js";
import { placeBars, RawDevice, virtioFunction } from "./support/raw-device.js";

const place = ({ device, function: fn }: { device: number; function: number }): string =>
  `${device}.${fn}`;

describe.skipIf(!hasQemu)("a machine (needs QEMU)", () => {
  it("has a name, CPUs, memory and one device of each kind, unless told otherwise", async () => {
    const machine = await launch();
    expect(machine).toMatchObject({
      name: "qemu",
      cpus: 8,
      devices: ["blk", "net", "scsi", "balloon", "console"].map((kind) => {
        return { id: `${kind}0`, spec: { kind } };
      }),
      version: expect.stringMatching(/^\d+\.\d+\.\d+$/),
    });
    expect(machine.memory).toMatchObject({ base: 0, shared: true });
    expect(machine.memory.buffer.byteLength).toBe(128 << 20);
    expect(machine.memory.available).toBe(127 << 20);
    expect(machine.memory.allocate(16).address).toBe(1 << 20);
    expect(machine.buses[0].bus.memory).toBe(machine.memory);
    expect(machine.buses[0].bus.tasks).toBe(machine.tasks);
    expect(machine.interrupts()).toEqual([]);
  });

  it("of type q35 shows every function of bus 0, in order", async () => {
    const machine = await launch({ devices: ["blk", "blk,size=1m"] });
    const { bus } = machine.buses[0];
    const functions = await bus.functions();
    expect(functions.map(({ address }) => place(address))).toEqual([
      "0.0",
      "1.0",
      "2.0",
      "31.0",
      "31.2",
      "31.3",
    ]);
    const ids = await Promise.all(functions.map((fn) => fn.read(PciRegister.VENDOR_ID, 4)));
    expect(ids.slice(0, 3)).toEqual([0x29c0_8086, 0x1042_1af4, 0x1042_1af4]);
    expect(functions.map(({ interrupts }) => interrupts.irq)).toEqual([0, 21, 22, 0, 16, 16]);
    expect(await bus.functions()).toEqual(functions);
    expect((await bus.functions())[1]).toBe(functions[1]);
  });

  it("of type pc shows every function of bus 0, in order", async () => {
    const machine = await launch({ type: "pc", devices: ["blk", "blk"], cpus: 2 });
    const functions = await machine.buses[0].bus.functions();
    expect(machine.cpus).toBe(2);
    expect(functions.map(({ address }) => place(address))).toEqual([
      "0.0",
      "1.0",
      "1.1",
      "1.3",
      "2.0",
      "3.0",
    ]);
    const ids = await Promise.all(functions.map((fn) => fn.read(PciRegister.VENDOR_ID, 4)));
    expect(ids[0]).toBe(0x1237_8086);
    expect(ids.slice(4)).toEqual([0x1042_1af4, 0x1042_1af4]);
  });

  it.each(["q35", "pc"] as const)(
    "of type %s reads and writes configuration space at every width, and refuses what is outside",
    async (type) => {
      const fn = await virtioFunction(await launch({ type }));
      expect(await fn.read(0, 4)).toBe(0x1042_1af4);
      expect(await fn.read(0, 2)).toBe(0x1af4);
      expect(await fn.read(2, 2)).toBe(0x1042);
      expect(await fn.read(3, 1)).toBe(0x10);
      await fn.write(PciRegister.INTERRUPT_LINE, 1, 0x5a);
      expect(await fn.read(PciRegister.INTERRUPT_LINE, 1)).toBe(0x5a);
      for (const [offset, width] of [
        [-4, 4],
        [4096, 1],
        [2, 4],
        [1, 2],
        [0.5, 1],
      ] as const) {
        await expect(fn.read(offset, width)).rejects.toMatchObject({ code: "INVALID" });
        await expect(fn.write(offset, width, 0)).rejects.toMatchObject({ code: "INVALID" });
      }
      await expect(fn.write(4, 1, 256)).rejects.toMatchObject({ code: "INVALID" });
    },
  );

  it.each(["q35", "pc"] as const)("of type %s maps a memory BAR that was placed", async (type) => {
    const machine = await launch({ type });
    const fn = await virtioFunction(machine);
    await expect(fn.mapBar(4)).rejects.toThrow("BAR 4 of pci0:0:");
    await placeBars(fn);
    const command = await fn.read(PciRegister.COMMAND, 2);
    expect((await fn.mapBar(4)).length).toBe(0x4000);
    expect((await fn.mapBar(1)).length).toBe(0x1000);
    expect(await fn.read(PciRegister.COMMAND, 2)).toBe(command);
    const device = await RawDevice.open(machine, fn);
    const [low, high] = await device.features();
    // SEG_MAX GEOMETRY BLK_SIZE FLUSH TOPOLOGY CONFIG_WCE DISCARD WRITE_ZEROES INDIRECT_DESC EVENT_IDX, and VERSION_1.
    expect(low & 0x3000_6e54).toBe(0x3000_6e54);
    expect(high & 1).toBe(1);
    expect(await device.capacity()).toBe((64 << 20) / 512);
  });

  it("maps an I/O BAR that was placed", async () => {
    const machine = await launch({ devices: ["blk,legacy=transitional"] });
    const fn = await virtioFunction(machine);
    await fn.write(PciRegister.BAR0, 4, 0xc000);
    await fn.write(PciRegister.COMMAND, 2, 7);
    const bar = await fn.mapBar(0);
    expect(bar.length).toBe(128);
    expect((await bar.read(0, 4)) & 0x200).toBe(0x200);
    await bar.write(0x12, 1, 3);
    expect(await bar.read(0x12, 1)).toBe(3);
    await expect(bar.read(128, 1)).rejects.toMatchObject({ code: "INVALID" });
  });

  it.each([-1, 6, 1.5])("refuses to map BAR %s", async (index) => {
    const fn = await virtioFunction(await launch());
    await expect(fn.mapBar(index)).rejects.toMatchObject({ code: "INVALID" });
  });

  it("shares its memory with QEMU, both ways", async () => {
    const machine = await launch();
    const region = machine.memory.allocate(4096, 4096);
    const words = new Uint32Array(machine.memory.buffer, region.offset, 1024);
    await machine.qtest.write("memory", region.address + 8, 4, 0xcafe_0001);
    expect(Atomics.load(words, 2)).toBe(0xcafe_0001);
    Atomics.store(words, 1023, 0x1234_5678);
    expect(await machine.qtest.read("memory", region.address + 4092, 4)).toBe(0x1234_5678);
  });

  it.each([4 << 20, 2 ** 31])("can have %s bytes of memory", async (memory) => {
    const machine = await launch({ memory });
    const words = new Uint32Array(machine.memory.buffer);
    await machine.qtest.write("memory", memory - 4, 4, 7);
    expect(words.at(-1)).toBe(7);
  });

  it("performs a read that a driver asked for", async () => {
    const folder = temporaryFolder();
    const image = Buffer.alloc(1 << 20, 0x11);
    image.write("first sector");
    writeFileSync(join(folder, "disk.img"), image);
    const machine = await launch({ cwd: folder, devices: ["blk,file=disk.img"] });
    const device = await RawDevice.open(machine, await virtioFunction(machine));
    await device.start();
    const { data, used } = await device.readFirstSector();
    await until("the request is used", () => used() === 1);
    expect(Buffer.from(data).equals(image.subarray(0, 512))).toBe(true);
  });

  it("opens qcow2 images, and tells QEMU's devices by id", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "qcow2", join(folder, "disk.qcow2"), "8M");
    const machine = await launch({
      cwd: folder,
      devices: ["blk", blk({ file: "disk.qcow2", format: "qcow2", readonly: true })],
    });
    expect(machine.devices.map(({ id }) => id)).toEqual(["blk0", "blk1"]);
    const blocks = (await machine.qmp.execute("query-block")) as {
      qdev: string;
      inserted: { drv: string; ro: boolean; image: { "virtual-size": number } };
    }[];
    expect(blocks.map(({ qdev, inserted }) => [qdev, inserted.drv, inserted.ro])).toEqual([
      ["/machine/peripheral/blk0/virtio-backend", "raw", false],
      ["/machine/peripheral/blk1/virtio-backend", "qcow2", true],
    ]);
    expect(blocks[1]?.inserted.image["virtual-size"]).toBe(8 << 20);
  });

  it("gives a device what its specification says", async () => {
    const machine = await launch({
      devices: [
        "blk,size=1m,packed=on,indirect=off,event_idx=off,discard=off,queues=2,queue-size=64",
      ],
    });
    const device = await RawDevice.open(machine, await virtioFunction(machine));
    const [low, high] = await device.features();
    expect([(low >>> 28) & 1, (low >>> 29) & 1, (low >>> 13) & 1]).toEqual([0, 0, 0]);
    expect([(low >>> 12) & 1, (high >>> 2) & 1]).toEqual([1, 1]);
    expect(await device.queueSize()).toBe(64);
    expect(await device.capacity()).toBe(2048);
  });

  it.each([
    ["blk,flush=off", 9],
    ["blk,config_wce=off", 11],
    ["blk,write_zeroes=off", 14],
  ])("does not offer what was held back: %s", async (spec, bit) => {
    const machine = await launch({ devices: [spec, "blk"] });
    const offered = async (n: number): Promise<number> => {
      const device = await RawDevice.open(machine, await virtioFunction(machine, n));
      return ((await device.features())[0] >>> bit) & 1;
    };
    expect([await offered(0), await offered(1)]).toEqual([0, 1]);
  });

  it("can be reset by QMP, and its configuration space be read again", async () => {
    const machine = await launch();
    const fn = await virtioFunction(machine);
    await placeBars(fn);
    const reset = machine.qmp.next("RESET");
    await machine.qmp.execute("system_reset");
    await reset;
    expect(await fn.read(PciRegister.VENDOR_ID, 2)).toBe(0x1af4);
    expect(await fn.read(PciRegister.COMMAND, 2)).toBe(0);
  });

  it.each(["q35", "pc"] as const)(
    "of type %s loses no function while it is reset",
    async (type) => {
      const machine = await launch({ type });
      const { bus } = machine.buses[0];
      const before = await bus.functions();
      const changes: unknown[] = [];
      bus.onChange = (address, what) => changes.push([address, what]);
      let resets = 0;
      machine.qmp.on("RESET", () => resets++);
      for (let wanted = 1; wanted <= 3; wanted++) {
        const reset = machine.qmp.execute("system_reset");
        while (resets < wanted) expect(await bus.functions()).toEqual(before);
        await reset;
      }
      expect(await bus.functions()).toEqual(before);
      expect(changes).toEqual([]);
    },
  );

  it.each(["q35", "pc"] as const)(
    "of type %s is silent and idle while nothing is asked of it",
    async (type) => {
      const machine = await launch({ type });
      const changed = vi.spyOn(InterruptLines.prototype, "changed");
      onTestFinished(() => changed.mockRestore());
      const ticks = (): number => {
        const fields = readFileSync(`/proc/${machine.pid}/stat`, "utf8").split(") ")[1]?.split(" ");
        return Number(fields?.[11]) + Number(fields?.[12]);
      };
      const before = [ticks(), process.cpuUsage()] as const;
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(changed).not.toHaveBeenCalled();
      expect(ticks() - before[0]).toBeLessThan(10);
      expect(process.cpuUsage(before[1]).user).toBeLessThan(100_000);
    },
  );
});

describe.skipIf(!hasQemu)("the end of a machine (needs QEMU)", () => {
  it("in order: QEMU ends, everything rejects with CLOSED, functions are gone", async () => {
    const machine = await qemu();
    const fn = await virtioFunction(machine);
    const region = machine.memory.allocate(4096);
    const pending = fn.read(0, 4);
    const event = machine.qmp.next("STOP");
    const ends = [machine.close(), machine.close()];
    await expect(pending).rejects.toMatchObject({
      code: "CLOSED",
      message: "the machine is closed",
    });
    await expect(event).rejects.toMatchObject({ code: "CLOSED" });
    expect(await fn.gone).toMatchObject({ code: "CLOSED" });
    await Promise.all(ends);
    expect(await machine.closed).toBeNull();
    expect(await isRunning(machine.pid)).toBe(false);
    await expect(fn.read(0, 4)).rejects.toMatchObject({ code: "CLOSED" });
    await expect(machine.qmp.execute("stop")).rejects.toMatchObject({ code: "CLOSED" });
    region.bytes[0] = 1;
    expect(new Uint8Array(machine.memory.buffer)[region.offset]).toBe(1);
    await machine.close();
  });

  it("at the end of an await using block", async () => {
    let pid = 0;
    {
      await using machine = await qemu();
      pid = machine.pid;
      expect(await isRunning(pid)).toBe(true);
    }
    expect(await isRunning(pid)).toBe(false);
  });

  it("writes back what QEMU held", async () => {
    const folder = temporaryFolder();
    const file = join(folder, "disk.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", file, "1M");
    const machine = await qemu({ devices: [blk({ file, format: "qcow2" })] });
    await machine.close();
    expect(qemuImg("check", file)).toContain("No errors were found");
  });

  it("by a kill: everything rejects with CLOSED and says what happened", async () => {
    const machine = await qemu();
    const fn = await virtioFunction(machine);
    process.kill(machine.pid, "SIGSTOP");
    const pending = [fn.read(0, 4), machine.qmp.execute("query-block")];
    process.kill(machine.pid, "SIGKILL");
    const message = `QEMU (pid ${machine.pid}) ended: SIGKILL`;
    for (const promise of pending)
      await expect(promise).rejects.toMatchObject({ code: "CLOSED", message });
    expect(await fn.gone).toMatchObject({ code: "CLOSED", message });
    expect(await machine.closed).toMatchObject({ code: "CLOSED", message });
    await machine.close();
  });

  it("by QEMU's own decision is told apart from ours", async () => {
    const machine = await qemu();
    await machine.qmp.execute("quit");
    expect(await machine.closed).toMatchObject({
      message: `QEMU (pid ${machine.pid}) ended: exit status 0`,
    });
    await machine.close();
  });

  it("by a QEMU that does not answer: killed, with TIMED_OUT", async () => {
    const machine = await qemu({ commandTimeout: 500 });
    const fn = await virtioFunction(machine);
    process.kill(machine.pid, "SIGSTOP");
    await expect(fn.read(0, 4)).rejects.toMatchObject({ code: "TIMED_OUT" });
    expect(await machine.closed).toMatchObject({ code: "TIMED_OUT" });
    expect(await isRunning(machine.pid)).toBe(false);
    expect(await fn.gone).toBeInstanceOf(VirtioFault);
    await machine.close();
  });
});

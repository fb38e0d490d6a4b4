// The bus: what a scan finds, what is printed and published, and the life of an adapter.
import { MemoryBackend } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { describe, expect, it } from "vitest";
import { kernelModule, vtscsi } from "../src/index.js";
import { bench, only, outcome, pattern } from "./attached.js";

const MIB = 1 << 20;
const memory = (size = MIB): MemoryBackend => new MemoryBackend(size);

describe("vtscsi", () => {
  it("prints what FreeBSD prints of a disk", async () => {
    const { lines, bus, published } = await bench({ size: 4 * MIB, serial: "SN-1" });
    expect(lines).toEqual([
      "da0 at vtscsi0 bus 0 scbus0 target 0 lun 0",
      "da0: <VIRTIO SCSI DISK 1.4> Fixed Direct Access SPC-4 SCSI device",
      "da0: Serial Number SN-1",
      "da0: 300.000MB/s transfers",
      "da0: Command Queueing enabled",
      "da0: 4MB (8192 512 byte sectors)",
    ]);
    expect([...published].sort()).toEqual(["da0", "scbus0"]);
    expect([bus.kind, bus.name, bus.adapter]).toEqual(["scsi", "scbus0", "vtscsi0"]);
  });

  it("finds every unit of every target, and names disks and CD-ROMs in their order", async () => {
    const { bus, rules } = await bench({
      targets: 256,
      luns: [
        { target: 255, lun: 0, backend: memory() },
        { target: 3, lun: 1, backend: memory() },
        { target: 3, lun: 300, backend: memory(2 * MIB) },
        { target: 0, lun: 2, type: "cd", backend: memory() },
        { target: 9, lun: 0, type: "cd", backend: null },
      ],
    });
    expect(bus.units.map(({ target, lun, peripheral }) => [target, lun, peripheral])).toEqual([
      [0, 2, "cd0"],
      [3, 1, "da0"],
      [3, 300, "da1"],
      [9, 0, "cd1"],
      [255, 0, "da2"],
    ]);
    expect(
      bus.disks.map(({ name, sectorSize, mediaSize, readOnly }) => [
        name,
        sectorSize,
        mediaSize,
        readOnly,
      ]),
    ).toEqual([
      ["cd0", 2048, MIB, true],
      ["da0", 512, MIB, false],
      ["da1", 512, 2 * MIB, false],
      ["cd1", 2048, 0, true],
      ["da2", 512, MIB, false],
    ]);
    expect(rules.violations).toEqual([]);
  });

  it("has a bus without units when there are none, and finds what comes later", async () => {
    const { bus } = await bench({ luns: [] });
    expect([bus.units, bus.disks]).toEqual([[], []]);
    await bus.rescan();
    expect(bus.units).toEqual([]);
  });

  it("is the module virtio_scsi", () => {
    expect([kernelModule.file, kernelModule.name, kernelModule.depends]).toEqual([
      "virtio_scsi",
      "virtio_scsi",
      ["virtio"],
    ]);
    expect(vtscsi().description).toBe("VirtIO SCSI Adapter");
  });

  it("shows its counters, and a debug level that can be set", async () => {
    const { sysctl, bus, lines } = await bench();
    const leaf = (name: string) => sysctl.find(`vtscsi.${name}`)[0];
    expect([leaf("scsi_cmd_timeouts")?.read(), leaf("debug_level")?.read()]).toEqual([0, 0]);
    expect(() => leaf("debug_level")?.write?.("9")).toThrow(/not 0 to 7/);
    await leaf("debug_level")?.write?.("4");
    await bus.execute({ target: 0, lun: 0, cdb: new Uint8Array(6) });
    expect(lines.at(-1)).toBe("vtscsi0: execute: target 0 lun 0 cdb 00 00 00 00 00 00");
  });

  it("gives all its memory back, and can be attached again", async () => {
    const { bus, machine, published } = await bench({ size: MIB });
    const disk = only(bus);
    await disk.write(0, pattern(4096, 1));
    await bus.detach();
    await bus.detach();
    expect([await bus.closed, await disk.closed, published.size]).toEqual([null, null, 0]);
    expect(await outcome(disk.read(0, new Uint8Array(512)))).toBe("CLOSED ENXIO");
    expect(await outcome(bus.execute({ target: 0, lun: 0, cdb: new Uint8Array(6) }))).toBe(
      "CLOSED ENXIO",
    );
    expect(await outcome(bus.rescan())).toBe("CLOSED ENXIO");
    const free = machine.memory.available;
    for (let n = 0; n < 2; n++) {
      const [node] = await probe(machine.buses[0].bus);
      if (node === undefined) throw new Error("no device");
      const again = await attach(node, vtscsi());
      const into = new Uint8Array(4096);
      await only(again).read(0, into);
      expect(into).toEqual(pattern(4096, 1));
      await again.detach();
      expect(machine.memory.available).toBe(free);
    }
  });

  it("lets a disk go alone: its unit can still be given commands by hand", async () => {
    const { bus, published } = await bench();
    const disk = only(bus);
    await disk.detach();
    expect([await disk.closed, bus.disks, published.has("da0")]).toEqual([null, [], false]);
    expect(bus.units.map(({ peripheral }) => peripheral)).toEqual([null]);
    const { status } = await bus.execute({ target: 0, lun: 0, cdb: new Uint8Array(6) });
    expect(status).toBe(0);
  });

  it("suspends with nothing in flight, holds requests back, and goes on after resume", async () => {
    const { bus, rules } = await bench({ size: MIB });
    const disk = only(bus);
    const writes = Array.from({ length: 50 }, (_, n) => disk.write(n * 512, pattern(512, n)));
    await bus.suspend();
    const held = disk.read(0, new Uint8Array(512));
    let over = false;
    void held.then(() => {
      over = true;
    });
    for (let n = 0; n < 20; n++) await new Promise((resolve) => setImmediate(resolve));
    expect(over).toBe(false);
    await bus.resume();
    await Promise.all([held, ...writes]);
    const into = new Uint8Array(512);
    await disk.read(49 * 512, into);
    expect(into).toEqual(pattern(512, 49));
    expect(rules.violations).toEqual([]);
  });

  it("ends every request once when its function goes away, and forgets its disks", async () => {
    const { bus, machine } = await bench({ size: MIB });
    const disk = only(bus);
    const reads = Array.from({ length: 20 }, () => outcome(disk.read(0, new Uint8Array(4096))));
    await machine.close();
    expect(new Set(await Promise.all(reads))).toEqual(new Set(["CLOSED ENXIO"]));
    expect((await bus.closed)?.code).toBe("CLOSED");
    await bus.detach();
  });
});

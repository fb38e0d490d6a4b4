// Units that come, go and change while the system runs.
import { FaultBackend, MemoryBackend } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { bench, only, outcome, pattern, until } from "./attached.js";

const MIB = 1 << 20;
const SECTOR = 512;

const names = (disks: readonly { readonly name: string }[]): string[] =>
  disks.map(({ name }) => name);

describe("a bus", () => {
  it("has a disk as soon as it is plugged in, and gives its name to the next once it is gone", async () => {
    const { bus, port, published, lines, rules } = await bench({ size: MIB });
    port.plug({ target: 5, lun: 1, backend: new MemoryBackend(2 * MIB) });
    await until(() => bus.disks.length === 2);
    expect([names(bus.disks), published.has("da1")]).toEqual([["da0", "da1"], true]);
    const [, disk] = bus.disks;
    await disk?.write(0, pattern(SECTOR, 1));
    await port.unplug(5, 1);
    await until(() => bus.disks.length === 1);
    expect(published.has("da1")).toBe(false);
    expect((await disk?.closed)?.code).toBe("CLOSED");
    expect(await outcome(disk?.read(0, new Uint8Array(SECTOR)) ?? Promise.resolve())).toBe(
      "CLOSED ENXIO",
    );
    expect(lines.slice(-3)).toEqual([
      "da1 at vtscsi0 bus 0 scbus0 target 5 lun 1",
      "da1: <VIRTIO SCSI DISK 1.4> detached",
      "(da1:vtscsi0:0:5:1): Periph destroyed",
    ]);
    port.plug({ target: 8, backend: new MemoryBackend(MIB) });
    await until(() => bus.disks.length === 2);
    expect(names(bus.disks)).toEqual(["da0", "da1"]);
    expect(rules.violations).toEqual([]);
  });

  it("sees another disk in place of one that was taken out", async () => {
    const { bus, port } = await bench({ luns: [{ backend: new MemoryBackend(MIB), serial: "A" }] });
    const first = only(bus);
    const gone = port.unplug(0, 0);
    port.plug({ backend: new MemoryBackend(2 * MIB), serial: "B" });
    await gone;
    await until(() => bus.disks[0]?.ident === "B");
    expect(only(bus).mediaSize).toBe(2 * MIB);
    expect((await first.closed)?.code).toBe("CLOSED");
  });

  it("ends what a unit had when it went away, each request once, with ENXIO", async () => {
    const backend = new FaultBackend(new MemoryBackend(MIB));
    const { bus, port, rules } = await bench({ backend });
    const disk = only(bus);
    backend.fate = () => "never";
    const ends = Array.from({ length: 30 }, (_, n) =>
      outcome(disk.read(n * SECTOR, new Uint8Array(SECTOR))),
    );
    await until(() => port.outstanding > 5);
    void port.unplug(0, 0);
    expect(new Set(await Promise.all(ends))).toEqual(new Set(["CLOSED ENXIO"]));
    expect(disk.statistics.busy).toBe(0);
    expect(rules.violations).toEqual([]);
  });

  it("gives a device without events no buffers for them, as FreeBSD does", async () => {
    const { bus, sysctl } = await bench({ features: { HOTPLUG: false, CHANGE: false } });
    const leaf = (name: string) => Number(sysctl.find(`vtscsi.vq1.${name}`)[0]?.read());
    expect(leaf("size") - leaf("free")).toBe(0);
    const at = { target: 0, lun: 0 };
    expect(await outcome(bus.subscribeNotifications(at, 16))).toBe("UNSUPPORTED ENOTSUP");
    expect(await bus.queryNotifications(at, 16)).toBe(0);
  });

  it("finds by a rescan what it was not told of", async () => {
    const { bus, port } = await bench({ size: MIB, features: { HOTPLUG: false } });
    port.plug({ target: 1, backend: new MemoryBackend(MIB) });
    for (let n = 0; n < 50; n++) await new Promise((resolve) => setImmediate(resolve));
    expect(names(bus.disks)).toEqual(["da0"]);
    await bus.rescan(1);
    expect(names(bus.disks)).toEqual(["da0", "da1"]);
    await port.unplug(0, 0);
    await bus.rescan();
    expect(names(bus.disks)).toEqual(["da1"]);
    expect(await outcome(bus.rescan(16))).toBe("INVALID EINVAL");
  });

  for (const CHANGE of [true, false])
    it(`sees a disk grow and shrink, ${CHANGE ? "by an event" : "by a unit attention"}`, async () => {
      const backend = new MemoryBackend(MIB);
      const { bus, rules, lines } = await bench({ backend, features: { CHANGE } });
      const disk = only(bus);
      const sizes: number[] = [];
      disk.onResize((size) => sizes.push(size));
      for (const size of [2 * MIB, MIB / 2]) {
        backend.resize(size);
        // Without the event the next command is told, and is done all the same.
        if (!CHANGE) await disk.read(0, new Uint8Array(SECTOR));
        await until(() => sizes.at(-1) === size);
        expect(disk.mediaSize).toBe(size);
        await disk.write(size - SECTOR, pattern(SECTOR, 1));
        expect(await outcome(disk.write(size, pattern(SECTOR, 1)))).toBe("INVALID EINVAL");
      }
      expect(lines.slice(-2)).toEqual([
        "da0: 2MB (4096 512 byte sectors)",
        "da0: 0MB (1024 512 byte sectors)",
      ]);
      expect(rules.violations).toEqual([]);
    });

  it("sees a medium taken out of a drive, and another put in", async () => {
    const { bus, port } = await bench({ luns: [{ type: "cd", backend: new MemoryBackend(MIB) }] });
    const disk = only(bus);
    await port.load(0, 0, null);
    expect(await outcome(disk.read(0, new Uint8Array(2048)))).toBe("IO EIO");
    await until(() => disk.mediaSize === 0);
    const MEDIA_CHANGE = 16;
    await bus.subscribeNotifications({ target: 0, lun: 0 }, MEDIA_CHANGE);
    await port.load(0, 0, new MemoryBackend(2 * MIB));
    await until(() => disk.mediaSize === 2 * MIB);
    await disk.read(2 * MIB - 2048, new Uint8Array(2048));
  });

  it("looks at everything again when the device had more to tell than there were buffers", async () => {
    const { bus, port, rules } = await bench({ targets: 64, luns: [] });
    for (let target = 0; target < 40; target++)
      port.plug({ target, backend: new MemoryBackend(SECTOR) });
    await until(() => bus.disks.length === 40);
    expect(rules.violations).toEqual([]);
  });
});

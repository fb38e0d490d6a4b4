// The Disk contract on QEMU's own virtio-blk, raw and qcow2, on every machine and interrupt kind; QEMU is the witness of what was
// negotiated, of the ring's indices and of the data.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import type { BlkOptions } from "@virtio/core";
import { blk, type QemuMachine, qemu } from "@virtio/qemu";
import { diskContract } from "@virtio/storage/contract";
import { describe, expect, it } from "vitest";
import { disksOf, folder, hasQemu, pattern } from "./machines.js";

const MIB = 1 << 20;
const file = folder();

const only = async (machine: QemuMachine) => {
  const [disk] = await disksOf(machine.buses[0].bus);
  if (disk === undefined) throw new Error("no disk");
  return disk;
};

/** What QEMU's device knows of itself. */
async function witness(machine: QemuMachine): Promise<{
  status: string[];
  features: string[];
  queue: Record<string, number>;
  broken: boolean;
}> {
  const path = "/machine/peripheral/blk0/virtio-backend";
  const seen = (await machine.qmp.execute("x-query-virtio-status", { path })) as {
    broken: boolean;
    status: { statuses: string[] };
    "guest-features": { "dev-features": string[]; transports: string[] };
  };
  const names = (list: readonly string[]): string[] => list.map((text) => text.replace(/:.*/, ""));
  const features = seen["guest-features"];
  return {
    broken: seen.broken,
    status: names(seen.status.statuses),
    features: names([...features.transports, ...features["dev-features"]]).sort(),
    queue: (await machine.qmp.execute("x-query-virtio-queue-status", { path, queue: 0 })) as Record<
      string,
      number
    >,
  };
}

describe("vtbd on QEMU keeps the Disk contract (needs QEMU)", () => {
  interface Case {
    readonly name: string;
    readonly type?: "q35" | "pc";
    readonly interrupts?: "intx" | "msix";
    readonly keys?: BlkOptions;
  }
  const machines: readonly Case[] = [
    { name: "q35, INTx" },
    { name: "q35, MSI-X", interrupts: "msix" },
    { name: "pc, INTx", type: "pc" },
    { name: "q35, without indirect tables", keys: { indirect: false } },
    {
      name: "q35, without indirect tables and event indices",
      keys: { indirect: false, eventIdx: false },
    },
    { name: "q35, a packed ring", keys: { packed: true } },
    {
      name: "q35, a packed ring without indirect tables and event indices",
      keys: { packed: true, indirect: false, eventIdx: false },
    },
    { name: "q35, ACCESS_PLATFORM", keys: { features: { ACCESS_PLATFORM: true } } },
    { name: "q35, a queue of 8", keys: { queueSize: 8 } },
    {
      name: "q35, a transitional device by its modern interface",
      keys: { legacy: "transitional" },
    },
    { name: "q35, qcow2", keys: { file: file("contract.qcow2"), format: "qcow2" } },
  ];
  for (const { name, keys = {}, ...options } of machines)
    describe.skipIf(!hasQemu)(name, () => {
      const start = async () => {
        if (keys.file !== undefined)
          execFileSync("qemu-img", ["create", "-q", "-f", keys.format ?? "raw", keys.file, "8M"]);
        const machine = await qemu({
          devices: [blk(keys.file === undefined ? { size: 8 * MIB, ...keys } : keys)],
          ...options,
        });
        return { machine, disk: await only(machine) };
      };
      let ready: ReturnType<typeof start>;
      it("attaches", async () => {
        ready = start();
        const { machine } = await ready;
        expect((await witness(machine)).status).toEqual([
          "VIRTIO_CONFIG_S_ACKNOWLEDGE",
          "VIRTIO_CONFIG_S_DRIVER",
          "VIRTIO_CONFIG_S_FEATURES_OK",
          "VIRTIO_CONFIG_S_DRIVER_OK",
        ]);
      });
      for (const { name: what, run } of diskContract) it(what, async () => run((await ready).disk));
      it("and QEMU found nothing broken", async () => {
        const { machine } = await ready;
        const seen = await witness(machine);
        expect([seen.broken, seen.status]).toEqual([false, ["VIRTIO_CONFIG_S_ACKNOWLEDGE"]]);
        await machine.close();
      });
    });

  it.skipIf(!hasQemu)(
    "and QEMU saw the features, the ring and the bytes that the driver says it used",
    async () => {
      const image = file("witness.img");
      const content = pattern(4 * MIB, 1);
      writeFileSync(image, content);
      const machine = await qemu({ devices: [blk({ file: image, serial: "WITNESS" })] });
      const disk = await only(machine);
      expect([disk.ident, disk.mediaSize]).toEqual(["WITNESS", 4 * MIB]);
      const whole = new Uint8Array(4 * MIB);
      await disk.read(0, whole);
      expect(Buffer.compare(whole, content)).toBe(0);
      const data = pattern(100 * 512, 2);
      await disk.write(7 * 512, data);
      await disk.flush();
      content.set(data, 7 * 512);

      const seen = await witness(machine);
      expect(seen.features).toEqual([
        "VIRTIO_BLK_F_BLK_SIZE",
        "VIRTIO_BLK_F_CONFIG_WCE",
        "VIRTIO_BLK_F_DISCARD",
        "VIRTIO_BLK_F_FLUSH",
        "VIRTIO_BLK_F_GEOMETRY",
        "VIRTIO_BLK_F_SEG_MAX",
        "VIRTIO_BLK_F_TOPOLOGY",
        "VIRTIO_BLK_F_WRITE_ZEROES",
        "VIRTIO_F_VERSION_1",
        "VIRTIO_RING_F_EVENT_IDX",
        "VIRTIO_RING_F_INDIRECT_DESC",
      ]);
      // Serial, four reads of 1 MiB, a write, a flush: everything taken was used.
      const { queue } = seen;
      expect([
        queue["vring-num"],
        queue["used-idx"],
        queue["last-avail-idx"],
        queue["inuse"],
      ]).toEqual([256, 7, 7, 0]);
      await disk.detach();
      await machine.close();
      expect(Buffer.compare(readFileSync(image), content)).toBe(0);
    },
  );

  it.skipIf(!hasQemu)("and says EIO for a sector that QEMU cannot read, and goes on", async () => {
    const machine = await qemu({
      devices: [],
      args: [
        "-blockdev",
        '{"driver":"blkdebug","node-name":"bad","image":{"driver":"null-co","size":16777216,"read-zeroes":true},"inject-error":[{"event":"none","iotype":"read","errno":5,"sector":100}]}',
        "-device",
        '{"driver":"virtio-blk-pci","drive":"bad","disable-legacy":"on"}',
      ],
    });
    const disk = await only(machine);
    await expect(disk.read(100 * 512, new Uint8Array(512))).rejects.toMatchObject({
      code: "IO",
      errno: "EIO",
    });
    await disk.read(101 * 512, new Uint8Array(512));
    await machine.close();
  });
});

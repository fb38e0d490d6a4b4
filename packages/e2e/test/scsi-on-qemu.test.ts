// vtscsi on QEMU's own virtio-scsi: bytes, units that come and go, faults, aborts; QEMU and qemu-img are the witnesses.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { type QemuMachine, qemu, scsi } from "@virtio/qemu";
import type { VtscsiOptions } from "@virtio/vtscsi";
import { describe, expect, it, onTestFinished } from "vitest";
import { folder, hasQemu, pattern } from "./machines.js";
import { scsiBusOf } from "./scsi-bus.js";

const MIB = 1 << 20;
const SECTOR = 512;
const file = folder();

const MEMORY = { driver: "null-co", size: 8 * MIB, "read-zeroes": true };

/** A host, and QEMU's disks on it: block node, target, LUN. */
async function busWith(
  host: string,
  disks: readonly (readonly [node: object, at: string])[],
  {
    args = [],
    after = [],
    driver,
  }: { args?: readonly string[]; after?: readonly string[]; driver?: VtscsiOptions } = {},
) {
  const machine = await qemu({
    devices: [],
    args: [
      ...args,
      ...["-device", `virtio-scsi-pci,id=scsi0,${host}`],
      ...disks.flatMap(([node, at], n) => [
        ...["-blockdev", JSON.stringify({ "node-name": `disk${n}`, ...node })],
        ...["-device", `scsi-hd,id=hd${n},drive=disk${n},bus=scsi0.0,${at}`],
      ]),
      ...after,
    ],
  });
  onTestFinished(() => machine.close());
  const lines: string[] = [];
  const bus = await scsiBusOf(machine, driver, {
    log: (line) => lines.push(`vtscsi0: ${line}`),
    announce: (line) => lines.push(line),
  });
  return { machine, bus, lines };
}

/** What QEMU knows of its device, and of one queue. */
async function witness(machine: QemuMachine, queue: number) {
  const [device] = (await machine.qmp.execute("x-query-virtio")) as { path: string }[];
  const path = device?.path ?? "";
  const { broken } = (await machine.qmp.execute("x-query-virtio-status", { path })) as {
    broken: boolean;
  };
  const seen = (await machine.qmp.execute("x-query-virtio-queue-status", {
    path,
    queue,
  })) as Record<string, number>;
  return { broken, inUse: seen["inuse"], size: seen["vring-num"], used: seen["used-idx"] };
}

async function until(done: () => boolean): Promise<void> {
  for (let n = 0; !done(); n++) {
    if (n === 2000) throw new Error("it never came");
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const outcome = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "done",
    (fault: { code?: string; errno?: string }) => `${fault.code} ${fault.errno}`,
  );

describe.skipIf(!hasQemu)("vtscsi on QEMU (needs QEMU)", () => {
  for (const [what, keys] of [
    ["a split ring", {}],
    ["a packed ring", { packed: true }],
    ["a legacy device", { legacy: "on" }],
    ["a transitional device", { legacy: "transitional" }],
    ["4 queues", { queues: 4 }],
    ["4 queues, packed", { queues: 4, packed: true }],
    ["no indirect tables and no event indices", { indirect: false, eventIdx: false }],
  ] as const)
    it(`leaves the bytes in the image that were written, on ${what}`, async () => {
      const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
      const note = `seed ${seed}`;
      const image = file("scsi.img");
      const model = pattern(4 * MIB, seed);
      writeFileSync(image, model);
      const machine = await qemu({ devices: [scsi({ file: image, serial: "WITNESS", ...keys })] });
      onTestFinished(() => machine.close());
      const bus = await scsiBusOf(machine);
      const [disk] = bus.disks;
      if (disk === undefined) throw new Error("no disk");
      expect([disk.name, disk.ident, disk.mediaSize]).toEqual(["da0", "WITNESS", 4 * MIB]);
      let state = seed;
      const random = (below: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
      };
      const sectors = (4 * MIB) / SECTOR;
      for (let round = 0; round < 4; round++) {
        const work: Promise<unknown>[] = [];
        for (let at = 0; at < sectors; ) {
          const count = Math.min(sectors - at, 1 + random(300));
          const [position, length] = [at * SECTOR, count * SECTOR];
          at += count;
          const kind = random(6);
          if (kind === 0) {
            work.push(disk.writeZeroes(position, length));
            model.fill(0, position, position + length);
          } else if (kind < 3) {
            const into = new Uint8Array(length);
            const expected = model.slice(position, position + length);
            work.push(
              disk
                .read(position, into)
                .then(() => expect(Buffer.compare(into, expected), note).toBe(0)),
            );
          } else {
            const data = pattern(length, random(2 ** 30));
            model.set(data, position);
            work.push(disk.write(position, data));
          }
        }
        await Promise.all(work);
      }
      await disk.flush();
      const { broken, inUse } = await witness(machine, 2);
      expect([broken, inUse]).toEqual([false, 0]);
      await bus.detach();
      await machine.close();
      writeFileSync(file("expected.img"), model);
      execFileSync("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, file("expected.img")]);
    });

  it("spreads units over the queues, and finds all of them", async () => {
    const places = ["scsi-id=0,lun=0", "scsi-id=0,lun=1", "scsi-id=7,lun=300", "scsi-id=255,lun=0"];
    const { bus, machine } = await busWith(
      "disable-legacy=on,num_queues=4",
      places.map((at) => [MEMORY, at] as const),
    );
    expect(bus.units.map(({ target, lun, peripheral }) => [target, lun, peripheral])).toEqual([
      [0, 0, "da0"],
      [0, 1, "da1"],
      [7, 300, "da2"],
      [255, 0, "da3"],
    ]);
    await Promise.all(bus.disks.map((disk) => disk.read(0, new Uint8Array(64 * SECTOR))));
    for (const queue of [2, 3, 5]) {
      const { used, inUse } = await witness(machine, queue);
      expect([queue, (used ?? 0) > 0, inUse]).toEqual([queue, true, 0]);
    }
  });

  it("prints what FreeBSD prints, of a disk, of a CD-ROM, and of a drive without a medium", async () => {
    const { bus, lines } = await busWith("disable-legacy=on", [[MEMORY, "scsi-id=0,serial=S1"]], {
      after: [
        ...["-blockdev", JSON.stringify({ "node-name": "iso", ...MEMORY, "read-only": true })],
        ...["-device", "scsi-cd,drive=iso,bus=scsi0.0,scsi-id=1"],
        ...["-device", "scsi-cd,bus=scsi0.0,scsi-id=2"],
      ],
    });
    expect(lines).toEqual([
      "da0 at vtscsi0 bus 0 scbus0 target 0 lun 0",
      "da0: <QEMU QEMU HARDDISK 2.5+> Fixed Direct Access SPC-3 SCSI device",
      "da0: Serial Number S1",
      "da0: 300.000MB/s transfers",
      "da0: Command Queueing enabled",
      "da0: 8MB (16384 512 byte sectors)",
      "cd0 at vtscsi0 bus 0 scbus0 target 1 lun 0",
      "cd0: <QEMU QEMU CD-ROM 2.5+> Removable CD-ROM SPC-3 SCSI device",
      "cd0: 300.000MB/s transfers",
      "cd0: Command Queueing enabled",
      "cd0: 8MB (4096 2048 byte sectors)",
      "cd1 at vtscsi0 bus 0 scbus0 target 2 lun 0",
      "cd1: <QEMU QEMU CD-ROM 2.5+> Removable CD-ROM SPC-3 SCSI device",
      "cd1: 300.000MB/s transfers",
      "cd1: Command Queueing enabled",
      "cd1: Attempt to query device size failed: NOT READY, Medium not present",
    ]);
    const [, disc, empty] = bus.disks;
    await disc?.read(0, new Uint8Array(2048));
    expect([disc?.readOnly, empty?.mediaSize]).toEqual([true, 0]);
  });

  it("follows disks that are plugged in, taken out and resized while it runs", async () => {
    const image = file("grown.img");
    writeFileSync(image, new Uint8Array(4 * MIB));
    const node = { driver: "raw", file: { driver: "file", filename: image } };
    const { bus, machine, lines } = await busWith("disable-legacy=on", [[node, "scsi-id=0"]]);
    const { qmp } = machine;
    await qmp.execute("blockdev-add", { "node-name": "late", ...MEMORY });
    const late = { driver: "scsi-hd", id: "late-hd", drive: "late", bus: "scsi0.0" };
    await qmp.execute("device_add", { ...late, "scsi-id": 3, lun: 1 });
    await until(() => bus.disks.length === 2);
    const [first, second] = bus.disks;
    expect([second?.name, second?.mediaSize]).toEqual(["da1", 8 * MIB]);
    await second?.write(0, pattern(SECTOR, 1));

    const sizes: number[] = [];
    first?.onResize((size) => sizes.push(size));
    await qmp.execute("block_resize", { "node-name": "disk0", size: 8 * MIB });
    await until(() => sizes.length > 0);
    expect([sizes, first?.mediaSize]).toEqual([[8 * MIB], 8 * MIB]);
    await first?.write(8 * MIB - SECTOR, pattern(SECTOR, 1));

    const reads = Array.from({ length: 20 }, () =>
      outcome(second?.read(0, new Uint8Array(SECTOR)) ?? Promise.resolve()),
    );
    await qmp.execute("device_del", { id: "late-hd" });
    await until(() => bus.disks.length === 1);
    for (const end of await Promise.all(reads)) expect(["done", "CLOSED ENXIO"]).toContain(end);
    expect((await second?.closed)?.code).toBe("CLOSED");
    expect(lines.slice(-3)).toEqual([
      "da1 at vtscsi0 bus 0 scbus0 target 3 lun 1",
      "da1: <QEMU QEMU HARDDISK 2.5+> detached",
      "(da1:vtscsi0:0:3:1): Periph destroyed",
    ]);
  });

  it("says EIO, and CAM's words, for a sector that QEMU cannot read, and goes on", async () => {
    const rule = { event: "none", iotype: "read", errno: 61, sector: 100 };
    const node = { driver: "blkdebug", image: MEMORY, "inject-error": [rule] };
    const { bus, lines } = await busWith("disable-legacy=on", [[node, "scsi-id=0"]]);
    const [disk] = bus.disks;
    const read = (sector: number) =>
      outcome(disk?.read(sector * SECTOR, new Uint8Array(SECTOR)) ?? Promise.resolve());
    expect([await read(100), await read(101)]).toEqual(["IO EIO", "done"]);
    expect(lines.slice(-5)).toEqual([
      "(da0:vtscsi0:0:0:0): READ(10). CDB: 28 00 00 00 00 64 00 00 01 00",
      "(da0:vtscsi0:0:0:0): CAM status: SCSI Status Error",
      "(da0:vtscsi0:0:0:0): SCSI status: Check Condition",
      "(da0:vtscsi0:0:0:0): SCSI sense: MEDIUM ERROR asc:11,0 (Unrecovered read error)",
      "(da0:vtscsi0:0:0:0): Error 5, Unretryable error",
    ]);
  });

  it("says ENOSPC when there is no space left for a write", async () => {
    const rule = { event: "none", iotype: "write", errno: 28, sector: 100 };
    const node = { driver: "blkdebug", image: MEMORY, "inject-error": [rule] };
    const { bus } = await busWith("disable-legacy=on", [[node, "scsi-id=0,werror=report"]]);
    const [disk] = bus.disks;
    const write = (sector: number) =>
      outcome(disk?.write(sector * SECTOR, new Uint8Array(SECTOR)) ?? Promise.resolve());
    expect([await write(100), await write(101)]).toEqual(["NO_SPACE ENOSPC", "done"]);
  });

  it("aborts what takes too long on a slow disk: each request ends once, and it works again", async () => {
    const node = { driver: "throttle", "throttle-group": "slow", file: MEMORY };
    const { bus, machine } = await busWith("disable-legacy=on", [[node, "scsi-id=0"]], {
      args: ["-object", "throttle-group,id=slow,x-iops-total=40"],
      driver: { timeout: 1 },
    });
    const [disk] = bus.disks;
    if (disk === undefined) throw new Error("no disk");
    const ends = await Promise.all(
      Array.from({ length: 64 }, (_, n) =>
        outcome(disk.read(n * 16 * SECTOR, new Uint8Array(SECTOR))),
      ),
    );
    expect(ends.filter((end) => end === "TIMED_OUT ETIMEDOUT").length).toBeGreaterThan(5);
    for (const end of ends) expect(["done", "TIMED_OUT ETIMEDOUT"]).toContain(end);
    const limits = { "iops-total": 1_000_000 };
    await machine.qmp.execute("qom-set", {
      path: "/objects/slow",
      property: "limits",
      value: limits,
    });
    await disk.write(0, pattern(SECTOR, 1));
    expect(disk.statistics.busy).toBe(0);
    expect(await witness(machine, 2)).toMatchObject({ broken: false, inUse: 0 });
  });

  it("rejects at once what is given up, and has QEMU abort it", async () => {
    const node = { driver: "throttle", "throttle-group": "slow", file: MEMORY };
    const { bus, machine } = await busWith("disable-legacy=on", [[node, "scsi-id=0"]], {
      args: ["-object", "throttle-group,id=slow,x-iops-total=20"],
    });
    const cdb = Uint8Array.of(0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0);
    const reason = new Error("enough");
    const abort = new AbortController();
    const commands = Array.from({ length: 8 }, () =>
      bus.execute({
        ...{ target: 0, lun: 0, cdb, signal: abort.signal },
        dataIn: new Uint8Array(SECTOR),
      }),
    );
    const ends = Promise.allSettled(commands);
    await machine.qmp.execute("query-status");
    abort.abort(reason);
    const rejected = (await ends).filter((end) => end.status === "rejected");
    expect(rejected.length).toBeGreaterThan(2);
    for (const end of rejected) expect(end.reason).toBe(reason);
    const limits = { "iops-total": 1_000_000 };
    await machine.qmp.execute("qom-set", {
      path: "/objects/slow",
      property: "limits",
      value: limits,
    });
    await bus.disks[0]?.write(0, pattern(SECTOR, 1));
  });

  it("ends each of 32 requests in flight once when device_del takes the host, and drives the next", async () => {
    const machine = await qemu({ type: "pc", devices: [] });
    onTestFinished(() => machine.close());
    const { qmp } = machine;
    const { bus: pci } = machine.buses[0];
    const limits = { "iops-total": 50 };
    await qmp.execute("object-add", { "qom-type": "throttle-group", id: "group", limits });
    for (let life = 0; life < 2; life++) {
      const added = new Promise((resolve) => {
        pci.onChange = resolve;
      });
      const node = { driver: "throttle", "throttle-group": "group", file: MEMORY };
      await qmp.execute("blockdev-add", { "node-name": `slow${life}`, ...node });
      await qmp.execute("device_add", { driver: "virtio-scsi-pci", id: "host" });
      await added;
      const disk = { driver: "scsi-hd", drive: `slow${life}`, bus: "host.0", id: "disk" };
      await qmp.execute("device_add", { ...disk, "scsi-id": 0 });
      const bus = await scsiBusOf(machine);
      const [da] = bus.disks;
      if (da === undefined) throw new Error("no disk");
      const ends: string[][] = Array.from({ length: 32 }, () => []);
      const reads = ends.map(async (seen, n) => {
        seen.push(await outcome(da.read(n * 16 * SECTOR, new Uint8Array(SECTOR))));
      });
      await qmp.execute("device_del", { id: "host" });
      await Promise.all(reads);
      for (const end of ends) expect([["done"], ["CLOSED ENXIO"]]).toContainEqual(end);
      expect(ends).toContainEqual(["CLOSED ENXIO"]);
      expect((await bus.closed)?.code).toBe("CLOSED");
      await bus.detach();
    }
  });

  it("does task management by hand", async () => {
    const { bus } = await busWith("disable-legacy=on", [[MEMORY, "scsi-id=0"]]);
    const at = { target: 0, lun: 0 };
    for (const what of ["resetLun", "resetTarget", "abortTaskSet", "clearTaskSet"] as const)
      expect(await outcome(bus.manage(what, at))).toBe("done");
    expect(await bus.manage("queryTaskSet", at)).toBe(false);
    expect(await outcome(bus.manage("resetLun", { target: 9, lun: 0 }))).toBe("CLOSED ENXIO");
    const { sense } = await bus.execute({ ...at, cdb: new Uint8Array(6) });
    expect(sense?.text).toMatch(/^UNIT ATTENTION asc:29,/);
  });
});

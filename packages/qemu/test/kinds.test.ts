// SCSI hosts, balloons and consoles: what their specifications mean to QEMU, and what it makes of them.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  type BalloonSpec,
  type ConsoleSpec,
  type DeviceSpec,
  parseDeviceSpec,
  type ScsiSpec,
} from "@virtio/core";
import { balloon, consoleDevice, type QemuMachine, scsi } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { balloonProperties } from "../src/balloon.js";
import { commandLine } from "../src/command-line.js";
import { consoleProperties } from "../src/console.js";
import { planDevices } from "../src/plan.js";
import { scsiProperties } from "../src/scsi.js";
import { hasQemu, launch, temporaryFolder } from "./support/machine.js";

function properties(spec: string): unknown {
  const parsed: DeviceSpec = parseDeviceSpec(spec);
  if (parsed.kind === "scsi") return scsiProperties(parsed, spec);
  if (parsed.kind === "balloon") return balloonProperties(parsed, spec);
  return consoleProperties(parsed as ConsoleSpec, spec);
}

describe("a specification of a SCSI host, a balloon or a console", () => {
  it("becomes QEMU's properties, key by key", () => {
    const modern = { "disable-legacy": "on", "disable-modern": false, packed: false };
    expect(properties("scsi")).toEqual({ num_queues: 1, ...modern });
    expect(
      properties("scsi,queues=4,queue-size=64,vectors=3,packed=on,hotplug=off,change=on"),
    ).toEqual({
      ...{ ...modern, packed: true, num_queues: 4, virtqueue_size: 64, vectors: 3 },
      ...{ hotplug: false, param_change: true },
    });
    expect(properties("balloon,event_idx=off,page_reporting=on,deflate_on_oom=on")).toEqual({
      ...{ ...modern, event_idx: false, "free-page-reporting": true, "deflate-on-oom": true },
    });
    expect(properties("console")).toEqual({ max_ports: 1, ...modern });
    expect(properties("console,ports=3,multiport=on,emerg_write=off,queue-size=128")).toEqual({
      ...{ ...modern, max_ports: 3, "emergency-write": false },
    });
  });

  it.each([
    ["scsi,inout=on", "inout=on: QEMU never offers it"],
    ["scsi,t10_pi=on", "t10_pi=on: QEMU never offers it"],
    ["scsi,queue-size=6", "queueSize 6 is not a power of two from 4 to 1024"],
    ["scsi,format=qcow2", "format=qcow2 needs a file"],
    ["balloon,vectors=2", "vectors 2 cannot be said: QEMU's balloon has no message interrupts"],
    ["balloon,queue-size=64", "queueSize 64 is not 128, which QEMU's queues have"],
    ["balloon,must_tell_host=on", "must_tell_host=on: QEMU never offers it"],
    ["balloon,stats_vq=off", "stats_vq=off: QEMU always offers it"],
    ["console,size=on", "size=on: QEMU never offers it"],
    ["console,multiport=on", "multiport=on: QEMU offers it just when there are several ports"],
    ["console,ports=2,queue-size=64", "queueSize 64 is not 128, which QEMU's queues have"],
  ])("that QEMU cannot honour is refused: %s", (spec, message) => {
    expect(() => properties(spec)).toThrow(message);
  });

  it("made by hand is checked like one that was read", () => {
    const wrong = <T extends { kind: string }>(spec: T): T => ({ ...spec, serial: 7 });
    expect(() => scsiProperties(wrong(scsi()) as ScsiSpec, "scsi0")).toThrow("scsi0: serial 7");
    expect(() => scsiProperties(scsi({ target: 256 }), "scsi0")).toThrow("scsi0: target 256");
    expect(() => balloonProperties(wrong(balloon()) as BalloonSpec, "balloon0")).toThrow(
      "balloon0: unknown key 'serial'",
    );
    expect(() => consoleProperties(consoleDevice({ ports: 32 }), "console0")).toThrow(
      "console0: ports 32 is not a whole number from 1 to 31",
    );
  });

  it("becomes the device and what is behind and on it, in an order that QEMU can follow", async () => {
    const devices = [
      "scsi,target=3,lun=5,serial=S1",
      "console,ports=2",
      "balloon,free_page_hint=on",
    ];
    const plans = await planDevices(devices, ".");
    const { args } = commandLine({
      ...{ type: "q35", memory: 1 << 27, rootPorts: 0, args: [] },
      devices: plans,
    });
    const parts = args.slice(args.indexOf("-blockdev"));
    const seen = parts.map((part) => (part.startsWith("{") ? JSON.parse(part) : part));
    expect(seen).toMatchObject([
      // 5 is guest memory, 6 firmware, 7 the disk.
      ...["-blockdev", { "node-name": "scsi0-disk", file: { filename: "/proc/self/fd/7" } }],
      ...["-device", { driver: "virtio-scsi-pci", id: "scsi0" }],
      "-device",
      {
        driver: "scsi-hd",
        drive: "scsi0-disk",
        bus: "scsi0.0",
        "scsi-id": 3,
        lun: 5,
        serial: "S1",
      },
      ...["-chardev", "socket,id=console0-wire0,fd=8"],
      ...["-chardev", "socket,id=console0-wire1,fd=9"],
      ...["-device", { driver: "virtio-serial-pci", id: "console0", max_ports: 2 }],
      ...["-device", { driver: "virtconsole", bus: "console0.0", nr: 0 }],
      ...["-device", { driver: "virtserialport", bus: "console0.0", nr: 1, name: "port1" }],
      ...["-object", { "qom-type": "iothread", id: "balloon0-thread" }],
      ...["-device", { driver: "virtio-balloon-pci", iothread: "balloon0-thread" }],
    ]);
  });

  it("shares an image with no other device that writes", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "disk.img"), "");
    await expect(
      planDevices(["blk,file=disk.img", "scsi,file=disk.img"], folder),
    ).rejects.toMatchObject({
      code: "BUSY",
      message: "scsi,file=disk.img: blk0 has the same file: give each its own, or both readonly=on",
    });
  });
});

const drivers = async (machine: QemuMachine): Promise<readonly string[]> => {
  const found = await machine.qmp.execute("x-query-virtio");
  return (found as { name: string }[]).map(({ name }) => name).sort();
};

describe.skipIf(!hasQemu)("a SCSI host, a balloon and a console (need QEMU)", () => {
  it.each(["off", "on", "transitional"])("are there, with legacy=%s", async (legacy) => {
    const machine = await launch({
      devices: ["scsi", "balloon", "console", "console,ports=2"].map(
        (spec) => `${spec},legacy=${legacy}`,
      ),
    });
    expect(await drivers(machine)).toEqual([
      "virtio-balloon",
      "virtio-scsi",
      "virtio-serial",
      "virtio-serial",
    ]);
    expect(machine.devices.map(({ id }) => id)).toEqual([
      ...["scsi0", "balloon0", "console0", "console1"],
    ]);
  });

  it("give the owner the other ends of the ports, and of no others", async () => {
    const machine = await launch({
      devices: ["net", "console,ports=2,backend=host", "console"],
    });
    expect(machine.port("console0", 0)).not.toBe(machine.port("console0", 1));
    for (const [id, port] of [
      ["console0", 2],
      ["console1", 0],
      ["net0", 0],
    ] as const)
      expect(() => machine.port(id, port)).toThrow(
        `no port ${port} of a console '${id}' with backend host`,
      );
    expect(() => machine.wire("console0")).toThrow("no network device 'console0'");
  });

  it("are plugged in and taken out with all that belongs to them", async () => {
    const machine = await launch({ type: "pc", devices: [] });
    const places = [
      await machine.plug("scsi,size=1m,target=2"),
      await machine.plug("balloon,free_page_hint=on"),
    ];
    expect(await drivers(machine)).toEqual(["virtio-balloon", "virtio-scsi"]);
    await expect(machine.plug("console")).rejects.toMatchObject({ code: "UNSUPPORTED" });
    for (const place of places) await machine.unplug(place);
    expect(await drivers(machine)).toEqual([]);
    expect(await machine.qmp.execute("query-named-block-nodes")).toEqual([]);
    expect(await machine.qmp.execute("query-iothreads")).toEqual([]);
  });
});

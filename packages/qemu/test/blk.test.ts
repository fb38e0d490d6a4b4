import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type BlkSpec, parseDeviceSpec } from "@virtio/core";
import { blk } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { blkProperties } from "../src/blk.js";
import { commandLine } from "../src/command-line.js";
import { planDevices } from "../src/plan.js";
import { temporaryFolder } from "./support/machine.js";

const properties = (spec: string) => blkProperties(parseDeviceSpec(spec) as BlkSpec, spec);

describe("a blk specification", () => {
  it("is modern, split, with one queue, by default", () => {
    expect(properties("blk")).toEqual({
      "num-queues": 1,
      "disable-legacy": "on",
      "disable-modern": false,
      packed: false,
    });
  });

  it("becomes QEMU's properties, key by key", () => {
    const spec =
      "blk,serial=ABC123,queues=4,packed=on,indirect=off,event_idx=off,queue-size=64,vectors=5,legacy=transitional,discard=off,write_zeroes=on,config_wce=off";
    expect(properties(spec)).toEqual({
      serial: "ABC123",
      "num-queues": 4,
      "disable-legacy": "off",
      "disable-modern": false,
      packed: true,
      indirect_desc: false,
      event_idx: false,
      "queue-size": 64,
      vectors: 5,
      discard: false,
      "write-zeroes": true,
      "config-wce": false,
    });
  });

  it("is legacy when it says so", () => {
    expect(properties("blk,legacy=on")).toMatchObject({
      "disable-legacy": "off",
      "disable-modern": true,
    });
  });

  it("holds FLUSH back by a write-through cache that the driver cannot switch", () => {
    expect(properties("blk,flush=off")).toMatchObject({
      "write-cache": "off",
      "config-wce": false,
    });
  });

  it.each([
    ["blk,seg_max=off", "seg_max=off: QEMU always offers it"],
    ["blk,zoned=on", "zoned=on: QEMU never offers it"],
    ["blk,lifetime=on", "lifetime=on: QEMU never offers it"],
    ["blk,secure_erase=on", "secure_erase=on: QEMU never offers it"],
    ["blk,scsi=on", "scsi=on: QEMU never offers it"],
    ["blk,ro=on", "ro=on: QEMU offers it just when the device is read-only (readonly=on)"],
    ["blk,mq=on", "mq=on: QEMU offers it just when there are several queues (queues=N)"],
    ["blk,mq=off,queues=2", "mq=off: QEMU offers it just when"],
    ["blk,flush=off,config_wce=on", "flush=off: does not go with config_wce=on"],
    ["blk,queue-size=48", "queueSize 48 is not a power of two from 4 to 1024 (QEMU's limits)"],
    ["blk,queue-size=2048", "queueSize 2048 is not a power of two from 4 to 1024"],
    ["blk,packed=on,legacy=on", "packed=on needs a modern interface: legacy=off"],
    ["blk,format=qcow2", "format=qcow2 needs a file"],
  ])("that QEMU cannot honour is refused: %s", (spec, message) => {
    expect(() => properties(spec)).toThrow(`${spec}: ${message}`);
  });

  it.each(["blk,zoned=off", "blk,seg_max=on", "blk,ro=on,readonly=on", "blk,mq=on,queues=2"])(
    "that QEMU honours without being told is accepted: %s",
    (spec) => {
      expect(() => properties(spec)).not.toThrow();
    },
  );

  it.each([
    [{ color: "red" }, "unknown key 'color' (blk takes: file, size"],
    [{ constructor: 1 }, "unknown key 'constructor'"],
    [{ size: 1000 }, "size 1000 is not a positive multiple of 512"],
    [
      { serial: "x".repeat(21) },
      `serial "${"x".repeat(21)}" is not 1 to 20 printable ASCII characters`,
    ],
    [{ queues: 0 }, "queues 0 is not a whole number from 1 to 64"],
    [{ readonly: "on" }, 'readonly "on" is not true or false'],
    [{ file: "a", size: 512 }, "'size' does not go with 'file'"],
    [{ features: { NOSUCH: true } }, "nosuch=on: no feature of a block device"],
    [{ features: { "13": true } }, "13=on: no feature of a block device"],
    [{ features: { DISCARD: 1 } }, "discard is not true or false"],
  ])("made by hand is checked like one that was read: %j", (options, message) => {
    const spec = { kind: "blk", ...options } as BlkSpec;
    expect(() => blkProperties(spec, "blk0")).toThrow(`blk0: ${message}`);
  });

  it("leaves out what is undefined", () => {
    expect(blkProperties(blk({ serial: undefined }), "blk0")).not.toHaveProperty("serial");
  });
});

describe("devices, before QEMU sees them", () => {
  it("have ids, and their images' paths from the given folder, through links", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "a,b=c.img"), "");
    symlinkSync("a,b=c.img", join(folder, "link.img"));
    const plans = await planDevices([blk({ file: "link.img" }), "blk,size=1m"], folder);
    expect(plans).toMatchObject([
      {
        id: "blk0",
        label: "blk,file=link.img",
        medium: { store: { path: expect.stringMatching(/\/a,b=c\.img$/), driver: "file" } },
      },
      { id: "blk1", label: "blk1", medium: { store: { size: 1 << 20 } } },
    ]);
    const { args } = commandLine({
      type: "q35",
      memory: 1 << 27,
      devices: plans,
      rootPorts: 0,
      args: ["-x"],
    });
    const nodes = args
      .filter((_, i) => args[i - 1] === "-blockdev")
      .map((json) => JSON.parse(json));
    expect(nodes).toMatchObject([
      { "node-name": "blk0", file: { filename: expect.stringMatching(/a,b=c\.img$/) } },
      { "node-name": "blk1", file: { filename: "/proc/self/fd/7", locking: "off" } },
    ]);
    expect(args.at(-1)).toBe("-x");
  });

  it("are missing in one clear line", async () => {
    const folder = temporaryFolder();
    await expect(planDevices(["blk,file=x"], folder)).rejects.toMatchObject({
      code: "NOT_FOUND",
      message: "blk,file=x: no such file",
    });
    await expect(planDevices(["blk,file=x/y"], folder)).rejects.toThrow(
      "blk,file=x/y: no such file",
    );
  });

  it("are no directory", async () => {
    const folder = temporaryFolder();
    mkdirSync(join(folder, "images"));
    await expect(planDevices(["blk,file=images"], folder)).rejects.toThrow(
      "blk,file=images: is a directory, not an image",
    );
    await expect(planDevices(["blk,file=/dev/null"], folder)).rejects.toThrow("is a special file");
  });

  it("are writable, or asked for as read-only", async () => {
    const folder = temporaryFolder();
    const file = join(folder, "disk.img");
    writeFileSync(file, "");
    chmodSync(file, 0o444);
    await expect(planDevices(["blk,file=disk.img,readonly=on"], folder)).resolves.toHaveLength(1);
    const writing = planDevices(["blk,file=disk.img"], folder);
    // The superuser may write what nobody may.
    if (process.getuid?.() === 0) await expect(writing).resolves.toHaveLength(1);
    else await expect(writing).rejects.toMatchObject({ code: "READ_ONLY" });
  });

  it("share a file only when none writes it", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "disk.img"), "");
    const twice = (spec: string) => planDevices([spec, spec], folder);
    await expect(twice("blk,file=disk.img")).rejects.toMatchObject({
      code: "BUSY",
      message: "blk,file=disk.img: blk0 has the same file: give each its own, or both readonly=on",
    });
    await expect(twice("blk,file=disk.img,readonly=on")).resolves.toHaveLength(2);
  });

  it("are of a kind that exists", async () => {
    const spec = { kind: "toaster" } as unknown as BlkSpec;
    await expect(planDevices([spec], ".")).rejects.toThrow("no such kind of device 'toaster'");
  });
});

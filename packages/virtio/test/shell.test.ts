import { describe, expect, it } from "vitest";
import { humanize } from "../src/shell/commands/diskinfo.js";
import { FakeBlockDriver, FakeMachine, MemoryDisk, pciFunction } from "./fakes.js";
import { testShell } from "./session.js";

describe("the shell", () => {
  it("runs commands up to the first that fails, and has its status", async () => {
    const { run } = await testShell();
    expect(await run("kenv a=1; kenv -v a; kenv nosuch; kenv -v a")).toEqual({
      status: 1,
      out: 'a="1"\na="1"\n',
      err: "kenv: unable to get nosuch\n",
    });
  });

  it.each([
    ["frobnicate", 127, "frobnicate: not found (help lists the commands)\n"],
    ["dmesg -x", 1, "dmesg: illegal option -- x\nusage: dmesg [-c]\n"],
    ["dmesg now", 1, "dmesg: unexpected argument 'now'\nusage: dmesg [-c]\n"],
    ["dmesg 'x", 2, "syntax error: column 7: expected another ', found the end of the line\n"],
    ["diskinfo", 1, "diskinfo: no disk is given\nusage: diskinfo [-sv] disk ...\n"],
    ["diskinfo vtbd7", 1, "diskinfo: vtbd7: No such file or directory (disks: vtbd0)\n"],
    ["help frob", 1, "help: no command 'frob'\n"],
    ["vmstat", 1, "usage: vmstat -i [-a]\n"],
    ["pciconf", 1, "usage: pciconf -l [-cv]\n"],
  ])("refuses %j", async (line, status, err) => {
    const { run } = await testShell();
    expect(await run(line)).toEqual({ status, out: "", err });
  });

  it("lists its commands and their usage", async () => {
    const { run } = await testShell();
    const { out } = await run("help");
    for (const name of [
      "dmesg",
      "kldload",
      "sysctl",
      "pciconf",
      "devinfo",
      "diskinfo",
      "dd",
      "halt",
    ])
      expect(out).toMatch(new RegExp(`^${name} +\\S`, "m"));
    expect((await run("help vmstat")).out).toBe("usage: vmstat -i [-a]\n");
  });

  it("halts: nothing after it runs", async () => {
    const { run, shell, machine } = await testShell();
    expect(await run("halt; dmesg")).toEqual({ status: 0, out: "", err: "" });
    expect(shell.halted).toBe(true);
    expect(machine.closed).toBe(1);
  });

  it.each([
    ["di", "di", ["diskinfo"]],
    ["dmesg; kld", "kld", ["kldload", "kldstat", "kldunload"]],
    ["diskinfo v", "v", ["vtbd0"]],
    ["dd if=/dev/v", "if=/dev/v", ["if=/dev/vtbd0"]],
    ["dd if=x of=o", "of=o", ["of=out.img"]],
    ["dd co", "co", ["conv=", "count="]],
    ["sysctl hw.n", "hw.n", ["hw.ncpu"]],
    ["kldload ", "", []],
    ["nosuch x", "x", []],
  ])("completes %j", async (line, word, candidates) => {
    const { shell, host } = await testShell();
    host.files.set("out.img", new Uint8Array(1));
    expect(await shell.complete(line)).toEqual({ word, candidates });
  });

  it("completes the modules that are not loaded", async () => {
    const { shell } = await testShell({ kernelConf: "device virtio" });
    expect((await shell.complete("kldload ")).candidates).toEqual(["if_virtio_blk", "virtio_pci"]);
  });
});

describe("dmesg", () => {
  it("prints the messages, and forgets them with -c", async () => {
    const { run, kernel } = await testShell();
    expect((await run("dmesg -c")).out).toContain("vtblk0: 1MB (2048 512 byte sectors)\n");
    expect(kernel.messages.lines).toEqual([]);
  });
});

describe("kldstat, kldload, kldunload", () => {
  it("shows what is linked", async () => {
    const { run } = await testShell({ kernelConf: "" });
    await run("kldload virtio_blk; kldload virtio_pci");
    expect((await run("kldstat")).out).toBe(
      "Id Refs Name\n 1    4 kernel\n 2    2 virtio.ko\n 3    1 if_virtio_blk.ko\n 4    1 virtio_pci.ko\n",
    );
    expect((await run("kldstat -v -n if_virtio_blk")).out).toBe(
      "Id Refs Name\n 3    1 if_virtio_blk.ko\n\tContains modules:\n\t\t Id Name\n\t\t  2 virtio_blk\n",
    );
    expect((await run("kldstat -m virtio_pci")).status).toBe(0);
    expect((await run("kldstat -m vtnot")).err).toBe("kldstat: can't find module vtnot\n");
  });

  it("loads and attaches", async () => {
    const { run, kernel } = await testShell({ kernelConf: "device virtio_pci" });
    expect(await run("kldload -v virtio_blk")).toEqual({
      status: 0,
      out: "Loaded virtio_blk, id=2\n",
      err: "",
    });
    expect(kernel.disks.length).toBe(1);
    expect(await run("kldunload if_virtio_blk")).toEqual({ status: 0, out: "", err: "" });
    expect(kernel.disks.length).toBe(0);
  });

  it.each([
    ["kldload virtio_blk", "kldload: can't load virtio_blk: module already loaded or in kernel\n"],
    ["kldload nosuch", /^kldload: can't load nosuch: No such file or directory/],
    ["kldunload virtio_pci", "kldunload: can't find file virtio_pci: it is part of the kernel\n"],
    ["kldunload nosuch", "kldunload: can't find file nosuch: no such file is loaded\n"],
    ["kldunload -i 9", "kldunload: can't find file with id 9: No such file or directory\n"],
  ])("refuses %j", async (line, err) => {
    const { run } = await testShell();
    const result = await run(line);
    expect(result.status).toBe(1);
    expect(result.err).toMatch(err);
  });

  it("says who needs a module that is to go", async () => {
    const { run } = await testShell({ kernelConf: "", loaderConf: 'virtio_blk_load="YES"' });
    expect((await run("kldunload virtio")).err).toBe(
      "kldunload: can't unload file: if_virtio_blk needs it\n",
    );
  });

  it("is silent about what is there with -n", async () => {
    const { run } = await testShell();
    expect(await run("kldload -n virtio_blk")).toEqual({ status: 0, out: "", err: "" });
  });
});

describe("kenv", () => {
  it("prints, sets and unsets", async () => {
    const { run } = await testShell({ loaderConf: 'virtio_load="YES"\nhw.vtblk.no_ident=0' });
    expect((await run("kenv")).out).toBe('virtio_load="YES"\nhw.vtblk.no_ident="0"\n');
    expect((await run("kenv hw.vtblk.no_ident")).out).toBe("0\n");
    expect((await run("kenv -N")).out).toBe("virtio_load\nhw.vtblk.no_ident\n");
    expect((await run("kenv -u hw.vtblk.no_ident; kenv -q hw.vtblk.no_ident")).status).toBe(1);
  });

  it("sets what the next attach reads", async () => {
    const { run, kernel } = await testShell({ kernelConf: "device virtio_pci" });
    await run("kenv hw.vtblk.0.no_ident=1; kldload virtio_blk");
    expect(kernel.messages.lines).toContain("vtblk0: no ident");
  });
});

describe("sysctl", () => {
  it.each([
    ["sysctl hw.ncpu", "hw.ncpu: 8\n"],
    ["sysctl -n hw.ncpu kern.ident", "8\nGENERIC\n"],
    ["sysctl -d hw.ncpu", "hw.ncpu: Number of active CPUs\n"],
    ["sysctl -e hw.physmem", "hw.physmem=1048576\n"],
    ["sysctl kern.disks", "kern.disks: vtbd0\n"],
    [
      "sysctl dev.vtblk.0",
      "dev.vtblk.0.%desc: VirtIO Block Adapter\ndev.vtblk.0.%driver: vtblk\ndev.vtblk.0.%location: \n" +
        "dev.vtblk.0.%parent: virtio_pci0\ndev.vtblk.0.%pnpinfo: device_type=0x00000002\ndev.vtblk.0.writecache_mode: 1\n",
    ],
    [
      "sysctl dev.virtio_pci.0.%location",
      "dev.virtio_pci.0.%location: slot=1 function=0 dbsf=pci0:0:1:0\n",
    ],
    ["sysctl dev.vtblk.0.writecache_mode=0", "dev.vtblk.0.writecache_mode: 1 -> 0\n"],
  ])("%s", async (line, out) => {
    const { run } = await testShell();
    expect(await run(line)).toEqual({ status: 0, out, err: "" });
  });

  it("prints everything with -a", async () => {
    const { run } = await testShell();
    const { out } = await run("sysctl -aN");
    expect(out.split("\n")).toEqual(
      expect.arrayContaining(["kern.ident", "hw.physmem", "dev.vtblk.0.%desc"]),
    );
  });

  it.each([
    ["sysctl nosuch", "sysctl: unknown oid 'nosuch'\n"],
    ["sysctl hw.ncpu=4", "sysctl: oid 'hw.ncpu' is read only\n"],
    ["sysctl hw=4", "sysctl: oid 'hw' isn't a leaf node\n"],
    [
      "sysctl dev.vtblk.0.writecache_mode=7",
      "sysctl: dev.vtblk.0.writecache_mode=7: '7' is not 0 or 1\n",
    ],
  ])("refuses %s", async (line, err) => {
    const { run } = await testShell();
    expect(await run(line)).toEqual({ status: 1, out: "", err });
  });
});

describe("devinfo", () => {
  it("prints the tree", async () => {
    const { run } = await testShell();
    expect((await run("devinfo")).out).toBe(
      "nexus0\n  pcib0\n    pci0\n      virtio_pci0\n        vtblk0\n",
    );
    expect((await run("devinfo -v")).out).toContain(
      "      virtio_pci0 pnpinfo vendor=0x00001af4 device=0x1042 subvendor=0x1af4 device_type=0x00000002 at slot=1 function=0",
    );
  });
});

describe("pciconf", () => {
  const machine = (): FakeMachine =>
    new FakeMachine([
      pciFunction(0, { vendor: 0x8086, device: 0x29c0, classCode: 0x060000 }),
      pciFunction(1, {
        capabilities: [
          ...[0x09, 0x50, 0x10, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
          // MSI-X, two vectors, enabled; and its next pointer makes a loop.
          ...[0x11, 0x40, 0x01, 0x80, 0x01, 0, 0, 0, 0x01, 0x08, 0, 0],
        ],
      }),
    ]);

  it("lists every function, with its driver or none", async () => {
    const { run } = await testShell({ machine: machine() });
    expect((await run("pciconf -l")).out).toBe(
      "none0@pci0:0:0:0: class=0x060000 rev=0x01 hdr=0x00 vendor=0x8086 device=0x29c0 subvendor=0x8086 subdevice=0x1100\n" +
        "virtio_pci0@pci0:0:1:0: class=0x010000 rev=0x01 hdr=0x00 vendor=0x1af4 device=0x1042 subvendor=0x1af4 subdevice=0x1100\n",
    );
  });

  it("knows names, and walks capabilities that loop no longer than they can be", async () => {
    const { run } = await testShell({ machine: machine() });
    const { out } = await run("pciconf -lvc");
    expect(out).toContain(
      "    vendor     = 'Red Hat, Inc.'\n    device     = 'Virtio 1.0 block device'\n    class      = mass storage\n    subclass   = SCSI\n",
    );
    expect(out).toContain("    cap 09[40] = vendor (length 16)\n");
    expect(out).toContain(
      "    cap 11[50] = MSI-X supports 2 messages, enabled; table in map 0x14[0x0], PBA in map 0x14[0x800]\n",
    );
    expect(out.split("\n").length).toBeLessThan(70);
  });
});

describe("diskinfo", () => {
  const size = 16 << 20;
  const driver = (): FakeBlockDriver => {
    const made = new FakeBlockDriver();
    made.makeDisk = (name) => new MemoryDisk(name, size);
    return made;
  };

  it.each([
    ["diskinfo vtbd0", "vtbd0\t512\t16777216\t32768\t0\t0\n"],
    ["diskinfo -s /dev/vtbd0", "ABC123\n"],
    [
      "diskinfo -v vtbd0",
      "vtbd0\n\t512         \t# sectorsize\n\t16777216    \t# mediasize in bytes (16M)\n\t32768       \t# mediasize in sectors\n" +
        "\t0           \t# stripesize\n\t0           \t# stripeoffset\n\tABC123      \t# Disk ident.\n\n",
    ],
  ])("%s", async (line, out) => {
    const { run } = await testShell({ driver: driver() });
    expect(await run(line)).toEqual({ status: 0, out, err: "" });
  });

  it.each([
    [512, "512B"],
    [1 << 20, "1.0M"],
    [10 << 20, "10M"],
    [999 << 10, "999K"],
    [1000 << 10, "1.0M"],
    [20 * 2 ** 30, "20G"],
    [1.5 * 2 ** 40, "1.5T"],
  ])("%d bytes are %s", (bytes, text) => {
    expect(humanize(bytes)).toBe(text);
  });
});

describe("vmstat -i", () => {
  it("prints interrupts, totals and rates since boot", async () => {
    const { run, machine } = await testShell();
    machine.pass(2000);
    expect((await run("vmstat -i")).out).toBe(
      "interrupt                                     total       rate\n" +
        "irq21: virtio_pci0 virtio_pci1                 1234        617\n" +
        "Total                                          1234        617\n",
    );
    expect((await run("vmstat -ia")).out).toContain("irq22: virtio_pci2 ");
  });
});

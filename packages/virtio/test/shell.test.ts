import { describe, expect, it } from "vitest";
import { FakeMachine, pciFunction } from "./fakes.js";
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
    ["diskinfo", 1, "diskinfo: no disk is given\nusage: diskinfo [-stv] disk ...\n"],
    ["diskinfo vtbd7", 1, "diskinfo: vtbd7: No such file or directory (disks: vtbd0)\n"],
    ["help frob", 1, "help: no command 'frob'\n"],
    ["vmstat", 1, "usage: vmstat -i [-a]\n"],
    ["pciconf", 1, "usage: pciconf -l [-bcv]\n"],
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
      "geom",
      "halt",
      "iostat",
      "trim",
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
    ["geom ", "", ["disk"]],
    ["geom disk s", "s", ["status"]],
    ["geom disk list v", "v", ["vtbd0"]],
    ["trim -f /dev/v", "/dev/v", ["/dev/vtbd0"]],
    ["iostat -x v", "v", ["vtbd0"]],
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
  /** What pciconf prints below the line of one function. */
  const lines = async (
    options: Parameters<typeof pciFunction>[1],
    line = "pciconf -lc",
  ): Promise<string[]> => {
    const { run } = await testShell({ machine: new FakeMachine([pciFunction(1, options)]) });
    return (await run(line)).out.split("\n").slice(1, -1);
  };
  const le32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
  const le16 = (value: number): number[] => le32(value).slice(0, 2);

  it("lists every function, with its driver or none", async () => {
    const machine = new FakeMachine([
      pciFunction(0, { vendor: 0x8086, device: 0x29c0, classCode: 0x060000 }),
      pciFunction(1),
    ]);
    const { run } = await testShell({ machine });
    expect((await run("pciconf -l")).out).toBe(
      "none0@pci0:0:0:0:\tclass=0x060000 rev=0x01 hdr=0x00 vendor=0x8086 device=0x29c0 subvendor=0x8086 subdevice=0x1100\n" +
        "virtio_pci0@pci0:0:1:0:\tclass=0x010000 rev=0x01 hdr=0x00 vendor=0x1af4 device=0x1042 subvendor=0x1af4 subdevice=0x1100\n",
    );
  });

  it("lists a bridge, its subsystem from its capability", async () => {
    const bridge = { vendor: 0x1b36, device: 0x000c, classCode: 0x060400, headerType: 0x81 };
    const { run } = await testShell({
      machine: new FakeMachine([
        pciFunction(1, bridge),
        pciFunction(2, {
          ...bridge,
          capabilities: [0x0d, 0, 0, 0, ...le16(0x1af4), ...le16(0x1100)],
        }),
      ]),
    });
    const ids = "class=0x060400 rev=0x01 hdr=0x01 vendor=0x1b36 device=0x000c";
    expect((await run("pciconf -lc")).out).toBe(
      `none0@pci0:0:1:0:\t${ids} subvendor=0x0000 subdevice=0x0000\n` +
        `none1@pci0:0:2:0:\t${ids} subvendor=0x1af4 subdevice=0x1100\n` +
        "    cap 0d[40] = PCI Bridge subvendor=0x1af4 subdevice=0x1100\n",
    );
  });

  it("knows names", async () => {
    expect(await lines({}, "pciconf -lv")).toEqual([
      "    vendor     = 'Red Hat, Inc.'",
      "    device     = 'Virtio 1.0 block device'",
      "    class      = mass storage",
      "    subclass   = SCSI",
    ]);
  });

  it("prints the BARs that have a place", async () => {
    const bars = [0xc001, 0xe000_0000, 0, 0, 0xe000_400c, 0];
    const options = { bars, command: 2, mapBar: 0x4000 };
    expect(await lines(options, "pciconf -lb")).toEqual([
      "    bar   [10] = type I/O Port, range 32, base 0xc000, size 16384, disabled",
      "    bar   [14] = type Memory, range 32, base 0xe0000000, size 16384, enabled",
      "    bar   [20] = type Prefetchable Memory, range 64, base 0xe0004000, size 16384, enabled",
    ]);
    expect(await lines({ bars }, "pciconf -lb")).toEqual([]);
  });

  it.each<[bytes: number[], ...text: string[]]>([
    [
      [0x01, 0, ...le16(0x0603), ...le16(3)],
      "cap 01[40] = powerspec 3  supports D0 D1 D2 D3  current D3",
    ],
    [[0x05, 0, ...le16(0x0080)], "cap 05[40] = MSI supports 1 message, 64 bit "],
    [
      [0x05, 0, ...le16(0x0181)],
      "cap 05[40] = MSI supports 1 message, 64 bit, vector masks enabled with 1 message",
    ],
    [[0x05, 0, ...le16(0x0027)], "cap 05[40] = MSI supports 8 messages enabled with 4 messages"],
    [
      [0x11, 0, ...le16(0x8002), ...le32(0x1), ...le32(0x801)],
      "cap 11[40] = MSI-X supports 3 messages, enabled",
      "                 Table in map 0x14[0x0], PBA in map 0x14[0x800]",
    ],
    [
      [0x11, 0, ...le16(0), ...le32(0x2004), ...le32(0x3004)],
      "cap 11[40] = MSI-X supports 1 message",
      "                 Table in map 0x20[0x2000], PBA in map 0x20[0x3000]",
    ],
    [
      [0x10, 0, ...le16(0x0002), ...le32(0x1000_0001), ...le16(0x0810), 0, 0, ...le32(0)],
      "cap 10[40] = PCI-Express 2 endpoint max data 128(256) FLR RO NS",
    ],
    [
      [
        ...[0x10, 0, ...le16(0x0142), ...le32(0), ...le16(0), 0, 0],
        ...[...le32(0x0000_0c11), ...le16(0), ...le16(0x0011)],
        ...[...le32(0x0008_00e0 | 0x1_8000), ...le16(0), ...le16(0x40)],
      ],
      "cap 10[40] = PCI-Express 2 root port max data 128(128)",
      "                 link x1(x1) speed 2.5(2.5) ASPM disabled(L0s/L1)",
      "                 slot 1 power limit 1 mW HotPlug(present) surprise",
    ],
    [[0x13, 0, 6, 3], "cap 13[40] = PCI Advanced Features: FLR TP"],
    [[0x14, 0], "cap 14[40] = PCI Enhanced Allocation"],
    [[0x7e, 0], "cap 7e[40] = unknown"],
    [
      [0x09, 0, 16, 1, 4, 0, 0, 0, ...le32(0), ...le32(0x38)],
      "cap 09[40] = vendor (length 16)",
      "                 VirtIO COMMON_CFG in map 0x20[0x0], length 0x38",
    ],
    [
      [0x09, 0, 20, 2, 4, 0, 0, 0, ...le32(0x3000), ...le32(0x1000), ...le32(4)],
      "cap 09[40] = vendor (length 20)",
      "                 VirtIO NOTIFY_CFG in map 0x20[0x3000], length 0x1000, multiplier 4",
    ],
    [
      [0x09, 0, 24, 8, 2, 1, 0, 0, ...le32(0), ...le32(0), ...le32(1), ...le32(2)],
      "cap 09[40] = vendor (length 24)",
      "                 VirtIO SHARED_MEMORY_CFG in map 0x18[0x100000000], length 0x200000000, id 1",
    ],
    [
      [0x09, 0, 8, 9, ...le16(0x1af4)],
      "cap 09[40] = vendor (length 8)",
      "                 VirtIO VENDOR_CFG of vendor 0x1af4",
    ],
    [[0x09, 0, 16, 7], "cap 09[40] = vendor (length 16)", "                 VirtIO type 7"],
  ])("decodes %j", async (capabilities, ...text) => {
    const [first, ...rest] = text;
    expect(await lines({ capabilities })).toEqual([`    ${first}`, ...rest]);
  });

  it("touches neither pci_cfg_data nor what a vendor put into its capability", async () => {
    const fn = pciFunction(1, {
      capabilities: [
        ...[0x09, 0x54, 20, 5, 0, 0, 0, 0, ...le32(0), ...le32(0), ...le32(0xdada)],
        ...[0x09, 0, 12, 9, ...le16(0x1af4), 0xda, 0xda, ...le32(0xdada)],
      ],
    });
    const read: number[] = [];
    const machine = new FakeMachine([
      {
        ...fn,
        read: (offset, width) => {
          for (let i = 0; i < width; i++) read.push(offset + i);
          return fn.read(offset, width);
        },
      },
    ]);
    const { run } = await testShell({ machine });
    expect((await run("pciconf -lc")).out).toContain("VirtIO PCI_CFG in map 0x10[0x0], length 0x0");
    expect(read.filter((at) => (at >= 0x50 && at < 0x54) || at >= 0x5a)).toEqual([]);
  });

  it("says of another vendor's capability only how long it is", async () => {
    expect(await lines({ vendor: 0x8086, capabilities: [0x09, 0, 16, 1, 4, 0, 0, 0] })).toEqual([
      "    cap 09[40] = vendor (length 16)",
    ]);
  });

  it("prints each capability once though the list loops, and what the end cuts off", async () => {
    expect(await lines({ capabilities: [0x12, 0x40] })).toEqual([
      "    cap 12[40] = SATA Index-Data Pair",
    ]);
    expect(await lines({ capabilities: [0x12, 0xfc] })).toHaveLength(2);
    expect(await lines({ capabilities: [0x12, 0x10] })).toHaveLength(1);
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

import { describe, expect, it } from "vitest";
import { humanize } from "../src/shell/commands/diskinfo.js";
import { FakeBlockDriver, FakeMachine, MemoryDisk, pciFunction } from "./fakes.js";
import { type TestShell, testShell } from "./session.js";

/** A shell on `units` disks of 16 MB; the first as `change` leaves it. */
const shellWith = async (
  change: (disk: MemoryDisk) => void = () => {},
  { units = 1, size = 16 << 20, ident = "ABC123" } = {},
): Promise<TestShell & { disk: MemoryDisk }> => {
  const driver = new FakeBlockDriver();
  driver.makeDisk = (name) => new MemoryDisk(name, size, { ident });
  const machine = new FakeMachine(Array.from({ length: units }, (_, i) => pciFunction(i + 1)));
  const test = await testShell({ driver, machine });
  const disk = test.disks[0] as MemoryDisk;
  change(disk);
  return { ...test, disk };
};

/** What a device with topology and geometry says. */
const striped = (disk: MemoryDisk): void => {
  Object.assign(disk, { stripeSize: 4096, stripeOffset: 512 });
  Object.assign(disk, { firmwareHeads: 16, firmwareSectors: 63 });
  disk.can = { discard: false, writeZeroes: false, secureErase: false };
};

describe("diskinfo", () => {
  it.each([
    ["diskinfo vtbd0", "vtbd0\t512\t16777216\t32768\t0\t0\n"],
    ["diskinfo -s /dev/vtbd0", "ABC123\n"],
    [
      "diskinfo -v vtbd0",
      "vtbd0\n\t512         \t# sectorsize\n\t16777216    \t# mediasize in bytes (16M)\n\t32768       \t# mediasize in sectors\n" +
        "\t0           \t# stripesize\n\t0           \t# stripeoffset\n\tABC123      \t# Disk ident.\n" +
        "\tYes         \t# TRIM/UNMAP support\n\tUnknown     \t# Rotation rate in RPM\n\n",
    ],
  ])("%s", async (line, out) => {
    const { run } = await shellWith();
    expect(await run(line)).toEqual({ status: 0, out, err: "" });
  });

  it("prints the topology and the geometry that the device tells of", async () => {
    const { run } = await shellWith(striped, { ident: "" });
    expect((await run("diskinfo vtbd0")).out).toBe(
      "vtbd0\t512\t16777216\t32768\t4096\t512\t32\t16\t63\n",
    );
    expect((await run("diskinfo -v vtbd0")).out).toContain(
      "\t4096        \t# stripesize\n\t512         \t# stripeoffset\n" +
        "\t32          \t# Cylinders according to firmware.\n\t16          \t# Heads according to firmware.\n" +
        "\t63          \t# Sectors according to firmware.\n\tNo          \t# TRIM/UNMAP support\n",
    );
  });

  it("follows a disk that changes its size", async () => {
    const { run, disk } = await shellWith();
    disk.resize(1 << 20);
    expect((await run("diskinfo vtbd0")).out).toBe("vtbd0\t512\t1048576\t2048\t0\t0\n");
  });

  it("does not mix the serial number with anything else", async () => {
    const { run } = await shellWith();
    expect((await run("diskinfo -sv vtbd0")).err).toBe(
      "diskinfo: -s cannot be used with other options\nusage: diskinfo [-stv] disk ...\n",
    );
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

describe("diskinfo -t", () => {
  /** Each read takes this long, in milliseconds. */
  const timed = async (
    ms: number,
    options = {},
  ): Promise<Awaited<ReturnType<typeof shellWith>>> => {
    const test = await shellWith(undefined, options);
    const read = test.disk.read.bind(test.disk);
    test.disk.read = async (...args) => {
      test.machine.pass(ms);
      await read(...args);
    };
    return test;
  };
  /** What follows the table of -v. */
  const tested = (out: string): string => out.slice(out.indexOf("Seek times:"));

  it("measures seeks and transfer rates", async () => {
    const { run, disk } = await timed(1 / 16);
    const { status, out, err } = await run("diskinfo -t vtbd0");
    expect({ status, err }).toEqual({ status: 0, err: "" });
    expect(out).toContain("\t# Rotation rate in RPM\n\nSeek times:\n");
    expect(tested(out)).toBe(
      "Seek times:\n" +
        "\tFull stroke:\t  250 iter in   0.015625 sec =    0.063 msec\n" +
        "\tHalf stroke:\t  250 iter in   0.015625 sec =    0.063 msec\n" +
        "\tQuarter stroke:\t  500 iter in   0.031250 sec =    0.063 msec\n" +
        "\tShort forward:\t  400 iter in   0.025000 sec =    0.063 msec\n" +
        "\tShort backward:\t  400 iter in   0.025000 sec =    0.063 msec\n" +
        "\tSeq outer:\t 2048 iter in   0.128000 sec =    0.063 msec\n" +
        "\tSeq inner:\t 2048 iter in   0.128000 sec =    0.063 msec\n" +
        "\nTransfer rates:\n" +
        "\toutside:        16384 kbytes in   0.001000 sec = 16384000 kbytes/sec\n" +
        "\tmiddle:         16384 kbytes in   0.001000 sec = 16384000 kbytes/sec\n" +
        "\tinside:         16384 kbytes in   0.001000 sec = 16384000 kbytes/sec\n\n",
    );
    expect(disk.requests.slice(0, 4).map(({ position }) => position / 512)).toEqual([
      0, 32736, 32, 32704,
    ]);
  });

  it("reads outside, middle and inside where they are", async () => {
    const { run, disk } = await timed(100, { size: 128 << 20 });
    await run("diskinfo -t vtbd0");
    const places = disk.requests
      .filter(({ length }) => length === 1 << 20)
      .map(({ position }) => position / 2 ** 20);
    expect(places).toEqual([0, 1, 14, 15, 28, 29]);
  });

  it("takes two seconds at most of a slow disk", async () => {
    const { run, machine } = await timed(20);
    const { out } = await run("diskinfo -t vtbd0");
    expect(out).toContain("\tSeq inner:\t   10 iter in   0.200000 sec =   20.000 msec\n");
    expect(machine.time).toBe(2000);
  });

  it.each([1 << 20, (1 << 20) + 512, 3 << 20, 100 << 20])(
    "stays within a disk of %d bytes",
    async (size) => {
      const { run, disk } = await timed(1, { size });
      expect((await run("diskinfo -t vtbd0")).status).toBe(0);
      expect(disk.requests.every((each) => each.position + each.length <= size)).toBe(true);
    },
  );

  it("wants a disk of 2048 sectors, and ends at an error or at Ctrl-C", async () => {
    const small = await timed(1, { size: 512 * 2047 });
    expect((await small.run("diskinfo -t vtbd0")).err).toBe(
      "diskinfo: vtbd0: disk too small for test\n",
    );
    const { run, disk } = await timed(1);
    disk.bad = new Set([0]);
    const { status, err } = await run("diskinfo -t vtbd0");
    expect({ status, err }).toEqual({
      status: 1,
      err: "diskinfo: vtbd0: hard error cmd=read 0\n",
    });
    disk.gate = new Promise(() => {});
    const abort = new AbortController();
    const running = run("diskinfo -t vtbd0", abort.signal);
    await expect.poll(() => disk.inFlight).toBe(1);
    abort.abort();
    expect((await running).status).toBe(130);
  });
});

describe("geom disk", () => {
  it("lists disks", async () => {
    const { run } = await shellWith(striped, { units: 2, ident: "" });
    const first =
      "Geom name: vtbd0\nProviders:\n1. Name: vtbd0\n   Mediasize: 16777216 (16M)\n   Sectorsize: 512\n" +
      "   Stripesize: 4096\n   Stripeoffset: 512\n   Mode: r0w0e0\n   descr: (null)\n   ident: (null)\n" +
      "   rotationrate: unknown\n   fwsectors: 63\n   fwheads: 16\n\n";
    const second =
      "Geom name: vtbd1\nProviders:\n1. Name: vtbd1\n   Mediasize: 16777216 (16M)\n   Sectorsize: 512\n" +
      "   Mode: r0w0e0\n   descr: (null)\n   ident: (null)\n   rotationrate: unknown\n   fwsectors: 0\n   fwheads: 0\n\n";
    expect(await run("geom disk list")).toEqual({ status: 0, out: first + second, err: "" });
    expect((await run("geom disk list /dev/vtbd1")).out).toBe(second);
    expect((await run("geom disk list vtbd1 vtbd0")).out).toBe(second + first);
  });

  it("prints the ident, and the topology when there is any", async () => {
    const { run, disk } = await shellWith();
    disk.stripeSize = 4096;
    const { out } = await run("geom DISK list");
    expect(out).toContain("   Stripesize: 4096\n   Stripeoffset: 0\n");
    expect(out).toContain("   ident: ABC123\n");
  });

  it("prints the status", async () => {
    const { run } = await shellWith(undefined, { units: 2 });
    expect((await run("geom disk status")).out).toBe(
      " Name  Status  Components\nvtbd0     N/A  N/A\nvtbd1     N/A  N/A\n",
    );
  });

  const usage = "usage: geom disk list [name ...] | geom disk status [name ...]\n";
  it.each([
    ["geom", usage],
    ["geom disk", usage],
    ["geom part list", `geom: no class 'part' (there is: disk)\n${usage}`],
    ["geom disk frob", `geom: Unknown command: frob.\n${usage}`],
    ["geom disk list -x", `geom: illegal option -- x\n${usage}`],
    ["geom disk list vtbd0 vtbd7", "geom: No such geom: vtbd7.\n"],
  ])("refuses %j", async (line, err) => {
    const { run } = await shellWith();
    expect(await run(line)).toEqual({ status: 1, out: "", err });
  });
});

describe("trim", () => {
  const filled = (disk: MemoryDisk): void => void disk.bytes.fill(1);

  it("says what it would do, and does nothing without -f", async () => {
    const { run, disk } = await shellWith();
    for (const options of ["", "-v ", "-q -v ", "-N ", "-fN ", "-Nfq "])
      expect(await run(`trim ${options}/dev/vtbd0`)).toEqual({
        status: 0,
        out: "trim /dev/vtbd0 offset 0 length 16777216\ndry run: add -f to actually perform the operation\n",
        err: "",
      });
    expect((await run("trim -q vtbd0")).out).toBe(
      "dry run: add -f to actually perform the operation\n",
    );
    expect(disk.requests).toEqual([]);
  });

  it.each([
    ["-f", 0, 16 << 20],
    ["-f -o 1m", 1 << 20, 15 << 20],
    ["-f -l 4K", 0, 4096],
    ["-f -l 8k -o 512", 512, 8192],
  ])("discards with %s", async (options, offset, length) => {
    const { run, disk } = await shellWith(filled);
    expect(await run(`trim ${options} vtbd0`)).toEqual({
      status: 0,
      out: `trim vtbd0 offset ${offset} length ${length}\n`,
      err: "",
    });
    expect(disk.requests).toEqual([{ what: "discard", position: offset, length }]);
    expect(disk.bytes.reduce((sum, byte) => sum + byte, 0)).toBe((16 << 20) - length);
    expect((await run(`trim -q ${options} vtbd0`)).out).toBe("");
  });

  it.each([
    [
      "trim -f -l 513 vtbd0",
      "vtbd0: Invalid argument: offset 0 length 513 is not a multiple of the sector size 512",
    ],
    [
      "trim -f -o 1 -l 512 vtbd0",
      "vtbd0: Invalid argument: offset 1 length 512 is not a multiple of the sector size 512",
    ],
    [
      "trim -o 16m vtbd0",
      "vtbd0: Invalid argument: offset 16777216 length 0 ends behind the disk (16777216)",
    ],
    [
      "trim -f -l 16m -o 512 vtbd0",
      "vtbd0: Invalid argument: offset 512 length 16777216 ends behind the disk (16777216)",
    ],
    ["trim -f vtbd7", "vtbd7: No such file or directory (disks: vtbd0)"],
    ["trim -l 0 vtbd0", "invalid length of the region: 0"],
    ["trim -l 1b vtbd0", "invalid length of the region: 1b"],
    ["trim -o x vtbd0", "invalid offset of the region: x"],
  ])("refuses %j", async (line, err) => {
    const { run, disk } = await shellWith();
    expect(await run(line)).toEqual({ status: 1, out: "", err: `trim: ${err}\n` });
    expect(disk.requests).toEqual([]);
  });

  it("goes on with the next disk when one cannot", async () => {
    const { run, disk, disks } = await shellWith(striped, { units: 2 });
    expect(await run("trim -fq vtbd0 vtbd1")).toEqual({
      status: 1,
      out: "",
      err: "trim: vtbd0: no discard\n",
    });
    expect([disk.requests.length, disks[1]?.requests.length]).toEqual([0, 1]);
  });

  it("prints its usage when no device is given", async () => {
    const { run } = await shellWith();
    expect((await run("trim -f")).err).toBe(
      "usage: trim [-[lo] offset[K|k|M|m|G|g|T|t]] [-Nfqv] device ...\n",
    );
  });
});

describe("iostat", () => {
  const SHORT = "           vtbd0 \nKB/t   tps  MB/s \n";
  const FULL =
    "                        extended device statistics\ndevice       r/s     w/s     kr/s     kw/s  ms/r  ms/w  ms/o  ms/t qlen  %b\n";
  /** What a disk did: reads and writes of 8 KB each. */
  const work = ({ statistics }: MemoryDisk, reads: number, writes: number, busyTime = 0): void => {
    statistics.reads += reads;
    statistics.writes += writes;
    statistics.bytesRead += reads * 8192;
    statistics.bytesWritten += writes * 8192;
    statistics.busyTime += busyTime;
  };
  /** Lets `ms` pass once the command waits. */
  const pass = async (machine: FakeMachine, ms: number): Promise<void> => {
    await expect.poll(() => machine.callouts.size).toBe(1);
    machine.pass(ms);
  };

  it("averages over the time since boot", async () => {
    const { run, disk, machine } = await shellWith();
    machine.pass(4000);
    work(disk, 600, 200, 1000);
    expect((await run("iostat")).out).toBe(`${SHORT} 8.0   200  1.56 \n`);
    expect((await run("iostat -d vtbd0")).out).toBe(`${SHORT} 8.0   200  1.56 \n`);
    disk.statistics.busy = 3;
    expect((await run("iostat -x")).out).toBe(
      `${FULL}vtbd0        150      50   1200.0    400.0     0     0     0     0    3  25\n`,
    );
  });

  it("counts flushes and deletes as transfers too", async () => {
    const { run, disk, machine } = await shellWith();
    machine.pass(1000);
    Object.assign(disk.statistics, {
      ...{ flushes: 2, deletes: 2, bytesDeleted: 400 << 20 },
      ...{ flushTime: 6, deleteTime: 18 },
    });
    expect((await run("iostat")).out).toBe(`${SHORT}102400     4 400.0 \n`);
    expect((await run("iostat -x")).out).toBe(
      `${FULL}vtbd0          0       0      0.0      0.0     0     0     3     6    0   0\n`,
    );
  });

  it("then prints what was done in each interval", async () => {
    const { run, disk, machine } = await shellWith();
    machine.pass(1000);
    work(disk, 10, 0);
    const running = run("iostat -w 2 -c 3");
    work(disk, 0, 40);
    await pass(machine, 2000);
    await pass(machine, 2000);
    expect((await running).out).toBe(
      `${SHORT} 8.0    10  0.08 \n 8.0    20  0.16 \n 0.0     0  0.00 \n`,
    );
    const full = run("iostat -x -c 2 vtbd0");
    work(disk, 5, 0, 500);
    disk.statistics.readTime += 500;
    await pass(machine, 1000);
    expect((await full).out).toBe(
      `${FULL}vtbd0          2       8     16.0     64.0     0     0     0     0    0   0\n` +
        `${FULL}vtbd0          5       0     40.0      0.0   100     0     0   100    0  50\n`,
    );
  });

  it("prints its header again every twenty lines, and when the disks change", async () => {
    const { run, machine } = await shellWith(undefined, { units: 2 });
    const two = "           vtbd0            vtbd1 \nKB/t   tps  MB/s KB/t   tps  MB/s \n";
    const idle = " 0.0     0  0.00 ";
    const running = run("iostat -c 23");
    for (let line = 1; line < 23; line++) {
      if (line === 22) {
        machine.unplug(2);
        await expect.poll(() => machine.callouts.size).toBe(1);
        await new Promise((turn) => setImmediate(turn));
      }
      await pass(machine, 1000);
    }
    const both = `${idle}${idle}\n`;
    expect((await running).out).toBe(
      `${two}${both.repeat(20)}${two}${both.repeat(2)}${SHORT}${idle}\n`,
    );
  });

  it("ends at Ctrl-C", async () => {
    const { run, machine } = await shellWith();
    const abort = new AbortController();
    const running = run("iostat -w 0.5", abort.signal);
    await pass(machine, 500);
    await expect.poll(() => machine.callouts.size).toBe(1);
    abort.abort();
    expect(await running).toMatchObject({ status: 130, err: "" });
    expect(machine.callouts.size).toBe(0);
  });

  it("ends at a Ctrl-C that comes when an interval is over", async () => {
    const { run, machine } = await shellWith();
    const abort = new AbortController();
    const running = run("iostat -w 1", abort.signal);
    await pass(machine, 1000);
    abort.abort();
    expect((await running).status).toBe(130);
  });

  const usage = "usage: iostat [-dx] [-c count] [-w wait] [disk ...]\n";
  it.each([
    ["iostat -w 0", `iostat: wait time is < 1ms\n${usage}`],
    ["iostat -w x", `iostat: wait time is not a number\n${usage}`],
    ["iostat -w 86401", `iostat: wait time is > 86400s\n${usage}`],
    ["iostat -c 0", `iostat: count is < 1\n${usage}`],
    ["iostat vtbd7", "iostat: vtbd7: No such file or directory (disks: vtbd0)\n"],
  ])("refuses %j", async (line, err) => {
    const { run } = await shellWith();
    expect(await run(line)).toEqual({ status: 1, out: "", err });
  });

  it("says so when there is no disk", async () => {
    const { run } = await testShell({ machine: new FakeMachine([]) });
    expect(await run("iostat")).toEqual({
      status: 1,
      out: "",
      err: "iostat: there is no disk\n",
    });
  });
});

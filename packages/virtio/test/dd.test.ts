import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { FakeBlockDriver, FakeMachine, MemoryDisk, pciFunction } from "./fakes.js";
import { type TestShell, testShell } from "./session.js";

const pattern = (length: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);

/** Vitest compares typed arrays element by element, with an object each: too slow for a megabyte. */
const expectBytes = (seen: Uint8Array, wanted: Uint8Array): void => {
  expect(seen.length).toBe(wanted.length);
  expect(Buffer.compare(seen, wanted)).toBe(0);
};

const shellWith = async (
  size = 1 << 20,
  { units = 1, readOnly = false, terminal = false } = {},
): Promise<TestShell & { disk: MemoryDisk }> => {
  const driver = new FakeBlockDriver();
  driver.makeDisk = (name, unit) => {
    const disk = new MemoryDisk(name, size, { readOnly });
    disk.bytes.set(pattern(size, unit + 1));
    return disk;
  };
  const machine = new FakeMachine(Array.from({ length: units }, (_, i) => pciFunction(i + 1)));
  const test = await testShell({ driver, machine, terminal });
  return { ...test, disk: test.disks[0] as MemoryDisk };
};

describe("dd from a disk", () => {
  it("copies it whole to a file and counts as FreeBSD's does", async () => {
    const { run, host, disk, machine } = await shellWith(1 << 20);
    const read = disk.read.bind(disk);
    disk.read = async (position, ...rest) => {
      if (position === 0) machine.pass(250);
      await read(position, ...rest);
    };
    const { status, out, err } = await run("dd if=/dev/vtbd0 of=out.img bs=64k");
    expect({ status, out }).toEqual({ status: 0, out: "" });
    expect(err).toBe(
      "16+0 records in\n16+0 records out\n1048576 bytes transferred in 0.250000 secs (4194304 bytes/sec)\n",
    );
    expectBytes(host.bytes("out.img"), disk.bytes);
    expect(host.closed).toBe(1);
  });

  it("keeps many requests in flight, in bounded memory", async () => {
    const { run, disk } = await shellWith(1 << 20);
    await run("dd if=/dev/vtbd0 of=/dev/null");
    expect(disk.mostInFlight).toBe(64);
    expect(disk.requests.length).toBe(2048);
    const big = await shellWith(32 << 20);
    await big.run("dd if=/dev/vtbd0 of=/dev/null bs=16m");
    expect(big.disk.mostInFlight).toBe(8);
    expect(Math.max(...big.disk.requests.map(({ length }) => length))).toBe(1 << 20);
  });

  it.each([
    ["bs=1k count=3", 0, 3072],
    ["bs=512 skip=2 count=2x2", 1024, 2048],
    ["bs=1m skip=1", 1 << 20, 0],
    ["bs=1b iseek=2047", 2047 * 512, 512],
    ["count=0", 0, 0],
  ])("honours %s", async (operands, from, length) => {
    const { run, host, disk } = await shellWith(1 << 20);
    expect((await run(`dd if=/dev/vtbd0 of=o ${operands}`)).status).toBe(0);
    expectBytes(host.bytes("o"), disk.bytes.slice(from, from + length));
  });

  it("reads a last block that is shorter than the others", async () => {
    const { run, host, disk } = await shellWith(1536);
    expect((await run("dd if=/dev/vtbd0 of=o bs=1k")).err).toMatch(
      /^1\+1 records in\n1\+1 records out\n1536 bytes/,
    );
    expectBytes(host.bytes("o"), disk.bytes);
  });

  it("truncates the file where the copy begins, and with notrunc leaves the rest", async () => {
    const { run, host, disk } = await shellWith(512);
    const old = pattern(4096, 9);
    host.files.set("a", old.slice());
    await run("dd if=/dev/vtbd0 of=a bs=512 seek=1");
    expectBytes(host.bytes("a"), Uint8Array.from([...old.subarray(0, 512), ...disk.bytes]));
    host.files.set("b", old.slice());
    await run("dd if=/dev/vtbd0 of=b bs=512 seek=1 conv=notrunc");
    const kept = old.slice();
    kept.set(disk.bytes, 512);
    expectBytes(host.bytes("b"), kept);
  });

  it("stops at a block that cannot be read, and writes nothing behind it", async () => {
    const { run, host, disk } = await shellWith(1 << 20);
    disk.bad = new Set([3 * 65536]);
    const { status, err } = await run("dd if=/dev/vtbd0 of=o bs=64k");
    expect(status).toBe(1);
    expect(err).toMatch(
      /^dd: vtbd0: hard error cmd=read 196608\n3\+0 records in\n3\+0 records out\n196608 bytes/,
    );
    expectBytes(host.bytes("o"), disk.bytes.slice(0, 3 * 65536));
    expect(disk.inFlight).toBe(0);
  });

  it("returns only when nothing is under way any more", async () => {
    const { run, disk } = await shellWith(1 << 20);
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const read = disk.read.bind(disk);
    let underWay = 0;
    disk.read = async (position, ...rest) => {
      underWay++;
      if (position !== 0) await held;
      await read(position, ...rest).finally(() => underWay--);
    };
    disk.bad = new Set([0]);
    const running = run("dd if=/dev/vtbd0 of=o bs=64k");
    await new Promise((turn) => setImmediate(turn));
    expect(underWay).toBe(15);
    release();
    expect((await running).status).toBe(1);
    expect(underWay).toBe(0);
  });

  it("makes no file when there is no input", async () => {
    const { run, host } = await shellWith();
    host.files.set("precious", pattern(10));
    expect((await run("dd if=/dev/vtbd9 of=precious")).err).toBe(
      "dd: /dev/vtbd9: No such file or directory (disks: vtbd0)\n",
    );
    expect((await run("dd if=nosuch of=new")).err).toBe("dd: nosuch: No such file or directory\n");
    expectBytes(host.bytes("precious"), pattern(10));
    expect(host.files.has("new")).toBe(false);
  });
});

describe("dd to a disk", () => {
  it("writes the file and changes nothing beyond it", async () => {
    const { run, host, disk } = await shellWith(1 << 20);
    const before = disk.bytes.slice();
    const data = pattern(100 * 1024, 77);
    host.files.set("in.bin", data);
    const { status, err } = await run("dd if=in.bin of=/dev/vtbd0 bs=64k seek=1");
    expect(status).toBe(0);
    expect(err).toMatch(/^1\+1 records in\n1\+1 records out\n102400 bytes/);
    before.set(data, 65536);
    expectBytes(disk.bytes, before);
  });

  it("refuses a file that ends within a sector, before it writes", async () => {
    const { run, host, disk } = await shellWith(1 << 20);
    const before = disk.bytes.slice();
    host.files.set("in.bin", pattern(65536 + 100));
    const { status, err } = await run("dd if=in.bin of=/dev/vtbd0 bs=64k");
    expect(status).toBe(1);
    expect(err).toBe(
      "dd: /dev/vtbd0: Invalid argument: the last block, 100 bytes (conv=sync fills it with zeros), is not a multiple of the sector size 512\n",
    );
    expectBytes(disk.bytes, before);
    expect(host.closed).toBe(1);
  });

  it.each(["sync", "osync", "notrunc,sync"])("fills the last block with conv=%s", async (conv) => {
    const { run, host, disk } = await shellWith(1 << 20);
    const expected = disk.bytes.slice();
    host.files.set("in.bin", pattern(3 * 1024 + 100, 5));
    const { status, err } = await run(`dd if=in.bin of=/dev/vtbd0 bs=2k conv=${conv}`);
    expect(status).toBe(0);
    expect(err).toMatch(/^1\+1 records in\n2\+0 records out\n4096 bytes/);
    expected.fill(0, 0, 4096);
    expected.set(pattern(3 * 1024 + 100, 5));
    expectBytes(disk.bytes, expected);
  });

  it("writes up to the end of the media, then says so", async () => {
    const { run, disk } = await shellWith(4096);
    const { status, err } = await run("dd if=/dev/zero of=/dev/vtbd0 bs=1k");
    expect(status).toBe(1);
    expect(err).toMatch(
      /^dd: \/dev\/vtbd0: end of device\n5\+0 records in\n4\+0 records out\n4096 bytes/,
    );
    expectBytes(disk.bytes, new Uint8Array(4096));
    expect((await run("dd if=/dev/zero of=/dev/vtbd0 bs=1k seek=9 count=1")).err).toMatch(
      /^dd: \/dev\/vtbd0: end of device\n1\+0 records in\n0\+0 records out\n/,
    );
  });

  it.each([
    ["ibs=1k obs=512", "5+0", "8+0"],
    ["ibs=512 obs=1k", "10+0", "4+0"],
  ])("reads one block more than fits, with %s", async (operands, read, written) => {
    const { run } = await shellWith(4096);
    expect((await run(`dd if=/dev/zero of=/dev/vtbd0 ${operands} status=noxfer`)).err).toBe(
      `dd: /dev/vtbd0: end of device\n${read} records in\n${written} records out\n`,
    );
  });

  it("refuses a disk that is read-only", async () => {
    const { run, disk } = await shellWith(4096, { readOnly: true });
    expect((await run("dd if=/dev/zero of=/dev/vtbd0 count=1")).err).toBe(
      "dd: /dev/vtbd0: Read-only file system: the disk is read-only\n",
    );
    expect(disk.requests).toEqual([]);
  });

  it("copies from disk to disk, and onto itself one block after the other", async () => {
    const { run, disks } = await shellWith(8192, { units: 2 });
    const [first, second] = disks as [MemoryDisk, MemoryDisk];
    await run("dd if=/dev/vtbd0 of=/dev/vtbd1 bs=1k");
    expectBytes(second.bytes, first.bytes);
    const block = first.bytes.slice(0, 512);
    expect((await run("dd if=/dev/vtbd0 of=/dev/vtbd0 seek=1 count=4")).status).toBe(0);
    for (let i = 0; i <= 4; i++) expectBytes(first.bytes.slice(i * 512, i * 512 + 512), block);
  });
});

describe("dd", () => {
  it.each([
    ["dd", "dd: if= is not given\n"],
    ["dd if=a", "dd: of= is not given\n"],
    ["dd if=a of=b cbs=1", "dd: unknown operand cbs\n"],
    ["dd if=a of=b bs=1k ibs=1", "dd: bs: illegal argument combination or already set\n"],
    ["dd if=a of=b obs=0", "dd: obs must be greater than 0\n"],
    ["dd if=a of=b c", "dd: unknown operand c\n"],
    ["dd if=a of=b bs=", "dd: no value specified for bs\n"],
    ["dd if=a if=c of=b", "dd: operand if is given twice\n"],
    ["dd if=a of=b bs=0", "dd: bs must be greater than 0\n"],
    ["dd if=a of=b bs=x", "dd: bs=x: not a number such as 512, 64k or 2x512\n"],
    ["dd if=a of=b count=-1", "dd: count=-1: not a number such as 512, 64k or 2x512\n"],
    [
      "dd if=a of=b conv=ascii",
      "dd: unknown conversion ascii (there is: notrunc, sync, osync, sparse, fsync)\n",
    ],
    ["dd if=a of=b status=loud", "dd: unknown status loud (there is: none, noxfer, progress)\n"],
  ])("refuses %j", async (line, err) => {
    const { run } = await testShell();
    const result = await run(line);
    expect(result.status).toBe(1);
    expect(result.err).toBe(
      `${err}usage: dd if=FROM of=TO [bs=N | ibs=N obs=N] [count=N] [skip=N] [seek=N] [conv=notrunc,sync,osync,sparse,fsync] [status=none|noxfer|progress]\n`,
    );
  });

  it("wants blocks of whole sectors on a disk", async () => {
    const { run, host } = await shellWith();
    expect((await run("dd if=/dev/vtbd0 of=o bs=1000")).err).toBe(
      "dd: /dev/vtbd0: Invalid argument: a block of 1000 bytes is not a multiple of the sector size 512\n",
    );
    expect(host.files.has("o")).toBe(false);
  });

  it("prints as much as status= says", async () => {
    const { run } = await shellWith(4096);
    expect((await run("dd if=/dev/vtbd0 of=/dev/null status=none")).err).toBe("");
    expect((await run("dd if=/dev/vtbd0 of=/dev/null status=noxfer")).err).toBe(
      "8+0 records in\n8+0 records out\n",
    );
  });

  it.each([
    [true, ""],
    [false, " status=progress"],
  ])("draws a line of progress a second (on a terminal: %j)%s", async (terminal, operand) => {
    const { run, disk, machine } = await shellWith(4 << 20, { terminal });
    const read = disk.read.bind(disk);
    disk.read = async (...args) => {
      machine.pass(600);
      await read(...args);
    };
    // One request at a time: the disk is also what is written.
    const { err } = await run(`dd if=/dev/vtbd0 of=/dev/vtbd0 bs=1m${operand}`);
    expect(err).toBe(
      "  2097152 bytes (2097 kB, 2048 KiB) transferred 1.200s, 1748 kB/s\r" +
        "  4194304 bytes (4194 kB, 4096 KiB) transferred 2.400s, 1748 kB/s\r" +
        "\n4+0 records in\n4+0 records out\n" +
        "4194304 bytes transferred in 2.400000 secs (1747627 bytes/sec)\n",
    );
  });

  it("counts blocks of the input and of the output apart", async () => {
    const { run, host, disk } = await shellWith(1 << 20);
    host.files.set("a", new Uint8Array(1024));
    const { err } = await run("dd if=/dev/vtbd0 of=a ibs=512 obs=1000 skip=1 seek=1 count=5");
    expect(err).toMatch(/^5\+0 records in\n2\+1 records out\n2560 bytes/);
    expectBytes(host.bytes("a").slice(1000), disk.bytes.slice(512, 6 * 512));
    expect((await run("dd if=a of=/dev/vtbd0 ibs=1000 obs=512 conv=sync count=4")).err).toBe(
      "dd: /dev/vtbd0: Invalid argument: the last block, 416 bytes (conv=sync fills it with zeros), is not a multiple of the sector size 512\n",
    );
    expect(
      (await run("dd if=a of=/dev/vtbd0 ibs=1000 obs=512 conv=osync,sync count=4")).err,
    ).toMatch(/^3\+1 records in\n8\+0 records out\n4096 bytes/);
  });
});

describe("dd conv=sparse", () => {
  /** Blocks of 1 KB: zeros where the letter is a dot. */
  const blocks = (map: string, seed = 1): Uint8Array => {
    const bytes = new Uint8Array(map.length * 1024);
    for (const [i, letter] of [...map].entries())
      if (letter !== ".") bytes.set(pattern(1024, seed + i).fill(7, 0, 1), i * 1024);
    return bytes;
  };
  const writes = (disk: MemoryDisk): readonly (readonly [string, number])[] =>
    disk.requests.map(({ what, position }) => [what, position / 1024] as const);

  it("leaves holes in a file, also at its end", async () => {
    const { run, host, disk } = await shellWith(6 * 1024);
    disk.bytes.set(blocks("a..b.."));
    // A byte is enough, and what the file held is gone.
    disk.bytes.fill(0, 3 * 1024, 4 * 1024 - 1).fill(1, 4 * 1024 - 1, 4 * 1024);
    host.files.set("a", blocks("xxxxxxxxx", 50));
    const create = host.create.bind(host);
    const written: number[] = [];
    host.create = async (path) => {
      const file = await create(path);
      const write = file.write.bind(file);
      file.write = async (position, from) => {
        written.push(position / 1024);
        await write(position, from);
      };
      return file;
    };
    expect((await run("dd if=/dev/vtbd0 of=a bs=1k conv=sparse")).err).toMatch(
      /^6\+0 records in\n6\+0 records out\n6144 bytes/,
    );
    expect(written).toEqual([0, 3]);
    expectBytes(host.bytes("a"), disk.bytes);
  });

  it("writes zeros where the file holds something that notrunc keeps", async () => {
    const { run, host, disk } = await shellWith(4 * 1024);
    disk.bytes.set(blocks("a..b"));
    host.files.set("a", blocks("xxxxx", 50));
    await run("dd if=/dev/vtbd0 of=a bs=1k conv=sparse,notrunc");
    expectBytes(host.bytes("a").slice(0, 4096), disk.bytes);
    expectBytes(host.bytes("a").slice(4096), blocks("xxxxx", 50).slice(4096));
  });

  it("has a disk write zeroes, and writes them itself to one that cannot", async () => {
    const { run, host, disk } = await shellWith(4 * 1024);
    host.files.set("a", blocks("a.b."));
    await run("dd if=a of=/dev/vtbd0 bs=1k conv=sparse");
    expectBytes(disk.bytes, blocks("a.b."));
    expect(writes(disk)).toEqual([
      ["write", 0],
      ["writeZeroes", 1],
      ["write", 2],
      ["writeZeroes", 3],
    ]);
    disk.bytes.fill(9);
    disk.can = { ...disk.can, writeZeroes: false };
    await run("dd if=a of=/dev/vtbd0 bs=1k conv=sparse");
    expectBytes(disk.bytes, blocks("a.b."));
  });
});

describe("dd conv=fsync", () => {
  it("flushes a disk when everything is written", async () => {
    const { run, disk } = await shellWith(4096);
    expect((await run("dd if=/dev/zero of=/dev/vtbd0 bs=2k count=2 conv=fsync")).status).toBe(0);
    expect(disk.requests.map(({ what }) => what)).toEqual(["write", "write", "flush"]);
  });

  it("fails when the flush does", async () => {
    const { run, disk } = await shellWith(4096);
    disk.flushFault = new VirtioFault("IO", "hard error cmd=flush", { device: "vtbd0" });
    const { status, err } = await run("dd if=/dev/zero of=/dev/vtbd0 count=1 conv=fsync");
    expect(status).toBe(1);
    expect(err).toMatch(/^dd: vtbd0: hard error cmd=flush\n1\+0 records in\n1\+0 records out\n/);
  });

  it("puts a file on stable storage", async () => {
    const { run, host, disk } = await shellWith(1024);
    expect((await run("dd if=/dev/vtbd0 of=a conv=fsync")).status).toBe(0);
    expect(host.synced).toBe(1);
    expectBytes(host.bytes("a"), disk.bytes);
    expect((await run("dd if=/dev/vtbd0 of=a")).status).toBe(0);
    expect(host.synced).toBe(1);
  });
});

describe("dd and Ctrl-C", () => {
  it("ends at Ctrl-C with what it did so far, and nothing under way", async () => {
    const { run, disk } = await shellWith(1 << 20);
    const abort = new AbortController();
    disk.gate = new Promise(() => {});
    const running = run("dd if=/dev/vtbd0 of=o bs=64k; kenv a=1", abort.signal);
    await expect.poll(() => disk.inFlight).toBe(16);
    abort.abort();
    const { status, out, err } = await running;
    expect({ status, out }).toEqual({ status: 130, out: "" });
    expect(err).toMatch(/^0\+0 records in\n0\+0 records out\n0 bytes/);
    expect(disk.inFlight).toBe(0);
  });

  it("lets Ctrl-C through even when nothing it copies waits", async () => {
    const { run, machine } = await testShell();
    machine.tasks.now = () => performance.now();
    machine.tasks.enqueue = (task) => void setImmediate(task);
    const abort = new AbortController();
    setImmediate(() => abort.abort());
    const { status, err } = await run(
      "dd if=/dev/zero of=/dev/null count=1000000 status=noxfer",
      abort.signal,
    );
    expect(status).toBe(130);
    expect(err).not.toContain("1000000+0 records");
  });
});

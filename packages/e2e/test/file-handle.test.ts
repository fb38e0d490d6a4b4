// A disk as a FileHandle, over vtblk on the embedded machine; a file of the same content, opened by Node, is the witness of the shape.
import { readFileSync, writeFileSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { finished, pipeline } from "node:stream/promises";
import type { Disk } from "@virtio/core";
import {
  blk,
  type EmbeddedBlkOptions,
  embedded,
  FaultBackend,
  MemoryBackend,
} from "@virtio/hypervisor";
import { type DiskFileHandle, fileHandle } from "@virtio/storage/node";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { disksOf, folder, pattern } from "./machines.js";

const SIZE = 256 << 10;
const file = folder();

async function diskOver(
  options: EmbeddedBlkOptions = {},
  closing: (close: () => Promise<void>) => void = onTestFinished,
): Promise<Disk> {
  const machine = await embedded({ devices: [blk({ size: SIZE, ...options })] });
  closing(() => machine.close());
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [disk] = await disksOf(bus.bus);
  if (disk === undefined) throw new Error("no disk");
  return disk;
}

/** A disk that holds these bytes. */
async function diskOf(content: Uint8Array, options: EmbeddedBlkOptions = {}): Promise<Disk> {
  return diskOver({ backend: new MemoryBackend(content), size: undefined, ...options });
}

async function contentOf(disk: Disk): Promise<Buffer> {
  const bytes = Buffer.alloc(disk.mediaSize);
  await disk.read(0, bytes);
  return bytes;
}

/** What the compiler takes for a FileHandle when it needs only these. */
const served = [
  "close",
  "createReadStream",
  "createWriteStream",
  "datasync",
  "read",
  "readFile",
  "readLines",
  "readableWebStream",
  "readv",
  "stat",
  "sync",
  "truncate",
  "write",
  "writeFile",
  "writev",
  Symbol.asyncDispose,
] as const;

describe("a disk as a FileHandle", () => {
  it("is one for whoever needs no descriptor, owner, mode or end that moves", async () => {
    const handle: Pick<FileHandle, (typeof served)[number]> = fileHandle(await diskOver());
    for (const name of served) expect(handle[name]).toBeTypeOf("function");
    // @ts-expect-error a disk has no end to append to
    const appends: Pick<FileHandle, "appendFile"> = fileHandle(await diskOver());
    expect(appends).not.toHaveProperty("appendFile");
  });

  it("reads at positions that are bigints, and refuses what is no position", async () => {
    const content = pattern(SIZE, 9);
    const handle = fileHandle(await diskOf(content));
    const { buffer } = await handle.read({ position: 1023n, length: 50, buffer: Buffer.alloc(50) });
    expect(Buffer.compare(buffer, content.subarray(1023, 1073))).toBe(0);
    const into = Buffer.alloc(10);
    expect((await handle.read(into, 0, 5, 2n ** 62n)).bytesRead).toBe(0);
    for (const position of [-2, 0.5, Number.NaN, 2 ** 53, -2n, 2n ** 63n])
      await expect(handle.read(into, 0, 10, position)).rejects.toMatchObject({
        name: "RangeError",
        code: "ERR_OUT_OF_RANGE",
      });
    await expect(handle.read(into, 0, 10, "x" as never)).rejects.toMatchObject({
      name: "TypeError",
      code: "ERR_INVALID_ARG_TYPE",
    });
    await expect(handle.read(into, 11, 0, 0)).rejects.toMatchObject({ code: "ERR_OUT_OF_RANGE" });
  });

  const buffer = (length = 100): Buffer => Buffer.alloc(length, 0xee);
  const calls: Readonly<Record<string, (handle: DiskFileHandle | FileHandle) => Promise<unknown>>> =
    {
      "read(buffer, offset, length, position)": (h) => h.read(buffer(), 7, 60, 1000),
      "read(buffer), twice": async (h) => [await h.read(buffer()), await h.read(buffer(700))],
      "read(buffer, { offset, length, position })": (h) =>
        h.read(buffer(), { offset: 3, length: 50, position: 511 }),
      "read({ buffer, position })": (h) => h.read({ buffer: buffer(), position: 77 }),
      "read()": (h) => h.read(),
      "read at -1": async (h) => [
        await h.read(buffer(), 0, 10, -1),
        await h.read(buffer(), 0, 10, null),
      ],
      "read into other views": (h) => h.read(new Uint16Array(40), 2, 30, 5),
      "read into a DataView": (h) => h.read(new DataView(new ArrayBuffer(40), 8), null, null, 5),
      "read of nothing": (h) => h.read(buffer(), 5, 0, 0),
      "read across the end": (h) => h.read(buffer(), 0, 100, SIZE - 13),
      "read at the end": (h) => h.read(buffer(), 0, 100, SIZE),
      "read beyond the end": (h) => h.read(buffer(), 0, 100, 1e15),
      "read with an offset below 0": (h) => h.read(buffer(), -1, 10, 0),
      "read of more than fits": (h) => h.read(buffer(), 90, 11, 0),
      readv: (h) => h.readv([buffer(100), buffer(0), new Uint8Array(1000)], 300),
      "readv, twice": async (h) => [
        await h.readv([buffer(512)]),
        await h.readv([buffer(5), buffer(6)]),
      ],
      "readv across the end": (h) => h.readv([buffer(100), buffer(100), buffer(100)], SIZE - 150),
      "write(buffer, offset, length, position)": (h) => h.write(buffer(), 7, 60, 1000),
      "write(buffer), twice": async (h) => [
        await h.write(buffer(), 50),
        await h.write(buffer(3000)),
      ],
      "write(buffer, { offset, length, position })": (h) =>
        h.write(buffer(), { offset: 3, length: 50, position: 511 } as never),
      "write(string)": async (h) => [await h.write("größer"), await h.write("ab")],
      "write(string, position, encoding)": (h) => h.write("00ff10", 511, "hex"),
      "write of a whole sector": (h) => h.write(buffer(512), 0, 512, 1024),
      "write of nothing": (h) => h.write(buffer(), 0, 0, 0),
      "write with a length below 0": (h) => h.write(buffer(), 0, -1, 0),
      "write of more than there is": (h) => h.write(buffer(), 90, 11, 0),
      "write of what is no buffer": (h) => h.write(5 as never),
      writev: (h) => h.writev([buffer(100), buffer(0), buffer(1000)], 300),
      "writev, twice": async (h) => [
        await h.writev([buffer(600)]),
        await h.writev([buffer(5), buffer(6)]),
      ],
      writeFile: (h) => h.writeFile("all of it"),
      "writeFile of bytes, after a write": async (h) => [
        await h.write("x"),
        await h.writeFile(buffer(700)),
      ],
      readFile: (h) => h.readFile(),
      "readFile from where it stands": async (h) => [
        await h.read(buffer()),
        await h.readFile("latin1"),
      ],
      "readFile at the end": async (h) => [
        await h.readFile({ encoding: "hex" }),
        await h.readFile("utf8"),
      ],
      "readFile that is aborted": (h) =>
        h.readFile({ signal: AbortSignal.abort(new Error("enough")) }),
      "createReadStream({ start, end })": async (h) =>
        (await h.createReadStream({ start: 500, end: 140_000 }).toArray()).map(String),
      "createReadStream({ encoding })": async (h) =>
        await h.createReadStream({ encoding: "hex", end: 99 }).toArray(),
      "createReadStream after a read": async (h) => [
        await h.read(buffer(1)),
        Buffer.concat(await h.createReadStream({ highWaterMark: 1000 }).toArray()),
      ],
      "createReadStream beyond the end": (h) => h.createReadStream({ start: SIZE + 5 }).toArray(),
      "createWriteStream({ start })": async (h) => {
        const stream = h.createWriteStream({ start: 77 });
        for (const length of [1, 600, 70_000]) stream.write(buffer(length));
        await finished(stream.end("end"));
        return stream.bytesWritten;
      },
      readableWebStream: async (h) => {
        const all: Uint8Array[] = [];
        for await (const chunk of h.readableWebStream({ type: "bytes" })) all.push(chunk);
        return Buffer.concat(all);
      },
      "sync and datasync": async (h) => [await h.sync(), await h.datasync()],
      "close, twice": async (h) => [await h.close(), await h.close()],
      "read when closed": async (h) => h.close().then(() => h.read(buffer())),
      "write when closed": async (h) => h.close().then(() => h.write("x")),
    };
  const content = pattern(SIZE, 9);
  let disk: Disk;
  beforeAll(async () => {
    disk = await diskOver({}, afterAll);
  });
  for (const [name, call] of Object.entries(calls))
    it(`does what a file does: ${name}`, async () => {
      const image = file("witness");
      writeFileSync(image, content);
      await disk.write(0, content);
      const witness = await open(image, "r+");
      onTestFinished(() => witness.close());
      const end = (work: Promise<unknown>): Promise<unknown> =>
        work.catch(({ name: kind, code }) => ({ kind, code }));
      const expected = await end(call(witness));
      expect(await end(call(fileHandle(disk)))).toEqual(expected);
      expect(Buffer.compare(await contentOf(disk), readFileSync(image))).toBe(0);
    });
});

describe("a disk as a file that cannot grow", () => {
  it("writes what fits before its end, and nothing there: ENOSPC", async () => {
    const disk = await diskOver();
    const handle = fileHandle(disk);
    expect(await handle.write(Buffer.alloc(100, 1), 0, 100, SIZE - 40)).toMatchObject({
      bytesWritten: 40,
    });
    const full = {
      code: "ENOSPC",
      errno: -28,
      syscall: "write",
      message: "ENOSPC: no space left on device, write",
    };
    for (const position of [SIZE, SIZE + 1, 1e15])
      await expect(handle.write("x", position)).rejects.toMatchObject(full);
    expect(await handle.write("", SIZE)).toMatchObject({ bytesWritten: 0 });
    await expect(handle.writeFile(Buffer.alloc(SIZE + 1, 2))).rejects.toMatchObject(full);
    expect(await contentOf(disk)).toEqual(Buffer.alloc(SIZE, 2));
    await expect(
      pipeline([Buffer.alloc(1000, 3)], handle.createWriteStream({ start: SIZE - 600 })),
    ).rejects.toMatchObject(full);
    expect((await contentOf(disk)).subarray(SIZE - 601)).toEqual(
      Buffer.concat([Buffer.alloc(1, 2), Buffer.alloc(600, 3)]),
    );
  });

  it("cannot be truncated", async () => {
    const handle = fileHandle(await diskOver());
    await expect(handle.truncate(0)).rejects.toMatchObject({
      code: "EINVAL",
      errno: -22,
      syscall: "ftruncate",
    });
  });

  it("is a block device", async () => {
    const disk = await diskOver({ topology: { physicalBlockExp: 3 } });
    const stats = await fileHandle(disk).stat();
    expect([stats.isBlockDevice(), stats.isFile(), stats.isDirectory()]).toEqual([
      true,
      false,
      false,
    ]);
    expect(stats).toMatchObject({ size: SIZE, blksize: 4096, blocks: SIZE / 512, mode: 0o060600 });
    const big = await fileHandle(disk).stat({ bigint: true });
    expect(big).toMatchObject({ size: BigInt(SIZE), blksize: 4096n, mtimeNs: 0n });
    const plain = await fileHandle(await diskOver()).stat();
    expect(plain.blksize).toBe(512);
  });

  it("has lines", async () => {
    const content = new Uint8Array(1024).fill(0x2e);
    content.set(Buffer.from("one\ntwo\r\n"));
    const lines: string[] = [];
    for await (const line of fileHandle(await diskOf(content)).readLines()) lines.push(line);
    expect([lines[0], lines[1], lines[2]?.length]).toEqual(["one", "two", 1015]);
  });
});

describe("bytes that are no whole sectors", () => {
  for (const blockSize of [512, 4096])
    it(`are not lost when many are written at once into sectors of ${blockSize} that they share`, async () => {
      const disk = await diskOver({ blockSize });
      const [one, other] = [fileHandle(disk), fileHandle(disk)];
      const expected = Buffer.alloc(SIZE);
      const writes: Promise<unknown>[] = [];
      let at = 0;
      for (let n = 1; at < SIZE; n++) {
        const length = Math.min(
          SIZE - at,
          n % 5 === 0 ? 2 * blockSize - (at % blockSize) : 1 + ((n * 797) % 1500),
        );
        const bytes = expected.subarray(at, at + length).fill(n);
        writes.push((n % 2 === 0 ? one : other).write(bytes, 0, length, at));
        at += length;
      }
      await Promise.all(writes);
      expect(Buffer.compare(await contentOf(disk), expected)).toBe(0);
    });

  it("are written in the order of the calls where they overlap", async () => {
    const disk = await diskOver();
    const handle = fileHandle(disk);
    const writes = Array.from({ length: 20 }, (_, n) =>
      handle.write(Buffer.alloc(1000, n), 0, 1000, 100 + n),
    );
    await Promise.all(writes);
    expect([...(await contentOf(disk)).subarray(99, 121)]).toEqual([0, ...Array(20).keys(), 19]);
  });

  it("come one after the other without a position, however many calls are under way", async () => {
    const disk = await diskOver();
    const handle = fileHandle(disk);
    const words = Array.from({ length: 300 }, (_, n) => `word ${n};`);
    await Promise.all(words.map((word) => handle.write(word)));
    const text = words.join("");
    expect(await fileHandle(disk).readFile("latin1")).toBe(text.padEnd(SIZE, "\0"));
  });

  it("read no sector when they are whole sectors, and only those at the edges else", async () => {
    const seen: string[] = [];
    const backend = new FaultBackend(new MemoryBackend(SIZE), ({ operation, position, length }) => {
      seen.push(`${operation} ${position / 512}+${length / 512}`);
      return undefined;
    });
    const handle = fileHandle(await diskOver({ backend, size: undefined }));
    await handle.write(Buffer.alloc(2048), 0, 2048, 512);
    await handle.write(Buffer.alloc(2048), 0, 2048, 100);
    await handle.write(Buffer.alloc(612), 0, 612, 512);
    await handle.write(Buffer.alloc(2), 0, 2, 511);
    await handle.write(Buffer.alloc(2), 0, 2, 5);
    expect(seen).toEqual([
      "write 1+4",
      "read 0+1",
      "read 4+1",
      "write 0+5",
      "read 2+1",
      "write 1+2",
      "read 0+1",
      "read 1+1",
      "write 0+2",
      "read 0+1",
      "write 0+1",
    ]);
  });
});

describe("a disk as a file that fails", () => {
  it("says so as Node does, the disk's fault the cause, and stands where it stood", async () => {
    const backend = new FaultBackend(new MemoryBackend(SIZE), FaultBackend.badSectors(1, 1));
    const handle = fileHandle(await diskOver({ backend, size: undefined }));
    await handle.read(Buffer.alloc(500));
    const bad = (syscall: string): object => ({
      ...{ name: "Error", code: "EIO", errno: -5, syscall, message: `EIO: i/o error, ${syscall}` },
      cause: { name: "VirtioFault", code: "IO" },
    });
    await expect(handle.read(Buffer.alloc(500))).rejects.toMatchObject(bad("read"));
    await expect(handle.write("more than a sector's end")).rejects.toMatchObject(bad("write"));
    expect((await handle.read(Buffer.alloc(12))).bytesRead).toBe(12);
    await expect(
      handle.createReadStream({ start: 0, autoClose: false }).toArray(),
    ).rejects.toMatchObject(bad("read"));
    backend.fate = () => "error";
    await expect(handle.sync()).rejects.toMatchObject(bad("fsync"));
    await expect(handle.datasync()).rejects.toMatchObject(bad("fdatasync"));
    // What waited for a write that failed goes on.
    const [first, second] = [handle.write("a", 0), handle.write("b", 1)];
    backend.fate = () => undefined;
    await Promise.allSettled([first, second]);
    expect(await handle.write("c", 2)).toMatchObject({ bytesWritten: 1 });
  });

  it("is read-only where the disk is, and gone where that is", async () => {
    const disk = await diskOf(new Uint8Array(SIZE), {
      backend: new MemoryBackend(SIZE, { readOnly: true }),
    });
    const handle = fileHandle(disk);
    expect((await handle.stat()).mode).toBe(0o060400);
    await expect(handle.write("x", 0)).rejects.toMatchObject({ code: "EROFS", syscall: "write" });
    await disk.detach();
    await expect(handle.read()).rejects.toMatchObject({ code: "ENXIO", syscall: "read" });
  });

  it("closes when what is under way is over, and leaves the disk to others", async () => {
    const disk = await diskOver();
    const ended: string[] = [];
    const handle = fileHandle(disk);
    const writing = handle.write(Buffer.alloc(1000), 0, 1000, 1).then(() => ended.push("write"));
    const closing = handle.close().then(() => ended.push("close"));
    await expect(handle.write("x")).rejects.toMatchObject({ code: "EBADF", syscall: "write" });
    await Promise.all([writing, closing]);
    expect(ended).toEqual(["write", "close"]);
    await disk.read(0, new Uint8Array(512));
    const streamed = fileHandle(disk);
    await finished(streamed.createReadStream().resume());
    await expect(streamed.sync()).rejects.toMatchObject({ code: "EBADF" });
    const disposed = fileHandle(disk);
    await disposed[Symbol.asyncDispose]();
    await expect(disposed.stat()).rejects.toMatchObject({ code: "EBADF" });
  });
});

// Backends: what they store, and how they go wrong.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { CrashBackend, FaultBackend, MemoryBackend } from "../src/index.js";
import { FileBackend } from "../src/node/index.js";

const SECTOR = 512;
const filled = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);
const content = async (
  backend: { read: MemoryBackend["read"] | FaultBackend["read"] | FileBackend["read"] },
  length: number,
): Promise<Uint8Array> => {
  const bytes = new Uint8Array(length);
  await backend.read(0, [bytes]);
  return bytes;
};

describe("a memory backend", () => {
  it("grows by zeroes, loses its end, and says so", async () => {
    const backend = new MemoryBackend(filled(1024, 7));
    const sizes: number[] = [];
    backend.onResize = () => sizes.push(backend.size);
    backend.resize(1536);
    expect([...(await content(backend, 1536))]).toEqual([...filled(1024, 7), ...filled(512, 0)]);
    backend.resize(512);
    backend.resize(1024);
    expect([...(await content(backend, 1024))]).toEqual([...filled(512, 7), ...filled(512, 0)]);
    for (const size of [0, 511, -512, Number.NaN])
      expect(() => backend.resize(size)).toThrow("positive multiple of 512");
    expect(sizes).toEqual([1536, 512, 1024]);
  });
});

describe("a file backend", () => {
  it("grows by zeroes, loses its end, and says so", async () => {
    const folder = await mkdtemp(join(tmpdir(), "virtio-backend-"));
    try {
      const path = join(folder, "disk.img");
      await writeFile(path, filled(1024, 7));
      const backend = await FileBackend.open(path);
      const sizes: number[] = [];
      backend.onResize = () => sizes.push(backend.size);
      await backend.resize(1536);
      await backend.resize(512);
      await expect(backend.resize(100)).rejects.toMatchObject({ code: "INVALID" });
      expect(sizes).toEqual([1536, 512]);
      await backend.close();
      await expect(backend.resize(1024)).rejects.toMatchObject({ code: "IO" });
      const reader = await FileBackend.open(path, { readOnly: true });
      await expect(reader.resize(1024)).rejects.toMatchObject({ code: "READ_ONLY" });
      await reader.close();
      expect([...(await readFile(path))]).toEqual([...filled(512, 7)]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe("a fault backend", () => {
  it("does what the other does, until it is told otherwise", async () => {
    const memory = new MemoryBackend(4096, { mayUnmap: true });
    const backend = new FaultBackend(memory);
    expect(backend.write(0, [filled(1024, 5)])).toBe(1024);
    backend.writeZeroes(0, 512, false);
    backend.discard(1024, 512);
    expect(backend.flush()).toBeUndefined();
    expect([...(await content(memory, 1024))]).toEqual([...filled(512, 0), ...filled(512, 5)]);
    let resized = 0;
    backend.onResize = () => {
      resized = backend.size;
    };
    memory.resize(8192);
    expect([resized, backend.readOnly, backend.mayUnmap]).toEqual([8192, false, true]);
    backend.fate = () => "error";
    await expect(backend.flush()).rejects.toMatchObject({ code: "IO" });
  });

  it("fails what touches bad sectors, and nothing else", async () => {
    const backend = new FaultBackend(new MemoryBackend(4096), FaultBackend.badSectors(2, 2));
    const reads = (sector: number, count: number): unknown =>
      backend.read(sector * SECTOR, [new Uint8Array(count * SECTOR)]);
    expect([reads(0, 2), reads(4, 4)]).toEqual([1024, 2048]);
    for (const [sector, count] of [
      [1, 2],
      [3, 1],
      [0, 8],
    ] as const)
      await expect(reads(sector, count)).rejects.toMatchObject({ code: "IO" });
    backend.fate = FaultBackend.badSectors(2, 2, ["write"]);
    expect(reads(2, 1)).toBe(512);
    await expect(backend.write(1024, [filled(512, 1)])).rejects.toMatchObject({ code: "IO" });
  });

  it("tears a write that lies in pieces", async () => {
    const memory = new MemoryBackend(2048);
    const backend = new FaultBackend(memory, () => ({ torn: 700 }));
    await expect(backend.write(512, [filled(512, 1), filled(512, 2)])).rejects.toMatchObject({
      code: "IO",
    });
    expect([...(await content(memory, 2048))]).toEqual([
      ...filled(512, 0),
      ...filled(512, 1),
      ...filled(188, 2),
      ...filled(836, 0),
    ]);
  });

  it("moves less of what lies in pieces, and says so; what cannot say so fails", async () => {
    const memory = new MemoryBackend(2048);
    const backend = new FaultBackend(memory, () => ({ short: 700 }));
    expect(backend.write(512, [filled(512, 1), filled(512, 2)])).toBe(700);
    const [first, second] = [filled(512, 9), filled(512, 9)];
    expect(backend.read(512, [first, second])).toBe(700);
    expect([...first, ...second]).toEqual([
      ...filled(512, 1),
      ...filled(188, 2),
      ...filled(324, 9),
    ]);
    expect(backend.read(512, [first])).toBe(512);
    await expect(backend.flush()).rejects.toMatchObject({ code: "IO" });
    await expect(backend.writeZeroes(512, 1024, false)).rejects.toMatchObject({ code: "IO" });
    expect((await content(memory, 2048)).every((byte) => byte === 0)).toBe(true);
  });

  it("waits for a promise before it does anything", async () => {
    const memory = new MemoryBackend(filled(512, 1));
    let open = (): void => {};
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    const backend = new FaultBackend(memory, () => gate);
    const written = backend.write(0, [filled(512, 2)]);
    expect((await content(memory, 1))[0]).toBe(1);
    open();
    await written;
    expect((await content(memory, 1))[0]).toBe(2);
  });

  it("leaves a request unanswered until it is cancelled", async () => {
    const backend = new FaultBackend(new MemoryBackend(512), () => "never");
    const read = content(backend, 512);
    expect(backend.unanswered).toBe(1);
    backend.cancel();
    await expect(read).rejects.toMatchObject({ code: "IO" });
    expect(backend.unanswered).toBe(0);
  });
});

describe("a crash backend", () => {
  it("keeps what was flushed, and of the rest any sectors", () => {
    const backend = new CrashBackend(filled(3 * SECTOR, 1));
    backend.write(0, [filled(SECTOR, 2)]);
    backend.flush();
    backend.write(SECTOR, [filled(SECTOR, 3), filled(SECTOR, 4)]);
    backend.write(SECTOR, [filled(SECTOR, 5)]);
    expect(backend.unflushed).toBe(3);
    const seen = new Set<string>();
    for (let seed = 0; seed < 200; seed++) {
      const bytes = backend.cut(seed);
      seen.add([0, 1, 2].map((sector) => bytes[sector * SECTOR]).join());
      expect(backend.cut(seed)).toEqual(bytes);
    }
    expect([...seen].sort()).toEqual(["2,1,1", "2,1,4", "2,3,1", "2,3,4", "2,5,1", "2,5,4"]);
  });

  it("caches zeroes and discards as it does writes", async () => {
    const backend = new CrashBackend(filled(2 * SECTOR, 1));
    backend.writeZeroes(0, SECTOR);
    backend.discard(SECTOR, SECTOR);
    expect((await content(backend, 1024)).every((byte) => byte === 0)).toBe(true);
    expect(backend.unflushed).toBe(2);
    backend.flush();
    expect(backend.unflushed).toBe(0);
    expect(backend.cut(1)).toEqual(filled(1024, 0));
  });
});

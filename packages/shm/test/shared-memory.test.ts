import { execFileSync } from "node:child_process";
import { closeSync, fstatSync, readFileSync, readSync, writeSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { Worker } from "node:worker_threads";
import { VirtioFault } from "@virtio/core";
import { createMemfd, SharedMemory } from "@virtio/shm";
import { describe, expect, it } from "vitest";

const mapped = (name: string): boolean =>
  readFileSync("/proc/self/maps", "utf8").includes(`/memfd:${name} `);

const faultOf = (run: () => unknown): VirtioFault => {
  try {
    run();
  } catch (error) {
    if (error instanceof VirtioFault) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
};

describe.skipIf(process.platform !== "linux")("shared memory (needs Linux)", () => {
  it("gives zeroed bytes that the file holds", () => {
    using memory = SharedMemory.create("zeroed", 8192);
    const bytes = new Uint8Array(memory.buffer);
    expect(memory.length).toBe(8192);
    expect(memory.buffer.byteLength).toBe(8192);
    expect(bytes.every((byte) => byte === 0)).toBe(true);
    bytes[4097] = 0x5a;
    const read = new Uint8Array(1);
    readSync(memory.fd, read, 0, 1, 4097);
    expect(read[0]).toBe(0x5a);
    writeSync(memory.fd, new Uint8Array([0xa5]), 0, 1, 0);
    expect(bytes[0]).toBe(0xa5);
  });

  it("shows one mapping what another stores, by the descriptor's number", () => {
    using memory = SharedMemory.create("twice", 4096);
    using again = SharedMemory.map(memory.fd, 4096);
    Atomics.store(new Uint32Array(memory.buffer), 3, 0xcafe0001);
    expect(Atomics.load(new Uint32Array(again.buffer), 3)).toBe(0xcafe0001);
    expect(again.buffer).not.toBe(memory.buffer);
    expect(again.buffer).toBe(again.buffer);
  });

  it("is seen by a worker thread of the same process", async () => {
    using memory = SharedMemory.create("worker", 4096);
    const worker = new Worker(
      `const { workerData } = require("node:worker_threads");
       const { writeSync } = require("node:fs");
       writeSync(workerData, Buffer.from([7]), 0, 1, 12);`,
      { eval: true, workerData: memory.fd },
    );
    await new Promise((resolve, reject) => worker.once("exit", resolve).once("error", reject));
    expect(new Uint8Array(memory.buffer)[12]).toBe(7);
  });

  it("unmaps and closes its descriptor on close, once", () => {
    const memory = SharedMemory.create("closing", 4096);
    const { fd } = memory;
    expect(mapped("closing")).toBe(true);
    memory.close();
    memory.close();
    memory.release();
    expect(mapped("closing")).toBe(false);
    expect(() => fstatSync(fd)).toThrow(/EBADF/);
    expect(faultOf(() => memory.buffer)).toMatchObject({ code: "CLOSED" });
  });

  it("closes at the end of a using block", () => {
    {
      using memory = SharedMemory.create("disposed", 4096);
      expect(mapped("disposed")).toBe(true);
      expect(memory.length).toBe(4096);
    }
    expect(mapped("disposed")).toBe(false);
  });

  it("leaves a descriptor that it was given open", () => {
    const fd = createMemfd("borrowed", 4096);
    SharedMemory.map(fd, 4096).close();
    expect(fstatSync(fd).size).toBe(4096);
    closeSync(fd);
  });

  it("keeps released memory valid for as long as a view lives, and then unmaps it", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
    const hold = (): { view: Uint8Array | null; fd: number } => {
      const memory = SharedMemory.create("released", 1 << 20);
      const view = new Uint8Array(memory.buffer, 4096, 4096);
      memory.release();
      return { view, fd: memory.fd };
    };
    const held = hold();
    expect(() => fstatSync(held.fd)).toThrow(/EBADF/);
    for (let i = 0; i < 5; i++) {
      collect();
      await turn();
    }
    if (held.view !== null) held.view[0] = 9;
    expect(held.view?.[0]).toBe(9);
    expect(mapped("released")).toBe(true);
    held.view = null;
    for (let i = 0; i < 100 && mapped("released"); i++) {
      collect();
      await turn();
    }
    expect(mapped("released")).toBe(false);
  });

  it("is not inherited by a child that it was not passed to", () => {
    using memory = SharedMemory.create("private", 4096);
    const listing = execFileSync("ls", ["-l", "/proc/self/fd"], { encoding: "utf8" });
    expect(memory.fd).toBeGreaterThan(2);
    expect(listing).not.toContain("memfd:private");
  });

  it.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])(
    "refuses a length of %s bytes",
    (length) => {
      expect(faultOf(() => SharedMemory.create("bad", length))).toMatchObject({ code: "INVALID" });
      expect(faultOf(() => SharedMemory.map(0, length))).toMatchObject({ code: "INVALID" });
    },
  );

  it("refuses to map more than the file holds, which would be SIGBUS later", () => {
    using memory = SharedMemory.create("short", 4096);
    expect(faultOf(() => SharedMemory.map(memory.fd, 4097)).message).toBe(
      `file descriptor ${memory.fd} holds 4096 bytes, not 4097`,
    );
  });

  it("refuses descriptors that are none", () => {
    expect(faultOf(() => SharedMemory.map(-1, 4096))).toMatchObject({ code: "INVALID" });
    expect(faultOf(() => SharedMemory.map(0x7fff_ffff, 4096))).toMatchObject({ code: "NOT_FOUND" });
  });

  it("refuses names that memfd_create would", () => {
    expect(faultOf(() => createMemfd("x".repeat(250), 4096))).toMatchObject({ code: "INVALID" });
    expect(faultOf(() => createMemfd("a\0b", 4096))).toMatchObject({ code: "INVALID" });
  });

  it("says how much it could not map", () => {
    expect(faultOf(() => SharedMemory.create("huge", 2 ** 50))).toMatchObject({
      message: expect.stringContaining(String(2 ** 50)),
    });
  });
});

describe("where there is no memfd", () => {
  it("can be imported, and says UNSUPPORTED when used", async () => {
    const { vi } = await import("vitest");
    vi.resetModules();
    const platform = Object.getOwnPropertyDescriptor(process, "platform");
    Object.defineProperty(process, "platform", { ...platform, value: "darwin" });
    try {
      const shm = await import("@virtio/shm");
      expect(() => shm.SharedMemory.create("x", 4096)).toThrow(
        /needs Linux \(memfd_create\); this is darwin/,
      );
    } finally {
      Object.defineProperty(process, "platform", { ...platform });
    }
  });
});

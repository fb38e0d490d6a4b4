import { VirtioFault } from "@virtio/core";
import { MemoryBackend } from "@virtio/hypervisor";
import { diskContract } from "@virtio/storage/contract";
import { describe, expect, it } from "vitest";
import { bench, HeldBackend, until } from "./attached.js";

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() % 1_000_000_007);
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

const fault = async (work: Promise<unknown>): Promise<VirtioFault> => {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  if (error instanceof VirtioFault) return error;
  throw new Error(`ended with ${String(error)}`);
};

describe("a vtbd disk keeps the Disk contract", () => {
  const rings = [
    { name: "as it comes" },
    { name: "without indirect tables", indirect: false },
    { name: "with a queue of 4", queueSize: 4 },
    { name: "with a queue of 4, without indirect tables", queueSize: 4, indirect: false },
    { name: "without event indices", eventIdx: false },
    { name: "on a packed ring", packed: true },
    {
      name: "on a packed ring of 7, without indirect tables",
      packed: true,
      queueSize: 7,
      indirect: false,
    },
    {
      name: "on a packed ring of 3, without event indices",
      packed: true,
      queueSize: 3,
      eventIdx: false,
    },
    { name: "in order", features: { IN_ORDER: true } },
    {
      name: "in order on a packed ring of 5, in a drawn order of work",
      packed: true,
      queueSize: 5,
      features: { IN_ORDER: true },
      seed: seed + 2,
    },
    { name: "with notification data", features: { NOTIFICATION_DATA: true } },
    {
      name: "with notification data on a packed ring",
      packed: true,
      features: { NOTIFICATION_DATA: true },
    },
    {
      name: "in order over a backend that takes its time",
      features: { IN_ORDER: true },
      backend: new HeldBackend(8 << 20),
    },
    { name: "on INTx", vectors: 0 },
    { name: "in a drawn order of work", seed },
    { name: "in another drawn order, a queue of 8", seed: seed + 1, queueSize: 8 },
    { name: "over a backend that takes its time", backend: new HeldBackend(8 << 20) },
  ];
  for (const { name, ...options } of rings)
    describe(name, () => {
      const ready = bench(options);
      for (const { name: what, run } of diskContract) it(what, async () => run((await ready).disk));
      it("and breaks no rule", async () => {
        const { rules, machine } = await ready;
        expect(rules.violations).toEqual([]);
        await machine.close();
      });
    });
});

describe("vtblk", () => {
  it("tells size and serial, and prints FreeBSD's line", async () => {
    const { disk, lines, machine } = await bench({ size: 16 << 20, serial: "ABC123" });
    expect([disk.name, disk.ident, disk.sectorSize, disk.mediaSize, disk.readOnly]).toEqual([
      "vtbd0",
      "ABC123",
      512,
      16 << 20,
      false,
    ]);
    expect(lines).toEqual(["16MB (32768 512 byte sectors)"]);
    await machine.close();
  });

  it("keeps a serial of all 20 bytes, which has no terminator", async () => {
    const { disk, machine } = await bench({ serial: "12345678901234567890" });
    expect(disk.ident).toBe("12345678901234567890");
    await machine.close();
  });

  it("does not ask for the serial when told so", async () => {
    const { disk, machine } = await bench({ serial: "ABC123", driver: { noIdent: true } });
    expect(disk.ident).toBe("");
    await machine.close();
  });

  it("knows a read-only device and refuses to write [BLK-OP-3]", async () => {
    const { disk, machine } = await bench({
      backend: new MemoryBackend(1 << 20, { readOnly: true }),
    });
    expect(disk.readOnly).toBe(true);
    expect(await fault(disk.write(0, new Uint8Array(512)))).toMatchObject({
      code: "READ_ONLY",
      errno: "EROFS",
      message: "vtbd0: the disk is read-only",
    });
    await disk.read(0, new Uint8Array(512));
    await machine.close();
  });

  it("says EIO when the device fails a request, logs the block range, and goes on", async () => {
    const backend = new HeldBackend();
    const { disk, lines, machine } = await bench({ backend });
    backend.failing = true;
    expect(await fault(disk.read(4096, new Uint8Array(1024)))).toMatchObject({
      code: "IO",
      errno: "EIO",
      message: "vtbd0: read failed: sectors 8-9, status 1",
    });
    expect(await fault(disk.write(0, new Uint8Array(512)))).toMatchObject({ code: "IO" });
    expect(await fault(disk.flush())).toMatchObject({ code: "IO" });
    expect(lines.slice(1)).toEqual([
      "hard error cmd=read 8-9",
      "hard error cmd=write 0-0",
      "hard error cmd=flush",
    ]);
    backend.failing = false;
    await disk.read(0, new Uint8Array(512));
    await machine.close();
  });

  it("sends a flush on demand when FLUSH is negotiated, and none when it is not [BLK-INIT-1] [BLK-INIT-2] [BLK-INIT-3]", async () => {
    for (const offered of [true, false]) {
      const backend = new HeldBackend();
      const { disk, machine } = await bench({ backend, features: offered ? {} : { FLUSH: false } });
      await disk.write(0, new Uint8Array(512));
      await disk.flush();
      expect(backend.asked).toEqual(offered ? ["write 0", "flush"] : ["write 0"]);
      await machine.close();
    }
  });

  it("waits for room in a full ring, and keeps the order of submission", async () => {
    const backend = new HeldBackend();
    const { disk, machine, rules } = await bench({ backend, queueSize: 8, indirect: false });
    backend.held = true;
    const writes = Array.from({ length: 200 }, (_, i) =>
      disk.write(i * 512, new Uint8Array(512).fill(i)),
    );
    await until(() => backend.waiting === 2);
    expect(backend.asked).toEqual(["write 0", "write 512"]);
    backend.letGo();
    await Promise.all(writes);
    expect(backend.asked).toEqual(Array.from({ length: 200 }, (_, i) => `write ${i * 512}`));
    const last = new Uint8Array(512);
    await disk.read(199 * 512, last);
    expect(last.every((byte) => byte === 199)).toBe(true);
    expect(rules.violations).toEqual([]);
    await machine.close();
  });

  it("bounds the memory that waits in the device's hands, however many requests there are", async () => {
    const backend = new HeldBackend();
    const { disk, machine } = await bench({ backend });
    const free = machine.memory.available;
    backend.held = true;
    const reads = Array.from({ length: 2000 }, () => disk.read(0, new Uint8Array(65536)));
    await until(() => backend.waiting === 64);
    expect(machine.memory.available).toBe(free);
    backend.letGo();
    await Promise.all(reads);
    await machine.close();
  });

  it("uses bytes in guest memory where they are", async () => {
    const backend = new HeldBackend();
    const { disk, machine } = await bench({ backend });
    const region = machine.memory.allocate(65536, 4096);
    region.bytes.fill(0x5a);
    await disk.write(8192, region.bytes);
    const copy = new Uint8Array(65536);
    await disk.read(8192, copy);
    expect(copy.every((byte) => byte === 0x5a)).toBe(true);
    region.bytes.fill(0);
    await disk.read(8192, region.bytes.subarray(512, 1024));
    expect([region.bytes[511], region.bytes[512], region.bytes[1023], region.bytes[1024]]).toEqual([
      0, 0x5a, 0x5a, 0,
    ]);
    await machine.close();
  });

  it("rejects an aborted bounced read at once, never touches its buffer later, and keeps the slot until the device gives it back", async () => {
    const backend = new HeldBackend();
    const { disk, machine } = await bench({ backend, queueSize: 4, indirect: false });
    await disk.write(0, new Uint8Array(512).fill(7));
    backend.held = true;
    const controller = new AbortController();
    const into = new Uint8Array(512);
    const reading = disk.read(0, into, { signal: controller.signal });
    await until(() => backend.waiting === 1);
    controller.abort(new Error("enough"));
    await expect(reading).rejects.toThrow("enough");
    // The ring of 4 descriptors is still taken: the next request waits.
    const next = disk.read(0, new Uint8Array(512));
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(backend.asked).toEqual(["write 0", "read 0"]);
    backend.letGo();
    await next;
    expect(into.every((byte) => byte === 0)).toBe(true);
    await machine.close();
  });

  it("rejects an aborted read into the caller's own guest memory only when the device gave it back", async () => {
    const backend = new HeldBackend();
    const { disk, machine } = await bench({ backend });
    const region = machine.memory.allocate(4096, 4096);
    backend.held = true;
    const controller = new AbortController();
    let over = false;
    const reading = disk
      .read(0, region.bytes, { signal: controller.signal })
      .catch((error: unknown) => {
        over = true;
        return error;
      });
    await until(() => backend.waiting === 1);
    controller.abort(new Error("enough"));
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(over).toBe(false);
    backend.letGo();
    expect(await reading).toMatchObject({ message: "enough" });
    await machine.close();
  });

  it("fails every outstanding request exactly once when the machine goes away", async () => {
    const backend = new HeldBackend();
    const { disk, machine } = await bench({ backend });
    backend.held = true;
    const codes: string[] = [];
    const reads = Array.from({ length: 500 }, () =>
      disk.read(0, new Uint8Array(512)).catch((error: VirtioFault) => {
        codes.push(error.code);
      }),
    );
    await until(() => backend.waiting > 0);
    const closing = machine.close();
    await Promise.all(reads);
    expect(codes).toEqual(new Array(500).fill("CLOSED"));
    backend.letGo();
    await closing;
    expect(await disk.closed).toMatchObject({ code: "CLOSED" });
    expect(await fault(disk.read(0, new Uint8Array(512)))).toMatchObject({ code: "CLOSED" });
  });

  it("gives all its memory back when detached with requests in flight, once the device has reset [CLEANUP-2]", async () => {
    const backend = new HeldBackend();
    const { disk, machine, rules } = await bench({ backend });
    const whole = machine.memory.available;
    backend.held = true;
    const reading = fault(disk.read(0, new Uint8Array(512)));
    await until(() => backend.waiting === 1);
    const detaching = disk.detach();
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(machine.memory.available).toBe(whole);
    backend.letGo();
    await detaching;
    expect(await reading).toMatchObject({ code: "CLOSED", errno: "ENXIO" });
    expect(machine.memory.available).toBe(machine.memory.buffer.byteLength);
    expect(await disk.closed).toBeNull();
    expect(rules.violations).toEqual([]);
    await machine.close();
  });

  it("suspends when what is in flight is over, and takes up what waited", async () => {
    const backend = new HeldBackend();
    const { disk, machine } = await bench({ backend });
    backend.held = true;
    const first = disk.write(0, new Uint8Array(512));
    await until(() => backend.waiting === 1);
    const suspending = disk.suspend();
    const second = disk.write(512, new Uint8Array(512));
    backend.letGo();
    await Promise.all([first, suspending]);
    expect(backend.asked).toEqual(["write 0"]);
    await disk.resume();
    await second;
    expect(backend.asked).toEqual(["write 0", "write 512"]);
    await machine.close();
  });
});

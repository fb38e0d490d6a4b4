// vtblk over virtqueues in the test's hands: several of them, a device that goes away, and the legacy interface.
import { ReservedFeature, VirtioFault } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import { describe, expect, it } from "vitest";
import { until } from "./attached.js";
import { FakeDevice, type FakeOptions, fake } from "./fake-device.js";

const { FLUSH, MQ } = BlockFeature;
const { INDIRECT_DESC } = ReservedFeature;

const several: FakeOptions = { features: [MQ, FLUSH, INDIRECT_DESC], numQueues: 4 };

/** How some work ends: "done", or the code of its fault; each end counted. */
function ends(work: readonly Promise<unknown>[]): { readonly codes: string[]; all: Promise<void> } {
  const codes: string[] = [];
  const all = Promise.all(
    work.map((each) =>
      each.then(
        () => void codes.push("done"),
        (error: unknown) =>
          void codes.push(error instanceof VirtioFault ? `${error.code} ${error.errno}` : "?"),
      ),
    ),
  ).then(() => {});
  return { codes, all };
}

const sector = (fill: number): Uint8Array => new Uint8Array(512).fill(fill);

describe("the request queues of vtblk", () => {
  const counts: readonly (readonly [why: string, options: FakeOptions, queues: number])[] = [
    ["the device has", {}, 4],
    ["the machine has CPUs", { cpus: 2 }, 2],
    ["the option says", { driver: { maxQueues: 3 } }, 3],
    ["the tunable's default says", { numQueues: 65535, cpus: 64 }, 8],
    ["one CPU needs", { cpus: 1 }, 1],
    ["a device without MQ has, whatever its configuration says", { features: [] }, 1],
  ];
  for (const [why, options, count] of counts)
    it(`are as many as ${why}`, async () => {
      const { device } = await fake({ ...several, ...options });
      expect(device.queues.map(({ name }) => name)).toEqual(
        count === 1
          ? ["vtblk0 request"]
          : Array.from({ length: count }, (_, i) => `vtblk0 request ${i}`),
      );
    });

  it("are refused where the device says that there are none", async () => {
    await expect(fake({ ...several, numQueues: 0 })).rejects.toMatchObject({
      code: "DEVICE_MISBEHAVED",
      message: "vtblk0: device misbehaved: num_queues is 0 [virtio 1.4 §5.2.4]",
    });
  });

  it("keep their requests apart, in whatever order they come back", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const numbers = Array.from({ length: 48 }, (_, i) => i);
    const writes = numbers.map((i) => disk.write(i * 1024, new Uint8Array(1024).fill(i + 1)));
    expect(device.queues.map(({ held }) => held.length)).toEqual([12, 12, 12, 12]);
    for (const queue of [...device.queues].reverse()) device.serve(queue);
    await Promise.all(writes);
    for (const i of numbers)
      expect(device.disk.subarray(i * 1024, i * 1024 + 1024).every((b) => b === i + 1)).toBe(true);

    const into = numbers.map(() => new Uint8Array(1024));
    const reads = numbers.map((i) => disk.read(i * 1024, into[i] as Uint8Array));
    for (let turn = 0; device.queues.some(({ held }) => held.length > 0); turn++)
      device.serve(device.queues[(turn * 3) % 4] as (typeof device.queues)[0], 1);
    await Promise.all(reads);
    for (const i of numbers) expect(into[i]?.every((byte) => byte === i + 1)).toBe(true);
  });

  it("ring one doorbell for a batch", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    // Four requests of one transfer each.
    const read = disk.read(0, new Uint8Array(4 * 16384));
    expect(device.queues.map(({ counters }) => counters.kicks)).toEqual([1, 0, 0, 0]);
    expect(device.queues[0]?.held).toHaveLength(4);
    device.prompt = true;
    for (const queue of device.queues) device.serve(queue);
    await read;
  });

  it("make room for each other: nothing waits while one of them has some", async () => {
    const { disk, device } = await fake({ ...several, numQueues: 2 });
    device.prompt = false;
    const [first, second] = device.queues as [(typeof device.queues)[0], (typeof device.queues)[0]];
    // 16 descriptors each.
    const reads = Array.from({ length: 40 }, () => disk.read(0, sector(0)));
    expect([first.held.length, second.held.length]).toEqual([16, 16]);
    device.serve(second);
    await until(() => second.held.length === 8);
    // The first queue is full all the time.
    expect(first.held).toHaveLength(16);
    device.serve(second);
    device.serve(first);
    await Promise.all(reads);
  });

  it("are all quiet when the disk is suspended", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const writes = Array.from({ length: 8 }, (_, i) => disk.write(i * 512, sector(i)));
    let quiet = false;
    const suspending = disk.suspend().then(() => {
      quiet = true;
    });
    const late = disk.write(0, sector(9));
    for (const queue of device.queues) {
      expect([quiet, queue.held.length]).toEqual([false, 2]);
      device.serve(queue);
      await until(() => queue.used === 0);
    }
    await suspending;
    await Promise.all(writes);
    expect(device.queues.map(({ held }) => held.length)).toEqual([0, 0, 0, 0]);
    device.prompt = true;
    await disk.resume();
    await late;
    expect(device.disk[0]).toBe(9);
  });

  it("all fail, each request once, when one of them is broken", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const { codes, all } = ends(Array.from({ length: 8 }, () => disk.read(0, sector(0))));
    device.queues[2]?.fail(new VirtioFault("DEVICE_MISBEHAVED", "used.id 99 is not outstanding"));
    await all;
    expect(codes).toEqual(new Array(8).fill("DEVICE_MISBEHAVED EIO"));
    // What the device still gives back is nobody's.
    for (const queue of device.queues) if (queue.broken === null) device.serve(queue);
    await until(() => device.queues.every(({ broken, used }) => broken !== null || used === 0));
    expect(codes).toHaveLength(8);
    await disk.detach();
    expect(device.memory.available).toBe(device.memory.buffer.byteLength);
  });

  it("give back all memory when there is not enough of it", async () => {
    // Room for the pages that data is bounced through, and for the slots of one queue.
    const options = { ...several, memory: (4 << 20) + 16 * 64 };
    const small = new FakeDevice(options);
    await expect(fake(options, small)).rejects.toMatchObject({ code: "OUT_OF_MEMORY" });
    expect(small.memory.available).toBe(options.memory);
    const one = await fake({ ...options, cpus: 1 });
    expect(one.device.memory.available).toBe(0);
    await one.disk.detach();
    expect(one.device.memory.available).toBe(options.memory);
  });
});

describe("vtblk, when the device goes away", () => {
  for (const [name, numQueues] of [
    ["one queue", 1],
    ["four queues", 4],
  ] as const)
    it(`ends each of 32 requests in flight on ${name} once, and later ones too`, async () => {
      const { disk, device, lines } = await fake({ ...several, numQueues });
      device.prompt = false;
      // One queue has room for 16: the rest waits in the driver.
      const { codes, all } = ends([
        ...Array.from({ length: 31 }, (_, i) => disk.read(i * 512, sector(0))),
        disk.flush(),
      ]);
      device.fail("CLOSED");
      // After the ring is broken, before the driver was told.
      const between = ends([disk.write(0, sector(1))]);
      await all;
      await between.all;
      expect(codes).toEqual(new Array(32).fill("CLOSED ENXIO"));
      expect(between.codes).toEqual(["CLOSED ENXIO"]);
      expect(await disk.closed).toMatchObject({ code: "CLOSED" });
      const later = ends([disk.read(0, sector(0)), disk.write(0, sector(0)), disk.flush()]);
      await later.all;
      expect(later.codes).toEqual(new Array(3).fill("CLOSED ENXIO"));

      await disk.detach();
      expect([codes.length, device.released]).toEqual([32, 1]);
      // No reset was read back: what the device had is never used again.
      expect(lines.at(-1)).toBe(
        "the device went away with requests in flight: their memory is lost",
      );
      expect(device.memory.available).toBeLessThan(device.memory.buffer.byteLength - (4 << 20));
    });

  it("gives all memory back when nothing was in flight", async () => {
    const { disk, device, lines } = await fake(several);
    await disk.write(0, sector(1));
    device.fail("CLOSED");
    expect(await disk.closed).toMatchObject({ code: "CLOSED" });
    await disk.detach();
    expect(device.memory.available).toBe(device.memory.buffer.byteLength);
    expect(lines).toEqual(["1MB (2048 512 byte sectors)"]);
  });

  it("ends a suspend that waits for it", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const { codes, all } = ends([disk.read(0, sector(0))]);
    const suspending = disk.suspend();
    device.fail("CLOSED");
    await all;
    await suspending;
    expect(codes).toEqual(["CLOSED ENXIO"]);
  });

  it("shows no disk when it is gone before the serial number came", async () => {
    for (const told of [true, false]) {
      const attaching = fake({
        ...several,
        driver: { noIdent: false },
        attached: (device) => {
          device.prompt = false;
          // Broken before the request, or while it is in flight.
          if (told) device.fail("CLOSED");
          else setImmediate(() => device.fail("CLOSED"));
        },
      });
      await expect(attaching).rejects.toMatchObject({ code: "CLOSED" });
    }
  });
});

describe("vtblk, when the device has no serial number to give", () => {
  it("does without, and says why", async () => {
    const { lines } = await fake({ driver: { noIdent: false }, usedLength: () => 1 });
    expect(lines).toEqual(["error getting device identifier: 5", "1MB (2048 512 byte sectors)"]);
  });
});

describe("vtblk, when the device needs a reset", () => {
  it("fails what is in flight with EIO, and gives all memory back after the reset", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const { codes, all } = ends(Array.from({ length: 32 }, () => disk.read(0, sector(0))));
    device.fail("NEEDS_RESET");
    await all;
    expect(codes).toEqual(new Array(32).fill("NEEDS_RESET EIO"));
    expect(device.memory.available).toBeLessThan(device.memory.buffer.byteLength);
    await disk.detach();
    expect(device.memory.available).toBe(device.memory.buffer.byteLength);
  });
});

describe("vtblk on the legacy interface", () => {
  const lengths: readonly (readonly [what: string, usedLength: (length: number) => number])[] = [
    ["0", () => 0],
    ["only the status", () => 1],
    ["what is readable too", (length) => length + 528],
    ["nonsense", () => 0xffff_ffff],
  ];
  for (const [what, usedLength] of lengths)
    it(`takes a request for done by its status when used.len says ${what} [BLK-OP-LEGACY-2]`, async () => {
      const { disk } = await fake({ features: [FLUSH], legacy: true, usedLength });
      await disk.write(1024, sector(7));
      const into = sector(0);
      await disk.read(1024, into);
      expect(into.every((byte) => byte === 7)).toBe(true);
      await disk.flush();
    });

  it("gives header, data and status a descriptor each [BLK-FRAME-LEGACY-1]", async () => {
    const { disk, device } = await fake({ features: [FLUSH], legacy: true });
    await disk.write(0, new Uint8Array(16384 + 512));
    await disk.read(0, sector(0));
    await disk.flush();
    // Without SEG_MAX a request has one data segment.
    expect(device.shapes).toEqual([
      [16, 16384, 1],
      [16, 512, 1],
      [16, 512, 1],
      [16, 1],
    ]);
  });
});

describe("vtblk on a modern device", () => {
  it("takes no data that used.len does not cover", async () => {
    const { disk } = await fake({ usedLength: (length) => length - 1 });
    const { codes, all } = ends([disk.read(0, sector(0))]);
    await all;
    expect(codes).toEqual(["IO EIO"]);
  });
});

// Devices that do not answer, or ask for a reset: each request ends once, and the disk works again. Time passes when the test says so.
import { ReservedFeature, VirtioFault } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import { describe, expect, it } from "vitest";
import { until } from "./attached.js";
import { type FakeOptions, fake } from "./fake-device.js";

const { FLUSH, MQ } = BlockFeature;
const several: FakeOptions = {
  features: [MQ, FLUSH, ReservedFeature.INDIRECT_DESC],
  numQueues: 4,
};

const sector = (fill = 0): Uint8Array => new Uint8Array(512).fill(fill);

/** How some work ends, each end counted. */
function ends(work: readonly Promise<unknown>[]): { readonly codes: string[]; all: Promise<void> } {
  const codes: string[] = [];
  const end = (error: unknown): void =>
    void codes.push(error instanceof VirtioFault ? `${error.code} ${error.errno}` : "?");
  const all = Promise.all(work.map((each) => each.then(() => void codes.push("done"), end)));
  return { codes, all: all.then(() => {}) };
}

const timedOut = "TIMED_OUT ETIMEDOUT";

describe("a vtbd disk whose device does not answer", () => {
  it("resets it after 30 s, fails each request once with ETIMEDOUT, and works again", async () => {
    const { disk, device, lines } = await fake(several);
    device.prompt = false;
    const { codes, all } = ends([
      ...Array.from({ length: 31 }, (_, i) => disk.read(i * 512, sector())),
      disk.flush(),
    ]);
    await device.tasks.pass(29_999);
    expect([codes, device.reinits]).toEqual([[], 0]);
    await device.tasks.pass(7502);
    await all;
    expect(codes).toEqual(new Array(32).fill(timedOut));
    expect(lines.at(-1)).toBe("a request timed out after 30 s: resetting the device");
    device.prompt = true;
    await disk.write(512, sector(7));
    const into = sector();
    await disk.read(512, into);
    expect([into[0], device.reinits, codes.length]).toEqual([7, 1, 32]);
    await disk.detach();
    expect(device.memory.available).toBe(device.memory.buffer.byteLength);
  });

  it("fails no request that is younger only because an older one is late, but resets all", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const old = ends([disk.read(0, sector())]);
    await device.tasks.pass(20_000);
    const waiting = Array.from({ length: 8 }, () => disk.read(0, sector()));
    const { codes, all } = ends(waiting);
    await device.tasks.pass(20_000);
    await Promise.all([old.all, all]);
    // What is in flight when the device is reset is lost, however young.
    expect([...old.codes, ...codes]).toEqual(new Array(9).fill(timedOut));
  });

  it("looks no more when nothing is in flight", async () => {
    const { disk, device } = await fake(several);
    await disk.read(0, sector());
    expect(device.tasks.waiting).toBe(1);
    await device.tasks.pass(8000);
    expect(device.tasks.waiting).toBe(0);
    await disk.read(0, sector());
    expect(device.tasks.waiting).toBe(1);
    await disk.detach();
    expect(device.tasks.waiting).toBe(0);
  });

  it("waits as long as the tunable says, or for ever", async () => {
    const { disk, device } = await fake({ driver: { timeout: 2 } });
    device.prompt = false;
    const { codes, all } = ends([disk.read(0, sector())]);
    await device.tasks.pass(2501);
    await all;
    expect(codes).toEqual([timedOut]);
    const patient = await fake({ driver: { timeout: 0 } });
    patient.device.prompt = false;
    const reading = patient.disk.read(0, sector());
    await patient.device.tasks.pass(1_000_000);
    expect(patient.device.reinits).toBe(0);
    for (const queue of patient.device.queues) patient.device.serve(queue);
    await reading;
  });

  it("gives what waited to the device after the reset", async () => {
    const { disk, device } = await fake({ features: [FLUSH] });
    device.prompt = false;
    // A ring of 16 takes 5 of 3 descriptors.
    const { codes, all } = ends(
      Array.from({ length: 7 }, (_, i) => disk.write(512 * i, sector(1))),
    );
    await device.tasks.pass(37_500);
    device.prompt = true;
    for (const queue of device.queues) device.serve(queue);
    await all;
    expect([...codes].sort()).toEqual([...new Array(5).fill(timedOut), "done", "done"]);
  });

  it("fails for good when the device does not reset either", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    device.dead = true;
    const { codes, all } = ends(Array.from({ length: 9 }, () => disk.read(0, sector())));
    await device.tasks.pass(37_500);
    await all;
    expect(codes).toEqual(new Array(9).fill(timedOut));
    expect(await disk.closed).toMatchObject({ message: "the device does not reset" });
    const later = ends([disk.read(0, sector()), disk.flush()]);
    await later.all;
    expect(later.codes).toEqual(new Array(2).fill(timedOut));
    expect(device.tasks.waiting).toBe(0);
  });

  it("gives up after three resets without one request done", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    for (let i = 0; i < 4; i++) {
      const { codes, all } = ends([disk.read(0, sector())]);
      await device.tasks.pass(37_501);
      await all;
      expect(codes).toEqual([timedOut]);
    }
    expect(device.reinits).toBe(3);
    expect(await disk.closed).toMatchObject({ code: "TIMED_OUT" });
  });

  it("is detached only when the reset is over", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const { codes, all } = ends([disk.read(0, sector())]);
    device.fail("NEEDS_RESET");
    await until(() => device.reinits === 1);
    await disk.detach();
    await all;
    expect([codes, device.released]).toEqual([["NEEDS_RESET EIO"], 1]);
    expect(await disk.closed).toBeNull();
    expect(device.memory.available).toBe(device.memory.buffer.byteLength);
  });
});

describe("a vtbd disk whose device needs a reset", () => {
  it("fails what is in flight with EIO, once, and works again", async () => {
    const { disk, device, lines } = await fake(several);
    device.prompt = false;
    for (let round = 0; round < 5; round++) {
      const { codes, all } = ends(Array.from({ length: 32 }, () => disk.read(0, sector())));
      device.fail("NEEDS_RESET");
      await all;
      expect(codes).toEqual(new Array(32).fill("NEEDS_RESET EIO"));
      device.prompt = true;
      await disk.write(round * 512, sector(round + 1));
      device.prompt = false;
    }
    expect(device.reinits).toBe(5);
    expect(lines.slice(1)).toEqual(
      new Array(5).fill("the device needs a reset: resetting the device"),
    );
    expect(device.disk.subarray(0, 5 * 512).filter((_, i) => i % 512 === 0)).toEqual(
      Uint8Array.of(1, 2, 3, 4, 5),
    );
  });

  it("ends a suspend that waits, and takes up what waited when it is resumed", async () => {
    const { disk, device } = await fake(several);
    device.prompt = false;
    const { codes, all } = ends([disk.read(0, sector())]);
    const suspending = disk.suspend();
    const late = disk.write(0, sector(9));
    device.fail("NEEDS_RESET");
    await Promise.all([all, suspending]);
    expect(codes).toEqual(["NEEDS_RESET EIO"]);
    device.prompt = true;
    await disk.resume();
    await late;
    expect(device.disk[0]).toBe(9);
  });

  it("knows the size that the device has afterwards", async () => {
    const { disk, device } = await fake(several);
    device.configure("capacity", 8);
    device.fail("NEEDS_RESET");
    await until(() => disk.mediaSize === 4096);
  });
});

// What vtblk does not assume of a device: that an earlier write is stable, what discarded sectors hold, what a failed command did.
import { BlockConfig, BlockFeature, BlockRequestType, BlockStatus } from "@virtio/core/block";
import { blk, CrashBackend, embedded } from "@virtio/hypervisor";
import { attach } from "@virtio/pci-transport";
import { describe, expect, it, onTestFinished } from "vitest";
import { vtblk } from "../src/index.js";
import { bench, nodeOf, until } from "./attached.js";
import { type Fake, fake } from "./fake-device.js";

const { CONFIG_WCE, DISCARD, FLUSH, WRITE_ZEROES } = BlockFeature;

const SECTOR = 512;
const bytes = (count: number, fill = 0): Uint8Array => new Uint8Array(count).fill(fill);

/** Writes the leaf that switches the cache mode. */
async function switchCache({ sysctl }: Pick<Fake, "sysctl">, mode: 0 | 1): Promise<void> {
  const [leaf] = sysctl.find("vtblk.writecache_mode");
  if (leaf?.write === undefined) throw new Error("the cache mode cannot be switched");
  await leaf.write(String(mode));
}

describe("after vtblk has set the cache to writethrough", () => {
  it("a flush is sent for what was written before [BLK-OP-13]", async () => {
    const given = await fake({ features: [FLUSH, CONFIG_WCE], config: { writeback: 1 } });
    const { disk, device } = given;
    await disk.write(SECTOR, bytes(SECTOR, 7));
    await switchCache(given, 0);
    expect(device.written).toEqual([[BlockConfig.writeback[0], 0]]);
    await disk.flush();
    expect(device.requests).toEqual([
      [BlockRequestType.OUT, 1],
      [BlockRequestType.FLUSH, 0],
    ]);
  });

  it("a flush makes stable what was written before, which the switch did not [BLK-OP-13]", async () => {
    const store = new CrashBackend(64 * SECTOR);
    const seen = await bench({ backend: store });
    onTestFinished(() => seen.machine.close());
    await switchCache(seen, 1);
    await seen.disk.write(0, bytes(64 * SECTOR, 1));
    await switchCache(seen, 0);
    // Of 64 sectors a cut with this seed loses some.
    expect(store.cut(1).includes(0)).toBe(true);
    await seen.disk.flush();
    expect(store.cut(1).every((byte) => byte === 1)).toBe(true);
    expect(seen.rules.violations).toEqual([]);
  });

  it("a flush is sent for what another driver wrote before it was attached [BLK-OP-13]", async () => {
    const store = new CrashBackend(64 * SECTOR);
    const machine = await embedded({ devices: [blk({ backend: store })] });
    onTestFinished(() => machine.close());
    const before = await attach(await nodeOf(machine), vtblk({ writecacheMode: 1 }));
    await before.write(0, bytes(64 * SECTOR, 1));
    await before.detach();
    const disk = await attach(await nodeOf(machine), vtblk({ writecacheMode: 0 }));
    expect(store.cut(1).includes(0)).toBe(true);
    await disk.flush();
    expect(store.cut(1).every((byte) => byte === 1)).toBe(true);
  });
});

describe("of discarded sectors vtblk", () => {
  it("gives what the device gives, at each read, and calls nothing of it an error [BLK-OP-15]", async () => {
    const { disk, device } = await fake({
      features: [DISCARD],
      config: { maxDiscardSectors: 8, maxDiscardSeg: 1, discardSectorAlignment: 1 },
    });
    await disk.write(0, bytes(8 * SECTOR, 1));
    await disk.discard(0, 8 * SECTOR);
    // As they were, zeroes, ones, anything, and not the same twice.
    for (const fill of [1, 0, 0xff, 0x5a, 1]) {
      device.disk.fill(fill, 0, 8 * SECTOR);
      device.requests.length = 0;
      const into = bytes(8 * SECTOR, 0x77);
      await disk.read(0, into);
      expect(into).toEqual(bytes(8 * SECTOR, fill));
      expect(device.requests).toEqual([[BlockRequestType.IN, 0]]);
    }
    await disk.write(0, bytes(SECTOR, 9));
    expect(device.disk.subarray(0, 2 * SECTOR)).toEqual(
      Uint8Array.of(...bytes(SECTOR, 9), ...bytes(SECTOR, 1)),
    );
  });
});

const ranged = [
  {
    method: "discard",
    type: BlockRequestType.DISCARD,
    feature: DISCARD,
    config: { maxDiscardSectors: 8, maxDiscardSeg: 1, discardSectorAlignment: 1 },
  },
  {
    method: "writeZeroes",
    type: BlockRequestType.WRITE_ZEROES,
    feature: WRITE_ZEROES,
    config: { maxWriteZeroesSectors: 8, maxWriteZeroesSeg: 1 },
  },
] as const;

for (const { method, type, feature, config } of ranged)
  describe(`of a ${method} whose parts failed in part vtblk`, () => {
    for (const bad of [0, 1, 2])
      it(`assumes nothing: all of it failed, once, with part ${bad} [BLK-OP-16]`, async () => {
        const { disk, device } = await fake({ features: [feature], config });
        const [queue] = device.queues;
        if (queue === undefined) throw new Error("no queue");
        device.disk.fill(1, 0, 24 * SECTOR);
        device.prompt = false;
        const ends: unknown[] = [];
        const all = disk[method](0, 24 * SECTOR).then(
          () => ends.push("done"),
          ({ code, errno }: { code: string; errno: string }) => ends.push(`${code} ${errno}`),
        );
        for (let part = 0; part < 3; part++) {
          await until(() => queue.held.length > 0);
          device.status = part === bad ? BlockStatus.IOERR : BlockStatus.OK;
          device.serve(queue, 1);
        }
        await all;
        expect(ends).toEqual(["IO EIO"]);
        // Any of it may be done: the device did half of the part that failed.
        device.disk.fill(0, bad * 8 * SECTOR, (bad * 8 + 4) * SECTOR);
        device.status = BlockStatus.OK;
        device.prompt = true;
        const into = bytes(24 * SECTOR);
        await disk.read(0, into);
        expect(into).toEqual(device.disk.subarray(0, 24 * SECTOR));
        // Nothing is taken for done when it is asked for again.
        device.requests.length = 0;
        device.ranges.length = 0;
        await disk[method](0, 24 * SECTOR);
        expect(device.requests).toEqual([0, 1, 2].map(() => [type, 0]));
        expect(device.ranges).toEqual([0, 8, 16].map((sector) => [sector, 8, 0]));
      });
  });

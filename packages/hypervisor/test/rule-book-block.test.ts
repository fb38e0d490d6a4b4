// Each rule of the block device's language is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { BlockFeature, BlockRangeFlag, BlockRequestType, BlockStatus } from "@virtio/core/block";
import { VirtioCapability } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import { MemoryBackend } from "../src/index.js";
import { accepting, BareGuest } from "./bare-guest.js";
import { type Crime, eachFires } from "./crime.js";

const WRITEBACK_AT = 32;

/** A request of each kind that names ranges, with one range more than the device takes. */
const tooMany = (type: BlockRequestType, feature: BlockFeature) => async (g: BareGuest) => {
  await g.run(accepting(feature));
  expect(
    await g.ranged(type, [
      [0, 1],
      [8, 1],
      [16, 1],
    ]),
  ).toBe(BlockStatus.IOERR);
};

const disk = new MemoryBackend(1 << 20);

const crimes: readonly Crime<BareGuest>[] = [
  [
    "BLK-OP-1",
    "goes on after a change of capacity without a look",
    async (g) => {
      await g.run();
      disk.resize(2 << 20);
      await g.settle();
      await g.request(BlockRequestType.IN, 0, 0, 512);
      await g.request(BlockRequestType.IN, 0, 0, 512);
      expect(g.clauses()).toEqual([]);
      await g.reset();
    },
    { backend: disk },
  ],
  [
    "BLK-OP-9",
    "discards more segments than the device takes",
    tooMany(BlockRequestType.DISCARD, BlockFeature.DISCARD),
    { discard: { maxSegments: 2 } },
  ],
  [
    "BLK-OP-10",
    "erases more segments than the device takes",
    tooMany(BlockRequestType.SECURE_ERASE, BlockFeature.SECURE_ERASE),
    { secureErase: { maxSegments: 2 } },
  ],
  [
    "BLK-OP-11",
    "zeroes more segments than the device takes",
    tooMany(BlockRequestType.WRITE_ZEROES, BlockFeature.WRITE_ZEROES),
    { writeZeroes: { maxSegments: 2 } },
  ],
  [
    "BLK-OP-12",
    "writes 2 to writeback",
    async (g) => {
      await g.run(accepting(BlockFeature.CONFIG_WCE, BlockFeature.FLUSH));
      await g.write(WRITEBACK_AT, 1, 2, VirtioCapability.DEVICE);
    },
  ],
  [
    "BLK-OP-12",
    "writes writeback without CONFIG_WCE",
    async (g) => {
      await g.run(accepting(BlockFeature.FLUSH));
      await g.write(WRITEBACK_AT, 1, 0, VirtioCapability.DEVICE);
      expect(await g.field("writeback")).toBe(1);
    },
  ],
  [
    "BLK-OP-14",
    "discards with unmap",
    async (g) => {
      await g.run(accepting(BlockFeature.DISCARD));
      expect(await g.ranged(BlockRequestType.DISCARD, [[0, 1, BlockRangeFlag.UNMAP]])).toBe(
        BlockStatus.UNSUPP,
      );
    },
  ],
];

describe("the rule book of the block device", () => {
  eachFires((device) => BareGuest.start(device), crimes);

  it("keeps them of a guest that does all of this as it should", async () => {
    const backend = new MemoryBackend(1 << 20);
    const g = await BareGuest.start({ backend, secureErase: { maxSegments: 2 } });
    await g.run(
      accepting(
        BlockFeature.DISCARD,
        BlockFeature.WRITE_ZEROES,
        BlockFeature.SECURE_ERASE,
        BlockFeature.CONFIG_WCE,
        BlockFeature.FLUSH,
      ),
    );
    for (const type of [
      BlockRequestType.DISCARD,
      BlockRequestType.WRITE_ZEROES,
      BlockRequestType.SECURE_ERASE,
    ])
      expect(
        await g.ranged(type, [
          [0, 1],
          [8, 1],
        ]),
      ).toBe(BlockStatus.OK);
    await g.write(WRITEBACK_AT, 1, 0, VirtioCapability.DEVICE);
    backend.resize(2 << 20);
    await g.settle();
    await g.request(BlockRequestType.IN, 0, 0, 512);
    expect(await g.field("capacity")).toBe(4096);
    await g.request(BlockRequestType.IN, 4095, 0, 512);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    for (const clause of crimes.map(([id]) => id)) expect(g.rules.kept(clause)).toBeGreaterThan(0);
    await g.machine.close();
  });

  it("takes a read beyond a capacity that shrank for a mistake only when the driver has seen it", async () => {
    const backend = new MemoryBackend(1 << 20);
    const g = await BareGuest.start({ backend });
    await g.run();
    backend.resize(1 << 19);
    await g.settle();
    const beyond = () => g.request(BlockRequestType.IN, 2000, 0, 512);
    expect((await beyond()).status).toBe(BlockStatus.IOERR);
    expect(g.clauses()).toEqual([]);
    expect(await g.field("capacity")).toBe(1024);
    // What was asked for before the look may still come once; the queue is seen empty after it.
    expect((await beyond()).status).toBe(BlockStatus.IOERR);
    expect((await beyond()).status).toBe(BlockStatus.IOERR);
    expect(g.clauses()).toEqual(["BLK-OP-2"]);
    await g.machine.close();
  });

  it("says nothing of a driver that had one request under way when the capacity changed, and left", async () => {
    const backend = new MemoryBackend(1 << 20);
    const g = await BareGuest.start({ backend });
    await g.run();
    backend.resize(2 << 20);
    await g.settle();
    await g.request(BlockRequestType.IN, 0, 0, 512);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    expect(g.rules.kept("BLK-OP-1")).toBe(0);
    await g.machine.close();
  });

  it("asks no look of a driver that was not told, for it did not run", async () => {
    const backend = new MemoryBackend(1 << 20);
    const g = await BareGuest.start({ backend });
    await g.acknowledge();
    await g.negotiate();
    await g.placeQueue();
    await g.enableQueue();
    backend.resize(2 << 20);
    await g.settle();
    await g.status(15);
    for (let n = 0; n < 3; n++) await g.request(BlockRequestType.IN, 0, 0, 512);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
  });

  it("knows no limit of a command that is not offered", async () => {
    const g = await BareGuest.start();
    await g.run();
    expect(await g.ranged(BlockRequestType.SECURE_ERASE, [[0, 1]])).toBe(BlockStatus.UNSUPP);
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
  });
});

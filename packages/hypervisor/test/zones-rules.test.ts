// Each rule of zones is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { DeviceStatus } from "@virtio/core";
import { BlockFeature, BlockRequestType } from "@virtio/core/block";
import { describe, expect, it } from "vitest";
import { accepting, BareGuest, type GuestOptions } from "./bare-guest.js";
import { type Crime, eachFires } from "./crime.js";

const {
  OUT,
  ZONE_APPEND,
  ZONE_REPORT,
  ZONE_OPEN,
  ZONE_CLOSE,
  ZONE_FINISH,
  ZONE_RESET,
  ZONE_RESET_ALL,
} = BlockRequestType;
const { ZONED, DISCARD } = BlockFeature;

/** 16 zones of 64 KiB, of which 60 KiB can be written, 4 KiB at a time. */
const device: GuestOptions = {
  zoned: {
    model: "host-managed",
    zoneSectors: 128,
    zoneCapacity: 120,
    writeGranularity: 4096,
    maxAppendSectors: 64,
    conventional: 1,
  },
};

/** After DRIVER_OK: one request, of `out` bytes of data. */
const asks =
  (type: BlockRequestType, sector: number, out = 0) =>
  async (g: BareGuest) => {
    await g.run(accepting(ZONED));
    await g.request(type, sector, out, type === ZONE_REPORT ? 128 : type === ZONE_APPEND ? 8 : 0);
  };

const settles = async (g: BareGuest, ...features: BlockFeature[]): Promise<void> => {
  await g.acknowledge();
  await g.negotiate(accepting(...features));
};

const crimes: readonly Crime<BareGuest>[] = [
  [
    "BLK-INIT-5",
    "accepts ZONED, and then gives the device up",
    async (g) => {
      await settles(g, ZONED);
      await g.status((await g.readStatus()) | DeviceStatus.FAILED);
    },
    device,
  ],
  [
    "BLK-INIT-6",
    "accepts DISCARD of a host-managed device",
    (g) => settles(g, ZONED, DISCARD),
    device,
  ],
  [
    "BLK-INIT-8",
    "sets FEATURES_OK on a host-managed device without ZONED",
    async (g) => {
      await settles(g);
      expect((await g.readStatus()) & DeviceStatus.FEATURES_OK).toBe(0);
    },
    device,
  ],
  ["BLK-OP-17", "names a zone by its bytes", asks(ZONE_RESET, 128 * 512), device],
  ["BLK-OP-18", "wants a report of what is beyond the end", asks(ZONE_REPORT, 2048), device],
  ...[ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET].map(
    (type): Crime<BareGuest> => [
      "BLK-OP-20",
      `does ${BlockRequestType[type]} to the middle of a zone`,
      asks(type, 129),
      device,
    ],
  ),
  ["BLK-OP-21", "resets all zones from sector 128 on", asks(ZONE_RESET_ALL, 128), device],
  ["BLK-OP-22", "appends to the middle of a zone", asks(ZONE_APPEND, 136, 4096), device],
  ["BLK-OP-23", "appends half a block", asks(ZONE_APPEND, 128, 2048), device],
  ["BLK-OP-24", "appends more than the device takes", asks(ZONE_APPEND, 128, 36_864), device],
  ["BLK-OP-26", "writes half a block", asks(OUT, 128, 2048), device],
  ["BLK-OP-27", "writes from the middle of a block on", asks(OUT, 132, 4096), device],
  ["BLK-OP-28", "writes beyond what a zone holds", asks(OUT, 240, 8192), device],
  [
    "BLK-OP-28",
    "appends to a zone that is full",
    async (g) => {
      await asks(OUT, 128, 120 * 512)(g);
      expect(g.clauses()).toEqual([]);
      await g.request(ZONE_APPEND, 128, 4096, 8);
    },
    device,
  ],
];

describe("the rule book of zones", () => {
  eachFires((options) => BareGuest.start(options), crimes);

  it("keeps them of a guest that does all of this as it should", async () => {
    const g = await BareGuest.start(device);
    await settles(g, ZONED);
    await g.reset();
    await g.acknowledge();
    await g.status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FAILED);
    await g.run(accepting(ZONED));
    for (const [type, sector, out] of [
      [ZONE_REPORT, 2047, 0],
      [OUT, 3, 512],
      [OUT, 128, 4096],
      [ZONE_APPEND, 128, 4096],
      [ZONE_OPEN, 128, 0],
      [ZONE_CLOSE, 128, 0],
      [ZONE_OPEN, 128, 0],
      [ZONE_FINISH, 128, 0],
      [ZONE_RESET, 128, 0],
      [ZONE_RESET_ALL, 0, 0],
    ] as const)
      await asksOn(g, type, sector, out);
    expect(g.clauses()).toEqual([]);
    for (const clause of new Set(crimes.map(([id]) => id)))
      expect([clause, g.rules.kept(clause) > 0]).toEqual([clause, true]);
    await g.machine.close();
  });

  it("says nothing of zones where none were negotiated, or none show", async () => {
    for (const model of ["host-aware", "none"] as const) {
      const g = await BareGuest.start({ zoned: { model, zoneSectors: 128 } });
      await g.run(accepting(DISCARD));
      await asksOn(g, OUT, 127, 1024);
      await asksOn(g, ZONE_RESET, 5, 0);
      await g.status(0);
      expect(g.clauses()).toEqual([]);
      await g.machine.close();
    }
  });

  it("lets what a host-aware zone holds be written over", async () => {
    const g = await BareGuest.start({ zoned: { model: "host-aware", zoneSectors: 128 } });
    await g.run(accepting(ZONED, DISCARD));
    await asksOn(g, OUT, 128, 128 * 512);
    await asksOn(g, OUT, 140, 512);
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
  });
});

const asksOn = async (g: BareGuest, type: number, sector: number, out: number): Promise<void> => {
  const into = type === ZONE_REPORT ? 128 : type === ZONE_APPEND ? 8 : 0;
  await g.request(type, sector, out, into);
};

// The zones of the block device's model against the device clauses of virtio 1.4 §5.2, driven by hand.
import { DeviceStatus } from "@virtio/core";
import { BlockFeature, BlockRequestType, BlockStatus, BlockZoneState } from "@virtio/core/block";
import { VirtioCapability } from "@virtio/core/pci";
import { afterEach, describe, expect, it } from "vitest";
import {
  blk,
  type EmbeddedBlkOptions,
  embedded,
  FaultBackend,
  MemoryBackend,
  type ZonedCharacteristics,
} from "../src/index.js";
import { accepting, BareGuest, type GuestOptions } from "./bare-guest.js";

const {
  IN,
  OUT,
  DISCARD,
  WRITE_ZEROES,
  SECURE_ERASE,
  ZONE_APPEND,
  ZONE_REPORT,
  ZONE_OPEN,
  ZONE_CLOSE,
  ZONE_FINISH,
  ZONE_RESET,
  ZONE_RESET_ALL,
} = BlockRequestType;
const {
  OK,
  IOERR,
  UNSUPP,
  ZONE_INVALID_CMD: INVALID,
  ZONE_UNALIGNED_WP: UNALIGNED,
  ZONE_OPEN_RESOURCE: NO_OPEN,
  ZONE_ACTIVE_RESOURCE: NO_ACTIVE,
} = BlockStatus;
const { NOT_WP, EMPTY, IOPEN, EOPEN, CLOSED, RDONLY, FULL, OFFLINE } = BlockZoneState;
const { ZONED } = BlockFeature;

/** Sectors of a zone, of a disk of 16. */
const ZONE = 128;
const zone = (n: number): number => n * ZONE;

let guest: BareGuest;
afterEach(() => guest.machine.close());

const start = async (
  zoned: Partial<ZonedCharacteristics>,
  options: GuestOptions = {},
  ...features: BlockFeature[]
): Promise<BareGuest> => {
  guest = await BareGuest.start({
    zoned: { model: "host-managed", zoneSectors: ZONE, ...zoned },
    ...options,
  });
  await guest.run(accepting(ZONED, ...features));
  return guest;
};

const status = async (type: number, sector: number, sectors = 0): Promise<number> =>
  (await guest.request(type, sector, sectors * 512, 0)).status;
/** Appends, and says where: a status that is not OK is negative. */
const append = async (sector: number, sectors: number): Promise<number> => {
  const { status } = await guest.request(ZONE_APPEND, sector, sectors * 512, 8);
  return status === OK
    ? Number(new DataView(guest.machine.memory.buffer, guest.data.offset).getBigUint64(512, true))
    : -status;
};

/** State, sectors written, and capacity of zones from the one of `sector` on, at most 8. */
const report = async (sector: number, count = 1): Promise<number[][]> => {
  const { status } = await guest.request(ZONE_REPORT, sector, 0, 64 + 64 * count);
  expect(status).toBe(OK);
  const words = new DataView(guest.machine.memory.buffer, guest.data.offset + 512);
  const zones = Number(words.getBigUint64(0, true));
  expect(zones).toBeLessThanOrEqual(count);
  return Array.from({ length: zones }, (_, i) => {
    const at = 64 + 64 * i;
    const [capacity = 0, start = 0, wp = 0] = [0, 8, 16].map((field) =>
      Number(words.getBigUint64(at + field, true)),
    );
    expect(start).toBe(zone(Math.floor(sector / ZONE) + i));
    return [words.getUint8(at + 25), wp - start, capacity];
  });
};
const state = async (n: number): Promise<number> => (await report(zone(n)))[0]?.[0] ?? -1;
const bytes = async (sector: number, sectors: number): Promise<number[]> => {
  expect((await guest.request(IN, sector, 0, sectors * 512)).status).toBe(OK);
  return Array.from({ length: sectors }, (_, i) => guest.data.bytes[512 + i * 512] ?? -1);
};
/** What the next write or append writes. */
const fill = (value: number): void => {
  guest.data.bytes.fill(value, 512);
};

describe("what a zoned device offers", () => {
  it("is ZONED, its model and its limits", async () => {
    const limits = { maxOpen: 3, maxActive: 4, maxAppendSectors: 64, writeGranularity: 4096 };
    const g = await start(limits);
    const fields = {
      zoneSectors: ZONE,
      maxOpenZones: 3,
      maxActiveZones: 4,
      maxAppendSectors: 64,
      writeGranularity: 4096,
      zonedModel: 1,
    } as const;
    for (const [name, value] of Object.entries(fields))
      expect([name, await g.field(name as keyof typeof fields)]).toEqual([name, value]);
    for (const unused of [93, 94, 95])
      expect(await g.read(unused, 1, VirtioCapability.DEVICE)).toBe(0);
  });

  it("is an append of no more than a request carries", async () => {
    const features = { SIZE_MAX: true };
    const g = await start({}, { queueSize: 8, sizeMax: 4096, features });
    expect(await g.field("maxAppendSectors")).toBe((6 * 4096) / 512);
  });

  it("is nothing of it without zones, and nothing but the model of a drive-managed disk", async () => {
    guest = await BareGuest.start();
    expect((((await guest.offered())[0] ?? 0) >>> ZONED) & 1).toBe(0);
    await guest.machine.close();
    const g = await start({ model: "none" });
    expect([await g.field("zonedModel"), await g.field("zoneSectors")]).toEqual([0, 0]);
    expect(await status(ZONE_RESET_ALL, 0)).toBe(UNSUPP);
    expect(await status(OUT, 77, 1)).toBe(OK);
  });

  it("is refused where it makes no sense", async () => {
    guest = await BareGuest.start();
    const zoned = (what: Partial<ZonedCharacteristics>, more: EmbeddedBlkOptions = {}) =>
      embedded({
        devices: [
          blk({
            size: 1 << 20,
            zoned: { model: "host-managed", zoneSectors: ZONE, ...what },
            ...more,
          }),
        ],
      });
    for (const what of [
      { zoneSectors: 0 },
      { zoneSectors: 12, writeGranularity: 4096 },
      { zoneCapacity: 129 },
      { zoneCapacity: 120, model: "host-aware" },
      { writeGranularity: 768 },
      { writeGranularity: 0 },
    ] satisfies Partial<ZonedCharacteristics>[])
      await expect(zoned(what)).rejects.toMatchObject({ code: "INVALID" });
    for (const more of [
      {
        sizeMax: 512,
        queueSize: 8,
        zoned: { model: "host-managed", zoneSectors: ZONE, maxAppendSectors: 7 },
      },
      { secureErase: { alignment: 64 } },
    ] as const)
      await expect(zoned({}, more)).rejects.toMatchObject({ code: "INVALID" });
    for (const legacy of ["on", "transitional"] as const)
      await expect(zoned({}, { legacy })).rejects.toMatchObject({ code: "UNSUPPORTED" });
  });
});

describe("a driver that does not accept ZONED", () => {
  it("is refused by a host-managed device, and gets a disk as any other of a host-aware one", async () => {
    for (const [model, agreed] of [
      ["host-managed", 0],
      ["host-aware", DeviceStatus.FEATURES_OK],
      ["none", DeviceStatus.FEATURES_OK],
    ] as const) {
      guest = await BareGuest.start({ zoned: { model, zoneSectors: ZONE } });
      await guest.acknowledge();
      expect(await guest.field("zonedModel")).toBe(
        ["none", "host-managed", "host-aware"].indexOf(model),
      );
      await guest.negotiate(accepting());
      expect((await guest.readStatus()) & DeviceStatus.FEATURES_OK).toBe(agreed);
      const hidden = model === "host-managed" ? ZONE : 0;
      expect(await guest.field("zoneSectors")).toBe(hidden);
      if (agreed === 0) {
        await guest.machine.close();
        continue;
      }
      await guest.run(accepting());
      for (const type of [15, 16, 18, 20, 22, 24, 26])
        expect((await guest.request(type, 0, 0, 128)).status).toBe(UNSUPP);
      fill(7);
      expect(await status(OUT, zone(1) - 4, 8)).toBe(OK);
      expect(await bytes(zone(1) - 4, 8)).toEqual(new Array(8).fill(7));
      await guest.machine.close();
    }
    guest = await BareGuest.start();
  });
});

describe("the write pointer of a sequential zone", () => {
  it("goes on with each write and append, and what lies behind it reads as zeroes", async () => {
    await start({ zoneCapacity: 100 });
    expect(await report(zone(2))).toEqual([[EMPTY, 0, 100]]);
    expect(await bytes(zone(2), 4)).toEqual([0, 0, 0, 0]);
    fill(1);
    expect(await status(OUT, zone(2), 2)).toBe(OK);
    fill(2);
    expect(await append(zone(2), 1)).toBe(zone(2) + 2);
    expect(await report(zone(2) + 77)).toEqual([[IOPEN, 3, 100]]);
    expect(await bytes(zone(2), 5)).toEqual([1, 1, 2, 0, 0]);
  });

  it("is where writes go, in whole granularity, and no further than the zone's capacity", async () => {
    await start({ zoneCapacity: 96, writeGranularity: 4096 });
    expect(await status(OUT, zone(1) + 8, 8)).toBe(UNALIGNED);
    expect(await status(OUT, zone(1), 7)).toBe(UNALIGNED);
    expect(await status(OUT, zone(1), 104)).toBe(INVALID);
    expect(await status(OUT, zone(1), 88)).toBe(OK);
    expect(await status(OUT, zone(1), 8)).toBe(UNALIGNED);
    expect(await append(zone(1), 16)).toBe(-INVALID);
    expect(await append(zone(1), 8)).toBe(zone(1) + 88);
    expect(await report(zone(1))).toEqual([[FULL, 96, 96]]);
    expect(await status(OUT, zone(1) + 96, 8)).toBe(INVALID);
    expect(await append(zone(1), 8)).toBe(-INVALID);
  });

  it("is not passed by what crosses the end of a zone", async () => {
    await start({});
    expect(await status(OUT, zone(1), 100)).toBe(OK);
    expect(await status(OUT, zone(1) + 100, 29)).toBe(INVALID);
    expect((await guest.request(IN, zone(2) - 1, 0, 1024)).status).toBe(INVALID);
  });

  it("is moved by no write that is refused, and by none of no data", async () => {
    await start({});
    expect(await status(OUT, zone(1) + 1, 1)).toBe(UNALIGNED);
    expect(await status(OUT, zone(1), 0)).toBe(OK);
    expect(await report(zone(1))).toEqual([[EMPTY, 0, ZONE]]);
  });

  it("is passed by the writes of a host-aware zone, which are taken anywhere", async () => {
    await start({ model: "host-aware" });
    fill(3);
    expect(await status(OUT, zone(1) + 8, 4)).toBe(OK);
    expect(await report(zone(1))).toEqual([[IOPEN, 12, ZONE]]);
    expect(await status(OUT, zone(1), 2)).toBe(OK);
    expect(await report(zone(1))).toEqual([[IOPEN, 12, ZONE]]);
    expect(await status(ZONE_FINISH, zone(1))).toBe(OK);
    expect(await bytes(zone(1) + 11, 3)).toEqual([3, 0, 0]);
    expect(await status(OUT, zone(1) + 20, 1)).toBe(OK);
    expect(await bytes(zone(1) + 20, 2)).toEqual([3, 0]);
    expect(await append(zone(2), 1)).toBe(-INVALID);
    fill(5);
    expect(await status(OUT, zone(4) - 2, 4)).toBe(OK);
    expect(await bytes(zone(4) - 2, 5)).toEqual([5, 5, 5, 5, 0]);
  });

  it("stays over a reset of the device", async () => {
    await start({});
    await status(OUT, zone(1), 5);
    await guest.run(accepting(ZONED));
    expect(await report(zone(1))).toEqual([[IOPEN, 5, ZONE]]);
  });

  it("is taken back by a reset, and nothing is left of what was written", async () => {
    await start({});
    fill(9);
    await status(OUT, zone(1), 5);
    expect(await status(ZONE_RESET, zone(1))).toBe(OK);
    expect(await report(zone(1))).toEqual([[EMPTY, 0, ZONE]]);
    expect(await bytes(zone(1), 5)).toEqual([0, 0, 0, 0, 0]);
  });

  it("is the same over a backend that takes its time", async () => {
    const backend = new FaultBackend(new MemoryBackend(1 << 20), () => Promise.resolve());
    await start({}, { backend });
    fill(6);
    expect(await append(zone(1), 2)).toBe(zone(1));
    expect(await bytes(zone(1), 3)).toEqual([6, 6, 0]);
  });
});

describe("the state of a zone", () => {
  const prepare: Readonly<Record<string, () => Promise<unknown>>> = {
    EMPTY: async () => {},
    IOPEN: () => status(OUT, zone(1), 1),
    EOPEN: async () => [await status(OUT, zone(1), 1), await status(ZONE_OPEN, zone(1))],
    CLOSED: async () => [await status(OUT, zone(1), 1), await status(ZONE_CLOSE, zone(1))],
    FULL: async () => [await status(OUT, zone(1), 1), await status(ZONE_FINISH, zone(1))],
    RDONLY: async () => {},
    OFFLINE: async () => {},
  };
  /** By state: status and next state of open, close, finish, reset, reset all. */
  const table: Readonly<Record<string, readonly (readonly [number, number])[]>> = {
    EMPTY: [
      [OK, EOPEN],
      [INVALID, EMPTY],
      [INVALID, EMPTY],
      [OK, EMPTY],
      [OK, EMPTY],
    ],
    IOPEN: [
      [OK, EOPEN],
      [OK, CLOSED],
      [OK, FULL],
      [OK, EMPTY],
      [OK, EMPTY],
    ],
    EOPEN: [
      [OK, EOPEN],
      [OK, CLOSED],
      [OK, FULL],
      [OK, EMPTY],
      [OK, EMPTY],
    ],
    CLOSED: [
      [OK, EOPEN],
      [OK, CLOSED],
      [INVALID, CLOSED],
      [OK, EMPTY],
      [OK, EMPTY],
    ],
    FULL: [
      [INVALID, FULL],
      [INVALID, FULL],
      [OK, FULL],
      [OK, EMPTY],
      [OK, EMPTY],
    ],
    RDONLY: [
      [INVALID, RDONLY],
      [INVALID, RDONLY],
      [INVALID, RDONLY],
      [INVALID, RDONLY],
      [OK, RDONLY],
    ],
    OFFLINE: [
      [INVALID, OFFLINE],
      [INVALID, OFFLINE],
      [INVALID, OFFLINE],
      [INVALID, OFFLINE],
      [OK, OFFLINE],
    ],
  };
  for (const [name, row] of Object.entries(table))
    it(`${name} is changed by commands as §5.2.6 has it, and by no other`, async () => {
      const special =
        name === "RDONLY" ? { readOnly: [1] } : name === "OFFLINE" ? { offline: [1] } : {};
      for (const [i, type] of [
        ZONE_OPEN,
        ZONE_CLOSE,
        ZONE_FINISH,
        ZONE_RESET,
        ZONE_RESET_ALL,
      ].entries()) {
        await start(special);
        await prepare[name]?.();
        expect(await state(1)).toBe(BlockZoneState[name as keyof typeof BlockZoneState]);
        const answer = await status(type, type === ZONE_RESET_ALL ? 0 : zone(1));
        expect([BlockRequestType[type], answer, await state(1)]).toEqual([
          BlockRequestType[type],
          ...(row[i] ?? []),
        ]);
        await guest.machine.close();
      }
      guest = await BareGuest.start();
    });

  it("of an opened zone that nothing was written to is EMPTY when it is closed", async () => {
    await start({});
    await status(ZONE_OPEN, zone(1));
    expect(await status(ZONE_CLOSE, zone(1))).toBe(OK);
    expect(await state(1)).toBe(EMPTY);
  });

  it("NOT_WP is a conventional zone's, which is written anywhere and takes no command", async () => {
    await start({ conventional: 2, zoneCapacity: 64 });
    expect(await report(0, 3)).toEqual([
      [NOT_WP, 0, ZONE],
      [NOT_WP, 0, ZONE],
      [EMPTY, 0, 64],
    ]);
    fill(4);
    expect(await status(OUT, zone(1) - 3, 6)).toBe(OK);
    expect(await bytes(zone(1) - 3, 6)).toEqual([4, 4, 4, 4, 4, 4]);
    for (const type of [ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET])
      expect(await status(type, 0)).toBe(INVALID);
    expect(await append(0, 1)).toBe(-INVALID);
    expect(await status(OUT, zone(2) - 1, 2)).toBe(INVALID);
    expect(await status(ZONE_RESET_ALL, 0)).toBe(OK);
    expect(await state(0)).toBe(NOT_WP);
  });

  it("RDONLY lets it be read, OFFLINE nothing", async () => {
    await start({ readOnly: [1], offline: [2] });
    for (const n of [1, 2]) {
      expect(await status(OUT, zone(n), 1)).toBe(INVALID);
      expect(await append(zone(n), 1)).toBe(-INVALID);
    }
    expect((await guest.request(IN, zone(1), 0, 512)).status).toBe(OK);
    expect((await guest.request(IN, zone(2), 0, 512)).status).toBe(INVALID);
  });

  it("is asked for by the zone's first sector", async () => {
    await start({});
    for (const type of [ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET])
      for (const sector of [zone(1) + 1, zone(16), 0x7fff_ff80])
        expect(await status(type, sector)).toBe(INVALID);
    expect(await append(zone(1) + 8, 1)).toBe(-INVALID);
  });
});

describe("a limit", () => {
  it("of open zones closes one that is open implicitly, and refuses when there is none", async () => {
    await start({ maxOpen: 2 });
    await status(OUT, zone(1), 1);
    await status(OUT, zone(2), 1);
    expect(await status(OUT, zone(3), 1)).toBe(OK);
    expect([await state(1), await state(2), await state(3)]).toEqual([CLOSED, IOPEN, IOPEN]);
    expect(await status(ZONE_OPEN, zone(4))).toBe(OK);
    expect(await status(ZONE_OPEN, zone(5))).toBe(OK);
    expect([await state(2), await state(3)]).toEqual([CLOSED, CLOSED]);
    expect(await status(ZONE_OPEN, zone(6))).toBe(NO_OPEN);
    expect(await status(OUT, zone(6), 1)).toBe(NO_OPEN);
    expect(await append(zone(1), 1)).toBe(-NO_OPEN);
    expect([await state(6), await state(1)]).toEqual([EMPTY, CLOSED]);
  });

  it("of active zones refuses, whatever is open", async () => {
    await start({ maxOpen: 2, maxActive: 2 });
    await status(OUT, zone(1), 1);
    await status(ZONE_CLOSE, zone(1));
    await status(OUT, zone(2), 1);
    for (const refused of [
      () => status(OUT, zone(3), 1),
      () => status(ZONE_OPEN, zone(3)),
      async () => -(await append(zone(3), 1)),
    ])
      expect(await refused()).toBe(NO_ACTIVE);
    expect(await state(3)).toBe(EMPTY);
    expect(await status(OUT, zone(1) + 1, 1)).toBe(OK);
    await status(ZONE_FINISH, zone(1));
    expect(await status(ZONE_OPEN, zone(3))).toBe(OK);
  });

  it("of an append is an error of its own, or no append at all", async () => {
    await start({ maxAppendSectors: 4 });
    expect(await append(zone(1), 5)).toBe(-INVALID);
    expect(await append(zone(1), 4)).toBe(zone(1));
    await guest.machine.close();
    await start({ maxAppendSectors: 0 });
    expect(await append(zone(1), 1)).toBe(-UNSUPP);
  });
});

describe("a report", () => {
  it("has as many zones as there is room for, and as there are, the last one smaller", async () => {
    await start({}, { backend: new MemoryBackend((zone(3) + 40) * 512) });
    expect(await report(zone(1) + 5, 2)).toHaveLength(2);
    expect(await report(zone(1), 8)).toEqual([
      [EMPTY, 0, ZONE],
      [EMPTY, 0, ZONE],
      [EMPTY, 0, 40],
    ]);
    expect((await guest.request(ZONE_REPORT, 0, 0, 64)).status).toBe(OK);
    expect((await guest.request(ZONE_REPORT, 0, 0, 63)).status).toBe(INVALID);
    expect((await guest.request(ZONE_REPORT, zone(3) + 40, 0, 128)).status).toBe(INVALID);
  });

  it("follows a disk that grows", async () => {
    const backend = new MemoryBackend(zone(2) * 512);
    await start({}, { backend });
    await status(OUT, zone(1), 3);
    backend.resize(zone(3) * 512);
    await guest.settle();
    expect(await report(0, 8)).toEqual([
      [EMPTY, 0, ZONE],
      [IOPEN, 3, ZONE],
      [EMPTY, 0, ZONE],
    ]);
  });
});

describe("other commands", () => {
  it("leave zones that must be written in order alone, and a secure erase empties whole ones", async () => {
    await start(
      { conventional: 1 },
      { secureErase: {} },
      BlockFeature.DISCARD,
      BlockFeature.WRITE_ZEROES,
      BlockFeature.SECURE_ERASE,
    );
    expect(await guest.field("secureEraseSectorAlignment")).toBe(ZONE);
    for (const type of [DISCARD, WRITE_ZEROES]) {
      expect(await guest.ranged(type, [[0, 8]])).toBe(OK);
      expect(await guest.ranged(type, [[zone(1), 8]])).toBe(INVALID);
    }
    await status(OUT, zone(1), 1);
    await status(OUT, zone(2), 1);
    expect(await guest.ranged(SECURE_ERASE, [[zone(1), ZONE - 1]])).toBe(INVALID);
    expect(await guest.ranged(SECURE_ERASE, [[zone(1) + 1, ZONE]])).toBe(INVALID);
    expect(await guest.ranged(SECURE_ERASE, [[0, ZONE]])).toBe(INVALID);
    expect(await state(1)).toBe(IOPEN);
    expect(await guest.ranged(SECURE_ERASE, [[zone(1), 2 * ZONE]])).toBe(OK);
    expect([await state(1), await state(2)]).toEqual([EMPTY, EMPTY]);
  });

  it("change nothing of a device that is read-only", async () => {
    await start({}, { readOnly: true });
    for (const type of [OUT, ZONE_OPEN, ZONE_RESET, ZONE_RESET_ALL])
      expect(await status(type, 0, type === OUT ? 1 : 0)).toBe(IOERR);
    expect(await append(0, 1)).toBe(-IOERR);
    expect(await state(0)).toBe(EMPTY);
  });
});

// vtblk on zoned disks of the embedded machine: what it does by the rules, and what it refuses before the device sees it.
import type { Disk, Zone, ZonedDisk } from "@virtio/core";
import { BlockConfig, BlockFeature } from "@virtio/core/block";
import {
  blk,
  embedded,
  FaultBackend,
  MemoryBackend,
  RuleBook,
  type ZonedCharacteristics,
} from "@virtio/hypervisor";
import { attach } from "@virtio/pci-transport";
import { diskContract } from "@virtio/storage/contract";
import { describe, expect, it, onTestFinished } from "vitest";
import { vtblk } from "../src/index.js";
import { type Bench, bench, HeldBackend, nodeOf, until } from "./attached.js";
import { fake } from "./fake-device.js";
import {
  CAPACITY,
  data,
  GRANULARITY,
  generator,
  KIB,
  like,
  type Options,
  outcome,
  read,
  start,
  ZONE,
  zone,
  zoned,
} from "./zoned-disk.js";

/** Condition and bytes written of some zones. */
const shown = (zones: readonly Zone[]): [string, number | null][] =>
  zones.map(({ condition, writePointer, position }) => [
    condition,
    writePointer === null ? null : writePointer - position,
  ]);

/** Does what can be done with zones, as it should be done. */
async function useAll({ disk, zones }: { disk: Disk; zones: ZonedDisk }): Promise<void> {
  await disk.write(zone(1), data(2 * GRANULARITY, 3));
  await Promise.all(Array.from({ length: 5 }, () => zones.append(zone(2), data(GRANULARITY))));
  await disk.write(zone(3), data(CAPACITY, 4));
  await zones.report(zone(5) + 512, 3);
  await zones.open(zone(4));
  await zones.close(zone(4));
  await zones.open(zone(4));
  await zones.finish(zone(4));
  await zones.reset(zone(1));
  await zones.resetAll();
}

/** Rules that hold of everything that `useAll` does, and what breaks each. */
const kept: readonly (readonly [
  clause: string,
  what: string,
  refused: ((disk: Disk, zones: ZonedDisk) => Promise<unknown>)[],
])[] = [
  [
    "BLK-OP-17",
    "names zones by 512-byte sectors",
    [(_, zones) => zones.reset(zone(1) + 100), (_, zones) => zones.open(zone(16))],
  ],
  [
    "BLK-OP-18",
    "asks for reports from a sector of the first zone on",
    [(_, zones) => zones.report(zone(16), 1), (_, zones) => zones.report(-512, 1)],
  ],
  [
    "BLK-OP-20",
    "opens, closes, finishes and resets zones by their first sector",
    (["open", "close", "finish", "reset"] as const).map(
      (what) => (_: Disk, zones: ZonedDisk) => zones[what](zone(1) + GRANULARITY),
    ),
  ],
  ["BLK-OP-21", "resets all zones with sector 0", []],
  [
    "BLK-OP-22",
    "appends to a zone by its first sector",
    [(_, zones) => zones.append(zone(1) + GRANULARITY, data(GRANULARITY))],
  ],
  [
    "BLK-OP-23",
    "appends whole granularity",
    [(_, zones) => zones.append(zone(1), data(512)), (_, zones) => zones.append(zone(1), data(0))],
  ],
  [
    "BLK-OP-24",
    "appends no more than the device takes",
    [(_, zones) => zones.append(zone(1), data(9 * GRANULARITY))],
  ],
  [
    "BLK-OP-26",
    "writes whole granularity",
    [(disk) => disk.write(zone(1), data(GRANULARITY + 512))],
  ],
  ["BLK-OP-27", "writes from whole granularity on", [(disk) => disk.write(512, data(GRANULARITY))]],
  [
    "BLK-OP-28",
    "writes nothing beyond what a zone holds",
    [
      (disk) => disk.write(zone(1), data(CAPACITY + GRANULARITY)),
      (disk) => disk.write(zone(1) + CAPACITY, data(GRANULARITY)),
      (disk) => disk.write(zone(2) - GRANULARITY, data(2 * GRANULARITY)),
    ],
  ],
];

describe("vtblk on a host-managed disk", () => {
  for (const [clause, what, refused] of kept)
    it(`${what} [${clause}]`, async () => {
      const { disk, zones, rules } = await start();
      await useAll({ disk, zones });
      expect(rules.kept(clause)).toBeGreaterThan(0);
      for (const crime of refused) expect(await outcome(crime(disk, zones))).toBe("INVALID");
      expect(rules.violations).toEqual([]);
    });

  it("keeps every rule over packed rings, several queues and a drawn order of work", async () => {
    for (const options of [
      { packed: true },
      { queues: 4 },
      { indirect: false },
      { seed: 7, queues: 3 },
    ]) {
      const seen = await start({ conventional: 1 }, options);
      await useAll(seen);
      await seen.disk.write(512, data(512));
      expect(seen.rules.violations).toEqual([]);
    }
  });

  it("accepts no DISCARD of it [BLK-INIT-6]", async () => {
    const { disk, rules } = await start();
    expect(disk.can.discard).toBe(false);
    expect(await outcome(disk.discard(0, 512))).toBe("UNSUPPORTED");
    expect(rules.kept("BLK-INIT-6")).toBeGreaterThan(0);
    expect(rules.violations).toEqual([]);
  });

  it("shows what its zones are, and what becomes of them", async () => {
    const { disk, zones, lines } = await start({
      conventional: 2,
      maxOpen: 3,
      maxActive: 4,
      offline: [5],
      readOnly: [6],
    });
    expect(lines).toContain("host-managed: 16 zones of 65536 bytes");
    expect([zones.model, zones.zoneSize, zones.maxOpen, zones.maxActive]).toEqual([
      "host-managed",
      ZONE,
      3,
      4,
    ]);
    expect([zones.maxAppend, zones.writeGranularity]).toEqual([32 * KIB, GRANULARITY]);
    await disk.write(zone(2), data(GRANULARITY, 7));
    await zones.open(zone(3));
    expect(await zones.append(zone(3), data(GRANULARITY, 8))).toBe(zone(3));
    expect(await zones.append(zone(3), data(GRANULARITY, 9))).toBe(zone(3) + GRANULARITY);
    await zones.close(zone(3));
    await disk.write(zone(4), data(CAPACITY));
    expect(shown(await zones.report(zone(1) + 512, 6))).toEqual([
      ["not-write-pointer", null],
      ["implicit-open", GRANULARITY],
      ["closed", 2 * GRANULARITY],
      ["full", null],
      ["offline", null],
      ["read-only", null],
    ]);
    const [first] = await zones.report(zone(2), 1);
    expect(first).toMatchObject({
      position: zone(2),
      length: ZONE,
      capacity: CAPACITY,
      type: "sequential-required",
    });
    const whole = await read(disk, zone(3), 3 * GRANULARITY);
    expect([whole[0], whole[GRANULARITY], whole[2 * GRANULARITY]]).toEqual([8, 9, 0]);
    await zones.reset(zone(3));
    expect((await read(disk, zone(3), GRANULARITY)).every((byte) => byte === 0)).toBe(true);
    expect(await zones.report(0, 99)).toHaveLength(16);
    expect(await zones.report(0, 0)).toEqual([]);
    expect(await outcome(zones.report(0, 1.5))).toBe("INVALID");
  });

  it("reads where an append went [BLK-OP-25]", async () => {
    const { disk, zones } = await start();
    await disk.write(zone(1), data(GRANULARITY));
    const at = await Promise.all(
      Array.from({ length: 8 }, (_, i) => zones.append(zone(1), data(GRANULARITY, 10 + i))),
    );
    expect(new Set(at).size).toBe(8);
    for (const [i, position] of at.entries())
      expect((await read(disk, position, 512))[0]).toBe(10 + i);
  });

  it("appends no more at once than the zone has room for, and tells the rest so", async () => {
    const { zones, rules } = await start();
    const all = await Promise.all(
      Array.from({ length: 20 }, () => outcome(zones.append(zone(1), data(GRANULARITY)))),
    );
    expect(all.filter((each) => each === "done")).toHaveLength(15);
    expect(all.filter((each) => each === "INVALID")).toHaveLength(5);
    expect(shown(await zones.report(zone(1), 1))).toEqual([["full", null]]);
    expect(rules.violations).toEqual([]);
  });

  it("keeps writes to one zone in order, over several queues and a backend that takes its time", async () => {
    const backend = new FaultBackend(new MemoryBackend(16 * ZONE), () => Promise.resolve());
    const { disk, rules } = await start({}, { backend, queues: 4, queueSize: 16 });
    const writes = [];
    for (let at = 0; at < CAPACITY; at += GRANULARITY)
      for (const n of [1, 2])
        writes.push(disk.write(zone(n) + at, data(GRANULARITY, at / GRANULARITY)));
    await Promise.all(writes);
    for (let at = 0; at < CAPACITY; at += GRANULARITY)
      expect((await read(disk, zone(2) + at, 512))[0]).toBe(at / GRANULARITY);
    expect(rules.violations).toEqual([]);
  });

  it("cuts transfers at the ends of zones", async () => {
    const { disk, rules } = await start({ zoneCapacity: ZONE / 512 });
    const bytes = Uint8Array.from({ length: 3 * ZONE }, (_, i) => (i >>> 9) * 7);
    await disk.write(zone(1), bytes);
    expect(await read(disk, zone(1), 3 * ZONE)).toEqual(bytes);
    expect(await read(disk, zone(3) + ZONE / 2, ZONE)).toEqual(
      Uint8Array.from([...bytes.subarray(2.5 * ZONE), ...data(ZONE / 2, 0)]),
    );
    expect(rules.violations).toEqual([]);
  });

  it("asks again where a zone is when a write failed, and goes on from there", async () => {
    const backend = new FaultBackend(new MemoryBackend(16 * ZONE));
    const { disk, zones, rules } = await start({}, { backend });
    await disk.write(zone(1), data(GRANULARITY));
    backend.fate = () => "error";
    expect(await outcome(disk.write(zone(1) + GRANULARITY, data(CAPACITY - GRANULARITY)))).toBe(
      "IO",
    );
    backend.fate = () => undefined;
    expect(await outcome(zones.append(zone(1), data(GRANULARITY)))).toBe("INVALID");
    await zones.reset(zone(1));
    expect(await outcome(zones.append(zone(1), data(GRANULARITY)))).toBe("done");
    expect(rules.violations).toEqual([]);
  });

  it("tells of what the device says no to: too many zones are BUSY, all else IO", async () => {
    const { disk, zones } = await start({ maxOpen: 1, maxActive: 2, offline: [9] });
    await zones.open(zone(1));
    expect(await outcome(zones.open(zone(2)))).toBe("BUSY");
    expect(await outcome(disk.write(zone(2), data(GRANULARITY)))).toBe("BUSY");
    expect(await outcome(zones.close(zone(5)))).toBe("IO");
    expect(await outcome(disk.write(zone(1) + GRANULARITY, data(GRANULARITY)))).toBe("IO");
    expect(await outcome(disk.read(zone(9), data(512)))).toBe("IO");
    expect(await outcome(disk.writeZeroes(zone(1), 4096))).toBe("INVALID");
  });

  it("asks again where a zone is when the device refused a write, and then has room for it", async () => {
    const { disk, zones, rules } = await start({ maxOpen: 1 });
    await zones.open(zone(1));
    for (const write of [
      () => disk.write(zone(2), data(CAPACITY)),
      () => zones.append(zone(3), data(GRANULARITY)),
    ])
      expect(await outcome(write())).toBe("BUSY");
    await zones.close(zone(1));
    await disk.write(zone(2), data(CAPACITY, 6));
    expect((await read(disk, zone(2), CAPACITY)).every((byte) => byte === 6)).toBe(true);
    for (let i = 0; i < 15; i++) await zones.append(zone(3), data(GRANULARITY));
    expect(rules.violations).toEqual([]);
  });

  it("writes a dump to its zones, cut where they end", async () => {
    const { disk, rules } = await start({ zoneCapacity: ZONE / 512 });
    disk.dump(zone(1), data(ZONE + GRANULARITY, 3));
    expect((await read(disk, zone(2), GRANULARITY))[0]).toBe(3);
    expect(rules.violations).toEqual([]);
  });

  it("breaks no rule, whatever is asked of it, while its backend fails now and then", async () => {
    const random = generator();
    const backend = new FaultBackend(new MemoryBackend(16 * ZONE), async () => {
      if (random(8) === 0) throw new Error("bad sector");
    });
    const limits = { conventional: 1, maxOpen: 3, maxActive: 5, offline: [15], readOnly: [14] };
    const { disk, zones, rules } = await start(limits, { backend, queues: 3 });
    const outcomes = new Map<string, number>();
    for (let round = 0; round < 60; round++) {
      const work = Array.from({ length: 12 }, async () => {
        const n = random(16);
        const start = zone(n) + (random(10) === 0 ? 512 * random(128) : 0);
        const length = (random(10) === 0 ? 512 : GRANULARITY) * (1 + random(10));
        const [known] = await zones.report(zone(n), 1);
        const at = random(5) === 0 ? start : (known?.writePointer ?? start);
        return [
          () => disk.write(at, data(length)),
          () => disk.write(at, data(length)),
          () => zones.append(start, data(length)),
          () => zones.append(start, data(length)),
          () => disk.read(start, data(512)),
          () => zones.reset(start),
          () => zones.open(start),
          () => zones.close(start),
          () => zones.finish(start),
          () => (random(20) === 0 ? zones.resetAll() : zones.report(start, 20)),
        ][random(10)]?.();
      });
      for (const said of await Promise.all(work.map(outcome)))
        outcomes.set(said, (outcomes.get(said) ?? 0) + 1);
      expect(rules.violations).toEqual([]);
    }
    expect([...outcomes.keys()].sort()).toEqual(["BUSY", "INVALID", "IO", "done"]);
  });

  it("erases whole zones", async () => {
    const { disk, zones } = await start({}, { secureErase: {} });
    await disk.write(zone(1), data(GRANULARITY));
    expect(await outcome(disk.secureErase(zone(1), GRANULARITY))).toBe("INVALID");
    await disk.secureErase(zone(1), 2 * ZONE);
    expect(shown(await zones.report(zone(1), 1))).toEqual([["empty", 0]]);
    await disk.write(zone(1), data(GRANULARITY));
  });

  it("without append says so, and read-only lets zones be looked at", async () => {
    const { zones } = await start({ maxAppendSectors: 0 });
    expect(await outcome(zones.append(zone(1), data(GRANULARITY)))).toBe("UNSUPPORTED");
    const readOnly = await start({}, { backend: new MemoryBackend(16 * ZONE, { readOnly: true }) });
    expect(await readOnly.zones.report(0, 99)).toHaveLength(16);
    for (const refused of [readOnly.zones.reset(0), readOnly.zones.append(0, data(GRANULARITY))])
      expect(await outcome(refused)).toBe("READ_ONLY");
  });

  it("aborts what waits, and what the device holds", async () => {
    const backend = new HeldBackend(16 * ZONE);
    const { zones } = await start({}, { backend });
    backend.held = true;
    const abort = new AbortController();
    const { signal } = abort;
    const append = zones.append(zone(1), data(GRANULARITY), { signal });
    await until(() => backend.waiting > 0);
    abort.abort(new Error("enough"));
    await expect(append).rejects.toThrow("enough");
    await expect(zones.reset(zone(1), { signal })).rejects.toThrow("enough");
    backend.letGo();
    expect(await zones.append(zone(1), data(GRANULARITY))).toBe(zone(1) + GRANULARITY);
  });

  it("follows a disk that grows", async () => {
    const backend = new MemoryBackend(2 * ZONE);
    const { disk, zones, rules } = await start({}, { backend });
    backend.resize(4 * ZONE);
    await until(() => disk.mediaSize === 4 * ZONE);
    await disk.write(zone(3), data(GRANULARITY));
    expect(await outcome(disk.write(zone(3) + GRANULARITY, data(CAPACITY)))).toBe("INVALID");
    expect(await zones.report(0, 99)).toHaveLength(4);
    expect(rules.violations).toEqual([]);
  });
});

describe("vtblk on a host-aware disk", () => {
  it("keeps the whole Disk contract, and shows zones", async () => {
    const backend = new MemoryBackend(8 << 20);
    const { disk, zones, rules } = await start(
      { model: "host-aware", writeGranularity: 512 },
      { backend },
    );
    expect(zones.model).toBe("host-aware");
    await disk.write(zone(1) + GRANULARITY, data(GRANULARITY));
    expect(shown(await zones.report(zone(1), 1))).toEqual([["implicit-open", 2 * GRANULARITY]]);
    await zones.reset(zone(1));
    expect(shown(await zones.report(zone(1), 1))).toEqual([["empty", 0]]);
    expect(await outcome(zones.append(zone(1), data(GRANULARITY)))).toBe("UNSUPPORTED");
    for (const { run } of diskContract) await run(disk);
    expect(rules.violations).toEqual([]);
  });

  it("takes DISCARD where it is offered, and does without [BLK-INIT-7]", async () => {
    for (const offered of [true, false]) {
      const { disk, zones, rules } = await start(
        { model: "host-aware" },
        { features: { DISCARD: offered } },
      );
      expect([disk.can.discard, zones.zoneSize]).toEqual([offered, ZONE]);
      expect(rules.violations).toEqual([]);
    }
  });

  it("whose zones are not to be driven is a disk as any other [BLK-INIT-9]", async () => {
    const { disk, rules } = await plain({ model: "host-aware" });
    expect(disk.zones).toBe(null);
    await disk.write(ZONE - 512, data(1024, 5));
    expect(await read(disk, ZONE - 512, 1024)).toEqual(data(1024, 5));
    expect(rules.violations).toEqual([]);
  });

  it("looks at nothing of zones that are not to be driven [BLK-INIT-10]", async () => {
    const junk = (offset: number, _: number, honest: number): number =>
      offset >= BlockConfig.zoneSectors[0] && offset < BlockConfig.zonedModel[0] ? 0xfff : honest;
    const { disk } = await plain({ model: "host-aware" }, { lies: { config: junk } });
    await disk.write(0, data(512));
    expect(disk.zones).toBe(null);
  });
});

/** A zoned disk with `hw.vtblk.zoned_disable=1`. */
async function plain(what: Partial<ZonedCharacteristics>, options: Options = {}): Promise<Bench> {
  const made = await bench({
    ...options,
    size: 16 * ZONE,
    zoned: like(what),
    driver: { zonedDisable: true },
  });
  onTestFinished(() => made.machine.close());
  return made;
}

describe("vtblk on a device that offers ZONED", () => {
  it("drives each model there is [BLK-INIT-5]", async () => {
    for (const model of ["none", "host-managed", "host-aware"] as const) {
      const made = await bench({ size: 16 * ZONE, zoned: like({ model }) });
      onTestFinished(() => made.machine.close());
      expect(made.disk.zones?.model ?? "none").toBe(model);
      await made.disk.write(0, data(GRANULARITY));
      expect(made.rules.kept("BLK-INIT-5")).toBeGreaterThan(0);
      expect(made.rules.violations).toEqual([]);
    }
  });

  it("and is host-managed, sets FAILED and not FEATURES_OK when zones are not to be driven [BLK-INIT-8]", async () => {
    const rules = new RuleBook();
    const machine = await embedded({ devices: [blk({ size: 16 * ZONE, zoned })], rules });
    onTestFinished(() => machine.close());
    const node = await nodeOf(machine);
    await expect(attach(node, vtblk({ zonedDisable: true }))).rejects.toMatchObject({
      code: "UNSUPPORTED",
      errno: "ENOTSUP",
    });
    expect(rules.kept("BLK-INIT-8")).toBe(1);
    expect(rules.violations).toEqual([]);
    // Another driver may have it.
    const disk = await attach(node, vtblk());
    expect(disk.zones?.model).toBe("host-managed");
  });

  it("by a legacy interface does not accept it", async () => {
    const { disk } = await fake({ features: [BlockFeature.ZONED], legacy: true });
    expect(disk.zones).toBe(null);
  });
});

// A zoned device that lies: vtblk refuses it with one clear error, and indexes nothing by what it says.
import {
  BlockConfig,
  BlockFeature,
  BlockRequestType,
  BlockZonedModel,
  BlockZoneState,
  BlockZoneType,
} from "@virtio/core/block";
import { describe, expect, it } from "vitest";
import { DeviceZones } from "../src/zones.js";
import { bench } from "./attached.js";
import { FakeDevice, type FakeQueue, fake } from "./fake-device.js";
import { data, GRANULARITY, generator, outcome, start, ZONE, zone, zoned } from "./zoned-disk.js";

const zonedFake = {
  features: [BlockFeature.ZONED, BlockFeature.SEG_MAX],
  config: {
    zoneSectors: 128,
    writeGranularity: 512,
    maxAppendSectors: 64,
    zonedModel: BlockZonedModel.HM,
  },
};

/** A fake device of empty zones that says where an append went. */
class ZonedFake extends FakeDevice {
  appendSector = 0;

  override serve(queue: FakeQueue, count: number = queue.held.length): void {
    for (const { segments } of queue.held.slice(0, count)) {
      const view = (s: number): DataView =>
        new DataView(
          this.memory.buffer,
          (segments[2 * s] ?? 0) - this.memory.base,
          segments[2 * s + 1],
        );
      const type = view(0).getUint32(0, true);
      if (type === BlockRequestType.ZONE_APPEND)
        view(segments.length / 2 - 2).setBigUint64(0, BigInt(this.appendSector), true);
      if (type !== BlockRequestType.ZONE_REPORT) continue;
      const report = view(1);
      const first = Math.floor(view(0).getUint32(8, true) / 128);
      const zones = report.byteLength / 64 - 1;
      report.setUint32(0, zones, true);
      for (let i = 0; i < zones; i++) {
        for (const [at, value] of [
          [0, 128],
          [8, (first + i) * 128],
          [16, (first + i) * 128],
        ] as const)
          report.setUint32(64 + 64 * i + at, value, true);
        report.setUint8(64 + 64 * i + 24, BlockZoneType.SWR);
        report.setUint8(64 + 64 * i + 25, BlockZoneState.EMPTY);
      }
    }
    super.serve(queue, count);
  }
}

/** Attaches to a fake device that says this of its zones, and reports so. */
const attached = async (
  config: Partial<Record<keyof typeof BlockConfig, number>>,
): Promise<string> => {
  try {
    // It leaves every report empty.
    await fake({ ...zonedFake, config: { ...zonedFake.config, ...config } });
    return "done";
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return `${code} ${message}`;
  }
};

describe("a zoned device that lies", () => {
  const garbage: readonly (readonly [keyof typeof BlockConfig, readonly number[], RegExp])[] = [
    ["zonedModel", [3, 255], /zoned model is (3|255)/],
    ["zoneSectors", [0], /zone_sectors is 0/],
    ["writeGranularity", [0, 1, 513, 768, 0xffff_ffff], /write_granularity is/],
    ["capacity", [2 ** 40], /zones of 65536 bytes, more than/],
  ];
  for (const [name, values, message] of garbage)
    it(`in ${name} is refused with one clear error`, async () => {
      for (const value of values) {
        const said = await attached({ [name]: value });
        expect(said).toMatch(/^DEVICE_MISBEHAVED vtblk0: device misbehaved: /);
        expect(said).toMatch(message);
      }
    });

  it("in any of its configuration is driven, or refused with one clear error", async () => {
    const random = generator();
    const codes = new Set<string>();
    for (let n = 0; n < 100; n++) {
      const mask = random(2 ** 31);
      const config = (offset: number, width: number, honest: number): number => {
        if (offset >= 20 && ((mask >>> ((offset >>> 2) & 7)) & 1) === 0) return honest;
        if (offset < BlockConfig.zoneSectors[0]) return honest;
        return (
          ([0, 1, 2, 7, 512, 4096, 0xffff_ffff, random(2 ** 32)][random(8)] ?? 0) % 2 ** (8 * width)
        );
      };
      const made = bench({ size: 16 * ZONE, zoned, lies: { config } });
      codes.add(await outcome(made));
      const { disk, machine } = await made.catch(() => ({ disk: null, machine: null }));
      if (disk !== null) codes.add(await outcome(disk.write(0, data(GRANULARITY))));
      await machine?.close();
    }
    const known = ["done", "DEVICE_MISBEHAVED", "INVALID", "NEGOTIATION", "IO"];
    expect([...codes].filter((code) => !known.includes(code))).toEqual([]);
    expect(codes.size).toBeGreaterThan(1);
  });

  it("in its limits only limits itself", async () => {
    const { zones } = await start(
      {},
      {
        lies: {
          config: (offset, _, honest) =>
            offset >= BlockConfig.maxOpenZones[0] && offset <= BlockConfig.maxAppendSectors[0]
              ? 0xffff_ffff
              : honest,
        },
      },
    );
    expect(zones.maxAppend).toBe(ZONE);
    expect(await outcome(zones.append(zone(1), data(GRANULARITY)))).toBe("done");
  });

  it("of another model after FEATURES_OK is refused", async () => {
    let reads = 0;
    const lies = {
      config: (offset: number, _: number, honest: number): number => {
        if (offset !== BlockConfig.zonedModel[0]) return honest;
        reads += 1;
        return reads === 1 ? BlockZonedModel.HA : honest;
      },
    };
    const work = start({}, { lies });
    await expect(work).rejects.toMatchObject({ code: "DEVICE_MISBEHAVED" });
    await expect(work).rejects.toThrow("the zoned model became 1, and was 2");
  });

  it("in the report at attach is refused", async () => {
    expect(await attached({})).toMatch(/^DEVICE_MISBEHAVED .*a report of 0 zones/);
  });

  /** Bytes of the report of two zones, and what is wrong with it then. */
  const reports: readonly (readonly [at: number, value: number, what: RegExp])[] = [
    [0, 3, /a report of 3 zones, and not 1 to 2/],
    [4, 1, /a report of 4294967298 zones/],
    [64, 129, /zone 0: z_cap is 129/],
    [71, 0x80, /zone 0: z_cap is/],
    [72, 1, /zone 0: z_start is 1/],
    [136, 1, /zone 1: z_start is/],
    [80, 200, /zone 0: z_wp is 200/],
    [87, 0xff, /zone 0: z_wp is/],
    [88, 0, /zone 0: z_type is 0/],
    [88, 1, /zone 0: z_state is 2/],
    [89, 5, /zone 0: z_state is 5/],
    [89, 0, /zone 0: z_state is 0/],
  ];
  for (const [at, value, what] of reports)
    it(`in byte ${at} of a report, as ${value}, is one clear error`, async () => {
      const fields = { zoneSectors: 128, writeGranularity: 512, zonedModel: BlockZonedModel.HM };
      const disk = { mediaSize: 16 * ZONE, sectorSize: 512 };
      const provider = DeviceZones.of(fields, BlockZonedModel.HM, disk, "vtblk0");
      if (provider === null) throw new Error("no zones");
      const bytes = new Uint8Array(64 + 2 * 64);
      const words = new DataView(bytes.buffer);
      words.setUint32(0, 2, true);
      for (const n of [0, 1]) {
        words.setUint32(64 + 64 * n, 120, true);
        words.setUint32(72 + 64 * n, 128 * n, true);
        words.setUint32(80 + 64 * n, 128 * n + 8, true);
        bytes.set([2, 2], 88 + 64 * n);
      }
      expect(provider.readReport(bytes, 0, 2)).toHaveLength(2);
      bytes[at] = value;
      expect(() => provider.readReport(bytes, 0, 2)).toThrow(what);
    });

  it("of where an append went is one clear error, and the disk goes on", async () => {
    const device = new ZonedFake(zonedFake);
    const { disk } = await fake(zonedFake, device);
    const append = () =>
      outcome(disk.zones?.append(zone(1), data(GRANULARITY)) ?? Promise.reject());
    for (const lie of [0, 127, 256, 255, 2 ** 52]) {
      device.appendSector = lie;
      expect(await append()).toBe("DEVICE_MISBEHAVED");
    }
    device.appendSector = 129;
    expect(await append()).toBe("done");
  });
});

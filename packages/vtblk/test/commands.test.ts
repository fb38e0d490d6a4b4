// What vtblk makes of a device's features: range commands, cache mode, limits, barriers, resize. The device is in the test's hands.
import { type FaultCode, ReservedFeature, VirtioFault } from "@virtio/core";
import { BlockConfig, BlockFeature, BlockRequestType, BlockStatus } from "@virtio/core/block";
import { describe, expect, it } from "vitest";
import { until } from "./attached.js";
import { type FakeOptions, fake } from "./fake-device.js";

const {
  BARRIER,
  BLK_SIZE,
  CONFIG_WCE,
  DISCARD,
  FLUSH,
  GEOMETRY,
  LIFETIME,
  RO,
  SECURE_ERASE,
  TOPOLOGY,
  WRITE_ZEROES,
} = BlockFeature;

const sector = (fill = 0): Uint8Array => new Uint8Array(512).fill(fill);

const codeOf = (work: Promise<unknown>): Promise<FaultCode | "done"> =>
  work.then(
    () => "done" as const,
    (error: unknown) => {
      if (error instanceof VirtioFault) return error.code;
      throw error;
    },
  );

const rangeCommands = [
  {
    method: "discard",
    type: BlockRequestType.DISCARD,
    feature: DISCARD,
    config: { maxDiscardSectors: 100, maxDiscardSeg: 1, discardSectorAlignment: 8 },
    log: "delete",
    limits: ["maxDiscardSectors", "maxDiscardSeg"],
    // Parts end at multiples of 8 sectors.
    parts: [
      [3, 93, 0],
      [96, 96, 0],
      [192, 61, 0],
    ],
  },
  {
    method: "writeZeroes",
    type: BlockRequestType.WRITE_ZEROES,
    feature: WRITE_ZEROES,
    config: { maxWriteZeroesSectors: 100, maxWriteZeroesSeg: 4, writeZeroesMayUnmap: 1 },
    log: "write zeroes",
    limits: ["maxWriteZeroesSectors", "maxWriteZeroesSeg"],
    parts: [
      [3, 100, 0],
      [103, 100, 0],
      [203, 50, 0],
    ],
  },
  {
    method: "secureErase",
    type: BlockRequestType.SECURE_ERASE,
    feature: SECURE_ERASE,
    config: { maxSecureEraseSectors: 200, maxSecureEraseSeg: 1, secureEraseSectorAlignment: 1 },
    log: "secure erase",
    limits: ["maxSecureEraseSectors", "maxSecureEraseSeg"],
    parts: [
      [3, 200, 0],
      [203, 50, 0],
    ],
  },
] as const;

for (const { method, type, feature, config, log, limits, parts } of rangeCommands)
  describe(`${method} of vtblk`, () => {
    const options: FakeOptions = { features: [feature], config };

    it("sends one segment of 16 bytes a request, without flags, within the device's limit", async () => {
      const { disk, device } = await fake(options);
      await disk[method](3 * 512, 250 * 512);
      expect(device.ranges).toEqual(parts);
      expect(device.requests).toEqual(parts.map(() => [type, 0]));
      expect(device.shapes).toEqual(parts.map(() => [16, 16, 1]));
    });

    it("is not there without its feature, or with limits of nothing", async () => {
      const none = limits.map((name) => ({ ...options, config: { ...config, [name]: 0 } }));
      for (const other of [{ ...options, features: [] }, ...none]) {
        const { disk, device } = await fake(other);
        expect(disk.can[method]).toBe(false);
        expect(await codeOf(disk[method](0, 512))).toBe("UNSUPPORTED");
        expect(device.requests).toEqual([]);
      }
    });

    it("says what the device says of it", async () => {
      const { disk, device, lines } = await fake(options);
      device.status = BlockStatus.IOERR;
      expect(await codeOf(disk[method](512, 1024))).toBe("IO");
      device.status = BlockStatus.UNSUPP;
      expect(await codeOf(disk[method](512, 1024))).toBe("UNSUPPORTED");
      device.status = 0xff;
      expect(await codeOf(disk[method](512, 1024))).toBe("IO");
      expect(lines.slice(1)).toEqual([`hard error cmd=${log} 1-2`, `hard error cmd=${log} 1-2`]);
    });

    it("is refused on a read-only disk", async () => {
      const { disk } = await fake({ ...options, features: [feature, RO] });
      expect(await codeOf(disk[method](0, 512))).toBe("READ_ONLY");
    });
  });

describe("the geometry of a vtbd disk", () => {
  const stripes: readonly (readonly [exp: number, offset: number, size: number, at: number])[] = [
    [0, 0, 0, 0],
    [3, 0, 4096, 0],
    [3, 1, 4096, 3584],
    [3, 7, 4096, 512],
    [3, 8, 4096, 0],
    [3, 255, 4096, 512],
    [255, 255, 0, 0],
  ];
  for (const [physicalBlockExp, alignmentOffset, size, at] of stripes)
    it(`has stripes of ${size} bytes from ${at} on with an exponent of ${physicalBlockExp} and an offset of ${alignmentOffset}`, async () => {
      const config = { physicalBlockExp, alignmentOffset };
      const { disk } = await fake({ features: [TOPOLOGY], config });
      expect([disk.stripeSize, disk.stripeOffset]).toEqual([size, at]);
    });

  it("counts stripes in sectors of the device's size", async () => {
    const config = { blkSize: 4096, physicalBlockExp: 2, alignmentOffset: 1 };
    const { disk } = await fake({ features: [TOPOLOGY, BLK_SIZE], config });
    expect([disk.sectorSize, disk.stripeSize, disk.stripeOffset]).toEqual([4096, 16384, 12288]);
  });

  it("has firmware's heads and sectors where the device says them, and believes nothing without the features", async () => {
    const config = { heads: 16, sectors: 63, cylinders: 1024, physicalBlockExp: 3, blkSize: 7 };
    const { disk } = await fake({ features: [GEOMETRY], config });
    expect([disk.firmwareHeads, disk.firmwareSectors]).toEqual([16, 63]);
    const { disk: plain } = await fake({ config });
    expect([plain.firmwareHeads, plain.firmwareSectors, plain.stripeSize]).toEqual([0, 0, 0]);
    expect(plain.sectorSize).toBe(512);
  });
});

describe("vtblk refuses a device", () => {
  const lies: readonly (readonly [FakeOptions["config"], feature: BlockFeature[], what: string])[] =
    [
      [{ blkSize: 0 }, [BLK_SIZE], "blk_size is 0"],
      [{ blkSize: 513 }, [BLK_SIZE], "blk_size is 513"],
      [{ blkSize: 768 }, [BLK_SIZE], "blk_size is 768"],
      [{ blkSize: 1 << 20 }, [BLK_SIZE], "blk_size is 1048576"],
      [{ sizeMax: 511 }, [BlockFeature.SIZE_MAX], "size_max is 511, less than a sector"],
      [
        { sizeMax: 4095, blkSize: 4096 },
        [BlockFeature.SIZE_MAX, BLK_SIZE],
        "size_max is 4095, less than a sector",
      ],
      [{ segMax: 0 }, [BlockFeature.SEG_MAX], "seg_max is 0"],
      [{ capacity: 2 ** 50 }, [], "capacity is 1125899906842624 sectors"],
    ];
  for (const [config, features, what] of lies)
    it(`that says ${JSON.stringify(config)}`, async () => {
      await expect(fake({ features, config: config ?? {} })).rejects.toMatchObject({
        code: "DEVICE_MISBEHAVED",
        message: `vtblk0: device misbehaved: ${what} [virtio 1.4 §5.2.4]`,
      });
    });
});

describe("the write cache of a vtbd disk", () => {
  const [offset] = BlockConfig.writeback;
  const modes: readonly (readonly [
    why: string,
    options: FakeOptions,
    mode: number,
    written: readonly number[],
  ])[] = [
    ["as the device has it", { config: { writeback: 1 } }, 1, []],
    ["off, as the device has it", { config: { writeback: 0 } }, 0, []],
    ["on, whatever else than 0 the device says", { config: { writeback: 77 } }, 1, []],
    ["as the tunable says", { config: { writeback: 1 }, driver: { writecacheMode: 0 } }, 0, [0]],
    ["on by the tunable", { config: { writeback: 0 }, driver: { writecacheMode: 1 } }, 1, [1]],
    ["on without CONFIG_WCE but with FLUSH", { features: [FLUSH] }, 1, []],
    [
      "off without CONFIG_WCE and FLUSH, whatever the tunable says",
      { features: [], config: { writeback: 1 }, driver: { writecacheMode: 1 } },
      0,
      [],
    ],
  ];
  const leafOf = ({ sysctl }: Awaited<ReturnType<typeof fake>>) => {
    const [leaf] = sysctl.find("vtblk.writecache_mode");
    if (leaf === undefined) throw new Error("no such leaf");
    return leaf;
  };
  for (const [why, options, mode, written] of modes)
    it(`is ${why}`, async () => {
      const given = await fake({ features: [FLUSH, CONFIG_WCE], ...options });
      expect(leafOf(given).read()).toBe(mode);
      expect(given.device.written).toEqual(written.map((value) => [offset, value]));
    });

  it("is switched by sysctl to 0 or 1, and flushes are sent in both", async () => {
    const given = await fake({ features: [FLUSH, CONFIG_WCE], config: { writeback: 1 } });
    const leaf = leafOf(given);
    await leaf.write?.("0");
    expect([leaf.read(), given.device.written]).toEqual([0, [[offset, 0]]]);
    await given.disk.flush();
    await leaf.write?.("1");
    await given.disk.flush();
    expect([leaf.read(), given.device.requests.length]).toEqual([1, 2]);
    for (const value of ["2", "-1", "", "on"])
      await expect(leaf.write?.(value)).rejects.toMatchObject({ errno: "EINVAL" });
    expect(given.device.written).toHaveLength(2);
  });

  it("cannot be switched without CONFIG_WCE", async () => {
    expect(leafOf(await fake({ features: [FLUSH] })).write).toBeUndefined();
  });

  it("is set again after a reset of the device", async () => {
    const features = [FLUSH, CONFIG_WCE];
    const { device } = await fake({ features, driver: { writecacheMode: 0 } });
    device.fail("NEEDS_RESET");
    await until(() => device.written.length === 2);
    expect(device.written).toEqual([
      [offset, 0],
      [offset, 0],
    ]);
  });
});

describe("the wear of a vtbd disk", () => {
  it("is asked for once and shown by sysctl", async () => {
    const { sysctl, device } = await fake({ features: [LIFETIME] });
    const values = ["pre_eol_info", "est_typ_a", "est_typ_b"].map((name) =>
      sysctl.find(`vtblk.${name}`)[0]?.read(),
    );
    expect(values).toEqual([1, 3, 4]);
    expect(device.requests).toEqual([[BlockRequestType.GET_LIFETIME, 0]]);
    expect(device.shapes).toEqual([[16, 6, 1]]);
  });

  it("is not shown when the device does not tell it", async () => {
    const { sysctl, lines } = await fake({
      features: [LIFETIME],
      attached: (device) => {
        device.status = BlockStatus.UNSUPP;
      },
    });
    expect(sysctl.find("vtblk.est_typ_a")).toEqual([]);
    expect(lines[0]).toBe("error getting device lifetime: 45");
  });
});

describe("ordered requests of vtblk", () => {
  const marked = BlockRequestType.OUT + 0x8000_0000;

  it("are marked on the legacy interface with BARRIER, and all given at once", async () => {
    const { disk, device } = await fake({ features: [BARRIER], legacy: true });
    device.prompt = false;
    const work = [0, 1, 2].map((i) => disk.write(i * 512, sector(i), { ordered: i === 1 }));
    const [queue] = device.queues;
    expect(queue?.used).toBe(9);
    if (queue !== undefined) device.serve(queue);
    await Promise.all(work);
    expect(device.requests).toEqual([
      [BlockRequestType.OUT, 0],
      [marked, 1],
      [BlockRequestType.OUT, 2],
    ]);
  });

  for (const [what, options] of [
    ["a device without BARRIER", { legacy: true }],
    ["a modern device, even if it offers BARRIER", { features: [BARRIER] }],
  ] as const)
    it(`are kept apart on ${what}, and not marked`, async () => {
      const { disk, device } = await fake(options);
      device.prompt = false;
      const work = [0, 1, 2].map((i) => disk.write(i * 512, sector(i), { ordered: i === 1 }));
      const [queue] = device.queues;
      if (queue === undefined) throw new Error("no queue");
      for (let i = 0; i < 3; i++) {
        await until(() => queue.held.length === 1);
        device.serve(queue);
      }
      await Promise.all(work);
      expect(device.requests.map(([type]) => type)).toEqual(
        new Array(3).fill(BlockRequestType.OUT),
      );
    });
});

describe("a vtbd disk whose device is resized", () => {
  it("has another size, says so, tells who listens, and refuses what is now beyond its end", async () => {
    const { disk, device, verbose } = await fake();
    const sizes: number[] = [];
    disk.onResize((size) => sizes.push(size));
    device.configure("capacity", 4096);
    device.onConfigChange?.();
    await until(() => sizes.length === 1);
    device.configure("capacity", 8);
    device.onConfigChange?.();
    await until(() => sizes.length === 2);
    // Something else changed.
    device.onConfigChange?.();
    expect(await codeOf(disk.read(4096, sector()))).toBe("INVALID");
    expect(await codeOf(disk.read(3584, sector()))).toBe("done");
    expect(sizes).toEqual([2 << 20, 4096]);
    expect(verbose).toEqual([
      "resized to 2MB (4096 512 byte sectors)",
      "resized to 0MB (8 512 byte sectors)",
    ]);
  });

  it("keeps its size when the device says one that cannot be", async () => {
    const { disk, device, lines } = await fake();
    device.configure("capacity", Number.MAX_SAFE_INTEGER);
    device.onConfigChange?.();
    await until(() => lines.length === 2);
    expect(lines[1]).toMatch(/^cannot read the capacity: .*device misbehaved: capacity is/);
    expect(disk.mediaSize).toBe(1 << 20);
    device.configure("capacity", 8);
    device.onConfigChange?.();
    await until(() => disk.mediaSize === 4096);
  });
});

describe("the form without promises, of vtblk", () => {
  it("moves the caller's own guest memory, bio by bio, and nothing is made for them", async () => {
    const { disk, device } = await fake({ features: [ReservedFeature.INDIRECT_DESC] });
    const region = device.memory.allocate(4096, 512);
    let left = 100;
    await new Promise<void>((resolve, reject) => {
      const bio: Parameters<typeof disk.strategy>[0] = {
        command: 1,
        position: 0,
        length: 4096,
        data: region.bytes,
        ordered: false,
        done: (fault) => {
          if (fault !== null) reject(fault);
          left -= 1;
          if (left === 0) resolve();
          else {
            bio.position = (100 - left) * 4096;
            region.bytes.fill(100 - left);
            if (!disk.strategy(bio)) reject(new Error("no room"));
          }
        },
      };
      expect(disk.strategy(bio)).toBe(true);
      disk.start();
    });
    expect(device.disk[99 * 4096]).toBe(99);
    expect(disk.statistics).toMatchObject({ writes: 100, bytesWritten: 409_600, busy: 0 });
  });
});

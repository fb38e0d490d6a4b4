// The block device's model against the device clauses of virtio 1.4 §5.2, driven by hand.
import {
  BLOCK_BARRIER,
  BlockFeature,
  BlockRangeFlag,
  BlockRequestType,
  BlockStatus,
} from "@virtio/core/block";
import { VirtioCapability } from "@virtio/core/pci";
import { afterEach, describe, expect, it } from "vitest";
import {
  type BackendRequest,
  blk,
  type EmbeddedDevice,
  embedded,
  FaultBackend,
  MemoryBackend,
} from "../src/index.js";
import { accepting, BareGuest, type GuestOptions } from "./bare-guest.js";
import { recorded } from "./recorded.js";

const { IN, OUT, FLUSH, GET_ID, GET_LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE } =
  BlockRequestType;
const { OK, IOERR, UNSUPP } = BlockStatus;
const WRITEBACK_AT = 32;
const FLUSH_OUT = 5;

let guest: BareGuest;
afterEach(() => guest.machine.close());

/** A guest that accepted these features. */
const start = async (
  options: GuestOptions = {},
  ...features: BlockFeature[]
): Promise<BareGuest> => {
  guest = await BareGuest.start(options);
  await guest.run(accepting(...features));
  return guest;
};

describe("what a block device offers", () => {
  const word = async (options: GuestOptions): Promise<number> => {
    guest = await BareGuest.start({ indirect: false, eventIdx: false, ...options });
    return (await guest.offered())[0] ?? 0;
  };

  it("is what QEMU's offers, unless it is named", async () => {
    expect(await word({})).toBe(0x6e54);
    await guest.machine.close();
    expect(await word({ queues: 2, backend: new MemoryBackend(512, { readOnly: true }) })).toBe(
      0x6e54 | (1 << BlockFeature.MQ) | (1 << BlockFeature.RO),
    );
    await guest.machine.close();
    const named = { SIZE_MAX: true, LIFETIME: true, SECURE_ERASE: true, DISCARD: false };
    expect(await word({ features: named })).toBe((0x6e54 | (1 << 1) | (3 << 15)) & ~(1 << 13));
    await guest.machine.close();
    expect(
      await word({
        sizeMax: 4096,
        secureErase: {},
        lifetime: { preEolInfo: 1, estTypA: 2, estTypB: 3 },
      }),
    ).toBe(0x6e54 | (1 << 1) | (3 << 15));
  });

  it("has CONFIG_WCE only with FLUSH", async () => {
    expect((await word({ features: { FLUSH: false } })) & ((1 << 9) | (1 << 11))).toBe(0);
    for (const device of ["blk,flush=off,config_wce=on", "blk,barrier=on", "blk,zoned=on"])
      await expect(embedded({ devices: [device] })).rejects.toMatchObject({
        code: device.includes("flush") ? "INVALID" : "UNSUPPORTED",
      });
  });

  it("is refused with blocks that are none, or that do not make up the disk", async () => {
    guest = await BareGuest.start();
    const odd: EmbeddedDevice[] = [
      blk({ size: 4096, blockSize: 768 }),
      blk({ size: 4096, blockSize: 256 }),
      blk({ size: 4096 + 512, blockSize: 4096 }),
    ];
    for (const device of odd)
      await expect(embedded({ devices: [device] })).rejects.toMatchObject({ code: "INVALID" });
  });
});

describe("its configuration", () => {
  it("says what it was made with, and 0 where nothing is offered", async () => {
    const g = await start(
      {
        backend: new MemoryBackend(64 << 20, { mayUnmap: true }),
        queues: 3,
        blockSize: 4096,
        sizeMax: 65536,
        topology: { physicalBlockExp: 1, alignmentOffset: 2, minIoSize: 3, optIoSize: 4 },
        discard: { maxSectors: 5, maxSegments: 6, alignment: 7 },
        writeZeroes: { maxSectors: 8, maxSegments: 9 },
        features: { SECURE_ERASE: false },
      },
      BlockFeature.CONFIG_WCE,
      BlockFeature.FLUSH,
    );
    const fields = {
      capacity: (64 << 20) / 512,
      sizeMax: 65536,
      segMax: 254,
      cylinders: 130,
      heads: 16,
      sectors: 63,
      blkSize: 4096,
      physicalBlockExp: 1,
      alignmentOffset: 2,
      minIoSize: 3,
      optIoSize: 4,
      writeback: 1,
      numQueues: 3,
      maxDiscardSectors: 5,
      maxDiscardSeg: 6,
      discardSectorAlignment: 7,
      maxWriteZeroesSectors: 8,
      maxWriteZeroesSeg: 9,
      writeZeroesMayUnmap: 1,
      maxSecureEraseSectors: 0,
    } as const;
    for (const [name, value] of Object.entries(fields))
      expect([name, await g.field(name as keyof typeof fields)]).toEqual([name, value]);
    for (const unused of [33, 57, 58, 59, 93, 94, 95])
      expect(await g.read(unused, 1, VirtioCapability.DEVICE)).toBe(0);
  });

  it("starts with writeback 0 when CONFIG_WCE is accepted and FLUSH is not, and forgets it at a reset", async () => {
    const g = await start({}, BlockFeature.CONFIG_WCE);
    expect(await g.field("writeback")).toBe(0);
    await g.write(WRITEBACK_AT, 1, 1, VirtioCapability.DEVICE);
    expect(await g.field("writeback")).toBe(1);
    await g.run(accepting(BlockFeature.CONFIG_WCE));
    expect(await g.field("writeback")).toBe(0);
  });

  it("tells the driver when the disk grows or shrinks", async () => {
    const backend = new MemoryBackend(1 << 20);
    const g = await start({ backend });
    const generation = await g.read(21, 1);
    backend.resize(3 << 20);
    await g.settle();
    expect(await g.read(21, 1)).not.toBe(generation);
    // Bit 1 of the ISR status: configuration.
    expect(await g.read(0, 1, VirtioCapability.ISR)).toBe(2);
    expect([await g.field("capacity"), await g.field("cylinders")]).toEqual([6144, 6]);
    expect((await g.request(IN, 6143, 0, 512)).status).toBe(OK);
    backend.resize(1 << 19);
    await g.settle();
    expect(await g.field("capacity")).toBe(1024);
    expect((await g.request(OUT, 1023, 512, 0)).status).toBe(OK);
    expect((await g.request(OUT, 1024, 512, 0)).status).toBe(IOERR);
  });
});

describe("its cache", () => {
  const { CONFIG_WCE, FLUSH: F_FLUSH } = BlockFeature;
  const modes: [
    what: string,
    accepted: BlockFeature[],
    writeback: number | null,
    flushed: boolean,
  ][] = [
    ["neither CONFIG_WCE nor FLUSH", [], null, true],
    ["FLUSH alone", [F_FLUSH], null, false],
    ["CONFIG_WCE alone", [CONFIG_WCE], null, true],
    ["CONFIG_WCE and FLUSH", [CONFIG_WCE, F_FLUSH], null, false],
    ["writeback 0", [CONFIG_WCE, F_FLUSH], 0, true],
    ["writeback 1", [CONFIG_WCE], 1, false],
  ];
  it.each(modes)("with %s accepted", async (_, accepted, writeback, flushed) => {
    const { asked, backend } = recorded();
    const g = await start({ backend }, ...accepted, BlockFeature.WRITE_ZEROES);
    if (writeback !== null) await g.write(WRITEBACK_AT, 1, writeback, VirtioCapability.DEVICE);
    expect((await g.request(OUT, 2, 512, 0)).status).toBe(OK);
    expect(await g.ranged(WRITE_ZEROES, [[4, 1]])).toBe(OK);
    const flush = flushed ? ["flush 0+0"] : [];
    expect(asked).toEqual(["write 1024+512", ...flush, "writeZeroes 2048+512", ...flush]);
  });

  it("is not flushed at each write by a device that offers no FLUSH", async () => {
    const { asked, backend } = recorded();
    const g = await start({ backend, features: { FLUSH: false } });
    await g.request(OUT, 0, 512, 0);
    expect(asked).toEqual(["write 0+512"]);
  });

  it("fails a write through it that could not be flushed", async () => {
    const backend = new FaultBackend(new MemoryBackend(4096), ({ operation }) =>
      operation === "flush" ? "error" : undefined,
    );
    const g = await start({ backend });
    expect((await g.request(OUT, 0, 512, 0)).status).toBe(IOERR);
  });
});

describe("requests that name ranges", () => {
  const all = [
    BlockFeature.DISCARD,
    BlockFeature.WRITE_ZEROES,
    BlockFeature.SECURE_ERASE,
    BlockFeature.FLUSH,
  ];
  const types = [DISCARD, WRITE_ZEROES, SECURE_ERASE] as const;
  const limits = { maxSectors: 8, maxSegments: 2 };
  const bounded = { discard: limits, writeZeroes: limits, secureErase: limits };

  it("are unsupported unless their feature was accepted", async () => {
    const { asked, backend } = recorded();
    const g = await start({ backend, secureErase: {} }, BlockFeature.FLUSH);
    for (const type of types) expect(await g.ranged(type, [[0, 1]])).toBe(UNSUPP);
    expect((await g.request(GET_LIFETIME, 0, 0, 6)).status).toBe(UNSUPP);
    expect(asked).toEqual([]);
  });

  it("work on every range, whatever the backend can do", async () => {
    for (const type of types) {
      const { asked, content, backend } = recorded();
      const g = await start({ backend, ...bounded }, ...all);
      const ranges = [
        [3, 2],
        [8, 8],
      ] as const;
      expect(await g.ranged(type, ranges)).toBe(OK);
      const what = type === DISCARD ? "discard" : "writeZeroes";
      expect(asked).toEqual([`${what} 1536+1024`, `${what} 4096+4096`]);
      const zero = (at: number): boolean =>
        ranges.some(([s, n]) => at >= s * 512 && at < (s + n) * 512);
      expect(content.findIndex((byte, at) => byte !== (zero(at) ? 0 : 1))).toBe(-1);
      await g.machine.close();
    }
    const { content } = recorded();
    const memory = new MemoryBackend(content);
    const bare = {
      size: memory.size,
      readOnly: false,
      read: memory.read.bind(memory),
      write: memory.write.bind(memory),
      flush: () => undefined,
      close: () => memory.close(),
    };
    const g = await start({ backend: bare }, ...all);
    expect(await g.ranged(DISCARD, [[0, 1]])).toBe(OK);
    expect(content[0]).toBe(1);
    expect(await g.ranged(WRITE_ZEROES, [[1, 2040]])).toBe(OK);
    expect([content[511], content[512], content[2041 * 512 - 1], content[2041 * 512]]).toEqual([
      1, 0, 0, 1,
    ]);
  });

  it("pass unmap on, and refuse every other flag", async () => {
    const unmaps: boolean[] = [];
    const backend = new MemoryBackend(1 << 20);
    backend.writeZeroes = (_position: number, _length: number, unmap = false): undefined => {
      unmaps.push(unmap);
    };
    const g = await start({ backend, ...bounded }, ...all);
    expect(
      await g.ranged(WRITE_ZEROES, [
        [0, 1, BlockRangeFlag.UNMAP],
        [1, 1],
      ]),
    ).toBe(OK);
    expect(unmaps).toEqual([true, false]);
    expect(await g.ranged(WRITE_ZEROES, [[0, 1, 2]])).toBe(UNSUPP);
    for (const type of [DISCARD, SECURE_ERASE])
      expect(
        await g.ranged(type, [
          [0, 1],
          [8, 1, BlockRangeFlag.UNMAP],
        ]),
      ).toBe(UNSUPP);
    expect(unmaps).toHaveLength(2);
  });

  it("touch nothing when one of them is out of bounds", async () => {
    const { asked, backend } = recorded();
    const g = await start({ backend, ...bounded }, ...all);
    for (const type of types) {
      for (const bad of [
        [2047, 2],
        [0xffff_ffff, 1],
        [0, 9],
      ] as const)
        expect(await g.ranged(type, [[0, 1], bad])).toBe(IOERR);
      expect(
        await g.ranged(type, [
          [0, 1],
          [1, 1],
          [2, 1],
        ]),
      ).toBe(IOERR);
      expect((await g.request(type, 0, 24, 0)).status).toBe(IOERR);
    }
    expect(asked).toEqual([]);
  });

  it("fail when the second of them fails, after the first", async () => {
    const { content } = recorded();
    const gate = Promise.resolve();
    const backend = new FaultBackend(new MemoryBackend(content), ({ position }) =>
      position === 0 ? gate : "error",
    );
    const g = await start({ backend }, ...all);
    expect(
      await g.ranged(WRITE_ZEROES, [
        [0, 1],
        [1, 1],
      ]),
    ).toBe(IOERR);
    expect([content[0], content[512]]).toEqual([0, 1]);
  });
});

describe("a read-only device", () => {
  it("answers IOERR to whatever writes, and writes nothing", async () => {
    const { asked, backend } = recorded({ readOnly: true });
    const g = await start(
      { backend, secureErase: {} },
      BlockFeature.DISCARD,
      BlockFeature.WRITE_ZEROES,
      BlockFeature.SECURE_ERASE,
    );
    expect((await g.request(OUT, 0, 512, 0)).status).toBe(IOERR);
    for (const type of [DISCARD, WRITE_ZEROES, SECURE_ERASE])
      expect(await g.ranged(type, [[0, 1]])).toBe(IOERR);
    expect(asked).toEqual([]);
    expect((await g.request(IN, 0, 0, 512)).status).toBe(OK);
  });
});

describe("other requests", () => {
  it("read the lifetime, in 6 bytes at least", async () => {
    const lifetime = { preEolInfo: 2, estTypA: 11, estTypB: 3 };
    const g = await start({ lifetime }, BlockFeature.LIFETIME);
    expect((await g.request(GET_LIFETIME, 0, 0, 6)).status).toBe(OK);
    expect([...g.data.bytes.subarray(512, 518)]).toEqual([2, 0, 11, 0, 3, 0]);
    expect((await g.request(GET_LIFETIME, 0, 0, 5)).status).toBe(IOERR);
    await g.machine.close();
    const fresh = await start({ features: { LIFETIME: true } }, BlockFeature.LIFETIME);
    expect((await fresh.request(GET_LIFETIME, 0, 0, 6)).status).toBe(OK);
    expect([...fresh.data.bytes.subarray(512, 518)]).toEqual([1, 0, 1, 0, 1, 0]);
  });

  it("fail when they are not whole blocks, or a segment is longer than size_max", async () => {
    const g = await start({ blockSize: 4096, sizeMax: 8192 }, BlockFeature.WRITE_ZEROES);
    const status = async (type: number, sector: number, out: number, into: number) =>
      (await g.request(type, sector, out, into)).status;
    expect(await status(IN, 8, 0, 8192)).toBe(OK);
    expect(await status(OUT, 8, 8192, 0)).toBe(OK);
    expect(await status(IN, 8, 0, 512)).toBe(IOERR);
    expect(await status(OUT, 1, 4096, 0)).toBe(IOERR);
    expect(await status(IN, 0, 0, 12288)).toBe(IOERR);
    expect(await status(OUT, 0, 12288, 0)).toBe(IOERR);
    expect(await g.ranged(WRITE_ZEROES, [[8, 8]])).toBe(OK);
    expect(await g.ranged(WRITE_ZEROES, [[8, 1]])).toBe(IOERR);
  });

  it("are unsupported when nobody knows them: zones, SCSI, FLUSH_OUT on the modern interface", async () => {
    const g = await start({});
    for (const type of [2, 3, FLUSH_OUT, 15, 16, 18, 20, 22, 24, 26, BLOCK_BARRIER])
      expect((await g.request(type, 0, 0, 0)).status).toBe(UNSUPP);
  });
});

describe("a device that lies", () => {
  it("does so as it is told, about status, length and configuration", async () => {
    const g = await start({
      lies: {
        status: (honest) => honest + 7,
        usedLength: (honest) => honest - 5,
        config: (offset, width, honest) => (offset === 0 && width === 4 ? 0xdead : honest),
      },
    });
    expect(await g.request(GET_ID, 0, 0, 20)).toEqual({ status: 7, used: 16 });
    expect(await g.field("capacity")).toBe(0xdead);
    expect(await g.field("segMax")).toBe(254);
  });
});

describe("a request that is never answered", () => {
  it("ends with the reset of the device, which then works again", async () => {
    const seen: BackendRequest[] = [];
    const backend = new FaultBackend(new MemoryBackend(1 << 20), (request) => {
      seen.push(request);
      return seen.length === 1 ? "never" : undefined;
    });
    const g = await start({ backend });
    const data: [number, number, number][] = [
      [0, 16, 0],
      [512, 512, 2],
      [511, 1, 2],
    ];
    g.data.bytes.fill(0, 0, 16);
    await g.offer(data);
    await g.until(() => backend.unanswered === 1);
    await g.status(0);
    await g.untilStatus(0);
    expect([backend.unanswered, g.usedIndex]).toEqual([0, 0]);
    await g.reset();
    await g.run();
    expect((await g.request(IN, 0, 0, 512)).status).toBe(OK);
    expect((await g.request(FLUSH, 0, 0, 0)).status).toBe(OK);
  });
});

// The SCSI host's model against the device clauses of virtio 1.4 §5.6, driven by hand.
import { parseDeviceSpec, ReservedFeature } from "@virtio/core";
import {
  ScsiConfig,
  ScsiFeature,
  ScsiOpcode,
  ScsiResponse,
  ScsiStatus,
  ScsiTmf,
} from "@virtio/core/scsi";
import { afterEach, describe, expect, it } from "vitest";
import { embedded, MemoryBackend, scsi } from "../src/index.js";
import { ScsiGuest, type ScsiGuestOptions } from "./scsi-guest.js";

const { TEST_UNIT_READY, INQUIRY, READ_10, WRITE_10, REPORT_LUNS, REQUEST_SENSE } = ScsiOpcode;

let guest: ScsiGuest;
afterEach(() => guest.machine.close());

const start = async (options: ScsiGuestOptions = {}): Promise<ScsiGuest> => {
  guest = await ScsiGuest.start(options);
  return guest;
};

const memory = (size = 1 << 20): MemoryBackend => new MemoryBackend(size);
const read10 = (lba: number, blocks: number): number[] => [
  READ_10,
  0,
  0,
  0,
  lba >>> 8,
  lba & 0xff,
  0,
  blocks >>> 8,
  blocks & 0xff,
  0,
];

describe("what a SCSI host offers", () => {
  it("is HOTPLUG and CHANGE, INOUT when named, and never T10_PI", async () => {
    const low = async (options: ScsiGuestOptions): Promise<number> => {
      const g = await start({ indirect: false, eventIdx: false, start: false, ...options });
      const [word = 0] = await g.offered();
      return word;
    };
    expect(await low({})).toBe(6);
    await guest.machine.close();
    expect(await low({ features: { INOUT: true, CHANGE: false } })).toBe(3);
    await expect(embedded({ devices: ["scsi,t10_pi=on"] })).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });

  it("says in its configuration what it was made with", async () => {
    const g = await start({ queues: 3, cmdPerLun: 7, maxSectors: 9, target: 5, lun: 300 });
    const fields = {
      numQueues: 3,
      segMax: 62,
      maxSectors: 9,
      cmdPerLun: 7,
      eventInfoSize: 16,
      senseSize: 96,
      cdbSize: 32,
      maxChannel: 0,
      maxTarget: 255,
      maxLun: 16383,
    } as const;
    for (const [name, value] of Object.entries(fields))
      expect([name, await g.field(name as keyof typeof fields)]).toEqual([name, value]);
  });

  it("is one disk where a specification says so", async () => {
    const spec = parseDeviceSpec("scsi,size=1m,serial=S1,readonly=on,queues=2,target=3,lun=300");
    if (spec.kind !== "scsi") throw new Error(spec.kind);
    const g = await start(spec);
    const at = { target: 3, lun: 300, queue: 3 };
    expect((await g.command({ cdb: [TEST_UNIT_READY], ...at })).sense).toBe("6/2900");
    const write = { cdb: [WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1, 0], out: new Uint8Array(512), ...at };
    expect((await g.command(write)).sense).toBe("7/2700");
    const { data } = await g.command({ cdb: [INQUIRY, 1, 0x80, 0, 6], into: 6, ...at });
    expect([...data]).toEqual([0, 0x80, 0, 2, 0x53, 0x31]);
    await expect(embedded({ devices: ["scsi,file=disk.img"] })).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });

  it("is refused with units that cannot be", async () => {
    await start();
    const backend = memory();
    for (const luns of [
      [{ backend, target: 256 }],
      [{ backend, lun: 16384 }],
      [{ backend, serial: "a b" }],
      [{ backend, blockSize: 768 }],
      [{ backend: null }],
      [{ backend: memory(512 * 3), blockSize: 1024 }],
    ])
      await expect(embedded({ devices: [scsi({ luns })] })).rejects.toMatchObject({
        code: "INVALID",
      });
    await expect(
      embedded({ devices: [scsi({ luns: [{ backend }, { backend }] })] }),
    ).rejects.toMatchObject({ code: "EXISTS" });
    await expect(embedded({ devices: [scsi({ luns: [], target: 1 })] })).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });
});

describe("sense_size and cdb_size", () => {
  it("are written by the driver, used from then on, and 96 and 32 after a reset", async () => {
    const g = await start();
    await g.writeConfig(ScsiConfig.senseSize[0], 4, 18);
    await g.writeConfig(ScsiConfig.cdbSize[0], 4, 16);
    expect([await g.field("senseSize"), await g.field("cdbSize")]).toEqual([18, 16]);
    const sized = { senseSize: 18, cdbSize: 16 };
    expect(await g.command({ cdb: [TEST_UNIT_READY], ...sized })).toMatchObject({
      response: ScsiResponse.OK,
      sense: "6/2900",
      senseLength: 18,
      used: 30,
    });
    expect(
      (await g.command({ cdb: [INQUIRY, 0, 0, 0, 36, 0], into: 36, ...sized })).data.slice(8, 14),
    ).toEqual(new TextEncoder().encode("VIRTIO"));
    await g.run();
    expect([await g.field("senseSize"), await g.field("cdbSize")]).toEqual([96, 32]);
    expect(g.clauses()).toEqual([]);
  });

  it("are cut short where there is less room for sense data than there is of it", async () => {
    const g = await start();
    await g.writeConfig(ScsiConfig.senseSize[0], 4, 8);
    expect(await g.command({ cdb: [TEST_UNIT_READY], senseSize: 8 })).toMatchObject({
      senseLength: 8,
      used: 20,
    });
  });

  it("stay as they are when the driver writes what cannot be, and nothing else can be written", async () => {
    const g = await start();
    await g.writeConfig(ScsiConfig.senseSize[0], 4, 0x1_0000);
    await g.writeConfig(ScsiConfig.cdbSize[0], 4, 256);
    for (const offset of [0, 4, 8, 12, 16, 32]) await g.writeConfig(offset, 4, 0x55);
    await g.writeConfig(28, 2, 0x55);
    expect([await g.field("senseSize"), await g.field("cdbSize")]).toEqual([96, 32]);
    expect([await g.field("numQueues"), await g.field("maxChannel")]).toEqual([1, 0]);
    expect(await g.field("maxLun")).toBe(16383);
  });
});

describe("an address", () => {
  const luns = () => [
    { backend: memory(), target: 2, lun: 0 },
    { backend: memory(), target: 2, lun: 300 },
    { backend: memory(), target: 7, lun: 5 },
  ];

  it("of no target is answered BAD_TARGET, and that of no LUN by its target", async () => {
    const g = await start({ luns: luns() });
    const bad = [
      { target: 0 },
      { field: [0, 2, 0x40, 0, 0, 0, 0, 0] },
      { field: [2, 2, 0x40, 0, 0, 0, 0, 0] },
    ];
    for (const at of bad)
      expect(await g.command({ cdb: [TEST_UNIT_READY], ...at })).toMatchObject({
        response: ScsiResponse.BAD_TARGET,
        used: 108,
      });
    for (const at of [{ target: 2, lun: 1 }, { field: [1, 2, 0x80, 0, 0, 0, 0, 0] }]) {
      expect(await g.command({ cdb: [TEST_UNIT_READY], ...at })).toMatchObject({
        response: ScsiResponse.OK,
        status: ScsiStatus.CHECK_CONDITION,
        sense: "5/2500",
      });
      const { data } = await g.command({ cdb: [INQUIRY, 0, 0, 0, 36], into: 36, ...at });
      expect(data[0]).toBe(0x7f);
      const { data: sense } = await g.command({
        cdb: [REQUEST_SENSE, 0, 0, 0, 18],
        into: 18,
        ...at,
      });
      expect([sense[2], sense[12]]).toEqual([5, 0x25]);
    }
    // LUN 0 could be, and is not.
    const { data } = await g.command({ cdb: [INQUIRY, 0, 0, 0, 36], into: 36, target: 7 });
    expect(data[0]).toBe(0x3f);
  });

  it("may have the short form of a LUN, or the flat one", async () => {
    const g = await start({ luns: luns() });
    const ready = async (field: number[]): Promise<string> => {
      const { response, sense } = await g.attended({ cdb: [TEST_UNIT_READY], field });
      return `${response} ${sense}`;
    };
    expect(await ready([1, 7, 0, 5, 0, 0, 0, 0])).toBe("0 ");
    expect(await ready([1, 7, 0x40, 5, 0, 0, 0, 0])).toBe("0 ");
    expect(await ready([1, 2, 0x41, 44, 0, 0, 0, 0])).toBe("0 ");
    expect(await ready([1, 2, 0x01, 44, 0, 0, 0, 0])).toBe("0 5/2500");
  });

  it("is listed by REPORT LUNS of its target, whichever of its LUNs is asked, and by the well-known units", async () => {
    const g = await start({ luns: luns() });
    const cdb = (select: number) => [REPORT_LUNS, 0, select, 0, 0, 0, 0, 0, 0, 64];
    const list = async (field: number[], select = 0): Promise<string[]> => {
      const { data, residual, used } = await g.command({ cdb: cdb(select), into: 64, field });
      const length = new DataView(data.buffer, data.byteOffset).getUint32(0);
      expect([used, residual]).toEqual([108 + 8 + length, 56 - length]);
      const entries = Array.from({ length: length / 8 }, (_, i) =>
        data.subarray(8 + 8 * i, 16 + 8 * i),
      );
      return entries.map((entry) =>
        Buffer.from(entry)
          .toString("hex")
          .replace(/(00)+$/, ""),
      );
    };
    const own = ["", "412c"];
    expect(await list([1, 2, 0, 0, 0, 0, 0, 0])).toEqual(own);
    expect(await list([1, 2, 0x40, 99, 0, 0, 0, 0])).toEqual(own);
    expect(await list([1, 2, 0xc1, 1, 0, 0, 0, 0])).toEqual(own);
    expect(await list([1, 7, 0xc1, 1, 0, 0, 0, 0])).toEqual(["0005"]);
    expect(await list([1, 7, 0, 5, 0, 0, 0, 0], 2)).toEqual(["0005", "c101"]);
    expect(await list([1, 7, 0, 5, 0, 0, 0, 0], 1)).toEqual(["c101"]);
    expect(await list([0xc1, 1, 0, 0, 0, 0, 0, 0])).toEqual(["0102", "0102412c", "01070005"]);
    const { sense } = await g.command({ cdb: cdb(3), into: 64, field: [1, 2, 0, 0, 0, 0, 0, 0] });
    expect(sense).toBe("5/2400");
  });

  it("of a well-known unit answers INQUIRY, TEST UNIT READY and REQUEST SENSE, and nothing else", async () => {
    const g = await start({ luns: luns() });
    const field = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    expect((await g.command({ cdb: [INQUIRY, 0, 0, 0, 36], into: 36, field })).data[0]).toBe(0x1e);
    expect((await g.command({ cdb: [TEST_UNIT_READY], field })).status).toBe(ScsiStatus.GOOD);
    const { data } = await g.command({ cdb: [REQUEST_SENSE, 0, 0, 0, 18], into: 18, field });
    expect(data[2]).toBe(0);
    expect((await g.command({ cdb: read10(0, 1), into: 512, field })).sense).toBe("5/2000");
  });
});

describe("a request", () => {
  it("is answered with a status, sense data, a residual, and a used length that counts what was written", async () => {
    const g = await start();
    expect(await g.command({ cdb: [TEST_UNIT_READY] })).toMatchObject({
      response: ScsiResponse.OK,
      status: ScsiStatus.CHECK_CONDITION,
      senseLength: 18,
      sense: "6/2900",
      residual: 0,
      used: 108,
    });
    expect(await g.command({ cdb: read10(0, 1), into: 1024 })).toMatchObject({
      status: ScsiStatus.GOOD,
      senseLength: 0,
      residual: 512,
      used: 108 + 512,
    });
    const out = new Uint8Array(1024).fill(7);
    expect(await g.command({ cdb: [WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1, 0], out })).toMatchObject({
      status: ScsiStatus.GOOD,
      residual: 512,
      used: 108,
    });
    expect(await g.command({ cdb: [TEST_UNIT_READY], into: 16 })).toMatchObject({ residual: 16 });
    expect(g.clauses()).toEqual([]);
  });

  it("may be cut into segments in any way", async () => {
    const backend = memory();
    const g = await start({ backend });
    const out = Uint8Array.from({ length: 512 }, (_, i) => i * 7);
    await g.attended({ cdb: [TEST_UNIT_READY] });
    await g.command({ cdb: [WRITE_10, 0, 0, 0, 0, 3, 0, 0, 1, 0], out, whole: false });
    expect(backend.content.subarray(1536, 2048)).toEqual(out);
    const { data } = await g.command({ cdb: read10(3, 1), into: 512, whole: false });
    expect(data).toEqual(out);
  });

  it("whose CDB asks for more data than there is room for, or in it, is an OVERRUN", async () => {
    const g = await start();
    await g.attended({ cdb: [TEST_UNIT_READY] });
    for (const command of [
      { cdb: read10(0, 2), into: 512 },
      { cdb: [WRITE_10, 0, 0, 0, 0, 0, 0, 0, 2, 0], out: new Uint8Array(512) },
      { cdb: [INQUIRY, 0, 0, 0, 96], into: 36 },
      { cdb: read10(0, 1), out: new Uint8Array(512) },
    ]) {
      const { response, residual } = await g.command(command);
      expect([response, residual]).toEqual([ScsiResponse.OVERRUN, command.into ?? 512]);
    }
  });

  it("with data both ways fails without INOUT, and is taken with it", async () => {
    const both = { cdb: read10(0, 1), into: 512, out: new Uint8Array(100) };
    let g = await start();
    expect((await g.command(both)).response).toBe(ScsiResponse.FAILURE);
    await g.machine.close();
    g = await start({ features: { INOUT: true } });
    expect(await g.attended(both)).toMatchObject({ response: ScsiResponse.OK, residual: 100 });
    await g.run([ScsiFeature.HOTPLUG]);
    expect((await g.command(both)).response).toBe(ScsiResponse.FAILURE);
  });

  it("without a whole head, or without room for an answer, fails as far as that can be said", async () => {
    const g = await start();
    const queue = g.queue(2);
    const used = async (parts: Parameters<typeof queue.offer>[0]) => {
      queue.offer(parts);
      await g.ring(2);
      await g.settle();
      await g.settle();
      const [one] = queue.used();
      return { length: one?.length, response: one?.regions.at(-1)?.bytes[11] };
    };
    expect(await used([new Uint8Array(50), 108])).toEqual({ length: 108, response: 9 });
    expect(await used([new Uint8Array(51), 20])).toEqual({ length: 20, response: 9 });
    expect(await used([new Uint8Array(51), 4])).toMatchObject({ length: 4 });
    expect(await used([new Uint8Array(51)])).toMatchObject({ length: 0 });
    expect((await g.command({ cdb: [TEST_UNIT_READY] })).sense).toBe("6/2900");
  });

  it("is answered as well where nobody watches", async () => {
    const g = await start({ watched: false, queues: 2 });
    expect((await g.command({ cdb: [TEST_UNIT_READY] })).sense).toBe("6/2900");
    expect(await g.manage(ScsiTmf.LOGICAL_UNIT_RESET)).toBe(0);
    g.port.plug({ backend: memory(), target: 1 });
    expect(await g.events()).toHaveLength(1);
    await g.writeConfig(ScsiConfig.senseSize[0], 4, 18);
    expect((await g.command({ cdb: [TEST_UNIT_READY], senseSize: 18 })).sense).toBe("6/2903");
    await g.reset();
  });

  it("comes by any request queue", async () => {
    const g = await start({ queues: 3 });
    expect((await g.command({ cdb: [TEST_UNIT_READY], queue: 4 })).sense).toBe("6/2900");
    expect((await g.command({ cdb: [TEST_UNIT_READY], queue: 3 })).status).toBe(ScsiStatus.GOOD);
  });

  it("is answered in the order of the taking with IN_ORDER", async () => {
    const g = await start({
      features: { IN_ORDER: true },
      accept: [ReservedFeature.IN_ORDER],
      lies: { answers: (opcode) => opcode !== READ_10 },
    });
    const hung = g.submit({ cdb: read10(0, 1), into: 512, id: 77 });
    const later = g.submit({ cdb: [TEST_UNIT_READY] });
    await g.ring(2);
    await g.settle();
    expect(g.came(later)).toBe(false);
    expect(await g.manage(0, { id: 77 })).toBe(0);
    expect((await g.answer(hung)).response).toBe(ScsiResponse.ABORTED);
    expect((await g.answer(later)).sense).toBe("6/2900");
    expect(g.order.slice(-2)).toEqual([hung, later]);
  });

  it("on a ring of many is taken in several batches", async () => {
    const g = await start({ queueSize: 256 });
    await g.attended({ cdb: [TEST_UNIT_READY] });
    const keys = Array.from({ length: 100 }, (_, lba) =>
      g.submit({ cdb: read10(lba, 1), into: 512 }),
    );
    await g.ring(2);
    for (const key of keys) expect((await g.answer(key)).status).toBe(ScsiStatus.GOOD);
    expect(g.port.outstanding).toBe(0);
  });
});

describe("the legacy interface", () => {
  it("has the same requests, events and configuration", async () => {
    const g = await start({ legacy: "on" });
    await g.writeConfig(ScsiConfig.senseSize[0], 1, 32);
    expect(await g.field("senseSize")).toBe(32);
    expect(await g.command({ cdb: [TEST_UNIT_READY], senseSize: 32 })).toMatchObject({
      sense: "6/2900",
      used: 44,
    });
    await g.port.plug({ backend: memory(), target: 9 });
    expect(await g.events()).toEqual([{ event: 1, lun: [1, 9, 0, 0], reason: 1, used: 16 }]);
  });
});

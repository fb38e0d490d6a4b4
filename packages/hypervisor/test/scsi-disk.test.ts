// The commands of a SCSI disk and a CD-ROM over their backends (SPC-4, SBC-3, MMC-6), driven by hand.
import { ScsiModePage, ScsiOpcode, ScsiStatus, ScsiTmf, ScsiVpd } from "@virtio/core/scsi";
import { afterEach, describe, expect, it } from "vitest";
import { FaultBackend, MemoryBackend } from "../src/index.js";
import { recorded } from "./recorded.js";
import {
  blockCdb,
  inquiryCdb,
  modeSense6,
  modeSense10,
  read10,
  readCapacity16,
  unmapCdb,
  unmapList,
  write10,
} from "./scsi-cdbs.js";
import { type Answer, type Command, ScsiGuest, type ScsiGuestOptions } from "./scsi-guest.js";

const SIZE = 1 << 20;
const BLOCKS = SIZE / 512;
const GOOD = ScsiStatus.GOOD;

let guest: ScsiGuest;
afterEach(() => guest.machine.close());

/** A guest that has heard what the unit has to say at first. */
const start = async (options: ScsiGuestOptions = {}): Promise<ScsiGuest> => {
  guest = await ScsiGuest.start(options);
  const { target, lun } = options;
  await guest.command({
    cdb: [ScsiOpcode.TEST_UNIT_READY],
    ...(target === undefined ? {} : { target }),
    ...(lun === undefined ? {} : { lun }),
  });
  return guest;
};
const ask = (cdb: readonly number[], more: Omit<Command, "cdb"> = {}): Promise<Answer> =>
  guest.command({ cdb, ...more });
const dataOf = async (cdb: readonly number[], into: number): Promise<number[]> => {
  const { status, data, residual } = await ask(cdb, { into });
  expect(status).toBe(GOOD);
  return [...data.subarray(0, into - residual)];
};
const text = (bytes: readonly number[]): string => String.fromCharCode(...bytes);
const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >>> 8)) & 0xff);

describe("what a disk says of itself", () => {
  it("is standard INQUIRY data, as much of it as is asked for", async () => {
    await start();
    const data = await dataOf(inquiryCdb(96), 96);
    expect(data.slice(0, 8)).toEqual([0, 0, 6, 0x12, 31, 0, 0, 2]);
    expect(text(data.slice(8))).toBe("VIRTIO  SCSI DISK       1.4 ");
    expect(await dataOf(inquiryCdb(5), 5)).toEqual(data.slice(0, 5));
    expect((await ask([ScsiOpcode.INQUIRY, 0, 0x80, 0, 36], { into: 36 })).sense).toBe("5/2400");
  });

  it("is its vital product data: serial number, designator, limits, and how it is provisioned", async () => {
    await start({ serial: "S-1" });
    const page = async (code: number): Promise<number[]> => {
      const data = await dataOf(inquiryCdb(255, code), 255);
      expect(data.slice(0, 4)).toEqual([0, code, 0, data.length - 4]);
      return data.slice(4);
    };
    expect(await page(ScsiVpd.SUPPORTED_PAGES)).toEqual([0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    expect(text(await page(ScsiVpd.UNIT_SERIAL_NUMBER))).toBe("S-1");
    const designator = await page(ScsiVpd.DEVICE_IDENTIFICATION);
    expect(designator.slice(0, 4)).toEqual([2, 1, 0, 11]);
    expect(text(designator.slice(4))).toBe("VIRTIO  S-1");
    const limits = await page(ScsiVpd.BLOCK_LIMITS);
    expect([limits.length, limits[0], limits.slice(16, 24)]).toEqual([
      0x3c,
      1,
      [255, 255, 255, 255, 0, 0, 0, 255],
    ]);
    expect((await page(ScsiVpd.BLOCK_DEVICE_CHARACTERISTICS)).slice(0, 2)).toEqual([0, 1]);
    expect(await page(ScsiVpd.LOGICAL_BLOCK_PROVISIONING)).toEqual([0, 0xe0, 2, 0]);
    expect((await ask(inquiryCdb(255, 0xb3), { into: 255 })).sense).toBe("5/2400");
  });

  it("is no serial number where it has none, and a designator of its address", async () => {
    await start({ target: 3, lun: 4 });
    const at = { target: 3, lun: 4, into: 255 };
    expect((await ask(inquiryCdb(255, 0), at)).data.slice(4, 9)).toEqual(
      Uint8Array.of(0, 0x83, 0xb0, 0xb1, 0xb2),
    );
    expect((await ask(inquiryCdb(255, 0x80), at)).sense).toBe("5/2400");
    const { data } = await ask(inquiryCdb(255, 0x83), at);
    expect(text([...data.subarray(16, 25)])).toBe("scsi0-3-4");
  });

  it("is its capacity", async () => {
    await start();
    expect(await dataOf([ScsiOpcode.READ_CAPACITY_10], 8)).toEqual([0, 0, 7, 255, 0, 0, 2, 0]);
    const data = await dataOf(readCapacity16(), 32);
    expect(data.slice(0, 16)).toEqual([0, 0, 0, 0, 0, 0, 7, 255, 0, 0, 2, 0, 0, 0, 0x80, 0]);
    expect((await ask([ScsiOpcode.SERVICE_ACTION_IN_16, 0x11], { into: 32 })).sense).toBe("5/2400");
  });

  it("is a capacity of all ones where ten bytes do not say it", async () => {
    const backend = new FaultBackend(new MemoryBackend(512), () => undefined);
    Object.defineProperty(backend, "size", { value: 2 ** 33 * 512 });
    await start({ backend });
    expect((await dataOf([ScsiOpcode.READ_CAPACITY_10], 8)).slice(0, 4)).toEqual([
      255, 255, 255, 255,
    ]);
    expect((await dataOf(readCapacity16(), 32)).slice(0, 8)).toEqual([
      0, 0, 0, 1, 255, 255, 255, 255,
    ]);
    const { data } = await ask(modeSense6(ScsiModePage.CACHING, 64), { into: 64 });
    expect([...data.subarray(4, 8)]).toEqual([255, 255, 255, 255]);
    expect((await ask(blockCdb(ScsiOpcode.READ_16, 2 ** 33, 1), { into: 512 })).sense).toBe(
      "5/2100",
    );
  });

  it("are mode pages: a write cache, FUA, and whether it is protected", async () => {
    await start();
    const { CACHING, CONTROL, ALL, READ_WRITE_ERROR_RECOVERY } = ScsiModePage;
    const data = await dataOf(modeSense6(CACHING, 192), 192);
    expect(data.slice(0, 12)).toEqual([31, 0, 0x10, 8, 0, 0, 8, 0, 0, 0, 2, 0]);
    expect(data.slice(12, 15)).toEqual([CACHING, 0x12, 4]);
    expect(data.length).toBe(32);
    expect((await dataOf(modeSense6(CACHING, 192, true), 192)).slice(0, 7)).toEqual([
      23,
      0,
      0x10,
      0,
      CACHING,
      0x12,
      4,
    ]);
    const all = await dataOf(modeSense10(ALL, 255), 255);
    expect(all.slice(0, 8)).toEqual([0, all.length - 2, 0, 0x10, 0, 0, 0, 8]);
    expect([all[16], all[28], all[48]]).toEqual([READ_WRITE_ERROR_RECOVERY, CACHING, CONTROL]);
    // The write cache can be changed, and nothing is saved.
    expect((await dataOf(modeSense6(0x40 | CACHING, 192), 192))[14]).toBe(4);
    expect((await dataOf(modeSense6(0x40 | CONTROL, 192), 192)).slice(14)).toEqual(
      Array.from({ length: 10 }, () => 0),
    );
    expect((await ask(modeSense6(0xc0 | CACHING, 192), { into: 192 })).sense).toBe("5/3900");
    expect((await ask(modeSense6(0x05, 192), { into: 192 })).sense).toBe("5/2400");
  });
});

describe("reading and writing", () => {
  const { READ_6, READ_10, READ_12, READ_16, WRITE_6, WRITE_10, WRITE_12, WRITE_16 } = ScsiOpcode;
  it.each([
    [READ_6, WRITE_6],
    [READ_10, WRITE_10],
    [READ_12, WRITE_12],
    [READ_16, WRITE_16],
  ])(
    "by operation codes %i and %i moves blocks, in memory and through a backend",
    async (read, write) => {
      const content = new Uint8Array(SIZE);
      for (const backend of [
        new MemoryBackend(content),
        new FaultBackend(new MemoryBackend(content), () => undefined),
      ]) {
        content.fill(0);
        await start({ backend });
        const out = pattern(1024);
        expect(await ask(blockCdb(write, BLOCKS - 2, 2), { out })).toMatchObject({
          status: GOOD,
          residual: 0,
          used: 108,
        });
        expect(content.subarray(SIZE - 1024)).toEqual(out);
        const { status, data, used } = await ask(blockCdb(read, BLOCKS - 1, 1), { into: 512 });
        expect([status, used]).toEqual([GOOD, 620]);
        expect(data).toEqual(out.slice(512));
        for (const [opcode, more] of [
          [read, { into: 1024 }],
          [write, { out }],
        ] as const)
          expect(await ask(blockCdb(opcode, BLOCKS - 1, 2), more)).toMatchObject({
            sense: "5/2100",
            residual: 1024,
            used: 108,
          });
        await guest.machine.close();
      }
      await start();
    },
  );

  it("of 0 blocks moves none, but of READ (6) 256", async () => {
    await start();
    expect(await ask(read10(5, 0), { into: 512 })).toMatchObject({ status: GOOD, residual: 512 });
    expect(await ask(blockCdb(READ_6, 0, 0), { into: 256 * 512 })).toMatchObject({
      status: GOOD,
      residual: 0,
    });
  });

  it("of protected blocks, or with protection that there is not, is refused", async () => {
    await start({ readonly: true });
    const out = new Uint8Array(512);
    expect((await ask(write10(0, 1), { out })).sense).toBe("7/2700");
    expect((await ask(unmapCdb(24), { out: unmapList([0, 1]) })).sense).toBe("7/2700");
    expect((await ask(blockCdb(ScsiOpcode.WRITE_SAME_10, 0, 1), { out })).sense).toBe("7/2700");
    expect((await ask(modeSense6(8, 64), { into: 64 })).data[2]).toBe(0x90);
    expect((await ask(blockCdb(READ_10, 0, 1, 0x20), { into: 512 })).sense).toBe("5/2400");
    expect((await ask(blockCdb(WRITE_16, 0, 1, 0x20), { out })).sense).toBe("5/2400");
  });

  it("is stable with FUA, and after SYNCHRONIZE CACHE", async () => {
    const { asked, backend } = recorded();
    await start({ backend });
    const out = new Uint8Array(512);
    await ask(write10(2, 1), { out });
    await ask(write10(4, 1, 8), { out });
    expect((await ask(blockCdb(ScsiOpcode.SYNCHRONIZE_CACHE_10, 0, 0))).status).toBe(GOOD);
    expect((await ask(blockCdb(ScsiOpcode.SYNCHRONIZE_CACHE_16, 0, 8))).status).toBe(GOOD);
    expect((await ask(blockCdb(ScsiOpcode.SYNCHRONIZE_CACHE_10, BLOCKS, 1))).sense).toBe("5/2100");
    const flush = "flush 0+0";
    expect(asked).toEqual(["write 1024+512", "write 2048+512", flush, flush, flush]);
  });

  it("of a backend that fails is a medium error, and one that moves less is asked for the rest", async () => {
    const fates = new Map<string, "error" | { short: number }>();
    const backend = new FaultBackend(new MemoryBackend(pattern(SIZE)), ({ operation }) =>
      fates.get(operation),
    );
    await start({ backend });
    const out = new Uint8Array(1024);
    fates.set("read", "error").set("write", "error").set("flush", "error");
    expect(await ask(read10(0, 1), { into: 512 })).toMatchObject({
      sense: "3/1100",
      residual: 512,
      used: 108,
    });
    expect((await ask(write10(0, 2), { out })).sense).toBe("3/0c00");
    expect((await ask(blockCdb(ScsiOpcode.VERIFY_10, 0, 8))).sense).toBe("3/1100");
    expect((await ask(blockCdb(ScsiOpcode.SYNCHRONIZE_CACHE_10, 0, 0))).sense).toBe("3/0c00");
    fates.set("read", { short: 100 });
    const { data, status } = await ask(read10(1, 2), { into: 1024 });
    expect(status).toBe(GOOD);
    expect(data).toEqual(pattern(SIZE).subarray(512, 1536));
  });

  it("by blocks of 4096 bytes counts those", async () => {
    const backend = new MemoryBackend(SIZE);
    await start({ luns: [{ backend, blockSize: 4096 }] });
    const out = pattern(4096);
    expect((await ask(write10(255, 1), { out })).status).toBe(GOOD);
    expect(backend.content.subarray(SIZE - 4096)).toEqual(out);
    expect((await ask(write10(256, 1), { out })).sense).toBe("5/2100");
    expect(await dataOf([ScsiOpcode.READ_CAPACITY_10], 8)).toEqual([0, 0, 0, 255, 0, 0, 16, 0]);
  });
});

describe("MODE SELECT", () => {
  const { CACHING, CONTROL } = ScsiModePage;
  const select = async (list: readonly number[], flags = 0x10, long = false): Promise<string> => {
    const { MODE_SELECT_6, MODE_SELECT_10 } = ScsiOpcode;
    const cdb = long
      ? [MODE_SELECT_10, flags, 0, 0, 0, 0, 0, 0, list.length, 0]
      : [MODE_SELECT_6, flags, 0, 0, list.length, 0];
    const out = list.length === 0 ? {} : { out: Uint8Array.from(list) };
    const { sense, residual } = await ask(cdb, out);
    if (sense === "") expect(residual).toBe(0);
    return sense;
  };
  const caching = (byte2: number) => [CACHING, 0x12, byte2, ...Array.from({ length: 17 }, () => 0)];
  const wce = async (control = 0): Promise<number | undefined> =>
    (await dataOf(modeSense6(control | CACHING, 192, true), 192))[6];

  it("turns the write cache off, so that each write is stable, and on again", async () => {
    const { asked, backend } = recorded();
    await start({ backend });
    const out = new Uint8Array(512);
    expect(await select([0, 0, 0, 0, ...caching(0)])).toBe("");
    expect([await wce(), await wce(0x80)]).toEqual([0, 4]);
    await ask(write10(0, 1), { out });
    await ask(unmapCdb(24), { out: unmapList([0, 1]) });
    const list = [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 2, 0, ...caching(4)];
    expect(await select(list, 0x10, true)).toBe("");
    await ask(write10(0, 1), { out });
    expect(await wce()).toBe(4);
    const flush = "flush 0+0";
    expect(asked).toEqual(["write 0+512", flush, "discard 0+512", flush, "write 0+512"]);
    await select([0, 0, 0, 0, ...caching(0)]);
    await guest.manage(ScsiTmf.LOGICAL_UNIT_RESET);
    await ask([ScsiOpcode.TEST_UNIT_READY]);
    expect(await wce()).toBe(4);
  });

  it("changes nothing else, and nothing at all when one page is not as it is", async () => {
    await start();
    expect(await select([])).toBe("");
    expect(await select([0, 0, 0])).toBe("5/1a00");
    expect(await select([0, 0, 0, 0, ...caching(0)], 0)).toBe("5/2400");
    expect(await select([0, 0, 0, 0, ...caching(0)], 0x11)).toBe("5/2400");
    for (const list of [
      caching(1),
      [...caching(0), CONTROL, 10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [...caching(0), 0x1c, 2, 0, 0],
      caching(0).slice(0, 19),
      [CACHING],
    ])
      expect(await select([0, 0, 0, 0, ...list])).toBe("5/2600");
    expect(await select([0, 0, 0, 8, 0, 0, 8, 1, 0, 0, 2, 0, ...caching(0)])).toBe("5/2600");
    expect(await select([0, 0, 0, 4, 0, 0, 8, 0, ...caching(0)])).toBe("5/2600");
    expect(await wce()).toBe(4);
  });
});

describe("VERIFY", () => {
  const { VERIFY_10, VERIFY_16 } = ScsiOpcode;
  it("reads the blocks, and with BYTCHK compares them", async () => {
    const content = pattern(SIZE);
    const { asked, backend } = recorded();
    await start({ backend });
    expect((await ask(blockCdb(VERIFY_16, 1, 3))).status).toBe(GOOD);
    expect(asked).toEqual(["read 512+1536"]);
    await guest.machine.close();
    await start({ backend: new MemoryBackend(content) });
    const same = content.slice(1024, 1024 + 300 * 512);
    const other = same.slice();
    other[299 * 512] = (other[299 * 512] ?? 0) ^ 1;
    for (const whole of [true, false]) {
      const compare = (out: Uint8Array) => ask(blockCdb(VERIFY_10, 2, 300, 2), { out, whole });
      expect(await compare(same)).toMatchObject({ status: GOOD, residual: 0 });
      expect(await compare(other)).toMatchObject({ sense: "e/1d00", residual: 0 });
    }
    expect((await ask(blockCdb(VERIFY_10, BLOCKS, 1))).sense).toBe("5/2100");
    expect((await ask(blockCdb(VERIFY_10, 0, 1, 6), { out: same })).sense).toBe("5/2400");
  });
});

describe("UNMAP and WRITE SAME", () => {
  const { WRITE_SAME_10, WRITE_SAME_16 } = ScsiOpcode;

  it("give ranges back, all of which are checked first", async () => {
    const { asked, backend } = recorded();
    await start({ backend });
    const out = unmapList([8, 8], [100, 1]);
    expect(await ask(unmapCdb(out.length), { out })).toMatchObject({ status: GOOD, residual: 0 });
    expect(asked).toEqual(["discard 4096+4096", "discard 51200+512"]);
    asked.length = 0;
    const list = async (bytes: Uint8Array, length = bytes.length, flags = 0): Promise<string> =>
      (await ask(unmapCdb(length, flags), { out: bytes })).sense;
    expect(await list(unmapList([0, 1], [BLOCKS, 1]))).toBe("5/2100");
    expect(await list(unmapList([2 ** 40, 1]))).toBe("5/2100");
    expect(await list(out, 7)).toBe("5/1a00");
    expect(await list(out, 24)).toBe("5/2600");
    expect(await list(out, 40, 1)).toBe("5/2400");
    expect(await list(unmapList(...Array.from({ length: 256 }, () => [0, 1] as const)))).toBe(
      "5/2600",
    );
    expect(await list(out, 0)).toBe("");
    expect(asked).toEqual([]);
  });

  it("write zeroes, or one block all over", async () => {
    const { asked, backend, content } = recorded();
    await start({ backend });
    const zeroes = new Uint8Array(512);
    expect(await ask(blockCdb(WRITE_SAME_10, 1, 4, 8), { out: zeroes })).toMatchObject({
      status: GOOD,
      residual: 0,
    });
    expect((await ask(blockCdb(WRITE_SAME_16, 8, 4, 9))).status).toBe(GOOD);
    expect(asked).toEqual(["writeZeroes 512+2048", "writeZeroes 4096+2048"]);
    const out = pattern(512);
    expect((await ask(blockCdb(WRITE_SAME_16, 20, 300), { out })).status).toBe(GOOD);
    for (const lba of [20, 150, 319])
      expect(content.subarray(lba * 512, lba * 512 + 512)).toEqual(out);
    expect([content[20 * 512 - 1], content[320 * 512]]).toEqual([1, 1]);
  });

  it("are refused of no blocks, beyond the end, and with what there is not", async () => {
    await start();
    const out = new Uint8Array(512);
    expect((await ask(blockCdb(WRITE_SAME_10, 0, 0), { out })).sense).toBe("5/2400");
    expect((await ask(blockCdb(WRITE_SAME_16, BLOCKS, 1), { out })).sense).toBe("5/2100");
    expect((await ask(blockCdb(WRITE_SAME_16, 0, 1, 0x10), { out })).sense).toBe("5/2400");
    expect((await ask(blockCdb(WRITE_SAME_10, 0, 1, 1), { out })).sense).toBe("5/2400");
  });

  it("need no backend that can zero or discard", async () => {
    const inner = new MemoryBackend(new Uint8Array(SIZE).fill(5));
    const backend = {
      size: SIZE,
      readOnly: false,
      read: inner.read.bind(inner),
      write: inner.write.bind(inner),
      flush: () => undefined,
      close: () => inner.close(),
    };
    await start({ backend });
    expect((await ask(blockCdb(WRITE_SAME_16, 0, 4, 9))).status).toBe(GOOD);
    expect([inner.content[0], inner.content[2047], inner.content[2048]]).toEqual([0, 0, 5]);
    const out = unmapList([8, 8]);
    expect((await ask(unmapCdb(out.length), { out })).status).toBe(GOOD);
  });
});

describe("its state", () => {
  const { START_STOP_UNIT, TEST_UNIT_READY, REQUEST_SENSE } = ScsiOpcode;
  const stop = (power: number): number[] => [START_STOP_UNIT, 0, 0, 0, power, 0];

  it("is started or stopped", async () => {
    await start();
    expect((await ask(stop(0))).status).toBe(GOOD);
    expect((await ask([TEST_UNIT_READY])).sense).toBe("2/0402");
    expect((await ask(read10(0, 1), { into: 512 })).sense).toBe("2/0402");
    expect((await ask(inquiryCdb(36), { into: 36 })).status).toBe(GOOD);
    expect((await ask(stop(1))).status).toBe(GOOD);
    expect((await ask([TEST_UNIT_READY])).status).toBe(GOOD);
    expect((await ask(stop(0x30))).status).toBe(GOOD);
    expect((await ask([TEST_UNIT_READY])).status).toBe(GOOD);
    expect((await ask(stop(2))).sense).toBe("5/2400");
  });

  it("is tested by SEND DIAGNOSTIC", async () => {
    await start();
    expect((await ask([ScsiOpcode.SEND_DIAGNOSTIC, 4, 0, 0, 0, 0])).status).toBe(GOOD);
    expect((await ask([ScsiOpcode.SEND_DIAGNOSTIC, 0, 0, 0, 0, 0])).sense).toBe("5/2400");
  });

  it("is told by REQUEST SENSE, once, or by the next command", async () => {
    guest = await ScsiGuest.start({});
    const sense = async (): Promise<number[]> => {
      const data = await dataOf([REQUEST_SENSE, 0, 0, 0, 18], 18);
      return [data[0] ?? -1, data[2] ?? -1, data[7] ?? -1, data[12] ?? -1];
    };
    expect((await ask(inquiryCdb(36), { into: 36 })).status).toBe(GOOD);
    expect(await sense()).toEqual([0x70, 6, 10, 0x29]);
    expect(await sense()).toEqual([0x70, 0, 10, 0]);
    expect((await ask([TEST_UNIT_READY])).status).toBe(GOOD);
    expect((await ask([REQUEST_SENSE, 1, 0, 0, 18], { into: 18 })).sense).toBe("5/2400");
    await guest.run();
    expect((await ask([TEST_UNIT_READY])).sense).toBe("6/2900");
  });

  it("is not known to an operation code that there is not", async () => {
    await start();
    for (const opcode of [0x02, 0x4d, 0x7f, 0xff, ScsiOpcode.READ_TOC, 0x16])
      expect((await ask([opcode])).sense).toBe("5/2000");
  });
});

describe("a CD-ROM", () => {
  const { READ_TOC, GET_EVENT_STATUS_NOTIFICATION, TEST_UNIT_READY, START_STOP_UNIT } = ScsiOpcode;
  const cd = (backend: MemoryBackend | null = new MemoryBackend(pattern(2048 * 100))) =>
    start({ luns: [{ type: "cd", backend }] });

  it("has blocks of 2048 bytes that can be read, and is removable", async () => {
    await cd();
    expect((await dataOf(inquiryCdb(36), 36)).slice(0, 2)).toEqual([5, 0x80]);
    expect(await dataOf([ScsiOpcode.READ_CAPACITY_10], 8)).toEqual([0, 0, 0, 99, 0, 0, 8, 0]);
    const { data } = await ask(read10(99, 1), { into: 2048 });
    expect(data).toEqual(pattern(2048 * 100).subarray(2048 * 99));
    expect((await ask(write10(0, 1), { out: new Uint8Array(2048) })).sense).toBe("5/2000");
    expect(await dataOf(inquiryCdb(64, 0), 64)).toEqual([5, 0, 0, 2, 0, 0x83]);
  });

  it("has a table of contents with one track of data", async () => {
    await cd();
    const toc = (flags: number, format: number, first: number) =>
      [READ_TOC, flags, format, 0, 0, 0, first, 0, 64, 0] as const;
    const leadOut = [0, 0x14, 0xaa, 0];
    expect(await dataOf(toc(0, 0, 0), 64)).toEqual([
      ...[0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0],
      ...[...leadOut, 0, 0, 0, 100],
    ]);
    expect(await dataOf(toc(2, 0, 0xaa), 64)).toEqual([0, 10, 1, 1, ...leadOut, 0, 0, 3, 25]);
    expect(await dataOf(toc(0, 1, 0), 64)).toEqual([0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    expect((await ask(toc(0, 2, 0), { into: 64 })).sense).toBe("5/2400");
    expect((await ask(toc(0, 0, 2), { into: 64 })).sense).toBe("5/2400");
  });

  it("is not ready without a disc, and says when one came and went", async () => {
    await cd(null);
    const status = async (polled = 1, asked = 0x10): Promise<number[]> =>
      dataOf([GET_EVENT_STATUS_NOTIFICATION, polled, 0, 0, asked, 0, 0, 0, 8, 0], 8);
    expect((await ask([TEST_UNIT_READY])).sense).toBe("2/3a00");
    expect(await status()).toEqual([0, 6, 4, 0x10, 0, 0, 0, 0]);
    await guest.port.load(0, 0, new MemoryBackend(4096));
    expect(await status()).toEqual([0, 6, 4, 0x10, 2, 2, 0, 0]);
    expect((await ask([TEST_UNIT_READY])).sense).toBe("6/2800");
    expect((await ask([TEST_UNIT_READY])).status).toBe(GOOD);
    await guest.port.load(0, 0, null);
    expect(await status()).toEqual([0, 6, 4, 0x10, 3, 0, 0, 0]);
    expect(await status(1, 2)).toEqual([0, 2, 0x80, 0x10]);
    expect((await ask([GET_EVENT_STATUS_NOTIFICATION, 0], { into: 8 })).sense).toBe("5/2400");
  });

  it("keeps its disc while the driver locks it in", async () => {
    await cd();
    const eject = [START_STOP_UNIT, 0, 0, 0, 2, 0];
    const prevent = (on: number) => [ScsiOpcode.PREVENT_ALLOW_MEDIUM_REMOVAL, 0, 0, 0, on, 0];
    await ask(prevent(1));
    expect((await ask(eject)).sense).toBe("5/5302");
    await ask(prevent(0));
    expect((await ask(eject)).status).toBe(GOOD);
    expect((await ask([TEST_UNIT_READY])).sense).toBe("2/0402");
  });
});

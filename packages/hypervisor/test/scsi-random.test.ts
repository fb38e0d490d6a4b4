// A SCSI host and drivers that send anything: each request is answered once, and a disk keeps what was written to it.
import { ScsiOpcode, ScsiQueue, ScsiStatus } from "@virtio/core/scsi";
import { describe, expect, it } from "vitest";
import { FaultBackend, MemoryBackend } from "../src/index.js";
import { xorshift } from "../src/scheduler.js";
import { blockCdb, unmapCdb, unmapList } from "./scsi-cdbs.js";
import { type Command, ScsiGuest } from "./scsi-guest.js";

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
// Printed at once: a test that does not end shows it too.
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);
const opcodes = Object.values(ScsiOpcode).filter((code) => typeof code === "number");

/** Whole numbers below `n`. */
function numbers(): (n: number) => number {
  const random = xorshift(seed | 0);
  return (n) => Math.floor(random() * n);
}

describe("random commands", () => {
  it("are each answered once, whatever is in them", async () => {
    const below = numbers();
    const slow = new FaultBackend(new MemoryBackend(1 << 16), () =>
      below(4) === 0 ? "error" : below(4) === 0 ? Promise.resolve() : undefined,
    );
    const g = await ScsiGuest.start({
      luns: [
        { backend: new MemoryBackend(1 << 16), serial: "A" },
        { backend: slow, lun: 1 },
        { backend: new MemoryBackend(1 << 16), lun: 2, type: "cd" },
      ],
      seed: seed | 0,
    });
    const statuses = new Set<number>();
    for (let round = 0; round < 60; round++) {
      const keys = Array.from({ length: 10 }, () => {
        const cdb = Array.from({ length: 16 }, () => (below(3) === 0 ? below(256) : below(3)));
        cdb[0] = below(8) === 0 ? below(256) : (opcodes[below(opcodes.length)] ?? 0);
        const command: Command = {
          cdb,
          lun: below(4),
          ...(below(3) === 0 ? { out: new Uint8Array(1 + below(2048)) } : { into: below(4096) }),
          attribute: below(5),
          whole: below(2) === 0,
        };
        return g.submit(command);
      });
      await g.ring(ScsiQueue.REQUEST);
      if (round % 8 === 0) await g.manage(below(8), { lun: below(4), id: below(600) });
      for (const key of keys) {
        const { response, status, used } = await g.answer(key);
        expect(response).toBeLessThanOrEqual(9);
        expect(used).toBeGreaterThanOrEqual(108);
        statuses.add(status);
      }
    }
    expect(g.port.outstanding).toBe(0);
    expect([...statuses].sort()).toEqual([ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION]);
    await g.machine.close();
  });

  it("leave on a disk what they wrote", async () => {
    const below = numbers();
    const blocks = 64;
    const expected = new Uint8Array(blocks * 512);
    const backend = new FaultBackend(new MemoryBackend(expected.length), () => undefined);
    const g = await ScsiGuest.start({ backend });
    await g.attended({ cdb: [ScsiOpcode.TEST_UNIT_READY] });
    const { READ_6, READ_10, READ_12, READ_16, WRITE_6, WRITE_10, WRITE_12, WRITE_16 } = ScsiOpcode;
    const write = async (lba: number, count: number): Promise<void> => {
      const out = Uint8Array.from({ length: count * 512 }, () => below(256));
      const opcode = [WRITE_6, WRITE_10, WRITE_12, WRITE_16][below(4)] ?? WRITE_10;
      expect((await g.command({ cdb: blockCdb(opcode, lba, count), out })).status).toBe(0);
      expected.set(out, lba * 512);
    };
    const same = async (lba: number, count: number): Promise<void> => {
      const out = new Uint8Array(512).fill(below(2) * below(256));
      const opcode = [ScsiOpcode.WRITE_SAME_10, ScsiOpcode.WRITE_SAME_16][below(2)];
      const cdb = blockCdb(opcode ?? ScsiOpcode.WRITE_SAME_10, lba, count, 8 * below(2));
      expect((await g.command({ cdb, out })).status).toBe(0);
      expected.fill(out[0] ?? 0, lba * 512, (lba + count) * 512);
    };
    const unmap = async (lba: number, count: number): Promise<void> => {
      const out = unmapList([lba, count]);
      expect((await g.command({ cdb: unmapCdb(out.length), out })).status).toBe(0);
      // A disk in memory reads zeroes then.
      expected.fill(0, lba * 512, (lba + count) * 512);
    };
    const read = async (lba: number, count: number): Promise<void> => {
      const opcode = [READ_6, READ_10, READ_12, READ_16][below(4)] ?? READ_10;
      const { data } = await g.command({
        cdb: blockCdb(opcode, lba, count),
        into: count * 512,
        whole: below(2) === 0,
      });
      expect(data).toEqual(expected.subarray(lba * 512, (lba + count) * 512));
    };
    for (let n = 0; n < 150; n++) {
      const lba = below(blocks);
      const count = 1 + below(Math.min(8, blocks - lba));
      await ([write, write, same, unmap, read][below(5)] ?? read)(lba, count);
    }
    await read(0, blocks);
    await g.machine.close();
  });
});

// Disks: every byte where it belongs, on every kind of ring, with every command.
import type { EmbeddedScsiOptions } from "@virtio/hypervisor";
import { FaultBackend, MemoryBackend } from "@virtio/hypervisor";
import { BioCommand } from "@virtio/storage";
import { describe, expect, it } from "vitest";
import { bench, endsOf, only, outcome, pattern } from "./attached.js";

const SECTOR = 512;
const SIZE = 256 * SECTOR;

const kinds: readonly (readonly [string, EmbeddedScsiOptions])[] = [
  ["a split ring", {}],
  ["a packed ring", { packed: true }],
  ["a legacy device", { legacy: "on" }],
  ["4 queues", { queues: 4 }],
  ["a ring that is soon full", { queueSize: 8, indirect: false }],
  ["a unit of 2 commands", { cmdPerLun: 2 }],
  ["small transfers", { maxSectors: 8 }],
];

describe("a disk", () => {
  for (const [what, options] of kinds)
    it(`keeps every byte of random writes, reads, zeroes and discards, on ${what}`, async () => {
      const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
      const content = new Uint8Array(SIZE);
      const { bus, rules, machine } = await bench({
        ...options,
        backend: new MemoryBackend(content),
      });
      const disk = only(bus);
      const model = new Uint8Array(SIZE);
      const region = machine.memory.allocate(32 * SECTOR);
      let state = seed;
      const random = (below: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
      };
      const note = `seed ${seed}`;
      for (let round = 0; round < 3; round++) {
        // Pieces that do not overlap, all at once.
        const work: Promise<unknown>[] = [];
        for (let at = 0; at < 256; ) {
          const count = Math.min(256 - at, 1 + random(32));
          const [position, length] = [at * SECTOR, count * SECTOR];
          at += count;
          const kind = random(5);
          if (kind === 0) {
            work.push(disk.writeZeroes(position, length, { unmap: random(2) === 0 }));
            model.fill(0, position, position + length);
          } else if (kind === 1) {
            const into = new Uint8Array(length);
            const expected = model.slice(position, position + length);
            work.push(disk.read(position, into).then(() => expect(into, note).toEqual(expected)));
          } else {
            const data = pattern(length, random(2 ** 30));
            model.set(data, position);
            work.push(disk.write(position, data, { ordered: random(8) === 0 }));
          }
        }
        await Promise.all(work);
        await disk.flush();
        expect(Buffer.compare(content, model), note).toBe(0);
        // In guest memory nothing is bounced.
        const [position, length] = [random(200) * SECTOR, (1 + random(32)) * SECTOR];
        const place = region.bytes.subarray(0, length);
        await disk.read(position, place);
        expect(Buffer.compare(place, model.subarray(position, position + length)), note).toBe(0);
      }
      await disk.discard(0, 8 * SECTOR);
      expect(rules.violations, note).toEqual([]);
      expect(disk.statistics.busy).toBe(0);
      region.free();
    });

  it("keeps every byte whatever happens between", async () => {
    const first = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
    for (let seed = first; seed < first + 5; seed++) {
      const content = new Uint8Array(SIZE);
      const { bus, rules } = await bench({ seed, queues: 2, backend: new MemoryBackend(content) });
      const disk = only(bus);
      const blocks = Array.from({ length: 64 }, (_, n) => pattern(4 * SECTOR, seed + n));
      await Promise.all(blocks.map((block, n) => disk.write(n * 4 * SECTOR, block)));
      expect(Buffer.compare(content, Buffer.concat(blocks)), `seed ${seed}`).toBe(0);
      expect(rules.violations, `seed ${seed}`).toEqual([]);
    }
  });

  /** A medium that counts how often it is made stable. */
  class Counting extends MemoryBackend {
    flushes = 0;
    override flush(): undefined {
      this.flushes += 1;
    }
  }

  it("is made stable by SYNCHRONIZE CACHE", async () => {
    const backend = new Counting(SIZE);
    const disk = only((await bench({ backend })).bus);
    const before = backend.flushes;
    await disk.write(0, pattern(SECTOR, 1));
    expect(backend.flushes).toBe(before);
    await disk.flush();
    expect(backend.flushes).toBe(before + 1);
  });

  it("forces each write out where there is no SYNCHRONIZE CACHE", async () => {
    const backend = new Counting(SIZE);
    const synchronize = 0x35;
    const { bus } = await bench({
      backend,
      lies: {
        status: (honest, opcode) => (opcode === synchronize ? 2 : honest),
        senseLength: (honest, opcode) => (opcode === synchronize ? 18 : honest),
        sense: (sense, opcode) => {
          if (opcode === synchronize) sense.set([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0]);
        },
      },
    });
    const disk = only(bus);
    const before = backend.flushes;
    await disk.write(0, pattern(SECTOR, 1));
    expect(backend.flushes).toBe(before + 1);
    await disk.flush();
    expect(backend.flushes).toBe(before + 1);
  });

  it("says what suits it: block size, serial number, limits, geometry, no writes", async () => {
    const backend = new MemoryBackend(SIZE);
    const { bus } = await bench({
      luns: [{ backend, serial: "ABC", blockSize: 4096, readonly: true }],
    });
    const disk = only(bus);
    expect([disk.sectorSize, disk.ident, disk.readOnly, disk.maxTransfer]).toEqual([
      4096,
      "ABC",
      true,
      1 << 20,
    ]);
    expect([disk.firmwareHeads, disk.firmwareSectors]).toEqual([64, 32]);
    expect(await outcome(disk.write(0, new Uint8Array(4096)))).toBe("READ_ONLY EROFS");
  });

  it("reaches beyond 2 TiB with commands of 16 bytes", async () => {
    const size = 2 ** 42;
    const asked: number[] = [];
    const { bus } = await bench({
      backend: {
        size,
        readOnly: false,
        read: (position, into) => {
          asked.push(position);
          return into.reduce((sum, { length }) => sum + length, 0);
        },
        write: (position, from) => {
          asked.push(position);
          return from.reduce((sum, { length }) => sum + length, 0);
        },
        flush: () => {},
        close: async () => {},
      },
    });
    const disk = only(bus);
    expect(disk.mediaSize).toBe(size);
    const into = new Uint8Array(SECTOR);
    for (const position of [2 ** 41 - SECTOR, 2 ** 41, size - SECTOR]) {
      await disk.write(position, into);
      await disk.read(position, into);
    }
    expect(asked.slice(-6)).toEqual([
      ...[2 ** 41 - SECTOR, 2 ** 41 - SECTOR, 2 ** 41, 2 ** 41],
      ...[size - SECTOR, size - SECTOR],
    ]);
    expect(await outcome(disk.writeZeroes(2 ** 41 - SECTOR, 2 * SECTOR))).toMatch(
      /done|UNSUPPORTED/,
    );
  });

  it("takes a dump where its device lives in this thread", async () => {
    const content = new Uint8Array(SIZE);
    const { bus } = await bench({ backend: new MemoryBackend(content) });
    const bytes = pattern(20 * SECTOR, 3);
    only(bus).dump(SECTOR, bytes);
    only(bus).dump(0, new Uint8Array(0));
    expect(Buffer.compare(content.subarray(SECTOR, 21 * SECTOR), bytes)).toBe(0);
  });

  for (const operation of ["read", "write"] as const)
    it(`fails each ${operation} of a bad sector, that request alone, with what CAM prints`, async () => {
      const backend = new FaultBackend(new MemoryBackend(SIZE));
      const { bus, lines } = await bench({ backend });
      const disk = only(bus);
      backend.fate = FaultBackend.badSectors(77, 1, [operation]);
      const said = lines.length;
      const command = operation === "read" ? BioCommand.READ : BioCommand.WRITE;
      const ends = await endsOf(disk, command, 128);
      expect(ends).toEqual(ends.map((_, n) => [n === 77 ? "IO EIO" : "done"]));
      const opcode = operation === "read" ? "28" : "2a";
      expect(lines.slice(said, said + 3)).toEqual([
        `(da0:vtscsi0:0:0:0): ${operation.toUpperCase()}(10). CDB: ${opcode} 00 00 00 00 4d 00 00 01 00`,
        "(da0:vtscsi0:0:0:0): CAM status: SCSI Status Error",
        "(da0:vtscsi0:0:0:0): SCSI status: Check Condition",
      ]);
      expect(lines[said + 3]).toMatch(/SCSI sense: MEDIUM ERROR asc:/);
      expect(lines[said + 4]).toBe("(da0:vtscsi0:0:0:0): Error 5, Unretryable error");
      backend.fate = () => undefined;
      expect(await outcome(disk[operation](77 * SECTOR, new Uint8Array(SECTOR)))).toBe("done");
    });
});

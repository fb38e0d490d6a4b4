// The contract suite of Disk: what every implementation does, in any test runner.
import { type Disk, VirtioFault } from "@virtio/core";

/** One case of the suite. `run` rejects when the disk does not keep it. */
export interface DiskCase {
  /** A sentence to finish "a disk …". */
  readonly name: string;
  readonly run: (disk: Disk) => Promise<void>;
}

function expect(kept: boolean, what: string): void {
  if (!kept) throw new Error(what);
}

async function rejects(work: Promise<unknown>, code: string): Promise<void> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(
    error instanceof VirtioFault && error.code === code,
    `rejected with ${String(error)}, not ${code}`,
  );
}

/** Bytes that differ at each position and for each seed. */
function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

const same = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((byte, i) => byte === b[i]);

async function readBack(disk: Disk, position: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await disk.read(position, into);
  return into;
}

/** Cases for a disk of at least 4 MiB that may be written, whose content is the test's own. They run in order on one disk. */
export const diskContract: readonly DiskCase[] = [
  {
    name: "has whole sectors",
    run: async ({ sectorSize, mediaSize, name }) => {
      expect(sectorSize >= 512 && sectorSize % 512 === 0, `sectorSize ${sectorSize}`);
      expect(mediaSize > 0 && mediaSize % sectorSize === 0, `mediaSize ${mediaSize}`);
      expect(/^[a-z]+\d+$/.test(name), `name ${name}`);
    },
  },
  {
    name: "reads what was written, one sector",
    run: async (disk) => {
      const data = pattern(disk.sectorSize, 1);
      await disk.write(disk.sectorSize, data);
      expect(
        same(await readBack(disk, disk.sectorSize, data.length), data),
        "other bytes came back",
      );
    },
  },
  {
    name: "changes nothing around what was written",
    run: async (disk) => {
      const { sectorSize } = disk;
      const before = pattern(3 * sectorSize, 2);
      await disk.write(0, before);
      const middle = pattern(sectorSize, 3);
      await disk.write(sectorSize, middle);
      const after = await readBack(disk, 0, 3 * sectorSize);
      const expected = before.slice();
      expected.set(middle, sectorSize);
      expect(same(after, expected), "a neighbour changed");
    },
  },
  {
    name: "moves transfers larger than one request",
    run: async (disk) => {
      const data = pattern(3 << 20, 4);
      await disk.write(disk.sectorSize, data);
      expect(
        same(await readBack(disk, disk.sectorSize, data.length), data),
        "other bytes came back",
      );
    },
  },
  {
    name: "reaches its last sector",
    run: async (disk) => {
      const data = pattern(disk.sectorSize, 5);
      await disk.write(disk.mediaSize - disk.sectorSize, data);
      expect(
        same(await readBack(disk, disk.mediaSize - disk.sectorSize, data.length), data),
        "other bytes came back",
      );
    },
  },
  {
    name: "keeps a thousand requests in flight apart",
    run: async (disk) => {
      const { sectorSize } = disk;
      const count = 1000;
      await Promise.all(
        Array.from({ length: count }, (_, i) => disk.write(i * sectorSize, pattern(sectorSize, i))),
      );
      const read = await Promise.all(
        Array.from({ length: count }, (_, i) => readBack(disk, i * sectorSize, sectorSize)),
      );
      const wrong = read.findIndex((bytes, i) => !same(bytes, pattern(sectorSize, i)));
      expect(wrong < 0, `sector ${wrong} holds other bytes`);
    },
  },
  { name: "flushes", run: (disk) => disk.flush() },
  {
    name: "says what suits it",
    run: async ({ sectorSize, maxTransfer, stripeSize, stripeOffset }) => {
      expect(maxTransfer >= sectorSize && maxTransfer % sectorSize === 0, `max ${maxTransfer}`);
      expect(stripeSize % sectorSize === 0, `stripeSize ${stripeSize}`);
      expect(
        stripeOffset === 0 || (stripeOffset > 0 && stripeOffset < stripeSize),
        `stripeOffset ${stripeOffset} of ${stripeSize}`,
      );
    },
  },
  {
    name: "gathers and scatters one transfer, of pieces that are not alike",
    run: async (disk) => {
      const { sectorSize } = disk;
      const sizes = [1, 3, 0, 400, 2].map((sectors) => sectors * sectorSize);
      const from = sizes.map((size, i) => pattern(size, 20 + i));
      const length = sizes.reduce((sum, size) => sum + size, 0);
      await disk.writev(7 * sectorSize, from);
      const whole = await readBack(disk, 7 * sectorSize, length);
      let at = 0;
      for (const piece of from) {
        expect(same(whole.subarray(at, at + piece.length), piece), `other bytes at ${at}`);
        at += piece.length;
      }
      const into = [...sizes].reverse().map((size) => new Uint8Array(size));
      await disk.readv(7 * sectorSize, into);
      at = 0;
      for (const piece of into) {
        expect(same(whole.subarray(at, at + piece.length), piece), `other bytes came to ${at}`);
        at += piece.length;
      }
      await disk.readv(0, []);
    },
  },
  {
    name: "writes nothing of a gathered transfer with a piece that it refuses",
    run: async (disk) => {
      const { sectorSize, mediaSize } = disk;
      const before = await readBack(disk, 0, sectorSize);
      const odd = [pattern(sectorSize, 30), new Uint8Array(sectorSize + 1)];
      await rejects(disk.writev(0, odd), "INVALID");
      const last = [pattern(sectorSize, 31), new Uint8Array(sectorSize)];
      await rejects(disk.writev(mediaSize - sectorSize, last), "INVALID");
      expect(same(await readBack(disk, 0, sectorSize), before), "its first piece was written");
    },
  },
  {
    name: "keeps ordered requests in order",
    run: async (disk) => {
      const { sectorSize } = disk;
      const ended: number[] = [];
      const write = (i: number): Promise<void> =>
        disk
          .write(0, new Uint8Array(sectorSize).fill(i), { ordered: i % 4 === 0 })
          .then(() => void ended.push(i));
      await Promise.all(Array.from({ length: 40 }, (_, i) => write(i)));
      for (const [at, i] of ended.entries())
        expect(Math.abs(at - i) < 4 && (i % 4 !== 0 || at === i), `${i} ended as number ${at}`);
      await disk.flush({ ordered: true });
    },
  },
  {
    name: "reads zeroes where it wrote zeroes, and changes nothing around them",
    run: async (disk) => {
      const { sectorSize, can } = disk;
      const length = 3001 * sectorSize;
      if (!can.writeZeroes) {
        await rejects(disk.writeZeroes(sectorSize, length), "UNSUPPORTED");
        return;
      }
      const data = pattern(length + 2 * sectorSize, 7);
      await disk.write(0, data);
      await disk.writeZeroes(sectorSize, length);
      data.fill(0, sectorSize, sectorSize + length);
      expect(same(await readBack(disk, 0, data.length), data), "other bytes came back");
    },
  },
  ...(["discard", "secureErase"] as const).map(
    (command): DiskCase => ({
      name: `does ${command}, or says that it cannot, and leaves the neighbours alone`,
      run: async (disk) => {
        const { sectorSize } = disk;
        if (!disk.can[command]) {
          await rejects(disk[command](0, sectorSize), "UNSUPPORTED");
          return;
        }
        const length = 2001 * sectorSize;
        const data = pattern(length + 2 * sectorSize, 8);
        await disk.write(0, data);
        await disk[command](sectorSize, length);
        await disk[command](0, 0);
        for (const at of [0, length + sectorSize])
          expect(
            same(await readBack(disk, at, sectorSize), data.subarray(at, at + sectorSize)),
            `a neighbour changed, at ${at}`,
          );
        await rejects(disk[command](0, sectorSize - 1), "INVALID");
        await rejects(disk[command](1, sectorSize), "INVALID");
        await rejects(disk[command](disk.mediaSize, sectorSize), "INVALID");
      },
    }),
  ),
  {
    name: "counts what it does",
    run: async (disk) => {
      const { sectorSize } = disk;
      const before = disk.statistics;
      expect(before.busy === 0, `${before.busy} requests are under way`);
      await Promise.all([
        disk.read(0, new Uint8Array(2 * sectorSize)),
        disk.write(0, new Uint8Array(3 * sectorSize)),
        disk.flush(),
      ]);
      const { reads, writes, flushes, bytesRead, bytesWritten, busy, busyTime } = disk.statistics;
      const seen = [reads - before.reads, writes - before.writes, flushes - before.flushes];
      seen.push(bytesRead - before.bytesRead, bytesWritten - before.bytesWritten, busy);
      const expected = [1, 1, 1, 2 * sectorSize, 3 * sectorSize, 0];
      expect(seen.join() === expected.join(), `counted ${seen}`);
      expect(busyTime >= before.busyTime, `busyTime ${before.busyTime}, then ${busyTime}`);
    },
  },
  { name: "moves nothing when asked for nothing", run: (disk) => disk.read(0, new Uint8Array(0)) },
  {
    name: "refuses a part of a sector",
    run: async (disk) => {
      await rejects(disk.read(1, new Uint8Array(disk.sectorSize)), "INVALID");
      await rejects(disk.read(0, new Uint8Array(disk.sectorSize - 1)), "INVALID");
      await rejects(disk.write(0.5, new Uint8Array(disk.sectorSize)), "INVALID");
      await rejects(disk.write(-disk.sectorSize, new Uint8Array(disk.sectorSize)), "INVALID");
    },
  },
  {
    name: "refuses what lies beyond its end",
    run: async (disk) => {
      await rejects(disk.read(disk.mediaSize, new Uint8Array(disk.sectorSize)), "INVALID");
      await rejects(
        disk.write(disk.mediaSize - disk.sectorSize, new Uint8Array(2 * disk.sectorSize)),
        "INVALID",
      );
    },
  },
  {
    name: "rejects an aborted transfer with the signal's reason, and goes on",
    run: async (disk) => {
      const controller = new AbortController();
      const reason = new Error("enough");
      const reading = disk.read(0, new Uint8Array(1 << 20), { signal: controller.signal });
      controller.abort(reason);
      const seen = await reading.then(
        () => null,
        (error: unknown) => error,
      );
      expect(seen === reason, `rejected with ${String(seen)}`);
      const late = await disk
        .read(0, new Uint8Array(512), { signal: AbortSignal.abort(reason) })
        .catch((error: unknown) => error);
      expect(late === reason, "an aborted signal did not reject");
      const data = pattern(disk.sectorSize, 6);
      await disk.write(0, data);
      expect(
        same(await readBack(disk, 0, data.length), data),
        "other bytes came back after an abort",
      );
    },
  },
  {
    name: "rejects with CLOSED once it is detached",
    run: async (disk) => {
      await disk.detach();
      expect((await disk.closed) === null, "closed did not resolve to null");
      await rejects(disk.read(0, new Uint8Array(disk.sectorSize)), "CLOSED");
      await rejects(disk.readv(0, [new Uint8Array(disk.sectorSize)]), "CLOSED");
      await rejects(disk.flush(), "CLOSED");
      if (disk.can.discard) await rejects(disk.discard(0, disk.sectorSize), "CLOSED");
      await disk.detach();
    },
  },
];

// Faults of the backend, on the embedded machine: each request ends exactly once, with the right errno, and the disk works afterwards.
import {
  type BackendRequest,
  type EmbeddedBlkOptions,
  FaultBackend,
  MemoryBackend,
} from "@virtio/hypervisor";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it, onTestFinished } from "vitest";
import { type Bench, bench } from "./attached.js";
import { flush, Load, type Request, read, turns, write } from "./bios.js";

const SECTOR = 512;
const BLOCK = 8 * SECTOR;
const BLOCKS = 64;
const SIZE = BLOCKS * BLOCK;
/** What is written here, and is not what was there. */
const OLD = 0x11;
const NEW = 0x77;

interface Faulty extends Bench {
  readonly backend: FaultBackend;
  readonly content: Uint8Array;
}

async function faulty(options: EmbeddedBlkOptions): Promise<Faulty> {
  const content = new Uint8Array(SIZE).fill(OLD);
  const backend = new FaultBackend(new MemoryBackend(content));
  const seen = await bench({ ...options, backend });
  onTestFinished(() => seen.machine.close());
  return { ...seen, backend, content };
}

/** A request to every block of the disk. */
const everywhere = (make: (position: number, data: Uint8Array) => Request): Request[] =>
  Array.from({ length: BLOCKS }, (_, n) => make(n * BLOCK, new Uint8Array(BLOCK).fill(NEW)));

/** Each ended once, these with EIO. */
function expectEnds({ ends }: Load, failed: (n: number) => boolean): void {
  expect(ends).toEqual(ends.map((_, n) => [failed(n) ? "IO EIO" : "done"]));
}

/** Nothing is wrong any more: the whole disk is written and read, and no rule was broken. */
async function expectWorks({ disk, rules, backend, content }: Faulty): Promise<void> {
  backend.fate = () => undefined;
  const bytes = Uint8Array.from({ length: SIZE }, (_, i) => (i * 31) >>> 7);
  await disk.write(0, bytes);
  await disk.flush();
  expect(Buffer.compare(content, bytes)).toBe(0);
  const into = new Uint8Array(SIZE);
  await disk.read(0, into);
  expect(Buffer.compare(into, bytes)).toBe(0);
  expect(disk.statistics.busy).toBe(0);
  expect(rules.violations).toEqual([]);
}

const kinds: readonly (readonly [string, EmbeddedBlkOptions])[] = [
  ["a split ring", {}],
  ["a packed ring", { packed: true }],
  ["a legacy device", { legacy: "on" }],
  ["4 queues", { queues: 4 }],
  ["a ring that is soon full", { queueSize: 8, indirect: false }],
];

for (const [what, options] of kinds)
  describe(`vtblk, on ${what},`, () => {
    for (const operation of ["read", "write"] as const)
      it(`fails each ${operation} that touches a bad sector with EIO, and no other`, async () => {
        const seen = await faulty(options);
        const { disk, backend, content, lines } = seen;
        const bad = [3, 17, 40];
        const fates = bad.map((n) => FaultBackend.badSectors(n * 8 + 5, 1, [operation]));
        backend.fate = (request) => fates.find((fate) => fate(request) !== undefined)?.(request);
        const requests = everywhere(operation === "read" ? read : write);
        const said = lines.length;
        const load = new Load(disk, requests);
        await load.over;
        await turns();
        expectEnds(load, (n) => bad.includes(n));
        // One line of the log each, and of what failed nothing was moved.
        expect(lines.slice(said).sort()).toEqual(
          bad.map((n) => `hard error cmd=${operation} ${n * 8}-${n * 8 + 7}`).sort(),
        );
        for (const [n, { data }] of requests.entries()) {
          const there = operation === "read" ? data : content.subarray(n * BLOCK, (n + 1) * BLOCK);
          const moved = operation === "read" ? OLD : NEW;
          const kept = operation === "read" ? NEW : OLD;
          expect([n, there?.every((byte) => byte === (bad.includes(n) ? kept : moved))]).toEqual([
            n,
            true,
          ]);
        }
        expect(disk.statistics.errors).toBe(bad.length);
        await expectWorks(seen);
      });

    it("fails a flush that fails, alone, with EIO", async () => {
      const seen = await faulty(options);
      seen.backend.fate = ({ operation }) => (operation === "flush" ? "error" : undefined);
      const load = new Load(seen.disk, [...everywhere(read), flush, ...everywhere(read)]);
      await load.over;
      await turns();
      expectEnds(load, (n) => n === BLOCKS);
      await expectWorks(seen);
    });

    it("fails what is torn with EIO: of a write some is there, of a read nothing is shown", async () => {
      const seen = await faulty(options);
      const { disk, backend, content } = seen;
      const torn = (n: number): boolean => n % 5 === 2;
      backend.fate = ({ position }) => (torn(position / BLOCK) ? { torn: 700 } : undefined);
      const writes = new Load(disk, everywhere(write));
      await writes.over;
      expectEnds(writes, torn);
      for (let n = 0; n < BLOCKS; n++) {
        const block = content.subarray(n * BLOCK, (n + 1) * BLOCK);
        const length = torn(n) ? 700 : BLOCK;
        expect([n, block.lastIndexOf(NEW)]).toEqual([n, length - 1]);
      }
      const requests = everywhere(read);
      for (const { data } of requests) data?.fill(0xee);
      const reads = new Load(disk, requests);
      await reads.over;
      await turns();
      expectEnds(reads, torn);
      for (const [n, { data }] of requests.entries())
        expect([n, data?.includes(0xee)]).toEqual([n, torn(n)]);
      await expectWorks(seen);
    });

    it("moves all of what the backend moves bit by bit, and fails with EIO where it stops", async () => {
      const seen = await faulty(options);
      const { disk, backend, content } = seen;
      const stops = (n: number): boolean => n % 5 === 2;
      const slow = (n: number): boolean => n % 5 === 3;
      let asked = 0;
      backend.fate = ({ position, length }) => {
        asked += 1;
        const n = Math.floor(position / BLOCK);
        if (stops(n)) return { short: length === BLOCK ? 700 : 0 };
        return slow(n) ? { short: 1 + (length >>> 1) } : undefined;
      };
      const writes = new Load(disk, everywhere(write));
      await writes.over;
      expectEnds(writes, stops);
      for (let n = 0; n < BLOCKS; n++) {
        const block = content.subarray(n * BLOCK, (n + 1) * BLOCK);
        expect([n, block.lastIndexOf(NEW)]).toEqual([n, (stops(n) ? 700 : BLOCK) - 1]);
      }
      content.forEach((_, i) => {
        content[i] = i % 251;
      });
      const requests = everywhere(read);
      const reads = new Load(disk, requests);
      await reads.over;
      await turns();
      expectEnds(reads, stops);
      for (const [n, { data }] of requests.entries())
        expect([
          n,
          data?.every((byte, i) => byte === (stops(n) ? NEW : (n * BLOCK + i) % 251)),
        ]).toEqual([n, true]);
      // Of 64 blocks 13 stop, at the second step, and 13 take 11 more: for 2047 bytes, 1023, and so on down to 1.
      expect(asked).toBe(2 * (BLOCKS + 13 + 11 * 13));
      await expectWorks(seen);
    });

    it("ends what is delayed when it comes, after what is not, each once", async () => {
      const passing = virtualTime();
      const seen = await faulty(options);
      const { disk, backend, machine } = seen;
      const late = (n: number): boolean => n % 7 === 3;
      let delayed = 0;
      backend.fate = ({ position }: BackendRequest) => {
        if (!late(position / BLOCK)) return undefined;
        delayed += 1;
        return new Promise((resolve) => machine.tasks.callout(10_000, resolve));
      };
      const began = performance.now();
      const load = new Load(disk, everywhere(read));
      await passing(load.over);
      expect(performance.now() - began).toBeGreaterThanOrEqual(10_000);
      await turns();
      expectEnds(load, () => false);
      expect(delayed).toBe(9);
      // A delay holds nobody up for whom there is room.
      if (options.queueSize === undefined) expect(load.order.slice(-9).every(late)).toBe(true);
      await expectWorks(seen);
    });

    it("fails what is never answered with ETIMEDOUT, once", async () => {
      const passing = virtualTime();
      const seen = await faulty(options);
      const { disk, backend, lines } = seen;
      for (let round = 0; round < 2; round++) {
        backend.fate = () => "never";
        const requests = everywhere(write).slice(0, 2);
        const load = new Load(disk, requests);
        await passing(load.over);
        backend.fate = () => undefined;
        await turns();
        expect(load.ends).toEqual(requests.map(() => ["TIMED_OUT ETIMEDOUT"]));
        expect(backend.unanswered).toBe(0);
        expect(lines.at(-1)).toBe("a request timed out after 30 s: resetting the device");
      }
      await expectWorks(seen);
    });
  });

describe("vtblk, on a device that calls what it cut short a success,", () => {
  for (const [what, options] of kinds.filter(([, { legacy }]) => legacy === undefined))
    it(`fails the short read with EIO, on ${what}`, async () => {
      // It says so by used.len.
      const missing = SECTOR + 1;
      let short = false;
      const seen = await faulty({
        ...options,
        lies: { usedLength: (honest) => (short ? honest - missing : honest) },
      });
      const { disk, backend } = seen;
      const bad = (n: number): boolean => n % 3 === 1;
      backend.fate = ({ position }) => {
        // Until the request is given back, which a backend in memory does at once.
        short = bad(position / BLOCK);
        return undefined;
      };
      const requests = everywhere(read);
      const load = new Load(disk, requests);
      await load.over;
      await turns();
      expectEnds(load, bad);
      for (const [n, { data }] of requests.entries())
        expect([n, data?.every((byte) => byte === (bad(n) ? NEW : OLD))]).toEqual([n, true]);
      short = false;
      await expectWorks(seen);
    });
});

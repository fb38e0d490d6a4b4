// QEMU's own faults: sectors that cannot be read or written, commands that fail, and a disk that is slow. Each request ends once, with
// the right errno, and the disk works afterwards.
import { attach, probe } from "@virtio/pci-transport";
import { type QemuMachine, qemu } from "@virtio/qemu";
import { type Bio, BioCommand, type StrategyDisk } from "@virtio/storage";
import { type VtblkOptions, vtblk } from "@virtio/vtblk";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu, pattern } from "./machines.js";

const SECTOR = 512;
const BLOCK = 8 * SECTOR;
/** Requests start so far apart that QEMU merges none. */
const STRIDE = 2 * BLOCK;
const COUNT = 64;
const SIZE = COUNT * STRIDE;

const { READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES } = BioCommand;

const memory = { driver: "null-co", size: SIZE, "read-zeroes": true };

interface Options {
  /** Of `-device virtio-blk-pci`. */
  readonly device?: string;
  /** More of QEMU's command line. */
  readonly args?: readonly string[];
  readonly driver?: VtblkOptions;
}

/** A disk over this block node, by QEMU's names. */
async function diskOver(
  node: object,
  options: Options = {},
): Promise<{ disk: StrategyDisk; machine: QemuMachine }> {
  const { device = "disable-legacy=on", args = [], driver } = options;
  const machine = await qemu({
    devices: [],
    args: [
      ...args,
      ...["-blockdev", JSON.stringify({ "node-name": "under-test", discard: "unmap", ...node })],
      ...["-device", `virtio-blk-pci,drive=under-test,${device}`],
    ],
  });
  onTestFinished(() => machine.close());
  const [found] = await probe(machine.buses[0].bus);
  if (found === undefined) throw new Error("no disk");
  return { disk: await attach(found, vtblk(driver), { cpus: 4 }), machine };
}

/** One request of each place. @returns every end of each of them: a promise would not show a second one */
async function endsOf(disk: StrategyDisk, command: BioCommand, count = COUNT): Promise<string[][]> {
  const ends: string[][] = Array.from({ length: count }, () => []);
  await new Promise<void>((resolve) => {
    const moves = command === READ || command === WRITE;
    const waiting = ends.map(
      (seen, n): Bio => ({
        command,
        position: command === FLUSH ? 0 : n * STRIDE,
        length: command === FLUSH ? 0 : BLOCK,
        data: moves ? pattern(BLOCK, n) : null,
        ordered: false,
        done: (fault) => {
          seen.push(fault === null ? "done" : `${fault.code} ${fault.errno}`);
          if (ends.every(({ length }) => length > 0)) resolve();
        },
      }),
    );
    disk.onRoom = () => {
      for (let bio = waiting[0]; bio !== undefined && disk.strategy(bio); bio = waiting[0])
        waiting.shift();
      disk.start();
    };
    disk.onRoom();
  });
  // Turns in which a second end would come.
  for (let n = 0; n < 20; n++) await new Promise((done) => setImmediate(done));
  return ends;
}

/** Each once, these with EIO. */
const expected = (bad: (n: number) => boolean): string[][] =>
  Array.from({ length: COUNT }, (_, n) => [bad(n) ? "IO EIO" : "done"]);

const devices: readonly (readonly [string, string])[] = [
  ["a legacy device", "disable-legacy=off,disable-modern=on"],
  ["a split ring", "disable-legacy=on"],
  ["packed rings", "disable-legacy=on,packed=on,num-queues=4"],
];

describe.skipIf(!hasQemu)("a disk of QEMU's with faults (needs QEMU)", () => {
  for (const [what, device] of devices)
    for (const [command, iotype, bad] of [
      [READ, "read", [3, 17, 40]],
      [WRITE, "write", [5, 6]],
    ] as const)
      it(`fails a ${iotype} of a bad sector with EIO, that request alone, and works on, on ${what}`, async () => {
        const rules = bad.map((n) => ({ event: "none", iotype, errno: 5, sector: n * 16 + 3 }));
        const node = { driver: "blkdebug", image: memory, "inject-error": rules };
        const { disk } = await diskOver(node, { device });
        const isBad = (n: number): boolean => (bad as readonly number[]).includes(n);
        for (let round = 0; round < 3; round++) {
          expect(await endsOf(disk, command)).toEqual(expected(isBad));
          expect(await endsOf(disk, command === READ ? WRITE : READ)).toEqual(
            expected(() => false),
          );
        }
        await disk.flush();
        expect(disk.statistics.busy).toBe(0);
      });

  for (const [command, iotype] of [
    [FLUSH, "flush"],
    [DISCARD, "discard"],
    [WRITE_ZEROES, "write-zeroes"],
  ] as const)
    it(`fails each ${iotype} with EIO once it cannot be done, and nothing else`, async () => {
      const rule = { event: "none", iotype, errno: 5 };
      const node = { driver: "blkdebug", image: memory, "inject-error": [rule] };
      const { disk } = await diskOver(node);
      // QEMU flushes only what was written to.
      await disk.write(0, pattern(BLOCK, 1));
      expect(await endsOf(disk, command)).toEqual(expected(() => true));
      for (const other of [READ, WRITE])
        expect(await endsOf(disk, other)).toEqual(expected(() => false));
    });

  it("fails a write with EIO when there is no space left for it", async () => {
    const rule = { event: "none", iotype: "write", errno: 28, sector: 7 * 16 };
    const node = { driver: "blkdebug", image: memory, "inject-error": [rule] };
    const { disk } = await diskOver(node, { device: "disable-legacy=on,werror=report" });
    expect(await endsOf(disk, WRITE)).toEqual(expected((n) => n === 7));
    expect(await endsOf(disk, READ)).toEqual(expected(() => false));
  });

  /** A disk of so many requests a second. */
  const slow = (iops: number, driver?: VtblkOptions): ReturnType<typeof diskOver> =>
    diskOver(
      { driver: "throttle", "throttle-group": "slow", file: memory },
      {
        args: ["-object", `throttle-group,id=slow,x-iops-total=${iops}`],
        ...(driver === undefined ? {} : { driver }),
      },
    );

  it("ends every request of a slow disk, in its time", async () => {
    const { disk } = await slow(100);
    const began = performance.now();
    expect(await endsOf(disk, READ, 40)).toEqual(new Array(40).fill(["done"]));
    expect(performance.now() - began).toBeGreaterThan(100);
  });

  it("resets a disk that is too slow: each request ends once, and it works again", async () => {
    const { disk, machine } = await slow(20, { timeout: 1 });
    const ends = await endsOf(disk, READ);
    const fast = { "iops-total": 1_000_000 };
    await machine.qmp.execute("qom-set", {
      path: "/objects/slow",
      property: "limits",
      value: fast,
    });
    expect(await endsOf(disk, WRITE)).toEqual(expected(() => false));
    expect(ends.filter(([end]) => end === "TIMED_OUT ETIMEDOUT").length).toBeGreaterThan(10);
    for (const end of ends) expect([["done"], ["TIMED_OUT ETIMEDOUT"]]).toContainEqual(end);
    const into = new Uint8Array(BLOCK).fill(1);
    await disk.read(0, into);
    expect(into.every((byte) => byte === 0)).toBe(true);
  });
});

// QEMU's own faults: sectors that cannot be read or written, and a disk that is slow. Each request ends once, with the right errno.
import type { Disk } from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { qemu } from "@virtio/qemu";
import { vtblk } from "@virtio/vtblk";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu, pattern } from "./machines.js";

const SECTOR = 512;
const BLOCK = 8 * SECTOR;

/** A disk over this block node, by QEMU's names. */
async function diskOver(node: object, more: readonly string[] = []): Promise<Disk> {
  const machine = await qemu({
    devices: [],
    args: [
      ...more,
      ...["-blockdev", JSON.stringify({ "node-name": "under-test", ...node })],
      ...["-device", "virtio-blk-pci,drive=under-test,disable-legacy=on"],
    ],
  });
  onTestFinished(() => machine.close());
  const [found] = await probe(machine.buses[0].bus);
  if (found === undefined) throw new Error("no disk");
  return attach(found, vtblk());
}

/** Every end of every request: more than one would show. */
function ends(requests: readonly Promise<void>[]): { all: Promise<unknown>; seen: string[][] } {
  const seen: string[][] = requests.map(() => []);
  const all = Promise.all(
    requests.map((request, n) =>
      request.then(
        () => seen[n]?.push("done"),
        (fault: { code: string; errno: string }) => seen[n]?.push(`${fault.code} ${fault.errno}`),
      ),
    ),
  );
  return { all, seen };
}

describe.skipIf(!hasQemu)("a disk of QEMU's with faults (needs QEMU)", () => {
  for (const [iotype, bad] of [
    ["read", [3, 17, 40]],
    ["write", [5, 6]],
  ] as const)
    it(`fails a ${iotype} of a bad sector with EIO, that request alone, and works on`, async () => {
      const disk = await diskOver({
        driver: "blkdebug",
        image: { driver: "null-co", size: 16 << 20, "read-zeroes": true },
        "inject-error": bad.map((block) => ({
          event: "none",
          iotype,
          errno: 5,
          sector: block * 16 + 3,
        })),
      });
      for (let round = 0; round < 3; round++) {
        // Apart, so that QEMU merges none.
        const { all, seen } = ends(
          Array.from({ length: 64 }, (_, n) =>
            iotype === "read"
              ? disk.read(n * 16 * SECTOR, new Uint8Array(BLOCK))
              : disk.write(n * 16 * SECTOR, pattern(BLOCK, n)),
          ),
        );
        await all;
        for (const [n, end] of seen.entries())
          expect([n, end]).toEqual([
            n,
            [(bad as readonly number[]).includes(n) ? "IO EIO" : "done"],
          ]);
      }
      await disk.flush();
    });

  it("ends every request of a slow disk, in its time", async () => {
    const disk = await diskOver(
      { driver: "throttle", "throttle-group": "slow", file: { driver: "null-co", size: 16 << 20 } },
      ["-object", "throttle-group,id=slow,x-iops-total=100"],
    );
    const began = performance.now();
    const { all, seen } = ends(
      Array.from({ length: 40 }, (_, n) => disk.read(n * 16 * SECTOR, new Uint8Array(BLOCK))),
    );
    await all;
    expect(seen).toEqual(seen.map(() => ["done"]));
    expect(performance.now() - began).toBeGreaterThan(100);
  });
});

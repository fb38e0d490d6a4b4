// A block device that lies, shrinks, or says nothing: each request ends once with one clear error, and nothing hangs.
import {
  blk,
  type EmbeddedBlkOptions,
  type EmbeddedMachine,
  embedded,
  FaultBackend,
  MemoryBackend,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import type { StrategyDisk } from "@virtio/storage";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it, onTestFinished } from "vitest";
import { vtblk } from "../src/index.js";
import { Load, read, turns } from "./bios.js";

const SIZE = 4 << 20;
const SECTOR = 512;

async function machineOf(options: EmbeddedBlkOptions): Promise<EmbeddedMachine> {
  return embedded({
    devices: [blk({ ...(options.backend === undefined ? { size: SIZE } : {}), ...options })],
  });
}

async function attached(machine: EmbeddedMachine): Promise<StrategyDisk> {
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  return attach(node, vtblk({ noIdent: true }));
}

const outcome = (request: Promise<unknown>): Promise<string> =>
  request.then(
    () => "done",
    (fault: { code?: string; errno?: string }) => `${fault.code} ${fault.errno}`,
  );

describe("vtblk on a device", () => {
  for (const status of [3, 0x55, 0xff])
    it(`whose status byte is ${status} fails that request with EIO, and works on`, async () => {
      let lying = false;
      const machine = await machineOf({ lies: { status: (honest) => (lying ? status : honest) } });
      onTestFinished(() => machine.close());
      const disk = await attached(machine);
      lying = true;
      expect(await outcome(disk.read(0, new Uint8Array(SECTOR)))).toBe("IO EIO");
      expect(await outcome(disk.write(0, new Uint8Array(SECTOR)))).toBe("IO EIO");
      lying = false;
      expect(await outcome(disk.read(0, new Uint8Array(SECTOR)))).toBe("done");
    });

  for (const less of [1, 100, SECTOR + 1])
    it(`whose used length is ${less} bytes short fails that read with EIO: nobody wrote those bytes`, async () => {
      let lying = false;
      const machine = await machineOf({
        lies: { usedLength: (honest) => (lying ? Math.max(0, honest - less) : honest) },
      });
      onTestFinished(() => machine.close());
      const disk = await attached(machine);
      lying = true;
      const into = new Uint8Array(SECTOR).fill(7);
      expect(await outcome(disk.read(0, into))).toBe("IO EIO");
      expect(into.every((byte) => byte === 7)).toBe(true);
      lying = false;
      expect(await outcome(disk.read(0, into))).toBe("done");
    });

  it("with garbage for configuration attaches or says why, whatever the garbage", async () => {
    const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
    let state = seed;
    const random = (): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state;
    };
    const outcomes = new Map<string, number>();
    for (let n = 0; n < 120; n++) {
      // One field, several, or all of them; and a storm of changes now and then.
      const mask = random();
      const garbage = new Map<number, number>();
      const machine = await machineOf({
        lies: {
          config: (offset, width, honest) => {
            if (((mask >>> ((offset >>> 2) & 31)) & 1) === 0) return honest;
            const value = garbage.get(offset) ?? [0, 1, 3, 0xffff_ffff, random()][n % 5] ?? 0;
            garbage.set(offset, value);
            return width === 4 ? value >>> 0 : value & (2 ** (8 * width) - 1);
          },
        },
      });
      try {
        const disk = await attached(machine);
        expect(disk.mediaSize % disk.sectorSize).toBe(0);
        expect(await outcome(disk.read(0, new Uint8Array(disk.sectorSize)))).toMatch(
          /^(done|IO EIO|INVALID EINVAL)$/,
        );
        outcomes.set("attached", (outcomes.get("attached") ?? 0) + 1);
      } catch (error) {
        const { code = String(error) } = error as { code?: string };
        outcomes.set(code, (outcomes.get(code) ?? 0) + 1);
      }
      await machine.close();
    }
    const known = [
      "attached",
      "DEVICE_MISBEHAVED",
      "INVALID",
      "NOT_FOUND",
      "NEGOTIATION",
      "UNSUPPORTED",
    ];
    expect([`seed ${seed}`, [...outcomes.keys()].filter((key) => !known.includes(key))]).toEqual([
      `seed ${seed}`,
      [],
    ]);
    expect(outcomes.size).toBeGreaterThan(1);
  });

  it("that shrinks under I/O ends every request once, and what is beyond its end is refused", async () => {
    const backend = new MemoryBackend(SIZE);
    const machine = await machineOf({ backend });
    onTestFinished(() => machine.close());
    const disk = await attached(machine);
    const sizes: number[] = [];
    disk.onResize((size) => sizes.push(size));
    const reads = Array.from({ length: 64 }, (_, n) => read((n * SIZE) / 64, new Uint8Array(4096)));
    const load = new Load(disk, reads);
    backend.resize(SIZE / 2);
    await load.over;
    await turns();
    for (const [n, all] of load.ends.entries()) {
      expect(all).toHaveLength(1);
      expect(all[0]).toMatch(n < 32 ? /^done$/ : /^(done|IO EIO|INVALID EINVAL)$/);
    }
    await expect.poll(() => disk.mediaSize).toBe(SIZE / 2);
    expect(sizes).toEqual([SIZE / 2]);
    expect(await outcome(disk.read(SIZE / 2, new Uint8Array(SECTOR)))).toBe("INVALID EINVAL");
    expect(await outcome(disk.read(SIZE / 2 - SECTOR, new Uint8Array(SECTOR)))).toBe("done");
  });

  for (const queues of [1, 4])
    it(`that never answers is reset after its time: each request fails once with ETIMEDOUT, and the disk works again (${queues} queues)`, async () => {
      const passing = virtualTime();
      const backend = new FaultBackend(new MemoryBackend(SIZE));
      const machine = await machineOf({ backend, queues });
      onTestFinished(() => machine.close());
      const disk = await attached(machine);
      for (let round = 0; round < 2; round++) {
        backend.fate = () => "never";
        const began = performance.now();
        const reads = Array.from({ length: 32 }, (_, n) => read(n * 4096, new Uint8Array(4096)));
        const load = new Load(disk, reads);
        await passing(load.over);
        // The default, and at most a quarter more until somebody looks.
        expect(performance.now() - began).toBeGreaterThanOrEqual(30_000);
        expect(performance.now() - began).toBeLessThan(40_000);
        backend.fate = () => undefined;
        const bytes = new Uint8Array(4096).fill(round + 1);
        await disk.write(0, bytes);
        const into = new Uint8Array(4096);
        await disk.read(0, into);
        expect(into).toEqual(bytes);
        expect(load.ends).toEqual(reads.map(() => ["TIMED_OUT ETIMEDOUT"]));
      }
    });

  it("that cannot even be reset fails for good, and its memory is not used again", async () => {
    const passing = virtualTime();
    const backend = new FaultBackend(new MemoryBackend(SIZE));
    const machine = await machineOf({ backend });
    const free = machine.memory.available;
    const disk = await attached(machine);
    let letGo = (): void => {};
    // The backend goes on with it, whatever the device is told.
    backend.fate = () =>
      new Promise<void>((resolve) => {
        letGo = resolve;
      });
    const reading = outcome(disk.read(0, new Uint8Array(4096)));
    expect(await passing(reading)).toBe("TIMED_OUT ETIMEDOUT");
    expect(await passing(disk.closed)).toMatchObject({ code: "TIMED_OUT" });
    expect(await outcome(disk.read(0, new Uint8Array(4096)))).toMatch(/^TIMED_OUT/);
    await passing(disk.detach().catch(() => {}));
    expect(machine.memory.available).toBeLessThan(free);
    letGo();
    await machine.close();
  });
});

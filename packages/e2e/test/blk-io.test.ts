// Random I/O, many requests at once, sizes from a sector to 4 MiB, on every kind of block device; each byte is compared, and in the
// end QEMU's own tools look at the image. `npm test` takes a pairwise covering array of the kinds, VIRTIO_TEST_FULL=1 all of them.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import type { BlkOptions, Disk, Machine } from "@virtio/core";
import { embedded, blk as embeddedBlk, MemoryBackend, RuleBook } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { qemu, blk as qemuBlk } from "@virtio/qemu";
import { pairwise, product } from "@virtio/testing";
import { vtblk } from "@virtio/vtblk";
import { describe, expect, it, onTestFinished } from "vitest";
import { folder, hasQemu, pattern } from "./machines.js";

const SIZE = 16 << 20;
const SECTOR = 512;
const SECTORS = SIZE / SECTOR;
const LARGEST = 4 << 20;
/** Sectors of 16 KiB: the driver's largest segment. */
const PAGE = 32;
const IN_FLIGHT = 24;
const REQUESTS = 160;
const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

const axes = {
  store: ["embedded", "raw", "qcow2"],
  device: ["legacy split", "modern split", "modern packed"],
  indirect: [true, false],
  eventIdx: [true, false],
  queues: [1, 4],
} as const;
const kinds = process.env["VIRTIO_TEST_FULL"] === "1" ? product(axes) : pairwise(axes);
type Kind = (typeof kinds)[number];

const file = folder();

/** A load whose parts never overlap while they are in flight. @returns what the disk must hold afterwards */
async function exercise(disk: Disk, machine: Machine): Promise<Uint8Array> {
  const content = new Uint8Array(SIZE);
  const busy = new Uint8Array(SECTORS);
  /** Sectors of the largest request that the device is given: what is longer goes in parts. */
  const most = disk.maxTransfer / SECTOR;
  let state = seed;
  const random = (limit: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
  const check = (bytes: Uint8Array, position: number): void => {
    const expected = content.subarray(position, position + bytes.length);
    if (Buffer.compare(bytes, expected) !== 0)
      throw new Error(
        `${bytes.length} bytes at ${position} are not what was written (seed ${seed})`,
      );
  };
  // Each size and place at which the number of parts, or of segments, changes.
  for (const count of [1, PAGE - 1, PAGE, PAGE + 1, most - 1, most, most + 1, LARGEST / SECTOR])
    for (const first of [most, most + 1]) {
      const bytes = pattern(count * SECTOR, 1 + random(1 << 30));
      content.set(bytes, first * SECTOR);
      await disk.write(first * SECTOR, bytes);
      await disk.read(first * SECTOR, bytes.fill(0));
      check(bytes, first * SECTOR);
    }
  /** A range nobody uses: of any size, in most cases small, and here and there aligned to what the device is given. */
  const claim = (): readonly [first: number, count: number] => {
    for (;;) {
      const unit = [1, 1, PAGE, most][random(4)] ?? 1;
      const drawn = 1 + random(2 ** random(Math.log2(LARGEST / SECTOR) + 1));
      const count = Math.min(Math.ceil(drawn / unit) * unit, LARGEST / SECTOR);
      const first = Math.floor(random(SECTORS - count + 1) / unit) * unit;
      if (busy.subarray(first, first + count).includes(1)) continue;
      busy.fill(1, first, first + count);
      return [first, count];
    }
  };
  const region = machine.memory.allocate(64 << 10, 4096);
  let inPlace = false;
  let left = REQUESTS;
  const worker = async (): Promise<void> => {
    while (left-- > 0) {
      const [first, count] = claim();
      const position = first * SECTOR;
      const length = count * SECTOR;
      // Now and then in guest memory, at any address, where the device works in place.
      const at = random(512);
      const own = !inPlace && at + length <= region.length && random(4) === 0;
      if (own) inPlace = true;
      const bytes = own ? region.bytes.subarray(at, at + length) : new Uint8Array(length);
      if (random(2) === 0) {
        bytes.set(pattern(length, 1 + random(1 << 30)));
        content.set(bytes, position);
        await disk.write(position, bytes);
      } else {
        await disk.read(position, bytes);
        check(bytes, position);
      }
      if (own) inPlace = false;
      if (random(16) === 0) await disk.flush();
      busy.fill(0, first, first + count);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
  await disk.flush();
  region.free();
  return content;
}

async function start(
  { store, device, indirect, eventIdx, queues }: Kind,
  name: string,
): Promise<{ machine: Machine; rules: RuleBook; content: Uint8Array | null }> {
  const options: BlkOptions = {
    legacy: device === "legacy split" ? "on" : "off",
    packed: device === "modern packed",
    indirect,
    eventIdx,
    queues,
  };
  const rules = new RuleBook();
  if (store === "embedded") {
    const content = new Uint8Array(SIZE);
    const backend = new MemoryBackend(content);
    return {
      machine: await embedded({ devices: [embeddedBlk({ ...options, backend })], rules }),
      rules,
      content,
    };
  }
  execFileSync("qemu-img", ["create", "-q", "-f", store, name, String(SIZE)]);
  return {
    machine: await qemu({ devices: [qemuBlk({ ...options, file: name, format: store })] }),
    rules,
    content: null,
  };
}

describe("random I/O on a block device", () => {
  for (const [n, kind] of kinds.entries()) {
    const { store, device, indirect, eventIdx, queues } = kind;
    const name = `${store}, ${device}, indirect ${indirect}, event index ${eventIdx}, ${queues} queues`;
    it.skipIf(store !== "embedded" && !hasQemu)(`holds what was written: ${name}`, async () => {
      const image = file(`io${n}.${store}`);
      const { machine, rules, content } = await start(kind, image);
      onTestFinished(() => machine.close());
      const [bus] = machine.buses;
      if (bus?.kind !== "pci") throw new Error("no PCI bus");
      const [node] = await probe(bus.bus);
      if (node === undefined) throw new Error("no device");
      const disk = await attach(node, vtblk(), { cpus: 4 });
      const expected = await exercise(disk, machine);
      await disk.detach();
      await machine.close();
      expect(rules.violations).toEqual([]);
      if (content !== null) {
        expect(Buffer.compare(content, expected)).toBe(0);
        return;
      }
      const raw = file(`io${n}.expected`);
      writeFileSync(raw, expected);
      const compared = execFileSync("qemu-img", ["compare", "-f", "raw", "-F", store, raw, image]);
      expect(compared.toString()).toContain("Images are identical");
      if (store === "qcow2")
        expect(execFileSync("qemu-img", ["check", image]).toString()).toContain("No errors");
    });
  }
});

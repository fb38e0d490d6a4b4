// Zoned disks of the embedded machine, for tests.
import type { Disk, ZonedDisk } from "@virtio/core";
import {
  type EmbeddedBlkOptions,
  MemoryBackend,
  type ZonedCharacteristics,
} from "@virtio/hypervisor";
import { onTestFinished } from "vitest";
import type { VtblkOptions } from "../src/index.js";
import { type Bench, bench } from "./attached.js";

export const KIB = 1024;
/** Bytes of a zone, of a disk of 16; 4 KiB of each cannot be written. */
export const ZONE = 64 * KIB;
export const CAPACITY = 60 * KIB;
export const GRANULARITY = 4 * KIB;
export const zone = (n: number): number => n * ZONE;

export const zoned = {
  model: "host-managed",
  zoneSectors: ZONE / 512,
  zoneCapacity: CAPACITY / 512,
  writeGranularity: GRANULARITY,
  maxAppendSectors: 64,
} as const satisfies ZonedCharacteristics;

/** That, with something else. Only host-managed zones have sectors that cannot be written, and appends. */
export const like = (what: Partial<ZonedCharacteristics>): ZonedCharacteristics => ({
  ...zoned,
  ...((what.model ?? zoned.model) === "host-managed"
    ? {}
    : { zoneCapacity: ZONE / 512, maxAppendSectors: 0 }),
  ...what,
});

export type Options = EmbeddedBlkOptions & { seed?: number; driver?: VtblkOptions };

/** A zoned disk, its zones, and its machine, which ends with the test. */
export async function start(
  what: Partial<ZonedCharacteristics> = {},
  options: Options = {},
): Promise<Bench & { zones: ZonedDisk }> {
  const backend = options.backend ?? new MemoryBackend(16 * ZONE);
  const made = await bench({ ...options, backend, zoned: like(what) });
  onTestFinished(() => made.machine.close());
  const { zones } = made.disk;
  if (zones === null) throw new Error("no zones");
  return { ...made, zones };
}

export const data = (length: number, value = 1): Uint8Array => new Uint8Array(length).fill(value);

export const outcome = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "done",
    (fault: { code?: string }) => String(fault.code),
  );

export async function read(disk: Disk, position: number, length: number): Promise<Uint8Array> {
  const into = data(length, 0xee);
  await disk.read(position, into);
  return into;
}

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

/** Numbers from 0 up to, but not, `below`. */
export function generator(): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

// npm run bench -- blk: vtblk beside a loop that only copies the blocks, in one run.
import { closeSync, existsSync, ftruncateSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import type { Machine } from "@virtio/core";
import { embedded, MemoryBackend } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { qemu } from "@virtio/qemu";
import { type Bio, BioCommand, type StrategyDisk } from "@virtio/storage";
import { vtblk } from "@virtio/vtblk";
import type { Row } from "./ring.js";

const SIZE = 64 << 20;
/** Milliseconds of a round. */
const ROUND = 400;

/** A kind of load. */
interface BlkShape {
  readonly machine: "embedded" | "qemu-null" | "qemu-file";
  readonly write: boolean;
  /** Bytes of a request. */
  readonly block: number;
  readonly depth: number;
  /** Requests in guest memory through strategy() and done(), else arrays through promises. */
  readonly strategy: boolean;
}

/** What one row has to reach: requests a second, and the ratio to copying. */
interface Target {
  readonly iops: number;
  readonly ratio: number;
}

const targets: Readonly<Record<string, Target>> = {
  "embedded-read-4k-d32-strategy": { iops: 1_000_000, ratio: 0.5 },
  "embedded-write-4k-d32-strategy": { iops: 1_000_000, ratio: 0.5 },
  "embedded-read-4k-d32": { iops: 400_000, ratio: 0.2 },
  "embedded-write-4k-d32": { iops: 400_000, ratio: 0.2 },
  "qemu-null-read-4k-d32": { iops: 150_000, ratio: 0 },
  "qemu-null-write-4k-d32": { iops: 150_000, ratio: 0 },
};

const nameOf = ({ machine, write, block, depth, strategy }: BlkShape): string =>
  `${machine}-${write ? "write" : "read"}-${block >> 10}k-d${depth}${strategy ? "-strategy" : ""}`;

const shapes: readonly BlkShape[] = (["embedded", "qemu-null", "qemu-file"] as const).flatMap(
  (machine) => [
    ...[false, true].flatMap((write) => [
      ...[1, 32, 128].map((depth) => ({ machine, write, block: 4096, depth, strategy: false })),
      ...(machine === "embedded" ? [1, 32, 128] : [32]).map((depth) => ({
        machine,
        write,
        block: 4096,
        depth,
        strategy: true,
      })),
      { machine, write, block: 128 << 10, depth: 8, strategy: false },
    ]),
  ],
);

/** Names of all rows. */
export const blkNames: readonly string[] = shapes.map(nameOf);

/** What a round measured. */
interface Measured {
  /** Requests a second. */
  readonly rate: number;
  /** Microseconds of this process a request. */
  readonly cpu: number;
  /** Milliseconds from asking to the end, sorted. */
  readonly latencies: Float64Array;
}

/** Blocks at random; 128 KiB ones in order. Cheap, and the same for everybody. */
class Positions {
  #state = 1;
  #next = 0;
  readonly #block: number;
  constructor(block: number) {
    this.#block = block;
  }
  next(): number {
    if (this.#block > 4096) {
      this.#next = (this.#next + this.#block) % SIZE;
      return this.#next;
    }
    // Of this generator the high bits are the random ones; there are 2^14 blocks of 4 KiB.
    this.#state = (Math.imul(this.#state, 1_664_525) + 1_013_904_223) | 0;
    return (this.#state >>> 18) * this.#block;
  }
}

const LATENCIES = 1 << 20;

/** Of so many slots of a load one looks at the clock: each look costs a twentieth of a request. */
const TIMED = 8;

/** Counts ends until the round is over. */
class Round {
  #over = false;
  readonly #began = performance.now();
  readonly #cpu = process.cpuUsage();
  readonly #latencies = new Float64Array(LATENCIES);
  #count = 0;
  #timed = 0;
  /** The end of a request whose time is not looked at. @returns whether the round goes on */
  counted(): boolean {
    this.#count += 1;
    return !this.#over;
  }
  /** The end of a request that began at `startedAt`. @returns whether the round goes on */
  ended(startedAt: number): boolean {
    const now = performance.now();
    this.#latencies[this.#timed & (LATENCIES - 1)] = now - startedAt;
    this.#timed += 1;
    this.#over = now - this.#began >= ROUND;
    return this.counted();
  }
  result(): Measured {
    const ms = performance.now() - this.#began;
    const { user, system } = process.cpuUsage(this.#cpu);
    return {
      rate: (this.#count / ms) * 1000,
      cpu: (user + system) / this.#count,
      latencies: this.#latencies.subarray(0, Math.min(this.#timed, LATENCIES)).sort(),
    };
  }
}

async function byPromises(disk: StrategyDisk, shape: BlkShape): Promise<Measured> {
  const positions = new Positions(shape.block);
  const round = new Round();
  const worker = async (i: number): Promise<void> => {
    const bytes = new Uint8Array(shape.block).fill(1);
    const timed = i % TIMED === 0;
    for (;;) {
      const began = timed ? performance.now() : 0;
      if (shape.write) await disk.write(positions.next(), bytes);
      else await disk.read(positions.next(), bytes);
      if (!(timed ? round.ended(began) : round.counted())) return;
    }
  };
  await Promise.all(Array.from({ length: shape.depth }, (_, i) => worker(i)));
  return round.result();
}

async function byStrategy(
  machine: Machine,
  disk: StrategyDisk,
  shape: BlkShape,
): Promise<Measured> {
  const { block, depth, write } = shape;
  const region = machine.memory.allocate(block * depth, 4096);
  region.bytes.fill(1);
  const positions = new Positions(block);
  const began = new Float64Array(depth);
  let round = new Round();
  let left = depth;
  let waiting = false;
  await new Promise<void>((resolve, reject) => {
    const start = (): void => {
      waiting = false;
      disk.start();
    };
    const bios = Array.from(
      { length: depth },
      (_, i): Bio => ({
        command: write ? BioCommand.WRITE : BioCommand.READ,
        position: positions.next(),
        data: region.bytes.subarray(i * block, (i + 1) * block),
        length: block,
        ordered: false,
        done: (fault) => {
          if (fault !== null) reject(fault);
          else if (i % TIMED === 0 ? round.ended(began[i] as number) : round.counted()) again(i);
          else if (--left === 0) resolve();
        },
      }),
    );
    const again = (i: number): void => {
      const bio = bios[i] as (typeof bios)[0];
      bio.position = positions.next();
      if (i % TIMED === 0) began[i] = performance.now();
      if (!disk.strategy(bio)) reject(new Error("no room for a request"));
      // One doorbell for all that came back together.
      if (!waiting) {
        waiting = true;
        machine.tasks.enqueue(start);
      }
    };
    round = new Round();
    for (let i = 0; i < depth; i++) again(i);
  });
  region.free();
  return round.result();
}

/** Blocks a second of a loop that only copies them. */
function copying(shape: BlkShape, content: Uint8Array): number {
  const positions = new Positions(shape.block);
  // Filled: pages that nothing was written to are all one page, which is in the cache.
  const buffers = Array.from({ length: shape.depth }, () => new Uint8Array(shape.block).fill(1));
  const began = performance.now();
  let count = 0;
  let ms = 0;
  while (ms < ROUND / 2) {
    for (let i = 0; i < 256; i++) {
      const buffer = buffers[i % shape.depth] as Uint8Array;
      const at = positions.next();
      if (shape.write) content.set(buffer, at);
      else buffer.set(content.subarray(at, at + shape.block));
    }
    count += 256;
    ms = performance.now() - began;
  }
  return (count / ms) * 1000;
}

interface Opened {
  readonly machine: Machine;
  readonly disk: StrategyDisk;
}

async function open(kind: BlkShape["machine"], content: Uint8Array, file: string): Promise<Opened> {
  if (kind === "embedded") {
    const backend = new MemoryBackend(content);
    const machine = await embedded({ devices: [{ kind: "blk", backend }] });
    return attached(machine);
  }
  const disk =
    kind === "qemu-null" ? "driver=null-co,read-zeroes=off" : `driver=file,filename=${file}`;
  const size = kind === "qemu-null" ? `,size=${SIZE}` : "";
  return attached(
    await qemu({
      devices: [],
      args: [
        ...["-blockdev", `${disk},node-name=bench${size}`],
        ...["-device", "virtio-blk-pci,drive=bench,disable-legacy=on"],
      ],
    }),
  );
}

async function attached(machine: Machine): Promise<Opened> {
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no disk");
  return { machine, disk: await attach(node, vtblk()) };
}

const percentile = (sorted: Float64Array, p: number): number =>
  (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] as number) * 1000;

/** Measures the shapes whose name matches: `rounds` rounds of ours and of copying in turn, the median of each. */
export async function blk(only: RegExp, rounds: number): Promise<readonly Row[]> {
  const content = new Uint8Array(SIZE).fill(0x5a);
  const file = join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), `virtio-bench-${process.pid}`);
  const fd = openSync(file, "wx");
  ftruncateSync(fd, SIZE);
  closeSync(fd);
  const rows: Row[] = [];
  console.log(
    "blk                                    IOPS    GB/s  CPU us      p50      p99 us    copying   ratio",
  );
  try {
    for (const kind of ["embedded", "qemu-null", "qemu-file"] as const) {
      const wanted = shapes.filter((shape) => shape.machine === kind && only.test(nameOf(shape)));
      if (wanted.length === 0) continue;
      const { machine, disk } = await open(kind, content, file);
      for (const shape of wanted) {
        const ours: Measured[] = [];
        const peers: number[] = [];
        for (let round = 0; round < rounds; round++) {
          ours.push(
            shape.strategy ? await byStrategy(machine, disk, shape) : await byPromises(disk, shape),
          );
          peers.push(copying(shape, content));
        }
        const middle = ours.sort((a, b) => a.rate - b.rate)[rounds >> 1] as Measured;
        const peer = peers.sort((a, b) => a - b)[rounds >> 1] as number;
        const ratio = middle.rate / peer;
        const name = nameOf(shape);
        const target = targets[name];
        const verdict =
          target === undefined
            ? ""
            : middle.rate >= target.iops && ratio >= target.ratio
              ? `  met (${target.iops}, ${target.ratio})`
              : `  MISSED (${target.iops}, ${target.ratio})`;
        console.log(
          [
            name.padEnd(31),
            middle.rate.toFixed(0).padStart(11),
            ((middle.rate * shape.block) / 1e9).toFixed(2).padStart(7),
            middle.cpu.toFixed(2).padStart(7),
            percentile(middle.latencies, 0.5).toFixed(1).padStart(8),
            percentile(middle.latencies, 0.99).toFixed(1).padStart(8),
            peer.toFixed(0).padStart(13),
            ratio.toFixed(3).padStart(7),
          ].join(" ") + verdict,
        );
        rows.push({ name, ours: middle.rate, peer, ratio });
      }
      await disk.detach();
      await machine.close();
    }
  } finally {
    rmSync(file, { force: true });
  }
  return rows;
}

/** Names of rows that do not reach their target. */
export function missedBlk(rows: readonly Row[]): readonly string[] {
  return rows
    .filter(({ name, ours, ratio }) => {
      const target = targets[name];
      return target !== undefined && (ours < target.iops || ratio < target.ratio);
    })
    .map(({ name }) => name);
}

// A driver's window and the same bytes as a device sees them, with both ends of one queue over them.
import {
  type Callout,
  DmaWindow,
  GuestRegions,
  type TaskQueue,
  type VirtioFault,
} from "@virtio/core";
import { SplitDeviceQueue, SplitQueue, type SplitQueueOptions } from "../src/index.js";

/** Tasks that run when a test says so. */
export class ManualTasks implements TaskQueue {
  readonly #tasks: (() => void)[] = [];
  time = 0;

  now(): number {
    this.time += 1;
    return this.time;
  }

  enqueue(task: () => void): void {
    this.#tasks.push(task);
  }

  callout(_delayMs: number, task: () => void): Callout {
    this.enqueue(task);
    return { stop: () => {} };
  }

  run(): void {
    for (const task of this.#tasks.splice(0)) task();
  }
}

export const BASE = 0x4000_0000;

export interface PairOptions {
  readonly size?: number;
  readonly indirect?: boolean;
  readonly eventIdx?: boolean;
  readonly maxSegments?: number;
  readonly memory?: number;
}

/** Both ends of one queue. `parts` are views of the ring as it lies in memory, for tests that play one end by hand. */
export function pair(options: PairOptions = {}) {
  const {
    size = 8,
    indirect = false,
    eventIdx = false,
    maxSegments = 4,
    memory: length = 1 << 20,
  } = options;
  const buffer = new ArrayBuffer(length);
  const memory = new DmaWindow(buffer, { base: BASE });
  const tasks = new ManualTasks();
  const doorbells: number[] = [];
  const given: SplitQueueOptions = {
    index: 0,
    name: "test queue",
    device: "test0",
    size,
    memory,
    tasks,
    indirect,
    eventIdx,
    maxSegments,
    doorbell: (index) => doorbells.push(index),
  };
  const driver = new SplitQueue(given);
  const driverFaults: VirtioFault[] = [];
  driver.onBroken = (fault) => driverFaults.push(fault);
  const deviceFaults: VirtioFault[] = [];
  const { descriptors, available, used } = driver.addresses;
  const makeDevice = (): SplitDeviceQueue =>
    new SplitDeviceQueue({
      index: 0,
      size,
      memory: new GuestRegions([{ address: BASE, length, bytes: new Uint8Array(buffer) }]),
      descriptors: { low: descriptors, high: 0 },
      available: { low: available, high: 0 },
      used: { low: used, high: 0 },
      indirect,
      eventIdx,
      onBroken: (fault) => deviceFaults.push(fault),
    });
  const device = makeDevice();
  const parts = {
    descriptors: new Uint32Array(buffer, descriptors - BASE, size * 4),
    available: new Uint16Array(buffer, available - BASE, 3 + size),
    usedIndex: new Uint16Array(buffer, used - BASE, 3 + 4 * size),
    usedEntries: new Uint32Array(buffer, used - BASE, 1 + 2 * size),
  };
  return {
    buffer,
    memory,
    tasks,
    driver,
    device,
    makeDevice,
    parts,
    doorbells,
    driverFaults,
    deviceFaults,
  };
}

/** xorshift32, for reproducible runs: whole numbers below `n`. */
export function random(seed: number): (n: number) => number {
  let state = seed | 0 || 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
}

/** The seed of this run: VIRTIO_TEST_SEED, or a fresh one; printed so that a failure can be replayed. */
export function runSeed(): number {
  const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() % 1_000_000_007);
  console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);
  return seed;
}

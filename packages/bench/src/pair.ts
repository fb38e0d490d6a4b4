// Both ends of the queues of a load, over one piece of guest memory.
import { DmaWindow, GuestRegions, type TaskQueue, VirtioFault } from "@virtio/core";
import { PackedDeviceQueue, PackedQueue, SplitDeviceQueue, SplitQueue } from "@virtio/ring";
import type { Shape } from "./shape.js";

/** Descriptors of each queue. */
const QUEUE_SIZE = 256;
/** Bytes of guest memory. */
const MEMORY = 16 << 20;
/** Bytes of each segment. */
export const BUFFER = 64;

/** Either format. A process runs one of them, so that no call in it ever sees both. */
export type DriverEnd = SplitQueue | PackedQueue;
/** @see DriverEnd */
export type DeviceEnd = SplitDeviceQueue | PackedDeviceQueue;

/** What the device's thread is told, and a counter of its own: 1 while a round is on. */
export interface DevicePart {
  readonly shape: Shape;
  readonly memory: ArrayBuffer | SharedArrayBuffer;
  readonly addresses: readonly DriverEnd["addresses"][];
  readonly running: Int32Array;
}

/** The driver's part of a load. */
export interface DriverPart {
  readonly queues: readonly DriverEnd[];
  /** [address, length] of each segment of each slot. */
  readonly segments: Uint32Array;
  /** Doorbells rung. */
  readonly doorbells: () => number;
  readonly device: DevicePart;
}

/** Nothing is deferred here: what the queues have to say is said at once. */
const tasks: TaskQueue = {
  now: () => performance.now(),
  enqueue: (task) => task(),
  callout: () => {
    throw new VirtioFault("UNSUPPORTED", "a benchmark waits for no callout");
  },
};

const broken = (fault: VirtioFault): never => {
  throw fault;
};

/** Allocates the memory and makes the driver's ends. */
export function makeDrivers(shape: Shape): DriverPart {
  // One thread needs no shared memory, and the queues need no order in it, as on the embedded machine.
  const memory = shape.threads === 1 ? new ArrayBuffer(MEMORY) : new SharedArrayBuffer(MEMORY);
  // Address 0 stays free: a descriptor that nobody wrote names it.
  const window = new DmaWindow(memory, { start: 4096 });
  let doorbells = 0;
  const Queue = shape.format === "split" ? SplitQueue : PackedQueue;
  const queues = Array.from({ length: shape.queues }, (_, index) => {
    const queue = new Queue({
      index,
      name: `bench${index}`,
      device: "bench0",
      size: QUEUE_SIZE,
      memory: window,
      tasks,
      indirect: shape.indirect,
      eventIdx: false,
      maxSegments: shape.segments,
      doorbell: () => {
        doorbells += 1;
      },
    });
    queue.onBroken = broken;
    return queue;
  });
  const buffers = window.allocate(shape.batch * shape.segments * BUFFER, BUFFER);
  const segments = new Uint32Array(shape.batch * shape.segments * 2);
  for (let i = 0; i < segments.length; i += 2) {
    segments[i] = buffers.address + (i / 2) * BUFFER;
    segments[i + 1] = BUFFER;
  }
  const running = new Int32Array(new SharedArrayBuffer(4));
  const addresses = queues.map((queue) => queue.addresses);
  return {
    queues,
    segments,
    doorbells: () => doorbells,
    device: { shape, memory, addresses, running },
  };
}

/** Makes the device's ends, which look for themselves: they ask for no doorbell. */
export function makeDevices({ shape, memory, addresses }: DevicePart): DeviceEnd[] {
  const guest = new GuestRegions([
    { address: 0, length: memory.byteLength, bytes: new Uint8Array(memory) },
  ]);
  const Queue = shape.format === "split" ? SplitDeviceQueue : PackedDeviceQueue;
  return addresses.map(({ descriptors, driver, device }, index) => {
    const queue = new Queue({
      index,
      size: QUEUE_SIZE,
      memory: guest,
      descriptors: { low: descriptors, high: 0 },
      driver: { low: driver, high: 0 },
      device: { low: device, high: 0 },
      indirect: shape.indirect,
      eventIdx: false,
      shared: shape.threads > 1,
      onBroken: broken,
    });
    queue.disableNotify();
    return queue;
  });
}

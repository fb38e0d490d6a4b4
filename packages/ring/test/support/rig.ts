// Both ends of one queue over the same bytes.
import { DmaWindow, type GuestMemory, GuestRegions, type VirtioFault } from "@virtio/core";
import {
  PackedDeviceQueue,
  PackedQueue,
  type QueueOptions,
  SplitDeviceQueue,
  SplitQueue,
} from "../../src/index.js";
import { PackedBytes, type RingPlace, SplitBytes } from "./ring-bytes.js";
import { ManualTasks } from "./tasks.js";

export type Format = "split" | "packed";
export type DriverEnd = SplitQueue | PackedQueue;
export type DeviceEnd = SplitDeviceQueue | PackedDeviceQueue;
export type Chain = NonNullable<ReturnType<DeviceEnd["take"]>>;

/** Guest-physical address of the window's byte 0. */
export const BASE = 0x4000_0000;

/** What was negotiated, and how large. */
export interface Mode {
  readonly format: Format;
  readonly size: number;
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
}

export interface RigOptions extends Partial<Mode> {
  readonly legacy?: boolean;
  readonly clip?: boolean;
  readonly maxSegments?: number;
  /** Bytes of the whole window. */
  readonly memory?: number;
  readonly buffer?: ArrayBuffer | SharedArrayBuffer;
  /** Lets the other end run while poll() waits. */
  readonly poll?: () => void;
  /** Called before either end is made, so that its views can be told apart. */
  readonly making?: (end: "driver" | "device") => void;
}

/** Reads as `split, size 8, indirect, event_idx`. */
export function nameOf({ format, size, indirect, eventIdx, inOrder }: Mode): string {
  return [
    format,
    `size ${size}`,
    ...(indirect ? ["indirect"] : []),
    ...(eventIdx ? ["event_idx"] : []),
    ...(inOrder ? ["in_order"] : []),
  ].join(", ");
}

export type Rig = ReturnType<typeof rig>;

/** One queue, both ends, 64 KiB of payload memory beside it. */
export function rig(options: RigOptions = {}) {
  const {
    format = "split",
    size = 8,
    indirect = false,
    eventIdx = false,
    inOrder = false,
    legacy = false,
    clip = false,
    maxSegments = 4,
    memory: length = 0x4_0000 + 2 * size * (26 + (indirect ? maxSegments * 16 : 0)),
    making = (): void => {},
  } = options;
  const mode: Mode = { format, size, indirect, eventIdx, inOrder };
  const buffer = options.buffer ?? new ArrayBuffer(length);
  const memory = new DmaWindow(buffer, { base: BASE });
  const tasks = new ManualTasks();
  const data = memory.allocate(0x1_0000, 4096);
  /** What each doorbell carried in its upper half. */
  const doorbells: number[] = [];
  const driverFaults: VirtioFault[] = [];
  const deviceFaults: VirtioFault[] = [];
  const given: QueueOptions = {
    index: 0,
    name: "test queue",
    device: "test0",
    size,
    memory,
    tasks,
    indirect,
    eventIdx,
    inOrder,
    legacy,
    clip,
    maxSegments,
    doorbell: (_index, next) => doorbells.push(next),
    ...(options.poll === undefined ? {} : { poll: options.poll }),
  };
  const makeDriver = (): DriverEnd => {
    making("driver");
    const driver = format === "split" ? new SplitQueue(given) : new PackedQueue(given);
    driver.onBroken = (fault) => driverFaults.push(fault);
    return driver;
  };
  const driver = makeDriver();
  const regions = new GuestRegions([
    { address: BASE, length: buffer.byteLength, bytes: new Uint8Array(buffer) },
  ]);
  /** A device end over the ring at `addresses`. */
  const makeDevice = (addresses = driver.addresses, memory: GuestMemory = regions): DeviceEnd => {
    making("device");
    const at = {
      index: 0,
      size,
      memory,
      descriptors: { low: addresses.descriptors, high: 0 },
      driver: { low: addresses.driver, high: 0 },
      device: { low: addresses.device, high: 0 },
      indirect,
      eventIdx,
      inOrder,
      onBroken: (fault: VirtioFault) => void deviceFaults.push(fault),
    };
    return format === "split" ? new SplitDeviceQueue(at) : new PackedDeviceQueue(at);
  };
  const device = makeDevice();
  const place: RingPlace = {
    buffer,
    size,
    descriptors: driver.addresses.descriptors - BASE,
    driver: driver.addresses.driver - BASE,
    device: driver.addresses.device - BASE,
  };
  /** Saves the driver's end, takes it down, makes it anew over the same bytes, restores it. */
  const moveDriver = (old: DriverEnd): DriverEnd => {
    const bytes = new Uint8Array(buffer).slice();
    const again = (): DriverEnd => {
      old.release();
      const driver = makeDriver();
      new Uint8Array(buffer).set(bytes);
      if (JSON.stringify(driver.addresses) !== JSON.stringify(old.addresses))
        throw new Error("the ring came to lie elsewhere");
      return driver;
    };
    if (old instanceof SplitQueue) {
      const state = structuredClone(old.save());
      const driver = again();
      if (driver instanceof SplitQueue) driver.restore(state);
      return driver;
    }
    const state = structuredClone(old.save());
    const driver = again();
    if (driver instanceof PackedQueue) driver.restore(state);
    return driver;
  };
  /** Saves a device's end and restores it in another one over the same bytes. */
  const moveDevice = (old: DeviceEnd): { device: DeviceEnd; held: readonly Chain[] } => {
    const device = makeDevice();
    if (old instanceof SplitDeviceQueue && device instanceof SplitDeviceQueue)
      return { device, held: device.restore(structuredClone(old.save())) };
    if (old instanceof PackedDeviceQueue && device instanceof PackedDeviceQueue)
      return { device, held: device.restore(structuredClone(old.save())) };
    throw new Error("the ends are of two formats");
  };
  return {
    mode,
    maxSegments,
    /** Chains of one descriptor that went through before: where a checker's watch begins. */
    begun: 0,
    moveDriver,
    moveDevice,
    buffer,
    memory,
    tasks,
    data,
    place,
    driver,
    device,
    makeDriver,
    makeDevice,
    doorbells,
    driverFaults,
    deviceFaults,
    /** The ring's bytes by format; only the one of the rig's format means anything. */
    split: new SplitBytes(format === "split" ? place : { ...place, size: 1 }),
    packed: new PackedBytes(format === "packed" ? place : { ...place, size: 1 }),
  };
}

/** Takes a chain that must be there. */
export function taken(device: DeviceEnd): Chain {
  const chain = device.take();
  if (chain === null) throw new Error("no chain to take");
  return chain;
}

/** Takes every waiting chain and gives it back with `written` bytes, or as many as are writable. */
export function serve(device: DeviceEnd, written = Number.POSITIVE_INFINITY): number {
  let n = 0;
  for (let chain = device.take(); chain !== null; chain = device.take()) {
    device.give(chain, Math.min(written, chain.writableLength));
    if (++n > device.size) throw new Error("more chains than the queue has descriptors");
  }
  return n;
}

/** Every cookie that is there. */
export function cookies(driver: DriverEnd): number[] {
  const all: number[] = [];
  for (let cookie = driver.dequeue(); cookie >= 0; cookie = driver.dequeue()) {
    all.push(cookie);
    if (all.length > driver.size) throw new Error("more cookies than the queue has descriptors");
  }
  return all;
}

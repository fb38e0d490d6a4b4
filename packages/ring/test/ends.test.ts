// What one end has that the contract of both does not say: making, memory of several regions, the legacy interface, saved state.
import { DmaWindow, GuestRegions, VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import {
  PackedDeviceQueue,
  PackedQueue,
  type QueueOptions,
  SplitDeviceQueue,
  SplitQueue,
} from "../src/index.js";
import { BASE, cookies, type Format, rig, serve, taken } from "./support/rig.js";
import { PackedBytes, putPacked, putSplit, SplitBytes, WRITE } from "./support/ring-bytes.js";
import { ManualTasks } from "./support/tasks.js";

const formats: readonly Format[] = ["split", "packed"];

function made(format: Format, options: Partial<QueueOptions>, length = 1 << 20) {
  const memory = new DmaWindow(new ArrayBuffer(length), { base: BASE });
  const given: QueueOptions = {
    index: 3,
    name: "some queue",
    device: "test0",
    size: 8,
    memory,
    tasks: new ManualTasks(),
    indirect: false,
    eventIdx: false,
    maxSegments: 4,
    doorbell: () => {},
    ...options,
  };
  const queue = format === "split" ? new SplitQueue(given) : new PackedQueue(given);
  return { memory, queue };
}

/** The code of the VirtioFault that `run` throws. */
function codeOf(run: () => unknown): string | undefined {
  try {
    run();
  } catch (error) {
    if (error instanceof VirtioFault) return error.code;
    throw error;
  }
  return undefined;
}

describe.each(formats)("the driver's end of a %s queue", (format) => {
  it("refuses sizes that its format does not have", () => {
    for (const size of [
      0,
      -1,
      32769,
      65536,
      1.5,
      Number.NaN,
      ...(format === "split" ? [3, 7, 12] : []),
    ])
      expect([size, codeOf(() => made(format, { size }))]).toEqual([size, "INVALID"]);
  });

  it("refuses tables longer than 256 entries", () => {
    expect(codeOf(() => made(format, { maxSegments: 257 }))).toBe("INVALID");
    expect(codeOf(() => made(format, { maxSegments: 256, indirect: true }))).toBeUndefined();
  });

  it("says when there is no memory, and holds none of it then", () => {
    const memory = new DmaWindow(new ArrayBuffer(4096), { base: BASE });
    expect(codeOf(() => made(format, { size: 256, memory }))).toBe("OUT_OF_MEMORY");
    expect(memory.available).toBe(4096);
    // Room for the ring, none for its tables.
    const small = new DmaWindow(new ArrayBuffer(0x1_0000), { base: BASE });
    const options = { size: 256, memory: small, indirect: true, maxSegments: 256 };
    expect(codeOf(() => made(format, options))).toBe("OUT_OF_MEMORY");
    expect(small.available).toBe(0x1_0000);
  });

  it("puts chains in the ring itself as long as the reserve stays free, then in tables", () => {
    const { queue } = made(format, { indirect: true, reserve: 4 });
    const segments = new Uint32Array([BASE + 0x8000, 16, BASE + 0x9000, 16]);
    const free = Array.from({ length: 6 }, (_, i) => {
      expect(queue.enqueue(i, segments, 0, 1, 1)).toBe(0);
      return queue.free;
    });
    expect(free).toEqual([6, 4, 3, 2, 1, 0]);
  });

  it("gives its memory back", () => {
    const { memory, queue } = made(format, { indirect: true });
    expect(memory.available).toBeLessThanOrEqual((1 << 20) - queue.bytes);
    queue.release();
    expect(memory.available).toBe(1 << 20);
  });

  it("refuses a state that is not of such a queue", () => {
    const { queue } = made(format, {});
    const other = made(format, { size: 16 }).queue;
    const wrong = made(format === "split" ? "packed" : "split", {}).queue;
    const restore = (state: unknown) => () => Reflect.apply(queue.restore, queue, [state]);
    expect(codeOf(restore(other.save()))).toBe("INVALID");
    expect(codeOf(restore(wrong.save()))).toBe("INVALID");
    expect(codeOf(restore(structuredClone(queue.save())))).toBeUndefined();
  });

  it("rings the doorbell that is due after 65536 chains of which it told nobody", () => {
    const r = rig({ format, eventIdx: true });
    r.device.enableNotify();
    for (let i = 0; i < 0x1_0000; i++) {
      r.driver.enqueueReadable(i, r.data.address, 1);
      r.driver.publish();
      serve(r.device);
      r.driver.dequeue();
    }
    r.driver.notify();
    expect(r.doorbells).toHaveLength(1);
  });

  it("saves nothing when it is broken", () => {
    const { queue } = made(format, {});
    const fault = new VirtioFault("CLOSED", "gone");
    queue.fail(fault);
    expect(() => queue.save()).toThrow(fault);
  });
});

describe("a template's slot that the device holds", () => {
  const held = (format: Format) => {
    const r = rig({ format });
    const template = r.driver.template(2, 0, 1);
    for (let slot = 0; slot < 2; slot++) template.set(slot, 0, r.data.address + slot * 64, 16);
    template.enqueue(0);
    return { ...r, template, setAnew: () => template.set(0, 0, r.data.address + 128, 8) };
  };

  it("cannot be set on a split ring, and can when it came back", () => {
    const { driver, device, data, template, setAnew } = held("split");
    expect(codeOf(setAnew)).toBe("INVALID");
    driver.notify();
    expect(codeOf(setAnew)).toBe("INVALID");
    // Nothing of it changed, and the other slot is free.
    template.set(1, 0, data.address + 192, 4);
    const chain = taken(device);
    expect([chain.writableLength, chain.save().segments[0]]).toEqual([16, data.address]);
    device.give(chain, 16);
    device.publish();
    expect(codeOf(setAnew)).toBe("INVALID");
    expect([cookies(driver), driver.usedLength]).toEqual([[0], 16]);
    setAnew();
    expect(template.enqueue(0)).toBe(0);
    driver.notify();
    expect(taken(device).writableLength).toBe(8);
  });

  it("can be set on a packed ring: the device has a copy", () => {
    const { driver, device, data, template, setAnew } = held("packed");
    setAnew();
    driver.notify();
    const chain = taken(device);
    expect([chain.writableLength, chain.save().segments[0]]).toEqual([16, data.address]);
    device.give(chain, 16);
    device.publish();
    expect([cookies(driver), driver.usedLength]).toEqual([[0], 16]);
    expect(template.enqueue(0)).toBe(0);
    driver.notify();
    expect(taken(device).writableLength).toBe(8);
  });
});

describe("a split queue of the legacy interface", () => {
  it("puts its used ring at the next multiple of the queue align", () => {
    for (const align of [16, 64, 4096]) {
      const { addresses } = made("split", { align, size: 64 }).queue;
      expect(addresses.driver).toBe(addresses.descriptors + 64 * 16);
      const end = addresses.driver + 2 * (3 + 64);
      expect(addresses.device).toBe(Math.ceil(end / align) * align);
    }
  });

  it("interrupts when the ring is empty, whatever the driver wants, with NOTIFY_ON_EMPTY", () => {
    const r = rig();
    const { descriptors, driver, device } = r.driver.addresses;
    const wide = (low: number) => ({ low, high: 0 });
    const queue = new SplitDeviceQueue({
      index: 0,
      size: 8,
      memory: new GuestRegions([
        { address: BASE, length: r.buffer.byteLength, bytes: new Uint8Array(r.buffer) },
      ]),
      descriptors: wide(descriptors),
      driver: wide(driver),
      device: wide(device),
      indirect: false,
      eventIdx: false,
      notifyOnEmpty: true,
      onBroken: () => {},
    });
    r.driver.disableInterrupt();
    for (let i = 0; i < 2; i++) r.driver.enqueueReadable(i, r.data.address, 1);
    r.driver.notify();
    queue.give(taken(queue), 0);
    expect(queue.wantsInterrupt()).toBe(false);
    queue.give(taken(queue), 0);
    expect(queue.wantsInterrupt()).toBe(true);
  });
});

describe.each(formats)("the device's end of a %s queue", (format) => {
  it("refuses sizes that its format does not have", () => {
    const r = rig({ format });
    const { descriptors, driver, device } = r.driver.addresses;
    for (const size of [0, -1, 32769, ...(format === "split" ? [3, 12] : [])]) {
      const options = {
        index: 0,
        size,
        memory: new GuestRegions([
          { address: BASE, length: r.buffer.byteLength, bytes: new Uint8Array(r.buffer) },
        ]),
        descriptors: { low: descriptors, high: 0 },
        driver: { low: driver, high: 0 },
        device: { low: device, high: 0 },
        indirect: false,
        eventIdx: false,
        onBroken: () => {},
      };
      const make = () =>
        format === "split" ? new SplitDeviceQueue(options) : new PackedDeviceQueue(options);
      expect([size, codeOf(make)]).toEqual([size, "DRIVER_MISBEHAVED"]);
    }
  });

  it("works over several regions at 64-bit addresses, none of them where another ends", () => {
    const HIGH = 0x12;
    const region = (address: number, length: number) => ({
      address,
      length,
      bytes: new Uint8Array(length),
    });
    const rings = region(HIGH * 0x1_0000_0000 + 0x1000, 0x1000);
    const payload = region(0x7fff_f000, 0x1000);
    const upper = region(0x1f_ffff * 0x1_0000_0000, 0x100);
    const memory = new GuestRegions([upper, rings, payload]);
    const at = (low: number) => ({ low, high: HIGH });
    const faults: VirtioFault[] = [];
    const options = {
      index: 0,
      size: 4,
      memory,
      descriptors: at(0x1000),
      driver: at(0x1400),
      device: at(0x1800),
      indirect: false,
      eventIdx: false,
      onBroken: (fault: VirtioFault) => void faults.push(fault),
    };
    const device =
      format === "split" ? new SplitDeviceQueue(options) : new PackedDeviceQueue(options);
    const place = {
      buffer: rings.bytes.buffer,
      size: 4,
      descriptors: 0,
      driver: 0x400,
      device: 0x800,
    };
    const list = [
      { address: 0x7fff_fff0, length: 16, flags: 1, next: format === "split" ? 1 : 9 },
      { address: 0, high: 0x1f_ffff, length: 0x100, flags: WRITE, next: 9 },
    ] as const;
    payload.bytes.fill(7, 0xff0);
    if (format === "split") {
      const split = new SplitBytes(place);
      for (const [i, d] of list.entries()) putSplit(split.descriptors, i, d);
      split.offer(0);
    } else {
      const packed = new PackedBytes(place);
      packed.offer(...list);
      putPacked(packed.descriptors, 2, { address: 0x7fff_fff1, length: 16, flags: 0x80 });
    }
    const chain = taken(device);
    expect([chain.readableLength, chain.writableLength, chain.segments]).toEqual([16, 256, 2]);
    const read = new Uint8Array(20);
    expect([chain.read(0, read), read[15], read[16]]).toEqual([16, 7, 0]);
    expect(chain.write(250, new Uint8Array(10).fill(3))).toBe(6);
    expect([upper.bytes[249], upper.bytes[250], upper.bytes[255]]).toEqual([0, 3, 3]);
    chain.writeLast(9);
    expect([upper.bytes[254], upper.bytes[255]]).toEqual([3, 9]);
    device.give(chain, 256);
    if (format === "packed") {
      // One byte over the end of its region: the next region does not begin there.
      expect(device.take()).toBeNull();
      expect(faults.map(({ clause }) => clause)).toEqual(["RESFEAT-5"]);
    }
  });

  it("wants the interrupt that is due after 65536 chains of which it told nobody", () => {
    const r = rig({ format, eventIdx: true });
    r.driver.enableInterrupt();
    for (let i = 0; i < 0x1_0000; i++) {
      r.driver.enqueueReadable(i, r.data.address, 1);
      r.driver.notify();
      serve(r.device);
      r.driver.dequeue();
    }
    expect([r.device.wantsInterrupt(), r.device.wantsInterrupt()]).toEqual([true, false]);
  });

  it("reads and writes a chain at any position, however it is cut", () => {
    const r = rig({ format, size: 8 });
    const { driver, device, data } = r;
    const cuts = [3, 5, 1, 2, 7, 4];
    const segments = new Uint32Array(cuts.flatMap((length, i) => [data.address + 32 * i, length]));
    for (let i = 0; i < 3; i++)
      data.bytes.set(
        Array.from({ length: cuts[i] ?? 0 }, (_, k) => 10 * i + k),
        32 * i,
      );
    expect(driver.enqueue(1, segments, 0, 3, 3)).toBe(0);
    driver.notify();
    const chain = taken(device);
    expect([chain.readableSegments, chain.readableLength, chain.writableLength]).toEqual([
      3, 9, 13,
    ]);
    const whole = [0, 1, 2, 10, 11, 12, 13, 14, 20];
    for (let at = 0; at <= 9; at++)
      for (let n = 0; n <= 10; n++) {
        const into = new Uint8Array(n);
        const expected = whole.slice(at, at + n);
        expect([chain.read(at, into), [...into.subarray(0, expected.length)]]).toEqual([
          expected.length,
          expected,
        ]);
      }
    chain.fill(0xee, 100);
    expect(chain.write(1, new Uint8Array([1, 2, 3]))).toBe(3);
    expect([...data.bytes.subarray(96, 98), ...data.bytes.subarray(128, 131)]).toEqual([
      0xee, 1, 2, 3, 0xee,
    ]);
    expect(data.bytes[98]).toBe(0);
    device.give(chain, 13);
    expect([cookies(driver), driver.usedLength]).toEqual([[1], 13]);
  });

  it("refuses a state that is not of such a queue", () => {
    const r = rig({ format });
    r.driver.enqueueReadable(1, r.data.address, 8);
    r.driver.notify();
    taken(r.device);
    const state = structuredClone(r.device.save());
    const wrong = rig({ format: format === "split" ? "packed" : "split" }).device.save();
    const device = r.makeDevice();
    const restore = (given: unknown) => () => Reflect.apply(device.restore, device, [given]);
    expect(codeOf(restore(wrong))).toBe("INVALID");
    const [held] = state.held;
    expect(
      codeOf(restore({ ...state, held: [{ ...held, segments: [0, r.buffer.byteLength, 8, 0] }] })),
    ).toBe("INVALID");
    expect(codeOf(restore(state))).toBeUndefined();
    expect(device.held).toBe(1);
    expect(serve(device)).toBe(0);
  });
});

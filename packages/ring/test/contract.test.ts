// The queue contract: every case in every mode, on both ends. `npm test` takes a pairwise covering array of the modes,
// VIRTIO_TEST_FULL=1 all of them.
import { Errno, VirtioFault } from "@virtio/core";
import { pairwise, product } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { random, runSeed } from "./support/random.js";
import {
  type Chain,
  cookies,
  type DeviceEnd,
  type Format,
  nameOf,
  type Rig,
  rig,
  serve,
  taken,
} from "./support/rig.js";
import { runToWrap, Traffic } from "./support/traffic.js";

const axes = {
  format: ["split", "packed"] as readonly Format[],
  size: [1, 2, 3, 7, 256, 32768],
  indirect: [false, true],
  eventIdx: [false, true],
  inOrder: [false, true],
  /** The indices, and a packed ring's wrap counters, begin anew a few chains into the case. */
  wrap: [false, true],
} as const;
type ContractMode = ReturnType<typeof product<typeof axes>>[number];

const allowed = ({ format, size }: ContractMode): boolean =>
  format === "packed" || (size & (size - 1)) === 0;
const modes =
  process.env["VIRTIO_TEST_FULL"] === "1" ? product(axes, allowed) : pairwise(axes, allowed);

const seed = runSeed();

/** Gives held chains back in an order that the mode allows: with IN_ORDER theirs, else backwards. */
function giveAll(device: DeviceEnd, held: readonly Chain[], { mode }: Rig): void {
  for (const chain of mode.inOrder ? held : held.toReversed())
    device.give(chain, chain.writableLength);
}

function takeAll(device: DeviceEnd): Chain[] {
  const held: Chain[] = [];
  for (let chain = device.take(); chain !== null; chain = device.take()) held.push(chain);
  return held;
}

const cases: Readonly<Record<string, (r: Rig) => void>> = {
  "carries every payload byte of chains of drawn shapes, and keeps every rule that a device can see":
    (r) => {
      const traffic = new Traffic(r, random(seed + r.mode.size));
      traffic.run(400);
      expect([...traffic.checker.broken]).toEqual([]);
      expect([r.driver.broken, r.device.broken, r.driver.free]).toEqual([
        null,
        false,
        r.driver.size,
      ]);
      expect(r.driverFaults.concat(r.deviceFaults)).toEqual([]);
    },

  "copies bytes between a chain and an array wherever each begins, and no byte beside them": (
    r,
  ) => {
    const { driver, device, data } = r;
    const bytes = Uint8Array.from({ length: 1400 }, (_, i) => i * 3 + (i >>> 8));
    for (const n of [1, 8, 75, 512, 513])
      for (const [at, start] of [
        [3, 0],
        [3, 4],
        [0, 1],
        [1, 3],
      ] as const) {
        data.bytes.fill(0xee, 0, 1024);
        driver.enqueueWritable(0, data.address + at, n + 2);
        driver.notify();
        const chain = taken(device);
        expect(chain.write(1, bytes, start, start + n)).toBe(n);
        expect(chain.write(n, bytes, 0, 100)).toBe(2);
        const written = [...bytes.slice(start, start + n - 1), ...bytes.slice(0, 2)];
        expect([...data.bytes.subarray(at, at + n + 3)]).toEqual([0xee, ...written, 0xee]);
        device.give(chain, n);
        expect(driver.dequeue()).toBe(0);
        driver.enqueueReadable(0, data.address + at, n + 2);
        driver.notify();
        const read = taken(device);
        const into = new Uint8Array(n + 8);
        expect(read.read(1, into, start, start + n)).toBe(n);
        const expected = [...written.slice(0, n)];
        expect([...into]).toEqual([
          ...Array<number>(start).fill(0),
          ...expected,
          ...Array<number>(8 - start).fill(0),
        ]);
        expect(read.read(n, into, 0, 3)).toBe(2);
        device.give(read, 0);
        expect(driver.dequeue()).toBe(0);
      }
  },

  "writes three words where words are, and nothing where they are not, or beyond the chain": (
    r,
  ) => {
    const { driver, device, data } = r;
    for (const [shift, at, length, done] of [
      [0, 0, 12, true],
      [3, 1, 13, true],
      [0, 2, 20, false],
      [1, 0, 20, false],
      [0, 4, 15, false],
    ] as const) {
      data.bytes.fill(0xee, 0, 64);
      driver.enqueueWritable(0, data.address + shift, length);
      driver.notify();
      const chain = taken(device);
      expect(chain.writeWords(at, 0x0403_0201, -1, 0x8000_0000)).toBe(done);
      const words = done ? [1, 2, 3, 4, 255, 255, 255, 255, 0, 0, 0, 128] : [];
      const from = shift + at;
      expect([...data.bytes.subarray(0, from + 13)]).toEqual([
        ...Array<number>(from).fill(0xee),
        ...words,
        ...Array<number>(13 - words.length).fill(0xee),
      ]);
      device.give(chain, 0);
      expect(driver.dequeue()).toBe(0);
    }
  },

  "reads a header from the first of several segments, and writes the last byte of the last": (
    r,
  ) => {
    const { driver, device, data, mode } = r;
    if (mode.size < 3) return;
    for (const [shift, length] of [
      [0, 16],
      [1, 16],
      [0, 12],
      [4, 20],
    ] as const) {
      for (let i = 0; i < 64; i++) data.bytes[i] = 0x80 + i;
      const at = data.address + shift;
      const segments = new Uint32Array([at, length, at + 100, 9, at + 200, 7]);
      driver.enqueue(0, segments, 0, 2, 1);
      driver.notify();
      const chain = taken(device);
      for (let i = 0; i < 9; i++) data.bytes[shift + 100 + i] = 0x40 + i;
      const header = new Uint8Array(20);
      expect(chain.read(0, header, 0, 16)).toBe(16);
      const expected = [
        ...Array.from({ length }, (_, i) => 0x80 + shift + i),
        ...Array.from({ length: 9 }, (_, i) => 0x40 + i),
      ];
      expect([...header]).toEqual([...expected.slice(0, 16), 0, 0, 0, 0]);
      data.bytes.fill(0xee, shift + 199, shift + 208);
      chain.writeLast(0x5a);
      expect([...data.bytes.subarray(shift + 199, shift + 208)]).toEqual([
        ...Array<number>(7).fill(0xee),
        0x5a,
        0xee,
      ]);
      device.give(chain, 7);
      expect(driver.dequeue()).toBe(0);
    }
  },

  "lets the device undo what it took last, over the end of the ring too: it takes the same again": (
    r,
  ) => {
    const { driver, device, data, mode } = r;
    const lengths = (): number[] => takeAll(device).map(({ writableLength }) => writableLength);
    for (let lap = 0; lap < 3; lap++) {
      const count = Math.min(mode.size, 3);
      for (let i = 0; i < count; i++) driver.enqueueWritable(i, data.address, 8 + i);
      driver.notify();
      const held = takeAll(device);
      expect(held.map(({ writableLength }) => writableLength)).toEqual([8, 9, 10].slice(0, count));
      for (const chain of held.toReversed()) device.untake(chain);
      expect(device.held).toBe(0);
      const again = takeAll(device);
      expect(again).toEqual(held);
      const [first, ...others] = again;
      if (first === undefined) throw new Error("nothing was taken");
      if (others.length > 0) expect(() => device.untake(first)).toThrow(VirtioFault);
      giveAll(device, again, r);
      expect(() => device.untake(first)).toThrow(VirtioFault);
      expect(cookies(driver).toSorted()).toEqual([0, 1, 2].slice(0, count));
      expect(lengths()).toEqual([]);
    }
    expect([device.broken, driver.broken]).toEqual([false, null]);
  },

  "takes as many chains as it has descriptors, then says ENOSPC, and goes on when one came back": (
    r,
  ) => {
    const { driver, device, data, mode } = r;
    for (let i = 0; i < mode.size; i++)
      if (driver.enqueueWritable(i, data.address, 8) !== 0) throw new Error(`no room for ${i}`);
    expect([driver.free, driver.used]).toEqual([0, mode.size]);
    const full = [
      driver.enqueueWritable(1, data.address, 8),
      driver.enqueueReadable(1, data.address, 8),
      driver.enqueue(1, new Uint32Array([data.address, 8]), 0, 1, 0),
    ];
    expect(full).toEqual([-Errno.ENOSPC, -Errno.ENOSPC, -Errno.ENOSPC]);
    driver.notify();
    device.give(taken(device), 8);
    expect(driver.dequeue()).toBe(0);
    expect(driver.enqueueWritable(77, data.address, 8)).toBe(0);
    driver.notify();
    expect(serve(device)).toBe(mode.size);
    expect(cookies(driver)).toHaveLength(mode.size);
    expect(driver.counters.highWater).toBe(mode.size);
  },

  "says EMSGSIZE to a chain with more segments than descriptors are left": (r) => {
    const { driver, data, mode } = r;
    const segments = new Uint32Array([data.address, 1, data.address, 1]);
    for (let i = 1; i < mode.size; i++) driver.enqueueReadable(i, data.address, 1);
    const fits = mode.indirect && mode.size > 1;
    expect(driver.enqueue(0, segments, 0, 2, 0)).toBe(fits ? 0 : -Errno.EMSGSIZE);
    expect(driver.free).toBe(fits ? 0 : 1);
  },

  "refuses a chain of nothing and a segment of 0 bytes, and nothing of them reaches the device": (
    r,
  ) => {
    const { driver, device, data, mode } = r;
    const bad = new Uint32Array([data.address, 4, data.address, 4, data.address, 0]);
    expect(driver.enqueue(1, bad, 0, 0, 0)).toBe(-Errno.EINVAL);
    expect(driver.enqueueReadable(1, data.address, 0)).toBe(-Errno.EINVAL);
    expect(driver.enqueueWritable(1, data.address, 0)).toBe(-Errno.EINVAL);
    if (mode.size >= 3) expect(driver.enqueue(1, bad, 0, 1, 2)).toBe(-Errno.EINVAL);
    expect(driver.free).toBe(mode.size);
    driver.notify();
    expect(device.take()).toBeNull();
    driver.enqueueReadable(2, data.address, 4);
    driver.notify();
    const chain = taken(device);
    expect([chain.readableLength, chain.segments, device.take()]).toEqual([4, 1, null]);
    expect(device.broken).toBe(false);
    device.give(chain, 0);
    expect(cookies(driver)).toEqual([2]);
  },

  "gives cookies back in the order in which the device used them": (r) => {
    const { driver, device, data, mode } = r;
    const n = Math.min(mode.size, 20);
    for (let i = 0; i < n; i++) driver.enqueueWritable(100 + i, data.address, 8);
    driver.notify();
    const held = takeAll(device);
    expect(held).toHaveLength(n);
    expect(device.held).toBe(n);
    giveAll(device, held, r);
    device.wantsInterrupt();
    const sent = Array.from({ length: n }, (_, i) => 100 + i);
    expect(cookies(driver)).toEqual(mode.inOrder ? sent : sent.toReversed());
    expect(device.held).toBe(0);
  },

  "with IN_ORDER refuses to give chains back in another order": (r) => {
    const { driver, device, data, mode } = r;
    if (mode.size < 2) return;
    for (let i = 0; i < 2; i++) driver.enqueueWritable(i, data.address, 8);
    driver.notify();
    const [first, second] = [taken(device), taken(device)];
    if (mode.inOrder) expect(() => device.give(second, 0)).toThrow(VirtioFault);
    else device.give(second, 0);
    device.give(first, 0);
    expect(device.broken).toBe(false);
  },

  "refuses to give a chain back twice, or with more bytes than are writable": (r) => {
    const { driver, device, data } = r;
    driver.enqueueWritable(5, data.address, 8);
    driver.notify();
    const chain = taken(device);
    expect(() => device.give(chain, 9)).toThrow(VirtioFault);
    device.give(chain, 8);
    expect(() => device.give(chain, 8)).toThrow(VirtioFault);
    device.wantsInterrupt();
    expect([cookies(driver), driver.usedLength]).toEqual([[5], 8]);
  },

  "shows nothing before publish(), and a whole batch with one doorbell": (r) => {
    const { driver, device, data, doorbells, mode } = r;
    device.enableNotify();
    doorbells.length = 0;
    const n = Math.min(mode.size, 8);
    for (let i = 0; i < n; i++) driver.enqueueReadable(i, data.address, 8);
    expect(device.take()).toBeNull();
    driver.publish();
    expect(takeAll(device)).toHaveLength(n);
    expect(doorbells).toHaveLength(0);
    driver.notify();
    expect(doorbells).toHaveLength(1);
    driver.notify();
    expect(doorbells).toHaveLength(1);
  },

  "counts doorbells, suppressed ones, signals and buffers": (r) => {
    const { driver, device, data } = r;
    const before = { ...driver.counters };
    const once = (): void => {
      driver.enqueueReadable(1, data.address, 8);
      driver.notify();
      serve(device);
      device.wantsInterrupt();
      expect(cookies(driver)).toEqual([1]);
    };
    device.enableNotify();
    once();
    device.disableNotify();
    once();
    driver.interrupted();
    expect(driver.counters).toEqual({
      kicks: before.kicks + 1,
      kicksSuppressed: before.kicksSuppressed + 1,
      interrupts: before.interrupts + 1,
      buffers: before.buffers + 2,
      highWater: Math.max(before.highWater, 1),
      clipped: 0,
    });
  },

  "rings no doorbell while the device asks for none, and the next one when it asks again": (r) => {
    const { driver, device, data, doorbells, mode } = r;
    if (mode.size < 2) return;
    device.disableNotify();
    doorbells.length = 0;
    driver.enqueueReadable(0, data.address, 8);
    driver.notify();
    expect(doorbells).toHaveLength(0);
    // It was there before the device asked: the device is told to look instead.
    expect(device.enableNotify()).toBe(true);
    expect(takeAll(device)).toHaveLength(1);
    expect(device.enableNotify()).toBe(false);
    driver.enqueueReadable(1, data.address, 8);
    driver.notify();
    expect(doorbells).toHaveLength(1);
  },

  "wants no interrupt while the driver asks for none, and the next one when it asks again": (r) => {
    const { driver, device, data, mode } = r;
    if (mode.size < 2) return;
    driver.disableInterrupt();
    for (let i = 0; i < 2; i++) driver.enqueueReadable(i, data.address, 8);
    driver.notify();
    device.give(taken(device), 0);
    expect(device.wantsInterrupt()).toBe(false);
    expect(driver.enableInterrupt()).toBe(true);
    expect(driver.dequeue()).toBe(0);
    expect(driver.enableInterrupt()).toBe(false);
    device.give(taken(device), 0);
    expect(device.wantsInterrupt()).toBe(true);
    expect(device.wantsInterrupt()).toBe(false);
    expect(driver.dequeue()).toBe(1);
  },

  "loses no wake-up when each end sleeps whenever it is told that it may": (r) => {
    const { driver, device, data, doorbells, mode } = r;
    const draw = random(seed ^ 0x5eed);
    let sent = 0;
    let back = 0;
    let driverAwake = true;
    let deviceAwake = true;
    const held: Chain[] = [];
    const goal = 300;
    for (let steps = 0; back < goal; steps++) {
      if (steps > 100_000 || !(driverAwake || deviceAwake))
        throw new Error(`both ends sleep, ${back} of ${goal} came back`);
      if (driverAwake && (draw(2) === 0 || !deviceAwake)) {
        const room = Math.min(mode.size - driver.used, 1 + draw(3), goal - sent);
        for (let i = 0; i < room; i++)
          if (driver.enqueueWritable(sent, data.address, 8) === 0) sent++;
        doorbells.length = 0;
        driver.notify();
        if (doorbells.length > 0) deviceAwake = true;
        driver.disableInterrupt();
        back += cookies(driver).length;
        const hint = (["short", "long", "emptied"] as const)[draw(3)] ?? "short";
        const more = draw(2) === 0 ? driver.enableInterrupt() : driver.postponeInterrupt(hint);
        if (!more && (sent === goal || driver.used > 0)) driverAwake = back === goal;
      } else if (deviceAwake) {
        device.disableNotify();
        held.push(...takeAll(device));
        const n = draw(held.length + 1);
        for (let i = 0; i < n; i++) {
          const chain = held.shift();
          if (chain !== undefined) device.give(chain, 8);
        }
        if (device.wantsInterrupt()) driverAwake = true;
        if (held.length === 0 && !device.enableNotify()) deviceAwake = false;
      }
    }
    expect([back, driver.broken]).toEqual([goal, null]);
  },

  "postpones the interrupt until part of what is in flight is used": (r) => {
    const { driver, device, data, mode } = r;
    if (!mode.eventIdx) return;
    const n = Math.min(mode.size, 8);
    for (const [hint, after] of [
      ["short", n >>> 2],
      ["long", (n * 3) >>> 2],
      ["emptied", n - 1],
    ] as const) {
      for (let i = 0; i < n; i++) driver.enqueueWritable(i, data.address, 8);
      driver.notify();
      expect(driver.postponeInterrupt(hint)).toBe(false);
      const wantedAt: number[] = [];
      for (let i = 1; i <= n; i++) {
        device.give(taken(device), 0);
        if (device.wantsInterrupt()) wantedAt.push(i);
      }
      expect([hint, wantedAt]).toEqual([hint, [Math.min(after + 1, n)]]);
      expect(cookies(driver)).toHaveLength(n);
    }
  },

  "does not sleep after a postponed interrupt when all of it was used before": (r) => {
    const { driver, device, data, mode } = r;
    const draw = random(seed + 3);
    const segments = new Uint32Array(8);
    for (const hint of ["short", "long", "emptied"] as const) {
      let n = 0;
      for (let i = 0; i < 6; i++) {
        const total = 1 + draw(Math.min(4, mode.size));
        for (let k = 0; k < total; k++) segments.set([data.address, 8], 2 * k);
        if (driver.enqueue(i, segments, 0, total, 0) === 0) n += 1;
      }
      driver.notify();
      serve(device);
      device.wantsInterrupt();
      expect([hint, driver.postponeInterrupt(hint)]).toEqual([hint, true]);
      expect(cookies(driver)).toHaveLength(n);
      expect(driver.postponeInterrupt(hint)).toBe(false);
    }
  },

  "copes with signals and doorbells that bring nothing": (r) => {
    const { driver, device, data } = r;
    let calls = 0;
    driver.onUsed = () => {
      calls += 1;
      expect(driver.dequeue()).toBe(-1);
    };
    const before = new Uint8Array(r.buffer).slice();
    for (let i = 0; i < 3; i++) {
      driver.interrupted();
      expect([device.take(), device.wantsInterrupt()]).toEqual([null, false]);
    }
    driver.notify();
    expect([calls, driver.broken, device.broken]).toEqual([3, null, false]);
    expect(Buffer.compare(before, new Uint8Array(r.buffer))).toBe(0);
    driver.onUsed = null;
    driver.interrupted();
    driver.enqueueReadable(4, data.address, 1);
    driver.notify();
    serve(device);
    device.wantsInterrupt();
    expect(cookies(driver)).toEqual([4]);
  },

  "gives outstanding cookies back after a reset, each once, and works again after a restart": (
    r,
  ) => {
    const { driver, data, mode } = r;
    const n = Math.min(mode.size, 5);
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < n; i++) driver.enqueueReadable(i, data.address, 1);
      driver.publish();
      const back: number[] = [];
      for (let cookie = driver.drain(); cookie >= 0; cookie = driver.drain()) back.push(cookie);
      expect(back.sort((a, b) => a - b)).toEqual(Array.from({ length: n }, (_, i) => i));
      expect([driver.free, driver.drain()]).toEqual([mode.size, -1]);
      driver.restart();
      const device = r.makeDevice();
      for (let i = 0; i < 3 * mode.size && i < 100; i++) {
        expect(driver.enqueueWritable(i, data.address, 8)).toBe(0);
        driver.notify();
        expect(serve(device, 3)).toBe(1);
        device.wantsInterrupt();
        expect([driver.dequeue(), driver.usedLength]).toEqual([i, 3]);
      }
    }
  },

  "polls with a bound, and takes what comes while it polls": (r) => {
    const { driver, device, data, tasks } = r;
    driver.enqueueWritable(8, data.address, 8);
    driver.notify();
    const began = tasks.time;
    expect(driver.poll(50)).toBe(-1);
    expect(tasks.time - began).toBeLessThanOrEqual(53);
    serve(device);
    device.wantsInterrupt();
    expect(driver.poll(50)).toBe(8);
  },

  "prints its state in one line": (r) => {
    r.driver.enqueueReadable(0, r.data.address, 1);
    const line = r.driver.dump();
    expect(line).toMatch(/^VQ: test queue - size=\d+; free=\d+; used=1; queued=1; /);
    expect(line).not.toContain("\n");
  },

  "breaks once when its transport says so, and says EIO from then on": (r) => {
    const { driver, data, tasks, driverFaults } = r;
    driver.enqueueReadable(6, data.address, 1);
    driver.notify();
    const gone = new VirtioFault("CLOSED", "gone");
    driver.fail(gone);
    driver.fail(new VirtioFault("IO", "later"));
    expect(driverFaults).toEqual([]);
    tasks.run();
    tasks.run();
    expect([driverFaults, driver.broken]).toEqual([[gone], gone]);
    expect(driver.enqueueReadable(1, data.address, 1)).toBe(-Errno.EIO);
    expect([driver.dequeue(), driver.enableInterrupt(), driver.poll(10)]).toEqual([-1, false, -1]);
    expect(driver.postponeInterrupt("short")).toBe(false);
    expect([driver.drain(), driver.drain()]).toEqual([6, -1]);
  },

  "carries chains of templates, again and again, among others": (r) => {
    const { driver, device, data, mode } = r;
    if (mode.format === "split" && mode.inOrder) {
      // Descriptors are used in ring order then: they cannot stay where they are.
      expect(() => driver.template(1, 1, 0)).toThrow(VirtioFault);
      return;
    }
    const [readable, writable] = mode.size > 2 ? [1, 1] : [0, 1];
    const count = mode.size > 6 ? 3 : 1;
    const template = driver.template(count, readable, writable);
    for (let slot = 0; slot < count; slot++) {
      if (readable === 1) template.set(slot, 0, data.address + slot * 64, 16);
      template.set(slot, readable, data.address + slot * 64 + 32, 16);
    }
    const draw = random(seed + 5);
    const out = new Set<number>();
    let back = 0;
    for (let round = 0; back < 200; round++) {
      if (round > 10_000) throw new Error(`${back} came back`);
      const slot = draw(count);
      data.bytes[slot * 64] = round & 0xff;
      if (!out.has(slot)) {
        const error = template.enqueue(slot);
        if (error === 0) out.add(slot);
        else expect([-Errno.ENOSPC, -Errno.EMSGSIZE]).toContain(error);
      } else if (mode.format === "split") expect(template.enqueue(slot)).toBe(-Errno.EBUSY);
      if (draw(4) === 0 && driver.enqueueWritable(1000, data.address + 0x800, 8) === 0)
        expect(driver.used).toBeLessThanOrEqual(mode.size);
      driver.notify();
      for (const chain of takeAll(device)) {
        const length = chain.writableLength;
        expect(length === 8 || chain.readableLength === 16 * readable).toBe(true);
        const first = new Uint8Array(1);
        chain.read(0, first);
        chain.fill((first[0] ?? 0) ^ 0xff, length);
        device.give(chain, length);
      }
      device.wantsInterrupt();
      for (let cookie = driver.dequeue(); cookie >= 0; cookie = driver.dequeue()) {
        if (cookie === 1000) continue;
        expect([cookie, out.delete(cookie), driver.usedLength]).toEqual([cookie, true, 16]);
        const asked = readable === 1 ? (data.bytes[cookie * 64] ?? 0) : 0;
        expect(data.bytes[cookie * 64 + 47]).toBe(asked ^ 0xff);
        back += 1;
      }
    }
    // A slot's segments may change while the device does not have it.
    template.set(0, readable, data.address + 0x900, 5);
    expect(template.enqueue(0)).toBe(0);
    driver.notify();
    expect(taken(device).writableLength).toBe(5);
    expect([driver.broken, device.broken]).toEqual([null, false]);
  },

  "refuses templates for which there is no room": (r) => {
    const { driver, mode } = r;
    expect(() => driver.template(0, 1, 0)).toThrow(VirtioFault);
    expect(() => driver.template(1, 0, 0)).toThrow(VirtioFault);
    expect(() => driver.template(1, mode.size, 1)).toThrow(VirtioFault);
    expect(driver.free).toBe(mode.size);
  },

  "says in its doorbells where the next chain will be": (r) => {
    const { driver, device, data, doorbells, mode } = r;
    const descriptors = r.begun;
    device.enableNotify();
    doorbells.length = 0;
    for (let i = 1; i <= 5; i++) {
      device.enableNotify();
      driver.enqueueReadable(i, data.address, 8);
      driver.notify();
      serve(device);
      device.wantsInterrupt();
      expect(cookies(driver)).toEqual([i]);
      const next = descriptors + i;
      const lap = Math.floor(next / mode.size) % 2 === 0 ? 0x8000 : 0;
      expect(doorbells.splice(0)).toEqual([
        mode.format === "split" ? next & 0xffff : (next % mode.size) | lap,
      ]);
    }
  },

  "goes on after either end was saved and restored in the middle of traffic": (r) => {
    const traffic = new Traffic(r, random(seed + 11));
    for (let round = 0; round < 8; round++) {
      for (let i = 0; i < 40; i++) traffic.step();
      if (round % 2 === 0) traffic.moveDriver(r.moveDriver(traffic.driver));
      else {
        const held = traffic.held.map((chain) => chain.id);
        const moved = r.moveDevice(traffic.device);
        expect(moved.held.map((chain) => chain.id)).toHaveLength(held.length);
        traffic.moveDevice(moved.device, moved.held);
      }
    }
    traffic.settle();
    expect([...traffic.checker.broken]).toEqual([]);
    expect([traffic.driver.broken, traffic.device.broken]).toEqual([null, false]);
    expect(traffic.driver.free).toBe(r.mode.size);
  },
};

for (const mode of modes)
  describe(`a queue (${nameOf(mode)}${mode.wrap ? ", near the wrap" : ""})`, () => {
    for (const [name, run] of Object.entries(cases))
      it(name, () => {
        const made = rig(mode);
        // Indices that begin anew: the case starts a few chains before.
        if (mode.wrap) runToWrap(made);
        run(made);
      });
  });

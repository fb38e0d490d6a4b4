import { Errno } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { SplitQueue } from "../src/index.js";
import { BASE, ManualTasks, pair, random, runSeed } from "./bench-memory.js";

describe("a split queue", () => {
  it("aligns its parts: 16 for the descriptor table, 2 for the available ring, 4 for the used ring [SPLIT-LAYOUT-1]", () => {
    for (const size of [1, 2, 8, 64, 1024, 32768]) {
      const { descriptors, available, used } = pair({ size, memory: 4 << 20 }).driver.addresses;
      expect([descriptors % 16, available % 2, used % 4]).toEqual([0, 0, 0]);
    }
  });

  it("refuses a size that is no power of two, and one above 32768", () => {
    const { memory } = pair();
    const make = (size: number) => () =>
      new SplitQueue({
        index: 0,
        name: "q",
        device: "test0",
        size,
        memory,
        tasks: new ManualTasks(),
        indirect: false,
        eventIdx: false,
        maxSegments: 1,
        doorbell: () => {},
      });
    for (const size of [0, 3, 12, 65536, -1])
      expect(make(size)).toThrow(/size is not a power of 2/);
  });

  it("starts with used.flags 0, whatever the memory held before [SPLIT-AVAILSUP-1]", () => {
    const { driver, parts } = pair();
    parts.usedIndex[0] = 1;
    driver.restart();
    expect(parts.usedIndex[0]).toBe(0);
  });

  it("gives the cookie and the written length back", () => {
    const { driver, device } = pair();
    expect(driver.enqueueWritable(7, BASE + 0x8000, 100)).toBe(0);
    driver.notify();
    const chain = device.take();
    if (chain === null) throw new Error("no chain");
    device.give(chain, 42);
    expect(driver.dequeue()).toBe(7);
    expect(driver.usedLength).toBe(42);
    expect(driver.dequeue()).toBe(-1);
  });

  it("may expose several chains with one index store [SPLIT-SUPPLY-1]", () => {
    const { driver, device, parts } = pair();
    for (let i = 0; i < 5; i++) driver.enqueueReadable(i, BASE + 0x8000, 16);
    expect(parts.available[1]).toBe(0);
    expect(device.take()).toBeNull();
    driver.publish();
    expect(parts.available[1]).toBe(5);
    expect(device.take()?.head).toBe(0);
  });

  it("says ENOSPC when full, EMSGSIZE when a chain needs more than is left, EINVAL for nothing", () => {
    const { driver } = pair({ size: 4 });
    const segments = new Uint32Array([BASE + 0x8000, 1, BASE + 0x8000, 1, BASE + 0x8000, 1]);
    expect(driver.enqueue(0, segments, 0, 0, 0)).toBe(-Errno.EINVAL);
    expect(driver.enqueueReadable(0, BASE + 0x8000, 0)).toBe(-Errno.EINVAL);
    expect(driver.enqueue(0, segments, 0, 2, 1)).toBe(0);
    expect(driver.enqueue(0, segments, 0, 1, 1)).toBe(-Errno.EMSGSIZE);
    expect(driver.enqueueReadable(0, BASE + 0x8000, 1)).toBe(0);
    expect(driver.enqueueReadable(0, BASE + 0x8000, 1)).toBe(-Errno.ENOSPC);
    expect([driver.used, driver.free, driver.counters.highWater]).toEqual([4, 0, 4]);
  });

  it("takes one descriptor for a chain in an indirect table", () => {
    const { driver, device } = pair({ size: 4, indirect: true });
    const segments = new Uint32Array([BASE + 0x8000, 1, BASE + 0x8010, 2, BASE + 0x8020, 3]);
    for (let i = 0; i < 4; i++) expect(driver.enqueue(i, segments, 0, 2, 1)).toBe(0);
    expect(driver.free).toBe(0);
    driver.notify();
    const chain = device.take();
    expect([chain?.segments, chain?.readableLength, chain?.writableLength]).toEqual([3, 3, 3]);
  });

  it("rings unless used.flags asks for no doorbell", () => {
    const { driver, device, doorbells } = pair();
    driver.enqueueReadable(0, BASE + 0x8000, 1);
    driver.notify();
    expect(doorbells).toEqual([0]);
    device.disableNotify();
    driver.enqueueReadable(1, BASE + 0x8000, 1);
    driver.notify();
    expect(doorbells).toEqual([0]);
    expect([driver.counters.kicks, driver.counters.kicksSuppressed]).toEqual([1, 1]);
  });

  it("without EVENT_IDX ignores what stands in avail_event [SPLIT-AVAILSUP-2]", () => {
    const { driver, parts, doorbells } = pair();
    parts.usedIndex[2 + 4 * 8] = 0x7777;
    driver.enqueueReadable(0, BASE + 0x8000, 1);
    driver.notify();
    expect(doorbells).toEqual([0]);
  });

  it("with EVENT_IDX rings when the index passes avail_event, and only then [SPLIT-AVAILSUP-6] [SPLIT-AVAILSUP-7]", () => {
    const { driver, parts, doorbells } = pair({ eventIdx: true });
    parts.usedIndex[2 + 4 * 8] = 2;
    const rungAt: number[] = [];
    for (let i = 0; i < 5; i++) {
      driver.enqueueReadable(i, BASE + 0x8000, 1);
      driver.notify();
      if (doorbells.splice(0).length > 0) rungAt.push(i);
    }
    expect(rungAt).toEqual([2]);
  });

  it("with EVENT_IDX ignores used.flags [SPLIT-AVAILSUP-5]", () => {
    const { driver, parts, doorbells } = pair({ eventIdx: true });
    parts.usedIndex[0] = 1;
    driver.enqueueReadable(0, BASE + 0x8000, 1);
    driver.notify();
    expect(doorbells).toEqual([0]);
  });

  it("with EVENT_IDX keeps avail.flags 0 [SPLIT-USEDSUP-3]", () => {
    const { driver, parts } = pair({ eventIdx: true });
    driver.disableInterrupt();
    expect(parts.available[0]).toBe(0);
    driver.enableInterrupt();
    expect(parts.available[0]).toBe(0);
  });

  it("finds a buffer used just before it armed interrupts [SPLIT-RECV-1]", () => {
    for (const eventIdx of [false, true]) {
      const { driver, device } = pair({ eventIdx });
      driver.enqueueWritable(3, BASE + 0x8000, 8);
      driver.notify();
      const chain = device.take();
      if (chain === null) throw new Error("no chain");
      device.give(chain, 8);
      expect(device.wantsInterrupt()).toBe(false);
      expect(driver.enableInterrupt()).toBe(true);
      expect(driver.dequeue()).toBe(3);
      expect(driver.enableInterrupt()).toBe(false);
    }
  });

  it("asks for an interrupt after a quarter, three quarters or all of what is in flight", () => {
    for (const [hint, after] of [
      ["short", 2],
      ["long", 6],
      ["emptied", 8],
    ] as const) {
      const { driver, device } = pair({ eventIdx: true });
      for (let i = 0; i < 8; i++) driver.enqueueWritable(i, BASE + 0x8000, 8);
      driver.notify();
      expect(driver.postponeInterrupt(hint)).toBe(false);
      let wantedAt = -1;
      for (let i = 1; i <= 8; i++) {
        const chain = device.take();
        if (chain === null) throw new Error("no chain");
        device.give(chain, 0);
        if (device.wantsInterrupt() && wantedAt < 0) wantedAt = i;
      }
      expect(wantedAt).toBe(Math.min(after + 1, 8) === after + 1 ? after + 1 : -1);
    }
  });

  it("copes with signals that bring nothing [SPLIT-USEDSUP-5]", () => {
    const { driver } = pair();
    let calls = 0;
    driver.onUsed = () => {
      calls += 1;
      expect(driver.dequeue()).toBe(-1);
    };
    for (let i = 0; i < 3; i++) driver.interrupted();
    expect([calls, driver.broken]).toEqual([3, null]);
  });

  it("gives outstanding cookies back after a reset, each once", () => {
    const { driver } = pair();
    for (const cookie of [5, 6, 7]) driver.enqueueReadable(cookie, BASE + 0x8000, 1);
    driver.publish();
    expect(
      [driver.drain(), driver.drain(), driver.drain(), driver.drain()].sort((a, b) => a - b),
    ).toEqual([-1, 5, 6, 7]);
    expect(driver.free).toBe(8);
  });

  it("polls with a bound", () => {
    const { driver } = pair();
    driver.enqueueWritable(0, BASE + 0x8000, 8);
    driver.notify();
    expect(driver.poll(50)).toBe(-1);
  });

  it("prints one line of its state, in FreeBSD's form", () => {
    const { driver } = pair();
    driver.enqueueReadable(0, BASE + 0x8000, 1);
    expect(driver.dump()).toBe(
      "VQ: test queue - size=8; free=7; used=1; queued=1; desc_head_idx=1; avail.idx=1; used_cons_idx=0; used.idx=0; used_event_idx=0; avail.flags=0x1; used.flags=0x0",
    );
  });

  const seed = runSeed();
  for (const indirect of [false, true])
    for (const eventIdx of [false, true])
      for (const size of [1, 2, 16, 256])
        it(`exchanges 20000 chains of drawn shapes with its device end (size ${size}, indirect ${indirect}, event_idx ${eventIdx})`, () => {
          const draw = random(seed + size);
          const { driver, device, memory, doorbells } = pair({ size, indirect, eventIdx });
          const area = memory.allocate(1 << 16);
          const segments = new Uint32Array(8);
          const outstanding = new Map<number, { writable: number; mark: number }>();
          const held: { chain: NonNullable<ReturnType<typeof device.take>>; written: number }[] =
            [];
          let sent = 0;
          let returned = 0;
          let mark = 0;
          while (returned < 20000) {
            const action = draw(4);
            if (action === 0 && sent < 20000) {
              const readable = 1 + draw(2);
              const writable = draw(3);
              const cookie = sent;
              mark = (mark + 1) & 0xff;
              const slot = (sent % 256) * 256;
              area.bytes[slot] = mark;
              let writableBytes = 0;
              for (let i = 0; i < readable + writable; i++) {
                const length = 1 + draw(60);
                segments[2 * i] = area.address + slot + i * 64;
                segments[2 * i + 1] = length;
                if (i >= readable) writableBytes += length;
              }
              const error =
                outstanding.size >= 256
                  ? -Errno.ENOSPC
                  : driver.enqueue(cookie, segments, 0, readable, writable);
              if (error === 0) {
                outstanding.set(cookie, { writable: writableBytes, mark });
                sent += 1;
              }
              if (draw(2) === 0) driver.notify();
            } else if (action === 1) {
              driver.notify();
              const chain = device.take();
              if (chain !== null) held.push({ chain, written: draw(chain.writableLength + 1) });
            } else if (action === 2 && held.length > 0) {
              const [out] = held.splice(draw(held.length), 1);
              if (out === undefined) continue;
              const first = new Uint8Array(1);
              expect(out.chain.read(0, first)).toBe(1);
              out.chain.write(0, new Uint8Array(out.written).fill(first[0] ?? 0));
              device.give(out.chain, out.written);
              device.wantsInterrupt();
            } else {
              for (let cookie = driver.dequeue(); cookie >= 0; cookie = driver.dequeue()) {
                const expected = outstanding.get(cookie);
                expect(expected).not.toBeUndefined();
                expect(driver.usedLength).toBeLessThanOrEqual(expected?.writable ?? -1);
                outstanding.delete(cookie);
                returned += 1;
              }
            }
          }
          expect([driver.broken, device.broken, outstanding.size, driver.free]).toEqual([
            null,
            false,
            0,
            size,
          ]);
          expect(doorbells.length).toBeGreaterThan(0);
        });
});

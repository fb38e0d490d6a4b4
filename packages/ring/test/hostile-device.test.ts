import { Errno } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { BASE, pair } from "./bench-memory.js";

type Pair = ReturnType<typeof pair>;

/** Two chains outstanding: head 0 with 16 writable bytes, head 1 with readable bytes only. */
function busy(): Pair {
  const p = pair();
  p.driver.enqueueWritable(10, BASE + 0x8000, 16);
  p.driver.enqueueReadable(11, BASE + 0x8100, 16);
  p.driver.notify();
  return p;
}

/** Writes a used entry and the index, as a device would. */
function use({ parts }: Pair, slot: number, id: number, length: number, index: number): void {
  parts.usedEntries[1 + 2 * slot] = id;
  parts.usedEntries[2 + 2 * slot] = length;
  parts.usedIndex[1] = index;
}

const lies: readonly {
  readonly name: string;
  readonly lie: (p: Pair) => void;
  readonly says: RegExp;
}[] = [
  {
    name: "a used id beyond the queue",
    lie: (p) => use(p, 0, 300, 0, 1),
    says: /used.id 300 is not outstanding/,
  },
  {
    name: "a used id of 2^32-1",
    lie: (p) => use(p, 0, 0xffff_ffff, 0, 1),
    says: /used.id 4294967295 is not outstanding/,
  },
  {
    name: "a used id that was never handed out",
    lie: (p) => use(p, 0, 5, 0, 1),
    says: /used.id 5 is not outstanding/,
  },
  {
    name: "the same used id twice",
    lie: (p) => {
      use(p, 0, 0, 4, 1);
      expect(p.driver.dequeue()).toBe(10);
      use(p, 1, 0, 4, 2);
    },
    says: /used.id 0 is not outstanding/,
  },
  {
    name: "a length above what was writable",
    lie: (p) => use(p, 0, 0, 17, 1),
    says: /used.len 17 is above the 16 writable bytes/,
  },
  {
    name: "a length for a chain that is all readable",
    lie: (p) => use(p, 0, 1, 1, 1),
    says: /used.len 1 is above the 0 writable bytes/,
  },
  {
    name: "an index that jumps beyond what is outstanding",
    lie: (p) => use(p, 0, 0, 0, 3),
    says: /used.idx 3 is 3 ahead of 0 with 2 chains/,
  },
  {
    name: "an index that goes back",
    lie: (p) => {
      use(p, 0, 0, 4, 1);
      expect(p.driver.dequeue()).toBe(10);
      p.parts.usedIndex[1] = 0;
    },
    says: /used.idx 0 is 65535 ahead of 1/,
  },
];

describe("a split queue whose device lies", () => {
  for (const { name, lie, says } of lies)
    it(`breaks once on ${name}, and says why`, () => {
      const p = busy();
      const { driver, tasks, driverFaults, buffer } = p;
      lie(p);
      const before = new Uint8Array(buffer).slice();
      expect(driver.dequeue()).toBe(-1);
      expect(driver.broken?.code).toBe("DEVICE_MISBEHAVED");
      expect(driver.broken?.message).toMatch(says);
      expect(driver.broken?.message).toMatch(
        /^test0: device misbehaved: .*\(queue 0, size 8\) \[virtio 1\.4 §2\.7\.8\]$/,
      );
      // onBroken is a task of its own, and comes once, whatever is called afterwards.
      expect(driverFaults).toEqual([]);
      expect(driver.dequeue()).toBe(-1);
      expect(driver.enableInterrupt()).toBe(false);
      expect(driver.enqueueReadable(12, BASE + 0x8000, 1)).toBe(-Errno.EIO);
      expect(driver.enqueue(12, new Uint32Array([BASE + 0x8000, 1]), 0, 1, 0)).toBe(-Errno.EIO);
      driver.notify();
      tasks.run();
      tasks.run();
      expect(driverFaults).toEqual([driver.broken]);
      // Nothing was written but avail.flags, which enableInterrupt sets.
      const after = new Uint8Array(buffer);
      const changed: number[] = [];
      for (let i = 0; i < after.length; i++) if (after[i] !== before[i]) changed.push(i);
      const flags = driver.addresses.available - BASE;
      expect(changed.every((at) => at === flags || at === flags + 1)).toBe(true);
      expect(driver.poll(1000)).toBe(-1);
    });

  it("uses what it wrote, not what the device made of it: rewritten descriptors change nothing", () => {
    const { driver, parts } = busy();
    parts.descriptors.fill(0xffff_ffff);
    parts.available.fill(0xffff, 2);
    use({ parts } as Pair, 0, 0, 16, 1);
    expect(driver.dequeue()).toBe(10);
    expect(driver.usedLength).toBe(16);
    expect(driver.enqueueWritable(12, BASE + 0x8000, 8)).toBe(0);
    expect(driver.broken).toBeNull();
  });

  it("takes nothing the device wrote for a doorbell but one bit or one index", () => {
    for (const eventIdx of [false, true]) {
      const { driver, parts } = pair({ eventIdx });
      parts.usedIndex[0] = 0xabcd;
      parts.usedIndex[2 + 4 * 8] = 0xabcd;
      driver.enqueueReadable(0, BASE + 0x8000, 1);
      driver.notify();
      expect(driver.broken).toBeNull();
    }
  });

  it("works again after a restart", () => {
    const p = busy();
    use(p, 0, 300, 0, 1);
    expect(p.driver.dequeue()).toBe(-1);
    while (p.driver.drain() >= 0);
    p.driver.restart();
    expect(p.driver.broken).toBeNull();
    expect(p.driver.enqueueReadable(1, BASE + 0x8000, 1)).toBe(0);
    p.driver.notify();
    expect(p.makeDevice().take()?.head).toBe(0);
  });
});

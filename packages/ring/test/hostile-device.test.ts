// The device lies to the driver's end: one lie a case, each through plain chains, a batch and templates.
import { Errno } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { BASE, type Format, type Rig, type RigOptions, rig, taken } from "./support/rig.js";

/** Two chains that the device holds, of 16 writable bytes each, and what it knows of them. */
interface Busy extends Rig {
  readonly ids: readonly number[];
  readonly counts: readonly number[];
  /** Takes a chain back that the device used as it should. */
  readonly use: (chain: number, length: number) => void;
  /** Writes a used entry with any id and length; `count` is how far a packed ring moves on. */
  readonly claim: (id: number, length: number, count?: number) => void;
}

type Way = "one by one" | "in a batch" | "by templates";

function busy(format: Format, way: Way, options: RigOptions = {}): Busy {
  const r = rig({ format, ...options });
  const { driver, data, split, packed } = r;
  if (way === "by templates") {
    const template = driver.template(2, 1, 1);
    for (let slot = 0; slot < 2; slot++) {
      template.set(slot, 0, data.address + slot * 64, 16);
      template.set(slot, 1, data.address + slot * 64 + 32, 16);
      if (template.enqueue(slot) !== 0) throw new Error("no room");
    }
  } else
    for (let cookie = 0; cookie < 2; cookie++) {
      driver.enqueueWritable(cookie, data.address + cookie * 64, 16);
      if (way === "one by one") driver.notify();
    }
  driver.notify();
  // A second pair of eyes over the same bytes: taking writes nothing.
  const eyes = r.makeDevice();
  const chains = [taken(eyes), taken(eyes)];
  const ids = chains.map((chain) => chain.id);
  const counts = chains.map((chain) => chain.descriptors);
  const claim = (id: number, length: number, count = 1): void => {
    if (format === "split") split.use(id, length);
    else packed.use(id, length, count);
  };
  const use = (chain: number, length: number): void =>
    claim(ids[chain] ?? -1, length, counts[chain] ?? 1);
  return { ...r, ids, counts, use, claim };
}

/** Every descriptor of a full queue used once and taken back: the ring stands at the beginning of its second lap. */
function wholeLap(r: Busy): void {
  r.use(0, 0);
  r.use(1, 0);
  while (r.driver.dequeue() >= 0);
  for (let i = r.packed.at; i < r.mode.size; i++) {
    r.driver.enqueueReadable(i, r.data.address, 1);
    r.driver.notify();
    r.claim(r.packed.id(i), 0);
    r.driver.dequeue();
  }
}

interface Lie {
  readonly name: string;
  readonly lie: (r: Busy) => void;
  readonly says: RegExp;
  readonly formats?: readonly Format[];
  readonly ways?: readonly Way[];
  readonly options?: RigOptions;
}

const splitOnly: readonly Format[] = ["split"];
const packedOnly: readonly Format[] = ["packed"];

const lies: readonly Lie[] = [
  {
    name: "a used id beyond the queue",
    lie: (r) => r.claim(300, 0),
    says: /used\.?\s?id 300 is not outstanding/,
  },
  {
    name: "a used id of 2^32-1",
    formats: splitOnly,
    lie: (r) => r.claim(0xffff_ffff, 0),
    says: /used.id 4294967295 is not outstanding/,
  },
  {
    name: "a used id that was never handed out",
    lie: (r) => r.claim(7, 0),
    says: /used\.?\s?id 7 is not outstanding/,
  },
  {
    name: "the same used id twice",
    lie: (r) => {
      r.use(0, 4);
      expect(r.driver.dequeue()).toBe(0);
      r.use(0, 4);
    },
    says: /used\.?\s?id \d is not outstanding/,
  },
  {
    name: "a used id of a chain that is not published",
    ways: ["one by one", "in a batch"],
    lie: (r) => {
      r.driver.enqueueWritable(2, r.data.address, 16);
      r.claim(2, 0);
    },
    says: /used\.?\s?id 2 is not/,
  },
  {
    name: "a length one above what was writable",
    lie: (r) => r.use(0, 17),
    says: /(used.len|used length) 17 is above the 16 writable bytes/,
  },
  {
    name: "a length of 2^32-1",
    lie: (r) => r.use(0, 0xffff_ffff),
    says: /4294967295 is above the 16 writable bytes/,
  },
  {
    name: "a length above what was writable after it rewrote the descriptors",
    lie: (r) => {
      for (let i = 0; i < 8; i++) {
        const words = r.mode.format === "split" ? r.split.descriptors : r.packed.descriptors;
        words[i * 4 + 2] = 0x1_0000;
      }
      r.use(0, 17);
    },
    says: /17 is above the 16 writable bytes/,
  },
  {
    name: "an index that jumps beyond what is outstanding",
    formats: splitOnly,
    lie: (r) => r.split.use(r.ids[0] ?? 0, 0, 3),
    says: /used.idx 3 is 3 ahead of 0 with 2 chains/,
  },
  {
    name: "an index that jumps over chains that are not published",
    formats: splitOnly,
    ways: ["one by one", "in a batch"],
    lie: (r) => {
      r.driver.enqueueWritable(2, r.data.address, 16);
      r.split.use(r.ids[0] ?? 0, 0, 3);
    },
    says: /used.idx 3 is 3 ahead of 0/,
  },
  {
    name: "an index that goes back",
    formats: splitOnly,
    lie: (r) => {
      r.use(0, 4);
      expect(r.driver.dequeue()).toBe(0);
      r.split.used[1] = 0;
    },
    says: /used.idx 0 is 65535 ahead of 1/,
  },
  {
    name: "an index that is half the numbers ahead",
    formats: splitOnly,
    lie: (r) => r.split.use(r.ids[0] ?? 0, 0, 0x8000),
    says: /used.idx 32768 is 32768 ahead of 0/,
  },
  {
    name: "a used descriptor at a place that is not published",
    formats: packedOnly,
    ways: ["one by one", "in a batch"],
    lie: (r) => {
      r.use(0, 0);
      r.use(1, 0);
      expect([r.driver.dequeue(), r.driver.dequeue()]).toEqual([0, 1]);
      r.driver.enqueueWritable(2, r.data.address, 16);
      r.claim(0, 0);
    },
    says: /is used and was not available/,
  },
  {
    name: "a used descriptor when the device has nothing",
    formats: packedOnly,
    lie: (r) => {
      r.use(0, 0);
      r.use(1, 0);
      expect([r.driver.dequeue(), r.driver.dequeue()]).toEqual([0, 1]);
      r.claim(0, 0);
    },
    says: /is used and was not available/,
  },
  {
    name: "a wrap counter that flips a lap too early",
    formats: packedOnly,
    ways: ["one by one", "in a batch"],
    lie: (r) => {
      wholeLap(r);
      expect(r.driver.dequeue()).toBe(-1);
      expect(r.driver.broken).toBeNull();
      r.packed.wrap = false;
      r.claim(0, 0);
    },
    says: /is used and was not available/,
  },
  {
    name: "with IN_ORDER the second chain before the first",
    formats: splitOnly,
    ways: ["one by one", "in a batch"],
    options: { inOrder: true },
    lie: (r) => r.use(1, 0),
    says: /used.id 1 is not among the 1 chains next in order/,
  },
  {
    name: "with IN_ORDER a chain that came back in a batch once more",
    ways: ["one by one", "in a batch"],
    options: { inOrder: true },
    lie: (r) => {
      r.driver.enqueueWritable(2, r.data.address, 16);
      r.driver.notify();
      // One entry for two chains: the last of them is named.
      if (r.mode.format === "split") r.split.use(r.ids[1] ?? 0, 3, 2);
      else r.claim(r.ids[1] ?? 0, 3, 2);
      expect([r.driver.dequeue(), r.driver.dequeue()]).toEqual([0, 1]);
      expect(r.driver.usedLength).toBe(3);
      r.use(0, 0);
    },
    says: /used\.?\s?id \d is not/,
  },
  {
    name: "with IN_ORDER a batch that ends in a chain not outstanding",
    ways: ["one by one", "in a batch"],
    options: { inOrder: true },
    lie: (r) => {
      if (r.mode.format === "split") r.split.use(5, 0, 2);
      else r.claim(5, 0, 2);
    },
    says: /used\.?\s?id 5 is not/,
  },
  {
    name: "with IN_ORDER a length above what was writable in the last of a batch",
    ways: ["one by one", "in a batch"],
    options: { inOrder: true },
    lie: (r) => {
      if (r.mode.format === "split") r.split.use(r.ids[1] ?? 0, 17, 2);
      else r.claim(r.ids[1] ?? 0, 17, 2);
      expect(r.driver.dequeue()).toBe(0);
    },
    says: /17 is above the 16 writable bytes/,
  },
];

/** Bytes that differ, other than those of the driver's own notification area. */
function changed(r: Rig, before: Uint8Array): number[] {
  const own = r.place.driver;
  const used =
    r.mode.format === "split" ? [own, own + 1, ...eventBytes(r)] : [0, 1, 2, 3].map((i) => own + i);
  const all: number[] = [];
  const after = new Uint8Array(r.buffer);
  for (let i = 0; i < after.length; i++)
    if (after[i] !== before[i] && !used.includes(i)) all.push(i);
  return all;
}

/** used_event of a split ring. */
function eventBytes({ place }: Rig): number[] {
  return [place.driver + 4 + 2 * place.size, place.driver + 5 + 2 * place.size];
}

const formats: readonly Format[] = ["split", "packed"];
const ways: readonly Way[] = ["one by one", "in a batch", "by templates"];

describe.each(formats)("a %s queue whose device lies", (format) => {
  for (const { name, lie, says, formats: of = formats, ways: by = ways, options = {} } of lies)
    for (const way of of.includes(format) ? by : [])
      for (const eventIdx of [false, true])
        it(`breaks once on ${name}, and says why (chains made available ${way}${eventIdx ? ", event_idx" : ""})`, () => {
          const r = busy(format, way, { ...options, eventIdx });
          const { driver, tasks, driverFaults, buffer, data } = r;
          lie(r);
          const before = new Uint8Array(buffer).slice();
          expect(driver.dequeue()).toBe(-1);
          expect(driver.broken?.code).toBe("DEVICE_MISBEHAVED");
          expect(driver.broken?.message).toMatch(says);
          expect(driver.broken?.message).toMatch(
            /^test0: device misbehaved: .*\(queue 0, size 8\) \[virtio 1\.4 §2\.[78]\.[0-9.]+\]$/,
          );
          // onBroken is a task of its own, and comes once, whatever is called afterwards.
          expect(driverFaults).toEqual([]);
          expect([driver.dequeue(), driver.dequeue(), driver.poll(100)]).toEqual([-1, -1, -1]);
          expect([driver.enableInterrupt(), driver.postponeInterrupt("long")]).toEqual([
            false,
            false,
          ]);
          expect(driver.enqueueReadable(12, data.address, 1)).toBe(-Errno.EIO);
          expect(driver.enqueueWritable(12, data.address, 1)).toBe(-Errno.EIO);
          expect(driver.enqueue(12, new Uint32Array([data.address, 1]), 0, 1, 0)).toBe(-Errno.EIO);
          const bells = r.doorbells.length;
          tasks.run();
          tasks.run();
          expect(driverFaults).toEqual([driver.broken]);
          expect(changed(r, before)).toEqual([]);
          // What is outstanding comes back by drain(), each cookie once; then the queue can begin anew.
          const back: number[] = [];
          for (let cookie = driver.drain(); cookie >= 0; cookie = driver.drain()) back.push(cookie);
          expect(new Set(back).size).toBe(back.length);
          driver.restart();
          expect([driver.broken, driver.free, r.doorbells.length]).toEqual([null, 8, bells]);
          expect(driver.enqueueReadable(1, data.address, 1)).toBe(0);
          driver.notify();
          expect(r.makeDevice().take()?.readableLength).toBe(1);
        });

  for (const way of ways)
    it(`uses what it wrote, not what the device made of it: rewritten descriptors change nothing (${way})`, () => {
      const r = busy(format, way);
      const { driver, split, packed, ids, counts } = r;
      if (format === "split") {
        split.descriptors.fill(0xffff_ffff);
        split.available.fill(0xffff, 2);
      } else for (let i = 1; i < 8; i++) packed.descriptors.fill(0x5555_5555, i * 4, i * 4 + 4);
      r.claim(ids[0] ?? 0, 16, counts[0]);
      expect([driver.dequeue(), driver.usedLength]).toEqual([0, 16]);
      if (format === "split") {
        r.claim(ids[1] ?? 0, 5, counts[1]);
        expect([driver.dequeue(), driver.usedLength]).toEqual([1, 5]);
        expect(driver.enqueueWritable(12, BASE, 8)).toBe(way === "by templates" ? 0 : 0);
      }
      expect(driver.broken).toBeNull();
    });

  it("takes nothing the device wrote for a doorbell but whether to ring it", () => {
    for (const eventIdx of [false, true])
      for (const garbage of [0xabcd, 0xffff, 0x7fff, 0x8000, 1]) {
        const { driver, split, packed, data, doorbells } = rig({ format, eventIdx });
        if (format === "split") {
          split.used[0] = garbage;
          split.used[2 + 4 * 8] = garbage;
        } else {
          packed.deviceEvent[0] = garbage;
          packed.deviceEvent[1] = garbage;
        }
        for (let i = 0; i < 8; i++) {
          expect(driver.enqueueReadable(i, data.address, 1)).toBe(0);
          driver.notify();
        }
        expect([driver.broken, driver.counters.kicks + driver.counters.kicksSuppressed]).toEqual([
          null,
          8,
        ]);
        expect(doorbells).toHaveLength(driver.counters.kicks);
      }
  });

  it.each([
    ["when the device is a legacy one", { legacy: true }],
    ["when the driver asks for it", { clip: true }],
  ])("clips a length above what is writable, and counts it, %s", (_, options) => {
    if (format === "packed" && "legacy" in options) return;
    const r = busy(format, "one by one", options);
    r.use(0, 17);
    r.use(1, 16);
    expect([r.driver.dequeue(), r.driver.usedLength]).toEqual([0, 16]);
    expect([r.driver.dequeue(), r.driver.usedLength]).toEqual([1, 16]);
    expect([r.driver.counters.clipped, r.driver.broken]).toEqual([1, null]);
  });

  it("clips the length of a used descriptor without WRITE when the driver asks for it, as QEMU needs it", () => {
    if (format === "split") return;
    const r = busy(format, "one by one", { clip: true });
    r.packed.use(r.ids[0] ?? 0, 1000, 1, 0);
    expect([r.driver.dequeue(), r.driver.usedLength, r.driver.broken]).toEqual([0, 16, null]);
  });

  it("takes a used descriptor without WRITE for no bytes written", () => {
    if (format === "split") return;
    const r = busy(format, "one by one");
    r.packed.use(r.ids[0] ?? 0, 0xffff_ffff, 1, 0);
    expect([r.driver.dequeue(), r.driver.usedLength, r.driver.broken]).toEqual([0, 0, null]);
  });
});

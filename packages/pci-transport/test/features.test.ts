// What is accepted of what a device offers, whatever it offers.
import { DeviceType, type FeatureName, featureSetFromWords, ReservedFeature } from "@virtio/core";
import { CommonConfig } from "@virtio/core/pci";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { afterEach, describe, expect, it, vi } from "vitest";
import { attach, probe } from "../src/index.js";
import { nullDriver } from "./null-driver.js";
import { pciBus, tampered } from "./tampered-bus.js";

/** Some network features and what they need (virtio 1.4 §5.1.3.1): each group must have one accepted. */
const needs: readonly (readonly [bit: number, groups: readonly (readonly number[])[]])[] = [
  [0, []],
  [1, []],
  [7, [[1]]],
  [8, [[1]]],
  [9, [[7, 8]]],
  [11, [[0]]],
  [12, [[0]]],
  [13, [[11, 12]]],
  [17, []],
  [22, [[17]]],
  [51, [[17], [60, 57]]],
  [57, []],
  [60, [[17]]],
  [61, [[11, 12]]],
  [64, [[17], [60]]],
  [66, [[65]]],
  [65, [[7, 8, 54, 55]]],
  [54, [[1]]],
  [55, [[1]]],
];
const names: readonly FeatureName[] = needs.map(([bit, requires]) => ({
  bit,
  name: `bit${bit}`,
  requires,
}));
const wordsOf = (bits: readonly number[]): number[] =>
  [0, 1, 2, 3].map((i) =>
    bits
      .filter((bit) => bit >>> 5 === i)
      .reduce((word, bit) => (word | (1 << (bit & 31))) >>> 0, 0),
  );
const bitsOf = (words: readonly number[]): number[] =>
  words.flatMap((word, i) =>
    Array.from({ length: 32 }, (_, n) => n)
      .filter((n) => (word & (1 << n)) !== 0)
      .map((n) => 32 * i + n),
  );
const NET_ID = 0x41;

/** The bits that a driver of all the features above accepts of a network device that offers `offered`. */
async function accepted(offered: readonly number[]): Promise<number[]> {
  const machine = await embedded({ devices: ["blk,size=1m"], seed: 1 });
  const written: number[] = [];
  // Words are read in order.
  let word = 0;
  const bus = tampered(machine, {
    bytes: new Map([[2, NET_ID]]),
    read: (offset) =>
      offset === CommonConfig.DEVICE_FEATURE ? wordsOf(offered)[word++ & 3] : undefined,
    write: (offset, value) => {
      if (offset === CommonConfig.DRIVER_FEATURE) written.push(value);
      return true;
    },
  });
  const [node] = await probe(bus);
  if (node === undefined) throw new Error("no device");
  await attach(node, {
    ...nullDriver(),
    types: [DeviceType.NET],
    features: names,
    attach: async (device) => {
      await device.negotiate(featureSetFromWords(wordsOf(names.map(({ bit }) => bit))));
      throw new Error("seen enough");
    },
  }).catch(() => {});
  await machine.close();
  expect(written).toHaveLength(4);
  return bitsOf(written);
}

const VERSION_1 = ReservedFeature.VERSION_1;

describe("the accepted features", () => {
  it("are closed under what needs what, however much has to go [FEAT-2]", async () => {
    // Each offer lacks something that others need, through one step or several.
    for (const [offer, kept] of [
      [[VERSION_1, 7, 8, 9], []],
      [[VERSION_1, 1, 9], [1]],
      [
        [VERSION_1, 1, 8, 9],
        [1, 8, 9],
      ],
      [[VERSION_1, 11, 12, 13, 61], []],
      [[VERSION_1, 22, 60, 64, 51], []],
      [[VERSION_1, 17, 51, 64], [17]],
      [
        [VERSION_1, 17, 51, 57, 64],
        [17, 51, 57],
      ],
      [[VERSION_1, 54, 65, 66], []],
      [
        [VERSION_1, 1, 54, 65, 66],
        [1, 54, 65, 66],
      ],
    ] as const) {
      const bits = await accepted(offer);
      expect([offer, bits.filter((bit) => bit !== VERSION_1)]).toEqual([
        offer,
        [...kept].sort((a, b) => a - b),
      ]);
    }
  });

  it("are sane whatever is offered: known, offered, closed, with VERSION_1 [FEAT-3]", async () => {
    const seed = Date.now() >>> 0;
    let state = seed;
    const random = (): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state >>> 16;
    };
    const known = new Set([...names.map(({ bit }) => bit), 32, 33, 34, 35, 36, 38, 39, 40, 43]);
    for (let n = 0; n < 60; n++) {
      const offer = Array.from({ length: 128 }, (_, bit) => bit).filter(
        (bit) => bit === VERSION_1 || random() % 3 !== 0,
      );
      const bits = await accepted(offer);
      const wrong = bits.filter(
        (bit) =>
          !known.has(bit) ||
          !offer.includes(bit) ||
          !(needs.find(([each]) => each === bit)?.[1] ?? []).every((group) =>
            group.some((needed) => bits.includes(needed)),
          ),
      );
      expect([`seed ${seed}, offer ${offer}`, wrong, bits.includes(VERSION_1)]).toEqual([
        `seed ${seed}, offer ${offer}`,
        [],
        true,
      ]);
    }
  });
});

describe("of the platform", () => {
  const rules = new RuleBook();
  afterEach(() => {
    expect(rules.violations.splice(0)).toEqual([]);
    vi.restoreAllMocks();
  });

  /** Stores and loads by Atomics that one notify() does, on a machine without shared memory. */
  async function ordered(features: string): Promise<readonly [stores: number, loads: number]> {
    const machine = await embedded({ devices: [`blk,size=1m${features}`], rules });
    const [node] = await probe(pciBus(machine));
    if (node === undefined) throw new Error("no device");
    const null0 = await attach(node, nullDriver());
    const store = vi.spyOn(Atomics, "store");
    const load = vi.spyOn(Atomics, "load");
    const { address } = null0.device.memory.allocate(64);
    null0.queue.enqueueReadable(0, address, 16);
    store.mockClear();
    load.mockClear();
    null0.queue.notify();
    const calls = [store.mock.calls.length, load.mock.calls.length] as const;
    rules.violations.length = 0;
    await machine.close();
    return calls;
  }

  it("ORDER_PLATFORM makes every index access of the driver ordered, shared memory or not [RESFEAT-8]", async () => {
    expect(await ordered("")).toEqual([0, 0]);
    expect(await ordered(",packed=on")).toEqual([0, 0]);
    // The available index, or the head's flags, are stored; then what the device wants is loaded.
    expect(await ordered(",order_platform=on")).toEqual([1, 1]);
    expect(await ordered(",order_platform=on,packed=on")).toEqual([1, 1]);
  });

  it("ACCESS_PLATFORM passes addresses that the device's side of the machine translates [RESFEAT-4]", async () => {
    const machine = await embedded({
      devices: ["blk,size=1m,access_platform=on", "blk,size=1m,access_platform=on,packed=on"],
      rules,
    });
    // An address is no offset here: memory begins elsewhere for a device than for us.
    expect(machine.memory.base).toBeGreaterThan(0);
    for (const node of await probe(pciBus(machine))) {
      const null0 = await attach(node, nullDriver());
      expect(null0.features.has(ReservedFeature.ACCESS_PLATFORM)).toBe(true);
      const before = rules.kept("RESFEAT-4");
      expect(await null0.flush()).toBe(0);
      expect(rules.kept("RESFEAT-4")).toBeGreaterThan(before);
    }
    await machine.close();
  });
});

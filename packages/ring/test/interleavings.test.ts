// A whole step of the other end runs before any single access of one end to shared memory, in every mode; and stores are seen as
// late as memory order allows. Nothing is lost, nothing comes twice, nobody sleeps while there is work.

import { product } from "@virtio/testing";
import { afterEach, describe, expect, it, vi } from "vitest";
import { type Format, type Mode, nameOf, rig, taken } from "./support/rig.js";
import { checkerOf } from "./support/ring-checker.js";
import { type End, type OrderMutant, watchedMemory } from "./support/watched-memory.js";

vi.mock("../src/views.js", () => import("./support/watched-memory.js"));
vi.mock("../src/order.js", () => import("./support/watched-memory.js"));

const full = process.env["VIRTIO_TEST_FULL"] === "1";

type Arm = "enable" | "short" | "long" | "emptied";

interface Scenario extends Mode {
  /** The end whose step is cut. */
  readonly watched: End;
  /** How the driver asks for its interrupt before it sleeps. */
  readonly arm: Arm;
  /** Whether the other end is asleep when the step begins, or still to look once more. */
  readonly peerAsleep: boolean;
}

/** Two ends that do all they can, then sleep; each knows only what the ring and the signals tell it. */
class World {
  readonly r;
  readonly #scenario: Scenario;
  readonly #segments = new Uint32Array(8);
  driverAwake = false;
  deviceAwake = false;
  #sent = 0;
  readonly #outstanding = new Set<number>();
  back = 0;

  constructor(scenario: Scenario) {
    watchedMemory.reset();
    this.#scenario = scenario;
    this.r = rig({
      ...scenario,
      memory: 0x1_4000,
      making: (end) => {
        watchedMemory.maker = end;
      },
    });
    // Both ends go through a few chains, and a ring of 4 through its end, before the step that is cut.
    this.deviceStep();
    for (let i = 0; i < 3; i++) {
      this.driverStep(1);
      this.settle();
    }
    if (scenario.watched === "device") {
      if (!scenario.peerAsleep) this.driverAwake = true;
      this.send(2);
      this.#notify();
      watchedMemory.drain("driver");
      if (scenario.peerAsleep && this.arm()) this.driverAwake = true;
    } else {
      this.driverAwake = true;
      if (!scenario.peerAsleep) {
        this.r.device.disableNotify();
        watchedMemory.drain("device");
        this.deviceAwake = true;
      }
    }
  }

  send(n: number): void {
    const { driver, data } = this.r;
    for (let i = 0; i < n; i++) {
      const cookie = this.#sent;
      const at = data.address + (cookie % 64) * 64;
      data.bytes[(cookie % 64) * 64] = cookie & 0xff;
      this.#segments.set([at, 4, at + 16, 4]);
      const error =
        cookie % 3 === 0
          ? driver.enqueueWritable(cookie, at + 16, 4)
          : driver.enqueue(cookie, this.#segments, 0, 1, 1);
      if (error !== 0) return;
      this.#outstanding.add(cookie);
      this.#sent += 1;
    }
  }

  #notify(): void {
    const before = this.r.doorbells.length;
    this.r.driver.notify();
    if (this.r.doorbells.length > before) this.deviceAwake = true;
  }

  arm(): boolean {
    const { arm } = this.#scenario;
    const { driver } = this.r;
    return arm === "enable" ? driver.enableInterrupt() : driver.postponeInterrupt(arm);
  }

  #receive(): void {
    const { driver, data } = this.r;
    for (let cookie = driver.dequeue(); cookie >= 0; cookie = driver.dequeue()) {
      if (!this.#outstanding.delete(cookie)) throw new Error(`cookie ${cookie} came back twice`);
      if (data.bytes[(cookie % 64) * 64 + 16] !== 0xa5)
        throw new Error(`cookie ${cookie} is empty`);
      data.bytes[(cookie % 64) * 64 + 16] = 0;
      this.back += 1;
    }
  }

  /** The driver's interrupt handler: sends, receives, arms, and again while there is something. */
  driverStep(n: number): void {
    this.driverAwake = false;
    this.send(n);
    this.#notify();
    this.r.driver.disableInterrupt();
    do this.#receive();
    while (this.arm());
  }

  /** The device's doorbell handler. */
  deviceStep(): void {
    const { device } = this.r;
    this.deviceAwake = false;
    device.disableNotify();
    do {
      for (let chain = device.take(); chain !== null; chain = device.take()) {
        chain.fill(0xa5, 4);
        device.give(chain, 4);
      }
      if (device.wantsInterrupt()) this.driverAwake = true;
    } while (device.enableNotify());
  }

  /** Runs whoever is awake, until nobody is. */
  settle(): void {
    for (let rounds = 0; this.driverAwake || this.deviceAwake; rounds++) {
      if (rounds > 100) throw new Error("the ends wake each other for ever");
      if (this.deviceAwake) {
        this.deviceStep();
        watchedMemory.drain("device");
      }
      if (this.driverAwake) {
        this.driverStep(0);
        watchedMemory.drain("driver");
      }
    }
  }

  /** What is wrong when everybody sleeps; null when nothing is. */
  verdict(): string | null {
    const { driver, device } = this.r;
    if (driver.broken !== null) return driver.broken.message;
    if (device.broken) return this.r.deviceFaults[0]?.message ?? "the device's end is broken";
    if (this.#outstanding.size > 0)
      return `both ends sleep and ${this.#outstanding.size} chains are out`;
    return null;
  }
}

/** Cuts the watched end's step before each access in `places`; what went wrong, and how many accesses there were. */
function cut(
  scenario: Scenario,
  places: readonly number[],
  mutant: OrderMutant,
): readonly [string | null, number] {
  const world = new World(scenario);
  const { watched } = scenario;
  watchedMemory.mutant = mutant;
  watchedMemory.mutated = watched;
  const peer: End = watched === "driver" ? "device" : "driver";
  const other = (n: number): void => {
    if (!places.includes(n)) return;
    // A device that sleeps runs only when it was woken; a driver may have work of its own at any time.
    if (peer === "device" && (world.deviceAwake || !scenario.peerAsleep)) world.deviceStep();
    if (peer === "driver") world.driverStep(1);
    watchedMemory.drain(peer);
  };
  const accesses = watchedMemory.watch(watched, other, () => {
    if (watched === "driver") world.driverStep(2);
    else world.deviceStep();
  });
  watchedMemory.mutant = "none";
  world.settle();
  return [world.verdict(), accesses];
}

/** Every place, and with VIRTIO_TEST_FULL=1 every two places, where the step can be cut. */
function findings(scenario: Scenario, mutant: OrderMutant): string[] {
  const [whole, accesses] = cut(scenario, [], mutant);
  const found: string[] = whole === null ? [] : [`uncut: ${whole}`];
  for (let at = 0; at < accesses; at++)
    for (let also = at; also < (full ? accesses : at + 1); also++) {
      const [verdict] = cut(scenario, [at, also], mutant);
      if (verdict !== null)
        found.push(`before accesses ${at} and ${also} of ${accesses}: ${verdict}`);
    }
  return found;
}

const modes = product({
  format: ["split", "packed"] as readonly Format[],
  indirect: [false, true],
  eventIdx: [false, true],
  inOrder: [false, true],
});

afterEach(() => watchedMemory.reset());

describe("steps of the other end before any single access", () => {
  for (const mode of modes)
    for (const watched of ["driver", "device"] as const)
      it(`lose nothing, and no wake-up (${nameOf({ ...mode, size: 4 })}; the ${watched}'s end is cut)`, () => {
        for (const arm of ["enable", "short", "long", "emptied"] as const)
          for (const peerAsleep of [false, true])
            for (const size of mode.format === "split" ? [4] : [4, 5]) {
              const scenario = { ...mode, size, watched, arm, peerAsleep };
              expect([arm, peerAsleep, findings(scenario, "none")]).toEqual([arm, peerAsleep, []]);
            }
      });
});

const first = (format: Format, eventIdx: boolean): Scenario => ({
  format,
  eventIdx,
  size: 4,
  indirect: false,
  inOrder: false,
  watched: "driver",
  arm: "enable",
  peerAsleep: false,
});

describe.each([
  { format: "split" as const, notify: "SPLIT-NOTIFY-1", index: "SPLIT-IDX-1", what: "the index" },
  {
    format: "packed" as const,
    notify: "PACKED-NOTIFY-1",
    index: "PACKED-FLAGS-1",
    what: "the flags",
  },
])("memory order of a $format queue", ({ format, notify, index, what }) => {
  it(`puts a barrier between ${what} and the look at what the device wants [${notify}]`, () => {
    for (const eventIdx of [false, true])
      expect(findings(first(format, eventIdx), "none")).toEqual([]);
  });

  it(`is caught without that barrier: the mutant whose ordered stores are late [${notify} fires]`, () => {
    for (const eventIdx of [false, true])
      expect(findings(first(format, eventIdx), "late").join("\n")).toMatch(/both ends sleep/);
  });

  it("is caught at the device's end too, when its used entries are seen late", () => {
    for (const eventIdx of [false, true])
      for (const peerAsleep of [false, true]) {
        const scenario: Scenario = { ...first(format, eventIdx), watched: "device", peerAsleep };
        expect(findings(scenario, "none")).toEqual([]);
        expect(findings(scenario, "late").join("\n")).toMatch(/both ends sleep/);
      }
  });

  /** Looks at the ring as a device would before every access of a driver that fills it for the first time. */
  const looks = (mutant: OrderMutant, indirect: boolean): string[] => {
    watchedMemory.reset();
    const r = rig({
      format,
      indirect,
      memory: 0x1_4000,
      making: (end) => {
        watchedMemory.maker = end;
      },
    });
    const checker = checkerOf(r);
    watchedMemory.mutant = mutant;
    watchedMemory.watch(
      "driver",
      () => checker.look(false),
      () => {
        for (let i = 0; i < 2; i++) {
          const pairs = [64, 128, 192].flatMap((at) => [r.data.address + at, 16]);
          r.driver.enqueue(i, new Uint32Array(pairs), 0, 1, 2);
          r.driver.enqueueWritable(i + 2, r.data.address, 16);
          r.driver.notify();
        }
      },
    );
    watchedMemory.mutant = "none";
    return [...checker.broken];
  };

  it(`stores what ${what} will show before ${what} [${index}]`, () => {
    for (const indirect of [false, true]) expect(looks("none", indirect)).toEqual([]);
  });

  it(`is caught when it does not: the mutant whose ordered stores are early [${index} fires]`, () => {
    for (const indirect of [false, true]) expect(looks("early", indirect)).toContain(index);
  });

  it("takes nothing that is not published, before any access", () => {
    const world = new World(first(format, false));
    watchedMemory.watch(
      "driver",
      () => expect(world.r.device.take()).toBeNull(),
      () => world.send(2),
    );
    world.r.driver.publish();
    watchedMemory.drain("driver");
    expect(taken(world.r.device).segments).toBeGreaterThan(0);
  });
});

describe("a packed list", () => {
  const heads = (early: boolean): string[] => {
    watchedMemory.reset();
    const r = rig({
      format: "packed",
      memory: 0x1_4000,
      making: (end) => {
        watchedMemory.maker = end;
      },
    });
    const checker = checkerOf(r);
    watchedMemory.watch(
      "driver",
      // The mutant: a driver whose head is available as soon as it is known.
      (n) => {
        if (early && n === 8) r.packed.halves[7] = 0x80 | 1;
        checker.look(false);
      },
      () => {
        const pairs = [64, 128, 192].flatMap((at) => [r.data.address + at, 16]);
        r.driver.enqueue(1, new Uint32Array(pairs), 0, 1, 2);
        r.driver.notify();
      },
    );
    return [...checker.broken];
  };

  it("becomes available as a whole: its head after all others [PACKED-SG-6]", () => {
    expect(heads(false)).toEqual([]);
  });

  it("is caught when its head is available before the others [PACKED-SG-6 fires]", () => {
    expect(heads(true)).toContain("PACKED-SG-6");
  });
});

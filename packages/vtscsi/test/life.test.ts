// The end of an adapter, and what brings it back: resets that the device asks for, resets that fail, memory that is not there.
import { type Driver, type VirtioDevice, VirtioFault, type Virtqueue } from "@virtio/core";
import { type EmbeddedScsiOptions, embedded, RuleBook, ScsiPort, scsi } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it, onTestFinished } from "vitest";
import { type VtscsiBus, vtscsi } from "../src/index.js";
import { only, outcome, pattern, until } from "./attached.js";

const SECTOR = 512;
const READ_10 = 0x28;

/** A virtqueue as its transport has it. */
type Ring = Virtqueue & { fail(fault: VirtioFault): void };

/** What stands between the driver and its device. */
class Between {
  queues: readonly Ring[] = [];
  reinits = 0;
  /** What a reset says, in place of being done. */
  dead: VirtioFault | null = null;
  /** Allocations that succeed. */
  allocations = Number.POSITIVE_INFINITY;

  readonly driver: Driver<VtscsiBus> = {
    ...vtscsi(),
    attach: (device, context) => vtscsi().attach(this.#wrap(device), context),
  };

  /** The device asks for a reset, or is gone. */
  fail(code: "NEEDS_RESET" | "CLOSED"): void {
    for (const queue of this.queues) queue.fail(new VirtioFault(code, "said the test"));
  }

  #wrap(device: VirtioDevice): VirtioDevice {
    const memory = new Proxy(device.memory, {
      get: (target, key) => {
        if (key !== "allocate") return Reflect.get(target, key, target);
        return (length: number, align?: number) => {
          this.allocations -= 1;
          if (this.allocations < 0) throw new VirtioFault("OUT_OF_MEMORY", "said the test");
          return target.allocate(length, align);
        };
      },
    });
    const own: Partial<VirtioDevice> = {
      memory,
      allocateQueues: async (specs) => {
        this.queues = (await device.allocateQueues(specs)) as readonly Ring[];
        return this.queues;
      },
      reinit: async (features) => {
        this.reinits += 1;
        if (this.dead !== null) throw this.dead;
        await device.reinit(features);
      },
    };
    return new Proxy(device, {
      get: (target, key) => {
        if (key in own) return Reflect.get(own, key);
        const value = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
      set: (target, key, value) => Reflect.set(target, key, value, target),
    });
  }
}

/** An adapter whose reads hang while `state.hung` says so. */
async function started(options: EmbeddedScsiOptions = {}) {
  const state = { hung: false };
  const between = new Between();
  const rules = new RuleBook();
  const lines: string[] = [];
  const port = new ScsiPort();
  const answers = (opcode: number): boolean => !(state.hung && opcode === READ_10);
  const machine = await embedded({
    devices: [scsi({ size: 1 << 20, port, queues: 2, lies: { answers }, ...options })],
    rules,
  });
  onTestFinished(() => machine.close());
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  const free = machine.memory.available;
  const bus = await attach(node, between.driver, { cpus: 2, log: (line) => lines.push(line) });
  return { bus, machine, between, state, rules, lines, port, free, disk: only(bus) };
}

const reads = (disk: { read(at: number, into: Uint8Array): Promise<void> }, count: number) =>
  Array.from({ length: count }, (_, n) => outcome(disk.read(n * SECTOR, new Uint8Array(SECTOR))));

describe("an adapter", () => {
  it("is reset when its device asks for it; what was in flight is done again, once", async () => {
    const { bus, disk, between, state, rules, lines, port } = await started();
    await disk.write(0, pattern(SECTOR, 1));
    state.hung = true;
    const ends = reads(disk, 20);
    await until(() => port.outstanding === 20);
    state.hung = false;
    between.fail("NEEDS_RESET");
    expect(await Promise.all(ends)).toEqual(ends.map(() => "done"));
    expect([between.reinits, lines]).toEqual([
      1,
      ["the device needs a reset: resetting the device"],
    ]);
    const into = new Uint8Array(SECTOR);
    await disk.read(0, into);
    expect(into).toEqual(pattern(SECTOR, 1));
    // Events come as before.
    expect(bus.disks).toHaveLength(1);
    expect(rules.violations).toEqual([]);
  });

  it("is dead after three resets between which nothing was answered: each request ends once", async () => {
    const { bus, disk, between, state } = await started();
    state.hung = true;
    const ends = reads(disk, 10);
    // The scan that follows a reset is held up, too: it is asked for nothing.
    for (let n = 1; n <= 3; n++) {
      between.fail("NEEDS_RESET");
      await until(() => between.reinits === n);
      await until(() => between.queues.every(({ broken }) => broken === null));
    }
    between.fail("NEEDS_RESET");
    const codes = new Set(await Promise.all(ends));
    expect([...codes]).toEqual(["NEEDS_RESET EIO"]);
    expect((await bus.closed)?.code).toBe("NEEDS_RESET");
    expect(await outcome(disk.read(0, new Uint8Array(SECTOR)))).toBe("NEEDS_RESET EIO");
    await bus.detach();
  });

  it("is dead when a reset fails: each request ends once, and its memory comes back with the release", async () => {
    const { bus, disk, between, state, machine, free, port } = await started();
    state.hung = true;
    const ends = reads(disk, 10);
    await until(() => port.outstanding === 10);
    between.dead = new VirtioFault("TIMED_OUT", "it does not reset");
    between.fail("NEEDS_RESET");
    expect(new Set(await Promise.all(ends))).toEqual(new Set(["TIMED_OUT ETIMEDOUT"]));
    expect([(await bus.closed)?.code, bus.disks.length]).toEqual(["TIMED_OUT", 0]);
    expect(machine.memory.available).toBeLessThan(free);
    await bus.detach();
    expect(machine.memory.available).toBe(free);
  });

  it("loses the memory of what is in flight when its device is gone: nobody uses it again", async () => {
    const { bus, disk, between, state, lines, port } = await started();
    state.hung = true;
    const ends = reads(disk, 10);
    await until(() => port.outstanding === 10);
    between.fail("CLOSED");
    expect(new Set(await Promise.all(ends))).toEqual(new Set(["CLOSED ENXIO"]));
    await bus.detach();
    expect(lines).toEqual(["the device went away with commands in flight: their memory is lost"]);
  });

  it("gives back what it took when there is no memory for the rest", async () => {
    const machine = await embedded({ devices: [scsi({ size: 1 << 20 })] });
    onTestFinished(() => machine.close());
    const free = machine.memory.available;
    for (let allocations = 0; ; allocations++) {
      const between = new Between();
      between.allocations = allocations;
      const [node] = await probe(machine.buses[0].bus);
      if (node === undefined) throw new Error("no device");
      const end = await outcome(attach(node, between.driver));
      if (end === "done") {
        expect(allocations).toBe(4);
        break;
      }
      expect([end, machine.memory.available]).toEqual(["OUT_OF_MEMORY ENOMEM", free]);
    }
  });

  it("is detached in the midst of everything", async () => {
    const { bus, disk, state, machine, free, port } = await started();
    state.hung = true;
    const ends = reads(disk, 10);
    await until(() => port.outstanding === 10);
    const at = { target: 0, lun: 0 };
    const others = [
      bus.rescan(),
      bus.manage("queryTaskSet", at),
      bus.execute({ ...at, cdb: Uint8Array.of(READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0) }),
      bus.detach(),
    ].map(outcome);
    expect(new Set(await Promise.all(ends))).toEqual(new Set(["CLOSED ENXIO"]));
    for (const end of await Promise.all(others)) expect(["done", "CLOSED ENXIO"]).toContain(end);
    expect(machine.memory.available).toBe(free);
  });

  it("says BUSY when it is to suspend with commands that do not end, and goes on", async () => {
    const pass = virtualTime();
    const { bus, disk, state, machine } = await pass(started());
    state.hung = true;
    const end = outcome(
      bus.execute({
        ...{ target: 0, lun: 0, timeout: 100_000 },
        cdb: Uint8Array.of(READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0),
      }),
    );
    const began = machine.tasks.now();
    expect(await pass(outcome(bus.suspend()))).toBe("BUSY EBUSY");
    expect(Math.round((machine.tasks.now() - began) / 1000)).toBe(30);
    await pass(disk.write(0, new Uint8Array(SECTOR)));
    await pass(bus.detach());
    expect(await end).toBe("CLOSED ENXIO");
  });
});

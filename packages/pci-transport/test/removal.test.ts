// Surprise removal: a function is taken out at every step of attach and of I/O. Nothing hangs, and each request ends once with ENXIO.
import type { IoRegion, PciBus, PciFunction } from "@virtio/core";
import { type EmbeddedMachine, embedded } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { attach, probe } from "../src/index.js";
import { nullDriver } from "./null-driver.js";

/** The bus, with `step` called before each access to a function or its BARs. */
function stepped(bus: PciBus, step: () => void): PciBus {
  const region = (io: IoRegion): IoRegion => ({
    length: io.length,
    read: (offset, width) => {
      step();
      return io.read(offset, width);
    },
    write: (offset, width, value) => {
      step();
      return io.write(offset, width, value);
    },
    post: (offset, width, value) => {
      step();
      io.post(offset, width, value);
    },
  });
  const stepping = (fn: PciFunction): PciFunction => ({
    address: fn.address,
    interrupts: fn.interrupts,
    gone: fn.gone,
    read: (offset, width) => {
      step();
      return fn.read(offset, width);
    },
    write: (offset, width, value) => {
      step();
      return fn.write(offset, width, value);
    },
    mapBar: async (index) => {
      step();
      return region(await fn.mapBar(index));
    },
  });
  return {
    memory: bus.memory,
    tasks: bus.tasks,
    poll: () => bus.poll(),
    windows: bus.windows,
    onChange: null,
    functions: async () => (await bus.functions()).map(stepping),
  };
}

const start = (spec: string): Promise<EmbeddedMachine> => embedded({ devices: [spec], seed: 11 });

/** A life of one device: attach, some flushes at once, detach. Its function is taken out before access number `at`. */
async function life(
  spec: string,
  at: number,
): Promise<{ accesses: number; outcome: string; ended: number; asked: number }> {
  const machine = await start(spec);
  const [first] = await machine.buses[0].bus.functions();
  if (first === undefined) throw new Error("no function");
  let accesses = 0;
  let asked = 0;
  let ended = 0;
  let outcome = "done";
  const bus = stepped(machine.buses[0].bus, () => {
    accesses += 1;
    if (accesses === at) void machine.unplug(first.address);
  });
  try {
    const [node] = await probe(bus);
    if (node === undefined) outcome = "not found";
    else {
      const null0 = await attach(node, nullDriver());
      try {
        for (let i = 0; i < 4; i++) {
          asked += 1;
          await null0.flush().finally(() => {
            ended += 1;
          });
        }
      } finally {
        await null0.detach();
      }
    }
  } catch (error) {
    outcome = (error as { code?: string }).code ?? String(error);
  }
  await machine.close();
  return { accesses, outcome, ended, asked };
}

describe("a function that is taken out", () => {
  for (const spec of ["blk,size=1m", "blk,size=1m,vectors=0", "blk,size=1m,legacy=on,vectors=0"])
    it(`ends attach and I/O with ENXIO, before whichever access (${spec})`, async () => {
      const whole = await life(spec, 0);
      expect(whole).toMatchObject({ outcome: "done", asked: 4, ended: 4 });
      expect(whole.accesses).toBeGreaterThan(50);
      const outcomes = new Map<string, number>();
      for (let at = 1; at <= whole.accesses; at++) {
        const { outcome, asked, ended } = await life(spec, at);
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
        expect([at, ended]).toEqual([at, asked]);
      }
      // At the very end nobody notices; during the walk it is not found; else CLOSED.
      expect([...outcomes.keys()].sort()).toEqual(["CLOSED", "done", "not found"]);
      expect(outcomes.get("CLOSED")).toBeGreaterThan(20);
    });

  it("is found again when it comes back, and works", async () => {
    const machine = await start("blk,size=1m");
    const { bus } = machine.buses[0];
    const [node] = await probe(bus);
    if (node === undefined) throw new Error("no device");
    const null0 = await attach(node, nullDriver());
    const flushing = null0.flush();
    const [fn] = await bus.functions();
    if (fn === undefined) throw new Error("no function");
    await machine.unplug(fn.address);
    await expect(flushing).rejects.toMatchObject({ code: "CLOSED", errno: "ENXIO" });
    await null0.detach();
    expect(await probe(bus)).toEqual([]);
    const address = await machine.plug("blk,size=2m");
    const [again] = await probe(bus);
    expect(again?.location).toBe(
      `pci${address.domain}:${address.bus}:${address.device}:${address.function}`,
    );
    if (again === undefined) return;
    expect(await (await attach(again, nullDriver())).flush()).toBe(0);
    await machine.close();
  });
});

// Suspend and resume with VIRTIO_F_SUSPEND (virtio 1.4 §3.4).
import { DeviceStatus, Errno } from "@virtio/core";
import { CommonConfig } from "@virtio/core/pci";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { attach, probe } from "../src/index.js";
import { type NullDevice, nullDriver } from "./null-driver.js";
import { type Lies, tampered } from "./tampered-bus.js";

const { SUSPEND, DEVICE_NEEDS_RESET } = DeviceStatus;

async function attached(spec: string, lies: Lies = {}, seed?: number) {
  const rules = new RuleBook();
  const machine = await embedded({
    devices: [spec],
    rules,
    ...(seed === undefined ? {} : { seed }),
  });
  const [node] = await probe(tampered(machine, lies));
  if (node === undefined) throw new Error("no device");
  const null0: NullDevice = await attach(node, nullDriver());
  return { machine, rules, null0 };
}

const specs = ["blk,size=1m", "blk,size=1m,packed=on", "blk,size=1m,packed=on,vectors=0"];

describe.each(specs)("a suspended device (%s)", (spec) => {
  it("holds still until it is resumed, and goes on where it was [SUSPEND-1] [SUSPEND-2] [SUSPEND-3] [SUSPEND-4] [SUSPEND-5] [SUSPEND-6]", async () => {
    const { machine, rules, null0 } = await attached(spec);
    const { device, queue } = null0;
    for (let round = 0; round < 3; round++) {
      // A request is in flight when it is suspended: it is not lost.
      const flushing = null0.flush();
      await device.suspend();
      const before = [queue.used, queue.counters.kicks];
      const { address } = device.memory.allocate(64);
      expect(queue.enqueueReadable(7, address, 16)).toBe(-Errno.EBUSY);
      queue.notify();
      expect([queue.used, queue.counters.kicks]).toEqual(before);
      await expect(device.config.write(32, 1, 1)).rejects.toMatchObject({ code: "BUSY" });
      // Twice is once.
      await device.suspend();
      await device.resume();
      await device.resume();
      expect(await flushing).toBe(0);
      for (let i = 0; i < 300; i++) expect(await null0.flush()).toBe(0);
    }
    await null0.detach();
    await machine.close();
    expect(rules.violations).toEqual([]);
    for (const n of [1, 2, 3, 4, 5, 6]) expect([n, rules.kept(`SUSPEND-${n}`)]).not.toEqual([n, 0]);
  });
});

describe("a device that suspends badly", () => {
  const shows = (value: number): Lies & { on: boolean } => {
    const lies = {
      on: false,
      read: (offset: number) =>
        lies.on && offset === CommonConfig.DEVICE_STATUS ? value : undefined,
    };
    return lies;
  };

  it("is waited for, with a bound", async () => {
    const lies = shows(15);
    const { machine, null0 } = await attached("blk,size=1m", lies, 5);
    lies.on = true;
    await expect(null0.device.suspend()).rejects.toThrow("suspend is not done after 5000 ms");
    await machine.close();
  });

  it("may say that it needs a reset", async () => {
    const lies = shows(15 | SUSPEND | DEVICE_NEEDS_RESET);
    const { machine, null0 } = await attached("blk,size=1m", lies, 5);
    lies.on = true;
    await expect(null0.device.suspend()).rejects.toMatchObject({ code: "NEEDS_RESET" });
    expect(null0.queue.broken?.code).toBe("NEEDS_RESET");
    await machine.close();
  });

  it("is waited for when it resumes, too", async () => {
    const lies = shows(11 | SUSPEND);
    const { machine, null0 } = await attached("blk,size=1m", lies, 5);
    await null0.device.suspend();
    lies.on = true;
    await expect(null0.device.resume()).rejects.toThrow("resume is not done after 5000 ms");
    await machine.close();
  });

  it("without SUSPEND is reset instead, and loses nothing that was in flight", async () => {
    const { machine, rules, null0 } = await attached("blk,size=1m,suspend=off");
    const flushing = null0.flush();
    await expect(null0.device.suspend()).rejects.toMatchObject({ code: "BUSY" });
    expect(await flushing).toBe(0);
    await null0.device.suspend();
    await null0.device.resume();
    null0.queue.enableInterrupt();
    expect(await null0.flush()).toBe(0);
    await machine.close();
    expect(rules.violations).toEqual([]);
  });
});

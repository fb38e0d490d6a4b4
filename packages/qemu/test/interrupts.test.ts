import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { QemuMachine, QemuOptions } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { hasQemu, launch, temporaryFolder, until } from "./support/machine.js";
import { RawDevice, virtioFunctions } from "./support/raw-device.js";

interface Busy {
  readonly machine: QemuMachine;
  readonly devices: readonly RawDevice[];
  /** Makes device n raise a configuration interrupt: its disk grows. */
  readonly poke: (n: number) => Promise<unknown>;
}

/** Started block devices over files, which QMP can resize. */
async function busy(count: number, options: QemuOptions = {}): Promise<Busy> {
  const folder = temporaryFolder();
  const names = Array.from({ length: count }, (_, i) => `${i}.img`);
  for (const name of names) writeFileSync(join(folder, name), Buffer.alloc(4096));
  const machine = await launch({
    cwd: folder,
    devices: names.map((name) => `blk,file=${name}`),
    ...options,
  });
  const functions = await virtioFunctions(machine);
  const devices = await Promise.all(functions.map((fn) => RawDevice.open(machine, fn)));
  await Promise.all(devices.map((device) => device.start()));
  let size = 8192;
  const poke = (n: number): Promise<unknown> => {
    size += 4096;
    return machine.qmp.execute("block_resize", { "node-name": `blk${n}`, size });
  };
  return { machine, devices, poke };
}

const nth = (devices: readonly RawDevice[], n: number): RawDevice => {
  const device = devices[n];
  if (device === undefined) throw new Error(`no device ${n}`);
  return device;
};

/** Interrupts that came: a pc has ACPI's besides, which does not. */
const taken = (machine: QemuMachine) => machine.interrupts().filter(({ count }) => count > 0);

describe.skipIf(!hasQemu)("interrupt lines (needs QEMU)", () => {
  it.each([
    ["q35", "irq21"],
    ["pc", "irq10"],
  ] as const)("call a driver of a %s for each interrupt", async (type, irq) => {
    const { machine, devices, poke } = await busy(1, { type });
    const device = nth(devices, 0);
    expect(device.fn.interrupts.deliverable).toEqual(["intx"]);
    const seen: number[] = [];
    await device.fn.interrupts.line(
      "vtblk0",
      device.service((isr) => seen.push(isr)),
    );
    for (let i = 1; i <= 3; i++) {
      await poke(0);
      await until("the interrupt is served", () => seen.length === i);
    }
    expect(seen.every((isr) => (isr & 2) !== 0)).toBe(true);
    expect(taken(machine)).toEqual([{ irq, names: ["vtblk0"], count: 3 }]);
    await expect(device.fn.interrupts.message(0, "x", () => {})).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });

  it("call a driver when a request is used", async () => {
    const { devices } = await busy(1);
    const device = nth(devices, 0);
    const isr = new Promise<number>((resolve, reject) => {
      device.fn.interrupts.line("vtblk0", device.service(resolve)).catch(reject);
    });
    const { used } = await device.readFirstSector();
    expect(await isr).toBe(1);
    expect(used()).toBe(1);
  });

  it("that two functions share serve both, whoever interrupted, together or not", async () => {
    const { machine, devices, poke } = await busy(5);
    // Devices 1 and 5 rotate to the same line.
    const pair = [0, 4];
    expect(pair.map((n) => nth(devices, n).fn.interrupts.irq)).toEqual([21, 21]);
    const served = [0, 0];
    await Promise.all(
      pair.map((n, i) => {
        const device = nth(devices, n);
        return device.fn.interrupts.line(
          `vtblk${n}`,
          device.service(() => {
            served[i] = (served[i] ?? 0) + 1;
          }),
        );
      }),
    );
    for (let i = 1; i <= 5; i++) {
      await Promise.all(pair.map(poke));
      await until("both are served", () => served.every((count) => count >= i));
    }
    await poke(4);
    await until("the one that interrupted is served", () => (served[1] ?? 0) >= 6);
    const [row, ...others] = machine.interrupts();
    expect(others).toEqual([]);
    expect(row).toMatchObject({ irq: "irq21", names: ["vtblk0", "vtblk4"] });
    expect(row?.count).toBeGreaterThan(0);
  });

  it("serve a driver that joins while the line is high", async () => {
    const { devices, poke } = await busy(5);
    await poke(4);
    let early = 0;
    const first = nth(devices, 0);
    await first.fn.interrupts.line(
      "vtblk0",
      first.service(() => early++),
    );
    const device = nth(devices, 4);
    const isr = await new Promise<number>((resolve, reject) => {
      device.fn.interrupts.line("vtblk4", device.service(resolve)).catch(reject);
    });
    expect(isr & 2).toBe(2);
    expect(early).toBe(0);
  });

  it("do not call a driver that released them", async () => {
    const { machine, devices, poke } = await busy(1);
    const device = nth(devices, 0);
    let calls = 0;
    await device.fn.interrupts.line("vtblk0", async () => {
      calls++;
      return false;
    });
    device.fn.interrupts.release();
    await poke(0);
    expect((await device.isr()) & 2).toBe(2);
    expect(calls).toBe(0);
    expect(machine.interrupts()).toEqual([]);
  });

  it("that nobody can lower are logged once, and do not occupy the machine", async () => {
    const log: string[] = [];
    const { devices, poke } = await busy(1, { log: (line) => log.push(line) });
    const device = nth(devices, 0);
    let calls = 0;
    await device.fn.interrupts.line("deaf", async () => {
      calls++;
      return false;
    });
    await poke(0);
    await until("the line is found stuck", () => log.length > 0);
    expect(log).toEqual([expect.stringMatching(/^irq21: stuck interrupt: .*deaf/)]);
    const before = performance.eventLoopUtilization();
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect(performance.eventLoopUtilization(before).utilization).toBeLessThan(0.5);
    expect(calls).toBeGreaterThanOrEqual(100);
    expect((await device.isr()) & 2).toBe(2);
  });

  it("of each slot of a q35 are the ones that bus 0 says", async () => {
    const folder = temporaryFolder();
    const slots = [2, 3, 4, 24, 25, 28, 30];
    const args = slots.flatMap((slot, i) => {
      const file = join(folder, `${slot}.img`);
      writeFileSync(file, Buffer.alloc(4096));
      return [
        ...["-blockdev", `driver=raw,node-name=n${i},file.driver=file,file.filename=${file}`],
        ...["-device", `virtio-blk-pci,drive=n${i},addr=0x${slot.toString(16)},disable-legacy=on`],
      ];
    });
    const machine = await launch({ devices: [], args });
    const functions = await virtioFunctions(machine);
    const served: number[] = [];
    await Promise.all(
      functions.map(async (fn) => {
        const device = await RawDevice.open(machine, fn);
        await device.start();
        await fn.interrupts.line(
          `slot ${fn.address.device}`,
          device.service(() => served.push(fn.address.device)),
        );
      }),
    );
    expect(functions.map(({ interrupts }) => interrupts.irq)).toEqual([22, 23, 20, 20, 16, 16, 20]);
    for (const [i, slot] of slots.entries()) {
      await machine.qmp.execute("block_resize", { "node-name": `n${i}`, size: 8192 });
      await until(`slot ${slot} is served`, () => served.at(-1) === slot);
    }
    expect(served).toEqual(slots);
  });
});

describe.skipIf(!hasQemu)("message interrupts (needs QEMU)", () => {
  it.each(["q35", "pc"] as const)("of a %s run their handler", async (type) => {
    const { machine, devices, poke } = await busy(1, { type, interrupts: "msix" });
    const device = nth(devices, 0);
    const { interrupts } = device.fn;
    expect(interrupts.deliverable).toEqual(["msix", "msix-shared"]);
    let count = 0;
    await device.useMessage(await interrupts.message(0, "vtblk0 config", () => count++));
    for (let i = 1; i <= 3; i++) {
      await poke(0);
      await until("the message is handled", () => count === i);
    }
    expect(taken(machine)).toEqual([{ irq: "irq256", names: ["vtblk0 config"], count: 3 }]);
    interrupts.release();
    await poke(0);
    expect(taken(machine)).toEqual([]);
    expect(count).toBe(3);
  });

  it("have one handler a vector, and a table of 2048 at most", async () => {
    const { devices } = await busy(1, { interrupts: "msix" });
    const { interrupts } = nth(devices, 0).fn;
    await interrupts.message(0, "a", () => {});
    await expect(interrupts.message(0, "b", () => {})).rejects.toMatchObject({ code: "EXISTS" });
    for (const n of [-1, 2048, 0.5])
      await expect(interrupts.message(n, "c", () => {})).rejects.toMatchObject({
        code: "INVALID",
      });
    await expect(interrupts.line("d", async () => false)).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    interrupts.release();
    await expect(interrupts.message(0, "e", () => {})).resolves.toMatchObject({
      address: expect.any(Number),
    });
  });
});

// A function whose BARs found no place is driven through its window in configuration space (virtio 1.4 §4.1.4.9).
import type { Machine, PciBus, PciFunction } from "@virtio/core";
import { PciCapability, PciRegister } from "@virtio/core/pci";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { attach, probe } from "../src/index.js";
import { nullDriver } from "./null-driver.js";
import { pciBus, tampered } from "./tampered-bus.js";

/** The machine's bus, with no addresses to give. */
const full = (bus: PciBus): PciBus => ({
  memory: bus.memory,
  tasks: bus.tasks,
  poll: () => bus.poll(),
  onChange: null,
  functions: () => bus.functions(),
  windows: { memory: { base: 0xe000_0000, length: 0x1000 }, io: { base: 0xc000, length: 0 } },
});

const start = async (rules: RuleBook | null = null): Promise<Machine> =>
  embedded({ devices: ["blk,size=1m"], ...(rules === null ? {} : { rules }) });

/** Offsets of a function's virtio capabilities, by type. */
async function capabilities(fn: PciFunction): Promise<Map<number, number>> {
  const found = new Map<number, number>();
  for (let at = await fn.read(PciRegister.CAPABILITIES, 1); at !== 0; at = await fn.read(at + 1, 1))
    if ((await fn.read(at, 1)) === PciCapability.VENDOR) found.set(await fn.read(at + 3, 1), at);
  return found;
}

describe("a function without a place for its BARs", () => {
  it("does everything through its window, within its structures and aligned [PCI-CFGACC-1] [PCI-CFGACC-2]", async () => {
    const rules = new RuleBook();
    const machine = await start(rules);
    const [node] = await probe(full(pciBus(machine)));
    if (node === undefined) throw new Error("no device");
    expect(node.resources).toBe("irq 21 at device 1.0");
    const null0 = await attach(node, nullDriver());
    expect(null0.kind).toBe("intx");
    for (let i = 0; i < 20; i++) expect(await null0.flush()).toBe(0);
    expect(await null0.device.config.read(0, 8)).toBe(2048);
    await null0.detach();
    await machine.close();
    expect(rules.violations).toEqual([]);
    for (const clause of ["PCI-CFGACC-1", "PCI-CFGACC-2"])
      expect(rules.kept(clause)).toBeGreaterThan(50);
  });

  it("says that there is no place when it has no window either", async () => {
    const machine = await start();
    const [fn] = await pciBus(machine).functions();
    const window = (await capabilities(fn as PciFunction)).get(5) ?? 0;
    const [node] = await probe(full(tampered(machine, { bytes: new Map([[window + 3, 0x77]]) })));
    if (node === undefined) throw new Error("no device");
    await expect(attach(node, nullDriver())).rejects.toMatchObject({ code: "NO_SPACE" });
    await machine.close();
  });
});

// The legacy interface: legacy devices, and transitional ones driven by it (virtio 1.4 §4.1.4.10 and the legacy sections).
import { DeviceStatus, DeviceType, ReservedFeature } from "@virtio/core";
import { LegacyRegister } from "@virtio/core/pci";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { afterEach, describe, expect, it } from "vitest";
import { attach, type PciNode, probe } from "../src/index.js";
import { nullDriver } from "./null-driver.js";
import { type Lies, pciBus, tampered } from "./tampered-bus.js";

const rules = new RuleBook();
afterEach(() => {
  expect(rules.violations.splice(0)).toEqual([]);
});

const LEGACY_BAR = 0;

async function legacyNode(spec: string, lies: Lies = {}, watched = true) {
  const machine = await embedded({ devices: [spec], ...(watched ? { rules } : { seed: 7 }) });
  const [node] = await probe(tampered(machine, { bar: LEGACY_BAR, ...lies }), {
    transitional: false,
  });
  if (node === undefined) throw new Error("no device");
  return { machine, node };
}

const kinds = ["blk,size=1m,legacy=on", "blk,size=1m,legacy=transitional"] as const;

describe.each(kinds)("%s by its legacy interface", (spec) => {
  it("is found by its transitional id, its type from the subsystem id [FEAT-LEGACY-1]", async () => {
    const { machine, node } = await legacyNode(spec);
    expect([node.type, node.description]).toEqual([
      DeviceType.BLOCK,
      "VirtIO PCI (legacy) Block adapter",
    ]);
    const null0 = await attach(node, nullDriver());
    // What says that it is a legacy device: VERSION_1 cannot be offered there.
    expect(null0.features.has(ReservedFeature.VERSION_1)).toBe(false);
    expect(rules.kept("FEAT-LEGACY-1")).toBeGreaterThan(0);
    await machine.close();
  });

  for (const vectors of [0, 2])
    it(`runs a whole life by the legacy rules, ${vectors} vectors [FEAT-LEGACY-2] [INIT-LEGACY-1] [SPLIT-LEGACY-1] [SPLIT-LEGACY-2] [SPLIT-LEGACY-3] [PCI-LEGACY-1] [PCI-LEGACY-3] [RESFEAT-LEGACY-1] [RESFEAT-LEGACY-2] [CONFIG-LEGACY-1]`, async () => {
      const statuses: number[] = [];
      const { machine, node } = await legacyNode(`${spec},vectors=${vectors}`, {
        write: (offset, value) => {
          if (offset === LegacyRegister.DEVICE_STATUS) statuses.push(value);
          return true;
        },
      });
      const free = machine.memory.available;
      for (let n = 0; n < 2; n++) {
        statuses.length = 0;
        const null0 = await attach(
          node,
          nullDriver(async (device) => {
            // Without MSI-X for now; it moves when that is enabled.
            expect(await device.config.read(0, 8)).toBe(2048);
          }),
        );
        expect(null0.kind).toBe(vectors === 0 ? "intx" : "msix");
        expect(await null0.device.config.read(0, 8)).toBe(2048);
        for (let i = 0; i < 300; i++) expect(await null0.flush()).toBe(0);
        await null0.detach();
        expect(statuses).toEqual([0, 1, 3, 7, 0, 1]);
        expect(statuses.every((status) => (status & DeviceStatus.FEATURES_OK) === 0)).toBe(true);
      }
      expect(machine.memory.available).toBe(free);
      await machine.close();
      for (const clause of [
        "FEAT-LEGACY-2",
        "INIT-LEGACY-1",
        "SPLIT-LEGACY-1",
        "SPLIT-LEGACY-2",
        "SPLIT-LEGACY-3",
        "PCI-LEGACY-1",
        "PCI-LEGACY-3",
        "RESFEAT-LEGACY-1",
        "RESFEAT-LEGACY-2",
        "CONFIG-LEGACY-1",
      ])
        expect([clause, rules.kept(clause)]).not.toEqual([clause, 0]);
    });

  it("comes back with its queue after reinit, and cannot reset one queue", async () => {
    const { machine, node } = await legacyNode(spec);
    const null0 = await attach(node, nullDriver());
    expect(await null0.flush()).toBe(0);
    await expect(null0.device.resetQueue(null0.queue)).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    await null0.device.reinit();
    null0.queue.enableInterrupt();
    expect(await null0.flush()).toBe(0);
    await machine.close();
  });

  it("suspends by a reset, without chains in flight only", async () => {
    const { machine, node } = await legacyNode(spec);
    const null0 = await attach(node, nullDriver());
    const flushing = null0.flush();
    await expect(null0.device.suspend()).rejects.toMatchObject({ code: "BUSY" });
    expect(await flushing).toBe(0);
    await null0.device.suspend();
    await null0.device.resume();
    null0.queue.enableInterrupt();
    expect(await null0.flush()).toBe(0);
    await machine.close();
  });

  const nonsense: readonly (readonly [what: string, lies: Lies, says: RegExp])[] = [
    [
      "a queue of size 0",
      { read: (offset) => (offset === LegacyRegister.QUEUE_SIZE ? 0 : undefined) },
      /virtqueue 0 \(null0 request\) does not exist \(size is zero\)/,
    ],
    [
      "a queue of 3 descriptors",
      { read: (offset) => (offset === LegacyRegister.QUEUE_SIZE ? 3 : undefined) },
      /size is not a power of 2: 3/,
    ],
    [
      "a status that never clears",
      { read: (offset) => (offset === LegacyRegister.DEVICE_STATUS ? 1 : undefined) },
      /reset is not done after 5000 ms/,
    ],
  ];
  for (const [what, lies, says] of nonsense)
    it(`refuses ${what}`, async () => {
      const { machine, node } = await legacyNode(spec, lies, false);
      await expect(attach(node, nullDriver())).rejects.toThrow(says);
      await machine.close();
    });

  it("reads its configuration until two looks agree, and gives up on one that never does", async () => {
    let changing = 0;
    const { machine, node } = await legacyNode(
      `${spec},vectors=0`,
      {
        read: (offset) => {
          if (offset !== 20) return undefined;
          changing -= 1;
          return changing >= 0 ? changing : 7;
        },
      },
      false,
    );
    const null0 = await attach(node, nullDriver());
    expect(null0.kind).toBe("intx");
    changing = 5;
    expect(await null0.device.config.read(0, 4)).toBe(7);
    changing = 1_000_000;
    await expect(null0.device.config.read(0, 4)).rejects.toMatchObject({ code: "TIMED_OUT" });
    await machine.close();
  });
});

describe("a transitional device", () => {
  const by = async (transitional: boolean | undefined, spec: string): Promise<PciNode> => {
    const machine = await embedded({ devices: [spec], rules });
    const [node] = await probe(pciBus(machine), transitional === undefined ? {} : { transitional });
    if (node === undefined) throw new Error("no device");
    expect(await (await attach(node, nullDriver())).flush()).toBe(0);
    await machine.close();
    return node;
  };

  it("is driven by its modern interface unless asked otherwise; others know one only [PCI-DETECT-1] [PCI-DETECT-2] [PCI-DETECT-3]", async () => {
    const described = async (transitional: boolean | undefined, legacy: string) =>
      (await by(transitional, `blk,size=1m,legacy=${legacy}`)).description;
    const modern = "VirtIO PCI (modern) Block adapter";
    const legacy = "VirtIO PCI (legacy) Block adapter";
    expect(await described(undefined, "transitional")).toBe(modern);
    expect(await described(false, "transitional")).toBe(legacy);
    expect(await described(true, "on")).toBe(legacy);
    expect(await described(false, "off")).toBe(modern);
    for (const clause of ["PCI-DETECT-1", "PCI-DETECT-2", "PCI-DETECT-3"])
      expect([clause, rules.kept(clause)]).not.toEqual([clause, 0]);
  });

  it("of the modern ids without virtio capabilities is refused, and nothing of it is touched [PCI-DETECT-4]", async () => {
    const machine = await embedded({ devices: ["blk,size=1m"] });
    const touched: number[] = [];
    const bus = tampered(machine, {
      bytes: new Map([[6, 0]]),
      read: (offset) => {
        touched.push(offset);
        return undefined;
      },
      write: (offset) => {
        touched.push(offset);
        return true;
      },
    });
    const [node] = await probe(bus);
    if (node === undefined) throw new Error("not found");
    await expect(attach(node, nullDriver())).rejects.toThrow("cannot find COMMON_CFG capability");
    expect(touched).toEqual([]);
    await machine.close();
  });
});

// Functions that are laid out otherwise than usual, and really so.
import { PciCapability, VirtioCapability } from "@virtio/core/pci";
import { type CapabilitySpec, type Distortion, embedded, RuleBook } from "@virtio/hypervisor";
import { afterEach, describe, expect, it } from "vitest";
import { attach, probe } from "../src/index.js";
import { nullDriver } from "./null-driver.js";
import { pciBus } from "./tampered-bus.js";

const rules = new RuleBook();
afterEach(() => {
  expect(rules.violations.splice(0)).toEqual([]);
});

/** A life of a device with this layout. */
async function works(distort: Distortion, spec = "blk,size=1m"): Promise<void> {
  const machine = await embedded({ devices: [spec], distort, rules });
  const [node] = await probe(pciBus(machine));
  if (node === undefined) throw new Error("no device");
  const null0 = await attach(node, nullDriver());
  expect(await null0.device.config.read(0, 8)).toBe(2048);
  for (let i = 0; i < 20; i++) expect(await null0.flush()).toBe(0);
  await null0.detach();
  await machine.close();
}

const vendor = (type: VirtioCapability, body: readonly number[]): CapabilitySpec => ({
  id: PciCapability.VENDOR,
  body: [body.length + 4, type, ...body],
});

describe("a device works", () => {
  it("with its structures in an I/O BAR", () => works({ structures: "io" }));

  it("with one doorbell for all queues", () =>
    works({ notifyMultiplier: 0 }, "blk,size=1m,queues=4"));

  it("with doorbells far apart", () => works({ notifyMultiplier: 2048 }));

  it("with more configuration than its type has", () => works({ configLength: 4096 }));

  it("with data of a vendor in front, which it leaves alone", () =>
    works({
      capabilities: (usual) => [
        vendor(VirtioCapability.VENDOR, [0x34, 0x12, 0xde, 0xad, 0xbe, 0xef, 0, 0]),
        ...usual,
      ],
    }));

  it("with shared memory that nobody asked for, and two structures twice", () =>
    works({
      capabilities: (usual) => [
        vendor(VirtioCapability.SHARED_MEMORY, [4, 7, 0, 0, ...new Array(16).fill(0)]),
        ...usual.slice(0, 2),
        ...usual,
      ],
    }));

  it("and tells where its shared memory lies", async () => {
    const region = [4, 7, 0, 0, 0x00, 0x10, 0, 0, 0x00, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const machine = await embedded({
      devices: ["blk,size=1m"],
      distort: {
        capabilities: (usual) => [vendor(VirtioCapability.SHARED_MEMORY, region), ...usual],
      },
      rules,
    });
    const [node] = await probe(pciBus(machine));
    expect(node?.sharedMemory).toMatchObject([{ id: 7, bar: 4, offset: 0x1000, length: 0x2000 }]);
    await machine.close();
  });

  it("with its capabilities in the reverse order", () =>
    works({ capabilities: (usual) => [...usual].reverse() }));

  it("with any revision and subsystem", () =>
    works({ identity: { revision: 0x42, subsystem: 0x1234, subsystemVendor: 0x5678 } }));
});

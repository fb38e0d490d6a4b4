// Functions that are not laid out as usual, driven by hand.
import { BlockRequestType } from "@virtio/core/block";
import { CommonConfig, PciCapability, PciRegister, VirtioCapability } from "@virtio/core/pci";
import { afterEach, describe, expect, it } from "vitest";
import { embedded } from "../src/index.js";
import { BareGuest } from "./bare-guest.js";

let guest: BareGuest;
afterEach(() => guest.machine.close());

describe("a distorted function", () => {
  it("has its structures in an I/O BAR", async () => {
    guest = await BareGuest.start({ distort: { structures: "io" } });
    expect((await guest.fn.read(PciRegister.BAR0 + 16, 4)) & 1).toBe(1);
    await guest.run();
    expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
    expect(guest.rules.violations).toEqual([]);
  });

  it("has one doorbell for all queues", async () => {
    guest = await BareGuest.start({ queues: 3, distort: { notifyMultiplier: 0 } });
    await guest.run();
    expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
    const { at } = guest.capability(VirtioCapability.NOTIFY);
    expect(await guest.fn.read(at + 16, 4)).toBe(0);
    expect(guest.rules.violations).toEqual([]);
  });

  it("has a doorbell for each queue far apart", async () => {
    guest = await BareGuest.start({ distort: { notifyMultiplier: 0x4000_0000 } });
    await guest.run();
    expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
  });

  it("has more configuration than its structure, which reads 0", async () => {
    guest = await BareGuest.start({ distort: { configLength: 0x400 } });
    expect(guest.capability(VirtioCapability.DEVICE).length).toBe(0x400);
    expect(await guest.read(0x3fc, 4, VirtioCapability.DEVICE)).toBe(0);
    expect(await guest.read(0, 4, VirtioCapability.DEVICE)).toBe(2048);
    expect(guest.rules.violations).toEqual([]);
  });

  it("has the capabilities and ids that it is given", async () => {
    guest = await BareGuest.start({
      distort: {
        identity: { revision: 7, subsystem: 0x1234 },
        capabilities: (usual) => [
          { id: PciCapability.VENDOR, body: [8, VirtioCapability.VENDOR, 0x34, 0x12, 1, 2] },
          ...usual,
        ],
      },
    });
    expect(guest.capability(VirtioCapability.VENDOR).at).toBe(0x40);
    expect(await guest.fn.read(0x44, 2)).toBe(0x1234);
    expect(await guest.fn.read(PciRegister.REVISION_ID, 1)).toBe(7);
    expect(await guest.fn.read(PciRegister.SUBSYSTEM_ID, 2)).toBe(0x1234);
    await guest.run();
    expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
    expect(await guest.read(CommonConfig.NUM_QUEUES, 2)).toBe(1);
  });

  it("must fit", async () => {
    guest = await BareGuest.start();
    const large = { id: PciCapability.VENDOR, body: Array.from({ length: 200 }, () => 0) };
    await expect(
      embedded({ distort: { capabilities: (usual) => [...usual, large] } }),
    ).rejects.toMatchObject({ code: "INVALID" });
    await expect(
      embedded({ distort: { structures: "io", configLength: 0x400 } }),
    ).rejects.toMatchObject({ code: "INVALID" });
  });
});

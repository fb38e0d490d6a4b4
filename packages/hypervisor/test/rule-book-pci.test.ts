// Rules of layout, features, notification and suspend are seen to fire.
import { DeviceStatus, DeviceType } from "@virtio/core";
import { CommonConfig, PciCapability, PciRegister, VirtioCapability } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import type { CapabilitySpec } from "../src/index.js";
import { RuleBook } from "../src/index.js";
import { checkFeatures } from "../src/rules/feature-rules.js";
import { BareGuest, type GuestOptions } from "./bare-guest.js";
import { type Crime, eachFires } from "./crime.js";

const RUNNING = 15;
const SUSPENDED = 11 | DeviceStatus.SUSPEND;
const all = ([, high = 0]: number[]): number[] => [0, high];

/** A device with vendor data behind its other capabilities. */
const vendorData: GuestOptions = {
  walk: false,
  distort: {
    capabilities: (usual) => [
      { id: PciCapability.VENDOR, body: [8, VirtioCapability.VENDOR, 0x34, 0x12, 7, 9] },
      ...usual,
    ],
  },
};
const withoutStructures = (usual: readonly CapabilitySpec[]): readonly CapabilitySpec[] =>
  usual.filter(({ id }) => id !== PciCapability.VENDOR);

/** Points the configuration window somewhere and reads through it. */
async function look(g: BareGuest, bar: number, offset: number, length: number): Promise<void> {
  const { at } = g.capability(VirtioCapability.PCI);
  await g.fn.write(at + 4, 1, bar);
  await g.fn.write(at + 8, 4, offset);
  await g.fn.write(at + 12, 4, length);
  await g.fn.read(at + 16, 4);
}

/** The device configuration, in the structures BAR, without having looked for it. */
async function readBlindly(g: BareGuest): Promise<void> {
  const io = await g.fn.mapBar(4);
  await io.read(0x2000, 4);
}

async function suspend(g: BareGuest): Promise<void> {
  await g.run(all);
  await g.status(RUNNING | DeviceStatus.SUSPEND);
}

async function suspended(g: BareGuest): Promise<void> {
  await suspend(g);
  await g.untilStatus(SUSPENDED);
}

const crimes: readonly Crime<BareGuest>[] = [
  [
    "FEAT-3",
    "accepts a feature that means nothing",
    async (g) => {
      await g.acknowledge();
      await g.negotiate(() => [1 << 25, 1]);
    },
  ],
  [
    "RESFEAT-4",
    "places a ring outside guest memory with ACCESS_PLATFORM",
    async (g) => {
      await g.acknowledge();
      await g.negotiate(all);
      await g.placeQueue();
      await g.write(CommonConfig.QUEUE_DESC + 4, 4, 1);
      await g.enableQueue();
    },
    { features: { ACCESS_PLATFORM: true } },
  ],
  [
    "RESFEAT-13",
    "does not accept NOTIF_CONFIG_DATA",
    (g) => g.run(),
    { features: { NOTIF_CONFIG_DATA: true } },
  ],
  [
    "PCI-NOTIFY-5",
    "rings with the queue's index with NOTIF_CONFIG_DATA",
    async (g) => {
      await g.run(all);
      await g.ringDoorbell(2, 0);
    },
    { features: { NOTIF_CONFIG_DATA: true } },
  ],
  [
    "PCI-NOTIFY-6",
    "rings with the queue's index with NOTIF_CONFIG_DATA and NOTIFICATION_DATA",
    async (g) => {
      await g.run(all);
      await g.ringDoorbell(4, 0x1_0000);
    },
    { features: { NOTIF_CONFIG_DATA: true, NOTIFICATION_DATA: true } },
  ],
  [
    "PCI-VNDR-1",
    "writes vendor data",
    async (g) => {
      await g.fn.read(0x44, 4);
      await g.fn.write(0x46, 1, 1);
    },
    vendorData,
  ],
  [
    "PCI-VNDR-2",
    "reads vendor data before the vendor id",
    async (g) => {
      await g.fn.read(0x46, 2);
    },
    vendorData,
  ],
  ["PCI-CFGACC-1", "reads four bytes at an odd offset through the window", (g) => look(g, 4, 2, 4)],
  ["PCI-CFGACC-2", "reads what is no structure through the window", (g) => look(g, 1, 0, 4)],
  ["PCI-DETECT-3", "uses structures without having looked for them", readBlindly, { walk: false }],
  [
    "PCI-DETECT-4",
    "uses structures that no capability names",
    readBlindly,
    { distort: { capabilities: withoutStructures } },
  ],
  [
    "PCI-DETECT-1",
    "uses structures of a transitional device without having looked for them",
    readBlindly,
    { walk: false, legacy: "transitional" },
  ],
  [
    "PCI-DETECT-2",
    "uses structures of a transitional device that no capability names",
    readBlindly,
    { legacy: "transitional", distort: { capabilities: withoutStructures } },
  ],
  [
    "SUSPEND-1",
    "suspends without the feature",
    async (g) => {
      await g.run();
      await g.status(RUNNING | DeviceStatus.SUSPEND);
    },
  ],
  [
    "SUSPEND-2",
    "goes on before the device says that it is suspended",
    async (g) => {
      await suspend(g);
      await g.write(CommonConfig.QUEUE_SELECT, 2, 0);
    },
  ],
  [
    "SUSPEND-3",
    "makes a buffer available while suspended",
    async (g) => {
      await suspended(g);
      await g.offer([[511, 1, 2]], false);
      await g.status(SUSPENDED | DeviceStatus.DRIVER_OK);
      await g.untilStatus(RUNNING);
    },
  ],
  [
    "SUSPEND-3",
    "makes a packed buffer available while suspended",
    async (g) => {
      await suspended(g);
      // A descriptor of one writable byte, available in the first lap.
      g.descriptors.set([g.data.address, 0, 1, 0x0082_0000], 0);
      await g.status(SUSPENDED | DeviceStatus.DRIVER_OK);
      await g.untilStatus(RUNNING);
    },
    { packed: true },
  ],
  [
    "SUSPEND-4",
    "rings while suspended",
    async (g) => {
      await suspended(g);
      await g.ringDoorbell();
    },
  ],
  [
    "SUSPEND-5",
    "writes configuration while suspended",
    async (g) => {
      await suspended(g);
      await g.write(0, 4, 1, VirtioCapability.DEVICE);
    },
  ],
  [
    "SUSPEND-6",
    "rings before the device says that it resumed",
    async (g) => {
      await suspended(g);
      await g.status(SUSPENDED | DeviceStatus.DRIVER_OK);
      await g.ringDoorbell();
    },
  ],
];

describe("the rule book", () => {
  eachFires(BareGuest.start, crimes);

  it("reports a set of features that lacks what one of them needs [FEAT-2 fires]", () => {
    const rules = new RuleBook();
    checkFeatures(rules, {
      device: "blk0",
      type: DeviceType.BLOCK,
      offered: [0b110, 1],
      accepted: [0b010, 1],
      prerequisites: [[1, 2]],
      legacy: false,
    });
    expect(rules.violations.map(({ clause }) => clause)).toEqual(["FEAT-2", "FEAT-3"]);
  });

  it("says nothing of a guest that suspends, resumes, and uses the window as it should", async () => {
    const guest = await BareGuest.start({ features: { NOTIF_CONFIG_DATA: true } });
    await suspended(guest);
    await guest.status(SUSPENDED | DeviceStatus.DRIVER_OK);
    await guest.untilStatus(RUNNING);
    await guest.ringDoorbell(2, await guest.read(CommonConfig.QUEUE_NOTIF_CONFIG_DATA, 2));
    await look(guest, 4, CommonConfig.NUM_QUEUES, 2);
    expect(guest.rules.violations).toEqual([]);
    const kept = crimes.map(([clause]) => clause);
    for (const clause of kept.filter((id) => /^(SUSPEND|PCI-CFGACC|PCI-DETECT-3|FEAT)/.test(id)))
      expect([clause, guest.rules.kept(clause) > 0]).toEqual([clause, true]);
    await guest.machine.close();
  });

  it("says nothing of a guest that reads vendor data after the vendor id", async () => {
    const guest = await BareGuest.start(vendorData);
    expect(await guest.fn.read(PciRegister.CAPABILITIES, 1)).toBe(0x40);
    await guest.fn.read(0x44, 2);
    await guest.fn.read(0x46, 2);
    expect(guest.rules.violations).toEqual([]);
    expect(guest.rules.kept("PCI-VNDR-2")).toBe(1);
    await guest.machine.close();
  });
});

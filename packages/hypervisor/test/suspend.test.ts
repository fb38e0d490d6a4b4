// Suspend and resume of the embedded machine's functions (virtio 1.4 §3.4), driven by hand.
import { DeviceStatus } from "@virtio/core";
import { BlockRequestType } from "@virtio/core/block";
import { VirtioCapability } from "@virtio/core/pci";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BareGuest } from "./bare-guest.js";
import { GatedBackend } from "./gated-backend.js";

/** ACKNOWLEDGE, DRIVER and FEATURES_OK. */
const READY = 11;
const RUNNING = READY | DeviceStatus.DRIVER_OK;
const SUSPENDED = READY | DeviceStatus.SUSPEND;

describe("a function with SUSPEND", () => {
  let guest: BareGuest;
  let backend: GatedBackend;
  const accepting = ([, high = 0]: number[]): number[] => [0, high & (1 | (1 << 11))];

  beforeEach(async () => {
    backend = new GatedBackend(1 << 20);
    guest = await BareGuest.start({ backend });
  });
  afterEach(async () => {
    backend.letGo();
    await guest.machine.close();
  });

  it("shows SUSPEND and not DRIVER_OK once what it took is used, and the driver was told", async () => {
    await guest.run(accepting);
    const read = guest.request(BlockRequestType.IN, 0, 0, 512);
    await guest.until(() => backend.waiting === 1);
    await guest.status(RUNNING | DeviceStatus.SUSPEND);
    await guest.settle();
    expect(await guest.readStatus()).toBe(RUNNING);
    backend.letGo();
    await guest.untilStatus(SUSPENDED);
    expect((await read).status).toBe(0);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(1);
    expect(guest.rules.violations).toEqual([]);
  });

  it("touches no queue while suspended, and looks at it when it resumes", async () => {
    await guest.run(accepting);
    await guest.status(RUNNING | DeviceStatus.SUSPEND);
    await guest.untilStatus(SUSPENDED);
    const flush = guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    await guest.settle();
    await guest.settle();
    expect(guest.usedIndex).toBe(0);
    await guest.status(SUSPENDED | DeviceStatus.DRIVER_OK);
    await guest.untilStatus(RUNNING);
    expect((await flush).status).toBe(0);
    expect(guest.clauses()).toEqual(["SUSPEND-4", "SUSPEND-3"]);
  });

  it("ignores SUSPEND before DRIVER_OK, and without the feature", async () => {
    await guest.acknowledge();
    await guest.negotiate(accepting);
    await guest.status(READY | DeviceStatus.SUSPEND);
    await guest.settle();
    expect(await guest.readStatus()).toBe(READY);
    await guest.run();
    await guest.status(RUNNING | DeviceStatus.SUSPEND);
    await guest.settle();
    expect(await guest.readStatus()).toBe(RUNNING);
  });

  it("is reset while it is suspended", async () => {
    await guest.run(accepting);
    await guest.status(RUNNING | DeviceStatus.SUSPEND);
    await guest.untilStatus(SUSPENDED);
    await guest.run(accepting);
    expect((await guest.request(BlockRequestType.FLUSH, 0, 0, 0)).status).toBe(0);
    expect(guest.rules.violations).toEqual([]);
  });
});

it("a function with suspend=off does not offer SUSPEND", async () => {
  const guest = await BareGuest.start({ features: { SUSPEND: false } });
  expect(((await guest.offered())[1] ?? 0) & (1 << 11)).toBe(0);
  await guest.machine.close();
});

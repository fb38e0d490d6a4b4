// A virtio device behind its registers: what no block device does, and waiting for a model.
import { DeviceStatus, DeviceType, GuestRegions, ReservedFeature } from "@virtio/core";
import { BlockRequestType } from "@virtio/core/block";
import { IsrStatus } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import type { DeviceModel, ModelHost } from "../src/device-model.js";
import { FunctionInterrupts } from "../src/pci/function-interrupts.js";
import { VirtioDevice } from "../src/pci/virtio-device.js";
import { Scheduler } from "../src/scheduler.js";
import { BareGuest } from "./bare-guest.js";
import { GatedBackend } from "./gated-backend.js";

/** A device that only changes its configuration, up to FEATURES_OK, and what a model sees of it. */
function configurable(): { device: VirtioDevice; host: ModelHost; settle: () => Promise<void> } {
  const tasks = new Scheduler({ seed: 1 }).lane();
  let host: ModelHost | null = null;
  const model: DeviceModel = {
    type: DeviceType.BLOCK,
    name: "stub0",
    classCode: 0,
    features: [],
    prerequisites: [],
    queues: 0,
    config: { length: 0, read: () => 0, write: () => {} },
    configGate: () => undefined,
    connect: (given) => {
      host = given;
    },
    notified: () => {},
    reset: () => null,
    close: async () => {},
  };
  const device = new VirtioDevice({
    model,
    kind: "modern",
    memory: new GuestRegions([]),
    shared: false,
    tasks,
    outside: (work) => work,
    queueSize: 4,
    reservedFeatures: [ReservedFeature.SUSPEND],
    interrupts: new FunctionInterrupts(0, () => {}),
    mastering: () => true,
    book: null,
    onLegacyBroken: () => {},
  });
  device.writeStatus(3);
  device.accept(1, 1 | (1 << 11));
  device.writeStatus(11);
  if (host === null) throw new Error("the model was not connected");
  return { device, host, settle: () => new Promise((resolve) => tasks.enqueue(resolve)) };
}

describe("a virtio device", () => {
  it("tells of a configuration change with DRIVER_OK only", () => {
    const { device, host } = configurable();
    host.configChanged();
    expect([device.generation, device.interrupts.readIsr()]).toEqual([1, 0]);
    device.writeStatus(15);
    host.configChanged();
    expect([device.generation, device.interrupts.readIsr()]).toEqual([2, IsrStatus.CONFIG]);
  });

  it("tells of a configuration change while suspended when it resumes", async () => {
    const { device, host, settle } = configurable();
    device.writeStatus(15);
    device.writeStatus(15 | DeviceStatus.SUSPEND);
    await settle();
    expect(device.suspended).toBe(true);
    host.configChanged();
    expect(device.interrupts.readIsr()).toBe(0);
    device.writeStatus(15 | DeviceStatus.SUSPEND);
    await settle();
    expect([device.status, device.interrupts.readIsr()]).toEqual([15, IsrStatus.CONFIG]);
  });

  it("shows its status until a reset is done, and status 0 when what it was doing has ended", async () => {
    const backend = new GatedBackend(1 << 20);
    const guest = await BareGuest.start({ backend });
    await guest.run();
    const read = guest.request(BlockRequestType.IN, 0, 0, 512);
    const unanswered = expect(read).rejects.toThrow("it never came");
    await guest.until(() => backend.waiting === 1);
    await guest.status(0);
    await guest.settle();
    expect(await guest.readStatus()).toBe(15);
    backend.letGo();
    await guest.untilStatus(0);
    expect(guest.usedIndex).toBe(0);
    await unanswered;
    await guest.machine.close();
  });
});

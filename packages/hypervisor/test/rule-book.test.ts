// Each rule of the rule book is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { DeviceStatus, VirtioFault } from "@virtio/core";
import { BlockRequestType } from "@virtio/core/block";
import { CommonConfig, VirtioCapability } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import { RuleBook } from "../src/index.js";
import { BareGuest } from "./bare-guest.js";
import { type Crime, eachFires } from "./crime.js";

const running = async (guest: BareGuest): Promise<void> => guest.run();

const crimes: readonly Crime<BareGuest>[] = [
  ["INIT-2", "writes ACKNOWLEDGE before any reset", (g) => g.status(1)],
  [
    "STATUS-1",
    "sets DRIVER_OK without FEATURES_OK",
    async (g) => {
      await g.acknowledge();
      await g.status(7);
    },
  ],
  [
    "STATUS-2",
    "clears a status bit",
    async (g) => {
      await g.acknowledge();
      await g.status(DeviceStatus.ACKNOWLEDGE);
    },
  ],
  [
    "STATUS-3",
    "goes on after FAILED without a reset",
    async (g) => {
      await g.acknowledge();
      await g.status(3 | DeviceStatus.FAILED);
      await g.status(11);
    },
  ],
  [
    "INIT-1",
    "sets FEATURES_OK and DRIVER_OK at once",
    async (g) => {
      await g.acknowledge();
      await g.offered();
      await g.accept([0, 1]);
      await g.status(15);
    },
  ],
  [
    "INIT-3",
    "sets ACKNOWLEDGE and DRIVER at once",
    async (g) => {
      await g.reset();
      await g.status(3);
    },
  ],
  [
    "INIT-4",
    "sets FEATURES_OK without having read the features",
    async (g) => {
      await g.acknowledge();
      await g.accept([0, 1]);
      await g.status(11);
    },
  ],
  [
    "INIT-5",
    "sets DRIVER_OK without having read FEATURES_OK back",
    async (g) => {
      await g.acknowledge();
      await g.offered();
      await g.accept([0, 1]);
      await g.status(11);
      await g.placeQueue();
      await g.enableQueue();
      await g.status(15);
    },
  ],
  [
    "INIT-6",
    "sets a queue up before FEATURES_OK",
    async (g) => {
      await g.acknowledge();
      await g.placeQueue();
    },
  ],
  [
    "INIT-7",
    "enables a queue after DRIVER_OK",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.status(15);
      await g.placeQueue();
      await g.enableQueue();
    },
  ],
  [
    "INIT-9",
    "writes configuration before FEATURES_OK",
    async (g) => {
      await g.acknowledge();
      await g.write(0, 4, 1, VirtioCapability.DEVICE);
      await g.negotiate();
    },
  ],
  [
    "INIT-10",
    "writes features after FEATURES_OK",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.accept([0]);
    },
  ],
  [
    "INIT-13",
    "rings before DRIVER_OK",
    async (g) => {
      await g.acknowledge();
      await g.ringDoorbell();
    },
  ],
  [
    "FEAT-1",
    "accepts a feature that was not offered",
    async (g) => {
      await g.acknowledge();
      await g.negotiate(([low = 0]) => [low | (1 << 17), 1]);
    },
  ],
  [
    "RESFEAT-1",
    "does not accept VERSION_1",
    async (g) => {
      await g.acknowledge();
      await g.negotiate(() => [0, 0]);
    },
  ],
  [
    "CONFIG-3",
    "reads a field whose feature is not offered",
    async (g) => {
      await g.acknowledge();
      await g.read(36, 4, VirtioCapability.DEVICE);
    },
    { features: { DISCARD: false } },
  ],
  [
    "BLK-INIT-4",
    "reads writeback before FEATURES_OK",
    async (g) => {
      await g.acknowledge();
      await g.read(32, 1, VirtioCapability.DEVICE);
      await g.negotiate();
    },
  ],
  [
    "PCI-ACCESS-1",
    "reads half of a register",
    async (g) => {
      await g.read(CommonConfig.DEVICE_FEATURE, 2);
    },
  ],
  [
    "PCI-CAP-8",
    "writes to a capability",
    async (g) => {
      await g.fn.write(g.capability(VirtioCapability.COMMON).at + 8, 4, 0);
    },
  ],
  [
    "PCI-COMMON-1",
    "writes num_queues",
    async (g) => {
      await g.acknowledge();
      await g.write(CommonConfig.NUM_QUEUES, 2, 4);
    },
  ],
  [
    "PCI-COMMON-3",
    "asks for a queue of 3 descriptors",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.write(CommonConfig.QUEUE_SIZE, 2, 3);
    },
  ],
  [
    "PCI-COMMON-4",
    "enables a queue that has no addresses",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.enableQueue();
    },
  ],
  [
    "PCI-COMMON-5",
    "writes status before it read 0 after a reset",
    async (g) => {
      await g.status(0);
      await g.status(1);
    },
  ],
  [
    "RESET-1",
    "touches registers before status read 0 after a reset",
    async (g) => {
      await g.status(0);
      await g.write(CommonConfig.QUEUE_SELECT, 2, 0);
    },
  ],
  [
    "PCI-COMMON-6",
    "writes 0 to queue_enable",
    async (g) => {
      await running(g);
      await g.write(CommonConfig.QUEUE_ENABLE, 2, 0);
    },
  ],
  [
    "PCI-ISR-1",
    "reads the ISR while MSI-X is enabled",
    async (g) => {
      await g.fn.write(g.msixAt + 2, 2, 0x8000);
      await g.read(0, 1, VirtioCapability.ISR);
    },
  ],
  [
    "PCI-MSIX-4",
    "maps an event to a vector outside the table",
    async (g) => {
      await g.acknowledge();
      await g.write(CommonConfig.CONFIG_MSIX_VECTOR, 2, 7);
    },
  ],
  [
    "PCI-MSIX-5",
    "does not read a vector field back",
    async (g) => {
      await g.acknowledge();
      await g.write(CommonConfig.CONFIG_MSIX_VECTOR, 2, 0);
      await g.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, 0);
    },
  ],
  [
    "PCI-NOTIFY-1",
    "rings with a 32-bit write",
    async (g) => {
      await running(g);
      await g.ringDoorbell(4);
    },
  ],
  [
    "PCI-NOTIFY-3",
    "rings with another number than the queue's",
    async (g) => {
      await running(g);
      await g.ringDoorbell(2, 1);
    },
  ],
  [
    "SPLIT-LAYOUT-1",
    "places a descriptor table at an odd address",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.placeQueue();
      await g.write(CommonConfig.QUEUE_DESC, 4, g.ring.address + 8);
      await g.enableQueue();
    },
  ],
  [
    "RESFEAT-5",
    "places a ring outside guest memory",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.placeQueue();
      await g.write(CommonConfig.QUEUE_DESC + 4, 4, 1);
      await g.enableQueue();
    },
  ],
  [
    "SPLIT-AVAILSUP-1",
    "enables a queue with used.flags set",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.placeQueue();
      g.used[0] = 1;
      await g.enableQueue();
    },
  ],
  [
    "SPLIT-AVAILSUP-3",
    "rings though used.flags asks for no doorbell",
    async (g) => {
      await running(g);
      g.used[0] = 1;
      await g.ringDoorbell();
    },
  ],
  [
    "SPLIT-USEDSUP-1",
    "sets avail.flags to 2",
    async (g) => {
      await running(g);
      g.available[0] = 2;
      await g.ringDoorbell();
    },
  ],
  [
    "SPLIT-USEDSUP-3",
    "sets avail.flags with EVENT_IDX",
    async (g) => {
      await g.run(([low = 0]) => [low & (1 << 29), 1]);
      g.available[0] = 1;
      await g.ringDoorbell();
    },
  ],
  [
    "FRAMING-1",
    "puts a readable segment after a writable one",
    async (g) => {
      await running(g);
      await g.offer([
        [0, 16, 2],
        [64, 16, 0],
      ]);
      await g.settle();
    },
  ],
  [
    "BLK-OP-2",
    "reads beyond capacity",
    async (g) => {
      await running(g);
      expect((await g.request(BlockRequestType.IN, 2048, 0, 512)).status).toBe(1);
    },
  ],
  [
    "BLK-OP-4",
    "flushes a sector",
    async (g) => {
      await running(g);
      await g.request(BlockRequestType.FLUSH, 5, 0, 0);
    },
  ],
  [
    "BLK-OP-5",
    "flushes with data",
    async (g) => {
      await running(g);
      await g.request(BlockRequestType.FLUSH, 0, 512, 0);
    },
  ],
  [
    "BLK-OP-6",
    "reads half a sector",
    async (g) => {
      await running(g);
      expect((await g.request(BlockRequestType.IN, 0, 0, 256)).status).toBe(1);
    },
  ],
  [
    "BLK-OP-7",
    "discards with a part of a segment",
    async (g) => {
      await running(g);
      expect((await g.request(BlockRequestType.DISCARD, 0, 24, 0)).status).toBe(2);
    },
  ],
  [
    "BLK-OP-8",
    "asks for an id of 16 bytes",
    async (g) => {
      await running(g);
      await g.request(BlockRequestType.GET_ID, 0, 0, 16);
    },
  ],
  [
    "PCI-NOTIFY-2",
    "rings with a 16-bit write with NOTIFICATION_DATA",
    async (g) => {
      await g.run(([, high = 0]) => [0, high]);
      await g.ringDoorbell(2);
    },
    { features: { NOTIFICATION_DATA: true } },
  ],
  [
    "PCI-NOTIFY-4",
    "rings with another number than the queue's with NOTIFICATION_DATA",
    async (g) => {
      await g.run(([, high = 0]) => [0, high]);
      await g.ringDoorbell(4, 0x10007);
    },
    { features: { NOTIFICATION_DATA: true } },
  ],
  [
    "PCI-COMMON-2",
    "asks for a packed queue of no descriptors",
    async (g) => {
      await g.acknowledge();
      await g.negotiate(([, high = 0]) => [0, high]);
      await g.write(CommonConfig.QUEUE_SIZE, 2, 0);
    },
    { packed: true },
  ],
  [
    "PACKED-LAYOUT-1",
    "places a descriptor ring at an odd address",
    async (g) => {
      await g.acknowledge();
      await g.negotiate(([, high = 0]) => [0, high]);
      await g.placeQueue();
      await g.write(CommonConfig.QUEUE_DESC, 4, g.ring.address + 8);
      await g.enableQueue();
    },
    { packed: true },
  ],
  ...(["VQRESET-1", "PCI-COMMON-7"] as const).map(
    (clause): Crime<BareGuest> => [
      clause,
      "uses a queue before its reset is done",
      async (g) => {
        await g.run(([, high = 0]) => [0, high]);
        await g.write(CommonConfig.QUEUE_RESET, 2, 1);
        await g.placeQueue();
      },
    ],
  ),
  [
    "VQREENABLE-1",
    "enables a queue again without setting it up again",
    async (g) => {
      await g.run(([, high = 0]) => [0, high]);
      await g.write(CommonConfig.QUEUE_RESET, 2, 1);
      await g.read(CommonConfig.QUEUE_RESET, 2);
      await g.enableQueue();
    },
  ],
];

describe("the rule book", () => {
  eachFires(BareGuest.start, crimes);

  it("says nothing of a guest that breaks no rule, and counts what it looked at", async () => {
    const guest = await BareGuest.start();
    await guest.run();
    expect(await guest.request(BlockRequestType.IN, 3, 0, 1024)).toEqual({ status: 0, used: 1025 });
    expect(guest.rules.violations).toEqual([]);
    for (const clause of ["STATUS-2", "FEAT-1", "PCI-COMMON-4", "FRAMING-1", "BLK-OP-6"])
      expect(guest.rules.kept(clause)).toBeGreaterThan(0);
    await guest.machine.close();
  });

  it("can stop a driver at its first mistake", async () => {
    const rules = new RuleBook();
    rules.onViolation = ({ clause, device, what }) => {
      throw new VirtioFault("DRIVER_MISBEHAVED", what, { device, clause });
    };
    expect(() =>
      rules.check("STATUS-2", false, "blk0", () => "status 0x1 written over 0x3"),
    ).toThrow("blk0: status 0x1 written over 0x3 [STATUS-2]");
  });
});

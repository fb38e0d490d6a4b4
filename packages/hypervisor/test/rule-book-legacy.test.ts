// Rules of the legacy interface are seen to fire.
import { BlockRequestType } from "@virtio/core/block";
import { CommonConfig, LegacyRegister } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import type { GuestOptions } from "./bare-guest.js";
import { type Crime, eachFires } from "./crime.js";
import { LegacyGuest } from "./legacy-guest.js";

const OLD: GuestOptions = { features: { ANY_LAYOUT: false } };
const MSIX_ENABLE = 0x8000;

/** A header of a flush, 16 bytes at 0 of the data. */
function header(g: LegacyGuest, bigEndian = false): void {
  const view = new DataView(g.machine.memory.buffer, g.data.offset, 16);
  view.setUint32(0, BlockRequestType.FLUSH, !bigEndian);
}

const upToQueue = async (g: LegacyGuest): Promise<void> => {
  await g.acknowledge();
  await g.negotiate();
  await g.placeQueue();
};

const crimes: readonly Crime<LegacyGuest>[] = [
  ["INIT-LEGACY-1", "writes ACKNOWLEDGE before any reset", (g) => g.status(1)],
  [
    "INIT-LEGACY-1",
    "sets ACKNOWLEDGE and DRIVER at once",
    async (g) => {
      await g.reset();
      await g.status(3);
    },
  ],
  [
    "INIT-LEGACY-1",
    "sets DRIVER_OK without having negotiated",
    async (g) => {
      await g.acknowledge();
      await g.status(7);
    },
  ],
  [
    "INIT-LEGACY-1",
    "writes features before DRIVER",
    async (g) => {
      await g.reset();
      await g.accept([0]);
    },
  ],
  [
    "FEAT-LEGACY-1",
    "takes a legacy device for a modern one and sets FEATURES_OK",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.status(11);
    },
  ],
  ["FEAT-LEGACY-2", "breaks a rule of a legacy section", (g) => g.status(1)],
  [
    "FEAT-1",
    "accepts a feature that was not offered",
    (g) => g.run(([low = 0]) => [low | (1 << 17)]),
  ],
  [
    "FEAT-3",
    "accepts a feature that means nothing",
    (g) => g.run(([low = 0]) => [low | (1 << 25)]),
  ],
  ["RESFEAT-LEGACY-1", "does not accept ANY_LAYOUT", (g) => g.run(() => [0])],
  ["RESFEAT-LEGACY-2", "accepts bit 30", (g) => g.run(([low = 0]) => [low | (1 << 30)])],
  [
    "RESET-1",
    "writes status before it read 0 after a reset",
    async (g) => {
      await g.status(0);
      await g.status(1);
    },
  ],
  [
    "STATUS-2",
    "clears a status bit",
    async (g) => {
      await g.acknowledge();
      await g.status(1);
    },
  ],
  [
    "STATUS-3",
    "goes on after FAILED without a reset",
    async (g) => {
      await g.acknowledge();
      await g.status(3 | 0x80);
      await g.status(7);
    },
  ],
  [
    "INIT-13",
    "rings before DRIVER_OK",
    async (g) => {
      await upToQueue(g);
      await g.ringDoorbell();
    },
  ],
  [
    "CONFIG-LEGACY-1",
    "reads the capacity once",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.legacy.read(20, 4);
      await g.legacy.read(24, 4);
      await g.status(7);
    },
  ],
  [
    "CONFIG-3",
    "reads a field whose feature is not offered",
    async (g) => {
      await g.legacy.read(20 + 8, 4);
    },
  ],
  [
    "SPLIT-LEGACY-1",
    "places a queue without having read its size",
    async (g) => {
      await g.acknowledge();
      await g.negotiate();
      await g.legacy.write(LegacyRegister.QUEUE_SELECT, 2, 0);
      await g.enableQueue();
    },
  ],
  [
    "SPLIT-LEGACY-2",
    "places a queue whose used ring is not zeroed",
    async (g) => {
      await upToQueue(g);
      g.ring.bytes[4098] = 1;
      await g.enableQueue();
    },
  ],
  [
    "SPLIT-LEGACY-2",
    "places a queue that guest memory does not hold whole",
    async (g) => {
      await upToQueue(g);
      await g.legacy.write(LegacyRegister.QUEUE_ADDRESS, 4, 0x1ff);
    },
  ],
  [
    "SPLIT-LEGACY-3",
    "has its available ring elsewhere",
    async (g) => {
      await g.run();
      g.available = new Uint16Array(g.machine.memory.buffer, g.ring.offset + 2048, 11);
      await g.offer([[511, 1, 2]]);
    },
  ],
  [
    "SPLIT-ENDIAN-1",
    "counts in the other byte order",
    async (g) => {
      await g.run();
      g.available[1] = 0x0100;
      await g.ringDoorbell();
      await g.settle();
    },
  ],
  [
    "PCI-LEGACY-1",
    "reads two registers at once",
    async (g) => {
      await g.legacy.read(LegacyRegister.QUEUE_SIZE, 4);
    },
  ],
  [
    "PCI-LEGACY-1",
    "goes on by the modern structures",
    async (g) => {
      await g.acknowledge();
      await g.read(CommonConfig.NUM_QUEUES, 2);
    },
    { legacy: "transitional" },
  ],
  [
    "PCI-LEGACY-3",
    "reads configuration at 20 while MSI-X is enabled",
    async (g) => {
      await g.fn.write(g.msixAt + 2, 2, MSIX_ENABLE);
      await g.legacy.read(20, 4);
    },
  ],
  [
    "PCI-LEGACY-3",
    "writes a vector while MSI-X is not enabled",
    async (g) => {
      await g.legacy.write(LegacyRegister.CONFIG_MSIX_VECTOR, 2, 0);
    },
  ],
  [
    "PCI-MSIX-4",
    "maps an event to a vector outside the table",
    async (g) => {
      await g.fn.write(g.msixAt + 2, 2, MSIX_ENABLE);
      await g.legacy.write(LegacyRegister.CONFIG_MSIX_VECTOR, 2, 7);
    },
  ],
  [
    "PCI-MSIX-5",
    "does not read a vector register back",
    async (g) => {
      await g.fn.write(g.msixAt + 2, 2, MSIX_ENABLE);
      await g.legacy.write(LegacyRegister.CONFIG_MSIX_VECTOR, 2, 0);
      await g.status(0);
    },
  ],
  [
    "PCI-ISR-1",
    "reads the ISR while MSI-X is enabled",
    async (g) => {
      await g.fn.write(g.msixAt + 2, 2, MSIX_ENABLE);
      await g.legacy.read(LegacyRegister.ISR_STATUS, 1);
    },
  ],
  [
    "PCI-DETECT-1",
    "uses the legacy registers without having looked for capabilities",
    (g) => g.status(0),
    { walk: false },
  ],
  [
    "BLK-OP-LEGACY-1",
    "makes a request in the other byte order",
    async (g) => {
      await g.run();
      header(g, true);
      await g.offer([
        [0, 16, 0],
        [511, 1, 2],
      ]);
      await g.settle();
    },
  ],
  [
    "BLK-FRAME-LEGACY-1",
    "cuts a header in two without ANY_LAYOUT",
    async (g) => {
      await g.run();
      header(g);
      await g.offer([
        [0, 8, 0],
        [8, 8, 0],
        [511, 1, 2],
      ]);
      await g.settle();
    },
    OLD,
  ],
  [
    "BLK-FRAME-LEGACY-1",
    "puts data and status into one segment without ANY_LAYOUT",
    async (g) => {
      await g.run();
      header(g);
      await g.offer([
        [0, 16, 0],
        [512, 513, 2],
      ]);
      await g.settle();
    },
    OLD,
  ],
];

describe("the rule book of a legacy interface", () => {
  eachFires(LegacyGuest.start, crimes);

  it("says nothing of a guest that breaks no rule, and counts what it looked at", async () => {
    const guest = await LegacyGuest.start(OLD);
    await guest.acknowledge();
    await guest.negotiate();
    for (let twice = 0; twice < 2; twice++)
      for (const at of [20, 24]) await guest.legacy.read(at, 4);
    await guest.placeQueue();
    await guest.enableQueue();
    await guest.status(7);
    expect(await guest.request(BlockRequestType.IN, 3, 0, 1024)).toEqual({ status: 0, used: 1025 });
    expect(guest.rules.violations).toEqual([]);
    const unseen = new Set(crimes.map(([clause]) => clause));
    // Kept only by MSI-X, by ANY_LAYOUT, or by a field with a feature.
    for (const clause of unseen)
      if (/^(PCI-MSIX|PCI-ISR|RESFEAT-LEGACY-1|CONFIG-3)/.test(clause)) unseen.delete(clause);
    expect([...unseen].filter((clause) => guest.rules.kept(clause) === 0)).toEqual([]);
    await guest.machine.close();
  });
});

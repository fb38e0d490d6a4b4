// The embedded machine's function and block model against the device clauses, driven by hand.
import { DeviceStatus } from "@virtio/core";
import { BlockRequestType } from "@virtio/core/block";
import {
  CommonConfig,
  NO_VECTOR,
  PciRegister,
  PciStatus,
  VirtioCapability,
} from "@virtio/core/pci";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BareGuest } from "./bare-guest.js";

describe("a modern virtio function", () => {
  let guest: BareGuest;
  beforeEach(async () => {
    guest = await BareGuest.start();
  });
  afterEach(() => guest.machine.close());

  it("identifies itself as DEV-PCI-DISC asks: vendor, device id, revision, subsystem", async () => {
    expect(await guest.fn.read(PciRegister.VENDOR_ID, 2)).toBe(0x1af4);
    expect(await guest.fn.read(PciRegister.DEVICE_ID, 2)).toBe(0x1042);
    expect(await guest.fn.read(PciRegister.REVISION_ID, 1)).toBeGreaterThanOrEqual(1);
    expect(await guest.fn.read(PciRegister.SUBSYSTEM_ID, 2)).toBeGreaterThanOrEqual(0x40);
  });

  it("has one capability of each structure, aligned and inside its BAR", () => {
    for (const type of [
      VirtioCapability.COMMON,
      VirtioCapability.NOTIFY,
      VirtioCapability.ISR,
      VirtioCapability.DEVICE,
      VirtioCapability.PCI,
    ]) {
      const { offset, length } = guest.capability(type);
      expect([offset % 4, offset + length <= 0x4000]).toEqual([0, true]);
    }
  });

  it("shows feature words for any select, 0 beyond what it has", async () => {
    await guest.acknowledge();
    expect((await guest.offered())[1]).toBe((1 | (1 << 8) | (1 << 11)) >>> 0);
    await guest.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, 0xffff_ffff);
    expect(await guest.read(CommonConfig.DEVICE_FEATURE, 4)).toBe(0);
  });

  it("leaves FEATURES_OK unset for a set it cannot accept, and takes a valid one after a reset", async () => {
    await guest.acknowledge();
    expect(await guest.negotiate(() => [0, 0])).toBe(false);
    await guest.acknowledge();
    expect(await guest.negotiate(([low = 0]) => [low | 1, 1])).toBe(false);
    await guest.acknowledge();
    expect(await guest.negotiate()).toBe(true);
  });

  it("consumes nothing and signals nothing before DRIVER_OK, and then looks without a doorbell", async () => {
    await guest.acknowledge();
    await guest.negotiate();
    await guest.placeQueue();
    await guest.enableQueue();
    await guest.offer([
      [0, 16, 0],
      [511, 1, 2],
    ]);
    await guest.settle();
    expect(guest.usedIndex).toBe(0);
    await guest.status(15);
    await guest.until(() => guest.usedIndex === 1);
  });

  it("after a reset reads 0, has no queue, no vector, and touches no memory", async () => {
    await guest.run();
    await guest.write(CommonConfig.CONFIG_MSIX_VECTOR, 2, 1);
    await guest.reset();
    expect(await guest.read(CommonConfig.QUEUE_ENABLE, 2)).toBe(0);
    expect(await guest.read(CommonConfig.CONFIG_MSIX_VECTOR, 2)).toBe(NO_VECTOR);
    await guest.offer([
      [0, 16, 0],
      [511, 1, 2],
    ]);
    await guest.settle();
    expect(guest.usedIndex).toBe(0);
  });

  it("needs the bus master bit to reach memory", async () => {
    await guest.fn.write(PciRegister.COMMAND, 2, 2);
    await guest.run();
    await guest.offer([
      [0, 16, 0],
      [511, 1, 2],
    ]);
    await guest.settle();
    expect(guest.usedIndex).toBe(0);
  });

  it("sets DEVICE_NEEDS_RESET and signals a configuration change when the driver breaks the ring", async () => {
    await guest.run();
    await guest.offer([
      [0, 16, 2],
      [64, 16, 0],
    ]);
    await guest.settle();
    expect((await guest.readStatus()) & DeviceStatus.DEVICE_NEEDS_RESET).not.toBe(0);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(2);
  });

  it("raises INTx until the ISR is read, and shows it in the PCI status", async () => {
    await guest.run();
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    expect((await guest.fn.read(PciRegister.STATUS, 2)) & PciStatus.INTERRUPT).not.toBe(0);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(1);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(0);
    expect((await guest.fn.read(PciRegister.STATUS, 2)) & PciStatus.INTERRUPT).toBe(0);
  });

  it("sends no interrupt while avail.flags asks for none", async () => {
    await guest.run();
    guest.available[0] = 1;
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(0);
  });

  it("delivers MSI-X messages, keeps them while a vector is masked, and takes no vector outside the table", async () => {
    const rung: string[] = [];
    await guest.run();
    await guest.fn.write(guest.msixAt + 2, 2, 0x8000);
    const { address, data } = await guest.fn.interrupts.message(1, "queue", () =>
      rung.push("queue"),
    );
    await guest.msixTable.write(16, 4, address);
    await guest.msixTable.write(24, 4, data);
    await guest.write(CommonConfig.QUEUE_SELECT, 2, 0);
    await guest.write(CommonConfig.QUEUE_MSIX_VECTOR, 2, 5);
    expect(await guest.read(CommonConfig.QUEUE_MSIX_VECTOR, 2)).toBe(NO_VECTOR);
    await guest.write(CommonConfig.QUEUE_MSIX_VECTOR, 2, 1);
    expect(await guest.read(CommonConfig.QUEUE_MSIX_VECTOR, 2)).toBe(1);
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    await guest.settle();
    expect(rung).toEqual([]);
    expect(await guest.msixTable.read(0x800, 4)).toBe(2);
    await guest.msixTable.write(28, 4, 0);
    await guest.until(() => rung.length === 1);
    expect(await guest.msixTable.read(0x800, 4)).toBe(0);
  });

  it("resets one queue, which then starts from 0 with another size", async () => {
    await guest.run(([, high = 0]) => [0, high]);
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    await guest.write(CommonConfig.QUEUE_RESET, 2, 1);
    expect(await guest.read(CommonConfig.QUEUE_RESET, 2)).toBe(0);
    expect(await guest.read(CommonConfig.QUEUE_ENABLE, 2)).toBe(0);
  });

  it("does the access its PCI configuration window asks for", async () => {
    const { at } = guest.capability(VirtioCapability.PCI);
    await guest.fn.write(at + 4, 1, 4);
    await guest.fn.write(at + 8, 4, CommonConfig.NUM_QUEUES);
    await guest.fn.write(at + 12, 4, 2);
    expect(await guest.fn.read(at + 16, 2)).toBe(1);
    await guest.fn.write(at + 8, 4, CommonConfig.DEVICE_STATUS);
    await guest.fn.write(at + 12, 4, 1);
    await guest.fn.write(at + 16, 1, 1);
    expect(await guest.readStatus()).toBe(1);
  });
});

describe("the block device", () => {
  it("reads and writes sectors, framed in any way", async () => {
    const guest = await BareGuest.start();
    await guest.run();
    expect(await guest.request(BlockRequestType.IN, 7, 0, 1024)).toEqual({ status: 0, used: 1025 });
    expect(
      Buffer.compare(guest.data.bytes.subarray(512, 1536), guest.content.subarray(3584, 4608)),
    ).toBe(0);
    guest.data.bytes.fill(0xab, 512, 1024);
    expect(await guest.request(BlockRequestType.OUT, 7, 512, 0)).toEqual({ status: 0, used: 1 });
    expect(guest.content.subarray(3584, 4096).every((byte) => byte === 0xab)).toBe(true);
    // The same read with its header, data and status cut at odd places.
    const header = new DataView(guest.machine.memory.buffer, guest.data.offset, 16);
    header.setUint32(0, BlockRequestType.IN, true);
    header.setUint32(8, 7, true);
    guest.data.bytes.fill(0, 512, 2048);
    await guest.offer([
      [0, 5, 0],
      [5, 11, 0],
      [512, 100, 2],
      [612, 413, 2],
    ]);
    await guest.until(() => guest.usedIndex === 3);
    expect(guest.data.bytes.subarray(512, 1024).every((byte) => byte === 0xab)).toBe(true);
    expect(guest.data.bytes[1024]).toBe(0);
    await guest.machine.close();
  });

  it("answers its serial, NUL-padded, and UNSUPP to what it does not do", async () => {
    const guest = await BareGuest.start();
    await guest.run();
    expect(await guest.request(BlockRequestType.GET_ID, 0, 0, 20)).toEqual({ status: 0, used: 21 });
    expect(new TextDecoder().decode(guest.data.bytes.subarray(512, 532))).toBe(
      `BARE${"\0".repeat(16)}`,
    );
    for (const type of [
      BlockRequestType.DISCARD,
      BlockRequestType.WRITE_ZEROES,
      BlockRequestType.SECURE_ERASE,
      15,
      99,
    ])
      expect((await guest.request(type, 0, 16, 0)).status).toBe(2);
    await guest.machine.close();
  });

  it("answers IOERR beyond its end and to part of a sector, and clears what it counts as written", async () => {
    const guest = await BareGuest.start();
    await guest.run();
    guest.data.bytes.fill(0x77, 512, 1024);
    expect(await guest.request(BlockRequestType.IN, 2048, 0, 512)).toEqual({
      status: 1,
      used: 513,
    });
    expect(guest.data.bytes.subarray(512, 1024).every((byte) => byte === 0)).toBe(true);
    expect((await guest.request(BlockRequestType.OUT, 2047, 1024, 0)).status).toBe(1);
    expect((await guest.request(BlockRequestType.OUT, 0, 100, 0)).status).toBe(1);
    await guest.machine.close();
  });

  it("offers RO when it is read-only, answers IOERR to writes and changes nothing", async () => {
    const guest = await BareGuest.start({ readOnly: true });
    await guest.acknowledge();
    expect(((await guest.offered())[0] ?? 0) & (1 << 5)).not.toBe(0);
    await guest.run();
    const before = guest.content.slice();
    expect((await guest.request(BlockRequestType.OUT, 0, 512, 0)).status).toBe(1);
    expect(Buffer.compare(guest.content, before)).toBe(0);
    await guest.machine.close();
  });
});

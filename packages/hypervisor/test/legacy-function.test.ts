// The legacy interface of the embedded machine's functions against the device clauses, driven by hand.
import { BlockRequestType } from "@virtio/core/block";
import {
  LegacyRegister,
  MsixControl,
  NO_VECTOR,
  PciCommand,
  PciRegister,
  PciStatus,
} from "@virtio/core/pci";
import { afterEach, describe, expect, it } from "vitest";
import { blk, embedded } from "../src/index.js";
import { BareGuest, type GuestOptions } from "./bare-guest.js";
import { LegacyGuest } from "./legacy-guest.js";

let guest: BareGuest;
const start = async (options: GuestOptions = {}): Promise<LegacyGuest> => {
  const legacy = await LegacyGuest.start(options);
  guest = legacy;
  return legacy;
};
afterEach(() => guest.machine.close());

const enableMsix = async (g: BareGuest): Promise<void> => {
  await g.fn.write(g.msixAt + 2, 2, MsixControl.ENABLE);
};
const capacity = async (g: BareGuest, at: number): Promise<number> =>
  (await g.legacy.read(at, 4)) + 2 ** 32 * (await g.legacy.read(at + 4, 4));

describe.each(["on", "transitional"] as const)("a function with legacy=%s", (legacy) => {
  it("identifies itself by the transitional id, revision 0 and its type, with registers in an I/O BAR 0", async () => {
    const { fn } = await start({ legacy });
    expect(await fn.read(PciRegister.VENDOR_ID, 2)).toBe(0x1af4);
    expect(await fn.read(PciRegister.DEVICE_ID, 2)).toBe(0x1001);
    expect(await fn.read(PciRegister.REVISION_ID, 1)).toBe(0);
    expect(await fn.read(PciRegister.SUBSYSTEM_ID, 2)).toBe(2);
    await fn.write(PciRegister.BAR0, 4, 0xffff_ffff);
    expect(await fn.read(PciRegister.BAR0, 4)).toBe((~(128 - 1) | 1) >>> 0);
  });

  it("decodes them only while the command register says so", async () => {
    const { fn, legacy: registers } = await start({ legacy });
    expect(await registers.read(LegacyRegister.DEVICE_STATUS, 1)).toBe(0);
    await fn.write(PciRegister.COMMAND, 2, PciCommand.MEMORY | PciCommand.BUS_MASTER);
    expect(await registers.read(LegacyRegister.DEVICE_STATUS, 1)).toBe(0xff);
  });

  it("offers bits 0 to 31 with NOTIFY_ON_EMPTY and ANY_LAYOUT, and reads back what it takes of them", async () => {
    const g = await start({ legacy });
    const [low = 0] = await g.offered();
    expect(low & (0b1111_1111 << 24)).toBe((1 << 24) | (1 << 27) | (1 << 28) | (1 << 29));
    await g.accept([0xffff_ffff]);
    expect(await g.legacy.read(LegacyRegister.DRIVER_FEATURES, 4)).toBe(low);
  });

  it("offers neither when it is to be an old device", async () => {
    const g = await start({ legacy, features: { ANY_LAYOUT: false, NOTIFY_ON_EMPTY: false } });
    expect(((await g.offered())[0] ?? 0) & 0x0f00_0000).toBe(0);
  });

  it("does requests in a ring at a page, with the used ring at the next page", async () => {
    const g = await start({ legacy });
    await g.run();
    expect(await g.request(BlockRequestType.IN, 7, 0, 1024)).toEqual({ status: 0, used: 1025 });
    expect(Buffer.compare(g.data.bytes.subarray(512, 1536), g.content.subarray(3584, 4608))).toBe(
      0,
    );
    expect(g.rules.violations).toEqual([]);
    expect(await g.legacy.read(LegacyRegister.QUEUE_ADDRESS, 4)).toBe(g.ring.address / 4096);
  });

  it("does what is asked of it before DRIVER_OK, and knows no FEATURES_OK", async () => {
    const g = await start({ legacy });
    await g.acknowledge();
    await g.negotiate();
    await g.placeQueue();
    await g.enableQueue();
    await g.status(3 | 8);
    expect(await g.readStatus()).toBe(3);
    expect((await g.request(BlockRequestType.FLUSH, 0, 0, 0)).status).toBe(0);
  });

  it("has no queue after page 0 was written, nor after a reset", async () => {
    const g = await start({ legacy });
    for (const end of [() => g.legacy.write(LegacyRegister.QUEUE_ADDRESS, 4, 0), () => g.reset()]) {
      await g.run();
      await end();
      expect(await g.legacy.read(LegacyRegister.QUEUE_ADDRESS, 4)).toBe(0);
      await g.offer([
        [0, 16, 0],
        [511, 1, 2],
      ]);
      await g.settle();
      expect(g.usedIndex).toBe(0);
      await g.reset();
    }
  });

  it("has a queue size that a driver cannot change, and none for a queue that is not there", async () => {
    const g = await start({ legacy });
    await g.legacy.write(LegacyRegister.QUEUE_SIZE, 2, 4);
    expect(await g.legacy.read(LegacyRegister.QUEUE_SIZE, 2)).toBe(8);
    await g.legacy.write(LegacyRegister.QUEUE_SELECT, 2, 1);
    expect(await g.legacy.read(LegacyRegister.QUEUE_SIZE, 2)).toBe(0);
  });

  it("has its configuration at 20, at 24 behind the vectors while MSI-X is enabled, at any width", async () => {
    const g = await start({ legacy });
    expect(await capacity(g, 20)).toBe(2048);
    expect(await g.legacy.read(21, 1)).toBe(8);
    expect(await g.legacy.read(20, 2)).toBe(2048);
    await enableMsix(g);
    expect(await capacity(g, 24)).toBe(2048);
    expect(await g.legacy.read(LegacyRegister.CONFIG_MSIX_VECTOR, 2)).toBe(NO_VECTOR);
    await g.legacy.write(LegacyRegister.QUEUE_MSIX_VECTOR, 2, 1);
    expect(await g.legacy.read(LegacyRegister.QUEUE_MSIX_VECTOR, 2)).toBe(1);
    await g.legacy.write(LegacyRegister.QUEUE_MSIX_VECTOR, 2, 2);
    expect(await g.legacy.read(LegacyRegister.QUEUE_MSIX_VECTOR, 2)).toBe(NO_VECTOR);
  });

  it("interrupts by its line until the ISR is read, and by messages with MSI-X", async () => {
    const g = await start({ legacy });
    await g.run();
    await g.request(BlockRequestType.FLUSH, 0, 0, 0);
    expect((await g.fn.read(PciRegister.STATUS, 2)) & PciStatus.INTERRUPT).not.toBe(0);
    expect(await g.legacy.read(LegacyRegister.ISR_STATUS, 1)).toBe(1);
    expect(await g.legacy.read(LegacyRegister.ISR_STATUS, 1)).toBe(0);
    await enableMsix(g);
    let rung = 0;
    const { address, data } = await g.fn.interrupts.message(0, "queue", () => {
      rung += 1;
    });
    for (const [i, word] of [address, 0, data, 0].entries())
      await g.msixTable.write(i * 4, 4, word);
    await g.legacy.write(LegacyRegister.QUEUE_MSIX_VECTOR, 2, 0);
    await g.request(BlockRequestType.FLUSH, 0, 0, 0);
    await g.until(() => rung === 1);
  });

  it("interrupts when a queue runs empty though the driver asked for none, with NOTIFY_ON_EMPTY", async () => {
    const g = await start({ legacy });
    for (const [accepted, isr] of [
      [1 << 27, 0],
      [(1 << 27) | (1 << 24), 1],
    ] as const) {
      await g.run(() => [accepted]);
      g.available[0] = 1;
      await g.request(BlockRequestType.FLUSH, 0, 0, 0);
      expect(await g.legacy.read(LegacyRegister.ISR_STATUS, 1)).toBe(isr);
      await g.reset();
    }
  });

  it("stops, without a word, when the driver breaks its ring", async () => {
    const g = await start({ legacy });
    await g.run();
    await g.offer([
      [0, 16, 2],
      [64, 16, 0],
    ]);
    await g.settle();
    expect(await g.readStatus()).toBe(7);
    await g.ringDoorbell();
    await g.settle();
    expect(g.usedIndex).toBe(0);
    await g.reset();
    await g.run();
    expect((await g.request(BlockRequestType.FLUSH, 0, 0, 0)).status).toBe(0);
  });
});

describe("a transitional function", () => {
  it("runs by its modern interface, and by the legacy one after a reset", async () => {
    guest = await BareGuest.start({ legacy: "transitional", queueSize: 8 });
    await guest.run();
    // SEG_MAX GEOMETRY BLK_SIZE FLUSH TOPOLOGY CONFIG_WCE DISCARD WRITE_ZEROES, INDIRECT_DESC, EVENT_IDX.
    expect((await guest.offered())[0]).toBe(0x6e54 | (3 << 28));
    expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
    await guest.reset();
    expect(guest.rules.violations).toEqual([]);
    await guest.legacy.write(LegacyRegister.DEVICE_STATUS, 1, 1);
    await guest.status(3);
    await guest.accept([0, 1]);
    await guest.status(11);
    expect(await guest.readStatus()).toBe(3);
  });
});

describe("the language of devices", () => {
  it("refuses what a legacy interface cannot have", async () => {
    guest = await BareGuest.start();
    for (const [spec, why] of [
      [{ legacy: "on", packed: true }, "no packed rings"],
      [{ legacy: "transitional", packed: true, queueSize: 6 }, "not a power of two"],
      [{ legacy: "on", features: { NOTIFICATION_DATA: true } }, "notification_data"],
      [{ features: { ANY_LAYOUT: true } }, "any_layout"],
    ] as const)
      await expect(embedded({ devices: [blk(spec)] })).rejects.toThrow(why);
  });
});

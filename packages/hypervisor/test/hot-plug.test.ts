// Devices that come and go while the embedded machine runs.
import type { PciAddress, PciFunction } from "@virtio/core";
import { BlockRequestType } from "@virtio/core/block";
import { CommonConfig, PciRegister, VirtioCapability } from "@virtio/core/pci";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { blk } from "../src/index.js";
import { BareGuest } from "./bare-guest.js";
import { GatedBackend } from "./gated-backend.js";

describe("hot-plug", () => {
  let guest: BareGuest;
  let backend: GatedBackend;
  let changes: [number, string][];
  const slots = async (): Promise<number[]> =>
    (await guest.machine.buses[0].bus.functions()).map(({ address }) => address.device);

  beforeEach(async () => {
    backend = new GatedBackend(1 << 20);
    guest = await BareGuest.start({ backend });
    changes = [];
    guest.machine.buses[0].bus.onChange = ({ device }: PciAddress, what) =>
      changes.push([device, what]);
  });
  afterEach(async () => {
    backend.letGo();
    await guest.machine.close();
  });

  it("adds a device to the first free slot, and says so as a task", async () => {
    expect(await guest.machine.plug("blk,size=1m,legacy=transitional")).toEqual({
      domain: 0,
      bus: 0,
      device: 2,
      function: 0,
    });
    expect(changes).toEqual([]);
    await guest.settle();
    expect(changes).toEqual([[2, "added"]]);
    expect(await slots()).toEqual([1, 2]);
  });

  it("takes a device out: no register answers, nothing is listed, and everybody is told", async () => {
    await guest.run();
    const { fn } = guest;
    const unplugged = guest.machine.unplug(fn.address);
    expect(await fn.gone).toMatchObject({
      code: "CLOSED",
      message: "the device at pci0:0:1:0 was taken out",
    });
    await unplugged;
    expect(await fn.read(PciRegister.VENDOR_ID, 2)).toBe(0xffff);
    expect(await guest.readStatus()).toBe(0xff);
    await fn.write(PciRegister.COMMAND, 2, 0);
    await guest.status(0);
    await guest.ringDoorbell();
    await expect(fn.mapBar(4)).rejects.toMatchObject({ code: "CLOSED" });
    await guest.settle();
    expect(await slots()).toEqual([]);
    expect(changes).toEqual([[1, "removed"]]);
    expect(guest.rules.violations).toEqual([]);
    await expect(guest.machine.unplug(fn.address)).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("takes a device out in the middle of requests: none is given back, and no interrupt comes", async () => {
    await guest.run();
    let served = 0;
    await guest.fn.interrupts.line("line", async () => {
      served += 1;
      return true;
    });
    new DataView(guest.machine.memory.buffer, guest.data.offset).setUint32(
      0,
      BlockRequestType.IN,
      true,
    );
    await guest.offer([
      [0, 16, 0],
      [512, 512, 2],
      [511, 1, 2],
    ]);
    await guest.until(() => backend.waiting === 1);
    const unplugged = guest.machine.unplug(guest.fn.address);
    await guest.fn.gone;
    backend.letGo();
    await unplugged;
    await guest.settle();
    expect([guest.usedIndex, served, backend.closed]).toEqual([0, 0, 1]);
  });

  it("uses a slot again; whoever held the old function keeps a dead one", async () => {
    const dead: PciFunction = guest.fn;
    await guest.machine.unplug(dead.address);
    expect(await guest.machine.plug(blk({ size: 512 }))).toEqual(dead.address);
    const [fn] = await guest.machine.buses[0].bus.functions();
    expect(await fn?.read(PciRegister.DEVICE_ID, 2)).toBe(0x1042);
    expect(await dead.read(PciRegister.DEVICE_ID, 2)).toBe(0xffff);
    expect(await guest.read(CommonConfig.NUM_QUEUES, 2)).toBe(0xffff);
  });

  it("lowers the line of a device that is taken out", async () => {
    await guest.run();
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    await guest.machine.plug("blk,size=1m");
    await guest.machine.unplug(guest.fn.address);
    let served = 0;
    const [fn] = await guest.machine.buses[0].bus.functions();
    await fn?.interrupts.line("other", async () => {
      served += 1;
      return false;
    });
    await guest.settle();
    expect(served).toBe(0);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(0xff);
  });

  it("refuses what a machine refuses at its start, a 32nd device, and a closed machine", async () => {
    await expect(guest.machine.plug("blk,zoned=on")).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    for (let slot = 2; slot <= 31; slot++) await guest.machine.plug("blk,size=512");
    await expect(guest.machine.plug("blk,size=512")).rejects.toMatchObject({ code: "NO_SPACE" });
    await guest.machine.close();
    await expect(guest.machine.plug("blk,size=512")).rejects.toMatchObject({ code: "CLOSED" });
  });
});

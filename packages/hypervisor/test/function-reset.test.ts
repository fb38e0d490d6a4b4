// A function level reset: the device and its configuration space are as at power-on (PCI ECN Advanced Capabilities).
import { DeviceStatus } from "@virtio/core";
import { BlockRequestType } from "@virtio/core/block";
import {
  CommonConfig,
  INITIATE_FUNCTION_LEVEL_RESET,
  PciAdvancedFeatures,
  PciCapability,
  PciCommand,
  PciRegister,
} from "@virtio/core/pci";
import { expect, it } from "vitest";
import { BareGuest } from "./bare-guest.js";

const STRUCTURES = PciRegister.BAR0 + 4 * 4;

it("a function level reset ends what the device did, and forgets BARs, command and MSI-X", async () => {
  const guest = await BareGuest.start();
  const { fn } = guest;
  await guest.run();
  expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
  const line = await fn.read(PciRegister.INTERRUPT_LINE, 1);
  await fn.write(guest.msixAt + 2, 2, 0x8000);

  let at = await fn.read(PciRegister.CAPABILITIES, 1);
  while ((await fn.read(at, 1)) !== PciCapability.ADVANCED_FEATURES) at = await fn.read(at + 1, 1);
  await fn.write(at + PciAdvancedFeatures.CONTROL, 1, INITIATE_FUNCTION_LEVEL_RESET);

  expect(await fn.read(PciRegister.COMMAND, 2)).toBe(0);
  expect(await fn.read(STRUCTURES, 4)).toBe(4);
  expect((await fn.read(guest.msixAt + 2, 2)) & 0x8000).toBe(0);
  expect(await fn.read(PciRegister.INTERRUPT_LINE, 1)).toBe(line);
  expect(await fn.read(at + PciAdvancedFeatures.CONTROL, 1)).toBe(0);

  await fn.write(STRUCTURES, 4, 0xe000_0000);
  await fn.write(PciRegister.COMMAND, 2, PciCommand.MEMORY | PciCommand.BUS_MASTER);
  expect(await guest.readStatus()).toBe(0);
  expect(await guest.read(CommonConfig.QUEUE_ENABLE, 2)).toBe(0);
  await guest.run();
  expect(await guest.readStatus()).toBe(
    DeviceStatus.ACKNOWLEDGE |
      DeviceStatus.DRIVER |
      DeviceStatus.FEATURES_OK |
      DeviceStatus.DRIVER_OK,
  );
  expect((await guest.request(BlockRequestType.IN, 0, 0, 512)).status).toBe(0);
  expect(guest.rules.violations).toEqual([]);
  await guest.machine.close();
});

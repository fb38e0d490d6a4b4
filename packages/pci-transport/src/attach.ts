// The life cycle of a driver on one device (virtio 1.4 §3.1.1; FreeBSD's virtio_pci.c).
import {
  type AttachContext,
  type Attached,
  attachContext,
  type Driver,
  type TunableSpec,
  VirtioFault,
  type VirtioNode,
} from "@virtio/core";
import { PciDevice } from "./device.js";
import { PciNode } from "./node.js";

/** What virtio_pci is called, and its tunables: `hw.virtio.pci.transitional`, `hw.virtio.pci.disable_msix` (virtio(4)). */
export const virtioPci: { readonly name: string; readonly tunables: readonly TunableSpec[] } = {
  name: "virtio_pci",
  tunables: [
    {
      name: "transitional",
      default: 1,
      min: 0,
      max: 1,
      description: "Drive transitional devices by their modern interface",
    },
    { name: "disable_msix", default: 0, min: 0, max: 1, description: "Never use MSI-X" },
  ],
};

/**
 * Gives a device to a driver: reset, ACKNOWLEDGE, DRIVER, the driver's attach, DRIVER_OK, the driver's started. When attach fails
 * the device is set FAILED and reset, its memory given back, and the node is free for another try.
 *
 * @param node - from {@link probe}
 * @param context - what the driver may read and publish; every member has a default
 * @throws VirtioFault INVALID (another type of device), BUSY (it has a driver), and what the driver's attach throws
 */
export async function attach<T extends Attached>(
  node: VirtioNode,
  driver: Driver<T>,
  context: Partial<AttachContext> = {},
): Promise<T> {
  const whole = attachContext(driver, virtioPci, context);
  if (!(node instanceof PciNode))
    throw new VirtioFault("INVALID", `${node.location} is not on a PCI bus`);
  if (!driver.types.includes(node.type))
    throw new VirtioFault(
      "INVALID",
      `${driver.name} drives types ${driver.types.join(", ")}, not ${node.type}`,
      { device: node.location },
    );
  if (node.attached)
    throw new VirtioFault("BUSY", "the device has a driver", { device: node.location });
  node.attached = true;
  let device: PciDevice | null = null;
  let attached: T | null = null;
  try {
    device = new PciDevice(node, await node.open(whole.name), whole, driver.features);
    await device.begin();
    attached = await driver.attach(device, whole);
    await device.start();
    await attached.started?.();
    return attached;
  } catch (error) {
    // Once it was running the driver has requests to fail and things to take back.
    if (attached !== null) await attached.detach();
    else
      await device?.abandon().catch((fault: unknown) => {
        whole.transport.log(`cannot give the device up: ${String(fault)}`);
      });
    node.attached = false;
    // A device that went away answers nonsense, and what a driver says of that is beside the point.
    throw device?.gone ?? error;
  }
}

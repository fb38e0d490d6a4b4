// How QEMU is told of a device, on its command line and by QMP alike.

import type { Properties } from "./blk.js";
import type { DevicePlan } from "./plan.js";

/** What `-blockdev` and `blockdev-add` take: the node that a device's medium becomes, named as the device. */
export function blockNode(plan: DevicePlan, filename: string): Readonly<Record<string, unknown>> {
  const { id, format, medium } = plan;
  // Nobody else can open a memfd: its lock says nothing.
  const file =
    "path" in medium
      ? { driver: medium.driver, filename }
      : { driver: "file", filename, locking: "off" };
  return {
    driver: format,
    "node-name": id,
    "read-only": plan.readonly,
    discard: "unmap",
    file,
  };
}

/**
 * What `-device` and `device_add` take.
 * @param device its device number
 * @param bus QEMU's name of the bus; default the root bus
 */
export function virtioDevice(plan: DevicePlan, device: number, bus?: string): Properties {
  const { id, properties } = plan;
  const place = { ...(bus === undefined ? {} : { bus }), addr: deviceNumber(device) };
  return { driver: "virtio-blk-pci", id, drive: id, ...place, ...properties };
}

/** A device number as QEMU's property `addr` takes it. */
export function deviceNumber(device: number): string {
  return `0x${device.toString(16)}`;
}

// How QEMU is told of a device, on its command line and by QMP alike.

import type { Properties } from "./device-properties.js";
import type { BlkPlan, DevicePlan, NetPlan } from "./plan.js";

/** What `-blockdev` and `blockdev-add` take: the node that a device's medium becomes, named as the device. */
export function blockNode(plan: BlkPlan, filename: string): Readonly<Record<string, unknown>> {
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

/** QEMU's id of what is behind a network device: NIC and netdev share one list of names. */
export function netdevId({ id }: NetPlan): string {
  return `${id}-wire`;
}

/**
 * What `-netdev` and `netdev_add` take.
 * @param fd the socket to this process, where the wire is one
 */
export function netdev(plan: NetPlan, fd?: number): Readonly<Record<string, unknown>> {
  const { wire } = plan;
  // Connected at once. A netdev `stream` is only some time after the launch, even to a descriptor, and loses what is sent before.
  const toUs = { type: "socket", fd: String(fd) };
  return { ...(typeof wire === "object" ? wire : toUs), id: netdevId(plan) };
}

/**
 * What `-device` and `device_add` take.
 * @param device its device number
 * @param bus QEMU's name of the bus; default the root bus
 */
export function virtioDevice(plan: DevicePlan, device: number, bus?: string): Properties {
  const { id, properties } = plan;
  const place = { ...(bus === undefined ? {} : { bus }), addr: deviceNumber(device) };
  return plan.kind === "blk"
    ? { driver: "virtio-blk-pci", id, drive: id, ...place, ...properties }
    : { driver: "virtio-net-pci", id, netdev: netdevId(plan), ...place, ...properties };
}

/** A device number as QEMU's property `addr` takes it. */
export function deviceNumber(device: number): string {
  return `0x${device.toString(16)}`;
}

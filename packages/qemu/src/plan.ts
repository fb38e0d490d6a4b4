// From device specifications to what QEMU's command line will say, checked before anything is started.
import {
  DEFAULT_BLK_SIZE,
  type DeviceSpec,
  type PciAddress,
  parseDeviceSpec,
  VirtioFault,
} from "@virtio/core";
import { blkProperties, type Properties } from "./blk.js";
import { findImage, type Image } from "./image.js";

/** One device, ready for the command line. */
export interface DevicePlan {
  /** `blk0`: QEMU's id of the device and of its block node. */
  readonly id: string;
  readonly spec: DeviceSpec;
  /** How messages call it: `blk,file=disk.img`, `blk0`. */
  readonly label: string;
  readonly format: "raw" | "qcow2";
  readonly readonly: boolean;
  readonly properties: Properties;
  /** An image, or bytes of memory. */
  readonly medium: Image | { readonly size: number };
}

/** A device of the machine, and where it is. */
export interface PlacedDevice {
  readonly plan: DevicePlan;
  readonly address: PciAddress;
}

/**
 * Reads and checks the devices of a machine. Ids count for each kind: blk0, blk1, …
 * @throws VirtioFault INVALID, NOT_FOUND, READ_ONLY, BUSY
 */
export async function planDevices(
  devices: readonly (string | DeviceSpec)[],
  cwd: string,
): Promise<readonly DevicePlan[]> {
  const plans: DevicePlan[] = [];
  for (const device of devices)
    plans.push(await planDevice(device, { id: `blk${plans.length}`, cwd, others: plans }));
  return plans;
}

/**
 * Reads and checks one device.
 * @throws as `planDevices`
 */
export async function planDevice(
  device: string | DeviceSpec,
  at: { readonly id: string; readonly cwd: string; readonly others: readonly DevicePlan[] },
): Promise<DevicePlan> {
  const spec = typeof device === "string" ? parseDeviceSpec(device) : device;
  if (spec.kind !== "blk")
    throw new VirtioFault(
      "INVALID",
      `no such kind of device '${String(spec.kind)}' (there is: blk)`,
    );
  const plan = await planBlk(spec, at.id, at.cwd);
  refuseSharedImage(plan, at.others);
  return plan;
}

async function planBlk(spec: DeviceSpec, id: string, cwd: string): Promise<DevicePlan> {
  const { file, size = DEFAULT_BLK_SIZE, format = "raw", readonly = false } = spec;
  const label = typeof file === "string" ? `blk,file=${file}` : id;
  const properties = blkProperties(spec, label);
  const medium =
    file === undefined ? { size } : await findImage(file, { device: label, cwd, readonly });
  return { id, spec, label, format, readonly, properties, medium };
}

/** QEMU would say that another process holds the lock, which is not so. */
function refuseSharedImage(plan: DevicePlan, others: readonly DevicePlan[]): void {
  const { medium } = plan;
  if (!("path" in medium)) return;
  const other = others.find((o) => "path" in o.medium && o.medium.path === medium.path);
  if (other !== undefined && !(other.readonly && plan.readonly))
    throw new VirtioFault(
      "BUSY",
      `${plan.label}: ${other.id} has the same file: give each its own, or both readonly=on`,
    );
}

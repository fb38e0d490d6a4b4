// From device specifications to what QEMU's command line will say, checked before anything is started.
import {
  type BlkSpec,
  DEFAULT_BLK_SIZE,
  type DeviceSpec,
  type PciAddress,
  parseDeviceSpec,
  VirtioFault,
} from "@virtio/core";
import { blkProperties } from "./blk.js";
import { type Properties, refuseFor } from "./device-properties.js";
import { findImage, findSocket, type Image } from "./image.js";
import { netProperties, type QemuNetSpec, type Wire, wireOf } from "./net.js";

/** A device as one says which: in the language of specifications, or as an object. */
export type QemuDeviceSpec = DeviceSpec | QemuNetSpec;

interface Plan {
  /** `blk0`: QEMU's id of the device, and of its block node. */
  readonly id: string;
  /** How messages call it: `blk,file=disk.img`, `blk0`. */
  readonly label: string;
  readonly properties: Properties;
}

/** A block device, ready for the command line. */
export interface BlkPlan extends Plan {
  readonly kind: "blk";
  readonly spec: BlkSpec;
  readonly format: "raw" | "qcow2";
  readonly readonly: boolean;
  /** An image, or bytes of memory. */
  readonly medium: Image | { readonly size: number };
}

/** A network device, ready for the command line. */
export interface NetPlan extends Plan {
  readonly kind: "net";
  readonly spec: QemuNetSpec;
  readonly wire: Wire;
}

/** One device, ready for the command line. */
export type DevicePlan = BlkPlan | NetPlan;

/** The descriptor that QEMU inherits for a device: a file in memory of so many bytes, a socket to this process, or none. */
export function inherits(plan: DevicePlan): { readonly size: number } | "socket" | null {
  if (plan.kind === "net") return typeof plan.wire === "string" ? "socket" : null;
  return "size" in plan.medium ? plan.medium : null;
}

/** A device of the machine, and where it is. */
export interface PlacedDevice {
  readonly plan: DevicePlan;
  readonly address: PciAddress;
}

/** Ids of devices, which count for each kind: blk0, net0, blk1. None is used twice. */
export class DeviceIds {
  readonly #taken = new Map<string, number>();

  /** The id of the next device of a kind. */
  next(kind: DevicePlan["kind"]): string {
    return `${kind}${this.#taken.get(kind) ?? 0}`;
  }

  /** A device has it. */
  take(kind: DevicePlan["kind"]): void {
    this.#taken.set(kind, (this.#taken.get(kind) ?? 0) + 1);
  }
}

/**
 * Reads and checks the devices of a machine.
 * @throws VirtioFault INVALID, NOT_FOUND, READ_ONLY, BUSY
 */
export async function planDevices(
  devices: readonly (string | QemuDeviceSpec)[],
  cwd: string,
  ids: DeviceIds = new DeviceIds(),
): Promise<readonly DevicePlan[]> {
  const plans: DevicePlan[] = [];
  for (const device of devices) {
    const plan = await planDevice(device, { ids, cwd, others: plans });
    ids.take(plan.kind);
    plans.push(plan);
  }
  return plans;
}

/**
 * Reads and checks one device.
 * @throws as `planDevices`
 */
export async function planDevice(
  device: string | QemuDeviceSpec,
  at: { readonly ids: DeviceIds; readonly cwd: string; readonly others: readonly DevicePlan[] },
): Promise<DevicePlan> {
  const spec = typeof device === "string" ? parseDeviceSpec(device) : device;
  const { ids, cwd, others } = at;
  if (spec.kind === "net") return planNet(spec, ids.next("net"), cwd);
  if (spec.kind !== "blk") throw noSuchKind(spec);
  const plan = await planBlk(spec, ids.next("blk"), cwd);
  refuseSharedImage(plan, others);
  return plan;
}

function noSuchKind({ kind }: { readonly kind: string }): VirtioFault {
  return new VirtioFault("INVALID", `no such kind of device '${kind}' (there is: blk, net)`);
}

async function planBlk(spec: BlkSpec, id: string, cwd: string): Promise<BlkPlan> {
  const { file, size = DEFAULT_BLK_SIZE, format = "raw", readonly = false } = spec;
  const label = typeof file === "string" ? `blk,file=${file}` : id;
  const properties = blkProperties(spec, label);
  const medium =
    file === undefined ? { size } : await findImage(file, { device: label, cwd, readonly });
  return { kind: "blk", id, spec, label, format, readonly, properties, medium };
}

async function planNet(spec: QemuNetSpec, id: string, cwd: string): Promise<NetPlan> {
  const { backend } = spec;
  const label = typeof backend === "string" ? `net,backend=${backend}` : id;
  const properties = netProperties(spec, label);
  const wire = wireOf(spec, refuseFor(label));
  if (typeof backend === "string" && backend.startsWith("stream:"))
    await findSocket(backend.slice("stream:".length), { device: label, cwd });
  return { kind: "net", id, spec, label, properties, wire };
}

/** QEMU would say that another process holds the lock, which is not so. */
function refuseSharedImage(plan: BlkPlan, others: readonly DevicePlan[]): void {
  const { medium } = plan;
  if (!("path" in medium)) return;
  const other = others
    .filter((o) => o.kind === "blk")
    .find((o) => "path" in o.medium && o.medium.path === medium.path);
  if (other !== undefined && !(other.readonly && plan.readonly))
    throw new VirtioFault(
      "BUSY",
      `${plan.label}: ${other.id} has the same file: give each its own, or both readonly=on`,
    );
}

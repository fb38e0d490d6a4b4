// From device specifications to what QEMU's command line will say, checked before anything is started.
import { type DeviceSpec, type PciAddress, parseDeviceSpec, VirtioFault } from "@virtio/core";
import { planBalloon } from "./balloon.js";
import { planBlk } from "./blk.js";
import { planConsole } from "./console.js";
import type { Properties } from "./device-properties.js";
import type { Medium } from "./medium.js";
import { planNet, type QemuNetSpec } from "./net.js";
import type { Part } from "./parts.js";
import { planScsi } from "./scsi.js";

/** A device as one says which: in the language of specifications, or as an object. */
export type QemuDeviceSpec = DeviceSpec | QemuNetSpec;

/** A descriptor that QEMU inherits for a device: a file in memory of so many bytes, or a socket to this process. */
type Inherited = { readonly size: number } | "socket";

/** One device, ready for the command line. */
export interface DevicePlan {
  readonly kind: QemuDeviceSpec["kind"];
  /** `blk0`: QEMU's id of the device. */
  readonly id: string;
  /** How messages call it: `blk,file=disk.img`, `blk0`. */
  readonly label: string;
  readonly spec: QemuDeviceSpec;
  /** What `-device` and `device_add` take, but for the id and the place. */
  readonly device: Properties;
  readonly inherits: readonly Inherited[];
  /**
   * What QEMU makes before the device.
   * @param inherited for each of `inherits` the path of the file, or the number of the descriptor
   */
  readonly before: (inherited: readonly string[]) => readonly Part[];
  /** What QEMU makes after the device, on its bus. */
  readonly after: readonly Part[];
  /** Whether its sockets give back what they get, instead of being their owner's. */
  readonly loop: boolean;
  /** QEMU's id of a network back end that it connects to a socket after it was made. */
  readonly stream: string | null;
  /** What a disk keeps its bytes in. */
  readonly medium: Medium | null;
}

/** What the plan of one kind says; the rest is common. */
export type KindPlan = Pick<DevicePlan, "label" | "device"> &
  Partial<Pick<DevicePlan, "inherits" | "before" | "after" | "loop" | "stream" | "medium">>;

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
  const id = ids.next(spec.kind);
  const plan = {
    ...{
      kind: spec.kind,
      id,
      spec,
      inherits: [],
      before: () => [],
      after: [],
      loop: false,
      stream: null,
      medium: null,
    },
    ...(await planKind(spec, id, cwd)),
  };
  refuseSharedImage(plan, others);
  return plan;
}

function planKind(spec: QemuDeviceSpec, id: string, cwd: string): KindPlan | Promise<KindPlan> {
  switch (spec.kind) {
    case "blk":
      return planBlk(spec, id, cwd);
    case "net":
      return planNet(spec, id, cwd);
    case "scsi":
      return planScsi(spec, id, cwd);
    case "balloon":
      return planBalloon(spec, id);
    case "console":
      return planConsole(spec, id);
    default:
      throw noSuchKind(spec);
  }
}

function noSuchKind({ kind }: { readonly kind: string }): VirtioFault {
  return new VirtioFault(
    "INVALID",
    `no such kind of device '${kind}' (there is: blk, net, scsi, balloon, console)`,
  );
}

/**
 * The device itself.
 * @param device its device number
 * @param bus QEMU's name of the bus; default the root bus
 */
export function deviceAt(plan: DevicePlan, device: number, bus?: string): Part {
  const place = { ...(bus === undefined ? {} : { bus }), addr: deviceNumber(device) };
  return { kind: "device", options: { ...plan.device, id: plan.id, ...place } };
}

/** A device number as QEMU's property `addr` takes it. */
export function deviceNumber(device: number): string {
  return `0x${device.toString(16)}`;
}

/** QEMU would say that another process holds the lock, which is not so. */
function refuseSharedImage({ label, medium }: DevicePlan, others: readonly DevicePlan[]): void {
  if (medium === null || !("path" in medium.store)) return;
  const { path } = medium.store;
  const other = others.find(
    (plan) =>
      plan.medium !== null && "path" in plan.medium.store && plan.medium.store.path === path,
  );
  if (other !== undefined && !(other.medium?.readonly === true && medium.readonly))
    throw new VirtioFault(
      "BUSY",
      `${label}: ${other.id} has the same file: give each its own, or both readonly=on`,
    );
}

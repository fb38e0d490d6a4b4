// Which machine: `embedded`, or `qemu,type=pc,ncpus=4`.
import {
  type DeviceSpec,
  deviceKinds,
  type Log,
  type Machine,
  type MediumOptions,
  type NetBackendName,
  parseDeviceSpec,
  VirtioFault,
} from "@virtio/core";
import { embedded } from "@virtio/hypervisor";
import { openImage, openNetBackend } from "@virtio/hypervisor/node";

/** What machine to run on. */
export interface MachineSpec {
  readonly kind: "embedded" | "qemu";
  /** CPUs of the guest: hw.ncpu. Default 8. */
  readonly cpus?: number;
  /** QEMU's machine type; default q35. Not on the embedded machine. */
  readonly type?: "q35" | "pc";
  /** How devices interrupt; default intx on QEMU. Not on the embedded machine, which delivers every kind. */
  readonly interrupts?: "intx" | "msix";
}

/** What a machine is made with, besides its kind. */
export interface MachineOptions {
  readonly devices: readonly DeviceSpec[];
  /** Folder that image files, captures and sockets start from. */
  readonly cwd: string;
  /** Lines about the machine itself. */
  readonly log: Log;
  /** Ends the start of a machine that takes long. */
  readonly signal?: AbortSignal | undefined;
}

/** With no `--device`: one of each kind. */
export const defaultDevices: readonly DeviceSpec[] = deviceKinds.map(parseDeviceSpec);

const choices = { type: ["q35", "pc"], interrupts: ["intx", "msix"] } as const;
const CPUS_MAX = 1024;

/**
 * Reads `--machine`.
 * @throws VirtioFault INVALID, naming what is wrong and what would be right
 */
export function parseMachineSpec(text: string): MachineSpec {
  const refuse = (what: string): never => {
    throw new VirtioFault("INVALID", `machine '${text}': ${what}`);
  };
  const [kind = "", ...pairs] = text.split(",");
  if (kind !== "embedded" && kind !== "qemu")
    return refuse(`no such machine '${kind}' (there is: embedded, qemu)`);
  const keys = kind === "qemu" ? ["type", "ncpus", "interrupts"] : ["ncpus"];
  const given: { cpus?: number; type?: "q35" | "pc"; interrupts?: "intx" | "msix" } = {};
  const oneOf = <T extends string>(words: readonly T[], key: string, value: string): T =>
    words.find((word) => word === value) ??
    refuse(`${key}=${value}: '${value}' is not one of ${words.join(", ")}`);
  for (const pair of pairs) {
    const [, key = "", value = ""] = /^(\w+)=(.*)$/s.exec(pair) ?? [];
    if (key === "") refuse(`'${pair}' is not of the form key=value`);
    if (!keys.includes(key))
      refuse(`unknown key '${key}' (the machine ${kind} takes: ${keys.join(", ")})`);
    if (key === "type") given.type = oneOf(choices.type, key, value);
    else if (key === "interrupts") given.interrupts = oneOf(choices.interrupts, key, value);
    else {
      given.cpus = /^\d{1,9}$/.test(value) ? Number(value) : 0;
      if (given.cpus < 1 || given.cpus > CPUS_MAX)
        refuse(`ncpus=${value}: '${value}' is not a whole number from 1 to ${CPUS_MAX}`);
    }
  }
  return { kind, ...given };
}

/**
 * Starts a machine.
 * @throws VirtioFault what it cannot honour, a missing or locked image, a missing QEMU
 */
export async function openMachine(spec: MachineSpec, options: MachineOptions): Promise<Machine> {
  const { devices, cwd, log, signal } = options;
  const cpus = spec.cpus === undefined ? {} : { cpus: spec.cpus };
  if (spec.kind === "embedded") {
    const open = (medium: MediumOptions): ReturnType<typeof openImage> => openImage(medium, cwd);
    const openNet = (backend: NetBackendName): ReturnType<typeof openNetBackend> =>
      openNetBackend(backend, cwd);
    return embedded({ devices, log, open, openNet, ...cpus });
  }
  const { qemu } = await importQemu();
  return qemu({
    devices,
    cwd,
    log,
    ...cpus,
    ...(spec.type === undefined ? {} : { type: spec.type }),
    ...(spec.interrupts === undefined ? {} : { interrupts: spec.interrupts }),
    ...(signal === undefined ? {} : { signal }),
  });
}

/** The package of the QEMU machine is optional: it is for Linux. */
async function importQemu(): Promise<typeof import("@virtio/qemu")> {
  try {
    return await import("@virtio/qemu");
  } catch (cause) {
    const missing =
      cause instanceof Error && "code" in cause && cause.code === "ERR_MODULE_NOT_FOUND";
    const why = missing
      ? "it is not installed (npm install @virtio/qemu)"
      : `it does not load here: ${cause instanceof Error ? cause.message : String(cause)}`;
    throw new VirtioFault(
      "UNSUPPORTED",
      `the machine qemu needs the package @virtio/qemu, and ${why}`,
      {
        cause,
      },
    );
  }
}

// The command line of QEMU: no path in it but the images', nothing that another process could take away in between.
import { VirtioFault } from "@virtio/core";
import { optionOf, type Part } from "./parts.js";
import { type DevicePlan, deviceAt, deviceNumber, type PlacedDevice } from "./plan.js";
import { FIRST_DESCRIPTOR } from "./process.js";

/** What the command line says. */
export interface CommandLineOptions {
  readonly type: "q35" | "pc";
  /** Bytes of guest memory, a multiple of 1 MiB. */
  readonly memory: number;
  readonly devices: readonly DevicePlan[];
  /** Empty root ports, for devices to be plugged into. */
  readonly rootPorts: number;
  /** More arguments, behind all others. */
  readonly args: readonly string[];
}

/** A command line, and where messages of QEMU about a part of it belong. */
export interface CommandLine {
  readonly args: readonly string[];
  /** `-device {…}`, as QEMU repeats it in its messages, to the device's label. */
  readonly labels: ReadonlyMap<string, string>;
  /** The devices, and where they are. */
  readonly devices: readonly PlacedDevice[];
  /** Device numbers of the root ports, which QEMU knows as rp0, rp1 and so on. */
  readonly rootPorts: readonly number[];
}

/** Descriptors in the new process: guest memory, then firmware, then what devices inherit. */
const MEMORY_FD = FIRST_DESCRIPTOR;
const FIRMWARE_FD = FIRST_DESCRIPTOR + 1;
const FIRST_DEVICE_FD = FIRST_DESCRIPTOR + 2;

/** Device numbers on bus 0 that the chipset leaves free: first and last. */
const FREE_SLOTS = { q35: [1, 30], pc: [2, 31] } as const;

const path = (fd: number): string => `/proc/self/fd/${fd}`;

/**
 * Builds the command line. Devices are given as JSON, in which a comma in a name is just a comma.
 *
 * Block devices cache write-back: a completed write is in this computer's page cache, and only FLUSH brings it to the disk.
 * Processors: one, asleep. `accel=tcg`, as KVM's interrupt controller would swallow MSI-X messages to guest memory. No PIT: its
 * interrupt would come as 36 lines a second, which an idle machine would have to read.
 */
export function commandLine(options: CommandLineOptions): CommandLine {
  const { type, memory, devices, args } = options;
  const [first, last] = FREE_SLOTS[type];
  const behindDevices = first + devices.length;
  const placed = devices.map((plan, i) => {
    return { plan, address: { domain: 0, bus: 0, device: first + i, function: 0 } };
  });
  const rootPorts = Array.from({ length: options.rootPorts }, (_, i) => behindDevices + i);
  if (behindDevices + rootPorts.length - 1 > last)
    throw new VirtioFault(
      "NO_SPACE",
      `qemu: ${devices.length} devices and ${rootPorts.length} root ports: a ${type} has ${last - first + 1} slots`,
    );
  const labels = new Map<string, string>();
  const option = (part: Part, label: string): readonly string[] => {
    const [name, value] = optionOf(part);
    labels.set(`${name} ${value}`, label);
    return [name, value];
  };
  let nextFd = FIRST_DEVICE_FD;
  const deviceArgs = placed.flatMap(({ plan, address }) => {
    const inherited = plan.inherits.map((what) => {
      const fd = nextFd++;
      return what === "socket" ? String(fd) : path(fd);
    });
    const parts = [...plan.before(inherited), deviceAt(plan, address.device), ...plan.after];
    return parts.flatMap((part) => option(part, plan.label));
  });
  const rootPortArgs = rootPorts.flatMap((slot, i) => {
    // A chassis of its own: the pair of chassis and slot number has to differ.
    const port = {
      driver: "pcie-root-port",
      id: `rp${i}`,
      chassis: i + 1,
      addr: deviceNumber(slot),
    };
    return option({ kind: "device", options: port }, `root port rp${i}`);
  });
  return {
    labels,
    devices: placed,
    rootPorts,
    args: [
      ...["-machine", `${type},accel=tcg,memory-backend=ram0,pit=off`],
      ...[
        "-object",
        `memory-backend-file,id=ram0,size=${memory},mem-path=${path(MEMORY_FD)},share=on`,
      ],
      ...["-m", `${memory / 2 ** 20}M`, "-smp", "1"],
      ...["-display", "none", "-nodefaults", "-no-user-config", "-bios", path(FIRMWARE_FD)],
      ...[
        "-chardev",
        "socket,id=qtest0,fd=3",
        "-object",
        "qtest,id=qtest1,chardev=qtest0,log=none",
      ],
      ...["-chardev", "socket,id=qmp0,fd=4", "-mon", "chardev=qmp0,mode=control"],
      ...deviceArgs,
      ...rootPortArgs,
      ...args,
    ],
  };
}

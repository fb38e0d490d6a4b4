// The command line of QEMU: no path in it but the images', nothing that another process could take away in between.
import type { DevicePlan } from "./plan.js";
import { FIRST_DESCRIPTOR } from "./process.js";

/** What the command line says. */
export interface CommandLineOptions {
  readonly type: "q35" | "pc";
  /** Bytes of guest memory, a multiple of 1 MiB. */
  readonly memory: number;
  readonly devices: readonly DevicePlan[];
  /** More arguments, behind all others. */
  readonly args: readonly string[];
}

/** A command line, and where messages of QEMU about a part of it belong. */
export interface CommandLine {
  readonly args: readonly string[];
  /** `-device {…}`, as QEMU repeats it in its messages, to the device's label. */
  readonly labels: ReadonlyMap<string, string>;
}

/** Descriptors in the new process: guest memory, then firmware, then a memfd for each device without an image. */
const MEMORY_FD = FIRST_DESCRIPTOR;
const FIRMWARE_FD = FIRST_DESCRIPTOR + 1;
const FIRST_DISK_FD = FIRST_DESCRIPTOR + 2;

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
  const labels = new Map<string, string>();
  const option = (name: string, value: object, label: string): readonly string[] => {
    const json = JSON.stringify(value);
    labels.set(`${name} ${json}`, label);
    return [name, json];
  };
  let nextFd = FIRST_DISK_FD;
  const deviceArgs = devices.flatMap((plan) => {
    const { id, label, medium } = plan;
    // Nobody else can open a memfd: its lock says nothing.
    const file =
      "path" in medium
        ? { driver: medium.driver, filename: medium.path }
        : { driver: "file", filename: path(nextFd++), locking: "off" };
    const node = {
      driver: plan.format,
      "node-name": id,
      "read-only": plan.readonly,
      discard: "unmap",
      file,
    };
    return [
      ...option("-blockdev", node, label),
      ...option("-device", { driver: "virtio-blk-pci", id, drive: id, ...plan.properties }, label),
    ];
  });
  return {
    labels,
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
      ...args,
    ],
  };
}

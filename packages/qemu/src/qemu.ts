// `qemu()`: from options to a running machine.
import { closeSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { deviceKinds, type Log, VirtioFault } from "@virtio/core";
import { createMemfd, SharedMemory } from "@virtio/shm";
import { type Chipset, Pc, Q35 } from "./chipset.js";
import { commandLine } from "./command-line.js";
import { Connection } from "./connection.js";
import { findExecutable } from "./executable.js";
import { haltFirmware } from "./firmware.js";
import type { HotPlugBus } from "./hot-plug.js";
import { InterruptLines } from "./interrupt-lines.js";
import { launchFailure } from "./launch-failure.js";
import { type QemuMachine, RunningMachine } from "./machine.js";
import type { InterruptMode } from "./pci-interrupts.js";
import { DeviceIds, type DevicePlan, planDevices, type QemuDeviceSpec } from "./plan.js";
import { type ProcessOptions, QemuProcess } from "./process.js";
import type { QmpClient } from "./qmp.js";
import type { QtestClient } from "./qtest.js";
import { streamConnected } from "./stream-wire.js";
import { NodeTaskQueue } from "./tasks.js";

/** Options of {@link qemu}. */
export interface QemuOptions {
  /** Default one of each kind. */
  readonly devices?: readonly (string | QemuDeviceSpec)[];
  /** QEMU's machine type. Default q35. */
  readonly type?: "q35" | "pc";
  /** Empty root ports of a q35, for `machine.plug`. Default 0. */
  readonly rootPorts?: number;
  /** `machine.cpus`. Default 8. QEMU itself runs one CPU, asleep: the drivers here are the guest. */
  readonly cpus?: number;
  /** Bytes of guest memory: a multiple of 1 MiB, 4 MiB to 2 GiB. Default 128 MiB. */
  readonly memory?: number;
  /**
   * What reaches drivers. Default intx, which makes events. Messages land in guest memory, which is looked at from the event loop:
   * slower to notice.
   */
  readonly interrupts?: InterruptMode;
  /** Folder that relative image files start from. Default the process's. */
  readonly cwd?: string;
  /** More arguments for QEMU, for tests. */
  readonly args?: readonly string[];
  /** QEMU's program: a path, or a name on the PATH. Default qemu-system-x86_64. */
  readonly binary?: string;
  /** Milliseconds after which a QEMU that does not answer a request is killed. Default 10 000. */
  readonly commandTimeout?: number;
  /** Gets lines about the machine itself: stuck interrupts, what QEMU writes to standard error. Default nobody. */
  readonly log?: Log;
  /** Ends the launch, with the signal's reason; not the machine that came of it. */
  readonly signal?: AbortSignal;
}

/** Milliseconds from start to answering. QEMU needs 30 to 60 on an idle computer. */
const LAUNCH_TIMEOUT_MS = 30_000;

const MIB = 2 ** 20;

/**
 * Starts QEMU with these devices and no guest system: drivers here are its guest. Linux only.
 *
 * @throws VirtioFault INVALID (options, device specifications, what QEMU refuses), NOT_FOUND (no QEMU, no image), READ_ONLY, BUSY
 * (an image is locked), UNSUPPORTED (not Linux), OUT_OF_MEMORY, TIMED_OUT, IO; the signal's reason when it is aborted
 */
export async function qemu(options: QemuOptions = {}): Promise<QemuMachine> {
  const { memory: length = 128 * MIB, cpus = 8, cwd = ".", signal } = options;
  const { type = "q35", interrupts = "intx", rootPorts = 0, log = () => {} } = options;
  check(type === "q35" || type === "pc", `machine type '${String(type)}' is not q35 or pc`);
  check(
    interrupts === "intx" || interrupts === "msix",
    `interrupts '${String(interrupts)}' is not intx or msix`,
  );
  check(
    Number.isInteger(rootPorts) && rootPorts >= 0,
    `rootPorts ${rootPorts} is not a whole number from 0`,
  );
  check(type === "q35" || rootPorts === 0, "a pc has no root ports: devices go onto bus 0");
  check(Number.isInteger(cpus) && cpus >= 1, `cpus ${cpus} is not a whole number from 1`);
  check(
    length % MIB === 0 && length >= 4 * MIB && length <= 2048 * MIB,
    `memory of ${length} bytes is not a multiple of 1 MiB from 4 MiB to 2 GiB`,
  );
  signal?.throwIfAborted();
  const folder = resolve(cwd);
  const ids = new DeviceIds();
  const plans = await planDevices(options.devices ?? deviceKinds, folder, ids);
  const executable = await findQemu(options.binary ?? "qemu-system-x86_64");
  const args = options.args ?? [];
  const line = commandLine({ type, memory: length, devices: plans, rootPorts, args });
  const tasks = new NodeTaskQueue();
  const lines = new InterruptLines(tasks, log);
  const memory = SharedMemory.create("virtio-guest", length);
  let connection: Connection | undefined;
  try {
    const process = await withDescriptors(memory, plans, (descriptors) =>
      QemuProcess.start({
        executable,
        args: line.args,
        descriptors,
        cwd: folder,
        onStderr: (text) => log(`qemu: ${text}`),
      }),
    );
    connection = new Connection(process, {
      onInterrupt: (irq, level) => lines.changed(irq, level),
      timeoutMs: options.commandTimeout,
    });
    const chipset = type === "q35" ? new Q35(connection.qtest) : new Pc(connection.qtest);
    const version = await launched(connection, chipset, line.labels, signal);
    for (const plan of plans) await streamConnected(connection.qmp, plan);
    const hotPlugBuses = type === "pc" ? PC_BUSES : await portBuses(connection.qmp, line.rootPorts);
    const made = { connection, memory, tasks, lines, chipset, interrupts, log };
    const said = { cpus, version, devices: line.devices, hotPlugBuses, cwd: folder, ids };
    const machine = new RunningMachine({ ...made, ...said });
    await machine.followHotPlug();
    return machine;
  } catch (cause) {
    connection?.abandon(new VirtioFault("CLOSED", "the launch failed", { cause }));
    memory.release();
    throw cause;
  }
}

function check(holds: boolean, what: string): void {
  if (!holds) throw new VirtioFault("INVALID", `qemu: ${what}`);
}

async function findQemu(binary: string): Promise<string> {
  const found = await findExecutable(binary);
  if (found === undefined)
    throw new VirtioFault(
      "NOT_FOUND",
      `QEMU is not installed: no '${binary}' ${binary.includes("/") ? "there" : "on the PATH"} (Debian, Ubuntu: apt-get install qemu-system-x86; Fedora: dnf install qemu-system-x86; Homebrew: brew install qemu)`,
    );
  return found;
}

/** Makes the files that QEMU inherits, and closes this side's descriptors when it has them. */
async function withDescriptors(
  memory: SharedMemory,
  plans: readonly DevicePlan[],
  start: (descriptors: ProcessOptions["descriptors"]) => Promise<QemuProcess>,
): Promise<QemuProcess> {
  const firmware = haltFirmware();
  const opened: number[] = [];
  try {
    const open = (name: string, length: number): number => {
      const fd = createMemfd(name, length);
      opened.push(fd);
      return fd;
    };
    const firmwareFd = open("virtio-firmware", firmware.length);
    writeSync(firmwareFd, firmware);
    const devices = plans.flatMap(({ id, inherits }) =>
      inherits.map((what) => (what === "socket" ? what : open(`virtio-${id}`, what.size))),
    );
    return await start([memory.fd, firmwareFd, ...devices]);
  } finally {
    for (const fd of opened) closeSync(fd);
  }
}

/** Waits until QEMU has made its devices and the chipset is set up; ends it when that fails. @returns QEMU's version */
async function launched(
  connection: Connection,
  chipset: Chipset,
  labels: ReadonlyMap<string, string>,
  signal: AbortSignal | undefined,
): Promise<string> {
  const abort = (): void =>
    connection.abandon(
      new VirtioFault("CLOSED", "the launch was aborted", { cause: signal?.reason }),
    );
  signal?.addEventListener("abort", abort, { once: true });
  if (signal?.aborted) abort();
  try {
    const version = await connection.qmp.negotiate(LAUNCH_TIMEOUT_MS);
    await Promise.all([interceptLines(connection.qtest), chipset.setUp()]);
    return version;
  } catch (error) {
    const own = error instanceof VirtioFault && error.code !== "CLOSED" ? error : undefined;
    connection.abandon(own ?? new VirtioFault("CLOSED", "the launch failed", { cause: error }));
    const ended = await connection.process.ended;
    signal?.throwIfAborted();
    throw own ?? launchFailure(ended, labels);
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

/** The root bus of a pc takes devices. */
const PC_BUSES: readonly HotPlugBus[] = [{ name: "pci.0", devices: 32, select: 0, bridge: null }];

/** The links behind the root ports of a q35. QEMU numbers them for its hot-plug registers; a guest would learn it from ACPI. */
async function portBuses(
  qmp: QmpClient,
  rootPorts: readonly number[],
): Promise<readonly HotPlugBus[]> {
  return Promise.all(
    rootPorts.map(async (device, i) => {
      const name = `rp${i}`;
      const select = await qmp.execute("qom-get", {
        path: `/machine/peripheral/${name}/${name}`,
        property: "acpi-pcihp-bsel",
      });
      if (typeof select !== "number")
        throw new VirtioFault("DEVICE_MISBEHAVED", `qemu: ${name} has no number for hot-plug`);
      return { name, devices: 1, select, bridge: device << 3 };
    }),
  );
}

/** Both machine types have one I/O APIC, and QEMU finds it by this part of its path. */
function interceptLines(qtest: QtestClient): Promise<void> {
  return qtest.interceptInterrupts("ioapic");
}

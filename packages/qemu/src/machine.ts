// The machine: what `qemu()` gives.
import type { Duplex } from "node:stream";
import {
  type DmaMemory,
  DmaWindow,
  type InterruptCounter,
  type Log,
  type Machine,
  type PciAddress,
  type PciBus,
  type TaskQueue,
  VirtioFault,
} from "@virtio/core";
import type { SharedMemory } from "@virtio/shm";
import { ACPI_LINE, type Chipset } from "./chipset.js";
import type { Connection } from "./connection.js";
import { HotPlug, type HotPlugBus } from "./hot-plug.js";
import type { InterruptLines } from "./interrupt-lines.js";
import { MessageWords } from "./message-words.js";
import { QemuPciBus } from "./pci-bus.js";
import type { InterruptMode } from "./pci-interrupts.js";
import type { DeviceIds, PlacedDevice, QemuDeviceSpec } from "./plan.js";
import { Plugging } from "./plugging.js";
import type { QmpClient } from "./qmp.js";
import type { QtestClient } from "./qtest.js";

/** A device of the machine. */
export interface QemuDevice {
  /** QEMU's id of the device, and of its block node: `blk0`, `net0`. */
  readonly id: string;
  /** What was asked for. */
  readonly spec: QemuDeviceSpec;
  readonly address: PciAddress;
}

/**
 * A QEMU process as a machine. While it is open, its sockets keep this process alive.
 *
 * Guest memory stays mapped after `close` for as long as anything refers to its buffer, and is unmapped when that has been
 * collected: a view that a driver still holds reads what was there last, it does not crash.
 */
export interface QemuMachine extends Machine, AsyncDisposable {
  /** The guest's CPUs, as asked for. QEMU itself runs one, which sleeps: the guest is on this side. */
  readonly cpus: number;
  /** One root: bus 0, and the buses behind its bridges, numbered. */
  readonly buses: readonly [{ readonly kind: "pci"; readonly bus: PciBus }];
  /** Those that are there, in the order in which they were asked for. */
  readonly devices: readonly QemuDevice[];
  /** QEMU's control protocol, for what no guest can do: `block_resize`, `query-block`, `x-query-virtio-status`. */
  readonly qmp: QmpClient;
  /** Raw access to the machine's address spaces. */
  readonly qtest: QtestClient;
  /** Process id of QEMU. */
  readonly pid: number;
  /** QEMU's version, `7.2.22`. */
  readonly version: string;
  /** Resolves when QEMU is gone: null after `close`, else what ended it. */
  readonly closed: Promise<VirtioFault | null>;
  /**
   * The wire of a network device made with `backend: "wire"`: what its driver transmits can be read, and what is written is received.
   * Each frame goes as its length, 4 bytes big-endian, and its bytes. QEMU stops transmitting while nobody reads.
   * @param id QEMU's id of the device: `net0`
   * @throws VirtioFault NOT_FOUND
   */
  wire(id: string): Duplex;
  /**
   * The other end of a port of a console made with `backend: "host"`. QEMU stops taking bytes from the driver while nobody reads.
   * @param id QEMU's id of the device: `console0`
   * @throws VirtioFault NOT_FOUND
   */
  port(id: string, number: number): Duplex;
  /**
   * Plugs a device in: on a `pc` into a free slot of bus 0, on a `q35` behind a free root port. When this resolves, `functions()`
   * lists the device and `onChange` was told. Changes take their turns.
   * @returns where it is
   * @throws VirtioFault as `qemu()` for a device; UNSUPPORTED for a q35 without root ports, NO_SPACE when no slot is free, CLOSED,
   * TIMED_OUT
   */
  plug(device: string | QemuDeviceSpec): Promise<PciAddress>;
  /**
   * Asks for a device to be taken out, as QMP's `device_del` does, and waits until it is: `onChange` is told and `gone` of its
   * functions resolves, which ends their drivers' requests; then QEMU ends what the device still did, deletes it, and lets go of
   * its image.
   * @param device its id, or where it is
   * @throws VirtioFault NOT_FOUND, UNSUPPORTED (on a bus that takes no devices), BUSY, CLOSED, TIMED_OUT
   */
  unplug(device: string | PciAddress): Promise<void>;
  /**
   * Ends QEMU: it writes back its caches, as `quit` does, and is killed if that takes more than 10 s. Everything that waits for
   * the machine rejects with CLOSED at once, and `gone` of every function resolves. Drivers flush before. A second call waits for
   * the first.
   */
  close(): Promise<void>;
}

/** What {@link RunningMachine} is made of. */
export interface MachineParts {
  readonly connection: Connection;
  readonly memory: SharedMemory;
  readonly tasks: TaskQueue;
  readonly lines: InterruptLines;
  readonly chipset: Chipset;
  readonly devices: readonly PlacedDevice[];
  /** Buses that take devices while the machine runs. */
  readonly hotPlugBuses: readonly HotPlugBus[];
  readonly interrupts: InterruptMode;
  readonly cpus: number;
  readonly version: string;
  /** Folder that relative image files start from. */
  readonly cwd: string;
  readonly ids: DeviceIds;
  readonly log: Log;
}

/** Driver memory begins behind the first MiB, which holds holes for ROMs. */
const DMA_START = 1 << 20;

/** The machine around a connection that is set up. */
export class RunningMachine implements QemuMachine {
  readonly name = "qemu";
  readonly cpus: number;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly buses: QemuMachine["buses"];
  readonly qmp: QmpClient;
  readonly qtest: QtestClient;
  readonly pid: number;
  readonly version: string;
  readonly closed: Promise<VirtioFault | null>;
  readonly #connection: Connection;
  readonly #chipset: Chipset;
  readonly #lines: InterruptLines;
  readonly #words: MessageWords;
  readonly #bus: QemuPciBus;
  /** Null when no bus takes devices. */
  readonly #hotPlug: HotPlug | null;
  readonly #plugging: Plugging;
  /** By id of the device. */
  readonly #sockets: ReadonlyMap<string, readonly Duplex[]>;

  constructor(parts: MachineParts) {
    const { connection, lines, tasks, chipset, memory, hotPlugBuses, log } = parts;
    const { qtest, qmp, lost } = connection;
    this.cpus = parts.cpus;
    this.tasks = tasks;
    this.version = parts.version;
    this.qmp = qmp;
    this.qtest = qtest;
    this.pid = connection.process.pid;
    this.memory = new DmaWindow(memory.buffer, { base: 0, start: DMA_START, shared: true });
    this.#connection = connection;
    this.#chipset = chipset;
    this.#lines = lines;
    this.#words = new MessageWords(this.memory, tasks);
    const interrupts = { mode: parts.interrupts, lines, words: this.#words };
    const bus = new QemuPciBus(this.memory, tasks, { qtest, chipset, interrupts, lost });
    this.#bus = bus;
    this.buses = [{ kind: "pci", bus }];
    const ports = chipset.hotPlug;
    const hotPlug =
      hotPlugBuses.length === 0
        ? null
        : new HotPlug({ qtest, ports, bus, buses: hotPlugBuses, log });
    this.#hotPlug = hotPlug;
    const { devices, cwd, ids } = parts;
    this.#plugging = new Plugging({ qmp, bus, hotPlug, buses: hotPlugBuses, devices, cwd, ids });
    this.#sockets = socketsOf(connection.process.inherited, devices);
    // A doorbell is the likeliest thing that a message follows.
    qtest.onPost = () => this.#words.wake();
    // A reset of the machine forgets what firmware, which is us, had set up.
    qmp.on("RESET", () => {
      this.#setUpAgain().catch((error: unknown) => log(`qemu: after reset: ${String(error)}`));
    });
    this.closed = connection.ended.then((fault) => {
      this.#lines.stop();
      this.#words.stop();
      memory.release();
      return fault;
    });
  }

  /** Begins to follow what is plugged in and out. Once. @throws VirtioFault CLOSED, TIMED_OUT */
  async followHotPlug(): Promise<void> {
    const hotPlug = this.#hotPlug;
    if (hotPlug === null) return;
    this.#lines.at(ACPI_LINE).join("acpi0", () => hotPlug.serve());
    // What the first walk finds was there all along: what comes later is news.
    await Promise.all([hotPlug.setUp(), this.#bus.functions()]);
  }

  get devices(): readonly QemuDevice[] {
    return this.#plugging.devices.map(({ plan: { id, spec }, address }) => ({ id, spec, address }));
  }

  wire(id: string): Duplex {
    const wire = id.startsWith("net") ? this.#sockets.get(id)?.[0] : undefined;
    if (wire === undefined)
      throw new VirtioFault("NOT_FOUND", `qemu: no network device '${id}' with backend wire`);
    return wire;
  }

  port(id: string, number: number): Duplex {
    const port = id.startsWith("console") ? this.#sockets.get(id)?.[number] : undefined;
    if (port === undefined)
      throw new VirtioFault(
        "NOT_FOUND",
        `qemu: no port ${number} of a console '${id}' with backend host`,
      );
    return port;
  }

  plug(device: string | QemuDeviceSpec): Promise<PciAddress> {
    return this.#plugging.plug(device);
  }

  unplug(device: string | PciAddress): Promise<void> {
    return this.#plugging.unplug(device);
  }

  interrupts(): readonly InterruptCounter[] {
    return [...this.#lines.counters(), ...this.#words.counters()];
  }

  async close(): Promise<void> {
    await this.#connection.shutdown();
    await this.closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Also numbers the buses, and finds what QEMU took out: a reset carries out what `device_del` asked for. */
  async #setUpAgain(): Promise<void> {
    await this.#chipset.setUp();
    await this.#hotPlug?.setUp();
    await (this.#hotPlug === null ? this.#bus.functions() : this.#hotPlug.look());
  }
}

/** The sockets of the devices that have some, by id; one with backend loop hears itself. */
function socketsOf(
  inherited: readonly Duplex[],
  devices: readonly PlacedDevice[],
): ReadonlyMap<string, readonly Duplex[]> {
  const found = new Map<string, readonly Duplex[]>();
  let next = 0;
  for (const { plan } of devices) {
    const count = plan.inherits.filter((what) => what === "socket").length;
    const sockets = inherited.slice(next, next + count);
    next += count;
    for (const socket of sockets) {
      // A socket ends with QEMU, in whatever way: the machine says so.
      socket.on("error", () => {});
      if (plan.loop) socket.pipe(socket);
    }
    if (!plan.loop) found.set(plan.id, sockets);
  }
  return found;
}

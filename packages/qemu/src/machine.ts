// The machine: what `qemu()` gives.
import {
  type DeviceSpec,
  type DmaMemory,
  DmaWindow,
  type InterruptCounter,
  type Log,
  type Machine,
  type PciBus,
  type TaskQueue,
  type VirtioFault,
} from "@virtio/core";
import type { SharedMemory } from "@virtio/shm";
import type { Chipset } from "./chipset.js";
import type { Connection } from "./connection.js";
import type { InterruptLines } from "./interrupt-lines.js";
import { MessageWords } from "./message-words.js";
import { QemuPciBus } from "./pci-bus.js";
import type { InterruptMode } from "./pci-interrupts.js";
import type { QmpClient } from "./qmp.js";
import type { QtestClient } from "./qtest.js";

/** A device that the machine was started with. */
export interface QemuDevice {
  /** QEMU's id of the device, and of its block node: `blk0`. */
  readonly id: string;
  /** What was asked for. */
  readonly spec: DeviceSpec;
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
  /** One root with one bus, 0. */
  readonly buses: readonly [{ readonly kind: "pci"; readonly bus: PciBus }];
  /** In the order in which they were asked for. */
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
  readonly devices: readonly QemuDevice[];
  readonly interrupts: InterruptMode;
  readonly cpus: number;
  readonly version: string;
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
  readonly devices: readonly QemuDevice[];
  readonly qmp: QmpClient;
  readonly qtest: QtestClient;
  readonly pid: number;
  readonly version: string;
  readonly closed: Promise<VirtioFault | null>;
  readonly #connection: Connection;
  readonly #lines: InterruptLines;
  readonly #words: MessageWords;

  constructor(parts: MachineParts) {
    const { connection, lines, tasks, chipset, memory } = parts;
    this.cpus = parts.cpus;
    this.tasks = tasks;
    this.devices = parts.devices;
    this.version = parts.version;
    this.qmp = connection.qmp;
    this.qtest = connection.qtest;
    this.pid = connection.process.pid;
    this.memory = new DmaWindow(memory.buffer, { base: 0, start: DMA_START, shared: true });
    this.#connection = connection;
    this.#lines = lines;
    this.#words = new MessageWords(this.memory, tasks);
    const interrupts = { mode: parts.interrupts, lines, words: this.#words };
    const { qtest, lost } = connection;
    const bus = new QemuPciBus(this.memory, tasks, { qtest, chipset, interrupts, lost });
    this.buses = [{ kind: "pci", bus }];
    // A doorbell is the likeliest thing that a message follows.
    qtest.onPost = () => this.#words.wake();
    // A reset of the machine forgets what firmware, which is us, had set up.
    this.qmp.on("RESET", () => {
      chipset.setUp().catch((error: unknown) => parts.log(`qemu: after reset: ${String(error)}`));
    });
    this.closed = connection.ended.then((fault) => {
      this.#lines.stop();
      this.#words.stop();
      memory.release();
      return fault;
    });
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
}

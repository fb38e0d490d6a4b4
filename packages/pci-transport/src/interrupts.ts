// How a function's events reach the driver: FreeBSD's order of attempts, among what the machine can deliver.
import { type InterruptKind, type PciFunction, VirtioFault } from "@virtio/core";
import { NO_VECTOR } from "@virtio/core/pci";
import type { Msi, Msix } from "./messages.js";
import type { VectorMap, VirtioRegisters } from "./registers.js";

/** A queue as interrupts see it. */
export interface InterruptQueue {
  readonly index: number;
  readonly name: string;
  /** Whether its used buffers raise interrupts. */
  readonly wanted: boolean;
}

/** What to run. */
export interface InterruptHandlers {
  /** Name of the transport node, for vmstat -i. */
  readonly name: string;
  readonly configChanged: () => Promise<void>;
  readonly queueUsed: (index: number) => void;
  /** One interrupt for everything: reads the ISR and runs what it says; whether it was this function's. */
  readonly service: () => Promise<boolean>;
  /** The function's registers could not be reached. */
  readonly failed: (error: unknown) => void;
}

/** Vector of configuration changes; queues follow. */
const CONFIG_VECTOR = 0;

/** Sets up one function's interrupts, and maps vectors again after a reset. */
export class Interrupts {
  readonly #function: PciFunction;
  readonly #registers: VirtioRegisters;
  readonly #msix: Msix | null;
  readonly #msi: Msi | null;
  /** Which vectors are mapped, while MSI-X is used. */
  #map: VectorMap | null = null;
  #usesMsi = false;

  constructor(fn: PciFunction, registers: VirtioRegisters, msix: Msix | null, msi: Msi | null) {
    this.#function = fn;
    this.#registers = registers;
    this.#msix = msix;
    this.#msi = msi;
  }

  /**
   * MSI-X with a vector for each queue, else one for all queues, else one message for everything, else the line. Each attempt is all
   * or nothing, and undone before the next.
   * @throws VirtioFault NOT_FOUND when every attempt failed
   */
  async setup(
    queues: readonly InterruptQueue[],
    handlers: InterruptHandlers,
    disableMsix: boolean,
  ): Promise<InterruptKind> {
    const { interrupts } = this.#function;
    const wanted = queues.filter((queue) => queue.wanted);
    const attempts: Record<Exclude<InterruptKind, "none">, () => Promise<boolean>> = {
      msix: () => this.#useMsix(wanted, handlers, false),
      "msix-shared": () => this.#useMsix(wanted, handlers, true),
      msi: () => this.#useMsi(handlers),
      intx: async () => {
        await interrupts.line(handlers.name, handlers.service);
        return true;
      },
    };
    for (const kind of ["msix", "msix-shared", "msi", "intx"] as const) {
      if (disableMsix && kind.startsWith("msix")) continue;
      if (interrupts.deliverable.includes(kind) && (await attempts[kind]())) return kind;
    }
    throw new VirtioFault("NOT_FOUND", "exhausted all interrupt allocation attempts", {
      device: handlers.name,
    });
  }

  async #useMsix(
    wanted: readonly InterruptQueue[],
    handlers: InterruptHandlers,
    shared: boolean,
  ): Promise<boolean> {
    const msix = this.#msix;
    const groups = shared
      ? [{ name: handlers.name, queues: wanted }]
      : wanted.map((queue) => ({ name: queue.name, queues: [queue] }));
    if (msix === null || msix.vectors < 1 + groups.length) return false;
    const { interrupts } = this.#function;
    const messages = await Promise.all([
      interrupts.message(CONFIG_VECTOR, handlers.name, () => {
        handlers.configChanged().catch(handlers.failed);
      }),
      ...groups.map(({ name, queues }, i) =>
        interrupts.message(1 + i, name, () => {
          for (const { index } of queues) handlers.queueUsed(index);
        }),
      ),
    ]);
    const map: VectorMap = {
      config: CONFIG_VECTOR,
      queues: groups.flatMap(({ queues }, i) =>
        queues.map(({ index }) => ({ index, vector: 1 + i })),
      ),
    };
    await msix.program(messages);
    this.#map = map;
    // The device has vectors to map once it is on.
    const enabled = msix.enable();
    const [taken] = await Promise.all([this.#registers.mapVectors(map), enabled]);
    if (taken) return true;
    await this.release();
    return false;
  }

  async #useMsi(handlers: InterruptHandlers): Promise<boolean> {
    if (this.#msi === null) return false;
    const message = await this.#function.interrupts.message(0, handlers.name, () => {
      handlers.service().catch(handlers.failed);
    });
    await this.#msi.enable(message);
    this.#usesMsi = true;
    return true;
  }

  /** Maps vectors that a reset unmapped. True when all were taken. */
  async remap(): Promise<boolean> {
    return this.#map === null || this.#registers.mapVectors(this.#map);
  }

  /** Unmaps everything, switches messages off and gives the handlers back. */
  async release(): Promise<void> {
    if (this.#map !== null && this.#msix !== null) {
      await this.#registers.mapVectors({
        config: NO_VECTOR,
        queues: this.#map.queues.map(({ index }) => ({ index, vector: NO_VECTOR })),
      });
      await this.#msix.disable();
    }
    if (this.#usesMsi) await this.#msi?.disable();
    this.forget();
  }

  /** Gives the handlers back and leaves the function alone: it is gone, or does not answer. */
  forget(): void {
    this.#map = null;
    this.#usesMsi = false;
    this.#function.interrupts.release();
  }
}

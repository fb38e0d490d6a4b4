// How a modern function's events reach the driver: FreeBSD's order of attempts, among what the machine can deliver.
import { type InterruptKind, type PciFunction, VirtioFault } from "@virtio/core";
import { CommonConfig, MSIX_ENTRY_SIZE, MsixControl, NO_VECTOR } from "@virtio/core/pci";
import type { ModernRegisters } from "./node.js";
import type { Access } from "./region.js";

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
  readonly configChanged: () => void;
  readonly queueUsed: (index: number) => void;
  /** The shared line: reads the ISR and runs what it says. */
  readonly lineService: () => Promise<boolean>;
}

/** Vector of configuration changes; queues follow. */
const CONFIG_VECTOR = 0;

/** Sets up one function's interrupts, and programs vectors again after a reset. */
export class Interrupts {
  kind: InterruptKind = "none";
  readonly #function: PciFunction;
  readonly #registers: ModernRegisters;
  /** Vector of each queue that wants one. */
  #vectors: readonly { readonly index: number; readonly vector: number }[] = [];

  constructor(fn: PciFunction, registers: ModernRegisters) {
    this.#function = fn;
    this.#registers = registers;
  }

  /**
   * MSI-X with a vector for each queue, else one for all queues, else the line.
   * @throws VirtioFault NOT_FOUND when every attempt failed
   */
  async setup(
    queues: readonly InterruptQueue[],
    handlers: InterruptHandlers,
    disableMsix: boolean,
  ): Promise<InterruptKind> {
    const { deliverable } = this.#function.interrupts;
    const wanted = queues.filter((queue) => queue.wanted);
    for (const kind of ["msix", "msix-shared"] as const) {
      if (disableMsix || !deliverable.includes(kind)) continue;
      const shared = kind === "msix-shared";
      const vectors = wanted.map(({ index }, i) => ({ index, vector: shared ? 1 : 1 + i }));
      const groups = shared
        ? [{ name: handlers.name, queues: wanted }]
        : wanted.map((queue) => ({ name: queue.name, queues: [queue] }));
      if (await this.#tryMsix(vectors, groups, handlers)) {
        this.kind = kind;
        return kind;
      }
    }
    if (deliverable.includes("intx")) {
      await this.#function.interrupts.line(handlers.name, handlers.lineService);
      this.kind = "intx";
      return "intx";
    }
    throw new VirtioFault("NOT_FOUND", "exhausted all interrupt allocation attempts", {
      device: handlers.name,
    });
  }

  async #tryMsix(
    vectors: readonly { readonly index: number; readonly vector: number }[],
    groups: readonly { readonly name: string; readonly queues: readonly InterruptQueue[] }[],
    handlers: InterruptHandlers,
  ): Promise<boolean> {
    const { msix } = this.#registers;
    // All or nothing: fewer vectors than needed is a failure.
    if (msix === null || msix.capability.vectors < 1 + groups.length) return false;
    const { interrupts } = this.#function;
    const messages = [
      await interrupts.message(CONFIG_VECTOR, handlers.name, handlers.configChanged),
    ];
    for (const [i, { name, queues }] of groups.entries())
      messages.push(
        await interrupts.message(1 + i, name, () => {
          for (const queue of queues) handlers.queueUsed(queue.index);
        }),
      );
    await msix.table.exchange(
      messages.flatMap(({ address, data }, i): Access[] => [
        [i * MSIX_ENTRY_SIZE, 4, address],
        [i * MSIX_ENTRY_SIZE + 4, 4, 0],
        [i * MSIX_ENTRY_SIZE + 8, 4, data],
        [i * MSIX_ENTRY_SIZE + 12, 4, 0],
      ]),
    );
    await this.#enableMsix(msix.capability.at, true);
    this.#vectors = vectors;
    if (await this.program()) return true;
    await this.release();
    return false;
  }

  async #enableMsix(at: number, on: boolean): Promise<void> {
    const control = await this.#function.read(at + 2, 2);
    const mask = MsixControl.ENABLE | MsixControl.FUNCTION_MASK;
    await this.#function.write(at + 2, 2, (control & ~mask) | (on ? MsixControl.ENABLE : 0));
  }

  /** Maps events to vectors, and reads each back (virtio 1.4 §4.1.5.1.2.2); a reset unmaps them. True when all were taken. */
  async program(): Promise<boolean> {
    if (this.#vectors.length === 0) return true;
    const read = await this.#registers.common.exchange([
      [CommonConfig.CONFIG_MSIX_VECTOR, 2, CONFIG_VECTOR],
      [CommonConfig.CONFIG_MSIX_VECTOR, 2],
      ...this.#vectors.flatMap(({ index, vector }): Access[] => [
        [CommonConfig.QUEUE_SELECT, 2, index],
        [CommonConfig.QUEUE_MSIX_VECTOR, 2, vector],
        [CommonConfig.QUEUE_MSIX_VECTOR, 2],
      ]),
    ]);
    const expected = [CONFIG_VECTOR, ...this.#vectors.map(({ vector }) => vector)];
    return expected.every((vector, i) => read[i] === vector);
  }

  /** Unmaps everything and gives the handlers back. */
  async release(): Promise<void> {
    const { common, msix } = this.#registers;
    if (this.#vectors.length > 0 && msix !== null) {
      await common.exchange([
        [CommonConfig.CONFIG_MSIX_VECTOR, 2, NO_VECTOR],
        ...this.#vectors.flatMap(({ index }): Access[] => [
          [CommonConfig.QUEUE_SELECT, 2, index],
          [CommonConfig.QUEUE_MSIX_VECTOR, 2, NO_VECTOR],
        ]),
      ]);
      await this.#enableMsix(msix.capability.at, false);
      this.#vectors = [];
    }
    this.#function.interrupts.release();
    this.kind = "none";
  }
}

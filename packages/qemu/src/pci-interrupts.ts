// How the interrupts of one function reach its driver.
import { type PciInterrupts, VirtioFault } from "@virtio/core";
import type { InterruptLines } from "./interrupt-lines.js";
import type { MessageWords } from "./message-words.js";

/** Which interrupts a machine delivers. */
export type InterruptMode = "intx" | "msix";

/** What the interrupts of all functions share. */
export interface InterruptSources {
  readonly mode: InterruptMode;
  readonly lines: InterruptLines;
  readonly words: MessageWords;
}

/** Highest vector of an MSI-X table (PCI 3.0 §6.8.2.3). */
const VECTOR_MAX = 2047;

/** The handlers of one function. */
export class FunctionInterrupts implements PciInterrupts {
  readonly irq: number;
  readonly deliverable: PciInterrupts["deliverable"];
  readonly #function: string;
  readonly #sources: InterruptSources;
  readonly #handlers: (() => void)[] = [];
  readonly #vectors = new Set<number>();

  /** @param irq - the function's line; 0 when it has no interrupt pin */
  constructor(name: string, irq: number, sources: InterruptSources) {
    this.irq = irq;
    this.#function = name;
    this.#sources = sources;
    if (sources.mode === "msix") this.deliverable = ["msix", "msix-shared"];
    else this.deliverable = irq === 0 ? [] : ["intx"];
  }

  /** @throws VirtioFault UNSUPPORTED, INVALID, EXISTS, OUT_OF_MEMORY */
  async message(
    n: number,
    name: string,
    handler: () => void,
  ): Promise<{ readonly address: number; readonly data: number }> {
    this.#refuseUnless("msix");
    if (!Number.isInteger(n) || n < 0 || n > VECTOR_MAX)
      throw new VirtioFault("INVALID", `${this.#function}: vector ${n} is not 0 to ${VECTOR_MAX}`);
    if (this.#vectors.has(n))
      throw new VirtioFault("EXISTS", `${this.#function}: vector ${n} has a handler already`);
    const { address, data, remove } = this.#sources.words.add(name, handler);
    this.#vectors.add(n);
    this.#handlers.push(remove);
    return { address, data };
  }

  /** @throws VirtioFault UNSUPPORTED */
  async line(name: string, service: () => Promise<boolean>): Promise<void> {
    this.#refuseUnless("intx");
    if (this.irq === 0)
      throw new VirtioFault("UNSUPPORTED", `${this.#function}: the function has no interrupt pin`);
    this.#handlers.push(this.#sources.lines.at(this.irq).join(name, service));
  }

  release(): void {
    for (const remove of this.#handlers.splice(0)) remove();
    this.#vectors.clear();
  }

  #refuseUnless(mode: InterruptMode): void {
    if (this.#sources.mode !== mode)
      throw new VirtioFault(
        "UNSUPPORTED",
        `${this.#function}: this machine delivers ${this.#sources.mode} interrupts only: make it with interrupts=${mode}`,
      );
  }
}

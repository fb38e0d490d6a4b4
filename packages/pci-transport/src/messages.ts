// Message-signalled interrupts of one function, as PCI has them (PCI 3.0 §6.8).
import type { PciFunction } from "@virtio/core";
import { MSIX_ENTRY_SIZE, MsiControl, MsixControl } from "@virtio/core/pci";
import type { MsiCapability, MsixCapability } from "./capabilities.js";
import type { Access, Region } from "./region.js";

/** What a vector writes, and where. */
export interface Message {
  readonly address: number;
  readonly data: number;
}

/** MSI-X: a table of messages. */
export class Msix {
  /** Table entries. */
  readonly vectors: number;
  readonly #function: PciFunction;
  readonly #at: number;
  readonly #table: Region;
  /** The control word without the bits that say whether it is on. */
  #control = 0;
  #enabled = false;

  constructor(fn: PciFunction, { at, vectors }: MsixCapability, table: Region) {
    this.vectors = vectors;
    this.#function = fn;
    this.#at = at;
    this.#table = table;
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  /** Writes the entries, unmasked. */
  async program(messages: readonly Message[]): Promise<void> {
    const control = this.#function.read(this.#at + 2, 2);
    const written = this.#table.exchange(
      messages.flatMap(({ address, data }, i): Access[] => [
        [i * MSIX_ENTRY_SIZE, 4, address],
        [i * MSIX_ENTRY_SIZE + 4, 4, 0],
        [i * MSIX_ENTRY_SIZE + 8, 4, data],
        [i * MSIX_ENTRY_SIZE + 12, 4, 0],
      ]),
    );
    const [was] = await Promise.all([control, written]);
    this.#control = was & ~(MsixControl.ENABLE | MsixControl.FUNCTION_MASK);
  }

  /** After program(). */
  async enable(): Promise<void> {
    this.#enabled = true;
    await this.#function.write(this.#at + 2, 2, this.#control | MsixControl.ENABLE);
  }

  async disable(): Promise<void> {
    this.#enabled = false;
    await this.#function.write(this.#at + 2, 2, this.#control);
  }
}

/** MSI, of which one message is used. */
export class Msi {
  readonly #function: PciFunction;
  readonly #capability: MsiCapability;

  constructor(fn: PciFunction, capability: MsiCapability) {
    this.#function = fn;
    this.#capability = capability;
  }

  async enable({ address, data }: Message): Promise<void> {
    const { at, wide } = this.#capability;
    const fn = this.#function;
    const [control] = await Promise.all([
      this.#control(),
      fn.write(at + 4, 4, address),
      ...(wide ? [fn.write(at + 8, 4, 0)] : []),
      fn.write(at + (wide ? 12 : 8), 2, data),
    ]);
    await fn.write(at + 2, 2, control | MsiControl.ENABLE);
  }

  async disable(): Promise<void> {
    await this.#function.write(this.#capability.at + 2, 2, await this.#control());
  }

  /** The control word, off, with one message. */
  async #control(): Promise<number> {
    const control = await this.#function.read(this.#capability.at + 2, 2);
    return control & ~(MsiControl.ENABLE | MsiControl.MULTIPLE_ENABLE);
  }
}

// Rules of a function's interrupts: virtio 1.4 §4.1.4.5, §4.1.5.1.2. The same through the modern and the legacy interface.
import { NO_VECTOR } from "@virtio/core/pci";
import type { RuleBook } from "./rule-book.js";

/** MSI-X as the function has it now. */
export interface ObservedMsix {
  readonly enabled: boolean;
  /** Entries of the table. */
  readonly vectors: number;
}

/** A register that maps events to a vector. */
export type VectorField = "config" | "queue";

/** Watches the vector registers and the ISR status of one function. */
export class InterruptRules {
  readonly #book: RuleBook;
  readonly #device: string;
  readonly #msix: () => ObservedMsix;
  /** Written, and not read back yet. */
  #unread: VectorField | null = null;
  /** The ISR was read while MSI-X was enabled. */
  #readIsr = false;

  constructor(book: RuleBook, device: string, msix: () => ObservedMsix) {
    this.#book = book;
    this.#device = device;
    this.#msix = msix;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#device, what);
  }

  /** The device is reset. */
  reset(): void {
    this.#unread = null;
  }

  vectorRead(field: VectorField): void {
    if (this.#unread !== null)
      this.#check(
        "PCI-MSIX-5",
        this.#unread === field,
        () => `the ${field} vector was read back, not the ${this.#unread} vector`,
      );
    this.#unread = null;
  }

  vectorWrite(field: VectorField, value: number): void {
    this.otherWrite();
    if (value === NO_VECTOR) return;
    const { vectors } = this.#msix();
    this.#check("PCI-MSIX-4", value < vectors, () => `vector ${value} of a table of ${vectors}`);
    this.#unread = field;
  }

  /** Another register was written, which selects no other queue. */
  otherWrite(): void {
    if (this.#unread === null) return;
    const field = this.#unread;
    this.#unread = null;
    this.#check("PCI-MSIX-5", false, () => `the ${field} vector was written and not read back`);
  }

  isrRead(): void {
    if (!this.#msix().enabled) return;
    this.#readIsr = true;
    this.#check("PCI-ISR-1", false, () => "ISR read while MSI-X is enabled");
  }

  /** The function sent an MSI-X message for a queue. */
  messageSent(): void {
    this.#check("PCI-ISR-1", !this.#readIsr, () => "ISR was read while MSI-X is enabled");
  }
}

// How one virtio function interrupts its driver: the ISR status, and the line, the message or the vectors that follow from it
// (virtio 1.4 §4.1.4.5, §4.1.5.3, §4.1.5.4).
import {
  IsrStatus,
  MsixControl,
  NO_VECTOR,
  PciCommand,
  PciRegister,
  PciStatus,
} from "@virtio/core/pci";
import type { InterruptRules } from "../rules/interrupt-rules.js";
import type { PciConfiguration } from "./configuration.js";
import { Msi } from "./msi.js";
import { MsixTable, type SendMessage } from "./msix-table.js";

/** Interrupts of one function. Its line, until it is connected, is nobody's. */
export class FunctionInterrupts {
  /** The table, when the function has MSI-X. */
  readonly msix: MsixTable | null;
  readonly #send: SendMessage;
  #configuration: PciConfiguration | null = null;
  #msi: Msi | null = null;
  #rules: InterruptRules | null = null;
  #setLine: (high: boolean) => void = () => {};
  #isr = 0;

  /** @param vectors - of MSI-X; 0: none */
  constructor(vectors: number, send: SendMessage) {
    this.msix = vectors === 0 ? null : new MsixTable(vectors, send);
    this.#send = send;
  }

  /** Once, with the function's configuration space, and where in it MSI lies. */
  connect(
    configuration: PciConfiguration,
    msiAt: number | null,
    rules: InterruptRules | null,
    setLine: (high: boolean) => void,
  ): void {
    this.#configuration = configuration;
    this.#msi = msiAt === null ? null : new Msi(configuration, msiAt, this.#send);
    this.#rules = rules;
    this.#setLine = setLine;
  }

  /** The function is gone: its line is another's from here on. */
  disconnect(): void {
    this.#setLine(false);
    this.#setLine = () => {};
  }

  /** The MSI-X message control word was written. */
  controlMsix(control: number): void {
    if (this.msix === null) return;
    this.msix.enabled = (control & MsixControl.ENABLE) !== 0;
    this.msix.masked = (control & MsixControl.FUNCTION_MASK) !== 0;
    this.msix.deliverPending();
  }

  /** Configuration space was written to: the command register, MSI or MSI-X may have changed. */
  changed(): void {
    this.#msi?.deliverPending();
    this.#updateLine();
  }

  get msixEnabled(): boolean {
    return this.msix?.enabled === true;
  }

  /** What a vector register shows after `value` was written to it (§4.1.5.1.2.1). */
  vector(value: number): number {
    return this.msix !== null && value < this.msix.vectors ? value : NO_VECTOR;
  }

  /** The driver reads the ISR status, which clears it (§4.1.4.5.1). */
  readIsr(): number {
    this.#rules?.isrRead();
    const isr = this.#isr;
    this.#isr = 0;
    this.#updateLine();
    return isr;
  }

  /** Buffers of a queue with this vector were used. */
  used(vector: number): void {
    this.#signal(IsrStatus.QUEUE, vector);
  }

  /** The device configuration, or the status, changed. */
  configChanged(vector: number): void {
    this.#signal(IsrStatus.CONFIG, vector);
  }

  #signal(bit: IsrStatus, vector: number): void {
    if (this.msix?.enabled === true) {
      // The configuration bit of the ISR status is set all the same (§4.1.4.5.1).
      if (bit === IsrStatus.CONFIG) this.#isr |= bit;
      if (bit === IsrStatus.QUEUE) this.#rules?.messageSent();
      if (vector !== NO_VECTOR) this.msix.raise(vector);
      return;
    }
    this.#isr |= bit;
    if (this.#msi?.enabled === true) this.#msi.raise();
    this.#updateLine();
  }

  /** The device was reset. */
  reset(): void {
    this.#isr = 0;
    this.#updateLine();
  }

  /** INTA# and the status bit follow the ISR, unless MSI-X, MSI or the command register forbids it (PCI 3.0 §6.2.3, §6.8). */
  #updateLine(): void {
    const configuration = this.#configuration;
    if (configuration === null) return;
    const pending = this.#isr !== 0 && !this.msixEnabled;
    const status = configuration.peek(PciRegister.STATUS, 2) & ~PciStatus.INTERRUPT;
    configuration.set(PciRegister.STATUS, 2, status | (pending ? PciStatus.INTERRUPT : 0));
    const disabled = (configuration.command & PciCommand.INTX_DISABLE) !== 0;
    this.#setLine(pending && !disabled && this.#msi?.enabled !== true);
  }
}

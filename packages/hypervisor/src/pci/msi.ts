// The MSI capability of one function: one message, a 64-bit address, a mask and a pending bit (PCI 3.0 §6.8.1).
import { MsiControl, PciCapability } from "@virtio/core/pci";
import { type CapabilitySpec, le16, type PciConfiguration } from "./configuration.js";
import type { SendMessage } from "./msix-table.js";

/** Registers of the capability, with a 64-bit address and a mask (PCI 3.0 §6.8.1). Offsets. */
enum MsiRegister {
  CONTROL = 0x02,
  ADDRESS = 0x04,
  ADDRESS_HIGH = 0x08,
  DATA = 0x0c,
  MASK = 0x10,
  PENDING = 0x14,
  END = 0x18,
}

const all32 = [0xff, 0xff, 0xff, 0xff];

/** The capability as it is put into configuration space: one message, no more. */
export const msiCapability: CapabilitySpec = {
  id: PciCapability.MSI,
  body: [
    ...le16(MsiControl.ADDRESS_64 | MsiControl.VECTOR_MASKING),
    ...Array.from({ length: MsiRegister.END - MsiRegister.ADDRESS }, () => 0),
  ],
  writable: [...le16(MsiControl.ENABLE), ...all32, ...all32, 0xff, 0xff, 0, 0, 1, 0, 0, 0],
};

/** The message of one function: sent, or pending while it is masked. */
export class Msi {
  readonly #configuration: PciConfiguration;
  readonly #at: number;
  readonly #send: SendMessage;

  /** @param at - offset of the capability */
  constructor(configuration: PciConfiguration, at: number, send: SendMessage) {
    this.#configuration = configuration;
    this.#at = at;
    this.#send = send;
  }

  get enabled(): boolean {
    return (this.#register(MsiRegister.CONTROL, 2) & MsiControl.ENABLE) !== 0;
  }

  /** Sends the message, or keeps it pending while it is masked. */
  raise(): void {
    this.#setPending(1);
    this.deliverPending();
  }

  /** Sends what is pending and no longer masked. */
  deliverPending(): void {
    if (!this.enabled || this.#register(MsiRegister.PENDING, 4) === 0) return;
    if ((this.#register(MsiRegister.MASK, 4) & 1) !== 0) return;
    this.#setPending(0);
    const high = this.#register(MsiRegister.ADDRESS_HIGH, 4);
    this.#send(
      high * 0x1_0000_0000 + this.#register(MsiRegister.ADDRESS, 4),
      this.#register(MsiRegister.DATA, 2),
    );
  }

  #register(offset: MsiRegister, width: 2 | 4): number {
    return this.#configuration.peek(this.#at + offset, width);
  }

  #setPending(bit: 0 | 1): void {
    this.#configuration.set(this.#at + MsiRegister.PENDING, 4, bit);
  }
}

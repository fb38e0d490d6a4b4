// Rules of suspend and resume at a function's registers: virtio 1.4 §3.4.1.
import { DeviceStatus } from "@virtio/core";
import type { RuleBook } from "./rule-book.js";

/** Where a driver is: `suspending` and `resuming` until it read so in the status. */
type Phase = "running" | "suspending" | "suspended" | "resuming";

/** Watches one function. */
export class SuspendRules {
  readonly #book: RuleBook;
  readonly #device: string;
  #phase: Phase = "running";

  constructor(book: RuleBook, device: string) {
    this.#book = book;
    this.#device = device;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#device, what);
  }

  /** Before the write takes effect; `negotiated`: VIRTIO_F_SUSPEND was accepted. */
  statusWrite(value: number, status: number, negotiated: boolean): void {
    if (value === 0) {
      this.#phase = "running";
      return;
    }
    const hex = (): string =>
      `status 0x${value.toString(16)} written over 0x${status.toString(16)}`;
    if (this.#phase === "suspending" || this.#phase === "resuming") {
      this.#check(this.#phase === "suspending" ? "SUSPEND-2" : "SUSPEND-6", false, hex);
    } else if (this.#phase === "suspended") {
      if ((value & DeviceStatus.DRIVER_OK) === 0) return;
      for (const clause of ["SUSPEND-4", "SUSPEND-5"]) this.#check(clause, true, hex);
      this.#phase = "resuming";
    } else if ((value & DeviceStatus.SUSPEND) !== 0) {
      const may = negotiated && (status & DeviceStatus.DRIVER_OK) !== 0;
      this.#check("SUSPEND-1", may, hex);
      if (may) this.#phase = "suspending";
    }
  }

  statusRead(value: number): void {
    const suspended = (value & DeviceStatus.SUSPEND) !== 0;
    const running = (value & DeviceStatus.DRIVER_OK) !== 0;
    if (this.#phase === "suspending" && suspended && !running) {
      this.#check("SUSPEND-2", true, () => "");
      this.#phase = "suspended";
    }
    if (this.#phase === "resuming" && running && !suspended) {
      this.#check("SUSPEND-6", true, () => "");
      this.#phase = "running";
    }
    // A device that cannot do it says so.
    if ((value & DeviceStatus.DEVICE_NEEDS_RESET) !== 0) this.#phase = "running";
  }

  /** A write to a register other than the status, or to the device configuration. */
  fieldWrite(what: string): void {
    const seen = (): string => `${what} is written while ${this.#phase}`;
    if (this.#phase === "suspending") this.#check("SUSPEND-2", false, seen);
    if (this.#phase === "suspending" || this.#phase === "suspended")
      this.#check("SUSPEND-5", false, seen);
    if (this.#phase === "resuming") this.#check("SUSPEND-6", false, seen);
  }

  /** A doorbell. */
  doorbell(queue: number): void {
    const seen = (): string => `queue ${queue} is rung while ${this.#phase}`;
    if (this.#phase === "suspending") this.#check("SUSPEND-2", false, seen);
    if (this.#phase === "suspending" || this.#phase === "suspended")
      this.#check("SUSPEND-4", false, seen);
    if (this.#phase === "resuming") this.#check("SUSPEND-6", false, seen);
  }
}

// A BAR by way of configuration space: the window of the PCI configuration access capability (virtio 1.4 §4.1.4.9), for a BAR that
// found no place in the address space.
import type { IoRegion, PciFunction } from "@virtio/core";

const BAR = 4;
const OFFSET = 8;
const LENGTH = 12;
const DATA = 16;

/** {@inheritDoc IoRegion} */
export class ConfigWindow implements IoRegion {
  readonly length: number;
  readonly #function: PciFunction;
  /** Offset of the capability. */
  readonly #at: number;
  readonly #bar: number;

  constructor(fn: PciFunction, at: number, bar: number, length: number) {
    this.length = length;
    this.#function = fn;
    this.#at = at;
    this.#bar = bar;
  }

  async read(offset: number, width: 1 | 2 | 4): Promise<number> {
    const aimed = this.#aim(offset, width);
    const value = this.#function.read(this.#at + DATA, width);
    await aimed;
    return value;
  }

  async write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    await Promise.all([
      this.#aim(offset, width),
      this.#function.write(this.#at + DATA, width, value),
    ]);
  }

  post(offset: number, width: 2 | 4, value: number): void {
    // Nobody waits for a doorbell; that the function is gone is told by `gone`.
    this.write(offset, width, value).catch(() => {});
  }

  /** Accesses of one turn take effect in order, so nobody else's come between. */
  async #aim(offset: number, width: number): Promise<void> {
    await Promise.all([
      this.#function.write(this.#at + BAR, 1, this.#bar),
      this.#function.write(this.#at + OFFSET, 4, offset),
      this.#function.write(this.#at + LENGTH, 4, width),
    ]);
  }
}

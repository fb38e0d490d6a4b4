// The registers behind one BAR.
import { type IoRegion, VirtioFault } from "@virtio/core";
import type { AddressSpace, QtestClient } from "./qtest.js";

/** Where a region lies. */
export interface RegionAddress {
  /** `BAR 4 of pci0:0:1:0`: for messages. */
  readonly name: string;
  readonly space: AddressSpace;
  readonly base: number;
  readonly length: number;
  /** Why nothing is there any more; null while it is: another function may decode the same addresses by then. */
  readonly gone: () => VirtioFault | null;
}

/** A BAR's registers, by qtest: memory or I/O ports. */
export class QtestRegion implements IoRegion {
  readonly length: number;
  readonly #qtest: QtestClient;
  readonly #at: RegionAddress;

  constructor(qtest: QtestClient, at: RegionAddress) {
    this.#qtest = qtest;
    this.#at = at;
    this.length = at.length;
  }

  async read(offset: number, width: 1 | 2 | 4): Promise<number> {
    this.#refuseGone();
    return this.#qtest.read(this.#at.space, this.#address(offset, width), width);
  }

  async write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    this.#refuseGone();
    return this.#qtest.write(this.#at.space, this.#address(offset, width), width, value);
  }

  post(offset: number, width: 2 | 4, value: number): void {
    const address = this.#address(offset, width);
    if (this.#at.gone() === null) this.#qtest.post(this.#at.space, address, width, value);
  }

  #refuseGone(): void {
    const fault = this.#at.gone();
    if (fault !== null) throw fault;
  }

  #address(offset: number, width: number): number {
    if (!Number.isInteger(offset) || offset < 0 || offset > this.length - width)
      throw new VirtioFault(
        "INVALID",
        `${this.#at.name}: ${width} bytes at ${offset} do not lie within its ${this.length} bytes`,
      );
    if (offset % width !== 0)
      throw new VirtioFault(
        "INVALID",
        `${this.#at.name}: ${width} bytes at ${offset} are not aligned`,
      );
    return this.#at.base + offset;
  }
}

// One virtio structure: a window of a BAR.
import { type IoRegion, VirtioFault } from "@virtio/core";

/** One access: a read of `[offset, width]`, or a write of `[offset, width, value]`. */
export type Access = readonly [offset: number, width: 1 | 2 | 4, value?: number];

/** Accesses are bounds-checked and naturally aligned (virtio 1.4 §4.1.3.1). */
export class Region {
  readonly length: number;
  readonly #io: IoRegion;
  readonly #base: number;

  constructor(io: IoRegion, base: number, length: number) {
    this.#io = io;
    this.#base = base;
    this.length = length;
  }

  read(offset: number, width: 1 | 2 | 4): Promise<number> {
    this.#check(offset, width);
    return this.#io.read(this.#base + offset, width);
  }

  write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    this.#check(offset, width);
    return this.#io.write(this.#base + offset, width, value);
  }

  /** Accesses in order, all in one turn: one round trip where the machine is remote. Resolves to what the reads gave. */
  async exchange(accesses: readonly Access[]): Promise<number[]> {
    const answers = accesses.map(([offset, width, value]) =>
      value === undefined ? this.read(offset, width) : this.write(offset, width, value),
    );
    return (await Promise.all(answers)).filter((answer) => answer !== undefined);
  }

  /** The doorbell: its offset was checked when the queue was made. */
  post(offset: number, width: 2 | 4, value: number): void {
    this.#io.post(this.#base + offset, width, value);
  }

  #check(offset: number, width: number): void {
    if (offset < 0 || offset % width !== 0 || offset + width > this.length)
      throw new VirtioFault(
        "INVALID",
        `access of ${width} bytes at ${offset} of a structure of ${this.length} bytes`,
      );
  }
}

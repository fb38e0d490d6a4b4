// A backend that keeps its reads until a test lets them go.
import { type BlockBackend, MemoryBackend } from "../src/index.js";

export class GatedBackend implements BlockBackend {
  readonly readOnly = false;
  readonly size: number;
  readonly #disk: MemoryBackend;
  #waiting: (() => void)[] = [];
  closed = 0;

  constructor(size: number) {
    this.size = size;
    this.#disk = new MemoryBackend(size);
  }

  read(position: number, into: readonly Uint8Array[]): Promise<number> {
    const moved = this.#disk.read(position, into);
    return new Promise((resolve) => {
      this.#waiting.push(() => resolve(moved));
    });
  }

  write(position: number, from: readonly Uint8Array[]): number {
    return this.#disk.write(position, from);
  }

  flush(): undefined {}

  /** Reads that wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  letGo(): void {
    for (const go of this.#waiting.splice(0)) go();
  }

  async close(): Promise<void> {
    this.closed += 1;
  }
}

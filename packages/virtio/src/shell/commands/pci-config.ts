import type { PciFunction } from "@virtio/core";
import { PciRegister, PciStatus } from "@virtio/core/pci";

const CONFIG_SIZE = 256;
const HEADER_SIZE = 64;

/** One read of configuration space. */
export type ConfigRead = readonly [offset: number, width: 2 | 4];

/** The words from `at` on, `length` bytes of them. */
export function words(at: number, length: number): readonly ConfigRead[] {
  return Array.from({ length: length / 4 }, (_, i) => [at + 4 * i, 4] as const);
}

/** What was read of a function's configuration space, little-endian; 0 where nothing was. */
export class PciConfig {
  readonly #function: PciFunction;
  readonly #bytes = new Uint8Array(CONFIG_SIZE);

  constructor(fn: PciFunction) {
    this.#function = fn;
  }

  readHeader(): Promise<void> {
    return this.read(words(0, HEADER_SIZE));
  }

  /** In one round trip. What lies past the end is passed over. */
  async read(reads: readonly ConfigRead[]): Promise<void> {
    await Promise.all(
      reads.map(async ([offset, width]) => {
        if (offset + width > CONFIG_SIZE) return;
        const value = await this.#function.read(offset, width);
        for (let i = 0; i < width; i++)
          this.#bytes[offset + i] = Math.floor(value / 256 ** i) % 256;
      }),
    );
  }

  get(at: number, width: 1 | 2 | 4): number {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + (this.#bytes[at + i] ?? 0);
    return value;
  }

  /**
   * Offsets of the capabilities, in list order: each is to be read before the next is asked for. The list is the device's word: a loop
   * ends it, and so does a pointer into the header.
   */
  *capabilities(): Generator<number> {
    if ((this.get(PciRegister.STATUS, 2) & PciStatus.CAPABILITIES) === 0) return;
    const seen = new Set<number>();
    let at = this.get(PciRegister.CAPABILITIES, 1) & ~3;
    while (at >= HEADER_SIZE && !seen.has(at)) {
      seen.add(at);
      yield at;
      at = this.get(at + 1, 1) & ~3;
    }
  }
}

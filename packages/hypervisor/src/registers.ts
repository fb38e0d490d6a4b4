// Registers as tables: what a device shows at an offset, and what a write there does.

/** One register. */
export interface Register {
  readonly name: string;
  readonly offset: number;
  readonly width: 1 | 2 | 4;
  readonly read: () => number;
  /** Absent: read-only. */
  readonly write?: (value: number) => void;
}

/** Registers by offset. An access must match a register's offset and width. */
export class RegisterTable {
  readonly #byOffset = new Map<number, Register>();

  constructor(registers: readonly Register[]) {
    for (const register of registers) this.#byOffset.set(register.offset, register);
  }

  /** The register of exactly this offset and width, if there is one. */
  at(offset: number, width: number): Register | undefined {
    const register = this.#byOffset.get(offset);
    return register?.width === width ? register : undefined;
  }
}

/** All ones of a width: what a read that nothing answers gives. */
export const allOnes = (width: 1 | 2 | 4): number =>
  width === 4 ? 0xffff_ffff : 2 ** (8 * width) - 1;

/** A region that a BAR decodes. */
export interface RegisterSpace {
  readonly length: number;
  read(offset: number, width: 1 | 2 | 4): number;
  write(offset: number, width: 1 | 2 | 4, value: number): void;
}

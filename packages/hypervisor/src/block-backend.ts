// What stands behind a block device model.

/**
 * A store of bytes. Transfers are scattered: the pieces follow each other from `position` on, views of guest memory that are the
 * backend's until it is done. Nothing returned means done; a rejection means an I/O error.
 */
export interface BlockBackend {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly readOnly: boolean;
  read(position: number, into: readonly Uint8Array[]): Promise<void> | undefined;
  write(position: number, from: readonly Uint8Array[]): Promise<void> | undefined;
  /** Everything written before is on stable storage. */
  flush(): Promise<void> | undefined;
  close(): Promise<void>;
}

/** A disk in memory. */
export class MemoryBackend implements BlockBackend {
  readonly size: number;
  readonly readOnly: boolean;
  readonly #bytes: Uint8Array;

  /** @param content - its length, a multiple of 512, or its bytes, which are used in place */
  constructor(content: number | Uint8Array, options: { readonly readOnly?: boolean } = {}) {
    this.#bytes = typeof content === "number" ? new Uint8Array(content) : content;
    this.size = this.#bytes.length;
    this.readOnly = options.readOnly ?? false;
  }

  read(position: number, into: readonly Uint8Array[]): undefined {
    let at = position;
    for (const piece of into) {
      piece.set(this.#bytes.subarray(at, at + piece.length));
      at += piece.length;
    }
  }

  write(position: number, from: readonly Uint8Array[]): undefined {
    let at = position;
    for (const piece of from) {
      this.#bytes.set(piece, at);
      at += piece.length;
    }
  }

  flush(): undefined {}

  async close(): Promise<void> {}
}

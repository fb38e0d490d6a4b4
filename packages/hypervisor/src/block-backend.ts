// What stands behind a block device model.
import { VirtioFault } from "@virtio/core";

/**
 * A store of bytes. Transfers are scattered: the pieces follow each other from `position` on, views of guest memory that are the
 * backend's until it is done. A read or a write gives the bytes that it moved; a short one is asked for the rest, and one that moved
 * nothing has failed. Nothing returned by the others means done; a rejection means an I/O error.
 */
export interface BlockBackend {
  /** Bytes, a multiple of 512. May change: see onResize. */
  readonly size: number;
  readonly readOnly: boolean;
  /** Whether writing zeroes may give space back. Default false. */
  readonly mayUnmap?: boolean;
  /** Whether its promises wait for the world outside the machine: then virtual time stands still meanwhile. Default true. */
  readonly outside?: boolean;
  /** The content, where it is in memory and a plain copy is all there is to a transfer: then `read` and `write` are not called. */
  readonly content?: Uint8Array;
  /** Called after `size` changed; the device that the backend belongs to sets it. */
  onResize?: (() => void) | null;
  read(position: number, into: readonly Uint8Array[]): Promise<number> | number;
  write(position: number, from: readonly Uint8Array[]): Promise<number> | number;
  /** Everything written before is on stable storage. */
  flush(): Promise<void> | undefined;
  /** The content is not needed any more. Absent: nothing is done. */
  discard?(position: number, length: number): Promise<void> | undefined;
  /** Reads as zeroes afterwards; with `unmap` space may be given back. Absent: zeroes are written. */
  writeZeroes?(position: number, length: number, unmap: boolean): Promise<void> | undefined;
  /** The device is reset: requests that would not end by themselves reject. */
  cancel?(): void;
  close(): Promise<void>;
}

/** A size that a disk can have. @throws VirtioFault INVALID */
export function mediaSize(size: number): number {
  if (!Number.isSafeInteger(size) || size <= 0 || size % 512 !== 0)
    throw new VirtioFault("INVALID", `${size} bytes is not a positive multiple of 512`);
  return size;
}

/** A disk in memory. */
export class MemoryBackend implements BlockBackend {
  readonly outside = false;
  readonly readOnly: boolean;
  readonly mayUnmap: boolean;
  onResize: (() => void) | null = null;
  #content: Uint8Array;

  /** @param content - its length, a multiple of 512, or its bytes, which are used in place */
  constructor(
    content: number | Uint8Array,
    options: { readonly readOnly?: boolean; readonly mayUnmap?: boolean } = {},
  ) {
    this.#content = typeof content === "number" ? new Uint8Array(content) : content;
    this.readOnly = options.readOnly ?? false;
    this.mayUnmap = options.mayUnmap ?? false;
  }

  get size(): number {
    return this.#content.length;
  }

  get content(): Uint8Array {
    return this.#content;
  }

  /**
   * Grows by zeroes, or loses its end; the content moves to other memory. The device tells its driver.
   * @param size - bytes, a multiple of 512
   * @throws VirtioFault INVALID
   */
  resize(size: number): void {
    const bytes = new Uint8Array(mediaSize(size));
    bytes.set(this.#content.subarray(0, size));
    this.#content = bytes;
    this.onResize?.();
  }

  read(position: number, into: readonly Uint8Array[]): number {
    let at = position;
    for (const piece of into) {
      piece.set(this.#content.subarray(at, at + piece.length));
      at += piece.length;
    }
    return at - position;
  }

  write(position: number, from: readonly Uint8Array[]): number {
    let at = position;
    for (const piece of from) {
      this.#content.set(piece, at);
      at += piece.length;
    }
    return at - position;
  }

  flush(): undefined {}

  discard(position: number, length: number): undefined {
    this.writeZeroes(position, length);
  }

  writeZeroes(position: number, length: number): undefined {
    this.#content.fill(0, position, position + length);
  }

  async close(): Promise<void> {}
}

// Bytes of a disk at any position, over its whole sectors.
import type { Disk } from "@virtio/core";

/** Sectors that are being written. */
interface Write {
  readonly start: number;
  readonly end: number;
  readonly over: Promise<void>;
}

/** Bytes of all of them. */
export const lengthOf = (pieces: readonly Uint8Array[]): number =>
  pieces.reduce((sum, { length }) => sum + length, 0);

const accesses = new WeakMap<Disk, ByteAccess>();

/**
 * Transfers of whole sectors go to the disk as they are; any other goes through memory of its own, and a write first reads the edge
 * sectors of which it has only a part. Writes that share a sector follow each other in the order in which they were asked for, so
 * that none writes back what another has just replaced: all writes of this access, not those that the disk is given directly.
 */
export class ByteAccess {
  readonly #disk: Disk;
  readonly #writes = new Set<Write>();

  private constructor(disk: Disk) {
    this.#disk = disk;
  }

  /** The only one of a disk. */
  static of(disk: Disk): ByteAccess {
    const access = accesses.get(disk) ?? new ByteAccess(disk);
    accesses.set(disk, access);
    return access;
  }

  /** The bytes must lie within the media, as those of a write. @throws VirtioFault as Disk.readv */
  async read(
    position: number,
    into: readonly Uint8Array[],
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<void> {
    if (this.#whole(position, into)) return this.#disk.readv(position, into, options);
    const [start, end] = this.#sectors(position, into);
    const sectors = new Uint8Array(end - start);
    await this.#disk.read(start, sectors, options);
    let at = position - start;
    for (const piece of into) {
      piece.set(sectors.subarray(at, at + piece.length));
      at += piece.length;
    }
  }

  /** @throws VirtioFault as Disk.writev, and Disk.read of an edge sector */
  async write(position: number, from: readonly Uint8Array[]): Promise<void> {
    const [start, end] = this.#sectors(position, from);
    const before = [...this.#writes].filter((write) => write.start < end && start < write.end);
    let release = (): void => {};
    const over = new Promise<void>((resolve) => {
      release = resolve;
    });
    const write: Write = { start, end, over };
    this.#writes.add(write);
    try {
      await Promise.all(before.map((other) => other.over));
      if (this.#whole(position, from)) await this.#disk.writev(position, from);
      else await this.#merge(position, from, start, end);
    } finally {
      this.#writes.delete(write);
      release();
    }
  }

  /** Sectors from `start` to `end`, of which the first and the last keep what is not written. */
  async #merge(
    position: number,
    from: readonly Uint8Array[],
    start: number,
    end: number,
  ): Promise<void> {
    const { sectorSize } = this.#disk;
    const sectors = new Uint8Array(end - start);
    const last = end - sectorSize;
    const edges: number[] = [];
    if (position > start) edges.push(start);
    if (position + lengthOf(from) < end && !edges.includes(last)) edges.push(last);
    await Promise.all(
      edges.map((edge) =>
        this.#disk.read(edge, sectors.subarray(edge - start, edge - start + sectorSize)),
      ),
    );
    let at = position - start;
    for (const piece of from) {
      sectors.set(piece, at);
      at += piece.length;
    }
    await this.#disk.write(start, sectors);
  }

  #whole(position: number, pieces: readonly Uint8Array[]): boolean {
    const { sectorSize } = this.#disk;
    return position % sectorSize === 0 && pieces.every(({ length }) => length % sectorSize === 0);
  }

  /** The sectors that these bytes touch. */
  #sectors(position: number, pieces: readonly Uint8Array[]): [start: number, end: number] {
    const { sectorSize } = this.#disk;
    const start = Math.floor(position / sectorSize) * sectorSize;
    return [start, Math.ceil((position + lengthOf(pieces)) / sectorSize) * sectorSize];
  }
}

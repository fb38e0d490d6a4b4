// Clusters of guest memory, and the frames that lie in them: mbuf(9) with one cluster each.
import type { DmaMemory, DmaRegion, Frame } from "@virtio/core";

/**
 * Bytes of a cluster in front of a frame: the virtio header, and a VLAN tag that is put in. A received frame so goes out again as it
 * lies, header and all in one descriptor.
 */
export const HEADROOM = 32;
/** Clusters begin at cache lines. */
const ALIGN = 64;

/** Whose a cluster is. */
export enum Owner {
  /** the pool's */
  FREE,
  /** the interface's user's */
  USER,
  /** the device's */
  DEVICE,
}

/** A frame, or a part of one. Made once, with its pool. */
export class Cluster implements Frame {
  // What each frame is looked at for stands together: a cluster that comes back is not in the cache.
  owner: Owner = Owner.FREE;
  offset: number;
  length = 0;
  next: Frame | null = null;
  flags = 0;
  gsoType = 0;
  vlanTag = -1;
  queue = -1;
  /** Where the cluster lies in `bytes`. */
  readonly start: number;
  readonly end: number;
  /** The cookie of its chain. */
  readonly index: number;
  readonly pool: FramePool;
  gsoSize = 0;
  csumStart = 0;
  csumOffset = 0;
  hash = 0;
  hashType = 0;
  readonly bytes: Uint8Array;

  constructor(pool: FramePool, bytes: Uint8Array, index: number, start: number, size: number) {
    this.pool = pool;
    this.bytes = bytes;
    this.index = index;
    this.start = start;
    this.end = start + size;
    this.offset = start + HEADROOM;
  }

  get room(): number {
    return this.end - this.offset;
  }

  /** As new: no bytes, nothing asked of the device. */
  clear(): void {
    this.offset = this.start + HEADROOM;
    this.length = 0;
    this.next = null;
    this.flags = 0;
    this.gsoType = 0;
    this.gsoSize = 0;
    this.csumStart = 0;
    this.csumOffset = 0;
    this.vlanTag = -1;
    this.queue = -1;
    this.hash = 0;
    this.hashType = 0;
  }
}

/** Clusters of one size in one piece of guest memory, and a stack of those that are free. Every cluster has one owner, always. */
export class FramePool {
  /** By index. */
  readonly clusters: readonly Cluster[];
  /** Bytes of a cluster, headroom and all. */
  readonly size: number;
  readonly #region: DmaRegion;
  readonly #stack: Cluster[];
  #free: number;
  #retired = false;

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(memory: DmaMemory, size: number, count: number) {
    this.size = FramePool.clusterSize(size);
    this.#region = memory.allocate(this.size * count, ALIGN);
    const bytes = new Uint8Array(memory.buffer);
    const { offset } = this.#region;
    this.clusters = Array.from(
      { length: count },
      (_, i) => new Cluster(this, bytes, i, offset + i * this.size, this.size),
    );
    // The first to be taken is the one used last: it is in the cache.
    this.#stack = [...this.clusters].reverse();
    this.#free = count;
  }

  /** Bytes of the clusters of a pool that is asked for clusters of `size` bytes. */
  static clusterSize(size: number): number {
    return Math.ceil(size / ALIGN) * ALIGN;
  }

  get free(): number {
    return this.#free;
  }

  /** A free cluster for `owner`, its fields as they were left; null: there is none. */
  take(owner: Owner): Cluster | null {
    if (this.#free === 0) return null;
    this.#free -= 1;
    const cluster = this.#stack[this.#free] as Cluster;
    cluster.owner = owner;
    return cluster;
  }

  /** Gives back a cluster and what hangs on it, of those that are `owner`'s; another's is left alone. */
  give(head: Frame, owner: Owner): void {
    let cluster: Cluster | null = head as Cluster;
    // A cluster that was given back is the pool's: even a ring of them ends.
    while (cluster !== null && cluster.owner === owner) {
      const next: Cluster | null = cluster.next as Cluster | null;
      cluster.next = null;
      cluster.owner = Owner.FREE;
      this.#stack[this.#free] = cluster;
      this.#free += 1;
      cluster = next;
    }
    if (this.#retired) this.#bury();
  }

  /** The device was reset: it has none any more. */
  reclaim(): void {
    for (const cluster of this.clusters) {
      if (cluster.owner !== Owner.DEVICE) continue;
      cluster.next = null;
      this.give(cluster, Owner.DEVICE);
    }
  }

  /** Another pool takes its place: the memory is given back when the last cluster is. */
  retire(): void {
    this.#retired = true;
    this.#bury();
  }

  #bury(): void {
    if (this.#free < this.clusters.length) return;
    // Once.
    this.#retired = false;
    this.#region.free();
  }

  /** Gives the memory back now. Only when no device can write to it any more. */
  destroy(): void {
    this.#region.free();
  }
}

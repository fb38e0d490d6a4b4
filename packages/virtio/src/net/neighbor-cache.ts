// Who has which address on a link: the cache of ARP and of neighbor discovery.
import type { TaskQueue } from "@virtio/core";

/** Seconds that an entry is good for: net.link.ether.inet.max_age. */
const MAX_AGE = 1200;
/** Entries of one link; the oldest goes for one more. */
const LIMIT = 1024;

/** An entry of the cache. */
export interface Neighbor {
  readonly address: string;
  readonly mac: string;
  /** Milliseconds on the machine's clock. */
  readonly expires: number;
  /** It said that it is a router (IPv6). */
  readonly router: boolean;
}

/** Addresses and MAC addresses of one link's other stations. */
export class NeighborCache {
  readonly #tasks: TaskQueue;
  readonly #entries = new Map<string, Neighbor>();

  constructor(tasks: TaskQueue) {
    this.#tasks = tasks;
  }

  /** Those that have not expired, in the order in which they were learnt. */
  get entries(): readonly Neighbor[] {
    return [...this.#entries.values()].filter(({ expires }) => expires > this.#tasks.now());
  }

  find(address: string): Neighbor | null {
    const entry = this.#entries.get(address);
    return entry !== undefined && entry.expires > this.#tasks.now() ? entry : null;
  }

  learn(address: string, mac: string, router = false): void {
    this.#entries.delete(address);
    const [oldest] = this.#entries.keys();
    if (this.#entries.size >= LIMIT && oldest !== undefined) this.#entries.delete(oldest);
    const expires = this.#tasks.now() + 1000 * MAX_AGE;
    this.#entries.set(address, { address, mac, expires, router });
  }

  /** Those that `which` says; all of them by default. */
  forget(which: (entry: Neighbor) => boolean = () => true): void {
    for (const entry of this.#entries.values())
      if (which(entry)) this.#entries.delete(entry.address);
  }
}

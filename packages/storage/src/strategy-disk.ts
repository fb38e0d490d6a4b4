// The Disk contract over a strategy (FreeBSD's disk(9)): checks, splitting, waiting for room, abort.
import { type Disk, type TransferOptions, VirtioFault } from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";

/** What a driver gives to make a disk of. Sizes are read at each call: a disk may be resized. */
export interface DiskProvider {
  readonly name: string;
  readonly ident: string;
  readonly sectorSize: number;
  readonly mediaSize: number;
  readonly readOnly: boolean;
  /** Most bytes of one bio; at least a sector. */
  readonly maxTransfer: number;
  readonly closed: Disk["closed"];
  /** Takes a bio, or returns false when there is no room for it now: then `onRoom` is called when there may be. */
  strategy(bio: Bio): boolean;
  /** After a batch of bios: tells the device. */
  start(): void;
  onRoom: (() => void) | null;
  /** Whether the device reads and writes these bytes where they are. */
  inPlace(data: Uint8Array): boolean;
  started?(): Promise<void>;
  detach(): Promise<void>;
  suspend(): Promise<void>;
  resume(): Promise<void>;
}

/** What each signal ends: thousands of transfers may share one, and hang on it by one listener. */
const aborts = new WeakMap<AbortSignal, Set<() => void>>();

function onAbort(signal: AbortSignal): Set<() => void> {
  const known = aborts.get(signal);
  if (known !== undefined) return known;
  const all = new Set<() => void>();
  aborts.set(signal, all);
  signal.addEventListener("abort", () => {
    for (const abort of [...all]) abort();
  });
  return all;
}

/**
 * A Disk over what a driver provides: arguments checked, transfers split by the provider's limit, bios kept in order while there is no
 * room, aborts by the rules of the contract.
 */
export class StrategyDisk implements Disk {
  readonly kind = "disk";
  readonly #provider: DiskProvider;
  /** Bios for which the provider had no room, in order. */
  #waiting: Bio[] = [];

  constructor(provider: DiskProvider) {
    this.#provider = provider;
    provider.onRoom = () => this.#submit();
  }

  get name(): string {
    return this.#provider.name;
  }
  get ident(): string {
    return this.#provider.ident;
  }
  get sectorSize(): number {
    return this.#provider.sectorSize;
  }
  get mediaSize(): number {
    return this.#provider.mediaSize;
  }
  get readOnly(): boolean {
    return this.#provider.readOnly;
  }
  get closed(): Disk["closed"] {
    return this.#provider.closed;
  }

  async started(): Promise<void> {
    await this.#provider.started?.();
  }
  detach(): Promise<void> {
    return this.#provider.detach();
  }
  suspend(): Promise<void> {
    return this.#provider.suspend();
  }
  resume(): Promise<void> {
    return this.#provider.resume();
  }

  async read(position: number, into: Uint8Array, options: TransferOptions = {}): Promise<void> {
    this.#check(position, into.length);
    await this.#transfer(BioCommand.READ, position, into, options.signal);
  }

  async write(position: number, from: Uint8Array, options: TransferOptions = {}): Promise<void> {
    if (this.readOnly) throw this.#fault("READ_ONLY", "the disk is read-only");
    this.#check(position, from.length);
    await this.#transfer(BioCommand.WRITE, position, from, options.signal);
  }

  async flush(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const done: Bio["done"] = (fault) => (fault === null ? resolve() : reject(fault));
      this.#waiting.push({ command: BioCommand.FLUSH, position: 0, data: new Uint8Array(0), done });
      this.#submit();
    });
  }

  async discard(): Promise<void> {
    throw this.#fault("UNSUPPORTED", "the disk has no discard");
  }

  async writeZeroes(): Promise<void> {
    throw this.#fault("UNSUPPORTED", "the disk has no write zeroes");
  }

  #check(position: number, length: number): void {
    const { sectorSize, mediaSize } = this;
    const whole = (value: number): boolean =>
      Number.isSafeInteger(value) && value >= 0 && value % sectorSize === 0;
    if (!whole(position) || !whole(length))
      throw this.#fault(
        "INVALID",
        `${length} bytes at ${position} are not whole sectors of ${sectorSize}`,
      );
    if (position + length > mediaSize)
      throw this.#fault(
        "INVALID",
        `${length} bytes at ${position} are beyond the end of the media, ${mediaSize}`,
      );
  }

  #transfer(
    command: BioCommand,
    position: number,
    data: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(signal.reason);
        return;
      }
      if (data.length === 0) {
        resolve();
        return;
      }
      const { sectorSize, maxTransfer } = this.#provider;
      const step = Math.max(sectorSize, Math.floor(maxTransfer / sectorSize) * sectorSize);
      const inPlace = this.#provider.inPlace(data);
      const bios: Bio[] = [];
      let left = Math.ceil(data.length / step);
      let fault: VirtioFault | null = null;
      const settle = (): void => {
        if (signal !== undefined) onAbort(signal).delete(abort);
        if (signal?.aborted === true) reject(signal.reason);
        else if (fault !== null) reject(fault);
        else resolve();
      };
      // The caller's bytes are its own again only when every part is over.
      const done: Bio["done"] = (why) => {
        fault ??= why;
        left -= 1;
        if (left === 0) settle();
      };
      const abort = (): void => {
        const unsent = this.#waiting.filter((bio) => bios.includes(bio));
        this.#waiting = this.#waiting.filter((bio) => !unsent.includes(bio));
        left -= unsent.length;
        // What the device holds of a bounced transfer ends unseen; what it holds of the caller's own memory is waited for.
        if (!inPlace) for (const bio of bios) bio.data = null;
        if (!inPlace || left === 0) {
          left = Number.POSITIVE_INFINITY;
          settle();
        }
      };
      if (signal !== undefined) onAbort(signal).add(abort);
      for (let at = 0; at < data.length; at += step)
        bios.push({ command, position: position + at, data: data.subarray(at, at + step), done });
      this.#waiting.push(...bios);
      this.#submit();
    });
  }

  /** Gives the provider what waits, in order, until it has no room. */
  #submit(): void {
    let taken = 0;
    while (taken < this.#waiting.length && this.#provider.strategy(this.#waiting[taken] as Bio))
      taken += 1;
    if (taken === 0) return;
    this.#waiting.splice(0, taken);
    this.#provider.start();
  }

  #fault(code: "INVALID" | "READ_ONLY" | "UNSUPPORTED", what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

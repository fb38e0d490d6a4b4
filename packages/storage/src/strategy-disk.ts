// The Disk contract over a strategy (FreeBSD's disk(9)): checks, splitting, order, waiting for room, abort, statistics.
import { type Disk, type DiskStatistics, type TransferOptions, VirtioFault } from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";
import type { DiskProvider, RangeLimits } from "./provider.js";
import { Counters } from "./statistics.js";

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

/** How long a dump waits for one request. */
const DUMP_MS = 30_000;

/** Until a transfer has all its bios. */
const nobody = (): void => {};

type RangeCommand = BioCommand.DISCARD | BioCommand.WRITE_ZEROES | BioCommand.SECURE_ERASE;

const rangeNames: Readonly<Record<RangeCommand, string>> = {
  [BioCommand.DISCARD]: "discard",
  [BioCommand.WRITE_ZEROES]: "write zeroes",
  [BioCommand.SECURE_ERASE]: "secure erase",
};

/**
 * A Disk over what a driver provides, in two forms that may be mixed: promises, split along the provider's limits; and underneath
 * `strategy` and `start`, which allocate nothing.
 */
export class StrategyDisk implements Disk {
  readonly kind = "disk";
  /** Called when there may be room for a bio that `strategy` did not take. */
  onRoom: (() => void) | null = null;
  readonly #provider: DiskProvider;
  readonly #counters: Counters;
  readonly #resizeListeners = new Set<(mediaSize: number) => void>();
  /** Bios for which there was no room, in order. */
  #waiting: Bio[] = [];
  /** What waits is being given: a bio that is done meanwhile must not give it again. */
  #submitting = false;
  /** Bios were given that the device was not told of. */
  #unstarted = false;
  /** An ordered bio is under way: nothing else starts. */
  #alone = false;

  constructor(provider: DiskProvider) {
    this.#provider = provider;
    this.#counters = new Counters(() => provider.now());
    provider.connect({
      done: (bio, fault) => this.#done(bio, fault),
      room: () => this.#room(),
      resized: () => this.#resized(),
    });
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
  get stripeSize(): number {
    return this.#provider.stripeSize;
  }
  get stripeOffset(): number {
    return this.#provider.stripeOffset;
  }
  get firmwareHeads(): number {
    return this.#provider.firmwareHeads;
  }
  get firmwareSectors(): number {
    return this.#provider.firmwareSectors;
  }
  get maxTransfer(): number {
    return this.#provider.maxTransfer;
  }
  get can(): Disk["can"] {
    const { discard, writeZeroes, secureErase } = this.#provider;
    return {
      discard: discard !== null,
      writeZeroes: writeZeroes !== null,
      secureErase: secureErase !== null,
    };
  }
  get statistics(): DiskStatistics {
    return this.#counters.read();
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

  onResize(listener: (mediaSize: number) => void): () => void {
    // A listener of its own for each call, so that each is taken back by itself.
    const own = (mediaSize: number): void => listener(mediaSize);
    this.#resizeListeners.add(own);
    return () => {
      this.#resizeListeners.delete(own);
    };
  }

  // ── transfers ───────────────────────────────────────────────────────────────

  async read(position: number, into: Uint8Array, options: TransferOptions = {}): Promise<void> {
    await this.#transfer(BioCommand.READ, position, [into], options);
  }

  async write(position: number, from: Uint8Array, options: TransferOptions = {}): Promise<void> {
    await this.#transfer(BioCommand.WRITE, position, [from], options);
  }

  async readv(
    position: number,
    into: readonly Uint8Array[],
    options: TransferOptions = {},
  ): Promise<void> {
    await this.#transfer(BioCommand.READ, position, into, options);
  }

  async writev(
    position: number,
    from: readonly Uint8Array[],
    options: TransferOptions = {},
  ): Promise<void> {
    await this.#transfer(BioCommand.WRITE, position, from, options);
  }

  async flush({ ordered = false, signal }: TransferOptions = {}): Promise<void> {
    const bio = this.#bio(BioCommand.FLUSH, 0, 0, null, ordered);
    await this.#send([bio], signal);
  }

  async discard(position: number, length: number, options: TransferOptions = {}): Promise<void> {
    await this.#range(BioCommand.DISCARD, position, length, options);
  }

  async writeZeroes(
    position: number,
    length: number,
    options: TransferOptions = {},
  ): Promise<void> {
    await this.#range(BioCommand.WRITE_ZEROES, position, length, options);
  }

  async secureErase(
    position: number,
    length: number,
    options: TransferOptions = {},
  ): Promise<void> {
    await this.#range(BioCommand.SECURE_ERASE, position, length, options);
  }

  /** Each piece by itself, as physio(9) does it: a bio has one address. */
  #transfer(
    command: BioCommand.READ | BioCommand.WRITE,
    position: number,
    pieces: readonly Uint8Array[],
    { ordered = false, signal }: TransferOptions,
  ): Promise<void> {
    const bios: Bio[] = [];
    const { maxTransfer } = this.#provider;
    let start = position;
    // All of them are looked at before the first is given.
    for (const piece of pieces) {
      const fault = this.#refusal(command, start, piece.length);
      if (fault !== null) throw fault;
      for (let at = 0; at < piece.length; at += maxTransfer) {
        const length = Math.min(maxTransfer, piece.length - at);
        const data = length === piece.length ? piece : piece.subarray(at, at + length);
        bios.push(this.#bio(command, start + at, length, data, ordered));
      }
      start += piece.length;
    }
    return this.#send(bios, signal);
  }

  #range(
    command: RangeCommand,
    position: number,
    length: number,
    { ordered = false, signal }: TransferOptions,
  ): Promise<void> {
    const fault = this.#refusal(command, position, length);
    if (fault !== null) throw fault;
    const { max, align } = this.#limits(command) as RangeLimits;
    const bios: Bio[] = [];
    const end = position + length;
    for (let at = position; at < end; ) {
      let next = Math.min(end, at + max);
      const aligned = align > 0 ? Math.floor(next / align) * align : next;
      if (next < end && aligned > at) next = aligned;
      bios.push(this.#bio(command, at, next - at, null, ordered));
      at = next;
    }
    return this.#send(bios, signal);
  }

  #bio(
    command: BioCommand,
    position: number,
    length: number,
    data: Uint8Array | null,
    ordered: boolean,
  ): Bio {
    return { command, position, length, data, ordered, done: nobody };
  }

  /** Resolves when all of them are over. */
  #send(bios: readonly Bio[], signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(signal.reason);
        return;
      }
      let left = bios.length;
      if (left === 0) {
        resolve();
        return;
      }
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
        const inPlace = bios.some(({ data }) => data !== null && this.#provider.inPlace(data));
        const own = new Set(bios);
        const waiting = this.#waiting.length;
        this.#waiting = this.#waiting.filter((bio) => !own.has(bio));
        left -= waiting - this.#waiting.length;
        // What the device holds of a bounced transfer ends unseen; what it holds of the caller's own memory is waited for.
        for (const bio of bios)
          if (bio.data !== null && !this.#provider.inPlace(bio.data)) bio.data = null;
        if (!inPlace || left === 0) {
          left = Number.POSITIVE_INFINITY;
          settle();
        }
      };
      if (signal !== undefined) onAbort(signal).add(abort);
      for (const bio of bios) {
        bio.done = done;
        this.#waiting.push(bio);
      }
      this.#submit();
      this.start();
    });
  }

  // ── bios ────────────────────────────────────────────────────────────────────

  /**
   * Gives the device one bio; false when there is no room for it now: give it again when `onRoom` is called. What is wrong with it
   * its `done` is told, perhaps before this returns. It must be within the limits: `maxTransfer`, of a range its own.
   * An ordered bio finds room only when nothing is under way, or where the device keeps the order.
   */
  strategy(bio: Bio): boolean {
    return this.#waiting.length === 0 && this.#give(bio);
  }

  /** After a batch of bios: tells the device. A bio given from inside `done` needs none: the batch of that `done` ends in one. */
  start(): void {
    if (!this.#unstarted) return;
    this.#unstarted = false;
    this.#counters.stamp();
    this.#provider.start();
  }

  #give(bio: Bio): boolean {
    const counters = this.#counters;
    if (this.#alone) return false;
    const alone = bio.ordered && !this.#provider.barrier;
    if (alone && counters.busy > 0) return false;
    const fault = this.#unfit(bio);
    if (fault !== null) {
      bio.done(fault);
      return true;
    }
    // Before it is given: it may be done before that returns.
    this.#alone = alone;
    counters.busy += 1;
    if (this.#provider.strategy(bio)) {
      this.#unstarted = true;
      return true;
    }
    this.#alone = false;
    counters.busy -= 1;
    return false;
  }

  #done(bio: Bio, fault: VirtioFault | null): void {
    // While one is alone no other can be done.
    this.#alone = false;
    this.#counters.over(bio, fault !== null);
    bio.done(fault);
  }

  #room(): void {
    this.#submit();
    if (this.#waiting.length === 0) this.onRoom?.();
    this.start();
    this.#counters.stamp();
  }

  /** Gives the provider what waits, in order, until it has no room. */
  #submit(): void {
    if (this.#submitting) return;
    this.#submitting = true;
    let taken = 0;
    while (taken < this.#waiting.length && this.#give(this.#waiting[taken] as Bio)) taken += 1;
    this.#waiting.splice(0, taken);
    this.#submitting = false;
  }

  #resized(): void {
    for (const listener of [...this.#resizeListeners]) listener(this.mediaSize);
  }

  // ── dump ────────────────────────────────────────────────────────────────────

  /**
   * Writes without interrupts and without waiting in between: for a system that has come to its end (dumpsys). What was under way is
   * over first. No bytes: flushes. Blocks; never in the midst of `done`.
   * @throws VirtioFault INVALID, READ_ONLY, UNSUPPORTED (the disk cannot), BUSY (suspended), TIMED_OUT, and what the device says
   */
  dump(position: number, from: Uint8Array): void {
    const refused = this.#refusal(BioCommand.WRITE, position, from.length);
    if (refused !== null) throw refused;
    const { maxTransfer } = this.#provider;
    try {
      this.#settle();
      if (from.length === 0) this.#dumpOne(this.#bio(BioCommand.FLUSH, 0, 0, null, false));
      for (let at = 0; at < from.length; at += maxTransfer) {
        const data = from.subarray(at, at + maxTransfer);
        this.#dumpOne(this.#bio(BioCommand.WRITE, position + at, data.length, data, false));
      }
    } finally {
      this.#room();
    }
  }

  #dumpOne(bio: Bio): void {
    let fault: VirtioFault | null = null;
    bio.done = (why) => {
      fault = why;
    };
    if (!this.#give(bio)) throw this.#fault("BUSY", "the disk takes no dump now");
    this.start();
    this.#settle();
    if (fault !== null) throw fault;
  }

  /** Waits until nothing is under way. */
  #settle(): void {
    const provider = this.#provider;
    if (provider.poll === undefined) throw this.#fault("UNSUPPORTED", "the disk takes no dump");
    while (this.#counters.busy > 0)
      if (!provider.poll(DUMP_MS)) throw this.#fault("TIMED_OUT", `no answer in ${DUMP_MS} ms`);
  }

  // ── what is refused ─────────────────────────────────────────────────────────

  /** Why a bio may not be given: the media may have shrunk while it waited. */
  #unfit({ command, position, length, data }: Bio): VirtioFault | null {
    const fault = command === BioCommand.FLUSH ? null : this.#refusal(command, position, length);
    if (fault !== null) return fault;
    if (command === BioCommand.READ || command === BioCommand.WRITE) {
      if (length > 0 && length <= this.maxTransfer && data?.length === length) return null;
    } else if (command === BioCommand.FLUSH) {
      if (position === 0 && length === 0 && data === null) return null;
    } else if (length > 0 && length <= (this.#limits(command)?.max ?? 0) && data === null)
      return null;
    return this.#fault("INVALID", `${length} bytes at ${position} are not within a bio's limits`);
  }

  #refusal(command: BioCommand, position: number, length: number): VirtioFault | null {
    const { sectorSize, mediaSize, readOnly } = this.#provider;
    if (readOnly && command !== BioCommand.READ)
      return this.#fault("READ_ONLY", "the disk is read-only");
    const limits = this.#limits(command);
    if (limits === null)
      return this.#fault("UNSUPPORTED", `the disk has no ${rangeNames[command as RangeCommand]}`);
    if (!whole(position, sectorSize) || !whole(length, sectorSize))
      return this.#fault(
        "INVALID",
        `${length} bytes at ${position} are not whole sectors of ${sectorSize}`,
      );
    if (position + length > mediaSize)
      return this.#fault(
        "INVALID",
        `${length} bytes at ${position} are beyond the end of the media, ${mediaSize}`,
      );
    return null;
  }

  /** Undefined for a command that has no range. */
  #limits(command: BioCommand): RangeLimits | null | undefined {
    if (command === BioCommand.DISCARD) return this.#provider.discard;
    if (command === BioCommand.WRITE_ZEROES) return this.#provider.writeZeroes;
    if (command === BioCommand.SECURE_ERASE) return this.#provider.secureErase;
    return undefined;
  }

  #fault(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

/** A whole number of sectors, not negative. By a product: the remainder of numbers above 2^31 takes 20 ns. */
const whole = (value: number, sectorSize: number): boolean =>
  value >= 0 && Math.floor(value / sectorSize) * sectorSize === value;

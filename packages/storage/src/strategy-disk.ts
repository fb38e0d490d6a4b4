// The Disk contract over a strategy (FreeBSD's disk(9)): checks, splitting, order, waiting for room, abort, statistics.
import {
  type Disk,
  type DiskStatistics,
  type TransferOptions,
  VirtioFault,
  type WriteZeroesOptions,
} from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";
import type { DiskProvider, RangeLimits } from "./provider.js";
import { Counters } from "./statistics.js";
import { StrategyZones } from "./strategy-zones.js";

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
 * Polls in a row that bring nothing, after which a dump fails. A device of this thread gets a turn in each, and needs a few for a
 * request; one that needs the event loop never answers. Not by the clock: a machine's may stand still meanwhile.
 */
const POLLS_MAX = 10_000;

/** Before a transfer has all its bios, and once it was given up. */
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
  readonly zones: StrategyZones | null;
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
    this.zones =
      provider.zones === null
        ? null
        : new StrategyZones(provider, provider.zones, {
            send: (bios, signal) => this.#send(bios, signal),
            give: (bio) => this.#give(bio),
          });
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
    options: WriteZeroesOptions = {},
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
    let start = position;
    // All of them are looked at before the first is given.
    for (const piece of pieces) {
      const fault = this.#refusal(command, start, piece.length);
      if (fault !== null) throw fault;
      for (let at = 0, length = 0; at < piece.length; at += length) {
        length = this.#fitting(start + at, piece.length - at);
        const misfit = this.#zoneRefusal(command, start + at, length);
        if (misfit !== null) throw misfit;
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
    { ordered = false, unmap = false, signal }: WriteZeroesOptions,
  ): Promise<void> {
    const fault =
      this.#refusal(command, position, length) ?? this.#zoneRefusal(command, position, length);
    if (fault !== null) throw fault;
    const { max, align } = this.#limits(command) as RangeLimits;
    const bios: Bio[] = [];
    const end = position + length;
    for (let at = position; at < end; ) {
      let next = Math.min(end, at + max);
      const aligned = align > 0 ? Math.floor(next / align) * align : next;
      if (next < end && aligned > at) next = aligned;
      const bio = this.#bio(command, at, next - at, null, ordered);
      if (unmap) bio.unmap = true;
      bios.push(bio);
      at = next;
    }
    return this.#send(bios, signal);
  }

  /** Bytes of one bio: no more than the device takes, and up to the end of a zone. */
  #fitting(position: number, length: number): number {
    const most = Math.min(this.#provider.maxTransfer, length);
    return this.zones === null ? most : Math.min(most, this.zones.map.zoneEnd(position) - position);
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
      /** What is not over; kept only where there is a signal. */
      const held = new Set(signal === undefined ? [] : bios);
      const abort = (): void => {
        this.#waiting = this.#waiting.filter((bio) => !held.delete(bio));
        // What the device holds of the caller's own memory is waited for; all else ends unseen.
        for (const bio of held) {
          if (bio.data !== null && this.#provider.inPlace(bio.data)) continue;
          held.delete(bio);
          bio.data = null;
          bio.done = nobody;
        }
        left = held.size;
        if (left === 0) settle();
        // An ordered bio that waited may have held up others.
        this.#submit();
        this.start();
      };
      if (signal !== undefined) onAbort(signal).add(abort);
      for (const bio of bios) {
        bio.done = done;
        if (signal !== undefined)
          bio.done = (why) => {
            held.delete(bio);
            done(why);
          };
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
    this.#counters.batched();
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
    const { zones } = this;
    if (zones !== null && !zones.admits(bio)) return false;
    const next = zones === null ? 0 : zones.map.begin(bio);
    // Before it is given: it may be done before that returns.
    this.#alone = alone;
    counters.begin(bio);
    if (this.#provider.strategy(bio)) {
      this.#unstarted = true;
      return true;
    }
    this.#alone = false;
    counters.retract(bio);
    zones?.map.retract(bio, next);
    return false;
  }

  #done(bio: Bio, fault: VirtioFault | null): void {
    // While one is alone no other can be done.
    this.#alone = false;
    this.#counters.over(bio, fault !== null);
    this.zones?.map.over(bio, fault !== null);
    bio.done(fault);
  }

  #room(): void {
    this.#submit();
    if (this.#waiting.length === 0) this.onRoom?.();
    this.start();
    this.#counters.batched();
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
    if (this.zones !== null) {
      this.zones.map.resize(this.mediaSize);
      this.#room();
    }
    for (const listener of [...this.#resizeListeners]) listener(this.mediaSize);
  }

  // ── dump ────────────────────────────────────────────────────────────────────

  /**
   * Writes without interrupts and without waiting in between: for a system that has come to its end (dumpsys). What was under way is
   * over first. No bytes: flushes. Blocks; never in the midst of `done`.
   *
   * Only a device that answers within this thread can be dumped to. One in another thread or process is UNSUPPORTED, and nothing is
   * given to it. One whose own back end waits for the event loop (a file's) is TIMED_OUT within milliseconds: what it was given is
   * under way all the same, and bytes in guest memory stay with it.
   * @throws VirtioFault INVALID, READ_ONLY, UNSUPPORTED, BUSY (suspended), TIMED_OUT, and what the device says
   */
  dump(position: number, from: Uint8Array): void {
    const refused = this.#refusal(BioCommand.WRITE, position, from.length);
    if (refused !== null) throw refused;
    try {
      this.#settle();
      if (from.length === 0) this.#dumpOne(this.#bio(BioCommand.FLUSH, 0, 0, null, false));
      for (let at = 0, length = 0; at < from.length; at += length) {
        length = this.#fitting(position + at, from.length - at);
        const data = from.subarray(at, at + length);
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
    if (!this.#give(bio)) {
      // Of its zone a report may be under way.
      this.start();
      this.#settle();
      if (!this.#give(bio)) throw this.#fault("BUSY", "the disk takes no dump now");
    }
    this.start();
    this.#settle();
    if (fault !== null) throw fault;
  }

  /** Waits until nothing is under way. */
  #settle(): void {
    const provider = this.#provider;
    if (provider.poll === undefined)
      throw this.#fault("UNSUPPORTED", "the disk takes no dump: its device cannot be polled");
    for (let polls = 0; this.#counters.busy > 0; polls++) {
      this.#counters.batched();
      if (provider.poll()) polls = 0;
      else if (polls === POLLS_MAX)
        throw this.#fault("TIMED_OUT", `no answer to a dump in ${POLLS_MAX} polls`);
    }
  }

  // ── what is refused ─────────────────────────────────────────────────────────

  /** Why a bio may not be given: the media may have shrunk while it waited. */
  #unfit({ command, position, length, data }: Bio): VirtioFault | null {
    if (command >= BioCommand.ZONE_REPORT) return this.#unfitZone(command, position, length, data);
    const fault =
      command === BioCommand.FLUSH
        ? null
        : (this.#refusal(command, position, length) ??
          this.#zoneRefusal(command, position, length));
    if (fault !== null) return fault;
    if (command === BioCommand.READ || command === BioCommand.WRITE) {
      if (length > 0 && length <= this.maxTransfer && data?.length === length) return null;
    } else if (command === BioCommand.FLUSH) {
      if (position === 0 && length === 0 && data === null) return null;
    } else if (length > 0 && length <= (this.#limits(command)?.max ?? 0) && data === null)
      return null;
    return this.#fault("INVALID", `${length} bytes at ${position} are not within a bio's limits`);
  }

  #unfitZone(
    command: BioCommand,
    position: number,
    length: number,
    data: Uint8Array | null,
  ): VirtioFault | null {
    if (this.zones === null) return this.#fault("UNSUPPORTED", "the disk has no zones");
    const moved = command === BioCommand.ZONE_REPORT || command === BioCommand.ZONE_APPEND;
    if (length <= this.maxTransfer && (moved ? data?.length === length : data === null))
      return this.zones.unfit(command, position, length);
    return this.#fault("INVALID", `${length} bytes at ${position} are not within a bio's limits`);
  }

  /** What the zones say to a bio of the disk itself. */
  #zoneRefusal(command: BioCommand, position: number, length: number): VirtioFault | null {
    if (this.zones === null) return null;
    const { map } = this.zones;
    const what =
      command === BioCommand.READ || command === BioCommand.WRITE
        ? map.refusal(command, position, length)
        : map.rangeRefusal(command, position, length);
    return what === null ? null : this.#fault("INVALID", what);
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

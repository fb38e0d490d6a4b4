// The zones of a disk over a strategy (disk_zone(4)): checks, and reports as many as it takes.
import { type TransferOptions, VirtioFault, type Zone, type ZonedDisk } from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";
import type { DiskProvider, ZoneProvider } from "./provider.js";
import { ZoneMap } from "./zone-map.js";

/** What is done to one zone, or to all. */
type Management =
  | BioCommand.ZONE_OPEN
  | BioCommand.ZONE_CLOSE
  | BioCommand.ZONE_FINISH
  | BioCommand.ZONE_RESET
  | BioCommand.ZONE_RESET_ALL;

/** What the disk does for its zones. */
export interface ZoneStrategy {
  /** Gives bios, and resolves when they are over. */
  readonly send: (bios: readonly Bio[], signal: AbortSignal | undefined) => Promise<void>;
  /** Gives a bio past all that waits; false when there is no room now. */
  readonly give: (bio: Bio) => boolean;
}

const nobody = (): void => {};

/** {@inheritDoc @virtio/core#ZonedDisk} */
export class StrategyZones implements ZonedDisk {
  readonly map: ZoneMap;
  readonly #provider: DiskProvider;
  readonly #zones: ZoneProvider;
  readonly #strategy: ZoneStrategy;
  /** The zone that is being reported anew; -1: none. */
  #asked = -1;

  constructor(provider: DiskProvider, zones: ZoneProvider, strategy: ZoneStrategy) {
    this.#provider = provider;
    this.#zones = zones;
    this.#strategy = strategy;
    this.map = new ZoneMap(zones, provider.mediaSize);
  }

  get model(): ZonedDisk["model"] {
    return this.#zones.model;
  }
  get zoneSize(): number {
    return this.#zones.zoneSize;
  }
  get maxOpen(): number {
    return this.#zones.maxOpen;
  }
  get maxActive(): number {
    return this.#zones.maxActive;
  }
  get maxAppend(): number {
    return this.#zones.maxAppend;
  }
  get writeGranularity(): number {
    return this.#zones.writeGranularity;
  }

  async report(
    position: number,
    count: number,
    { ordered = false, signal }: TransferOptions = {},
  ): Promise<readonly Zone[]> {
    const zones: Zone[] = [];
    const { map } = this;
    if (!Number.isSafeInteger(count) || count < 0)
      throw this.#fault("INVALID", `a report of ${count} zones`);
    const bad = this.unfit(BioCommand.ZONE_REPORT, position, 0);
    if (bad !== null) throw bad;
    const first = map.zoneOf(position);
    const end = Math.min(map.count, first + count);
    const since = map.now;
    const header = this.#zones.reportSize(0);
    const most = Math.floor(
      (this.#provider.maxTransfer - header) / (this.#zones.reportSize(1) - header),
    );
    while (first + zones.length < end) {
      const next = first + zones.length;
      const wanted = Math.min(most, end - next);
      const bio = this.#reportBio(next, wanted, ordered);
      const { data } = bio;
      await this.#strategy.send([bio], signal);
      // The driver says at least one, so this ends.
      zones.push(...this.#zones.readReport(data as Uint8Array, next, wanted));
    }
    map.learn(zones, since);
    return zones;
  }

  open(position: number, options: TransferOptions = {}): Promise<void> {
    return this.#manage(BioCommand.ZONE_OPEN, position, options);
  }

  close(position: number, options: TransferOptions = {}): Promise<void> {
    return this.#manage(BioCommand.ZONE_CLOSE, position, options);
  }

  finish(position: number, options: TransferOptions = {}): Promise<void> {
    return this.#manage(BioCommand.ZONE_FINISH, position, options);
  }

  reset(position: number, options: TransferOptions = {}): Promise<void> {
    return this.#manage(BioCommand.ZONE_RESET, position, options);
  }

  resetAll(options: TransferOptions = {}): Promise<void> {
    return this.#manage(BioCommand.ZONE_RESET_ALL, 0, options);
  }

  async append(
    position: number,
    data: Uint8Array,
    { ordered = false, signal }: TransferOptions = {},
  ): Promise<number> {
    const { length } = data;
    const bad = this.unfit(BioCommand.ZONE_APPEND, position, length);
    if (bad !== null) throw bad;
    const bio: Bio = {
      command: BioCommand.ZONE_APPEND,
      position,
      length,
      data,
      ordered,
      done: nobody,
    };
    await this.#strategy.send([bio], signal);
    return bio.position;
  }

  async #manage(
    command: Management,
    position: number,
    { ordered = false, signal }: TransferOptions,
  ): Promise<void> {
    const bad = this.unfit(command, position, 0);
    if (bad !== null) throw bad;
    await this.#strategy.send(
      [{ command, position, length: 0, data: null, ordered, done: nobody }],
      signal,
    );
  }

  /** Why a bio of a zone command may not be given; of a report only its position is looked at. */
  unfit(command: BioCommand, position: number, length: number): VirtioFault | null {
    const { mediaSize, sectorSize, readOnly } = this.#provider;
    const { zoneSize, maxAppend } = this.#zones;
    if (readOnly && command !== BioCommand.ZONE_REPORT)
      return this.#fault("READ_ONLY", "the disk is read-only");
    if (!(position >= 0 && position < mediaSize))
      return this.#fault("INVALID", `${position} is beyond the end of the media, ${mediaSize}`);
    if (command === BioCommand.ZONE_REPORT)
      return position % sectorSize === 0
        ? null
        : this.#fault("INVALID", `${position} is not a whole sector of ${sectorSize}`);
    if (position % zoneSize !== 0 || (command === BioCommand.ZONE_RESET_ALL && position !== 0))
      return this.#fault("INVALID", `${position} is not the start of a zone of ${zoneSize}`);
    if (command !== BioCommand.ZONE_APPEND) return null;
    if (maxAppend === 0) return this.#fault("UNSUPPORTED", "the disk has no append");
    if (length === 0) return this.#fault("INVALID", "an append of no bytes");
    const what = this.map.refusal(command, position, length);
    return what === null ? null : this.#fault("INVALID", what);
  }

  /** Whether a bio can be given now; asks for a report of a zone of which too little is known. */
  admits(bio: Bio): boolean {
    const admission = this.map.admission(bio);
    if (admission === "report") this.#ask(this.map.zoneOf(bio.position));
    return admission === "now";
  }

  /** Once it is done there is room. One at a time. */
  #ask(zone: number): void {
    if (this.#asked >= 0) return;
    const bio = this.#reportBio(zone, 1, false);
    const { data } = bio;
    const since = this.map.now;
    bio.done = (fault) => {
      this.#asked = -1;
      try {
        if (fault !== null) throw fault;
        this.map.learn(this.#zones.readReport(data as Uint8Array, zone, 1), since);
      } catch {
        this.map.unknown(zone);
      }
    };
    this.#asked = zone;
    if (!this.#strategy.give(bio)) this.#asked = -1;
  }

  #reportBio(zone: number, count: number, ordered: boolean): Bio {
    const data = new Uint8Array(this.#zones.reportSize(count));
    return {
      command: BioCommand.ZONE_REPORT,
      position: zone * this.#zones.zoneSize,
      length: data.length,
      data,
      ordered,
      done: nobody,
    };
  }

  #fault(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#provider.name });
  }
}

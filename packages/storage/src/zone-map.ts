// What is known of the zones of a disk: what reports said of them, and what was written since. By it writes are refused that do not fit
// their zone, before the device sees them.
import type { Zone } from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";
import type { ZoneProvider } from "./provider.js";

/** What is known of one zone. */
enum Kind {
  /** Never reported, or the report failed: its bounds are all that holds. */
  UNKNOWN,
  CONVENTIONAL,
  REQUIRED,
  PREFERRED,
  /** Read-only or offline: the device says so itself. */
  CLOSED,
}

const kinds = {
  conventional: Kind.CONVENTIONAL,
  "sequential-required": Kind.REQUIRED,
  "sequential-preferred": Kind.PREFERRED,
} as const;

/** Whether a bio can be given: now, later, or once its zone is reported anew. */
export type Admission = "now" | "later" | "report";

/**
 * One entry for each zone. At most one write to a sequential-required zone is under way: there is no order between queues, and a write
 * that is overtaken fails.
 */
export class ZoneMap {
  readonly #zones: ZoneProvider;
  #kind = new Uint8Array(0);
  /** Where the zone's capacity ends. */
  #end = new Float64Array(0);
  /** Where its write pointer is when all that is under way succeeds: never less than it is. */
  #next = new Float64Array(0);
  /** Writes and appends that are under way, and of all zones together. */
  #busy = new Uint32Array(0);
  #writes = 0;
  /** 1: a reset or a finish is under way; of all zones together, and whether there is one of several at once. */
  #managed = new Uint8Array(0);
  #managements = 0;
  #all = false;
  /** When something was last begun or over, counted in such events: a report from before says nothing. */
  #touched = new Float64Array(0);
  #tick = 0;
  /** 1: one failed, and nobody knows how far it came: to be reported anew. */
  #stale = new Uint8Array(0);

  constructor(zones: ZoneProvider, mediaSize: number) {
    this.#zones = zones;
    this.resize(mediaSize);
  }

  /** Zones of the disk. */
  get count(): number {
    return this.#kind.length;
  }

  /** The zone that a position lies in. */
  zoneOf(position: number): number {
    return Math.floor(position / this.#zones.zoneSize);
  }

  /** Where that zone ends, or would if it were not the last. */
  zoneEnd(position: number): number {
    return (this.zoneOf(position) + 1) * this.#zones.zoneSize;
  }

  /** What is new, and what was the last zone, is not known. */
  resize(mediaSize: number): void {
    const last = this.#kind.length - 1;
    const count = Math.ceil(mediaSize / this.#zones.zoneSize);
    const copy = <T extends Uint8Array | Uint32Array | Float64Array>(from: T, to: T): T => {
      to.set(from.subarray(0, count));
      return to;
    };
    this.#kind = copy(this.#kind, new Uint8Array(count));
    this.#end = copy(this.#end, new Float64Array(count));
    this.#next = copy(this.#next, new Float64Array(count));
    this.#busy = copy(this.#busy, new Uint32Array(count));
    this.#managed = copy(this.#managed, new Uint8Array(count));
    this.#touched = copy(this.#touched, new Float64Array(count));
    this.#stale = copy(this.#stale, new Uint8Array(count));
    this.#stale.fill(1, Math.max(0, Math.min(last, count)));
  }

  /** When a report is asked for: what `learn` takes. */
  get now(): number {
    return this.#tick;
  }

  /** Takes a report that was asked for at `since` for true, but for zones that something was done to meanwhile. */
  learn(zones: readonly Zone[], since: number): void {
    for (const { position, capacity, type, condition, writePointer } of zones) {
      const zone = this.zoneOf(position);
      if (this.#busy[zone] !== 0 || (this.#touched[zone] as number) > since) continue;
      if (this.#isManaged(zone)) continue;
      const end = position + capacity;
      const closed = condition === "read-only" || condition === "offline";
      this.#kind[zone] = closed ? Kind.CLOSED : kinds[type];
      this.#end[zone] = end;
      this.#next[zone] = writePointer ?? end;
      this.#stale[zone] = 0;
    }
  }

  /** The report of this zone failed: it is not asked for again and again. */
  unknown(zone: number): void {
    this.#kind[zone] = Kind.UNKNOWN;
    this.#stale[zone] = 0;
  }

  /** Why a read, a write, or an append with its zone's position, does not fit its zone; null: it does, or that is not known. */
  refusal(command: BioCommand, position: number, length: number): string | null {
    const { writeGranularity, zoneSize, maxAppend } = this.#zones;
    const zone = this.zoneOf(position);
    const kind = this.#kind[zone];
    const append = command === BioCommand.ZONE_APPEND;
    const what = `${length} bytes at ${position}`;
    if (position + length > this.zoneEnd(position)) return `${what} cross the end of a zone`;
    if (command === BioCommand.READ) return null;
    if (kind === Kind.CONVENTIONAL)
      return append ? `the zone at ${position} is conventional: it has no append` : null;
    if (append && position % zoneSize !== 0) return `${position} is not the start of a zone`;
    if (append && kind === Kind.PREFERRED)
      return `the zone at ${position} is not sequential-required: it has no append`;
    if (append && length > maxAppend) return `an append of ${length} bytes, at most ${maxAppend}`;
    if (length % writeGranularity !== 0 || position % writeGranularity !== 0)
      return `${what} are not a multiple of the write granularity, ${writeGranularity}`;
    if (kind === Kind.UNKNOWN || kind === Kind.CLOSED || this.#stale[zone] !== 0) return null;
    const next = this.#next[zone] as number;
    // What a host-aware zone holds may be written over.
    const from = append ? next : kind === Kind.REQUIRED ? Math.max(next, position) : position;
    const end = this.#end[zone] as number;
    if (from + length > end)
      return `${what} are more than is left of the zone, ${Math.max(0, end - from)}`;
    return null;
  }

  /** Why zeroes cannot be written to, or a secure erase not be done of, a range. */
  rangeRefusal(command: BioCommand, position: number, length: number): string | null {
    const { zoneSize } = this.#zones;
    const what = `${length} bytes at ${position}`;
    if (command === BioCommand.SECURE_ERASE)
      return position % zoneSize === 0 && length % zoneSize === 0
        ? null
        : `${what} are not whole zones of ${zoneSize}`;
    if (command !== BioCommand.WRITE_ZEROES) return null;
    const last = this.zoneOf(position + length - 1);
    for (let zone = this.zoneOf(position); zone <= last; zone++)
      if (this.#kind[zone] === Kind.REQUIRED)
        return `${what} lie in a zone that must be written in order`;
    return null;
  }

  /** Whether a bio can be given. What moves write pointers back or to the end is kept apart from writes. */
  admission({ command, position }: Bio): Admission {
    const zone = this.zoneOf(position);
    // The disk has grown, and resize() is about to be called.
    if (zone >= this.count) return "later";
    const busy = this.#busy[zone] !== 0;
    if (isManagement(command)) {
      const alone = isOfSeveral(command) ? this.#writes === 0 && this.#managements === 0 : !busy;
      return alone && !this.#isManaged(zone) ? "now" : "later";
    }
    if (!isWrite(command)) return "now";
    if (this.#isManaged(zone)) return "later";
    if (this.#stale[zone] === 1) return busy ? "later" : "report";
    // Only what may be sequential-required: others take writes in any order.
    const ordered = this.#kind[zone] === Kind.REQUIRED || this.#kind[zone] === Kind.UNKNOWN;
    return ordered && command === BioCommand.WRITE && busy ? "later" : "now";
  }

  #isManaged(zone: number): boolean {
    return this.#all || this.#managed[zone] === 1;
  }

  /** A bio is given. Returns what `retract` takes. */
  begin(bio: Bio): number {
    const { command, position, length } = bio;
    const zone = this.zoneOf(position);
    const next = this.#next[zone] as number;
    this.#count(bio, 1);
    if (command === BioCommand.ZONE_APPEND) this.#next[zone] = next + length;
    else if (command === BioCommand.WRITE) this.#next[zone] = Math.max(next, position + length);
    return next;
  }

  /** There was no room for the bio that was begun last. */
  retract(bio: Bio, next: number): void {
    this.#count(bio, -1);
    this.#next[this.zoneOf(bio.position)] = next;
  }

  /** A bio that was given is over. */
  over(bio: Bio, failed: boolean): void {
    const { command, position, length } = bio;
    const zone = this.zoneOf(position);
    this.#count(bio, -1);
    if (isWrite(command)) {
      if (failed && this.#kind[zone] !== Kind.CONVENTIONAL) this.#stale[zone] = 1;
    } else if (command === BioCommand.ZONE_FINISH) this.#moved(zone, failed, this.#end[zone] ?? 0);
    else if (isManagement(command)) {
      const { zoneSize } = this.#zones;
      const all = command === BioCommand.ZONE_RESET_ALL;
      const end = all ? this.count : this.zoneOf(position + Math.max(length, zoneSize));
      for (let each = zone; each < end; each++) this.#moved(each, failed, each * zoneSize);
    }
  }

  #moved(zone: number, failed: boolean, next: number): void {
    const kind = this.#kind[zone];
    if (kind !== Kind.REQUIRED && kind !== Kind.PREFERRED) return;
    if (failed) this.#stale[zone] = 1;
    else this.#next[zone] = next;
  }

  /** Counts what is under way, and notes that the zone is not what a report before may say. */
  #count({ command, position }: Bio, by: 1 | -1): void {
    const zone = this.zoneOf(position);
    const write = isWrite(command);
    if (!write && !isManagement(command)) return;
    this.#tick += 1;
    if (isOfSeveral(command)) {
      this.#managements += by;
      this.#all = by === 1;
      this.#touched.fill(this.#tick);
      return;
    }
    this.#touched[zone] = this.#tick;
    if (write) {
      this.#writes += by;
      // A zone that was cut off meanwhile, and is there again, has none.
      this.#busy[zone] = Math.max(0, (this.#busy[zone] as number) + by);
    } else {
      this.#managements += by;
      this.#managed[zone] = by === 1 ? 1 : 0;
    }
  }
}

const isWrite = (command: BioCommand): boolean =>
  command === BioCommand.WRITE || command === BioCommand.ZONE_APPEND;

/** Commands that move the write pointers of several zones. */
const isOfSeveral = (command: BioCommand): boolean =>
  command === BioCommand.ZONE_RESET_ALL || command === BioCommand.SECURE_ERASE;

/** Commands that move write pointers other than by writing. */
const isManagement = (command: BioCommand): boolean =>
  command === BioCommand.ZONE_FINISH || command === BioCommand.ZONE_RESET || isOfSeveral(command);

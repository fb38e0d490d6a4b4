// The zones of a block device (virtio 1.4 §5.2.6, ZONED), written from the device clauses: their states, write pointers and limits.
// What is in them is the backend's. They live as long as the device: a reset of it changes nothing, a machine made anew finds them empty.
import { VirtioFault } from "@virtio/core";
import {
  BLOCK_ZONE_DESCRIPTOR_SIZE,
  BLOCK_ZONE_REPORT_HEADER_SIZE,
  BlockRequestType,
  BlockStatus,
  BlockZoneDescriptor,
  BlockZoneState,
  BlockZoneType,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { ObservedZone, ObservedZones } from "../rules/zone-rules.js";

const { OK, ZONE_INVALID_CMD, ZONE_UNALIGNED_WP, ZONE_OPEN_RESOURCE, ZONE_ACTIVE_RESOURCE } =
  BlockStatus;
const { NOT_WP, EMPTY, IOPEN, EOPEN, CLOSED, RDONLY, FULL, OFFLINE } = BlockZoneState;
const { CONV, SWR, SWP } = BlockZoneType;

/** A zoned device: what there is of zones, and of how many. */
export interface ZonedCharacteristics {
  /** `none`: ZONED is offered by a disk that has no zones to show. */
  readonly model: "none" | "host-managed" | "host-aware";
  /** Sectors of a zone; the last one may be smaller. */
  readonly zoneSectors: number;
  /** Sectors of a zone that can be written; fewer than all on a host-managed disk only. Default: all. */
  readonly zoneCapacity?: number | undefined;
  /** How many of the first zones are conventional. Default 0. */
  readonly conventional?: number | undefined;
  /** Zones that may be open, and active, at a time. Default 0: any number. */
  readonly maxOpen?: number | undefined;
  readonly maxActive?: number | undefined;
  /** Default: as many as a zone has and a request carries; 0: no append. */
  readonly maxAppendSectors?: number | undefined;
  /** Bytes that writes to sequential zones are multiples of. Default: a block. */
  readonly writeGranularity?: number | undefined;
  /** Numbers of zones that are read-only, and offline. */
  readonly readOnly?: readonly number[] | undefined;
  readonly offline?: readonly number[] | undefined;
}

/** One zone. `wp` stays where it was when the zone was finished: what lies behind it was never written. In sectors. */
interface ZoneEntry extends ObservedZone {
  state: BlockZoneState;
  wp: number;
}

const isOpen = ({ state }: ZoneEntry): boolean => state === IOPEN || state === EOPEN;
const isActive = (zone: ZoneEntry): boolean => isOpen(zone) || zone.state === CLOSED;

/** {@inheritDoc ObservedZones} */
export class Zones implements ObservedZones {
  readonly zoneSectors: number;
  readonly granularity: number;
  readonly maxAppend: number;
  readonly #what: ZonedCharacteristics;
  readonly #capacity: () => number;
  readonly #zones: ZoneEntry[] = [];

  /**
   * @param granularity - bytes
   * @param capacity - sectors of the disk now
   */
  constructor(
    what: ZonedCharacteristics,
    granularity: number,
    maxAppend: number,
    capacity: () => number,
  ) {
    this.zoneSectors = what.zoneSectors;
    this.granularity = granularity;
    this.maxAppend = maxAppend;
    this.#what = what;
    this.#capacity = capacity;
  }

  /** All zones that the disk has at its present size. */
  get #all(): readonly ZoneEntry[] {
    const { model, zoneSectors, conventional = 0, readOnly = [], offline = [] } = this.#what;
    const count = Math.ceil(this.#capacity() / zoneSectors);
    const zones = this.#zones;
    for (let n = zones.length; n < count; n++) {
      const type = n < conventional ? CONV : model === "host-managed" ? SWR : SWP;
      const start = n * zoneSectors;
      const state = offline.includes(n) ? OFFLINE : readOnly.includes(n) ? RDONLY : EMPTY;
      zones.push({ type, start, state: type === CONV ? NOT_WP : state, wp: start });
    }
    zones.length = count;
    return zones;
  }

  at(sector: number): ObservedZone | undefined {
    return this.#at(sector);
  }

  #at(sector: number): ZoneEntry | undefined {
    return this.#all[Math.floor(sector / this.zoneSectors)];
  }

  /** The zone that begins at a sector. */
  #startingAt(sector: number): ZoneEntry | undefined {
    const zone = this.#at(sector);
    return zone?.start === sector ? zone : undefined;
  }

  /** Where a zone ends. */
  #end({ start }: ObservedZone): number {
    return Math.min(start + this.zoneSectors, this.#capacity());
  }

  writableEnd(zone: ObservedZone): number {
    const { zoneSectors, zoneCapacity = zoneSectors } = this.#what;
    return Math.min(
      zone.start + (zone.type === CONV ? zoneSectors : zoneCapacity),
      this.#end(zone),
    );
  }

  /** A range, zone by zone. */
  #slices(
    sector: number,
    sectors: number,
  ): readonly { readonly zone: ZoneEntry; readonly from: number; readonly to: number }[] {
    const slices = [];
    for (let at = sector; at < sector + sectors; ) {
      const zone = this.#at(at);
      if (zone === undefined) break;
      const to = Math.min(sector + sectors, this.#end(zone));
      slices.push({ zone, from: at, to });
      at = to;
    }
    return slices;
  }

  // ── data ────────────────────────────────────────────────────────────────────

  /** Whether a range may be read. */
  read(sector: number, sectors: number): BlockStatus {
    const slices = this.#slices(sector, sectors);
    const crosses = slices.length > 1 && slices.some(({ zone }) => zone.type === SWR);
    return crosses || slices.some(({ zone }) => zone.state === OFFLINE) ? ZONE_INVALID_CMD : OK;
  }

  /** The parts of a range that were not written since their zones were emptied: they read as zeroes. Each from and to. */
  unwritten(sector: number, sectors: number): readonly (readonly [from: number, to: number])[] {
    return this.#slices(sector, sectors)
      .filter(({ zone, to }) => zone.state !== NOT_WP && zone.state !== RDONLY && to > zone.wp)
      .map(({ zone, from, to }) => [Math.max(from, zone.wp), to]);
  }

  /**
   * A write: opens zones, and moves their write pointers.
   * @param limited - the driver knows of zones, and so of limits
   */
  write(sector: number, sectors: number, limited: boolean): BlockStatus {
    const slices = this.#slices(sector, sectors);
    if (slices.length > 1 && slices.some(({ zone }) => zone.type === SWR)) return ZONE_INVALID_CMD;
    for (const { zone, from, to } of slices) {
      if (zone.state === RDONLY || zone.state === OFFLINE) return ZONE_INVALID_CMD;
      if (zone.type === SWR) {
        if (zone.state === FULL) return ZONE_INVALID_CMD;
        if (from !== zone.wp || (to * SECTOR_SIZE) % this.granularity !== 0)
          return ZONE_UNALIGNED_WP;
      }
      if (zone.type !== CONV && to > this.writableEnd(zone)) return ZONE_INVALID_CMD;
    }
    // What a full host-aware zone holds is written over, and it stays full.
    const zones = slices
      .map(({ zone }) => zone)
      .filter(({ state }) => ![NOT_WP, FULL].includes(state));
    const status = this.#open(zones, IOPEN, limited);
    if (status !== OK) return status;
    for (const { zone, to } of slices) {
      if (zone.type === CONV) continue;
      zone.wp = Math.max(zone.wp, to);
      if (zone.wp === this.writableEnd(zone)) zone.state = FULL;
    }
    return OK;
  }

  /** An append: a status, or the sector that it goes to. */
  append(sector: number, sectors: number): { readonly status: BlockStatus; readonly at: number } {
    const refused = (status: BlockStatus) => ({ status, at: 0 });
    const zone = this.#startingAt(sector);
    if (zone === undefined || zone.type !== SWR) return refused(ZONE_INVALID_CMD);
    if (zone.state === OFFLINE || zone.state === RDONLY || zone.state === FULL)
      return refused(ZONE_INVALID_CMD);
    if (sectors > this.maxAppend)
      return refused(this.maxAppend === 0 ? BlockStatus.UNSUPP : ZONE_INVALID_CMD);
    if (zone.wp + sectors > this.writableEnd(zone)) return refused(ZONE_INVALID_CMD);
    const at = zone.wp;
    return { status: this.write(at, sectors, true), at };
  }

  /**
   * Whether a command that names ranges may touch this one: a secure erase takes whole zones that could be reset, and the others none
   * that must be written in order.
   */
  range(type: BlockRequestType, sector: number, sectors: number): BlockStatus {
    const slices = this.#slices(sector, sectors);
    const { zoneSectors } = this.#what;
    const kept =
      type === BlockRequestType.SECURE_ERASE
        ? sector % zoneSectors === 0 &&
          sectors % zoneSectors === 0 &&
          slices.every(({ zone }) => ![NOT_WP, RDONLY, OFFLINE].includes(zone.state))
        : slices.every(({ zone }) => zone.type !== SWR && ![RDONLY, OFFLINE].includes(zone.state));
    return kept ? OK : ZONE_INVALID_CMD;
  }

  /** A secure erase that `range` allowed. */
  erase(sector: number, sectors: number): void {
    for (const { zone } of this.#slices(sector, sectors)) this.#empty(zone);
  }

  // ── states ──────────────────────────────────────────────────────────────────

  /** ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET, ZONE_RESET_ALL. */
  manage(type: BlockRequestType, sector: number): BlockStatus {
    if (type === BlockRequestType.ZONE_RESET_ALL) {
      for (const zone of this.#all) if (isActive(zone) || zone.state === FULL) this.#empty(zone);
      return OK;
    }
    const zone = this.#startingAt(sector);
    if (zone === undefined) return ZONE_INVALID_CMD;
    const { state } = zone;
    if (state === NOT_WP || state === RDONLY || state === OFFLINE) return ZONE_INVALID_CMD;
    if (type === BlockRequestType.ZONE_RESET) {
      this.#empty(zone);
      return OK;
    }
    if (type === BlockRequestType.ZONE_OPEN)
      return state === FULL ? ZONE_INVALID_CMD : this.#open([zone], EOPEN, true);
    if (type === BlockRequestType.ZONE_CLOSE) {
      if (!isActive(zone)) return ZONE_INVALID_CMD;
      zone.state = zone.wp === zone.start ? EMPTY : CLOSED;
      return OK;
    }
    // ZONE_FINISH: of an empty or a closed zone §5.2.6 knows no way to FULL.
    if (!isOpen(zone) && state !== FULL) return ZONE_INVALID_CMD;
    zone.state = FULL;
    return OK;
  }

  #empty(zone: ZoneEntry): void {
    zone.state = EMPTY;
    zone.wp = zone.start;
  }

  /** Opens zones, all or none, and closes implicitly open ones where they take the place (§5.2.6.2). */
  #open(
    zones: readonly ZoneEntry[],
    state: BlockZoneState.IOPEN | BlockZoneState.EOPEN,
    limited: boolean,
  ): BlockStatus {
    const { maxOpen = 0, maxActive = 0 } = this.#what;
    if (limited && maxOpen + maxActive > 0 && !zones.every(isOpen)) {
      const others = this.#all.filter((zone) => !zones.includes(zone));
      if (maxActive > 0 && others.filter(isActive).length + zones.length > maxActive)
        return ZONE_ACTIVE_RESOURCE;
      if (maxOpen > 0) {
        const excess = others.filter(isOpen).length + zones.length - maxOpen;
        const closable = others.filter((zone) => zone.state === IOPEN);
        if (excess > closable.length) return ZONE_OPEN_RESOURCE;
        for (const zone of closable.slice(0, Math.max(0, excess))) zone.state = CLOSED;
      }
    }
    for (const zone of zones) if (state === EOPEN || !isOpen(zone)) zone.state = state;
    return OK;
  }

  // ── report ──────────────────────────────────────────────────────────────────

  /** The report of as many zones as `length` bytes hold, from the one that a sector lies in; null: no such sector, or no room for a header. */
  report(sector: number, length: number): Uint8Array | null {
    if (sector >= this.#capacity() || length < BLOCK_ZONE_REPORT_HEADER_SIZE) return null;
    const room = Math.floor((length - BLOCK_ZONE_REPORT_HEADER_SIZE) / BLOCK_ZONE_DESCRIPTOR_SIZE);
    const first = Math.floor(sector / this.zoneSectors);
    const zones = this.#all.slice(first, first + room);
    const bytes = new Uint8Array(
      BLOCK_ZONE_REPORT_HEADER_SIZE + zones.length * BLOCK_ZONE_DESCRIPTOR_SIZE,
    );
    const words = new DataView(bytes.buffer);
    words.setUint32(0, zones.length, true);
    for (const [i, zone] of zones.entries()) {
      const base = BLOCK_ZONE_REPORT_HEADER_SIZE + i * BLOCK_ZONE_DESCRIPTOR_SIZE;
      const { zCap, zStart, zWp, zType, zState } = BlockZoneDescriptor;
      for (const [[at], value] of [
        [zCap, this.writableEnd(zone) - zone.start],
        [zStart, zone.start],
        [zWp, zone.wp],
      ] as const) {
        words.setUint32(base + at, value % 0x1_0000_0000, true);
        words.setUint32(base + at + 4, Math.floor(value / 0x1_0000_0000), true);
      }
      words.setUint8(base + zType[0], zone.type);
      words.setUint8(base + zState[0], zone.state);
    }
    return bytes;
  }
}

/**
 * Whether a disk can have these zones.
 * @throws VirtioFault INVALID
 */
export function checkZones(
  { zoneSectors, zoneCapacity = zoneSectors, model }: ZonedCharacteristics,
  granularity: number,
  blockSize: number,
): void {
  const refuse = (what: string): never => {
    throw new VirtioFault("INVALID", `zoned: ${what}`);
  };
  if (model === "none") return;
  if (granularity <= 0 || granularity % blockSize !== 0)
    refuse(`writeGranularity ${granularity} is no multiple of a block of ${blockSize}`);
  for (const [name, sectors] of Object.entries({ zoneSectors, zoneCapacity }))
    if (!(sectors > 0 && (sectors * SECTOR_SIZE) % granularity === 0))
      refuse(`${name} ${sectors} is no multiple of writeGranularity ${granularity}`);
  if (model === "host-aware" && zoneCapacity !== zoneSectors)
    refuse("a host-aware disk can be written everywhere: zoneCapacity is not for it");
  if (zoneCapacity > zoneSectors) refuse(`zoneCapacity ${zoneCapacity} is above ${zoneSectors}`);
}

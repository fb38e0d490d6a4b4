// Rules that a block device with zones sees: virtio 1.4 §5.2.5.1, §5.2.6.1, ZONED.
import { DeviceStatus } from "@virtio/core";
import {
  BlockFeature,
  BlockRequestType,
  BlockZoneState,
  BlockZoneType,
  SECTOR_SIZE,
} from "@virtio/core/block";
import { hasBit } from "../feature-words.js";
import type { BlockRequest } from "./block-rules.js";
import type { RuleBook } from "./rule-book.js";

/** A zone as the rules look at it. In sectors. */
export interface ObservedZone {
  readonly type: BlockZoneType;
  readonly start: number;
  readonly state: BlockZoneState;
  readonly wp: number;
}

/** The zones of a device. In sectors, all but the granularity. */
export interface ObservedZones {
  readonly zoneSectors: number;
  readonly maxAppend: number;
  /** Bytes. */
  readonly granularity: number;
  /** The zone that a sector lies in. */
  at(sector: number): ObservedZone | undefined;
  /** Where what can be written of a zone ends. */
  writableEnd(zone: ObservedZone): number;
}

/** Requests whose sector is a zone's first. */
const addressed: readonly number[] = [
  BlockRequestType.ZONE_OPEN,
  BlockRequestType.ZONE_CLOSE,
  BlockRequestType.ZONE_FINISH,
  BlockRequestType.ZONE_RESET,
];

/**
 * Looks at one request of a driver that accepted ZONED.
 * @param capacity - sectors that the driver may take the disk to have
 */
export function checkZoneRequest(
  book: RuleBook,
  device: string,
  { type, sectorLow, sectorHigh, dataOut }: BlockRequest,
  capacity: number,
  zones: ObservedZones,
): void {
  const sector = sectorHigh * 0x1_0000_0000 + sectorLow;
  const check = (clause: string, kept: boolean, what: string): void =>
    book.check(clause, kept, device, () => `${BlockRequestType[type] ?? type}: ${what}`);
  const append = type === BlockRequestType.ZONE_APPEND;
  const first = sector % zones.zoneSectors === 0;
  const where = `sector ${sector}`;
  // On the wire every address is a multiple of 512 bytes; one that is given in bytes lies far out.
  if (append || addressed.includes(type))
    check("BLK-OP-17", sector < capacity, `${where} of ${capacity} is no zone's`);
  if (addressed.includes(type)) check("BLK-OP-20", first, `${where} is not a zone's first`);
  if (type === BlockRequestType.ZONE_REPORT)
    check("BLK-OP-18", sector < capacity, `${where} of ${capacity} lies in no zone`);
  if (type === BlockRequestType.ZONE_RESET_ALL)
    check("BLK-OP-21", sector === 0, `${where}, and not 0`);
  const size = `${dataOut} bytes`;
  const whole = dataOut % zones.granularity === 0;
  if (append) {
    check("BLK-OP-22", first, `${where} is not a zone's first`);
    check("BLK-OP-23", whole, `${size}, of a granularity of ${zones.granularity}`);
    const most = zones.maxAppend * SECTOR_SIZE;
    check("BLK-OP-24", dataOut <= most, `${size}, at most ${most}`);
  }
  const zone = zones.at(sector);
  if (zone === undefined || zone.type === BlockZoneType.CONV) return;
  if (!append && type !== BlockRequestType.OUT) return;
  check("BLK-OP-26", whole, `${size}, of a granularity of ${zones.granularity}`);
  check(
    "BLK-OP-27",
    (sector * SECTOR_SIZE) % zones.granularity === 0,
    `${where}, of a granularity of ${zones.granularity}`,
  );
  if (zone.state === BlockZoneState.RDONLY || zone.state === BlockZoneState.OFFLINE) return;
  // What a host-aware zone holds may be written over: there the request itself is what must fit.
  const required = zone.type === BlockZoneType.SWR;
  const end = zones.writableEnd(zone);
  const wp = zone.state === BlockZoneState.FULL ? end : zone.wp;
  const from = append ? wp : required ? Math.max(wp, sector) : sector;
  check(
    "BLK-OP-28",
    from + dataOut / SECTOR_SIZE <= end,
    `${size} at ${where}, where the zone has ${Math.max(0, end - from)} sectors left`,
  );
}

/** Watches what a driver makes of a device that offers ZONED, as it is set up (§5.2.5.1). */
export class ZoneNegotiationRules {
  readonly #book: RuleBook;
  readonly #device: string;
  readonly #hostManaged: boolean;

  constructor(book: RuleBook, device: string, hostManaged: boolean) {
    this.#book = book;
    this.#device = device;
    this.#hostManaged = hostManaged;
  }

  /** Status is written. Before it takes effect. */
  statusWrite(value: number, status: number, accepted: ArrayLike<number>): void {
    const added = value & ~status;
    const zoned = hasBit(accepted, BlockFeature.ZONED);
    const check = (clause: string, kept: boolean, what: string): void =>
      this.#book.check(clause, kept, this.#device, () => what);
    if (this.#hostManaged && (added & DeviceStatus.FEATURES_OK) !== 0) {
      check(
        "BLK-INIT-6",
        !hasBit(accepted, BlockFeature.DISCARD),
        "DISCARD was accepted of a host-managed device",
      );
      if (!zoned) check("BLK-INIT-8", false, "FEATURES_OK on a host-managed device without ZONED");
    }
    const failed = (added & DeviceStatus.FAILED) !== 0;
    const agreed = (status & DeviceStatus.FEATURES_OK) !== 0;
    if (this.#hostManaged && failed && !agreed) check("BLK-INIT-8", true, "");
    // A driver that gives up for another reason cannot be told from one that cannot do zones.
    if (zoned && agreed && (status & DeviceStatus.DRIVER_OK) === 0) {
      if (failed) check("BLK-INIT-5", false, "ZONED was accepted, and then the device given up");
      if ((added & DeviceStatus.DRIVER_OK) !== 0) check("BLK-INIT-5", true, "");
    }
  }
}

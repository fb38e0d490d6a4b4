// Zones of a block device (virtio 1.4 §5.2, ZONED): what its configuration and its reports say, checked.
import {
  type ConfigField,
  type VirtioDevice,
  VirtioFault,
  type Zone,
  type ZoneCondition,
  type ZoneModel,
  type ZoneType,
} from "@virtio/core";
import {
  BLOCK_ZONE_DESCRIPTOR_SIZE,
  BLOCK_ZONE_REPORT_HEADER_SIZE,
  BlockConfig,
  type BlockConfigField,
  BlockZoneDescriptor,
  BlockZonedModel,
  BlockZoneState,
  BlockZoneType,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { ZoneProvider } from "@virtio/storage";

/** Most zones of a disk: bounds what a device can make the driver remember. The largest disks have a tenth of them. */
const ZONES_MAX = 1 << 20;

const types = new Map<number, ZoneType>([
  [BlockZoneType.CONV, "conventional"],
  [BlockZoneType.SWR, "sequential-required"],
  [BlockZoneType.SWP, "sequential-preferred"],
]);

/** Conditions by state, and whether the write pointer says anything in it (§5.2.6). */
const states = new Map<number, readonly [ZoneCondition, pointed: boolean]>([
  [BlockZoneState.NOT_WP, ["not-write-pointer", false]],
  [BlockZoneState.EMPTY, ["empty", true]],
  [BlockZoneState.IOPEN, ["implicit-open", true]],
  [BlockZoneState.EOPEN, ["explicit-open", true]],
  [BlockZoneState.CLOSED, ["closed", true]],
  [BlockZoneState.RDONLY, ["read-only", false]],
  [BlockZoneState.FULL, ["full", false]],
  [BlockZoneState.OFFLINE, ["offline", false]],
]);

/** What a device that offers ZONED is. @throws VirtioFault DEVICE_MISBEHAVED */
export async function readZonedModel(device: VirtioDevice, name: string): Promise<BlockZonedModel> {
  const { zonedModel } = await device.config.readAll({ zonedModel: BlockConfig.zonedModel });
  if (BlockZonedModel[zonedModel] === undefined)
    throw refused(`the zoned model is ${zonedModel}`, name);
  return zonedModel;
}

/** What a request carries. Bytes. */
interface Carried {
  readonly dataSegments: number;
  readonly pageSize: number;
  readonly maxTransfer: number;
}

/** The zones of one device. */
export class DeviceZones implements ZoneProvider {
  readonly model: ZoneModel;
  readonly zoneSize: number;
  readonly maxOpen: number;
  readonly maxActive: number;
  readonly maxAppend: number;
  readonly writeGranularity: number;
  readonly #name: string;
  /** How many zones there are is asked when it is needed: a disk may be resized. */
  #mediaSize: number;
  readonly #sectorSize: number;

  private constructor(
    fields: Pick<
      DeviceZones,
      "model" | "zoneSize" | "maxOpen" | "maxActive" | "maxAppend" | "writeGranularity"
    >,
    mediaSize: number,
    sectorSize: number,
    name: string,
  ) {
    this.model = fields.model;
    this.zoneSize = fields.zoneSize;
    this.maxOpen = fields.maxOpen;
    this.maxActive = fields.maxActive;
    this.maxAppend = fields.maxAppend;
    this.writeGranularity = fields.writeGranularity;
    this.#sectorSize = sectorSize;
    this.#name = name;
    this.#mediaSize = mediaSize;
    this.resize(mediaSize);
  }

  /**
   * @param read - fields of the configuration
   * @param model - what the device said it is before FEATURES_OK
   * @param name - `vtblk0`, for errors
   * @returns null for a disk without zones, or whose zones are its own affair
   * @throws VirtioFault DEVICE_MISBEHAVED
   */
  static of(
    read: Partial<Record<BlockConfigField, number>>,
    model: BlockZonedModel,
    disk: { readonly mediaSize: number; readonly sectorSize: number },
    name: string,
  ): DeviceZones | null {
    const { zonedModel = BlockZonedModel.NONE, zoneSectors = 0, writeGranularity = 0 } = read;
    if (zonedModel !== model)
      throw refused(`the zoned model became ${zonedModel}, and was ${model}`, name);
    if (model === BlockZonedModel.NONE) return null;
    const { mediaSize, sectorSize } = disk;
    const granularity = Math.max(writeGranularity, sectorSize);
    if (
      writeGranularity === 0 ||
      writeGranularity % SECTOR_SIZE !== 0 ||
      granularity % writeGranularity !== 0 ||
      granularity % sectorSize !== 0
    )
      throw refused(`write_granularity is ${writeGranularity}`, name);
    const zoneSize = zoneSectors * SECTOR_SIZE;
    if (zoneSize === 0 || zoneSize % granularity !== 0)
      throw refused(`zone_sectors is ${zoneSectors}`, name);
    const fields = {
      model: model === BlockZonedModel.HM ? "host-managed" : "host-aware",
      zoneSize,
      maxOpen: read.maxOpenZones ?? 0,
      maxActive: read.maxActiveZones ?? 0,
      maxAppend: (read.maxAppendSectors ?? 0) * SECTOR_SIZE,
      writeGranularity: granularity,
    } as const;
    return new DeviceZones(fields, mediaSize, sectorSize, name);
  }

  /** What a request can carry: an append needs a segment for its answer. */
  fitted({ dataSegments, pageSize, maxTransfer }: Carried): DeviceZones {
    const { writeGranularity: granularity } = this;
    const most = Math.min(
      this.maxAppend,
      maxTransfer,
      (dataSegments - 1) * pageSize,
      this.zoneSize,
    );
    const maxAppend = Math.floor(most / granularity) * granularity;
    const fields = {
      model: this.model,
      zoneSize: this.zoneSize,
      maxOpen: this.maxOpen,
      maxActive: this.maxActive,
      maxAppend,
      writeGranularity: granularity,
    };
    return new DeviceZones(fields, this.#mediaSize, this.#sectorSize, this.#name);
  }

  /** @throws VirtioFault DEVICE_MISBEHAVED: more zones than a disk has */
  resize(mediaSize: number): void {
    const count = Math.ceil(mediaSize / this.zoneSize);
    if (count > ZONES_MAX)
      throw refused(`${count} zones of ${this.zoneSize} bytes, more than ${ZONES_MAX}`, this.#name);
    this.#mediaSize = mediaSize;
  }

  reportSize(count: number): number {
    return BLOCK_ZONE_REPORT_HEADER_SIZE + count * BLOCK_ZONE_DESCRIPTOR_SIZE;
  }

  readReport(bytes: Uint8Array, first: number, count: number): readonly Zone[] {
    const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const zones = field(words, 0, [0, 8]);
    if (zones < 1 || zones > count)
      throw refused(`a report of ${zones} zones, and not 1 to ${count}`, this.#name);
    return Array.from({ length: zones }, (_, i) => this.#descriptor(words, i, first + i));
  }

  #descriptor(words: DataView, i: number, zone: number): Zone {
    const at = BLOCK_ZONE_REPORT_HEADER_SIZE + i * BLOCK_ZONE_DESCRIPTOR_SIZE;
    const of = (name: keyof typeof BlockZoneDescriptor): number =>
      field(words, at, BlockZoneDescriptor[name]);
    const bytesOf = (name: "zCap" | "zStart" | "zWp"): number => {
      const bytes = of(name) * SECTOR_SIZE;
      if (bytes % this.#sectorSize !== 0) throw odd(`${name} is ${of(name)}`);
      return bytes;
    };
    const odd = (what: string): VirtioFault => refused(`zone ${zone}: ${what}`, this.#name);
    const position = zone * this.zoneSize;
    const length = Math.min(this.zoneSize, this.#mediaSize - position);
    const capacity = bytesOf("zCap");
    const type = types.get(of("zType"));
    const state = states.get(of("zState"));
    if (bytesOf("zStart") !== position) throw odd(`z_start is ${of("zStart")}`);
    if (!(capacity <= length)) throw odd(`z_cap is ${of("zCap")}`);
    if (type === undefined) throw odd(`z_type is ${of("zType")}`);
    if (state === undefined || (type === "conventional") !== (state[0] === "not-write-pointer"))
      throw odd(`z_state is ${of("zState")}`);
    const [condition, pointed] = state;
    if (!pointed) return { position, length, capacity, type, condition, writePointer: null };
    const writePointer = bytesOf("zWp");
    if (!(writePointer >= position && writePointer <= position + capacity))
      throw odd(`z_wp is ${of("zWp")}`);
    return { position, length, capacity, type, condition, writePointer };
  }
}

/** A little-endian field; one above 2^53 loses its low bits, and is refused for its size. */
function field(words: DataView, base: number, [offset, width]: ConfigField): number {
  const at = base + offset;
  if (width === 1) return words.getUint8(at);
  return words.getUint32(at, true) + words.getUint32(at + 4, true) * 0x1_0000_0000;
}

function refused(what: string, device: string): VirtioFault {
  return new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: ${what}`, {
    device,
    clause: "virtio 1.4 §5.2.6",
  });
}

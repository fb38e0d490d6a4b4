// What a SCSI host offers and says of itself: struct virtio_scsi_config (virtio 1.4 §5.6.3, §5.6.4).
import { VirtioFault } from "@virtio/core";
import {
  SCSI_CDB_SIZE,
  SCSI_CONFIG_SIZE,
  SCSI_MAX_LUN,
  SCSI_MAX_TARGET,
  SCSI_SENSE_SIZE,
  ScsiConfig,
  type ScsiConfigField,
  ScsiEventBuffer,
  ScsiFeature,
} from "@virtio/core/scsi";
import { hasBit } from "../feature-words.js";
import type { RegisterSpace } from "../registers.js";

/** What a SCSI host says of itself. What is left out is as QEMU has it. */
export interface ScsiCharacteristics {
  /** Most sectors of 512 bytes of a command's data. Default 65535. */
  readonly maxSectors?: number | undefined;
  /** Most commands that a unit has at a time; one more ends with TASK SET FULL. Default 128. */
  readonly cmdPerLun?: number | undefined;
}

const MAX_SECTORS_DEFAULT = 0xffff;
const CMD_PER_LUN_DEFAULT = 128;

/** Offered unless held back: what QEMU's device offers. */
const offeredByDefault: readonly ScsiFeature[] = [ScsiFeature.HOTPLUG, ScsiFeature.CHANGE];

/** Features that a specification can name. There is no protection information: T10_PI is not among them. */
export const scsiModelFeatures: readonly ScsiFeature[] = [ScsiFeature.INOUT, ...offeredByDefault];

/** What the driver may write, and the most that it may be: what QEMU takes. */
const writable: readonly (readonly [field: ScsiConfigField, most: number])[] = [
  ["senseSize", 0xffff],
  ["cdbSize", 0xff],
];

/** What the configuration is made of. */
export interface ScsiConfigurationOptions {
  /** Most data segments of a request. */
  readonly segMax: number;
  /** Request queues. */
  readonly queues: number;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: ScsiCharacteristics;
}

/** The device's configuration space. */
export class ScsiConfiguration implements RegisterSpace {
  readonly length: number = SCSI_CONFIG_SIZE;
  readonly offered: readonly ScsiFeature[];
  readonly cmdPerLun: number;
  readonly #bytes = new DataView(new ArrayBuffer(SCSI_CONFIG_SIZE));
  #accepted: ArrayLike<number> = [];

  /** @throws VirtioFault INVALID */
  constructor({ segMax, queues, features, characteristics }: ScsiConfigurationOptions) {
    const { maxSectors = MAX_SECTORS_DEFAULT, cmdPerLun = CMD_PER_LUN_DEFAULT } = characteristics;
    for (const [name, value] of Object.entries({ maxSectors, cmdPerLun }))
      if (!Number.isInteger(value) || value < 1 || value > 0xffff_ffff)
        throw new VirtioFault("INVALID", `${name} ${value} is not a whole number from 1 on`);
    this.cmdPerLun = cmdPerLun;
    this.offered = scsiModelFeatures.filter(
      (bit) => features[ScsiFeature[bit]] ?? offeredByDefault.includes(bit),
    );
    this.#set("numQueues", queues);
    this.#set("segMax", segMax);
    this.#set("maxSectors", maxSectors);
    this.#set("cmdPerLun", cmdPerLun);
    this.#set("eventInfoSize", ScsiEventBuffer.SIZE);
    this.#set("maxTarget", SCSI_MAX_TARGET);
    this.#set("maxLun", SCSI_MAX_LUN);
    this.reset();
  }

  /** @param accepted - words of the bits the driver accepted, in which they change */
  connect(accepted: ArrayLike<number>): void {
    this.#accepted = accepted;
  }

  has(bit: number): boolean {
    return hasBit(this.#accepted, bit);
  }

  /** Bytes of sense data in each answer. */
  get senseSize(): number {
    return this.#field("senseSize");
  }

  /** Bytes of the CDB in each request. */
  get cdbSize(): number {
    return this.#field("cdbSize");
  }

  #field(name: ScsiConfigField): number {
    return this.#bytes.getUint32(ScsiConfig[name][0], true);
  }

  #set(name: ScsiConfigField, value: number): void {
    const [offset, width] = ScsiConfig[name];
    if (width === 2) this.#bytes.setUint16(offset, value, true);
    else this.#bytes.setUint32(offset, value, true);
  }

  read(offset: number, width: 1 | 2 | 4): number {
    const bytes = this.#bytes;
    return width === 1
      ? bytes.getUint8(offset)
      : width === 2
        ? bytes.getUint16(offset, true)
        : bytes.getUint32(offset, true);
  }

  /** A size that cannot be is not taken: what was there before stays. */
  write(offset: number, width: 1 | 2 | 4, value: number): void {
    for (const [name, most] of writable) {
      const [at, length] = ScsiConfig[name];
      if (offset < at || offset + width > at + length) continue;
      const before = this.#field(name);
      if (width === 1) this.#bytes.setUint8(offset, value);
      else if (width === 2) this.#bytes.setUint16(offset, value, true);
      else this.#bytes.setUint32(offset, value, true);
      if (this.#field(name) > most) this.#set(name, before);
    }
  }

  /** As after a reset of the device (§5.6.4.2). */
  reset(): void {
    this.#set("senseSize", SCSI_SENSE_SIZE);
    this.#set("cdbSize", SCSI_CDB_SIZE);
  }
}

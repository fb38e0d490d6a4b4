// Device-specific configuration over PCI (virtio 1.4 §2.5, §4.1.4.6, §4.1.4.10).
import { type ConfigField, type ConfigSpace, VirtioFault } from "@virtio/core";
import { CommonConfig } from "@virtio/core/pci";
import type { Region } from "./region.js";

/** Reads of all fields that are tried before the device counts as one that never settles. */
const TRIES = 64;

type Width = ConfigField[1];

/** What both interfaces share: fields, bounds, and trying again until one look was consistent. */
export abstract class PciConfigSpace implements ConfigSpace {
  /** The device is suspended: nothing is written (§3.4.1). */
  frozen = false;
  protected readonly name: string;

  constructor(name: string) {
    this.name = name;
  }

  abstract readonly length: number;
  protected abstract readOne(offset: number, width: 1 | 2 | 4): Promise<number>;
  protected abstract writeOne(offset: number, width: 1 | 2 | 4, value: number): Promise<void>;
  /** Runs `look` once, between whatever tells that nothing changed meanwhile; null when something did. One round trip. */
  protected abstract consistent(look: () => Promise<number[]>): Promise<number[] | null>;

  async read(offset: number, width: Width): Promise<number> {
    const { value } = await this.readAll({ value: [offset, width] });
    return value;
  }

  async readAll<K extends string>(
    fields: Readonly<Record<K, ConfigField>>,
  ): Promise<Record<K, number>> {
    const entries = Object.entries<ConfigField>(fields);
    const look = (): Promise<number[]> =>
      Promise.all(entries.map(([, [offset, width]]) => this.#field(offset, width)));
    for (let n = 0; n < TRIES; n++) {
      const read = await this.consistent(look);
      if (read !== null)
        return Object.fromEntries(entries.map(([name], i) => [name, read[i]])) as Record<K, number>;
    }
    throw new VirtioFault("TIMED_OUT", `configuration changed in each of ${TRIES} reads`, {
      device: this.name,
      clause: "virtio 1.4 §2.5.1",
    });
  }

  async write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    this.#check(offset, width);
    if (this.frozen)
      throw new VirtioFault("BUSY", "the device is suspended", { device: this.name });
    await this.writeOne(offset, width, value);
  }

  async #field(offset: number, width: Width): Promise<number> {
    this.#check(offset, width);
    if (width !== 8) return this.readOne(offset, width);
    const [low, high] = await Promise.all([this.readOne(offset, 4), this.readOne(offset + 4, 4)]);
    const value = high * 0x1_0000_0000 + low;
    if (!Number.isSafeInteger(value))
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `device misbehaved: configuration field at ${offset} is above 2^53`,
        { device: this.name },
      );
    return value;
  }

  #check(offset: number, width: number): void {
    if (offset + width > this.length)
      throw new VirtioFault(
        "UNSUPPORTED",
        `the device's configuration has ${this.length} bytes, not ${offset + width}`,
        { device: this.name, clause: "virtio 1.4 §2.5.1" },
      );
  }
}

/** The modern interface's: config_generation tells whether something changed (§2.5.1). */
export class GenerationConfigSpace extends PciConfigSpace {
  readonly #common: Region;
  readonly #device: Region | null;

  /** @param device - absent where the device has no configuration */
  constructor(common: Region, device: Region | null, name: string) {
    super(name);
    this.#common = common;
    this.#device = device;
  }

  get length(): number {
    return this.#device?.length ?? 0;
  }

  protected async writeOne(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    await this.#device?.write(offset, width, value);
  }

  protected async readOne(offset: number, width: 1 | 2 | 4): Promise<number> {
    return this.#device === null ? 0 : this.#device.read(offset, width);
  }

  protected async consistent(look: () => Promise<number[]>): Promise<number[] | null> {
    // One turn, so one message where the machine is remote: generation, fields, generation.
    const before = this.#common.read(CommonConfig.CONFIG_GENERATION, 1);
    const fields = look();
    const after = this.#common.read(CommonConfig.CONFIG_GENERATION, 1);
    const [first, read, last] = await Promise.all([before, fields, after]);
    return first === last ? read : null;
  }
}

/** The legacy interface's: no generation, so every field is read until two looks agree (§2.5.4). */
export class LegacyConfigSpace extends PciConfigSpace {
  readonly #registers: Region;
  readonly #base: () => number;

  /** @param base - where the configuration begins in BAR 0 now */
  constructor(registers: Region, base: () => number, name: string) {
    super(name);
    this.#registers = registers;
    this.#base = base;
  }

  get length(): number {
    return Math.max(0, this.#registers.length - this.#base());
  }

  protected writeOne(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    return this.#registers.write(this.#base() + offset, width, value);
  }

  protected readOne(offset: number, width: 1 | 2 | 4): Promise<number> {
    return this.#registers.read(this.#base() + offset, width);
  }

  protected async consistent(look: () => Promise<number[]>): Promise<number[] | null> {
    const [first, second] = await Promise.all([look(), look()]);
    return first.every((value, i) => value === second[i]) ? second : null;
  }
}

// Device-specific configuration over PCI (virtio 1.4 §2.5, §4.1.4.6).
import { type ConfigField, type ConfigSpace, VirtioFault } from "@virtio/core";
import { CommonConfig } from "@virtio/core/pci";
import type { Region } from "./region.js";

/** Reads of one generation that are tried before the device counts as misbehaving. */
const GENERATION_TRIES = 64;

/** {@inheritDoc ConfigSpace} */
export class PciConfigSpace implements ConfigSpace {
  readonly #common: Region;
  readonly #device: Region | null;
  readonly #name: string;

  constructor(common: Region, device: Region | null, name: string) {
    this.#common = common;
    this.#device = device;
    this.#name = name;
  }

  get length(): number {
    return this.#device?.length ?? 0;
  }

  async read(offset: number, width: 1 | 2 | 4 | 8): Promise<number> {
    if (width !== 8) return this.#space(offset, width).read(offset, width);
    const { value } = await this.readAll({ value: [offset, width] });
    return value;
  }

  async readAll<K extends string>(
    fields: Readonly<Record<K, ConfigField>>,
  ): Promise<Record<K, number>> {
    const entries = Object.entries<ConfigField>(fields);
    for (let n = 0; n < GENERATION_TRIES; n++) {
      // One turn, so one message where the machine is remote: generation, fields, generation (virtio 1.4 §2.5.1).
      const before = this.#common.read(CommonConfig.CONFIG_GENERATION, 1);
      const values = entries.map(([, [offset, width]]) => this.#halves(offset, width));
      const after = this.#common.read(CommonConfig.CONFIG_GENERATION, 1);
      const [first, read, last] = await Promise.all([before, Promise.all(values), after]);
      if (first !== last) continue;
      return Object.fromEntries(entries.map(([name], i) => [name, read[i]])) as Record<K, number>;
    }
    throw new VirtioFault(
      "TIMED_OUT",
      `configuration changed in each of ${GENERATION_TRIES} reads`,
      {
        device: this.#name,
        clause: "virtio 1.4 §2.5.1",
      },
    );
  }

  async write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    await this.#space(offset, width).write(offset, width, value);
  }

  async #halves(offset: number, width: 1 | 2 | 4 | 8): Promise<number> {
    const space = this.#space(offset, width);
    if (width !== 8) return space.read(offset, width);
    const [low, high] = await Promise.all([space.read(offset, 4), space.read(offset + 4, 4)]);
    const value = high * 0x1_0000_0000 + low;
    if (!Number.isSafeInteger(value))
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `device misbehaved: configuration field at ${offset} is above 2^53`,
        {
          device: this.#name,
        },
      );
    return value;
  }

  #space(offset: number, width: number): Region {
    const space = this.#device;
    if (space === null || offset + width > space.length)
      throw new VirtioFault(
        "UNSUPPORTED",
        `the device's configuration has ${this.length} bytes, not ${offset + width}`,
        {
          device: this.#name,
          clause: "virtio 1.4 §2.5.1",
        },
      );
    return space;
  }
}

// The legacy interface: registers at the start of BAR 0 (virtio 1.4 §4.1.4.10; FreeBSD's virtio_pci_legacy.c).
//
// Device configuration and rings are in the guest's byte order there: ours is little-endian, as core makes sure.
import { VirtioFault } from "@virtio/core";
import { LEGACY_PAGE_SIZE, LegacyDeviceConfig, LegacyRegister } from "@virtio/core/pci";
import { LegacyConfigSpace, type PciConfigSpace } from "./config-space.js";
import type { Msix } from "./messages.js";
import type { Access, Region } from "./region.js";
import type { OfferedQueue, VectorMap, VirtioRegisters } from "./registers.js";
import type { Ring } from "./rings.js";

/** {@inheritDoc VirtioRegisters} */
export class LegacyRegisters implements VirtioRegisters {
  readonly legacy = true;
  readonly config: PciConfigSpace;
  /** Features from 32 on have no register. */
  readonly unreachable: readonly number[] = [0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff];
  readonly #registers: Region;
  readonly #name: string;

  /** @param name - the device, for messages: `vtblk0` */
  constructor(registers: Region, msix: Msix | null, name: string) {
    this.#registers = registers;
    this.#name = name;
    // Two registers more while MSI-X is enabled: what follows moves.
    this.config = new LegacyConfigSpace(
      registers,
      () =>
        msix?.enabled === true ? LegacyDeviceConfig.WITH_MSIX : LegacyDeviceConfig.WITHOUT_MSIX,
      name,
    );
  }

  readStatus(): Promise<number> {
    return this.#registers.read(LegacyRegister.DEVICE_STATUS, 1);
  }

  async writeStatus(...values: readonly number[]): Promise<number> {
    const [status = 0] = await this.#registers.exchange([
      ...values.map((value): Access => [LegacyRegister.DEVICE_STATUS, 1, value]),
      [LegacyRegister.DEVICE_STATUS, 1],
    ]);
    return status;
  }

  async readFeatures(): Promise<readonly number[]> {
    return [await this.#registers.read(LegacyRegister.DEVICE_FEATURES, 4), 0, 0, 0];
  }

  async writeFeatures([accepted = 0]: readonly number[]): Promise<void> {
    await this.#registers.write(LegacyRegister.DRIVER_FEATURES, 4, accepted);
  }

  readIsr(): Promise<number> {
    return this.#registers.read(LegacyRegister.ISR_STATUS, 1);
  }

  async offeredQueues(count: number): Promise<readonly OfferedQueue[]> {
    const sizes = await this.#registers.exchange(
      Array.from({ length: count }, (_, i) => i).flatMap((index): Access[] => [
        [LegacyRegister.QUEUE_SELECT, 2, index],
        [LegacyRegister.QUEUE_SIZE, 2],
      ]),
    );
    return sizes.map((size, index) => ({
      size,
      doorbell: () => this.#registers.post(LegacyRegister.QUEUE_NOTIFY, 2, index),
    }));
  }

  /** One piece on a page boundary, whose number says where all three parts lie (§2.7.2). */
  async placeQueues(rings: readonly Ring[]): Promise<void> {
    await this.#registers.exchange(
      rings.flatMap(({ index, addresses }): Access[] => [
        [LegacyRegister.QUEUE_SELECT, 2, index],
        [LegacyRegister.QUEUE_ADDRESS, 4, addresses.descriptors / LEGACY_PAGE_SIZE],
      ]),
    );
  }

  /** Nothing: a queue that has an address is enabled. */
  async enableQueues(): Promise<void> {}

  async resetQueue(): Promise<void> {
    throw new VirtioFault("UNSUPPORTED", "the legacy interface cannot reset a single queue", {
      device: this.#name,
    });
  }

  async isQueueResetting(): Promise<boolean> {
    return false;
  }

  async mapVectors({ config, queues }: VectorMap): Promise<boolean> {
    const read = await this.#registers.exchange([
      [LegacyRegister.CONFIG_MSIX_VECTOR, 2, config],
      [LegacyRegister.CONFIG_MSIX_VECTOR, 2],
      ...queues.flatMap(({ index, vector }): Access[] => [
        [LegacyRegister.QUEUE_SELECT, 2, index],
        [LegacyRegister.QUEUE_MSIX_VECTOR, 2, vector],
        [LegacyRegister.QUEUE_MSIX_VECTOR, 2],
      ]),
    ]);
    return [config, ...queues.map(({ vector }) => vector)].every((vector, i) => read[i] === vector);
  }
}

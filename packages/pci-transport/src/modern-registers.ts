// The modern interface: structures that capabilities point at (virtio 1.4 §4.1.4).
import { featureSetFromWords, ReservedFeature, VirtioFault } from "@virtio/core";
import { CommonConfig } from "@virtio/core/pci";
import { GenerationConfigSpace, type PciConfigSpace } from "./config-space.js";
import type { Access, Region } from "./region.js";
import type { OfferedQueue, VectorMap, VirtioRegisters } from "./registers.js";
import type { Ring } from "./rings.js";

/** 32-bit words of feature bits that are looked at: virtio 1.4 has bits past 64. */
const FEATURE_WORDS = 4;
const words = Array.from({ length: FEATURE_WORDS }, (_, i) => i);

/** Registers of the common configuration that came with a feature: what it must hold for the feature to be of use. */
const laterRegisters: readonly (readonly [bit: ReservedFeature, end: number])[] = [
  [ReservedFeature.NOTIF_CONFIG_DATA, CommonConfig.QUEUE_NOTIF_CONFIG_DATA + 2],
  [ReservedFeature.RING_RESET, CommonConfig.QUEUE_RESET + 2],
];

/** The structures of one function. */
export interface Structures {
  readonly common: Region;
  readonly notify: Region;
  readonly notifyMultiplier: number;
  readonly isr: Region;
  /** Absent where the device type has no configuration. */
  readonly device: Region | null;
}

/** {@inheritDoc VirtioRegisters} */
export class ModernRegisters implements VirtioRegisters {
  readonly legacy = false;
  readonly config: PciConfigSpace;
  readonly unreachable: readonly number[];
  readonly #structures: Structures;
  readonly #common: Region;
  readonly #name: string;

  /** @param name - the device, for messages: `vtblk0` */
  constructor(structures: Structures, name: string) {
    this.#structures = structures;
    this.#common = structures.common;
    this.#name = name;
    this.config = new GenerationConfigSpace(structures.common, structures.device, name);
    const unreachable = words.map(() => 0);
    for (const [bit, end] of laterRegisters)
      if (structures.common.length < end)
        unreachable[bit >>> 5] = (unreachable[bit >>> 5] ?? 0) | (1 << (bit & 31));
    this.unreachable = unreachable;
  }

  readStatus(): Promise<number> {
    return this.#common.read(CommonConfig.DEVICE_STATUS, 1);
  }

  async writeStatus(...values: readonly number[]): Promise<number> {
    const [status = 0] = await this.#common.exchange([
      ...values.map((value): Access => [CommonConfig.DEVICE_STATUS, 1, value]),
      [CommonConfig.DEVICE_STATUS, 1],
    ]);
    return status;
  }

  readFeatures(): Promise<readonly number[]> {
    return this.#common.exchange(
      words.flatMap((i): Access[] => [
        [CommonConfig.DEVICE_FEATURE_SELECT, 4, i],
        [CommonConfig.DEVICE_FEATURE, 4],
      ]),
    );
  }

  async writeFeatures(accepted: readonly number[]): Promise<void> {
    await this.#common.exchange(
      words.flatMap((i): Access[] => [
        [CommonConfig.DRIVER_FEATURE_SELECT, 4, i],
        [CommonConfig.DRIVER_FEATURE, 4, accepted[i] ?? 0],
      ]),
    );
  }

  readIsr(): Promise<number> {
    return this.#structures.isr.read(0, 1);
  }

  async offeredQueues(
    count: number,
    features: readonly number[],
  ): Promise<readonly OfferedQueue[]> {
    const accepted = featureSetFromWords<ReservedFeature>(features);
    const named = accepted.has(ReservedFeature.NOTIF_CONFIG_DATA);
    const withData = accepted.has(ReservedFeature.NOTIFICATION_DATA);
    const registers: readonly Access[] = [
      [CommonConfig.QUEUE_SIZE, 2],
      [CommonConfig.QUEUE_NOTIFY_OFF, 2],
      ...(named ? [[CommonConfig.QUEUE_NOTIF_CONFIG_DATA, 2] as const] : []),
    ];
    const [max = 0, ...found] = await this.#common.exchange([
      [CommonConfig.NUM_QUEUES, 2],
      ...Array.from({ length: count }, (_, i) => i).flatMap((index): Access[] => [
        [CommonConfig.QUEUE_SELECT, 2, index],
        ...registers,
      ]),
    ]);
    if (count > max)
      throw new VirtioFault("NOT_FOUND", `requested virtqueue count ${count} exceeds max ${max}`, {
        device: this.#name,
      });
    return Array.from({ length: count }, (_, index) => {
      const [size = 0, notifyOff = 0, id = index] = found.slice(
        index * registers.length,
        (index + 1) * registers.length,
      );
      return { size, doorbell: this.#doorbell(index, notifyOff, named ? id : index, withData) };
    });
  }

  /** §4.1.5.2: what names the queue alone, or with where the driver will put its next descriptor. */
  #doorbell(
    index: number,
    notifyOff: number,
    id: number,
    withData: boolean,
  ): OfferedQueue["doorbell"] {
    const { notify, notifyMultiplier } = this.#structures;
    const at = notifyOff * notifyMultiplier;
    const width = withData ? 4 : 2;
    if (at % width !== 0 || at + width > notify.length)
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `device misbehaved: doorbell of virtqueue ${index} at ${at} of ${notify.length} bytes`,
        { device: this.#name, clause: "virtio 1.4 §4.1.4.4" },
      );
    return withData
      ? (next) => notify.post(at, 4, (id | (next << 16)) >>> 0)
      : () => notify.post(at, 2, id);
  }

  /** Addresses low half first (§4.1.3.1). */
  async placeQueues(rings: readonly Ring[]): Promise<void> {
    await this.#common.exchange(
      rings.flatMap(({ index, size, addresses }): Access[] => [
        [CommonConfig.QUEUE_SELECT, 2, index],
        [CommonConfig.QUEUE_SIZE, 2, size],
        [CommonConfig.QUEUE_DESC, 4, addresses.descriptors],
        [CommonConfig.QUEUE_DESC + 4, 4, 0],
        [CommonConfig.QUEUE_DRIVER, 4, addresses.driver],
        [CommonConfig.QUEUE_DRIVER + 4, 4, 0],
        [CommonConfig.QUEUE_DEVICE, 4, addresses.device],
        [CommonConfig.QUEUE_DEVICE + 4, 4, 0],
      ]),
    );
  }

  async enableQueues(rings: readonly Ring[]): Promise<void> {
    await this.#common.exchange(
      rings.flatMap(({ index }): Access[] => [
        [CommonConfig.QUEUE_SELECT, 2, index],
        [CommonConfig.QUEUE_ENABLE, 2, 1],
      ]),
    );
  }

  async resetQueue(index: number): Promise<void> {
    await this.#common.exchange([
      [CommonConfig.QUEUE_SELECT, 2, index],
      [CommonConfig.QUEUE_RESET, 2, 1],
    ]);
  }

  async isQueueResetting(index: number): Promise<boolean> {
    const [resetting] = await this.#common.exchange([
      [CommonConfig.QUEUE_SELECT, 2, index],
      [CommonConfig.QUEUE_RESET, 2],
    ]);
    return resetting !== 0;
  }

  async mapVectors({ config, queues }: VectorMap): Promise<boolean> {
    const read = await this.#common.exchange([
      [CommonConfig.CONFIG_MSIX_VECTOR, 2, config],
      [CommonConfig.CONFIG_MSIX_VECTOR, 2],
      ...queues.flatMap(({ index, vector }): Access[] => [
        [CommonConfig.QUEUE_SELECT, 2, index],
        [CommonConfig.QUEUE_MSIX_VECTOR, 2, vector],
        [CommonConfig.QUEUE_MSIX_VECTOR, 2],
      ]),
    ]);
    return [config, ...queues.map(({ vector }) => vector)].every((vector, i) => read[i] === vector);
  }
}

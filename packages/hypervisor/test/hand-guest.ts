// What the guests without a driver share: how one finds its function, its life cycle on either interface, and its split rings.
import { DeviceStatus, type DmaRegion, type IoRegion, type PciFunction } from "@virtio/core";
import {
  CommonConfig,
  LEGACY_PAGE_SIZE,
  LegacyDeviceConfig,
  LegacyRegister,
  PciCommand,
  PciRegister,
} from "@virtio/core/pci";
import {
  type EmbeddedDevice,
  type EmbeddedMachine,
  type EmbeddedOptions,
  embedded,
  RuleBook,
} from "../src/index.js";

export const LEGACY_BAR = 0;
export const STRUCTURES_BAR = 4;

/** Where the structures lie in BAR 4; the common configuration is at 0. */
const DEVICE_AT = 0x2000;
export const NOTIFY_AT = 0x3000;

/** The words that accept these bits, and VERSION_1. */
export function featureWords(bits: readonly number[]): number[] {
  const words = [0, 1];
  for (const bit of bits) words[bit >>> 5] = ((words[bit >>> 5] ?? 0) | (1 << (bit & 31))) >>> 0;
  return words;
}

/** A guest that drives one function by its registers, in any order, right or wrong. */
export class HandGuest {
  readonly rules = new RuleBook();
  machine!: EmbeddedMachine;
  fn!: PciFunction;
  /** Whether it uses the legacy interface. */
  protected readonly onLegacy: boolean;
  /** The legacy registers, or those that begin with the common configuration. */
  protected io!: Pick<IoRegion, "read" | "write">;
  /** What the clauses begin with that it is asked about. */
  protected readonly language: string = "";
  /** How often settle() lets the machine run. */
  protected readonly turns: number = 1;

  constructor(onLegacy = false) {
    this.onLegacy = onLegacy;
  }

  /** Makes the machine, finds its function, places BARs and enables them; null: there is no such BAR. */
  protected async power(
    options: EmbeddedOptions,
    bars: readonly (readonly [bar: number, address: number])[],
  ): Promise<(IoRegion | null)[]> {
    this.machine = await embedded(options);
    const [fn] = await this.machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no function");
    this.fn = fn;
    const regions: (IoRegion | null)[] = [];
    for (const [bar, address] of bars) {
      const at = PciRegister.BAR0 + bar * 4;
      await fn.write(at, 4, address);
      regions.push((await fn.read(at, 4)) === 0 ? null : await fn.mapBar(bar));
    }
    await fn.write(
      PciRegister.COMMAND,
      2,
      PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER,
    );
    return regions;
  }

  /** Registers that both interfaces have under one name. */
  protected get registers(): typeof CommonConfig | typeof LegacyRegister {
    return this.onLegacy ? LegacyRegister : CommonConfig;
  }

  status(value: number): Promise<void> {
    return this.io.write(this.registers.DEVICE_STATUS, 1, value);
  }

  readStatus(): Promise<number> {
    return this.io.read(this.registers.DEVICE_STATUS, 1);
  }

  async reset(): Promise<void> {
    await this.status(0);
    await this.untilZero(() => this.readStatus());
  }

  protected async untilZero(read: () => Promise<number>): Promise<void> {
    for (let turn = 0; (await read()) !== 0; turn++) {
      if (turn === 1000) throw new Error("the reset never ends");
      await this.settle();
    }
  }

  /** Steps 1 to 3. */
  async acknowledge(): Promise<void> {
    await this.reset();
    await this.status(DeviceStatus.ACKNOWLEDGE);
    await this.status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER);
  }

  /** Words of what is offered. */
  async offered(): Promise<number[]> {
    if (this.onLegacy) return [await this.io.read(LegacyRegister.DEVICE_FEATURES, 4)];
    const words: number[] = [];
    for (let i = 0; i < 3; i++) {
      await this.io.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, i);
      words.push(await this.io.read(CommonConfig.DEVICE_FEATURE, 4));
    }
    return words;
  }

  async accept(words: readonly number[]): Promise<void> {
    if (this.onLegacy) return this.io.write(LegacyRegister.DRIVER_FEATURES, 4, words[0] ?? 0);
    for (const [i, word] of words.entries()) {
      await this.io.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, i);
      await this.io.write(CommonConfig.DRIVER_FEATURE, 4, word);
    }
  }

  /** Accepts these words, up to FEATURES_OK, which the legacy interface does not have; whether the device agreed. */
  protected async agree(words: readonly number[]): Promise<boolean> {
    await this.accept(words);
    if (this.onLegacy) return true;
    await this.status(11);
    return ((await this.readStatus()) & DeviceStatus.FEATURES_OK) !== 0;
  }

  /** Where the selected queue lies. */
  protected async place(descriptors: number, driver: number, device: number): Promise<void> {
    for (const [at, value] of [
      [CommonConfig.QUEUE_DESC, descriptors],
      [CommonConfig.QUEUE_DRIVER, driver],
      [CommonConfig.QUEUE_DEVICE, device],
    ] as const) {
      await this.io.write(at, 4, value);
      await this.io.write(at + 4, 4, 0);
    }
  }

  protected driverOk(): Promise<void> {
    return this.status(this.onLegacy ? 7 : 15);
  }

  /** Lets the machine run until it is so. */
  async until(done: () => boolean): Promise<void> {
    for (let turn = 0; !done(); turn++) {
      if (turn === 1000) throw new Error("it never came");
      await this.settle();
    }
  }

  /** Lets every waiting task of the machine run. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < this.turns; turn++) {
      await new Promise<void>((resolve) => this.machine.tasks.enqueue(resolve));
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  /** Clauses of its language that were broken: elsewhere, as in how it finds a device, it does as it likes. */
  clauses(): string[] {
    const all = this.rules.violations.map(({ clause }) => clause);
    return [...new Set(all.filter((clause) => clause.startsWith(this.language)))];
  }
}

/** One segment of a chain: its bytes, how many may be written, or which may be. */
export type Part = Uint8Array | number | DmaRegion;

/** One split ring. */
export class BareQueue {
  readonly size: number;
  readonly #memory: EmbeddedMachine["memory"];
  readonly ring: DmaRegion;
  #descriptors: Uint32Array;
  #available: Uint16Array;
  #used: Uint32Array;
  #next = 0;
  #seen = 0;
  #free: number[];
  /** By head: the regions of its chain, and its descriptors. */
  readonly #chains = new Map<number, { regions: DmaRegion[]; ids: readonly number[] }>();

  constructor(memory: EmbeddedMachine["memory"], size: number, legacy: boolean) {
    this.size = size;
    this.#memory = memory;
    this.ring = memory.allocate(16384, 4096);
    const { offset } = this.ring;
    this.#descriptors = new Uint32Array(memory.buffer, offset, size * 4);
    this.#available = new Uint16Array(memory.buffer, offset + this.driverAt, 3 + size);
    this.#used = new Uint32Array(memory.buffer, offset + this.deviceAt(legacy), 1 + 2 * size);
    this.#free = Array.from({ length: size }, (_, i) => size - 1 - i);
  }

  get driverAt(): number {
    return this.size * 16;
  }

  deviceAt(legacy: boolean): number {
    return legacy ? Math.ceil((this.size * 18 + 6) / 4096) * 4096 : 8192;
  }

  /** Makes one chain available; returns its head. */
  offer(parts: readonly Part[]): number {
    const ids = parts.map(() => this.#free.pop() ?? -1);
    const regions: DmaRegion[] = [];
    for (const [i, part] of parts.entries()) {
      const readable = part instanceof Uint8Array;
      const length = typeof part === "number" ? part : part.length;
      const own = readable || typeof part === "number";
      const region = own ? this.#memory.allocate(Math.max(length, 1), 16) : part;
      if (readable) region.bytes.set(part);
      regions.push(region);
      const last = i === parts.length - 1;
      const flags = (readable ? 0 : 2) | (last ? 0 : 1);
      const next = last ? 0 : (ids[i + 1] ?? 0);
      this.#descriptors.set(
        [region.address, 0, length, (flags | (next << 16)) >>> 0],
        (ids[i] ?? 0) * 4,
      );
    }
    const [head = -1] = ids;
    this.#chains.set(head, { regions, ids });
    this.#available[2 + (this.#next & (this.size - 1))] = head;
    this.#next = (this.#next + 1) & 0xffff;
    this.#available[1] = this.#next;
    return head;
  }

  /** Chains that came back since the last look: what was written, and used.len. */
  used(): { readonly head: number; readonly regions: DmaRegion[]; readonly length: number }[] {
    const all = [];
    for (; this.#seen !== (this.#used[0] ?? 0) >>> 16; this.#seen = (this.#seen + 1) & 0xffff) {
      const at = 1 + 2 * (this.#seen & (this.size - 1));
      const head = this.#used[at] ?? 0;
      const { regions, ids } = this.#chains.get(head) ?? { regions: [], ids: [] };
      this.#free.push(...ids);
      all.push({ head, regions, length: this.#used[at + 1] ?? 0 });
    }
    return all;
  }
}

/** A guest that lays out a ring for each queue, and looks for no capabilities. */
export class QueueGuest extends HandGuest {
  readonly queues: BareQueue[] = [];

  /** Makes a machine with this device. */
  protected async boot(
    device: EmbeddedDevice,
    {
      seed,
      watched = true,
      memory = 4 << 20,
    }: {
      readonly seed?: number | undefined;
      readonly watched?: boolean;
      readonly memory?: number;
    } = {},
  ): Promise<void> {
    const [io = null] = await this.power(
      {
        devices: [device],
        memory,
        ...(watched ? { rules: this.rules } : {}),
        ...(seed === undefined ? {} : { seed }),
      },
      [this.onLegacy ? [LEGACY_BAR, 0xc000] : [STRUCTURES_BAR, 0xe000_0000]],
    );
    if (io === null) throw new Error("no registers");
    this.io = io;
  }

  /** Selects a queue: its size; 0: there is none. */
  protected async select(index: number): Promise<number> {
    await this.io.write(this.registers.QUEUE_SELECT, 2, index);
    return this.io.read(this.registers.QUEUE_SIZE, 2);
  }

  /** Gives a queue its ring, if there is such a queue. */
  async enable(index: number): Promise<void> {
    const size = await this.select(index);
    if (size === 0) return;
    const queue = new BareQueue(this.machine.memory, size, this.onLegacy);
    this.queues[index] = queue;
    const { address } = queue.ring;
    if (this.onLegacy)
      return this.io.write(LegacyRegister.QUEUE_ADDRESS, 4, address / LEGACY_PAGE_SIZE);
    await this.place(address, address + queue.driverAt, address + queue.deviceAt(false));
    await this.io.write(CommonConfig.QUEUE_ENABLE, 2, 1);
  }

  async resetQueue(index: number): Promise<void> {
    await this.io.write(CommonConfig.QUEUE_SELECT, 2, index);
    await this.io.write(CommonConfig.QUEUE_RESET, 2, 1);
    await this.untilZero(() => this.io.read(CommonConfig.QUEUE_RESET, 2));
  }

  queue(index: number): BareQueue {
    const queue = this.queues[index];
    if (queue === undefined) throw new Error(`no queue ${index}`);
    return queue;
  }

  ring(index: number): Promise<void> {
    return this.onLegacy
      ? this.io.write(LegacyRegister.QUEUE_NOTIFY, 2, index)
      : this.io.write(NOTIFY_AT + index * 4, 2, index);
  }

  get #configAt(): number {
    return this.onLegacy ? LegacyDeviceConfig.WITHOUT_MSIX : DEVICE_AT;
  }

  readConfig(offset: number, width: 1 | 2 | 4): Promise<number> {
    return this.io.read(this.#configAt + offset, width);
  }

  writeConfig(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    return this.io.write(this.#configAt + offset, width, value);
  }
}

// A guest without a driver for a balloon: it drives one function by its registers and split rings, right or wrong.
import { DeviceStatus, type DmaRegion, type IoRegion } from "@virtio/core";
import { BalloonFeature, BalloonQueue } from "@virtio/core/balloon";
import { CommonConfig, LegacyRegister, PciCommand, PciRegister } from "@virtio/core/pci";
import {
  BalloonPort,
  balloon,
  type EmbeddedBalloonOptions,
  type EmbeddedMachine,
  embedded,
  RuleBook,
} from "../src/index.js";
import { BareQueue, le16, le32, type Part } from "./net-guest.js";

const DEVICE_AT = 0x2000;
const NOTIFY_AT = 0x3000;
const STRUCTURES_BAR = 4;
const LEGACY_CONFIG_AT = 20;

const ACTUAL_AT = 4;
export const HINT_AT = 8;
export const POISON_AT = 12;

/** How a guest is made. */
export interface BalloonGuestOptions extends EmbeddedBalloonOptions {
  /** Virtual time. */
  readonly seed?: number;
  /** Features to accept besides VERSION_1; default: MUST_TELL_HOST. */
  readonly accept?: readonly BalloonFeature[];
  /** Default true. */
  readonly start?: boolean;
}

/** Of statistics: tag and value. */
export const statistic = (tag: number, value: number): number[] => [
  ...[...le16(tag), ...le32(value), ...le32(0)],
];

/** A whole life of one balloon, by hand. */
export class BalloonGuest {
  readonly rules = new RuleBook();
  readonly port = new BalloonPort();
  machine!: EmbeddedMachine;
  readonly queues: BareQueue[] = [];
  readonly #legacy: boolean;
  #io!: IoRegion;

  constructor(legacy: boolean) {
    this.#legacy = legacy;
  }

  static async start(options: BalloonGuestOptions = {}): Promise<BalloonGuest> {
    const { accept = [BalloonFeature.MUST_TELL_HOST], start = true, seed, ...spec } = options;
    const guest = new BalloonGuest(spec.legacy === "on");
    await guest.#boot(spec, seed);
    if (start) await guest.run(accept);
    return guest;
  }

  async #boot(options: EmbeddedBalloonOptions, seed?: number): Promise<void> {
    this.machine = await embedded({
      ...(seed === undefined ? {} : { seed }),
      devices: [balloon({ port: this.port, queueSize: 64, ...options })],
      rules: this.rules,
      memory: 4 << 20,
    });
    const [fn] = await this.machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no function");
    const bar = this.#legacy ? 0 : STRUCTURES_BAR;
    await fn.write(PciRegister.BAR0 + bar * 4, 4, this.#legacy ? 0xc000 : 0xe000_0000);
    this.#io = await fn.mapBar(bar);
    await fn.write(
      PciRegister.COMMAND,
      2,
      PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER,
    );
  }

  #status(value: number): Promise<void> {
    const { DEVICE_STATUS } = this.#legacy ? LegacyRegister : CommonConfig;
    return this.#io.write(DEVICE_STATUS, 1, value);
  }

  async reset(): Promise<void> {
    const { DEVICE_STATUS } = this.#legacy ? LegacyRegister : CommonConfig;
    await this.#status(0);
    while ((await this.#io.read(DEVICE_STATUS, 1)) !== 0);
  }

  /** Everything up to DRIVER_OK; `prepare` runs before that is written. */
  async run(
    accept: readonly BalloonFeature[],
    prepare: () => Promise<void> = async () => {},
  ): Promise<void> {
    await this.reset();
    await this.#status(DeviceStatus.ACKNOWLEDGE);
    await this.#status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER);
    const bits = accept.reduce((word, bit) => word | (1 << bit), 0);
    if (this.#legacy) {
      await this.#io.read(LegacyRegister.DEVICE_FEATURES, 4);
      // ANY_LAYOUT
      await this.#io.write(LegacyRegister.DRIVER_FEATURES, 4, bits | (1 << 27));
    } else
      for (const [i, word] of [bits, 1].entries()) {
        await this.#io.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, i);
        await this.#io.read(CommonConfig.DEVICE_FEATURE, 4);
        await this.#io.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, i);
        await this.#io.write(CommonConfig.DRIVER_FEATURE, 4, word);
      }
    if (!this.#legacy) await this.#status(11);
    for (let index = 0; index < 5; index++) await this.#enable(index);
    await prepare();
    if (!this.#legacy) await this.#io.read(CommonConfig.DEVICE_STATUS, 1);
    await this.#status(this.#legacy ? 7 : 15);
    await this.settle();
  }

  /** The size of a queue, which it is then placed with; 0: there is none. */
  async #enable(index: number): Promise<void> {
    const io = this.#io;
    const { QUEUE_SELECT, QUEUE_SIZE } = this.#legacy ? LegacyRegister : CommonConfig;
    await io.write(QUEUE_SELECT, 2, index);
    const size = await io.read(QUEUE_SIZE, 2);
    if (size === 0) return;
    const queue = new BareQueue(this.machine.memory, size, this.#legacy);
    this.queues[index] = queue;
    const { address } = queue.ring;
    if (this.#legacy) {
      await io.write(LegacyRegister.QUEUE_ADDRESS, 4, address / 4096);
      return;
    }
    for (const [at, value] of [
      [CommonConfig.QUEUE_DESC, address],
      [CommonConfig.QUEUE_DRIVER, address + queue.driverAt],
      [CommonConfig.QUEUE_DEVICE, address + queue.deviceAt(false)],
    ] as const) {
      await io.write(at, 4, value);
      await io.write(at + 4, 4, 0);
    }
    await io.write(CommonConfig.QUEUE_ENABLE, 2, 1);
  }

  /** Sizes of the first queues, as the modern interface shows them. */
  async sizes(count: number): Promise<number[]> {
    const found: number[] = [];
    for (let index = 0; index < count; index++) {
      await this.#io.write(CommonConfig.QUEUE_SELECT, 2, index);
      found.push(await this.#io.read(CommonConfig.QUEUE_SIZE, 2));
    }
    return found;
  }

  // ── configuration ───────────────────────────────────────────────────────────

  #config(offset: number): number {
    return (this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset;
  }

  read(offset: number, width: 1 | 2 | 4 = 4): Promise<number> {
    return this.#io.read(this.#config(offset), width);
  }

  write(offset: number, value: number, width: 1 | 2 | 4 = 4): Promise<void> {
    return this.#io.write(this.#config(offset), width, value);
  }

  actual(pages: number): Promise<void> {
    return this.write(ACTUAL_AT, pages);
  }

  // ── chains ──────────────────────────────────────────────────────────────────

  page(bytes = 4096): DmaRegion {
    return this.machine.memory.allocate(bytes, 4096);
  }

  /** Makes one chain available, and rings: how many came back. */
  async offer(queue: BalloonQueue, ...parts: readonly Part[]): Promise<number> {
    const ring = this.queues[queue];
    if (ring === undefined) throw new Error(`no queue ${queue}`);
    ring.offer(parts);
    if (this.#legacy) await this.#io.write(LegacyRegister.QUEUE_NOTIFY, 2, queue);
    else await this.#io.write(NOTIFY_AT + queue * 4, 2, queue);
    await this.settle();
    return ring.used().length;
  }

  inflate(...pages: readonly DmaRegion[]): Promise<number> {
    return this.offer(BalloonQueue.INFLATE, numbers(pages));
  }

  deflate(...pages: readonly DmaRegion[]): Promise<number> {
    return this.offer(BalloonQueue.DEFLATE, numbers(pages));
  }

  statistics(...bytes: readonly number[]): Promise<number> {
    return this.offer(BalloonQueue.STATS, Uint8Array.from(bytes));
  }

  /** A command id on the queue of hints. */
  command(id: number): Promise<number> {
    return this.offer(BalloonQueue.FREE_PAGE, Uint8Array.from(le32(id)));
  }

  /** Lets the machine run. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 6; turn++) await new Promise((resolve) => setImmediate(resolve));
  }

  /** The balloon's own rules that were broken: how a device is found is not this guest's matter. */
  clauses(): string[] {
    const own = this.rules.violations.filter(({ clause }) => clause.startsWith("BALLOON-"));
    return [...new Set(own.map(({ clause }) => clause))];
  }
}

const numbers = (pages: readonly DmaRegion[]): Uint8Array =>
  Uint8Array.from(pages.flatMap(({ address }) => [...le32(address / 4096)]));

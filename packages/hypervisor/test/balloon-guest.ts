// A guest without a driver for a balloon: it drives one function by its registers and split rings, right or wrong.
import { type DmaRegion, ReservedFeature } from "@virtio/core";
import { BalloonFeature, BalloonQueue } from "@virtio/core/balloon";
import { BalloonPort, balloon, type EmbeddedBalloonOptions } from "../src/index.js";
import { featureWords, type Part, QueueGuest } from "./hand-guest.js";
import { le16, le32 } from "./net-guest.js";

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
export class BalloonGuest extends QueueGuest {
  readonly port = new BalloonPort();
  protected override readonly language = "BALLOON-";

  static async start(options: BalloonGuestOptions = {}): Promise<BalloonGuest> {
    const { accept = [BalloonFeature.MUST_TELL_HOST], start = true, seed, ...spec } = options;
    const guest = new BalloonGuest(spec.legacy === "on");
    await guest.boot(balloon({ port: guest.port, queueSize: 64, ...spec }), { seed });
    if (start) await guest.run(accept);
    return guest;
  }

  /** Everything up to DRIVER_OK; `prepare` runs before that is written. */
  async run(
    accept: readonly BalloonFeature[],
    prepare: () => Promise<void> = async () => {},
  ): Promise<void> {
    await this.acknowledge();
    await this.offered();
    const layout = this.onLegacy ? [ReservedFeature.ANY_LAYOUT] : [];
    await this.agree(featureWords([...accept, ...layout]));
    for (let index = 0; index < 5; index++) await this.enable(index);
    await prepare();
    if (!this.onLegacy) await this.readStatus();
    await this.driverOk();
    await this.settle();
  }

  /** Sizes of the first queues; 0: there is none. */
  async sizes(count: number): Promise<number[]> {
    const found: number[] = [];
    for (let index = 0; index < count; index++) found.push(await this.select(index));
    return found;
  }

  // ── configuration ───────────────────────────────────────────────────────────

  read(offset: number, width: 1 | 2 | 4 = 4): Promise<number> {
    return this.readConfig(offset, width);
  }

  write(offset: number, value: number, width: 1 | 2 | 4 = 4): Promise<void> {
    return this.writeConfig(offset, width, value);
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
    const ring = this.queue(queue);
    ring.offer(parts);
    await this.ring(queue);
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
  override async settle(): Promise<void> {
    for (let turn = 0; turn < 6; turn++) await new Promise((resolve) => setImmediate(resolve));
  }
}

const numbers = (pages: readonly DmaRegion[]): Uint8Array =>
  Uint8Array.from(pages.flatMap(({ address }) => [...le32(address / 4096)]));

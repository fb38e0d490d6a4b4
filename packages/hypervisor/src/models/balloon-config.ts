// The balloon's configuration as registers (virtio 1.4 §5.5.4): little-endian on each interface.
import {
  BALLOON_CONFIG_SIZE,
  BalloonConfig,
  BalloonFeature,
  BalloonQueue,
} from "@virtio/core/balloon";
import type { BalloonPort } from "./balloon-port.js";

/** All that a balloon can offer. */
export const balloonModelFeatures: readonly BalloonFeature[] = [
  BalloonFeature.MUST_TELL_HOST,
  BalloonFeature.STATS_VQ,
  BalloonFeature.DEFLATE_ON_OOM,
  BalloonFeature.FREE_PAGE_HINT,
  BalloonFeature.PAGE_POISON,
  BalloonFeature.PAGE_REPORTING,
];

const [ACTUAL_AT] = BalloonConfig.actual;
const [HINT_AT] = BalloonConfig.freePageHintCmdId;
const [POISON_AT] = BalloonConfig.poisonVal;

/** Queues that need a feature, in the order of their numbers. */
const gatedQueues: readonly (readonly [queue: BalloonQueue, feature: BalloonFeature])[] = [
  [BalloonQueue.STATS, BalloonFeature.STATS_VQ],
  [BalloonQueue.FREE_PAGE, BalloonFeature.FREE_PAGE_HINT],
  [BalloonQueue.REPORTING, BalloonFeature.PAGE_REPORTING],
];

/** The feature that a byte of the configuration needs. */
export const balloonConfigGate = (offset: number): number | undefined =>
  offset >= POISON_AT
    ? BalloonFeature.PAGE_POISON
    : offset >= HINT_AT
      ? BalloonFeature.FREE_PAGE_HINT
      : undefined;

/** The queue that each number stands for; null where the device has none. `compact`: numbered without holes, as QEMU does. */
export function queuesByNumber(
  offered: readonly BalloonFeature[],
  compact: boolean,
): readonly (BalloonQueue | null)[] {
  const gated = gatedQueues.map(([queue, feature]) => (offered.includes(feature) ? queue : null));
  const all = [BalloonQueue.INFLATE, BalloonQueue.DEFLATE, ...gated];
  const last = all.findLastIndex((queue) => queue !== null);
  return compact ? all.filter((queue) => queue !== null) : all.slice(0, last + 1);
}

/** The registers of one balloon. */
export class BalloonConfiguration {
  readonly length: number;
  readonly #bytes = new DataView(new ArrayBuffer(BALLOON_CONFIG_SIZE));
  readonly #port: BalloonPort;

  constructor(offered: readonly BalloonFeature[], port: BalloonPort) {
    const ends: number = offered.includes(BalloonFeature.PAGE_POISON)
      ? BALLOON_CONFIG_SIZE
      : offered.includes(BalloonFeature.FREE_PAGE_HINT)
        ? POISON_AT
        : HINT_AT;
    this.length = ends;
    this.#port = port;
  }

  read(offset: number, width: 1 | 2 | 4): number {
    const bytes = this.#bytes;
    bytes.setUint32(0, this.#port.target, true);
    bytes.setUint32(HINT_AT, this.#port.hintCommand, true);
    return width === 1
      ? bytes.getUint8(offset)
      : width === 2
        ? bytes.getUint16(offset, true)
        : bytes.getUint32(offset, true);
  }

  /** Only `actual` and `poison_val` take something; a field counts once its last byte is written (§5.5.6.2.1). */
  write(offset: number, width: 1 | 2 | 4, value: number): "actual" | "poison" | null {
    const field = offset >= POISON_AT ? POISON_AT : ACTUAL_AT;
    if (offset < field || offset + width > field + 4) return null;
    for (let i = 0; i < width; i++)
      this.#bytes.setUint8(offset + i, Math.floor(value / 256 ** i) & 0xff);
    if (offset + width < field + 4) return null;
    const word = this.#bytes.getUint32(field, true);
    if (field === POISON_AT) this.#port.poison = word;
    else this.#port.actual = word;
    return field === POISON_AT ? "poison" : "actual";
  }

  reset(): void {
    this.#bytes.setUint32(ACTUAL_AT, 0);
    this.#bytes.setUint32(POISON_AT, 0);
    this.#port.actual = 0;
    this.#port.poison = null;
  }
}

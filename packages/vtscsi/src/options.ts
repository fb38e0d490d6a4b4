// Tunables of vtscsi, and the same as options of its factory.
import type { TunableSpec } from "@virtio/core";

/** Request queues of an adapter: the bound, and the default. */
const MAX_QUEUES = 64;
const DEFAULT_QUEUES = 8;

/** `bus_reset_disable` and `debug_level` are vtscsi(4)'s; its driver has one request queue, and da(4) has the time-out. */
export const tunables: readonly TunableSpec[] = [
  {
    name: "bus_reset_disable",
    default: 1,
    min: 0,
    max: 1,
    description: "Never reset the device because of a command that timed out",
  },
  {
    name: "debug_level",
    default: 0,
    min: 0,
    max: 7,
    description: "What is logged: 1 information, 2 errors, 4 each command by hand",
  },
  {
    name: "max_queues",
    default: DEFAULT_QUEUES,
    min: 1,
    max: MAX_QUEUES,
    description: "Most request queues; never more than CPUs",
  },
  {
    name: "timeout",
    default: 60,
    min: 1,
    max: 3600,
    description: "Seconds after which a command that is not over is aborted",
  },
];

/** Options of vtscsi: tunables by another way. */
export interface VtscsiOptions {
  /** Never reset the device because of a command that timed out and could not be aborted. Default true. */
  readonly busResetDisable?: boolean;
  /** What is logged: 1 information, 2 errors, 4 each command by hand; added up. Default 0. */
  readonly debugLevel?: number;
  /** Most request queues, 1 to 64; never more than the machine has CPUs. Default 8. */
  readonly maxQueues?: number;
  /** Seconds after which a command that is not over is aborted, 1 to 3600. Default 60. */
  readonly timeout?: number;
}

/** By tunable name. */
export function byTunable(options: VtscsiOptions): Readonly<Record<string, number>> {
  const { busResetDisable, debugLevel, maxQueues, timeout } = options;
  return {
    ...(busResetDisable === undefined ? {} : { bus_reset_disable: Number(busResetDisable) }),
    ...(debugLevel === undefined ? {} : { debug_level: debugLevel }),
    ...(maxQueues === undefined ? {} : { max_queues: maxQueues }),
    ...(timeout === undefined ? {} : { timeout }),
  };
}

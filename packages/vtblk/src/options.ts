// Tunables of vtblk, and the same as options of its factory.
import type { TunableSpec } from "@virtio/core";

/** Request queues of a disk: the bound, and the default. */
const MAX_QUEUES = 64;
const DEFAULT_QUEUES = 8;

/** `no_ident` and `writecache_mode` are virtio_blk(4)'s; its driver has one queue, and waits for ever. */
export const tunables: readonly TunableSpec[] = [
  {
    name: "no_ident",
    default: 0,
    min: 0,
    max: 1,
    description: "Do not ask the device for its serial number",
  },
  {
    name: "max_queues",
    default: DEFAULT_QUEUES,
    min: 1,
    max: MAX_QUEUES,
    description: "Most request queues of a disk; never more than CPUs",
  },
  {
    name: "writecache_mode",
    default: -1,
    min: -1,
    max: 1,
    description: "Cache mode to set: 0 writethrough, 1 writeback, -1 as the device has it",
  },
  {
    name: "timeout",
    default: 30,
    min: 0,
    max: 3600,
    description:
      "Seconds after which a request that is not over makes the device be reset; 0: never",
  },
  {
    name: "zoned_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Drive no zones: host-aware disks as any other, host-managed ones not at all",
  },
];

/** Options of vtblk: tunables by another way. */
export interface VtblkOptions {
  /** Do not ask the device for its serial number. Default false. */
  readonly noIdent?: boolean;
  /** Most request queues, 1 to 64; never more than the machine has CPUs. Default 8. */
  readonly maxQueues?: number;
  /** Cache mode to set where the device lets it be set: 0 writethrough, 1 writeback. Default -1: as it is. */
  readonly writecacheMode?: -1 | 0 | 1;
  /** Seconds after which a request that is not over makes the device be reset, up to 3600; 0: never. Default 30. */
  readonly timeout?: number;
  /** Drive no zones: a host-aware disk is one as any other, a host-managed one is refused. Default false. */
  readonly zonedDisable?: boolean;
}

/** By tunable name. */
export function byTunable(options: VtblkOptions): Readonly<Record<string, number>> {
  const { noIdent, maxQueues, writecacheMode, timeout, zonedDisable } = options;
  return {
    ...(noIdent === undefined ? {} : { no_ident: Number(noIdent) }),
    ...(maxQueues === undefined ? {} : { max_queues: maxQueues }),
    ...(writecacheMode === undefined ? {} : { writecache_mode: writecacheMode }),
    ...(timeout === undefined ? {} : { timeout }),
    ...(zonedDisable === undefined ? {} : { zoned_disable: Number(zonedDisable) }),
  };
}

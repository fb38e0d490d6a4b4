// Tunables of vtnet, and the same as options of its factory.
import type { TunableSpec } from "@virtio/core";

/** Most pairs of queues that the driver uses (vtnet(4)). */
export const MAX_PAIRS = 8;

/** vtnet(4)'s, with the defaults of its first page; `rx_process_limit` and `fixup_needs_csum` are later names. */
export const tunables: readonly TunableSpec[] = [
  {
    name: "csum_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Disables receive and send checksum offload, and with it TSO and LRO",
  },
  {
    name: "fixup_needs_csum",
    default: 0,
    min: 0,
    max: 1,
    description: "Completes partial checksums of received frames in software",
  },
  {
    name: "tso_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Disables TSO",
  },
  {
    name: "lro_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Disables LRO",
  },
  {
    name: "mq_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Disables multiqueue",
  },
  {
    name: "mq_max_pairs",
    default: 0,
    min: 0,
    max: MAX_PAIRS,
    description: "Most pairs of queues; 0: the driver's maximum, 8. Never more than CPUs",
  },
  {
    name: "rx_process_limit",
    default: 1024,
    min: -1,
    max: 65_536,
    description: "Most frames taken from a queue before others get their turn; -1: no limit",
  },
];

/** Options of vtnet: tunables by another way, and a hook. */
export interface VtnetOptions {
  /** No checksum offload, and so no TSO and no LRO. Default false. */
  readonly csumDisable?: boolean;
  /** Complete partial checksums of received frames in software. Default false: they are handed up as NEEDS_CSUM. */
  readonly fixupNeedsCsum?: boolean;
  /** No TSO. Default false. */
  readonly tsoDisable?: boolean;
  /** No LRO. Default false. */
  readonly lroDisable?: boolean;
  /** One pair of queues. Default false. */
  readonly mqDisable?: boolean;
  /** Most pairs of queues, 1 to 8; 0: 8. Never more than the machine has CPUs, or the device has. Default 0. */
  readonly mqMaxPairs?: number;
  /** Most frames that a stream or a capture takes from a queue before other tasks get their turn; -1: no limit. Default 1024. */
  readonly rxProcessLimit?: number;
  /**
   * The device asks that the interface announces itself (virtio 1.4 §5.1.9.5.4), with the interface's name: send gratuitous ARP and
   * neighbour advertisements for the addresses that it has. The driver announces the MAC address by RARP. Default: nothing.
   */
  readonly onAnnounce?: (name: string) => void;
}

/** By tunable name. */
export function byTunable(options: VtnetOptions): Readonly<Record<string, number>> {
  const given = {
    csum_disable: options.csumDisable,
    fixup_needs_csum: options.fixupNeedsCsum,
    tso_disable: options.tsoDisable,
    lro_disable: options.lroDisable,
    mq_disable: options.mqDisable,
    mq_max_pairs: options.mqMaxPairs,
    rx_process_limit: options.rxProcessLimit,
  };
  return Object.fromEntries(
    Object.entries(given).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, Number(value)]],
    ),
  );
}

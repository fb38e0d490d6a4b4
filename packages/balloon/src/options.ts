// Tunables of vtballoon, and the same as options of its factory. FreeBSD's driver has none.
import type { TunableSpec } from "@virtio/core";

/** What `page_poison` says when free pages are filled with nothing. */
export const NO_POISON = -1;

export const tunables: readonly TunableSpec[] = [
  {
    name: "stats_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Tells the device nothing of the guest's memory",
  },
  {
    name: "oom_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Gives no page back when the guest is out of memory",
  },
  {
    name: "hint_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Hints no free pages",
  },
  {
    name: "reporting_disable",
    default: 0,
    min: 0,
    max: 1,
    description: "Reports no free pages",
  },
  {
    name: "page_poison",
    default: NO_POISON,
    min: NO_POISON,
    max: 0xffff_ffff,
    description: "32-bit pattern that pages are filled with before nobody uses them; -1: none",
  },
  {
    name: "reserve",
    default: 256,
    min: 0,
    max: 1 << 20,
    description: "Pages of free memory that the balloon leaves to others",
  },
  {
    name: "timeout",
    default: 30,
    min: 1,
    max: 3600,
    description: "Seconds after which a request that is not over makes the device be reset",
  },
];

/** Options of vtballoon: tunables by another way. */
export interface VtballoonOptions {
  /** Tell the device nothing of the guest's memory (no STATS_VQ). Default false. */
  readonly statsDisable?: boolean;
  /** Give no page back when the guest is out of memory (no DEFLATE_ON_OOM). Default false. */
  readonly oomDisable?: boolean;
  /** Hint no free pages (no FREE_PAGE_HINT). Default false. */
  readonly hintDisable?: boolean;
  /** Report no free pages (no PAGE_REPORTING). Default false. */
  readonly reportingDisable?: boolean;
  /** 32-bit pattern that deflated and reported pages are filled with (PAGE_POISON). Default: none. */
  readonly pagePoison?: number;
  /** Pages of free memory that the balloon leaves to others. Default 256, 1 MiB. */
  readonly reserve?: number;
  /** Seconds after which a request that is not over makes the device be reset, 1 to 3600. Default 30. */
  readonly timeout?: number;
}

/** By tunable name. */
export function byTunable(options: VtballoonOptions): Readonly<Record<string, number>> {
  const given = {
    stats_disable: options.statsDisable,
    oom_disable: options.oomDisable,
    hint_disable: options.hintDisable,
    reporting_disable: options.reportingDisable,
    page_poison: options.pagePoison,
    reserve: options.reserve,
    timeout: options.timeout,
  };
  return Object.fromEntries(
    Object.entries(given).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, Number(value)]],
    ),
  );
}

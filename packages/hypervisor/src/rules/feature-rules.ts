// Rules of a set of accepted features: virtio 1.4 §2.2.1, §6.1, §6.3.
import { DeviceType, ReservedFeature } from "@virtio/core";
import { BalloonFeature } from "@virtio/core/balloon";
import { BlockFeature } from "@virtio/core/block";
import { ConsoleFeature } from "@virtio/core/console";
import { NetFeature } from "@virtio/core/net";
import { ScsiFeature } from "@virtio/core/scsi";
import { hasBit } from "../feature-words.js";
import type { RuleBook } from "./rule-book.js";

/** What a driver accepted, and of what. */
export interface Negotiation {
  readonly device: string;
  readonly type: DeviceType;
  /** Words of all bits the interface offers. */
  readonly offered: readonly number[];
  readonly accepted: ArrayLike<number>;
  readonly prerequisites: readonly (readonly [bit: number, needs: number])[];
  /** Through the legacy interface. */
  readonly legacy: boolean;
}

const bitsOf = (words: Readonly<Record<string, string | number>>): number[] =>
  Object.values(words).filter((value) => typeof value === "number");

/** Bits of each device type (§5), and those of them that only the legacy interface has. */
const typeFeatures = new Map<DeviceType, { all: readonly number[]; legacy: readonly number[] }>([
  [
    DeviceType.BLOCK,
    { all: bitsOf(BlockFeature), legacy: [BlockFeature.BARRIER, BlockFeature.SCSI] },
  ],
  [DeviceType.BALLOON, { all: bitsOf(BalloonFeature), legacy: [] }],
  [DeviceType.CONSOLE, { all: bitsOf(ConsoleFeature), legacy: [] }],
  [DeviceType.NET, { all: bitsOf(NetFeature), legacy: [NetFeature.GSO] }],
  [DeviceType.SCSI, { all: bitsOf(ScsiFeature), legacy: [] }],
]);
const legacyReserved: readonly number[] = [
  ReservedFeature.NOTIFY_ON_EMPTY,
  ReservedFeature.ANY_LAYOUT,
];
/** Offered by old devices to find faulty drivers; not to be negotiated (§6.3). */
const UNUSED = 30;

/** Bits that mean something to a device of this type, on this interface. */
function definedFeatures(type: DeviceType, legacy: boolean): readonly number[] {
  const { all, legacy: old } = typeFeatures.get(type) ?? { all: [], legacy: [] };
  const defined = [...bitsOf(ReservedFeature), ...all];
  return legacy
    ? defined.filter((bit) => bit < 32)
    : defined.filter((bit) => !old.includes(bit) && !legacyReserved.includes(bit));
}

/** Looks at the set that a driver settled on. */
export function checkFeatures(book: RuleBook, negotiation: Negotiation): void {
  const { device, type, offered, accepted, prerequisites, legacy } = negotiation;
  const check = (clause: string, kept: boolean, what: () => string): void =>
    book.check(clause, kept, device, what);
  const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;
  const extra = Array.from(accepted).findIndex((word, i) => (word & ~(offered[i] ?? 0)) !== 0);
  check(
    "FEAT-1",
    extra < 0,
    () =>
      `accepted ${hex(accepted[extra] ?? 0)} of offered ${hex(offered[extra] ?? 0)} in word ${extra}`,
  );
  const lacking = prerequisites.find(
    ([bit, needs]) => hasBit(accepted, bit) && !hasBit(accepted, needs),
  );
  check(
    "FEAT-2",
    lacking === undefined,
    () => `accepted feature ${lacking?.[0]} without feature ${lacking?.[1]}`,
  );
  const defined = definedFeatures(type, legacy);
  const bits = Array.from({ length: accepted.length * 32 }, (_, bit) => bit);
  const foreign = bits.find((bit) => hasBit(accepted, bit) && !defined.includes(bit));
  check(
    "FEAT-3",
    lacking === undefined && foreign === undefined,
    () => `accepted feature ${foreign ?? lacking?.[0]}, which makes no sense here`,
  );
  const wanted = legacy
    ? ([["RESFEAT-LEGACY-1", ReservedFeature.ANY_LAYOUT]] as const)
    : ([
        ["RESFEAT-1", ReservedFeature.VERSION_1],
        ["RESFEAT-13", ReservedFeature.NOTIF_CONFIG_DATA],
      ] as const);
  for (const [clause, bit] of wanted)
    if (hasBit(offered, bit))
      check(
        clause,
        hasBit(accepted, bit),
        () => `${ReservedFeature[bit]} was offered and not accepted`,
      );
  if (legacy)
    check("RESFEAT-LEGACY-2", !hasBit(accepted, UNUSED), () => `feature ${UNUSED} was accepted`);
}

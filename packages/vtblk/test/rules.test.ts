// What the rule book sees of vtblk over the whole Disk contract: each rule was looked at, and each was kept.
import { diskContract } from "@virtio/storage/contract";
import { beforeAll, describe, expect, it } from "vitest";
import { type Bench, bench } from "./attached.js";

/** Rules that a driver of a modern PCI function meets with any ring. */
const rules: readonly (readonly [clause: string, kept: string])[] = [
  ["STATUS-1", "sets status bits in the order of the initialization sequence"],
  ["STATUS-2", "clears no status bit"],
  ["STATUS-3", "goes on after no FAILED without a reset"],
  ["RESET-1", "touches nothing before a reset is done"],
  ["INIT-9", "writes no configuration before FEATURES_OK"],
  ["BLK-INIT-4", "reads no writeback before FEATURES_OK"],
  ["PCI-CAP-8", "writes to no capability"],
  ["PCI-COMMON-5", "waits for status 0 after a reset"],
  ["PCI-ISR-1", "reads no ISR with MSI-X"],
  ["INIT-1", "follows the initialization sequence"],
  ["INIT-2", "resets the device first"],
  ["INIT-3", "sets ACKNOWLEDGE, then DRIVER"],
  ["INIT-4", "reads the features before it writes its own"],
  ["INIT-5", "reads FEATURES_OK back"],
  ["INIT-6", "sets queues up after FEATURES_OK"],
  ["INIT-7", "sets DRIVER_OK last"],
  ["INIT-10", "accepts no feature after FEATURES_OK"],
  ["INIT-13", "rings no doorbell before DRIVER_OK"],
  ["FEAT-1", "accepts no feature that was not offered"],
  ["FEAT-2", "accepts no feature without what it needs"],
  ["RESFEAT-1", "accepts VERSION_1"],
  ["RESFEAT-5", "passes guest-physical addresses"],
  ["CONFIG-3", "reads only fields whose feature is offered"],
  ["PCI-ACCESS-1", "accesses fields at their natural width"],
  ["PCI-COMMON-1", "writes no read-only register"],
  ["PCI-COMMON-4", "programs a queue before it enables it"],
  ["PCI-COMMON-6", "never writes 0 to queue_enable"],
  ["PCI-MSIX-4", "maps no event to a vector outside the table"],
  ["PCI-MSIX-5", "reads each vector field back"],
];

/** Rules of a doorbell without notification data. */
const notify: typeof rules = [
  ["PCI-NOTIFY-1", "rings with a 16-bit write"],
  ["PCI-NOTIFY-3", "rings with the index of the queue"],
];

/** Rules of a split ring with EVENT_IDX. */
const split: typeof rules = [
  ["PCI-COMMON-3", "asks for queue sizes that are powers of two"],
  ["SPLIT-USEDSUP-3", "keeps avail.flags 0"],
  ["SPLIT-LAYOUT-1", "aligns the ring's parts"],
  ["SPLIT-AVAILSUP-1", "starts with used.flags 0"],
  ["SPLIT-AVAIL-1", "never takes the available index back"],
  ["SPLIT-DESC-1", "makes no chain that loops"],
  ["SPLIT-INDIRECT-1", "uses no indirect table that was not negotiated"],
  ["SPLIT-INDIRECT-2", "puts no indirect table into an indirect table"],
  ["SPLIT-INDIRECT-3", "makes no chain longer than the queue"],
  ["SPLIT-INDIRECT-4", "sets INDIRECT and NEXT in no descriptor"],
  ["FRAMING-1", "puts readable segments before writable ones"],
];

/** Rules of a split ring without EVENT_IDX. */
const flags: typeof rules = [
  ["SPLIT-AVAILSUP-3", "rings only while used.flags allows it"],
  ["SPLIT-USEDSUP-1", "sets avail.flags to 0 or 1"],
];

/** Rules of a packed ring. */
const packed: typeof rules = [
  ["PACKED-LAYOUT-1", "aligns the ring's parts"],
  ["PCI-COMMON-2", "asks for no queue of size 0"],
  ["PACKED-SG-1", "makes no list longer than the device allows"],
  ["PACKED-SG-2", "makes no list longer than the queue"],
  ["PACKED-SG-3", "puts readable elements before writable ones"],
  ["PACKED-SG-5", "has room for a whole list before it makes its first descriptor available"],
  ["PACKED-SG-6", "makes the first descriptor of a list available last"],
  ["PACKED-INDIRECT-1", "uses no indirect table that was not negotiated"],
  ["PACKED-INDIRECT-2", "sets no flag but WRITE in an indirect table"],
  ["PACKED-INDIRECT-3", "makes no indirect table longer than the queue"],
  ["PACKED-INDIRECT-4", "puts no indirect descriptor into a list"],
];

/** Rules of notification data. */
const data: typeof rules = [
  ["PCI-NOTIFY-2", "rings with a 32-bit write"],
  ["PCI-NOTIFY-4", "rings with the index of the queue in the low half"],
];

/** Rules that a block driver meets in any ring. */
const block: typeof rules = [
  ["CLEANUP-1", "leaves what the device holds alone"],
  ["BLK-OP-2", "asks for nothing beyond capacity"],
  ["BLK-OP-4", "flushes sector 0"],
  ["BLK-OP-5", "flushes without data"],
  ["BLK-OP-6", "moves whole sectors"],
  ["BLK-OP-7", "names ranges by whole segments of 16 bytes"],
  ["BLK-OP-8", "asks for an id of 20 bytes"],
  ["BLK-OP-9", "discards no more segments at once than the device takes"],
  ["BLK-OP-10", "erases no more segments at once than the device takes"],
  ["BLK-OP-11", "writes zeroes to no more segments at once than the device takes"],
  ["BLK-OP-14", "discards without unmap"],
];

/** A device that takes one small range at a time. */
const ranges = { maxSectors: 500, maxSegments: 1, alignment: 8 };

const rides: readonly (readonly [
  name: string,
  options: Parameters<typeof bench>[0],
  rules: typeof rules,
])[] = [
  [
    "a split ring",
    { discard: ranges, writeZeroes: ranges, secureErase: ranges },
    [...rules, ...notify, ...split, ...block],
  ],
  ["a split ring without EVENT_IDX", { eventIdx: false }, flags],
  ["a packed ring", { packed: true }, packed],
  [
    "a packed ring without indirect tables",
    { packed: true, indirect: false, queueSize: 60 },
    packed.slice(0, 7),
  ],
  ["a split ring with notification data", { features: { NOTIFICATION_DATA: true } }, data],
];

for (const [name, options, kept] of rides)
  describe(`vtblk on the embedded machine, on ${name},`, () => {
    let seen: Bench;
    beforeAll(async () => {
      seen = await bench({ serial: "RULES", ...options });
      for (const { run } of diskContract) await run(seen.disk);
      await seen.machine.close();
    });

    for (const [clause, what] of kept)
      it(`${what} [${clause}]`, () => {
        expect(seen.rules.kept(clause)).toBeGreaterThan(0);
        expect(seen.rules.violations.filter((violation) => violation.clause === clause)).toEqual(
          [],
        );
      });

    it("breaks no rule at all", () => {
      expect(seen.rules.violations).toEqual([]);
    });
  });

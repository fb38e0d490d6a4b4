// What the rule book sees of vtblk over the whole Disk contract: each rule was looked at, and each was kept.
import { diskContract } from "@virtio/storage/contract";
import { beforeAll, describe, expect, it } from "vitest";
import { type Bench, bench } from "./attached.js";

/** Rules that a block driver over a modern PCI function with split rings meets. */
const rules: readonly (readonly [clause: string, kept: string])[] = [
  ["STATUS-1", "sets status bits in the order of the initialization sequence"],
  ["STATUS-2", "clears no status bit"],
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
  ["PCI-COMMON-3", "asks for queue sizes that are powers of two"],
  ["PCI-COMMON-4", "programs a queue before it enables it"],
  ["PCI-COMMON-6", "never writes 0 to queue_enable"],
  ["PCI-MSIX-4", "maps no event to a vector outside the table"],
  ["PCI-MSIX-5", "reads each vector field back"],
  ["PCI-NOTIFY-1", "rings with a 16-bit write"],
  ["PCI-NOTIFY-3", "rings with the index of the queue"],
  ["SPLIT-LAYOUT-1", "aligns the ring's parts"],
  ["SPLIT-AVAILSUP-1", "starts with used.flags 0"],
  ["SPLIT-AVAILSUP-3", "rings only while used.flags allows it"],
  ["SPLIT-USEDSUP-1", "sets avail.flags to 0 or 1"],
  ["SPLIT-AVAIL-1", "never takes the available index back"],
  ["SPLIT-DESC-1", "makes no chain that loops"],
  ["SPLIT-INDIRECT-1", "uses no indirect table that was not negotiated"],
  ["SPLIT-INDIRECT-2", "puts no indirect table into an indirect table"],
  ["SPLIT-INDIRECT-3", "makes no chain longer than the queue"],
  ["SPLIT-INDIRECT-4", "sets INDIRECT and NEXT in no descriptor"],
  ["FRAMING-1", "puts readable segments before writable ones"],
  ["CLEANUP-1", "leaves what the device holds alone"],
  ["BLK-OP-2", "asks for nothing beyond capacity"],
  ["BLK-OP-4", "flushes sector 0"],
  ["BLK-OP-5", "flushes without data"],
  ["BLK-OP-6", "moves whole sectors"],
  ["BLK-OP-8", "asks for an id of 20 bytes"],
];

describe("vtblk on the embedded machine", () => {
  let seen: Bench;
  beforeAll(async () => {
    seen = await bench({ serial: "RULES" });
    for (const { run } of diskContract) await run(seen.disk);
    await seen.machine.close();
  });

  for (const [clause, kept] of rules)
    it(`${kept} [${clause}]`, () => {
      expect(seen.rules.kept(clause)).toBeGreaterThan(0);
      expect(seen.rules.violations.filter((violation) => violation.clause === clause)).toEqual([]);
    });

  it("breaks no rule at all", () => {
    expect(seen.rules.violations).toEqual([]);
  });
});

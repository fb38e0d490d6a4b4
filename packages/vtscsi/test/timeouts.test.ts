// Commands that do not end by themselves: aborted, by a reset of their unit, by one of the device; in virtual time.
import type { EmbeddedScsiOptions } from "@virtio/hypervisor";
import { MemoryBackend } from "@virtio/hypervisor";
import { BioCommand } from "@virtio/storage";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { bench, endsOf, only, outcome, pattern } from "./attached.js";

const SECTOR = 512;
const READ_10 = 0x28;
const ABORT_TASK = 0;
const LOGICAL_UNIT_RESET = 5;
const driver = { timeout: 2 };

/** A bus whose reads hang as long as `hung` says so. */
async function hanging(
  pass: ReturnType<typeof virtualTime>,
  options: EmbeddedScsiOptions & { driver?: { timeout: number; busResetDisable?: boolean } } = {},
) {
  const state = { hung: false };
  const { lies, ...others } = options;
  const answers = (opcode: number): boolean => !(state.hung && opcode === READ_10);
  const seen = await pass(bench({ driver, ...others, lies: { answers, ...lies } }));
  return { ...seen, state, disk: only(seen.bus) };
}

const reads = (disk: { read(at: number, into: Uint8Array): Promise<void> }, count: number) =>
  Array.from({ length: count }, (_, n) => outcome(disk.read(n * SECTOR, new Uint8Array(SECTOR))));

describe("a command that times out", () => {
  for (const [what, options] of [
    ["a split ring", {}],
    ["a packed ring of 4 queues", { packed: true, queues: 4 }],
    ["a legacy device", { legacy: "on" }],
  ] as const)
    it(`is aborted and fails with ETIMEDOUT, once, and the disk works on, on ${what}`, async () => {
      const pass = virtualTime();
      const { state, disk, sysctl, port, rules, machine } = await hanging(pass, options);
      state.hung = true;
      const began = machine.tasks.now();
      const ends = await pass(endsOf(disk, BioCommand.READ, 5));
      expect(ends).toEqual(ends.map(() => ["TIMED_OUT ETIMEDOUT"]));
      const took = machine.tasks.now() - began;
      expect([took >= 2000, took < 3000]).toEqual([true, true]);
      state.hung = false;
      expect(port.outstanding).toBe(0);
      expect(await pass(Promise.all(reads(disk, 5)))).toEqual(ends.map(() => "done"));
      expect(sysctl.find("vtscsi.scsi_cmd_timeouts")[0]?.read()).toBe(5);
      expect(rules.violations).toEqual([]);
    });

  it("ends by a reset of its unit where it cannot be aborted; others of the unit are done again", async () => {
    const pass = virtualTime();
    const { state, disk, lines, bus } = await hanging(pass, {
      lies: {
        manages: (subtype) => subtype !== ABORT_TASK,
        control: (_, subtype, honest) => (subtype === ABORT_TASK ? 11 : honest),
      },
    });
    state.hung = true;
    const [hung] = reads(disk, 1);
    await pass(Promise.race([hung, new Promise((resolve) => setTimeout(resolve, 1500))]));
    const cdb = Uint8Array.of(READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0);
    const other = outcome(bus.execute({ target: 0, lun: 0, cdb, dataIn: new Uint8Array(SECTOR) }));
    const later = outcome(disk.read(0, new Uint8Array(SECTOR)));
    await pass(Promise.race([hung, new Promise(() => {})]));
    state.hung = false;
    expect(await hung).toBe("TIMED_OUT ETIMEDOUT");
    expect(await pass(Promise.all([later, other]))).toEqual(["done", "IO EIO"]);
    expect(lines).toContainEqual(
      expect.stringMatching(/target 0 lun 0: 1 commands timed out and were not aborted/),
    );
  });

  const deaf: EmbeddedScsiOptions = {
    lies: {
      manages: (subtype) => subtype !== ABORT_TASK && subtype !== LOGICAL_UNIT_RESET,
      control: (_, subtype, honest) => (subtype === ABORT_TASK ? null : honest),
    },
  };

  it("fails while the device keeps it where bus resets are disabled; its unit then takes no more", async () => {
    const pass = virtualTime();
    const { state, disk, lines, bus, rules } = await hanging(pass, deaf);
    state.hung = true;
    expect(await pass(Promise.all(reads(disk, 3)))).toEqual(
      new Array(3).fill("TIMED_OUT ETIMEDOUT"),
    );
    state.hung = false;
    expect(lines).toContain("vtscsi0: bus reset disabled");
    expect(await pass(outcome(disk.write(0, new Uint8Array(SECTOR))))).toBe("TIMED_OUT ETIMEDOUT");
    await bus.reset();
    expect(lines.filter((line) => line === "vtscsi0: bus reset disabled")).toHaveLength(2);
    // What the device has is given back by its reset.
    await pass(bus.detach());
    expect(rules.violations).toEqual([]);
  });

  it("leaves others without memory, and says so, when the device keeps all of it", async () => {
    const pass = virtualTime();
    const unit = (target: number) => ({ target, backend: new MemoryBackend(8 << 20) });
    let hung = false;
    const answers = (opcode: number): boolean => !(hung && opcode === READ_10);
    const { bus, machine } = await pass(
      bench({ driver, luns: [unit(0), unit(1)], lies: { answers, ...deaf.lies } }),
    );
    const [first, second] = bus.disks;
    if (first === undefined || second === undefined) throw new Error("no disks");
    hung = true;
    const reads = Array.from({ length: 4 }, () =>
      outcome(first.read(0, new Uint8Array(first.maxTransfer))),
    );
    // It waits for memory, and is told when there will be none.
    const write = outcome(second.write(0, new Uint8Array(SECTOR)));
    expect(await pass(Promise.all(reads))).toEqual(reads.map(() => "TIMED_OUT ETIMEDOUT"));
    expect(await pass(write)).toBe("TIMED_OUT ETIMEDOUT");
    expect(await pass(outcome(second.read(0, new Uint8Array(SECTOR))))).toBe("TIMED_OUT ETIMEDOUT");
    // What needs none of it works.
    const region = machine.memory.allocate(SECTOR);
    expect(await pass(outcome(second.write(0, region.bytes)))).toBe("done");
    await pass(bus.detach());
  });

  it("ends by a reset of the device where that is allowed, and what else was in flight is done again", async () => {
    const pass = virtualTime();
    const { state, disk, lines, rules, port } = await hanging(pass, {
      ...deaf,
      queues: 2,
      driver: { timeout: 2, busResetDisable: false },
    });
    await pass(disk.write(0, pattern(SECTOR, 5)));
    state.hung = true;
    const ends = await pass(endsOf(disk, BioCommand.READ, 3));
    expect(ends).toEqual(ends.map(() => ["TIMED_OUT ETIMEDOUT"]));
    state.hung = false;
    expect(lines).toContainEqual(expect.stringMatching(/: resetting the device$/));
    const into = new Uint8Array(SECTOR);
    await pass(disk.read(0, into));
    expect(into).toEqual(pattern(SECTOR, 5));
    expect(port.outstanding).toBe(0);
    expect(rules.violations).toEqual([]);
  });

  it("does not keep a device from being found that answers nothing at all", async () => {
    const pass = virtualTime();
    const { bus, lines } = await pass(
      bench({ driver, lies: { answers: () => false, control: () => null } }),
    );
    expect(bus.units).toEqual([]);
    expect(lines).toContainEqual(expect.stringMatching(/cannot scan target 0/));
    await pass(bus.detach());
  });
});

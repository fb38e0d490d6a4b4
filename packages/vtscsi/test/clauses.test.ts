// What the rule book sees of vtscsi: each rule of a driver was looked at, and each was kept.
import { type EmbeddedScsiOptions, MemoryBackend, type RuleBook } from "@virtio/hypervisor";
import { beforeAll, describe, expect, it } from "vitest";
import { type Bench, bench, only, outcome, pattern, until } from "./attached.js";

const MIB = 1 << 20;
const SECTOR = 512;

/** A command that is never answered. */
const HUNG = 0x07;
const hung: EmbeddedScsiOptions = { lies: { answers: (opcode) => opcode !== HUNG } };

/** Disks that are read and written, all their commands under way at once. */
async function work({ bus }: Bench): Promise<void> {
  for (const disk of bus.disks) {
    const writes = Array.from({ length: 100 }, (_, n) =>
      disk.write((n % 64) * 16 * SECTOR, pattern(SECTOR, n)),
    );
    await Promise.all(writes);
    await disk.flush();
    await disk.read(0, new Uint8Array(64 * SECTOR));
  }
}

/** Units that come, change and go; tasks that are managed. */
async function change(seen: Bench, backend: MemoryBackend): Promise<void> {
  const { bus, port } = seen;
  const [first] = bus.disks;
  backend.resize(2 * MIB);
  await until(() => first?.mediaSize === 2 * MIB);
  port.plug({ target: 1, backend: new MemoryBackend(MIB) });
  await until(() => bus.disks.length === 2);
  // More than there are buffers for.
  for (let target = 2; target < 14; target++)
    port.plug({ target, backend: new MemoryBackend(SECTOR) });
  await until(() => bus.disks.length === 14);
  await port.unplug(1, 0);
  await until(() => bus.disks.length === 13);
  const at = { target: 0, lun: 0 };
  const task = bus.begin({ ...at, cdb: Uint8Array.of(HUNG, 0, 0, 0, 0, 0) });
  await bus.queryTask(task);
  await bus.abortTask(task);
  await bus.manage("resetLun", at);
}

const kept = (rules: RuleBook, clause: string): void => {
  expect([clause, rules.kept(clause)]).not.toEqual([clause, 0]);
  expect(rules.violations).toEqual([]);
};

const kinds: readonly (readonly [string, EmbeddedScsiOptions])[] = [
  ["a split ring", {}],
  ["a packed ring of 4 queues", { packed: true, queues: 4 }],
];

for (const [what, options] of kinds)
  describe(`vtscsi on ${what}`, () => {
    let seen: Bench;
    beforeAll(async () => {
      const backend = new MemoryBackend(MIB);
      seen = await bench({ cmdPerLun: 16, ...options, ...hung, backend, keep: true });
      await work(seen);
      await change(seen, backend);
      return () => seen.machine.close();
    });

    for (const [clause, does] of [
      ["SCSI-FEAT-1", "handles units that come and go"],
      ["SCSI-FEAT-2", "handles changed parameters"],
      ["SCSI-CFG-1", "writes only sense_size and cdb_size"],
      ["SCSI-CFG-2", "gives a unit no more than cmd_per_lun commands"],
      ["SCSI-CFG-3", "gives a unit no more commands than its queue has room for"],
      ["SCSI-INIT-1", "sets the queues up before the first request"],
      ["SCSI-INIT-2", "has a buffer in the event queue"],
      ["SCSI-REQ-1", "leaves task_attr, prio and crn 0"],
      ["SCSI-EVT-1", "keeps the event queue populated"],
      ["SCSI-EVT-2", "makes event buffers device-writable"],
      ["SCSI-EVT-3", "makes event buffers as large as event_info_size"],
      ["SCSI-EVT-4", "makes event buffers no smaller than an event"],
      ["SCSI-EVT-5", "looks at all units when events were missed"],
      ["SCSI-EVT-6", "asks all units what they have to tell when events were missed"],
      ["SCSI-EVT-7", "looks at a whole target when its LUN 0 comes or goes"],
    ] as const)
      it(`${does} [${clause}]`, () => kept(seen.rules, clause));
  });

describe("vtscsi", () => {
  it("sends no command that is implicitly head of queue as an ordered one [SCSI-ATTR-1]", async () => {
    const { bus, rules } = await bench();
    const inquiry = Uint8Array.of(0x12, 0, 0, 0, 36, 0);
    const at = { target: 0, lun: 0 };
    // Even where a person asks for it.
    await bus.execute({ ...at, cdb: inquiry, dataIn: new Uint8Array(36), attribute: "ordered" });
    expect(rules.violations.filter(({ clause }) => clause === "SCSI-ATTR-1")).toEqual([]);
    expect(rules.kept("SCSI-ATTR-1")).toBeGreaterThan(0);
  });

  it("tries what ended with TARGET_FAILURE on no other path [SCSI-REQ-2]", async () => {
    let failing = false;
    const { bus, rules } = await bench({
      serial: "ONE",
      lies: { response: (honest, opcode) => (failing && opcode === 0x28 ? 7 : honest) },
    });
    const disk = only(bus);
    failing = true;
    expect(await outcome(disk.read(0, new Uint8Array(SECTOR)))).toBe("IO EIO");
    failing = false;
    await disk.read(0, new Uint8Array(SECTOR));
    await bus.detach();
    kept(rules, "SCSI-REQ-2");
  });
});

describe("vtscsi on a legacy device", () => {
  for (const features of [{}, { ANY_LAYOUT: false }] as const)
    it(`speaks as this machine does, and frames as such a device takes it, ${JSON.stringify(features)} [SCSI-CFG-LEGACY-1] [SCSI-REQ-LEGACY-1] [SCSI-CTRL-LEGACY-1] [SCSI-EVT-LEGACY-1] [SCSI-FRAME-LEGACY-1] [SCSI-FRAME-LEGACY-2]`, async () => {
      const backend = new MemoryBackend(MIB);
      const seen = await bench({ legacy: "on", features, ...hung, backend });
      await work(seen);
      await change(seen, backend);
      for (const name of ["CFG", "REQ", "CTRL", "EVT"]) kept(seen.rules, `SCSI-${name}-LEGACY-1`);
      // What may be framed in any way is not looked at.
      if ("ANY_LAYOUT" in features)
        for (const n of [1, 2]) kept(seen.rules, `SCSI-FRAME-LEGACY-${n}`);
      // The configuration was read as it is.
      expect([seen.bus.maxTarget, seen.bus.maxLun]).toEqual([15, 16383]);
    });

  it("ignores used lengths [SCSI-OP-LEGACY-1]", async () => {
    const { bus, port } = await bench({
      legacy: "on",
      lies: { usedLength: () => 0, eventLength: () => 0 },
    });
    const disk = only(bus);
    await disk.write(0, pattern(SECTOR, 1));
    const into = new Uint8Array(SECTOR);
    await disk.read(0, into);
    expect(into).toEqual(pattern(SECTOR, 1));
    port.plug({ target: 3, backend: new MemoryBackend(MIB) });
    await until(() => bus.disks.length === 2);
  });
});

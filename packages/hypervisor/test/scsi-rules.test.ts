// Each rule of SCSI is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { ReservedFeature } from "@virtio/core";
import {
  ScsiConfig,
  ScsiFeature,
  ScsiOpcode,
  ScsiQueue,
  ScsiResponse,
  ScsiTaskAttribute,
  ScsiTmf,
} from "@virtio/core/scsi";
import { describe, expect, it } from "vitest";
import { FaultBackend, MemoryBackend } from "../src/index.js";
import { inquiryCdb, read10, readCapacity16 } from "./scsi-cdbs.js";
import { fieldOf, ScsiGuest, type ScsiGuestOptions, tmf } from "./scsi-guest.js";

const { TEST_UNIT_READY, REPORT_LUNS, REQUEST_SENSE } = ScsiOpcode;
const { HOTPLUG, CHANGE } = ScsiFeature;
/** Commands after which a driver has had time enough. */
const PATIENCE = 256;

const memory = (): MemoryBackend => new MemoryBackend(1 << 20);
const hanging = (): FaultBackend => new FaultBackend(memory(), () => "never");
const ready = (g: ScsiGuest, more = {}) => g.command({ cdb: [TEST_UNIT_READY], ...more });
/** Commands that do nothing of what the driver was asked to: reads of one unit. */
async function goOn(g: ScsiGuest, commands = PATIENCE): Promise<void> {
  for (let left = commands; left > 0; left -= 16) {
    const some = Math.min(left, 16);
    const keys = Array.from({ length: some }, () => g.submit({ cdb: read10(0, 1), into: 512 }));
    await g.ring(ScsiQueue.REQUEST);
    for (const key of keys) await g.answer(key);
  }
}
/** A 32-bit word in the other byte order. */
const swapped = (bytes: Uint8Array, at: number): Uint8Array => {
  const copy = bytes.slice();
  copy.set(bytes.slice(at, at + 4).reverse(), at);
  return copy;
};
const queries = tmf(ScsiTmf.QUERY_TASK_SET, fieldOf(0, 0), 0);

interface Crime {
  readonly clause: string;
  readonly what: string;
  readonly device?: ScsiGuestOptions;
  readonly commit: (g: ScsiGuest) => Promise<unknown>;
}

/** A unit at this target comes, and nobody looks. */
const comesUnseen = async (g: ScsiGuest, target = 0, lun = 1): Promise<void> => {
  await ready(g);
  g.port.plug({ backend: memory(), target, lun });
  await g.settle();
  await g.settle();
  await goOn(g);
};

const legacy: ScsiGuestOptions = { legacy: "on" };
const strict: ScsiGuestOptions = { ...legacy, accept: [] };
const backend = memory();

const crimes: readonly Crime[] = [
  {
    clause: "SCSI-FEAT-1",
    what: "does not look at a unit that came",
    commit: comesUnseen,
  },
  {
    clause: "SCSI-FEAT-2",
    what: "does not look at a capacity that changed",
    device: { backend },
    async commit(g) {
      await ready(g);
      backend.resize(2 << 20);
      await g.settle();
      await g.settle();
      await goOn(g);
    },
  },
  {
    clause: "SCSI-CFG-1",
    what: "writes to num_queues",
    commit: (g) => g.writeConfig(ScsiConfig.numQueues[0], 4, 2),
  },
  {
    clause: "SCSI-CFG-1",
    what: "writes to max_channel",
    commit: (g) => g.writeConfig(ScsiConfig.maxChannel[0], 2, 2),
  },
  {
    clause: "SCSI-CFG-2",
    what: "sends more than cmd_per_lun commands to a unit",
    device: { cmdPerLun: 2 },
    async commit(g) {
      for (let n = 0; n < 3; n++) g.submit({ cdb: [TEST_UNIT_READY] });
      await g.ring(ScsiQueue.REQUEST);
      await g.settle();
    },
  },
  {
    clause: "SCSI-CFG-3",
    what: "sends more commands to a unit than a queue has descriptors",
    device: { queues: 3, queueSize: 8, backend: hanging() },
    async commit(g) {
      await ready(g);
      for (let n = 0; n < 9; n++) {
        const queue = ScsiQueue.REQUEST + (n >>> 2);
        g.submit({ cdb: read10(0, 1), into: 512, queue });
        await g.ring(queue);
        await g.settle();
      }
    },
  },
  {
    clause: "SCSI-INIT-1",
    what: "sends a request before it has set up the other queues",
    device: { start: false },
    async commit(g) {
      await g.negotiate([]);
      await g.enable(ScsiQueue.REQUEST);
      await g.status(15);
      await ready(g);
    },
  },
  {
    clause: "SCSI-INIT-2",
    what: "wants events and supplies no buffer",
    device: { start: false },
    async commit(g) {
      await g.run([HOTPLUG], 0);
      await ready(g);
    },
  },
  {
    clause: "SCSI-ATTR-1",
    what: "sends an ORDERED INQUIRY",
    commit: (g) =>
      g.command({ cdb: inquiryCdb(36), into: 36, attribute: ScsiTaskAttribute.ORDERED }),
  },
  { clause: "SCSI-REQ-1", what: "sends a priority", commit: (g) => ready(g, { prio: 1 }) },
  { clause: "SCSI-REQ-1", what: "sends a crn", commit: (g) => ready(g, { crn: 1 }) },
  {
    clause: "SCSI-REQ-1",
    what: "sends a task attribute",
    commit: (g) => ready(g, { attribute: ScsiTaskAttribute.HEAD }),
  },
  {
    clause: "SCSI-REQ-2",
    what: "tries on another path what failed with TARGET_FAILURE",
    device: {
      luns: [
        { backend: memory(), serial: "ONE" },
        { backend: memory(), serial: "ONE", target: 1 },
      ],
      lies: {
        response: (honest, opcode) =>
          opcode === ScsiOpcode.READ_10 ? ScsiResponse.TARGET_FAILURE : honest,
      },
    },
    async commit(g) {
      await g.command({ cdb: read10(0, 1), into: 512 });
      await g.command({ cdb: read10(0, 1), into: 512, target: 1 });
    },
  },
  {
    clause: "SCSI-EVT-1",
    what: "supplies no more event buffers",
    device: { start: false },
    async commit(g) {
      await g.run(undefined, 1);
      await comesUnseen(g);
    },
  },
  {
    clause: "SCSI-EVT-2",
    what: "supplies an event buffer that can be read",
    async commit(g) {
      g.queue(ScsiQueue.EVENT).offer([new Uint8Array(4), 16]);
      await g.ring(ScsiQueue.EVENT);
      await g.settle();
    },
  },
  {
    clause: "SCSI-EVT-3",
    what: "supplies an event buffer shorter than event_info_size",
    commit: (g) => g.post(1, 15),
  },
  {
    clause: "SCSI-EVT-4",
    what: "supplies an event buffer shorter than an event",
    commit: (g) => g.post(1, 15),
  },
  ...(["SCSI-EVT-5", "SCSI-EVT-6"] as const).map((clause) => ({
    clause,
    what: "does not look for what it missed",
    device: { start: false },
    async commit(g: ScsiGuest) {
      await g.run([HOTPLUG], 0);
      await ready(g);
      g.port.plug({ backend: memory(), target: 1 });
      await g.settle();
      await g.settle();
      await g.post(4);
      await goOn(g);
    },
  })),
  {
    clause: "SCSI-EVT-7",
    what: "does not look at the target whose LUN 0 came",
    commit: (g) => comesUnseen(g, 4, 0),
  },
  {
    clause: "SCSI-CFG-LEGACY-1",
    what: "writes sense_size in the other byte order",
    device: legacy,
    commit: (g) => g.writeConfig(ScsiConfig.senseSize[0], 4, 0x6000_0000),
  },
  {
    clause: "SCSI-REQ-LEGACY-1",
    what: "names a request by an id in the other byte order",
    device: { ...legacy, backend: hanging() },
    async commit(g) {
      await ready(g);
      g.submit({ cdb: read10(0, 1), into: 512, id: 0x1234_5678, idHigh: 1 });
      await g.ring(ScsiQueue.REQUEST);
      await g.settle();
      await g.manage(ScsiTmf.QUERY_TASK, { id: 0x0100_0000, idHigh: 0x7856_3412 });
    },
  },
  {
    clause: "SCSI-CTRL-LEGACY-1",
    what: "sends the subtype of a function in the other byte order",
    device: legacy,
    commit: (g) => g.control([swapped(queries, 4), 1]),
  },
  {
    clause: "SCSI-CTRL-LEGACY-1",
    what: "sends the type of a control request in the other byte order",
    device: legacy,
    commit: (g) => g.control([Uint8Array.of(0, 0, 0, 1, ...fieldOf(0, 0), 255, 0, 0, 0), 5]),
  },
  {
    clause: "SCSI-EVT-LEGACY-1",
    what: "does not understand that a unit came",
    device: legacy,
    commit: comesUnseen,
  },
  {
    clause: "SCSI-FRAME-LEGACY-1",
    what: "puts data into the descriptor of the request header",
    device: strict,
    async commit(g) {
      await ready(g, { out: new Uint8Array(16) });
    },
  },
  {
    clause: "SCSI-FRAME-LEGACY-2",
    what: "puts data into the descriptor of the response",
    device: strict,
    async commit(g) {
      await ready(g, { into: 16 });
    },
  },
];

describe("the rule book of a SCSI host", () => {
  for (const { clause, what, device = {}, commit } of crimes)
    it(`reports a guest that ${what} [${clause} fires]`, async () => {
      const g = await ScsiGuest.start(device);
      try {
        await commit(g);
        expect(g.clauses()).toContain(clause);
        expect(g.rules.violations.find((one) => one.clause === clause)?.device).toBe("scsi0");
      } finally {
        await g.machine.close();
      }
    });

  /** A guest that does all of it as it should. */
  async function behave(g: ScsiGuest, disk: MemoryBackend): Promise<void> {
    const { port } = g;
    await g.writeConfig(ScsiConfig.senseSize[0], 4, 96);
    await g.writeConfig(ScsiConfig.cdbSize[0], 4, 32);
    const whole = false;
    await ready(g);
    await g.command({ cdb: read10(0, 1), into: 512, whole });
    // A unit comes: LUN 0 of a target.
    port.plug({ backend: memory(), target: 5 });
    expect(await g.events()).toHaveLength(1);
    await g.post(1);
    await g.command({ cdb: inquiryCdb(36), into: 36, target: 5, whole });
    // The disk grows.
    disk.resize(2 << 20);
    expect(await g.events()).toHaveLength(1);
    await g.post(1);
    await ready(g);
    await g.command({ cdb: readCapacity16(), into: 32, whole });
    // Events are missed.
    for (let target = 10; target < 15; target++) port.plug({ backend: memory(), target });
    expect(await g.events()).toHaveLength(4);
    await g.post(4);
    expect(await g.events()).toHaveLength(1);
    for (let target = 10; target < 15; target++) {
      const field = { target, whole };
      await g.command({ cdb: inquiryCdb(36), into: 36, ...field });
      await g.command({ cdb: [REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 0, 64], into: 64, ...field });
      await g.command({ cdb: [REQUEST_SENSE, 0, 0, 0, 18], into: 18, ...field });
    }
    await goOn2(g);
    await g.manage(ScsiTmf.QUERY_TASK_SET);
  }

  /** Time enough, in chains of legacy framing. */
  async function goOn2(g: ScsiGuest): Promise<void> {
    for (let n = 0; n < PATIENCE / 8; n++) {
      const keys = Array.from({ length: 8 }, () =>
        g.submit({ cdb: read10(0, 1), into: 512, whole: false }),
      );
      await g.ring(ScsiQueue.REQUEST);
      for (const key of keys) await g.answer(key);
    }
  }

  const seen = new Set<string>();
  it.each([
    ["the modern interface", { accept: [HOTPLUG, CHANGE] }],
    ["the legacy interface", { legacy: "on" as const, accept: [HOTPLUG, CHANGE] }],
  ])("keeps them of a guest that does all of this as it should, on %s", async (_, options) => {
    const disk = memory();
    let failing = false;
    const g = await ScsiGuest.start({
      ...options,
      backend: disk,
      serial: "ONE",
      lies: { response: (honest) => (failing ? ScsiResponse.TARGET_FAILURE : honest) },
    });
    await behave(g, disk);
    failing = true;
    await ready(g);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    for (const { clause } of crimes) if (g.rules.kept(clause) > 0) seen.add(clause);
    await g.machine.close();
  });

  it("keeps the ids of requests that functions name, on the legacy interface", async () => {
    const g = await ScsiGuest.start({ ...legacy, backend: hanging() });
    await ready(g);
    g.submit({ cdb: read10(0, 1), into: 512, id: 0x1234_5678, idHigh: 1, whole: false });
    await g.ring(ScsiQueue.REQUEST);
    await g.settle();
    await g.manage(ScsiTmf.ABORT_TASK, { id: 0x1234_5678, idHigh: 1 });
    expect(g.clauses()).toEqual([]);
    if (g.rules.kept("SCSI-REQ-LEGACY-1") > 0) seen.add("SCSI-REQ-LEGACY-1");
    await g.machine.close();
  });

  it("has a look at every rule that it can report", () => {
    const clauses = new Set(crimes.map(({ clause }) => clause));
    expect([...clauses].filter((clause) => !seen.has(clause))).toEqual([]);
  });

  it("says nothing of a guest that leaves before it had time enough", async () => {
    const g = await ScsiGuest.start();
    await ready(g);
    g.port.plug({ backend: memory(), target: 1 });
    await g.settle();
    await g.settle();
    await goOn(g, PATIENCE - 1);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
  });

  it("does not take its own rules for those of a driver that accepted less", async () => {
    const g = await ScsiGuest.start({ start: false });
    await g.run([], 0);
    await ready(g);
    g.port.plug({ backend: memory(), target: 1 });
    await goOn(g);
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
    const other = await ScsiGuest.start({ legacy: "on", accept: [ReservedFeature.ANY_LAYOUT] });
    await ready(other, { into: 16 });
    expect(other.clauses()).toEqual([]);
    await other.machine.close();
  });
});

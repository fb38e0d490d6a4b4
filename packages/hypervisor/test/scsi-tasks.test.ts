// Tasks of a SCSI host's units, and the functions that manage them (virtio 1.4 §5.6.6.1, §5.6.6.2; SAM-5), driven by hand.
import { ReservedFeature } from "@virtio/core";
import {
  ScsiControl,
  ScsiControlResponse,
  ScsiOpcode,
  ScsiQueue,
  ScsiResponse,
  ScsiStatus,
  ScsiTaskAttribute,
  ScsiTmf,
} from "@virtio/core/scsi";
import { afterEach, describe, expect, it } from "vitest";
import { FaultBackend, MemoryBackend } from "../src/index.js";
import { GatedBackend } from "./gated-backend.js";
import { read10, write10 } from "./scsi-cdbs.js";
import { fieldOf, ScsiGuest, type ScsiGuestOptions, tmf } from "./scsi-guest.js";

const { TEST_UNIT_READY } = ScsiOpcode;
const { FUNCTION_COMPLETE, FUNCTION_SUCCEEDED, FUNCTION_REJECTED } = ScsiControlResponse;
const { BAD_TARGET, INCORRECT_LUN, FAILURE } = ScsiControlResponse;
const { SIMPLE, ORDERED, HEAD, ACA } = ScsiTaskAttribute;

let guest: ScsiGuest;
afterEach(() => guest.machine.close());

/** A guest of one unit, and what it has to say at first. */
async function start<B extends GatedBackend | FaultBackend | MemoryBackend>(
  backend: B,
  options: ScsiGuestOptions = {},
): Promise<{ g: ScsiGuest; backend: B }> {
  guest = await ScsiGuest.start({ backend, ...options });
  await guest.command({ cdb: [TEST_UNIT_READY] });
  return { g: guest, backend };
}

/** A backend whose reads never end, until they are cancelled. */
const hanging = () =>
  new FaultBackend(new MemoryBackend(1 << 20), ({ operation }) =>
    operation === "read" ? "never" : undefined,
  );

/** A read that does not end. */
async function hang(g: ScsiGuest, id: number, more = {}): Promise<string> {
  const key = g.submit({ cdb: read10(0, 1), into: 512, id, idHigh: 0xabc, ...more });
  await g.ring(ScsiQueue.REQUEST);
  await g.settle();
  expect(g.came(key)).toBe(false);
  return key;
}

describe("ABORT TASK", () => {
  it("ends the task that it names, and is over after the driver can see that", async () => {
    const { g } = await start(hanging());
    const key = await hang(g, 7);
    expect(await g.manage(ScsiTmf.ABORT_TASK, { id: 7 })).toBe(FUNCTION_COMPLETE);
    expect(g.came(key)).toBe(false);
    expect(await g.manage(ScsiTmf.ABORT_TASK, { id: 7, idHigh: 0xabc, lun: 0 })).toBe(
      FUNCTION_COMPLETE,
    );
    expect(g.came(key)).toBe(true);
    expect(await g.answer(key)).toMatchObject({
      response: ScsiResponse.ABORTED,
      senseLength: 0,
      residual: 512,
      used: 108,
    });
    expect((await g.command({ cdb: write10(0, 1), out: new Uint8Array(512) })).status).toBe(0);
  });

  it("waits for a backend that is at work, and does not write to memory that was given back", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    const key = await hang(g, 7);
    const queue = g.queue(ScsiQueue.CONTROL);
    queue.offer([tmf(ScsiTmf.ABORT_TASK, fieldOf(0, 0), 7, 0xabc), 1]);
    await g.ring(ScsiQueue.CONTROL);
    for (let turn = 0; turn < 20; turn++) await g.settle();
    expect([queue.used().length, g.came(key)]).toEqual([0, false]);
    backend.letGo();
    await g.until(() => queue.used().length === 1);
    expect(g.came(key)).toBe(true);
    expect((await g.answer(key)).response).toBe(ScsiResponse.ABORTED);
  });

  it("ends what has not started, and what is never answered, at once", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    const first = await hang(g, 1);
    const second = await hang(g, 2, { attribute: ORDERED });
    expect(backend.waiting).toBe(1);
    expect(await g.manage(ScsiTmf.ABORT_TASK, { id: 2, idHigh: 0xabc })).toBe(FUNCTION_COMPLETE);
    expect((await g.answer(second)).response).toBe(ScsiResponse.ABORTED);
    backend.letGo();
    expect((await g.answer(first)).status).toBe(ScsiStatus.GOOD);
  });

  it("makes the unit's other commands that hang fail so that they can be tried again", async () => {
    const { g } = await start(hanging());
    const [named, other] = [await hang(g, 1), await hang(g, 2)];
    await g.manage(ScsiTmf.ABORT_TASK, { id: 1, idHigh: 0xabc });
    expect((await g.answer(named)).response).toBe(ScsiResponse.ABORTED);
    expect(await g.answer(other)).toMatchObject({ response: ScsiResponse.OK, sense: "b/0000" });
  });
});

describe("functions for all tasks of a unit", () => {
  const luns = (backend: FaultBackend) => [
    { backend, target: 1, lun: 0 },
    { backend: hanging(), target: 1, lun: 1 },
    { backend: hanging(), target: 2, lun: 0 },
  ];
  const startThree = async (options: ScsiGuestOptions = {}): Promise<ScsiGuest> => {
    guest = await ScsiGuest.start({ luns: luns(hanging()), ...options });
    for (const [target, lun] of [
      [1, 0],
      [1, 1],
      [2, 0],
    ] as const)
      await guest.command({ cdb: [TEST_UNIT_READY], target, lun });
    return guest;
  };
  const hangAll = async (g: ScsiGuest): Promise<[string, string, string]> => [
    await hang(g, 1, { target: 1, lun: 0 }),
    await hang(g, 2, { target: 1, lun: 1 }),
    await hang(g, 3, { target: 2, lun: 0 }),
  ];

  it.each([
    ["ABORT TASK SET", ScsiTmf.ABORT_TASK_SET],
    ["CLEAR TASK SET", ScsiTmf.CLEAR_TASK_SET],
  ])("%s ends them as ABORTED, and those of no other unit", async (_, subtype) => {
    const g = await startThree();
    const [own, neighbour, other] = await hangAll(g);
    const second = await hang(g, 4, { target: 1, lun: 0 });
    expect(await g.manage(subtype, { target: 1, lun: 0 })).toBe(FUNCTION_COMPLETE);
    expect([g.came(own), g.came(second)]).toEqual([true, true]);
    expect((await g.answer(own)).response).toBe(ScsiResponse.ABORTED);
    expect((await g.answer(second)).response).toBe(ScsiResponse.ABORTED);
    expect([g.came(neighbour), g.came(other)]).toEqual([false, false]);
    expect((await g.command({ cdb: [TEST_UNIT_READY], target: 1 })).status).toBe(ScsiStatus.GOOD);
  });

  it("LOGICAL UNIT RESET ends them as RESET, and the unit says that it was reset", async () => {
    const g = await startThree();
    const [own, neighbour, other] = await hangAll(g);
    expect(await g.manage(ScsiTmf.LOGICAL_UNIT_RESET, { target: 1, lun: 0 })).toBe(0);
    expect(g.came(own)).toBe(true);
    expect((await g.answer(own)).response).toBe(ScsiResponse.RESET);
    expect([g.came(neighbour), g.came(other)]).toEqual([false, false]);
    const ready = () => g.command({ cdb: [TEST_UNIT_READY], target: 1 });
    expect((await ready()).sense).toBe("6/2903");
    expect((await ready()).status).toBe(ScsiStatus.GOOD);
  });

  it("I_T NEXUS RESET ends those of the whole target as RESET", async () => {
    const g = await startThree();
    const [own, neighbour, other] = await hangAll(g);
    expect(await g.manage(ScsiTmf.I_T_NEXUS_RESET, { target: 1, lun: 77 })).toBe(0);
    for (const key of [own, neighbour])
      expect([g.came(key), (await g.answer(key)).response]).toEqual([true, ScsiResponse.RESET]);
    expect(g.came(other)).toBe(false);
    expect((await g.command({ cdb: [TEST_UNIT_READY], target: 1, lun: 1 })).sense).toBe("6/2907");
  });

  it("with nothing to end are over at once", async () => {
    const { g } = await start(new MemoryBackend(1 << 20));
    for (const subtype of [0, 1, 3, 4, 5]) expect(await g.manage(subtype)).toBe(FUNCTION_COMPLETE);
  });

  it("tell of their end only after the tasks' own, whatever the interleaving", async () => {
    for (let seed = 1; seed <= 10; seed++) {
      const { g, backend } = await start(new GatedBackend(1 << 20), { seed });
      const keys = [await hang(g, 1), await hang(g, 2)];
      const queue = g.queue(ScsiQueue.CONTROL);
      queue.offer([tmf(ScsiTmf.ABORT_TASK_SET, fieldOf(0, 0), 0), 1]);
      await g.ring(ScsiQueue.CONTROL);
      await g.settle();
      backend.letGo();
      await g.until(() => queue.used().length === 1);
      expect([seed, ...keys.map((key) => g.came(key))]).toEqual([seed, true, true]);
      if (seed < 10) await g.machine.close();
    }
  });
});

describe("a function with IN_ORDER", () => {
  it("is over only when its task could be given back, behind those before it", async () => {
    guest = await ScsiGuest.start({
      features: { IN_ORDER: true },
      accept: [ReservedFeature.IN_ORDER],
      lies: { answers: (opcode) => opcode !== ScsiOpcode.READ_10 },
    });
    const g = guest;
    const [first, second] = [await hang(g, 1), await hang(g, 2)];
    const queue = g.queue(ScsiQueue.CONTROL);
    queue.offer([tmf(ScsiTmf.ABORT_TASK, fieldOf(0, 0), 2, 0xabc), 1]);
    await g.ring(ScsiQueue.CONTROL);
    for (let turn = 0; turn < 10; turn++) await g.settle();
    expect([g.came(second), queue.used().length]).toEqual([false, 0]);
    queue.offer([tmf(ScsiTmf.ABORT_TASK, fieldOf(0, 0), 1, 0xabc), 1]);
    await g.ring(ScsiQueue.CONTROL);
    await g.until(() => g.came(second));
    expect((await g.answer(first)).response).toBe(ScsiResponse.ABORTED);
  });
});

describe("a unit that is being reset", () => {
  it("takes no commands until it is, and is BUSY", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    const key = await hang(g, 1);
    const queue = g.queue(ScsiQueue.CONTROL);
    queue.offer([tmf(ScsiTmf.LOGICAL_UNIT_RESET, fieldOf(0, 0), 0), 1]);
    await g.ring(ScsiQueue.CONTROL);
    await g.settle();
    await g.settle();
    expect((await g.command({ cdb: [TEST_UNIT_READY] })).response).toBe(ScsiResponse.BUSY);
    backend.letGo();
    await g.until(() => queue.used().length === 1);
    expect((await g.answer(key)).response).toBe(ScsiResponse.RESET);
    expect((await g.command({ cdb: [TEST_UNIT_READY] })).sense).toBe("6/2903");
  });
});

describe("queries, and functions that there are not", () => {
  it("say whether a task, or any, is there", async () => {
    const { g } = await start(hanging());
    expect(await g.manage(ScsiTmf.QUERY_TASK_SET)).toBe(FUNCTION_COMPLETE);
    await hang(g, 5);
    const named = { id: 5, idHigh: 0xabc };
    expect(await g.manage(ScsiTmf.QUERY_TASK, named)).toBe(FUNCTION_SUCCEEDED);
    expect(await g.manage(ScsiTmf.QUERY_TASK, { id: 6 })).toBe(FUNCTION_COMPLETE);
    expect(await g.manage(ScsiTmf.QUERY_TASK_SET)).toBe(FUNCTION_SUCCEEDED);
  });

  it("are rejected, or answered with what is wrong with their address", async () => {
    const { g } = await start(new MemoryBackend(1 << 20));
    expect(await g.manage(ScsiTmf.CLEAR_ACA)).toBe(FUNCTION_REJECTED);
    expect(await g.manage(99 as ScsiTmf)).toBe(FUNCTION_REJECTED);
    for (const subtype of [0, 1, 3, 5, 6, 7]) {
      expect(await g.manage(subtype, { target: 9 })).toBe(BAD_TARGET);
      expect(await g.manage(subtype, { lun: 9 })).toBe(INCORRECT_LUN);
    }
    expect(await g.manage(ScsiTmf.I_T_NEXUS_RESET, { target: 9 })).toBe(BAD_TARGET);
    const wellKnown = { field: [0xc1, 1, 0, 0, 0, 0, 0, 0] };
    expect(await g.manage(ScsiTmf.ABORT_TASK_SET, wellKnown)).toBe(INCORRECT_LUN);
  });

  it("are answered as far as they can be when they are cut short, or of a type that there is not", async () => {
    const { g } = await start(new MemoryBackend(1 << 20));
    const request = tmf(ScsiTmf.QUERY_TASK, fieldOf(0, 0), 0);
    const outcome = async (...parts: Parameters<ScsiGuest["control"]>[0]) => {
      const { answer, used } = await g.control(parts);
      return [used, answer[0]];
    };
    expect(await outcome(request.slice(0, 23), 1)).toEqual([1, FAILURE]);
    expect(await outcome(Uint8Array.of(0, 0), 1)).toEqual([1, FUNCTION_REJECTED]);
    expect(await outcome(Uint8Array.of(9, 0, 0, 0, 0, 0, 0, 0), 1)).toEqual([1, FUNCTION_REJECTED]);
    expect((await g.control([request])).used).toBe(0);
    const query = Uint8Array.of(ScsiControl.AN_QUERY, 0, 0, 0, ...fieldOf(0, 0), 255, 0, 0, 0);
    expect(await outcome(query, 4)).toEqual([1, FAILURE]);
  });
});

describe("task attributes", () => {
  const order = async (g: ScsiGuest, attributes: readonly number[]): Promise<string[]> => {
    const keys = attributes.map((attribute, lba) =>
      g.submit({ cdb: read10(lba, 1), into: 512, attribute }),
    );
    await g.ring(ScsiQueue.REQUEST);
    await g.settle();
    return keys;
  };

  it("ORDERED waits for those before, and those behind wait for it", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    const keys = await order(g, [SIMPLE, SIMPLE, ORDERED, SIMPLE, SIMPLE]);
    for (const working of [2, 1, 2]) {
      expect(backend.waiting).toBe(working);
      backend.letGo();
      await g.settle();
      await g.settle();
    }
    for (const key of keys) expect((await g.answer(key)).status).toBe(ScsiStatus.GOOD);
  });

  it("HEAD OF QUEUE waits for none, and those behind wait for it", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    const keys = await order(g, [SIMPLE, ORDERED, HEAD, SIMPLE]);
    for (const working of [2, 1, 1]) {
      expect(backend.waiting).toBe(working);
      backend.letGo();
      await g.settle();
      await g.settle();
    }
    for (const key of keys) expect((await g.answer(key)).status).toBe(ScsiStatus.GOOD);
  });

  it("ACA, or any other, is refused: there is no such condition", async () => {
    const { g } = await start(new MemoryBackend(1 << 20));
    for (const attribute of [ACA, 4, 255])
      expect((await g.command({ cdb: [TEST_UNIT_READY], attribute })).sense).toBe("5/4900");
  });

  it("do not come into it when a unit has more commands than it takes: TASK SET FULL", async () => {
    const { g } = await start(hanging(), { cmdPerLun: 2 });
    await hang(g, 1);
    await hang(g, 2);
    expect(await g.command({ cdb: [TEST_UNIT_READY] })).toMatchObject({
      response: ScsiResponse.OK,
      status: ScsiStatus.TASK_SET_FULL,
      senseLength: 0,
    });
  });
});

describe("a reset", () => {
  it("of the device ends what hangs, gives nothing back, and the units have been reset", async () => {
    const { g, backend } = await start(hanging());
    await hang(g, 1);
    await g.reset();
    expect([backend.unanswered, g.port.outstanding]).toEqual([0, 0]);
    g.collect();
    expect(g.order).toHaveLength(1);
    await g.run();
    expect((await g.command({ cdb: [TEST_UNIT_READY] })).sense).toBe("6/2900");
  });

  it("of the device waits for a backend that is at work", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    await hang(g, 1);
    await g.status(0);
    for (let turn = 0; turn < 10; turn++) await g.settle();
    expect(await g.readStatus()).not.toBe(0);
    backend.letGo();
    await g.settle();
    await g.settle();
    expect(await g.readStatus()).toBe(0);
  });

  it("of one queue ends what came by it, and by no other", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20), { queues: 2 });
    const key = await hang(g, 1);
    g.submit({ cdb: read10(0, 1), into: 512, queue: 3 });
    await g.ring(3);
    await g.settle();
    const reset = g.resetQueue(3);
    await g.settle();
    backend.letGo();
    await reset;
    expect((await g.answer(key)).status).toBe(ScsiStatus.GOOD);
    expect(g.port.outstanding).toBe(0);
    await g.enable(3);
    expect((await g.command({ cdb: [TEST_UNIT_READY], queue: 3 })).status).toBe(ScsiStatus.GOOD);
  });

  it("of the control queue leaves its functions unanswered", async () => {
    const { g, backend } = await start(new GatedBackend(1 << 20));
    const key = await hang(g, 1);
    g.queue(ScsiQueue.CONTROL).offer([tmf(ScsiTmf.ABORT_TASK_SET, fieldOf(0, 0), 0), 1]);
    await g.ring(ScsiQueue.CONTROL);
    await g.settle();
    await g.resetQueue(ScsiQueue.CONTROL);
    backend.letGo();
    expect((await g.answer(key)).response).toBe(ScsiResponse.ABORTED);
    await g.enable(ScsiQueue.CONTROL);
    expect(await g.manage(ScsiTmf.QUERY_TASK_SET)).toBe(FUNCTION_COMPLETE);
  });
});

describe("a device that lies", () => {
  it("never answers a command but by an abort, a reset, or not at all", async () => {
    const { g } = await start(new MemoryBackend(1 << 20), {
      lies: { answers: (opcode) => opcode !== ScsiOpcode.READ_10 },
    });
    const [first, second] = [await hang(g, 1), await hang(g, 2)];
    expect(await g.manage(ScsiTmf.ABORT_TASK, { id: 1, idHigh: 0xabc })).toBe(0);
    expect((await g.answer(first)).response).toBe(ScsiResponse.ABORTED);
    expect(await g.manage(ScsiTmf.LOGICAL_UNIT_RESET)).toBe(0);
    expect((await g.answer(second)).response).toBe(ScsiResponse.RESET);
    await hang(g, 3);
    await g.reset();
  });

  it("says of each field of an answer what it is told to", async () => {
    const { g } = await start(new MemoryBackend(1 << 20), {
      lies: {
        response: (honest) => honest + 9,
        status: () => 0x28,
        residual: (honest) => honest + 1,
        senseLength: () => 0xffff,
        sense: (sense) => sense.fill(0xee),
        usedLength: () => 1 << 20,
        control: (type, subtype) => 100 + 10 * type + subtype,
        config: (offset, _, honest) => (offset === 0 ? 77 : honest),
      },
    });
    expect(await g.command({ cdb: [TEST_UNIT_READY] })).toMatchObject({
      response: 9,
      status: 0x28,
      residual: 1,
      senseLength: 0xffff,
      sense: "e/eeee",
      used: 108,
    });
    expect(await g.manage(ScsiTmf.LOGICAL_UNIT_RESET)).toBe(105);
    expect(await g.field("numQueues")).toBe(77);
  });

  it("never answers a function", async () => {
    const { g } = await start(new MemoryBackend(1 << 20), { lies: { control: () => null } });
    const queue = g.queue(ScsiQueue.CONTROL);
    queue.offer([tmf(ScsiTmf.QUERY_TASK, fieldOf(0, 0), 0), 1]);
    await g.ring(ScsiQueue.CONTROL);
    for (let turn = 0; turn < 10; turn++) await g.settle();
    expect(queue.used()).toEqual([]);
    await g.reset();
  });
});

// Commands by hand: what comes back is what the unit said, and tasks can be managed.
import { MemoryBackend } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { bench, only, outcome, pattern, until } from "./attached.js";

const MIB = 1 << 20;
const at = { target: 0, lun: 0 };
const testUnitReady = new Uint8Array(6);
const inquiry = Uint8Array.of(0x12, 0, 0, 0, 96, 0);
/** READ(10) of the first block. */
const read = Uint8Array.of(0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0);
const write = Uint8Array.of(0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0);

describe("a command by hand", () => {
  it("brings data in, and says how much did not come", async () => {
    const { bus } = await bench();
    const dataIn = new Uint8Array(96).fill(0xee);
    const { status, sense, residual } = await bus.execute({ ...at, cdb: inquiry, dataIn });
    expect([status, sense]).toEqual([0, null]);
    expect(residual).toBeGreaterThan(0);
    expect(Buffer.from(dataIn.subarray(8, 16)).toString()).toBe("VIRTIO  ");
    // What was not written stays as it is.
    expect(dataIn.subarray(96 - residual).every((byte) => byte === 0xee)).toBe(true);
  });

  it("takes data out", async () => {
    const content = new Uint8Array(MIB);
    const { bus, machine } = await bench({ backend: new MemoryBackend(content) });
    const dataOut = pattern(512, 1);
    expect((await bus.execute({ ...at, cdb: write, dataOut })).status).toBe(0);
    expect(content.subarray(0, 512)).toEqual(dataOut);
    // In place, too.
    const region = machine.memory.allocate(512);
    await bus.execute({ ...at, cdb: read, dataIn: region.bytes });
    expect(Buffer.compare(region.bytes, dataOut)).toBe(0);
  });

  it("shows sense data decoded, and retries nothing: that is the caller's", async () => {
    const { bus, port } = await bench();
    const bad = Uint8Array.of(0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0);
    const { status, sense, residual } = await bus.execute({
      ...at,
      cdb: bad,
      dataIn: new Uint8Array(512),
    });
    expect([status, sense?.key, sense?.asc, sense?.ascq, residual]).toEqual([2, 5, 0x21, 0, 512]);
    expect(sense?.text).toBe("ILLEGAL REQUEST asc:21,0 (Logical block address out of range)");
    port.reset(0, 0);
    const attention = await bus.execute({ ...at, cdb: testUnitReady });
    expect(attention.sense?.text).toMatch(/^UNIT ATTENTION asc:29,/);
    expect((await bus.execute({ ...at, cdb: testUnitReady })).status).toBe(0);
  });

  it("says CLOSED of a target that is not there", async () => {
    const { bus } = await bench();
    const command = { target: 7, lun: 0, cdb: testUnitReady };
    expect(await outcome(bus.execute(command))).toBe("CLOSED ENXIO");
  });

  it("is refused when it cannot be one", async () => {
    const { bus } = await bench();
    const bytes = new Uint8Array(8);
    const refused = [
      { target: 16, lun: 0, cdb: testUnitReady },
      { target: -1, lun: 0, cdb: testUnitReady },
      { target: 0, lun: 16384, cdb: testUnitReady },
      { target: 0, lun: 0.5, cdb: testUnitReady },
      { ...at, cdb: new Uint8Array(5) },
      { ...at, cdb: new Uint8Array(33) },
      { ...at, cdb: testUnitReady, timeout: 0 },
      { ...at, cdb: testUnitReady, dataIn: new Uint8Array(bus.maxTransfer + 1) },
    ];
    for (const command of refused)
      expect(await outcome(bus.execute(command))).toBe("INVALID EINVAL");
    const both = { ...at, cdb: read, dataIn: bytes, dataOut: bytes };
    expect(await outcome(bus.execute(both))).toBe("UNSUPPORTED ENOTSUP");
    const foreign = { ...at, result: Promise.resolve({ status: 0, sense: null, residual: 0 }) };
    expect(await outcome(bus.abortTask(foreign))).toBe("NOT_FOUND ENOENT");
  });

  it("waits its turn where a unit takes no more commands", async () => {
    const { bus, rules } = await bench({ cmdPerLun: 2 });
    const all = Array.from({ length: 100 }, () => bus.execute({ ...at, cdb: testUnitReady }));
    expect((await Promise.all(all)).every(({ status }) => status === 0)).toBe(true);
    expect(rules.violations).toEqual([]);
  });

  it("carries its task attribute", async () => {
    const { bus } = await bench();
    for (const attribute of ["simple", "ordered", "head"] as const)
      expect((await bus.execute({ ...at, cdb: testUnitReady, attribute })).status).toBe(0);
    // There is no auto contingent allegiance.
    const aca = await bus.execute({ ...at, cdb: testUnitReady, attribute: "aca" });
    expect(aca.status).toBe(2);
  });
});

describe("a task", () => {
  /** READ(10)s that the device never answers by itself. */
  const hung = () => bench({ lies: { answers: (opcode) => opcode !== 0x28 } });

  it("can be asked for, and aborted", async () => {
    const { bus } = await hung();
    const task = bus.begin({ ...at, cdb: read, dataIn: new Uint8Array(512) });
    const end = outcome(task.result);
    expect(await bus.queryTask(task)).toBe(true);
    expect(await bus.manage("queryTaskSet", at)).toBe(true);
    expect(await bus.abortTask(task)).toBe(true);
    expect(await end).toBe("IO EIO");
    expect([await bus.abortTask(task), await bus.queryTask(task)]).toEqual([false, false]);
    expect(await bus.manage("queryTaskSet", at)).toBe(false);
  });

  for (const what of ["abortTaskSet", "clearTaskSet", "resetLun", "resetTarget"] as const)
    it(`ends by ${what}, and the unit works on`, async () => {
      const { bus, rules } = await hung();
      const ends = Array.from({ length: 5 }, () =>
        outcome(bus.execute({ ...at, cdb: read, dataIn: new Uint8Array(512) })),
      );
      await bus.manage(what, at);
      expect(await Promise.all(ends)).toEqual(ends.map(() => "IO EIO"));
      await only(bus).write(0, pattern(512, 1));
      expect(rules.violations).toEqual([]);
    });

  it("rejects at once with the signal's reason, and is aborted on the device", async () => {
    const { bus, port, machine } = await hung();
    const abort = new AbortController();
    const reason = new Error("enough");
    const into = new Uint8Array(512);
    const task = bus.execute({ ...at, cdb: read, dataIn: into, signal: abort.signal });
    await until(() => port.outstanding > 0);
    abort.abort(reason);
    await expect(task).rejects.toBe(reason);
    await until(() => port.outstanding === 0);
    // Bytes in guest memory are the caller's only when the device gave them back.
    const region = machine.memory.allocate(512);
    const second = new AbortController();
    const inPlace = bus.execute({ ...at, cdb: read, dataIn: region.bytes, signal: second.signal });
    await until(() => port.outstanding > 0);
    second.abort(reason);
    await expect(inPlace).rejects.toBe(reason);
    expect(port.outstanding).toBe(0);
    const none = AbortSignal.abort(reason);
    await expect(bus.execute({ ...at, cdb: read, signal: none })).rejects.toBe(reason);
  });

  it("says UNSUPPORTED of a function that the device does not do, and CLOSED of a unit that is not there", async () => {
    const { bus } = await bench({
      lies: { control: (_, subtype, honest) => (subtype === 2 ? 11 : honest) },
    });
    expect(await outcome(bus.manage("clearAca", at))).toBe("UNSUPPORTED ENOTSUP");
    expect(await outcome(bus.manage("resetLun", { target: 9, lun: 0 }))).toBe("CLOSED ENXIO");
    expect(await outcome(bus.manage("resetLun", { target: 0, lun: 9 }))).toBe("CLOSED ENXIO");
    expect(await outcome(bus.manage("resetLun", { target: 0, lun: -1 }))).toBe("INVALID EINVAL");
  });

  it("is told by its unit what it subscribed to", async () => {
    const { bus, port } = await bench({ luns: [{ type: "cd", backend: new MemoryBackend(MIB) }] });
    const MEDIA_CHANGE = 16;
    expect(await bus.queryNotifications(at, 0xff)).toBe(MEDIA_CHANGE);
    expect(await bus.subscribeNotifications(at, MEDIA_CHANGE)).toBe(MEDIA_CHANGE);
    const events: unknown[] = [];
    const stop = bus.onEvent((event) => events.push(event));
    port.notify(0, 0, MEDIA_CHANGE);
    await until(() => events.length > 0);
    expect(events).toEqual([{ event: 2, reason: MEDIA_CHANGE, target: 0, lun: 0, missed: false }]);
    stop();
    port.notify(0, 0, MEDIA_CHANGE);
    for (let n = 0; n < 20; n++) await new Promise((resolve) => setImmediate(resolve));
    expect(events).toHaveLength(1);
  });
});

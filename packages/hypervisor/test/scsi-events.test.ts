// The events of a SCSI host, and the units that come, go and change behind it (virtio 1.4 §5.6.6.2, §5.6.6.3), driven by hand.
import { DeviceStatus, ReservedFeature } from "@virtio/core";
import {
  SCSI_EVENTS_MISSED,
  ScsiAsyncEvent,
  ScsiControl,
  ScsiEvent,
  ScsiFeature,
  ScsiOpcode,
  ScsiQueue,
  ScsiResetReason,
  ScsiResponse,
  ScsiStatus,
} from "@virtio/core/scsi";
import { afterEach, describe, expect, it } from "vitest";
import { FaultBackend, MemoryBackend, ScsiPort } from "../src/index.js";
import { GatedBackend } from "./gated-backend.js";
import { read10 } from "./scsi-cdbs.js";
import { ScsiGuest, type ScsiGuestOptions } from "./scsi-guest.js";

const { TEST_UNIT_READY, REPORT_LUNS, READ_CAPACITY_10 } = ScsiOpcode;
const { TRANSPORT_RESET, ASYNC_NOTIFY, PARAM_CHANGE, NO_EVENT } = ScsiEvent;
const { HARD, RESCAN, REMOVED } = ScsiResetReason;

let guest: ScsiGuest;
afterEach(() => guest.machine.close());

const memory = (): MemoryBackend => new MemoryBackend(1 << 20);
const start = async (options: ScsiGuestOptions = {}): Promise<ScsiGuest> => {
  guest = await ScsiGuest.start(options);
  return guest;
};
const ready = (g: ScsiGuest, target = 0, lun = 0) =>
  g.command({ cdb: [TEST_UNIT_READY], target, lun });

/** `event lun reason` */
const told = async (g: ScsiGuest): Promise<string[]> =>
  (await g.events()).map(
    ({ event, lun, reason }) => `${event} ${lun.join(".")} 0x${reason.toString(16)}`,
  );

describe("a unit that is plugged in", () => {
  it("answers, is told of by an event, and by the other units of its target", async () => {
    const g = await start({ target: 3 });
    await ready(g, 3);
    g.port.plug({ backend: memory(), target: 3, lun: 300 });
    g.port.plug({ backend: memory(), target: 4, serial: "NEW" });
    expect(await told(g)).toEqual([
      `${TRANSPORT_RESET} 1.3.65.44 0x${RESCAN}`,
      `${TRANSPORT_RESET} 1.4.0.0 0x${RESCAN}`,
    ]);
    expect((await ready(g, 3)).sense).toBe("6/3f0e");
    expect((await ready(g, 3)).status).toBe(ScsiStatus.GOOD);
    expect((await ready(g, 3, 300)).sense).toBe("6/2900");
    expect((await ready(g, 4)).sense).toBe("6/2900");
    expect(() => g.port.plug({ backend: memory(), target: 4 })).toThrow(
      expect.objectContaining({ code: "EXISTS" }),
    );
  });

  it("is heard of by REPORT LUNS, too", async () => {
    const g = await start();
    await ready(g);
    g.port.plug({ backend: memory(), lun: 1 });
    await g.command({ cdb: [REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 0, 64], into: 64 });
    expect((await ready(g)).status).toBe(ScsiStatus.GOOD);
  });

  it("is told of by no event to a driver that did not accept HOTPLUG, or that does not run", async () => {
    const g = await start({ accept: [ScsiFeature.CHANGE] });
    g.port.plug({ backend: memory(), target: 1 });
    void g.port.unplug(1, 0);
    expect(await told(g)).toEqual([]);
    await g.reset();
    g.port.plug({ backend: memory(), target: 2 });
    await g.run();
    expect(await told(g)).toEqual([]);
    expect((await ready(g, 2)).sense).toBe("6/2900");
  });
});

describe("a unit that is unplugged", () => {
  it("is gone at once, aborts its commands, and closes its backend when they are over", async () => {
    const backend = new GatedBackend(1 << 20);
    const g = await start({ backend, target: 1 });
    await ready(g, 1);
    const key = g.submit({ cdb: read10(0, 1), into: 512, target: 1 });
    await g.ring(ScsiQueue.REQUEST);
    await g.settle();
    const unplugged = g.port.unplug(1, 0);
    expect((await ready(g, 1)).response).toBe(ScsiResponse.BAD_TARGET);
    expect(await told(g)).toEqual([`${TRANSPORT_RESET} 1.1.0.0 0x${REMOVED}`]);
    expect([g.came(key), backend.closed]).toEqual([false, 0]);
    backend.letGo();
    await unplugged;
    expect(backend.closed).toBe(1);
    expect((await g.answer(key)).response).toBe(ScsiResponse.ABORTED);
    await expect(g.port.unplug(1, 0)).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("is waited for by a reset of the device while its backend is at work in guest memory", async () => {
    const backend = new GatedBackend(1 << 20);
    const g = await start({ backend });
    await ready(g);
    g.submit({ cdb: read10(0, 1), into: 512 });
    await g.ring(ScsiQueue.REQUEST);
    await g.settle();
    const unplugged = g.port.unplug(0, 0);
    await g.status(0);
    for (let turn = 0; turn < 10; turn++) await g.settle();
    expect(await g.readStatus()).not.toBe(0);
    backend.letGo();
    await unplugged;
    await g.settle();
    expect(await g.readStatus()).toBe(0);
  });

  it("leaves its target to those that remain, which say so", async () => {
    const backend = memory();
    const g = await start({
      luns: [
        { backend, target: 1, lun: 0 },
        { backend: memory(), target: 1, lun: 1 },
      ],
    });
    await ready(g, 1, 1);
    await g.port.unplug(1, 0);
    expect((await ready(g, 1)).sense).toBe("5/2500");
    expect((await ready(g, 1, 1)).sense).toBe("6/3f0e");
    backend.resize(1 << 10);
    expect(await told(g)).toEqual([`${TRANSPORT_RESET} 1.1.0.0 0x${REMOVED}`]);
  });

  it("comes back as another", async () => {
    const g = await start();
    await ready(g);
    await g.port.unplug(0, 0);
    g.port.plug({ backend: new MemoryBackend(512 * 7) });
    expect((await ready(g)).sense).toBe("6/2900");
    const { data } = await g.command({ cdb: [READ_CAPACITY_10], into: 8 });
    expect(data[3]).toBe(6);
  });
});

describe("a capacity that changes", () => {
  it("is told of by an event and by the unit", async () => {
    const backend = memory();
    const g = await start({ backend, target: 2, lun: 1 });
    await ready(g, 2, 1);
    backend.resize(2 << 20);
    expect(await told(g)).toEqual([`${PARAM_CHANGE} 1.2.0.1 0x92a`]);
    expect((await ready(g, 2, 1)).sense).toBe("6/2a09");
    const { data } = await g.command({ cdb: [READ_CAPACITY_10], into: 8, target: 2, lun: 1 });
    expect([...data.subarray(0, 4)]).toEqual([0, 0, 0x0f, 0xff]);
  });

  it("is told of by the unit alone without CHANGE, and of a CD-ROM", async () => {
    const backend = memory();
    const disc = memory();
    const g = await start({
      luns: [{ backend }, { backend: disc, lun: 1, type: "cd" }],
      accept: [ScsiFeature.HOTPLUG],
    });
    await ready(g);
    backend.resize(2 << 20);
    expect(await told(g)).toEqual([]);
    expect((await ready(g)).sense).toBe("6/2a09");
    await g.run([ScsiFeature.CHANGE]);
    await ready(g, 0, 1);
    disc.resize(2 << 20);
    expect(await told(g)).toEqual([]);
    expect((await ready(g, 0, 1)).sense).toBe("6/2a09");
  });
});

describe("a unit that somebody else resets", () => {
  it("ends its commands as RESET, is told of by an event, and says so", async () => {
    const backend = new FaultBackend(memory(), () => "never");
    const g = await start({ backend });
    await ready(g);
    const key = g.submit({ cdb: read10(0, 1), into: 512 });
    await g.ring(ScsiQueue.REQUEST);
    await g.settle();
    g.port.reset(0, 0);
    expect((await g.answer(key)).response).toBe(ScsiResponse.RESET);
    expect(await told(g)).toEqual([`${TRANSPORT_RESET} 1.0.0.0 0x${HARD}`]);
    expect((await ready(g)).sense).toBe("6/2900");
  });
});

describe("asynchronous notifications", () => {
  const { MEDIA_CHANGE, POWER_MGMT } = ScsiAsyncEvent;
  const luns = () => [
    { backend: memory() },
    { backend: memory(), lun: 1, removable: true },
    { backend: new MemoryBackend(4096), lun: 2, type: "cd" as const },
  ];

  it("are those that a unit has, asked for or subscribed to", async () => {
    const g = await start({ luns: luns() });
    const all = 0x7e;
    for (const type of [ScsiControl.AN_QUERY, ScsiControl.AN_SUBSCRIBE]) {
      expect(await g.notifications(type, all)).toEqual([0, 0]);
      expect(await g.notifications(type, all, 0, 1)).toEqual([MEDIA_CHANGE, 0]);
      expect(await g.notifications(type, POWER_MGMT, 0, 2)).toEqual([0, 0]);
      expect(await g.notifications(type, all, 0, 9)).toEqual([0, 12]);
      expect(await g.notifications(type, all, 9, 0)).toEqual([0, 3]);
    }
  });

  it("of a medium that changes come to a driver that subscribed, until it does not any more", async () => {
    const g = await start({ luns: luns() });
    const { port } = g;
    await ready(g, 0, 1);
    await g.notifications(ScsiControl.AN_QUERY, MEDIA_CHANGE, 0, 1);
    await port.load(0, 1, null);
    expect(await told(g)).toEqual([]);
    await g.notifications(ScsiControl.AN_SUBSCRIBE, MEDIA_CHANGE, 0, 1);
    await port.load(0, 1, memory());
    expect(await told(g)).toEqual([`${ASYNC_NOTIFY} 1.0.0.1 0x${MEDIA_CHANGE.toString(16)}`]);
    expect((await ready(g, 0, 1)).sense).toBe("6/2800");
    port.notify(0, 1, 0x7e);
    port.notify(0, 1, POWER_MGMT);
    expect(await told(g)).toEqual([`${ASYNC_NOTIFY} 1.0.0.1 0x${MEDIA_CHANGE.toString(16)}`]);
    await g.notifications(ScsiControl.AN_SUBSCRIBE, 0, 0, 1);
    port.notify(0, 1, MEDIA_CHANGE);
    expect(await told(g)).toEqual([]);
  });

  it("need a unit whose medium can be exchanged, for one that fits", async () => {
    const g = await start({ luns: luns() });
    await expect(g.port.load(0, 0, null)).rejects.toMatchObject({ code: "INVALID" });
    await expect(g.port.load(0, 2, new MemoryBackend(512))).rejects.toMatchObject({
      code: "INVALID",
    });
    await expect(g.port.load(0, 7, null)).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("end commands that the old medium is working on", async () => {
    const backend = new GatedBackend(1 << 20);
    const g = await start({ luns: [{ backend, removable: true }] });
    await ready(g);
    const key = g.submit({ cdb: read10(0, 1), into: 512 });
    await g.ring(ScsiQueue.REQUEST);
    await g.settle();
    const loaded = g.port.load(0, 0, null);
    expect((await ready(g)).sense).toBe("2/3a00");
    backend.letGo();
    await loaded;
    expect([backend.closed, (await g.answer(key)).response]).toEqual([1, ScsiResponse.ABORTED]);
  });
});

describe("the event queue", () => {
  const plug = (g: ScsiGuest, target: number) => g.port.plug({ backend: memory(), target });

  it("without buffers loses events, and says so with the next buffer", async () => {
    const g = await start({ start: false });
    await g.run(undefined, 1);
    plug(g, 1);
    plug(g, 2);
    plug(g, 3);
    expect(await told(g)).toEqual([`${TRANSPORT_RESET} 1.1.0.0 0x1`]);
    await g.post(1);
    expect((await g.events()).map(({ event }) => event)).toEqual([
      (SCSI_EVENTS_MISSED | NO_EVENT) >>> 0,
    ]);
    await g.post(1);
    plug(g, 4);
    expect(await told(g)).toEqual([`${TRANSPORT_RESET} 1.4.0.0 0x1`]);
  });

  it("that comes to have buffers without a doorbell says so with the next event", async () => {
    const g = await start({ start: false });
    await g.run(undefined, 0);
    plug(g, 1);
    await g.settle();
    await g.settle();
    g.queue(ScsiQueue.EVENT).offer([16]);
    plug(g, 2);
    expect((await g.events()).map(({ event, lun }) => [event, lun[1]])).toEqual([
      [(SCSI_EVENTS_MISSED | TRANSPORT_RESET) >>> 0, 2],
    ]);
  });

  it("gives a buffer that is too short back at once with no event, and uses the next", async () => {
    const g = await start({ start: false });
    await g.run(undefined, 0);
    await g.post(1, 15);
    await g.post(1, 40);
    plug(g, 1);
    expect((await g.events()).map(({ event, used }) => [event, used])).toEqual([
      [NO_EVENT, 15],
      [TRANSPORT_RESET, 16],
    ]);
  });

  it("says after a suspend that events were missed in it", async () => {
    const g = await start({ accept: [ScsiFeature.HOTPLUG, ReservedFeature.SUSPEND] });
    await g.status(15 | DeviceStatus.SUSPEND);
    await g.settle();
    expect((await g.readStatus()) & (DeviceStatus.SUSPEND | DeviceStatus.DRIVER_OK)).toBe(
      DeviceStatus.SUSPEND,
    );
    plug(g, 1);
    expect(await g.events()).toEqual([]);
    await g.status(15);
    expect((await g.events()).map(({ event }) => event)).toEqual([
      (SCSI_EVENTS_MISSED | NO_EVENT) >>> 0,
    ]);
  });

  it("is forgotten with a reset", async () => {
    const g = await start({ start: false });
    await g.run(undefined, 0);
    plug(g, 1);
    await g.settle();
    await g.run();
    expect(await told(g)).toEqual([]);
  });

  it("of a device that lies says anything", async () => {
    const g = await start({
      lies: { event: (event) => event.fill(0xaa), eventLength: () => 3 },
    });
    plug(g, 1);
    expect(await g.events()).toEqual([
      { event: 0xaaaa_aaaa, lun: [0xaa, 0xaa, 0xaa, 0xaa], reason: 0xaaaa_aaaa, used: 3 },
    ]);
  });
});

describe("a port", () => {
  it("has no device before it is given to one", async () => {
    await start();
    const port = new ScsiPort();
    expect(() => port.plug({ backend: memory() })).toThrow(
      expect.objectContaining({ code: "INVALID" }),
    );
    await expect(port.unplug(0, 0)).rejects.toMatchObject({ code: "INVALID" });
  });
});

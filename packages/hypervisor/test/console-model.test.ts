// The console device by the clauses of a device (virtio 1.4 §5.3), driven by hand.
import { ConsoleEvent, ConsoleFeature } from "@virtio/core/console";
import { describe, expect, it, onTestFinished } from "vitest";
import { ConsoleHost, consoleDevice, embedded } from "../src/index.js";
import { ConsoleGuest, type ConsoleGuestOptions } from "./console-guest.js";

async function guestOf(options: ConsoleGuestOptions = {}): Promise<ConsoleGuest> {
  const guest = await ConsoleGuest.start(options);
  onTestFinished(() => guest.machine.close());
  return guest;
}

const text = (bytes: Uint8Array): string => String.fromCharCode(...bytes);
const bytesOf = (string: string): Uint8Array => new TextEncoder().encode(string);

/** As far as DEVICE_READY and PORT_READY of every port, with buffers for what follows. */
async function ready(g: ConsoleGuest): Promise<void> {
  await g.hear();
  await g.say(0, ConsoleEvent.DEVICE_READY);
  for (const { id } of g.heard()) await g.say(id, ConsoleEvent.PORT_READY);
  g.heard();
}

/** The first word of what is offered. */
const offered = async (g: ConsoleGuest): Promise<number> => (await g.offered())[0] ?? -1;

describe("a console device", () => {
  it("offers SIZE and EMERG_WRITE, and MULTIPORT when it can have several ports", async () => {
    const one = await guestOf({ start: false });
    expect((await offered(one)) & 7).toBe(0b101);
    const several = await guestOf({ start: false, maxPorts: 3 });
    expect((await offered(several)) & 7).toBe(0b111);
    expect(await several.readConfig(4, 4)).toBe(3);
    const held = await guestOf({ start: false, features: { SIZE: false, EMERG_WRITE: false } });
    expect((await offered(held)) & 7).toBe(0);
    const asked = await guestOf({ start: false, features: { MULTIPORT: true } });
    expect((await offered(asked)) & 7).toBe(0b111);
  });

  it("takes emergency writes at any time, also before it is set up, the low byte only", async () => {
    const g = await guestOf({ start: false });
    const seen: number[] = [];
    g.host.onEmergency = (byte) => seen.push(byte);
    await g.writeConfig(8, 4, 0x41);
    await g.run([]);
    await g.writeConfig(8, 4, 0xffff_ff42);
    expect([g.host.emergency, seen]).toEqual([
      [0x41, 0x42],
      [0x41, 0x42],
    ]);
    const old = await guestOf({ legacy: "on" });
    for (let i = 0; i < 4; i++) await old.writeConfig(8 + i, 1, i === 0 ? 0x43 : 0);
    expect(old.host.emergency).toEqual([0x43]);
    const held = await guestOf({ start: false, features: { EMERG_WRITE: false } });
    await held.writeConfig(8, 4, 0x41);
    expect(held.host.emergency).toEqual([]);
  });

  it("moves bytes both ways on a single port, whatever the buffers' sizes", async () => {
    const g = await guestOf();
    const [end] = g.host.ports;
    await g.offer(1, [bytesOf("he")], [bytesOf("l"), bytesOf("lo")]);
    const into = new Uint8Array(10);
    expect(text(into.subarray(0, end?.read(into)))).toBe("hello");
    expect(g.queues[1]?.used().map(({ length }) => length)).toEqual([0, 0]);
    end?.write(bytesOf("guest, hi"));
    await g.offer(0, [3], [2, 2], [64]);
    expect(g.taken(0).map(text)).toEqual(["gue", "st, ", "hi"]);
    expect(end?.pending).toBe(0);
  });

  it("says nothing before DEVICE_READY, then which ports there are, and more of each that the driver took", async () => {
    const g = await guestOf({
      ports: [
        { console: true, size: { cols: 80, rows: 25 } },
        { id: 2, name: "näme" },
        { id: 3, open: false },
      ],
      maxPorts: 5,
    });
    expect(await g.hear()).toEqual([]);
    await g.say(0, ConsoleEvent.PORT_READY);
    expect(g.heard()).toEqual([]);
    await g.say(0xffff_ffff, ConsoleEvent.DEVICE_READY);
    expect(g.heard().map(({ id, event }) => [id, ConsoleEvent[event]])).toEqual([
      [0, "DEVICE_ADD"],
      [2, "DEVICE_ADD"],
      [3, "DEVICE_ADD"],
    ]);
    await g.say(0, ConsoleEvent.PORT_READY);
    const first = g.heard();
    expect(first.map(({ event }) => ConsoleEvent[event])).toEqual([
      "CONSOLE_PORT",
      "RESIZE",
      "PORT_OPEN",
    ]);
    expect([...(first[1]?.data ?? [])]).toEqual([80, 0, 25, 0]);
    await g.say(2, ConsoleEvent.PORT_READY);
    await g.hear();
    await g.say(3, ConsoleEvent.PORT_READY, 0);
    await g.settle();
    expect(g.host.ports.map(({ guestOpen }) => guestOpen)).toEqual([false, false, false]);
  });

  it("sends a name in UTF-8 without a NUL", async () => {
    const g = await guestOf({ ports: [{ name: "näme" }], features: { MULTIPORT: true } });
    await g.hear();
    await g.say(0, ConsoleEvent.DEVICE_READY);
    await g.say(0, ConsoleEvent.PORT_READY);
    const name = g.heard().find(({ event }) => event === ConsoleEvent.PORT_NAME);
    expect([...(name?.data ?? [])]).toEqual([0x6e, 0xc3, 0xa4, 0x6d, 0x65]);
  });

  it("adds no port of a number that is taken, or that there cannot be, and removes only what it added", async () => {
    const g = await guestOf({ maxPorts: 3 });
    expect(() => g.host.plug({ id: 0 })).toThrow("port 0 is there");
    expect(() => g.host.plug({ id: 3 })).toThrow("port 3 of 3");
    // One that came and went before the driver was told of anything.
    g.host.plug({ id: 1 });
    g.host.unplug(1);
    await ready(g);
    g.host.plug({ id: 2, name: "two" });
    await g.hear();
    g.host.unplug("two");
    g.host.plug({ id: 2 });
    await g.settle();
    expect(g.heard().map(({ id, event }) => [id, ConsoleEvent[event]])).toEqual([
      [2, "DEVICE_REMOVE"],
      [2, "DEVICE_ADD"],
    ]);
    expect(() => g.host.unplug(1)).toThrow("no port 1");
    // DEVICE_READY once more names nothing twice.
    await g.say(0, ConsoleEvent.DEVICE_READY);
    expect(g.heard()).toEqual([]);
  });

  it("gives a port that the guest has not opened nothing, and loses nothing of it", async () => {
    const g = await guestOf({ maxPorts: 2 });
    await ready(g);
    const [end] = g.host.ports;
    end?.write(bytesOf("wait"));
    await g.offer(0, [64]);
    expect(g.taken(0)).toEqual([]);
    await g.say(0, ConsoleEvent.PORT_OPEN);
    expect(g.taken(0).map(text)).toEqual(["wait"]);
    expect(end?.guestOpen).toBe(true);
    await g.say(0, ConsoleEvent.PORT_OPEN, 0);
    expect(end?.guestOpen).toBe(false);
  });

  it("keeps the guest's buffers while the host's end is full, and drops what nobody has open", async () => {
    const g = await guestOf();
    const [end] = g.host.ports;
    if (end === undefined) throw new Error("no port");
    await g.offer(1, ...Array.from({ length: 8 }, () => [new Uint8Array(10_000)]));
    expect(g.queues[1]?.used()).toHaveLength(6);
    expect(end.readableLength).toBe(65_536);
    end.read(new Uint8Array(5000));
    await g.settle();
    expect([end.readableLength, g.queues[1]?.used().length]).toEqual([65_536, 1]);
    end.close();
    end.read(new Uint8Array(5000));
    await g.settle();
    expect([g.queues[1]?.used().length, end.discarded]).toEqual([1, 80_000 - 5000 - 65_536]);
  });

  it("loses what was written to a port that goes, and gives none of it to the next of its number", async () => {
    const g = await guestOf({ maxPorts: 2 });
    await ready(g);
    const buffers = Array.from({ length: 15 }, () => [new Uint8Array(6000).fill(1)]);
    await g.offer(1, ...buffers);
    expect(g.queues[1]?.used()).toHaveLength(10);
    g.host.unplug(0);
    const end = g.host.plug({ id: 0 });
    await g.settle();
    expect([g.queues[1]?.used().length, end.readableLength]).toEqual([5, 0]);
    await g.offer(1, [bytesOf("new")]);
    expect(end.readableLength).toBe(3);
  });

  it("gives back what it gets with backend=loop", async () => {
    const machine = await embedded({ devices: ["console,ports=2"] });
    await machine.close();
    const g = await guestOf({ ports: [{ loop: true }] });
    await g.offer(0, [64]);
    await g.offer(1, [bytesOf("echo")]);
    expect(g.taken(0).map(text)).toEqual(["echo"]);
  });

  it("forgets what the driver said at a reset, and keeps the host's ends", async () => {
    const g = await guestOf({ maxPorts: 2 });
    await ready(g);
    await g.say(0, ConsoleEvent.PORT_OPEN);
    await g.reset();
    const [end] = g.host.ports;
    expect(end?.guestOpen).toBe(false);
    end?.write(bytesOf("later"));
    await g.run();
    expect(await g.hear()).toEqual([]);
    await g.say(0, ConsoleEvent.DEVICE_READY);
    expect(g.heard().map(({ event }) => ConsoleEvent[event])).toEqual(["DEVICE_ADD"]);
    await g.offer(0, [64]);
    await g.say(0, ConsoleEvent.PORT_OPEN);
    expect(g.taken(0).map(text)).toEqual(["later"]);
  });

  it("shows the size of port 0 in its configuration, and tells the driver when it changes", async () => {
    const g = await guestOf({
      ports: [{ size: { cols: 80, rows: 24 } }],
      accept: [ConsoleFeature.SIZE],
    });
    expect([await g.readConfig(0, 2), await g.readConfig(2, 2)]).toEqual([80, 24]);
    g.host.port(0).resize({ cols: 100, rows: 50 });
    await g.settle();
    expect([await g.readConfig(0, 2), await g.readConfig(2, 2)]).toEqual([100, 50]);
  });

  it("refuses what it cannot be", async () => {
    const refused = (what: Parameters<typeof embedded>[0]): Promise<unknown> =>
      embedded(what).then(
        (machine) => machine.close(),
        (error: Error) => error.message,
      );
    const host = new ConsoleHost();
    expect(await refused({ devices: [consoleDevice({ host, ports: 2 })] })).toContain(
      "takes the ports from the host that is given",
    );
    expect(await refused({ devices: ["console,backend=host"] })).toContain(
      "consoleDevice({ host })",
    );
    expect(
      await refused({ devices: [consoleDevice({ ports: 2, features: { MULTIPORT: false } })] }),
    ).toContain("2 ports without MULTIPORT");
    expect(await refused({ devices: [consoleDevice({ ports: 2, maxPorts: 1 })] })).toContain(
      "port 1 of 1",
    );
    expect(await refused({ devices: [consoleDevice({ maxPorts: 65 })] })).toContain("not 1 to 64");
    const machine = await embedded({ devices: [consoleDevice({ host })] });
    expect(await refused({ devices: [consoleDevice({ host })] })).toContain(
      "the host has a device",
    );
    await machine.close();
  });
});

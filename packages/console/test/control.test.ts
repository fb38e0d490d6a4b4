// The control protocol (virtio 1.4 §5.3.6.2): ports that come and go, names, consoles, sizes, openings; and what FreeBSD says of nonsense.
import { ConsoleEvent } from "@virtio/core/console";
import { describe, expect, it } from "vitest";
import { bench, bytesOf, read, text, turns, until, write } from "./attached.js";
import { message } from "./control-messages.js";

const two = { ports: [{ console: true }, { name: "org.test.1" }], maxPorts: 4 } as const;

describe("vtcon's control queues", () => {
  it("take ports that are there before attach is over, and tell who listens of those that come and go", async () => {
    const { device, host, published, lines, rules } = await bench(two);
    expect(published.map(({ name }) => name)).toEqual(["ttyV0.0", "ttyV0.1"]);
    expect([device.maxPorts, device.port(1)?.name, device.port("ttyV0.1")?.id]).toEqual([
      4,
      "ttyV0.1",
      1,
    ]);
    expect(device.port("org.test.1")).toBe(device.port(1));
    expect([device.port(2), device.port("")]).toEqual([undefined, undefined]);
    const changes: string[] = [];
    const stop = device.onPortChange((port, what) => changes.push(`${port.name} ${what}`));
    host.plug({ id: 3, name: "late" });
    await until(() => device.port("late") !== undefined);
    expect(published.map(({ name }) => name)).toEqual(["ttyV0.0", "ttyV0.1", "ttyV0.3"]);
    host.unplug("org.test.1");
    await until(() => device.port(1) === undefined);
    await until(() => changes.length === 2);
    expect(changes).toEqual(["ttyV0.3 added", "ttyV0.1 removed"]);
    expect(published.map(({ name }) => name)).toEqual(["ttyV0.0", "ttyV0.3"]);
    stop();
    host.unplug(3);
    await until(() => device.port(3) === undefined);
    await turns();
    expect([changes.length, lines, rules.violations]).toEqual([2, [], []]);
  });

  it("end the streams of a port that is taken away with ENXIO, after what came before", async () => {
    const { device, host } = await bench(two);
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    const end = host.port(1);
    await port.open();
    await until(() => end.guestOpen);
    end.write(bytesOf("last words"));
    await until(() => end.pending === 0);
    host.unplug(1);
    await until(() => device.port(1) === undefined);
    expect(text(await read(port.readable, 10))).toBe("last words");
    const gone = { code: "CLOSED", errno: "ENXIO", device: "vtcon0" };
    await expect(read(port.readable, 1)).rejects.toMatchObject(gone);
    await expect(write(port.writable, bytesOf("x"))).rejects.toMatchObject(gone);
    await expect(port.open()).rejects.toMatchObject(gone);
    await expect(port.drain()).rejects.toMatchObject(gone);
    await port.close();
    expect([port.receive(new Uint8Array(1)), port.transmit(bytesOf("x"))]).toEqual([-6, -6]);
    expect([port.opened, port.connected, port.pending]).toEqual([false, false, 0]);
  });

  it("take a port again that was there before: another port, without what was of the first", async () => {
    const { device, host, rules } = await bench(two);
    const first = device.port(1);
    await first?.open();
    await until(() => host.port(1).guestOpen);
    host.port(1).write(bytesOf("of the first"));
    await until(() => host.port(1).pending === 0);
    host.unplug(1);
    const end = host.plug({ id: 1, name: "again" });
    await until(() => device.port("again") !== undefined);
    const again = device.port("again");
    if (again === undefined || first === undefined) throw new Error("no port");
    expect([again === first, again.opened, again.name]).toEqual([false, false, first.name]);
    await write(again.writable, bytesOf("out"));
    await until(() => end.readableLength === 3);
    end.write(bytesOf("in"));
    expect(text(await read(again.readable, 2))).toBe("in");
    expect(text(await read(first.readable, 12))).toBe("of the first");
    expect(rules.violations).toEqual([]);
  });

  it("say that a port is open with its first use, and closed with close(); no more than once", async () => {
    const { device, host } = await bench(two);
    const port = device.port(1);
    const end = host.port(1);
    const seen: boolean[] = [];
    end.onGuestOpen = (open) => seen.push(open);
    if (port === undefined) throw new Error("no port");
    await turns();
    expect(end.guestOpen).toBe(false);
    await Promise.all([port.open(), port.open(), write(port.writable, bytesOf("x"))]);
    expect([seen, port.opened]).toEqual([[true], true]);
    await Promise.all([port.close(), port.close()]);
    expect([seen, port.opened]).toEqual([[true, false], false]);
    const reading = read(port.readable, 3);
    await until(() => end.guestOpen);
    end.write(bytesOf("abc"));
    expect(text(await reading)).toBe("abc");
    expect(seen).toEqual([true, false, true]);
  });

  it("know who has the other end open", async () => {
    const { device, host } = await bench({ ...two, ports: [{}, { open: false }] });
    const port = device.port(1);
    expect([device.port(0)?.connected, port?.connected]).toEqual([true, false]);
    host.port(1).open();
    await until(() => port?.connected === true);
    host.port(1).close();
    await until(() => port?.connected === false);
  });

  it("take sizes from RESIZE, each port its own", async () => {
    const { device, host } = await bench({
      ports: [{ console: true, size: { cols: 80, rows: 25 } }, { console: true }],
    });
    expect([device.size, device.port(0)?.size, device.port(1)?.size]).toEqual([
      { cols: 80, rows: 25 },
      { cols: 80, rows: 25 },
      null,
    ]);
    const sizes: unknown[] = [];
    const stop = device.onResize((size, port) => sizes.push([port, size.cols, size.rows]));
    host.port(1).resize({ cols: 132, rows: 43 });
    await until(() => sizes.length === 1);
    expect(device.port(1)?.size).toEqual({ cols: 132, rows: 43 });
    host.port(0).resize({ cols: 100, rows: 30 });
    await until(() => sizes.length === 2);
    // By the configuration and by RESIZE: told once.
    await turns();
    expect(sizes).toEqual([
      [1, 132, 43],
      [0, 100, 30],
    ]);
    stop();
    host.port(1).resize({ cols: 1, rows: 1 });
    await until(() => device.port(1)?.size?.cols === 1);
    await turns();
    expect(sizes).toHaveLength(2);
  });

  it("take a name with the NUL that QEMU ends it with, and without; one name a port, of ASCII, and no other port's", async () => {
    const { device, host, lines } = await bench({ ports: [{}, {}, {}, {}, {}, {}] });
    const name = (id: number, data: Uint8Array): void =>
      host.inject(message(id, ConsoleEvent.PORT_NAME, 1, data));
    name(1, bytesOf("plain"));
    name(2, bytesOf("ended\0"));
    name(3, new Uint8Array([0x66, 0xc3, 0xbc, 0x72]));
    name(4, bytesOf("plain"));
    name(5, bytesOf("a/../b"));
    name(1, bytesOf("second"));
    name(0, new Uint8Array());
    name(0, bytesOf("\0"));
    name(0, bytesOf("x".repeat(300)));
    await until(() => device.port(0)?.alias !== "");
    expect(device.ports.map(({ alias }) => alias)).toEqual([
      "x".repeat(120),
      "plain",
      "ended",
      "",
      "",
      "",
    ]);
    expect(lines).toEqual([
      "cannot make dev alias (vtcon/plain) error 17",
      "cannot make dev alias (vtcon/a/../b) error 22",
    ]);
    for (const bad of ["a b", 'a"b', "/a", "a//b", ".", "tab\t"]) name(3, bytesOf(bad));
    name(3, bytesOf("well/formed-1.2"));
    await until(() => device.port(3)?.alias === "well/formed-1.2");
    expect(lines).toHaveLength(8);
  });

  it("say FreeBSD's lines of what is not there, or there already, and go on", async () => {
    const { device, host, lines, rules } = await bench(two);
    for (const bytes of [
      message(1, ConsoleEvent.DEVICE_ADD, 1),
      message(2, ConsoleEvent.DEVICE_REMOVE),
      message(2, ConsoleEvent.CONSOLE_PORT),
      message(2, ConsoleEvent.PORT_OPEN, 1),
      message(2, ConsoleEvent.PORT_NAME, 0, bytesOf("name")),
      message(2, ConsoleEvent.RESIZE, 0, new Uint8Array(4)),
      message(4, ConsoleEvent.DEVICE_ADD, 1),
      message(0xffff_ffff, ConsoleEvent.PORT_OPEN, 1),
      message(77, 99),
      // Unknown events, and those that are the driver's, say nothing.
      message(1, 8),
      message(1, 0xffff),
      message(1, ConsoleEvent.DEVICE_READY, 1),
      message(1, ConsoleEvent.PORT_READY, 1),
      new Uint8Array([1, 0, 0]),
      new Uint8Array([1, 0, 0, 0, 6, 0, 1]),
    ])
      host.inject(bytes);
    await until(() => lines.length === 10);
    await turns();
    expect(lines).toEqual([
      "vtcon_ctrl_port_add_event: adding port 1, but already exists",
      "vtcon_ctrl_port_remove_event: remove port 2, but does not exist",
      "vtcon_ctrl_port_console_event: console port 2, but does not exist",
      "vtcon_ctrl_port_open_event: open port 2, but does not exist",
      "vtcon_ctrl_port_name_event: name port 2, but does not exist",
      "vtcon_ctrl_process_event: event 1 invalid port ID 4",
      "vtcon_ctrl_process_event: event 6 invalid port ID 4294967295",
      "vtcon_ctrl_process_event: event 99 invalid port ID 77",
      "a control message of 3 bytes is no message",
      "a control message of 7 bytes is no message",
    ]);
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    await write(port.writable, bytesOf("on"));
    await until(() => host.port(1).readableLength === 2);
    expect(rules.violations).toEqual([]);
  });

  it("answer 0 for a port that there is no memory for, and say so", async () => {
    const { device, host, machine, lines } = await bench(two);
    const hog = machine.memory.allocate(machine.memory.available - (1 << 16));
    host.plug({ id: 2 });
    await until(() => lines.length > 0);
    expect(lines).toEqual(["vtcon_ctrl_port_add_event: cannot create port 2: 12"]);
    expect(device.port(2)).toBeUndefined();
    hog.free();
    host.unplug(2);
    host.plug({ id: 2 });
    await until(() => device.port(2) !== undefined);
  });

  it("drive at most 32 ports, whatever the device says", async () => {
    const { device, host, lines } = await bench({
      ports: [{ console: true }, { id: 31 }],
      maxPorts: 40,
    });
    expect([device.maxPorts, device.ports.map(({ name }) => name)]).toEqual([
      32,
      ["ttyV0.0", "ttyV0.v"],
    ]);
    host.plug({ id: 32 });
    await until(() => lines.length > 0);
    expect(lines).toEqual(["vtcon_ctrl_process_event: event 1 invalid port ID 32"]);
  });

  it("do not stand still when the device talks while it is talked to, on rings of two descriptors", async () => {
    const { device, host, rules } = await bench({
      queueSize: 2,
      ports: Array.from({ length: 12 }, (_, id) => ({ id, name: `port${id}`, console: true })),
    });
    expect(device.ports.map(({ alias, connected }) => [alias, connected])).toEqual(
      Array.from({ length: 12 }, (_, id) => [`port${id}`, true]),
    );
    await Promise.all(
      device.ports.map(async (port) => {
        await port.close();
        await port.open();
      }),
    );
    expect(host.ports.every(({ guestOpen }) => guestOpen)).toBe(true);
    expect(rules.violations).toEqual([]);
  });
});

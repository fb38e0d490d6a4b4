// A console that lies, talks nonsense, or says nothing: every wait ends, each with one clear error, and what can go on goes on.
import { VirtioFault } from "@virtio/core";
import { ConsoleEvent } from "@virtio/core/console";
import { attach } from "@virtio/pci-transport";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { vtcon } from "../src/index.js";
import {
  bench,
  bytesOf,
  machineOf,
  outcome,
  pattern,
  read,
  text,
  turns,
  until,
  write,
} from "./attached.js";
import { message } from "./control-messages.js";

const two = { ports: [{ console: true }, { name: "serial" }] };

describe("vtcon on a device", () => {
  it("whose buffers come back shorter than they were filled takes what the device says it wrote", async () => {
    let lying = false;
    const { device, host } = await bench({
      ...two,
      lies: {
        usedLength: (queue, honest) => (lying && queue === 4 ? Math.min(honest, 10) : honest),
      },
    });
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    await port.open();
    lying = true;
    const bytes = pattern(2500);
    host.port(1).write(bytes);
    const into = new Uint8Array(100);
    await until(() => host.port(1).pending === 0);
    expect(port.receive(into)).toBe(30);
    expect(Buffer.compare(into.subarray(0, 10), bytes.subarray(0, 10))).toBe(0);
    lying = false;
    host.port(1).write(bytes);
    expect(Buffer.compare(await read(port.readable, 2500), bytes)).toBe(0);
  });

  it("whose buffers come back empty wakes nobody for nothing, and gets them again", async () => {
    let empty = true;
    const { device, host } = await bench({
      ...two,
      lies: { usedLength: (queue, honest) => (empty && queue === 4 ? 0 : honest) },
    });
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    const reading = read(port.readable, 5);
    await turns();
    for (let n = 0; n < 200; n++) {
      host.port(1).write(bytesOf("x"));
      await turns(2);
    }
    empty = false;
    host.port(1).write(bytesOf("there"));
    expect(text(await reading)).toBe("there");
  });

  it("that never takes what is transmitted fails nothing and holds up nobody who asks to wait no longer", async () => {
    const passing = virtualTime();
    const { device } = await bench({ ...two, lies: { looks: (queue) => queue !== 5 } });
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    const writer = port.writable.getWriter();
    const writing = outcome(writer.write(pattern(200_000)));
    await turns();
    expect(port.pending).toBe(65_536);
    const late = new AbortController();
    const draining = outcome(port.drain({ signal: late.signal }));
    late.abort(new VirtioFault("TIMED_OUT", "too late"));
    expect(await draining).toBe("TIMED_OUT ETIMEDOUT");
    expect(await outcome(passing(port.close()))).toBe("TIMED_OUT ETIMEDOUT");
    await device.detach();
    expect(await writing).toBe("CLOSED ENXIO");
    expect(await device.closed).toBe(null);
  });

  it("that takes no control message does not attach, in bounded time, and gives all memory back", async () => {
    const passing = virtualTime();
    const { machine, node } = await machineOf({ ...two, lies: { looks: (queue) => queue !== 3 } });
    const before = machine.memory.available;
    await expect(passing(attach(node, vtcon()))).rejects.toMatchObject({
      code: "TIMED_OUT",
      message: expect.stringContaining("control message 0 for port 4294967295 is not taken"),
    });
    expect(machine.memory.available).toBe(before);
  });

  it("that takes control messages only at first says TIMED_OUT to who opens a port", async () => {
    const passing = virtualTime();
    let deaf = false;
    const { device } = await bench({ ...two, lies: { looks: (queue) => !deaf || queue !== 3 } });
    deaf = true;
    const port = device.port(1);
    expect(await outcome(passing(port?.open() ?? Promise.resolve()))).toBe("TIMED_OUT ETIMEDOUT");
    await device.detach();
  });

  it("that names no port attaches, and takes one that comes later", async () => {
    const { device, host } = await bench({ ports: [], maxPorts: 2 });
    expect(device.ports).toEqual([]);
    host.plug({ id: 1, name: "late" });
    await until(() => device.port("late") !== undefined);
  });

  it("that loses messages for which there is no buffer loses none", async () => {
    const { device } = await bench({
      queueSize: 32,
      ports: Array.from({ length: 31 }, (_, id) => ({ id, name: `port${id}`, console: true })),
      lies: { forgetful: true },
    });
    expect(device.ports.map(({ alias, connected }) => [alias, connected])).toEqual(
      Array.from({ length: 31 }, (_, id) => [`port${id}`, true]),
    );
  });

  it("that sends one message after the other for ever lets others have their turn, and attaches", async () => {
    const { host, node } = await machineOf(two);
    let talking = true;
    const talk = (): void => {
      for (let n = 0; n < 64; n++) host.inject(message(2, ConsoleEvent.RESIZE));
      if (talking) setImmediate(talk);
    };
    talk();
    const device = await attach(node, vtcon());
    expect(device.ports).toHaveLength(2);
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    await write(port.writable, bytesOf("heard"));
    expect(text(await read(host.port(1).readable, 5))).toBe("heard");
    talking = false;
    await device.detach();
  });

  it("that adds and removes ports and calls them consoles without end grows nothing here", async () => {
    const { device, host, machine } = await bench({ queueSize: 4, ports: [{}, {}] });
    await turns();
    const before = machine.memory.available;
    const added = before;
    for (let n = 0; n < 500; n++) {
      host.inject(message(1, ConsoleEvent.DEVICE_REMOVE));
      host.inject(message(1, ConsoleEvent.DEVICE_ADD, 1));
      host.inject(message(1, ConsoleEvent.CONSOLE_PORT, 1));
      host.inject(message(0, ConsoleEvent.CONSOLE_PORT, 1));
    }
    host.inject(message(1, ConsoleEvent.PORT_NAME, 1, bytesOf("end")));
    await until(() => device.port("end") !== undefined);
    expect(machine.memory.available).toBe(added);
    await until(() => host.port(1).guestOpen);
  });

  it("whose messages are drawn at random does no harm: bytes go on, and it detaches", async () => {
    const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
    let state = seed | 1;
    const random = (n: number): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    for (let round = 0; round < 8; round++) {
      const { device, host, machine } = await bench({
        ports: [{ console: true }, {}, {}],
        maxPorts: 4,
        packed: random(2) === 0,
        queueSize: [4, 16, 256][random(3)] as number,
        eventIdx: random(2) === 0,
      });
      for (let n = 0; n < 60; n++) {
        const data = Uint8Array.from({ length: random(30) }, () => random(256));
        const whole = message(random(6), random(10), random(3), data);
        host.inject(random(5) === 0 ? whole.subarray(0, random(9)) : whole);
        if (random(3) === 0) await turns(1);
        const port = device.ports[random(4)];
        if (port !== undefined && random(4) === 0) void outcome(port.open());
        if (port !== undefined && random(4) === 0) void outcome(write(port.writable, data));
        if (port !== undefined && random(6) === 0) void outcome(port.close());
      }
      await turns();
      // Whatever it said of port 0: taken away and added again, it works.
      host.inject(message(0, ConsoleEvent.DEVICE_REMOVE));
      host.inject(message(0, ConsoleEvent.DEVICE_ADD, 1));
      await turns();
      host.inject(message(0, ConsoleEvent.CONSOLE_PORT, 1));
      await until(() => device.port(0)?.console === true);
      const end = host.port(0);
      const port = device.port(0);
      if (port === undefined) throw new Error("no port");
      await turns();
      end.read(new Uint8Array(70_000));
      await write(port.writable, bytesOf("still here"));
      const seen = new Uint8Array(10);
      await until(() => end.readableLength >= 10);
      end.read(seen);
      expect([`seed ${seed}`, text(seen)]).toEqual([`seed ${seed}`, "still here"]);
      await device.detach();
      await machine.close();
    }
  });

  it("with garbage for configuration attaches or says why, whatever the garbage", async () => {
    const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
    let state = seed | 1;
    const random = (): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state;
    };
    const outcomes = new Set<string>();
    for (let n = 0; n < 12; n++) {
      const garbage = [0, 1, 3, 31, 0xffff_ffff, random()][n % 6] as number;
      const { machine, node, host } = await machineOf({
        ...two,
        maxPorts: n % 2 === 0 ? 33 : 2,
        lies: { config: (_, width) => (width === 4 ? garbage : garbage % 2 ** (8 * width)) },
      });
      try {
        const device = await attach(node, vtcon());
        expect(device.maxPorts).toBeGreaterThan(0);
        expect(device.maxPorts).toBeLessThanOrEqual(32);
        for (const port of device.ports) {
          await write(port.writable, bytesOf("x"));
          expect(text(await read(host.port(port.id).readable, 1))).toBe("x");
        }
        outcomes.add("attached");
      } catch (error) {
        outcomes.add((error as { code?: string }).code ?? String(error));
      }
      await machine.close();
    }
    expect([`seed ${seed}`, [...outcomes].sort()]).toEqual([
      `seed ${seed}`,
      ["NOT_FOUND", "attached"],
    ]);
  });

  it("whose configuration never agrees with itself does not attach", async () => {
    let n = 0;
    const { node } = await machineOf({
      ...two,
      legacy: "on",
      lies: { config: () => (n = (n + 1) & 0xff) },
    });
    await expect(attach(node, vtcon())).rejects.toMatchObject({ code: "TIMED_OUT" });
  });

  it("that is taken out of its slot ends every port once, and what waits", async () => {
    const { device, machine, host, published } = await bench(two);
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    const reading = outcome(read(port.readable, 1));
    const writing = outcome(write(port.writable, pattern(200_000)));
    await turns();
    const [fn] = await machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no function");
    await machine.unplug(fn.address);
    expect(await Promise.all([reading, writing])).toEqual(["CLOSED ENXIO", "CLOSED ENXIO"]);
    expect((await device.closed)?.code).toBe("CLOSED");
    expect([device.ports, published]).toEqual([[], []]);
    expect(await outcome(port.open())).toBe("CLOSED ENXIO");
    expect(host.ports.every(({ gone }) => gone)).toBe(true);
    await device.detach();
  });
});

// Attach to detach: a size that changes, emergency writes, suspend and resume, a device that asks for a reset, memory.
import { SysctlTree } from "@virtio/core";
import { ConsoleFeature } from "@virtio/core/console";
import { attach } from "@virtio/pci-transport";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { kernelModule, vtcon } from "../src/index.js";
import {
  type BenchOptions,
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

const two: BenchOptions = { ports: [{ console: true, name: "first" }, { name: "second" }] };

describe("vtcon", () => {
  it("is FreeBSD's virtio_console", () => {
    const { file, name, version, depends, drivers } = kernelModule;
    expect([file, name, version, depends]).toEqual([
      "virtio_console",
      "virtio_console",
      1,
      ["virtio"],
    ]);
    const [driver] = drivers;
    expect([driver?.name, driver?.description, driver?.types, driver?.tunables]).toEqual([
      "vtcon",
      "VirtIO Console Adapter",
      [3],
      [],
    ]);
    expect(driver?.features.map(({ bit, name }) => [ConsoleFeature[bit], name])).toEqual([
      ["SIZE", "ConsoleSize"],
      ["MULTIPORT", "MultiplePorts"],
      ["EMERG_WRITE", "EmergencyWrite"],
    ]);
  });

  it("names ports by unit and number in FreeBSD's digits", async () => {
    const { node } = await machineOf({ ports: [{ console: true }, { id: 17 }] });
    const device = await attach(node, vtcon(), { unit: 33 });
    expect(device.ports.map(({ name }) => name)).toEqual(["ttyV11.0", "ttyV11.h"]);
  });

  it("has its queues in the order of the specification, with FreeBSD's names", async () => {
    const { node } = await machineOf({ ports: [{ console: true }, {}, {}] });
    const sysctl = new SysctlTree();
    await attach(node, vtcon(), { sysctl: sysctl.node("vtcon", "") });
    const names = Array.from({ length: 8 }, (_, i) => sysctl.description(`vtcon.vq${i}`));
    expect(names).toEqual([
      ...["vtcon0-port0 in", "vtcon0-port0 out", "vtcon0-control rx", "vtcon0-control tx"],
      ...["vtcon0-port2 in", "vtcon0-port2 out", "vtcon0-port3 in", "vtcon0-port3 out"],
    ]);
  });

  it("takes the window's size from the configuration, and its changes", async () => {
    const { device, host } = await bench({ ports: [{ size: { cols: 80, rows: 24 } }] });
    expect([device.size, device.port(0)?.size]).toEqual([
      { cols: 80, rows: 24 },
      { cols: 80, rows: 24 },
    ]);
    const seen: unknown[] = [];
    device.onResize((size, port) => seen.push([size, port]));
    host.port(0).resize({ cols: 120, rows: 40 });
    host.port(0).resize({ cols: 132, rows: 43 });
    await until(() => device.size?.cols === 132);
    await until(() => seen.length > 0);
    expect(seen.at(-1)).toEqual([{ cols: 132, rows: 43 }, 0]);
    expect(device.port(0)?.size).toEqual({ cols: 132, rows: 43 });
  });

  it("has no size where the device does not say", async () => {
    const { device } = await bench({ features: { SIZE: false } });
    expect([device.size, device.port(0)?.size]).toEqual([null, null]);
  });

  it("writes emergency bytes, also while the device is attached, before it is live", async () => {
    const { node, host } = await machineOf();
    const device = await attach(
      node,
      vtcon({
        early: async (write) => {
          for (const byte of bytesOf("early")) await write(byte);
        },
      }),
    );
    expect(String.fromCharCode(...host.emergency)).toBe("early");
    for (const byte of bytesOf(" late")) await device.emergencyWrite(byte);
    expect(String.fromCharCode(...host.emergency)).toBe("early late");
    expect(host.port(0).readableLength).toBe(0);
  });

  it("refuses emergency writes where there are none, and what is no byte", async () => {
    const { device } = await bench({ features: { EMERG_WRITE: false } });
    expect(device.canWriteEmergency).toBe(false);
    expect(await outcome(device.emergencyWrite(1))).toBe("UNSUPPORTED ENOTSUP");
    const other = await bench();
    for (const byte of [-1, 256, 1.5, Number.NaN])
      expect(await outcome(other.device.emergencyWrite(byte))).toBe("INVALID EINVAL");
    expect(other.host.emergency).toEqual([]);
  });

  for (const legacy of ["off", "on"] as const)
    it(`gives all memory back when it is detached, and attaches again; legacy=${legacy}`, async () => {
      const { machine, node, host } = await machineOf({ ...two, legacy });
      const before = machine.memory.available;
      for (let round = 0; round < 2; round++) {
        const device = await attach(node, vtcon());
        const port = device.port("second");
        if (port === undefined) throw new Error("no port");
        const reading = outcome(read(port.readable, 1));
        await write(port.writable, bytesOf(`round ${round}`));
        expect(text(await read(host.port(1).readable, 7))).toBe(`round ${round}`);
        await Promise.all([device.detach(), device.detach()]);
        expect([await reading, await device.closed]).toEqual(["CLOSED ENXIO", null]);
        expect(device.ports).toEqual([]);
        expect(machine.memory.available).toBe(before);
      }
    });

  for (const [name, options] of [
    ["with SUSPEND", { ...two }],
    ["without SUSPEND", { ...two, features: { SUSPEND: false } }],
    ["without SUSPEND, packed", { ...two, packed: true, features: { SUSPEND: false } }],
    ["on a legacy device", { ...two, legacy: "on" }],
    ["on a single port", { ports: [{}], features: { SUSPEND: false } }],
  ] as const satisfies readonly (readonly [string, BenchOptions])[])
    it(`is suspended and goes on with the same ports and every byte, ${name}`, async () => {
      const { device, host, rules, lines } = await bench(options);
      const port = device.ports.at(-1);
      const end = host.ports.at(-1);
      if (port === undefined || end === undefined) throw new Error("no port");
      await port.open();
      await until(() => end.guestOpen);
      for (let round = 0; round < 2; round++) {
        end.write(bytesOf("before"));
        await until(() => end.pending === 0);
        await device.suspend();
        const writing = write(port.writable, pattern(100_000, round + 1));
        const reading = read(port.readable, 11);
        end.write(bytesOf("after"));
        await turns();
        await device.resume();
        expect(text(await reading)).toBe("beforeafter");
        expect(Buffer.compare(await read(end.readable, 100_000), pattern(100_000, round + 1))).toBe(
          0,
        );
        await writing;
        expect(device.ports.at(-1)).toBe(port);
      }
      await device.detach();
      expect([lines, rules.violations]).toEqual([[], []]);
    });

  it("is not suspended while the device does not take what was transmitted, and goes on then", async () => {
    const passing = virtualTime();
    const { device, host } = await bench({ ...two, features: { SUSPEND: false } });
    const port = device.port(1);
    if (port === undefined) throw new Error("no port");
    const writing = write(port.writable, pattern(200_000));
    await turns();
    expect(await outcome(passing(device.suspend()))).toBe("BUSY EBUSY");
    expect(Buffer.compare(await read(host.port(1).readable, 200_000), pattern(200_000))).toBe(0);
    await writing;
  });

  for (const SUSPEND of [true, false])
    it(`opens and closes after the resume what was opened and closed before it, SUSPEND ${SUSPEND}`, async () => {
      const { device, host } = await bench({ ports: [{}, {}], features: { SUSPEND } });
      const [first, second] = device.ports;
      if (first === undefined || second === undefined) throw new Error("no port");
      await first.open();
      await device.suspend();
      const changes = Promise.all([second.open(), first.close()]);
      await turns();
      expect(host.port(1).guestOpen).toBe(false);
      await device.resume();
      await changes;
      await until(() => host.port(1).guestOpen && !host.port(0).guestOpen);
      expect([first.opened, second.opened]).toEqual([false, true]);
    });

  it("sees after a suspend which ports are gone, and which came", async () => {
    const { device, host, lines } = await bench({
      ...two,
      maxPorts: 4,
      features: { SUSPEND: false },
    });
    const [first, second] = device.ports;
    await device.suspend();
    host.unplug(1);
    host.plug({ id: 2, name: "third" });
    await device.resume();
    await until(() => device.port("third") !== undefined);
    expect(device.ports.map(({ name }) => name)).toEqual(["ttyV0.0", "ttyV0.2"]);
    expect(device.port(0)).toBe(first);
    expect(await outcome(second?.open() ?? Promise.resolve())).toBe("CLOSED ENXIO");
    expect(lines).toEqual([]);
  });
});

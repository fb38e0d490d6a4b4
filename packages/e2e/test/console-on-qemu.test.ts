// vtcon on QEMU's own virtio-serial: bytes checked both ways, slow readers, and the control protocol as QEMU speaks it: who is
// connected, names, ports that come and go. QEMU says what was negotiated and where its queues are.
import { once } from "node:events";
import { connect } from "node:net";
import type { Duplex } from "node:stream";
import { type ConsoleDevice, vtcon } from "@virtio/console";
import { type CommonSpec, SysctlTree } from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { consoleDevice, type QemuMachine, qemu } from "@virtio/qemu";
import { describe, expect, it, onTestFinished } from "vitest";
import { folder, hasQemu, pattern } from "./machines.js";

const file = folder();
/** Less than a socket takes. */
const PIECE = 50_000;
const PATH = "/machine/peripheral/console0/virtio-backend";

interface Bench {
  readonly machine: QemuMachine;
  readonly device: ConsoleDevice;
  readonly sysctl: SysctlTree;
  readonly lines: string[];
}

/** vtcon on the console of a QEMU that ends with the test; the other ends are the test's. */
async function bench(ports: number, options: CommonSpec = {}): Promise<Bench> {
  const machine = await qemu({ devices: [consoleDevice({ ports, backend: "host", ...options })] });
  onTestFinished(() => machine.close());
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  const sysctl = new SysctlTree();
  const lines: string[] = [];
  const device = await attach(node, vtcon(), {
    sysctl: sysctl.node("vtcon", ""),
    log: (line) => lines.push(line),
  });
  return { machine, device, sysctl, lines };
}

/** Exactly so many bytes of what a host's end gets, with a pause after each piece where it is slow. */
async function fromGuest(end: Duplex, length: number, slow = false): Promise<Uint8Array> {
  const bytes = Buffer.alloc(length);
  let at = 0;
  while (at < length) {
    const piece = end.read() as Buffer | null;
    if (piece === null) {
      await once(end, "readable");
      continue;
    }
    piece.copy(bytes, at);
    at += piece.length;
    expect(at).toBeLessThanOrEqual(length);
    if (slow) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return bytes;
}

/** The same of the driver's end. */
async function fromHost(
  { readable }: { readonly readable: ReadableStream<Uint8Array> },
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  const reader = readable.getReader();
  for (let at = 0; at < length; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the end");
    bytes.set(value, at);
    at += value.length;
  }
  reader.releaseLock();
  return bytes;
}

async function write(writable: WritableStream<Uint8Array>, bytes: Uint8Array): Promise<void> {
  const writer = writable.getWriter();
  await writer.write(bytes);
  writer.releaseLock();
}

/** The same of a console, whose bytes QEMU drops when its socket is full: each piece is read before the next is written. */
async function writePaced(
  port: { readonly writable: WritableStream<Uint8Array> },
  end: Duplex,
  bytes: Uint8Array,
): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; at += PIECE) {
    const piece = bytes.subarray(at, at + PIECE);
    await write(port.writable, piece);
    pieces.push(await fromGuest(end, piece.length));
  }
  return Buffer.concat(pieces);
}

/** QEMU's list of what the driver accepted, without explanations. */
async function accepted(machine: QemuMachine): Promise<readonly string[]> {
  const status = (await machine.qmp.execute("x-query-virtio-status", { path: PATH })) as {
    readonly broken: boolean;
    readonly "guest-features": {
      readonly "dev-features"?: readonly string[];
      readonly transports: readonly string[];
    };
  };
  expect(status.broken).toBe(false);
  const { "dev-features": own = [], transports } = status["guest-features"];
  return [...own, ...transports].map((line) => line.replace(/:.*/, ""));
}

/** Chains that QEMU has taken of a queue and given back, as far as 16 bits say. */
async function usedIndex(machine: QemuMachine, queue: number): Promise<number> {
  const seen = (await machine.qmp.execute("x-query-virtio-queue-status", {
    path: PATH,
    queue,
  })) as { readonly "used-idx": number; readonly inuse: number };
  return seen["used-idx"];
}

const modes: readonly (readonly [name: string, options: CommonSpec])[] = [
  ["legacy, split", { legacy: "on" }],
  ["modern, split", {}],
  ["modern, packed", { packed: true }],
];

const SIZE = 300_000;

describe.skipIf(!hasQemu)("vtcon on QEMU (needs QEMU)", () => {
  for (const [name, options] of modes) {
    it(`carries ${SIZE} bytes each way on a single port: ${name}`, async () => {
      const { machine, device, sysctl } = await bench(1, options);
      const [port] = device.ports;
      if (port === undefined) throw new Error("no port");
      const end = machine.port("console0", 0);
      const out = pattern(SIZE, 1);
      const into = pattern(SIZE, 2);
      end.write(into);
      expect(Buffer.compare(await writePaced(port, end, out), out)).toBe(0);
      // Meanwhile nobody read: what the buffers do not hold waited at QEMU.
      expect(Buffer.compare(await fromHost(port, SIZE), into)).toBe(0);
      expect(port.opened).toBe(true);
      const features = await accepted(machine);
      expect(features).toContain("VIRTIO_CONSOLE_F_EMERG_WRITE");
      expect(features).not.toContain("VIRTIO_CONSOLE_F_MULTIPORT");
      expect(features.includes("VIRTIO_F_RING_PACKED")).toBe(options.packed === true);
      expect(features.includes("VIRTIO_F_VERSION_1")).toBe(options.legacy !== "on");
      // Each transmitted chain holds 1024 bytes or what is left of a piece, and was given back.
      const chains = (SIZE / PIECE) * Math.ceil(PIECE / 1024);
      expect(await usedIndex(machine, 1)).toBe(options.packed === true ? chains % 128 : chains);
      const counts = Object.fromEntries(
        sysctl.find("vtcon.port0").map((leaf) => [leaf.name, leaf.read()]),
      );
      expect([counts["vtcon.port0.obytes"], counts["vtcon.port0.ibytes"]]).toEqual([SIZE, SIZE]);
      await device.detach();
    });

    it(`carries bytes on three ports at once, also to slow readers, and tells their names: ${name}`, async () => {
      const { machine, device, lines } = await bench(3, options);
      expect(await accepted(machine)).toContain("VIRTIO_CONSOLE_F_MULTIPORT");
      expect(
        device.ports.map(({ name, alias, console, connected }) => [
          name,
          alias,
          console,
          connected,
        ]),
      ).toEqual([
        ["ttyV0.0", "", true, true],
        ["ttyV0.1", "port1", false, true],
        ["ttyV0.2", "port2", false, true],
      ]);
      await Promise.all(
        device.ports.map(async (port) => {
          const end = machine.port("console0", port.id);
          const out = pattern(SIZE, 3 + port.id);
          const into = pattern(SIZE, 13 + port.id);
          end.write(into);
          const [seen, got] = await Promise.all([
            port.console ? writePaced(port, end, out) : fromGuest(end, SIZE, port.id === 1),
            fromHost(port, SIZE),
            port.console ? null : write(port.writable, out),
          ]);
          expect([port.id, Buffer.compare(seen, out), Buffer.compare(got, into)]).toEqual([
            port.id,
            0,
            0,
          ]);
        }),
      );
      expect(lines).toEqual([]);
      await device.detach();
    });
  }

  it.each(modes)(
    "sees ports come and go while they are in use, and who is connected: %s",
    async (_, options) => {
      const { machine, device, lines } = await bench(3, options);
      const [, , port] = device.ports;
      if (port === undefined) throw new Error("no port");
      const changes: string[] = [];
      device.onPortChange(({ name }, what) => changes.push(`${name} ${what}`));
      const reading = fromHost(port, 1);
      const gone = expect(reading).rejects.toMatchObject({ code: "CLOSED", errno: "ENXIO" });
      await machine.qmp.execute("device_del", { id: "console0-port2" });
      await gone;
      await expect(write(port.writable, pattern(1, 1))).rejects.toMatchObject({ errno: "ENXIO" });
      expect(device.port(2)).toBeUndefined();

      // Another port of the same number, behind a socket at which nobody is yet.
      const path = file(`port-${options.legacy ?? "off"}-${options.packed ?? false}.sock`);
      const addr = { type: "unix", data: { path } };
      await machine.qmp.execute("chardev-add", {
        id: "later",
        backend: { type: "socket", data: { addr, server: true, wait: false } },
      });
      await machine.qmp.execute("device_add", {
        ...{ driver: "virtserialport", id: "again", bus: "console0.0", nr: 2 },
        ...{ chardev: "later", name: "org.test.again" },
      });
      await expect.poll(() => device.port("org.test.again")?.connected).toBe(false);
      const again = device.port("org.test.again");
      if (again === undefined) throw new Error("no port");
      expect([again.name, again === port]).toEqual(["ttyV0.2", false]);
      await expect.poll(() => changes).toEqual(["ttyV0.2 removed", "ttyV0.2 added"]);

      // What is written before anybody is there waits, and is not lost.
      const out = pattern(100_000, 5);
      const into = pattern(100_000, 6);
      const written = write(again.writable, out);
      for (let round = 0; round < 2; round++) {
        const end = connect(path);
        onTestFinished(() => void end.destroy());
        await expect.poll(() => again.connected).toBe(true);
        if (round === 0) {
          expect(Buffer.compare(await fromGuest(end, out.length, true), out)).toBe(0);
          await written;
        }
        end.write(into);
        expect(Buffer.compare(await fromHost(again, into.length), into)).toBe(0);
        end.destroy();
        await expect.poll(() => again.connected).toBe(false);
      }
      expect(lines).toEqual([]);
      await device.detach();
    },
  );

  it("tells QEMU that a port was opened and closed, and what stays unread is read by the next", async () => {
    const { machine, device } = await bench(2);
    const [, port] = device.ports;
    if (port === undefined) throw new Error("no port");
    const heard: unknown[] = [];
    machine.qmp.on("VSERPORT_CHANGE", ({ data }) => {
      if (data["id"] === "console0-port1") heard.push(data["open"]);
    });
    const end = machine.port("console0", 1);
    end.write("first");
    await port.open();
    await expect.poll(() => heard).toEqual([true]);
    const some = new Uint8Array(3);
    await expect.poll(() => port.receive(some)).toBe(3);
    await port.close();
    await expect.poll(() => heard).toEqual([true, false]);
    expect(Buffer.from(some).toString()).toBe("fir");
    expect(Buffer.from(await fromHost(port, 2)).toString()).toBe("st");
    await expect.poll(() => heard).toEqual([true, false, true]);
  });

  it("goes on after a suspend, with every port and what was not read", async () => {
    const { machine, device } = await bench(2);
    const [, port] = device.ports;
    if (port === undefined) throw new Error("no port");
    const end = machine.port("console0", 1);
    await port.open();
    end.write("before");
    await expect.poll(() => usedIndex(machine, 4)).toBeGreaterThan(0);
    await device.suspend();
    end.write("after");
    await device.resume();
    expect(device.ports[1]).toBe(port);
    expect(Buffer.from(await fromHost(port, 11)).toString()).toBe("beforeafter");
    await write(port.writable, pattern(5000, 9));
    expect(Buffer.compare(await fromGuest(end, 5000), pattern(5000, 9))).toBe(0);
  });

  it("takes every port of as many as QEMU has, with its name, and loses no word of any", async () => {
    const { machine, device, lines } = await bench(31);
    expect(device.ports.map(({ name, alias, connected }) => [name, alias, connected])).toEqual(
      Array.from({ length: 31 }, (_, id) => [
        `ttyV0.${id.toString(32)}`,
        id === 0 ? "" : `port${id}`,
        true,
      ]),
    );
    await Promise.all(
      device.ports.map(async (port) => {
        const end = machine.port("console0", port.id);
        const bytes = pattern(5000, port.id + 1);
        end.write(bytes);
        const [seen, got] = await Promise.all([
          fromGuest(end, bytes.length),
          fromHost(port, bytes.length),
          write(port.writable, bytes),
        ]);
        expect([port.id, Buffer.compare(seen, bytes), Buffer.compare(got, bytes)]).toEqual([
          port.id,
          ...[0, 0],
        ]);
      }),
    );
    expect(lines).toEqual([]);
    await device.detach();
  });

  it("takes an emergency write", async () => {
    const { machine, device } = await bench(1);
    const end = machine.port("console0", 0);
    for (const byte of Buffer.from("panic")) await device.emergencyWrite(byte);
    expect(Buffer.from(await fromGuest(end, 5)).toString()).toBe("panic");
  });
});

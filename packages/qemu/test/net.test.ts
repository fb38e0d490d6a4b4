import { execFileSync } from "node:child_process";
import { createServer } from "node:net";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { type NetSpec, parseDeviceSpec } from "@virtio/core";
import { net, type QemuMachine, type QemuNetSpec } from "@virtio/qemu";
import { describe, expect, it, onTestFinished } from "vitest";
import { commandLine } from "../src/command-line.js";
import { netProperties } from "../src/net.js";
import { planDevices } from "../src/plan.js";
import { hasQemu, launch, temporaryFolder } from "./support/machine.js";
import { RawDevice, virtioFunction } from "./support/raw-device.js";

const properties = (spec: string) => netProperties(parseDeviceSpec(spec) as NetSpec, spec);

describe("a net specification", () => {
  it("is modern, split, with one pair of queues, by default", () => {
    expect(properties("net")).toEqual({
      "disable-legacy": "on",
      "disable-modern": false,
      packed: false,
      mq: false,
      romfile: "",
    });
  });

  it("becomes QEMU's properties, key by key", () => {
    const spec =
      "net,mac=52:54:00:00:00:01,backend=tap:tap0,queues=2,mtu=9000,vectors=6,packed=on,mrg_rxbuf=off,rss=on,hash_report=on,csum=on,guest_tso4=off,speed_duplex=on";
    expect(properties(spec)).toMatchObject({
      mac: "52:54:00:00:00:01",
      mq: true,
      host_mtu: 9000,
      vectors: 6,
      packed: true,
      mrg_rxbuf: false,
      rss: true,
      hash: true,
      csum: true,
      guest_tso4: false,
      speed: 10_000,
      duplex: "full",
    });
  });

  it.each([
    ["net,mac=off", "is not the MAC address"],
    ["net,csum=on", "csum=on: QEMU offers it to a tap alone (backend=tap:IF)"],
    [
      "net,queues=2",
      "queues=2: QEMU gives several pairs of queues to a tap alone (backend=tap:IF)",
    ],
    ["net,guest_uso4=on", "guest_uso4=on: QEMU never offers it"],
    ["net,notf_coal=on", "notf_coal=on: QEMU never offers it"],
    ["net,standby=on", "standby=on: QEMU never offers it"],
    ["net,in_order=on", "in_order=on: QEMU never offers it"],
    ["net,queue-size=512", "queueSize 512 is not 256, which QEMU's queues have"],
    ["net,packed=on,legacy=on", "packed=on needs a modern interface: legacy=off"],
  ])("that QEMU cannot honour is refused: %s", (spec, message) => {
    expect(() => properties(spec)).toThrow(message);
  });

  it.each([
    [{ features: { MAC: false } }, "mac=off: QEMU always offers it"],
    [{ features: { MTU: true } }, "mtu=on: QEMU offers it just when there is an MTU"],
    [{ features: { MTU: false }, mtu: 1500 }, "mtu=off: QEMU offers it just when"],
    [{ features: { DISCARD: true } }, "discard=on: no feature of a network device"],
    [{ mac: "53:54:00:00:00:01" }, 'mac "53:54:00:00:00:01" is not the MAC address of one station'],
    [{ backend: "bridge" }, 'backend "bridge" is not one of gateway'],
    [
      { backend: "tap:more-than-15-bytes" },
      'backend "tap:more-than-15-bytes" is not one of gateway',
    ],
    [{ backend: {} }, "backend {} is not one of gateway"],
    [{ mtu: 20 }, "mtu 20 is not a whole number from 68 to 65535"],
    [{ serial: "X" }, "unknown key 'serial' (net takes: mac, backend, queues, mtu"],
  ])("made by hand is checked like one that was read: %j", (options, message) => {
    const spec = { kind: "net", ...options } as QemuNetSpec;
    expect(() => netProperties(spec, "net0")).toThrow(`net0: ${message}`);
  });
});

describe("network devices, before QEMU sees them", () => {
  it("have ids of their own, and what is behind each", async () => {
    const devices = [
      "net",
      "blk",
      net({ backend: "wire" }),
      "net,backend=tap:tap7,queues=2",
      net({ backend: { type: "hubport", hubid: 3 } }),
    ];
    const plans = await planDevices(devices, ".");
    expect(plans.map(({ id }) => id)).toEqual(["net0", "blk0", "net1", "net2", "net3"]);
    const line = { type: "q35", memory: 1 << 27, rootPorts: 0, args: [] } as const;
    const { args } = commandLine({ ...line, devices: plans });
    const after = (name: string) =>
      args.filter((_, i) => args[i - 1] === name).map((json) => JSON.parse(json));
    expect(after("-netdev")).toEqual([
      { type: "user", id: "net0-wire" },
      // 5 is guest memory, 6 firmware, 7 the disk.
      { type: "socket", fd: "8", id: "net1-wire" },
      {
        ...{ type: "tap", ifname: "tap7", script: "no", downscript: "no", queues: 2 },
        id: "net2-wire",
      },
      { type: "hubport", hubid: 3, id: "net3-wire" },
    ]);
    expect(after("-device").filter(({ driver }) => driver === "virtio-net-pci")).toMatchObject([
      { id: "net0", netdev: "net0-wire" },
      { id: "net1", netdev: "net1-wire" },
      { id: "net2", netdev: "net2-wire", mq: true },
      { id: "net3", netdev: "net3-wire" },
    ]);
  });

  it.each([
    ["net,backend=pcap:x.pcap", "INVALID", "net,backend=pcap:x.pcap: QEMU plays no capture files"],
    ["net,backend=stream:nosuch", "NOT_FOUND", "net,backend=stream:nosuch: no such socket"],
    ["net,backend=stream:/dev/null", "INVALID", "net,backend=stream:/dev/null: is not a socket"],
  ])("that QEMU has nothing for are one clear error: %s", async (spec, code, message) => {
    await expect(planDevices([spec], ".")).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    });
  });
});

/** A frame as the wire has it. */
const framed = (length: number, fill: number): Buffer => {
  const bytes = Buffer.alloc(4 + length, fill);
  bytes.writeUInt32BE(length);
  return bytes;
};

/** Collects what comes until there are `length` bytes. */
async function receive(wire: Duplex, length: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of wire.iterator({ destroyOnReturn: false })) {
    chunks.push(chunk as Buffer);
    if (chunks.reduce((sum, { length: n }) => sum + n, 0) >= length) break;
  }
  return Buffer.concat(chunks);
}

/** Transmits one frame on queue 1 of a modern network device. */
async function transmit(machine: QemuMachine, frame: Uint8Array): Promise<void> {
  const device = await RawDevice.open(machine, await virtioFunction(machine));
  await device.start();
  await device.offer(1, Uint8Array.of(...new Uint8Array(12), ...frame));
}

describe.skipIf(!hasQemu)("a network device (needs QEMU)", () => {
  it("sends what its driver transmits over the wire of this process", async () => {
    const machine = await launch({ devices: [net({ backend: "wire" })] });
    await transmit(machine, Buffer.alloc(64, 0xa5));
    expect(await receive(machine.wire("net0"), 68)).toEqual(framed(64, 0xa5));
    expect(() => machine.wire("net1")).toThrow("no network device 'net1' with backend wire");
  });

  it("is connected to the socket that its specification names", async () => {
    const path = join(temporaryFolder(), "wire.sock");
    const connected = new Promise<Duplex>((resolve) => {
      const server = createServer((socket) => resolve(socket)).listen(path);
      onTestFinished(() => void server.close());
    });
    const machine = await launch({ devices: [`net,backend=stream:${path}`] });
    const socket = await connected;
    await transmit(machine, Buffer.alloc(60, 0x5a));
    expect(await receive(socket, 64)).toEqual(framed(60, 0x5a));
    socket.destroy();
  });

  it("is not started, or plugged in, over a socket at which nobody listens", async () => {
    const path = join(temporaryFolder(), "wire.sock");
    // A socket stays in its folder when the process that listened is killed.
    execFileSync(process.execPath, [
      "-e",
      `require("net").createServer().listen(${JSON.stringify(path)}, () => process.reallyExit())`,
    ]);
    const refused = {
      code: "IO",
      message: `net,backend=stream:${path}: nobody listens there`,
    };
    const spec = `net,backend=stream:${path}`;
    await expect(launch({ devices: [spec] })).rejects.toMatchObject(refused);
    const machine = await launch({ type: "pc", devices: [] });
    await expect(machine.plug(spec)).rejects.toMatchObject(refused);
    // Nothing is left of it: the id is free.
    await machine.plug("net");
  });

  it("is plugged in and taken out with its netdev", async () => {
    const machine = await launch({ type: "pc", devices: [] });
    const address = await machine.plug("net");
    const filter = await machine.qmp.execute("query-rx-filter", { name: "net0" });
    expect(filter).toMatchObject([{ name: "net0" }]);
    await machine.unplug(address);
    await expect(machine.qmp.execute("netdev_del", { id: "net0-wire" })).rejects.toThrow();
    await expect(machine.plug(net({ backend: "wire" }))).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });

  it("that QEMU refuses is one line with its name", async () => {
    const refused = await launch({
      devices: [net({ backend: { type: "tap", ifname: "no/name", script: "no" } })],
    }).catch(String);
    expect(refused).toMatch(/^VirtioFault: net0: QEMU refuses it: could not/);
  });
});

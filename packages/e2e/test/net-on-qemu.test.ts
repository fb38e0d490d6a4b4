// vtnet on QEMU's own network device: frames to and from this process, between two devices, and to this computer's kernel; link,
// announcement and filters as QEMU sees them.
import { execFileSync, spawnSync } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { type Frame, InterfaceCapability, SysctlTree } from "@virtio/core";
import { NetConfig, NetGso, NetHeaderFlag, NetStatus } from "@virtio/core/net";
import { PciRegister } from "@virtio/core/pci";
import {
  EtherType,
  ethernet,
  get16,
  get32,
  Headers,
  IpProtocol,
  parseMac,
  pseudoSum4,
  put16,
  TcpFlag,
  tcp,
  udp,
  verify,
} from "@virtio/packets";
import { attach, probe } from "@virtio/pci-transport";
import { net, type QemuMachine, type QemuNetOptions, qemu } from "@virtio/qemu";
import { transmit } from "@virtio/testing";
import { type Vtnet, type VtnetOptions, vtnet } from "@virtio/vtnet";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu, pattern } from "./machines.js";

const MACS = ["52:54:00:00:00:01", "52:54:00:00:00:02"] as const;
const OTHER = "02:00:00:00:00:07";
const ETHERNET = 14;
/** For experiments (IEEE 802). */
const ETHER_TYPE = 0x88b5;

interface Bench {
  readonly machine: QemuMachine;
  /** In the order of the devices. */
  readonly interfaces: readonly Vtnet[];
  readonly sysctl: readonly SysctlTree[];
}

/** vtnet on each device of a QEMU that ends with the test. */
async function bench(
  devices: readonly QemuNetOptions[],
  options: VtnetOptions = {},
): Promise<Bench> {
  const machine = await qemu({ devices: devices.map((device) => net(device)) });
  onTestFinished(() => machine.close());
  const nodes = await probe(machine.buses[0].bus);
  const sysctl = nodes.map(() => new SysctlTree());
  const interfaces = await Promise.all(
    nodes.map((node, unit) =>
      attach(node, vtnet(options), {
        ...{ name: `vtnet${unit}`, cpus: machine.cpus },
        sysctl: sysctl[unit]?.node("vtnet", "") as ReturnType<SysctlTree["node"]>,
      }),
    ),
  );
  return { machine, interfaces, sysctl };
}

/** The same with one device whose wire is in the test's hands. */
async function wired(
  device: QemuNetOptions = {},
  options: VtnetOptions = {},
): Promise<{ machine: QemuMachine; iface: Vtnet; wire: Wire }> {
  const { machine, interfaces } = await bench(
    [{ backend: "wire", mac: MACS[0], ...device }],
    options,
  );
  return { machine, iface: interfaces[0] as Vtnet, wire: new Wire(machine.wire("net0")) };
}

/** The other end of a device's wire: each frame goes as its length, 4 bytes big-endian, and its bytes. */
class Wire {
  readonly #socket: Duplex;
  readonly #frames: AsyncGenerator<Uint8Array>;

  constructor(socket: Duplex) {
    this.#socket = socket;
    this.#frames = framesOf(socket);
  }

  send(frame: Uint8Array): void {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(frame.length);
    this.#socket.write(Buffer.concat([length, frame]));
  }

  async next(): Promise<Uint8Array> {
    const { value } = await this.#frames.next();
    return value as Uint8Array;
  }
}

async function* framesOf(socket: Duplex): AsyncGenerator<Uint8Array> {
  let rest = Buffer.alloc(0);
  for await (const chunk of socket) {
    rest = Buffer.concat([rest, chunk as Buffer]);
    for (;;) {
      if (rest.length < 4) break;
      const end = 4 + rest.readUInt32BE();
      if (rest.length < end) break;
      yield rest.subarray(4, end);
      rest = rest.subarray(end);
    }
  }
}

/** A frame of `length` bytes like no other. */
function frameOf(length: number, seed: number, destination: string, source = OTHER): Uint8Array {
  const etherType = ETHER_TYPE;
  // A pattern has an odd seed.
  return ethernet({ destination, source, etherType }, pattern(length - ETHERNET, 2 * seed + 1));
}

/** Frames of `count` lengths from `least` to `most` bytes, both among them. */
function framesTo(
  destination: string,
  { count, least = 60, most, seed }: { count: number; least?: number; most: number; seed: number },
): Uint8Array[] {
  const dice = pattern(2 * count, seed);
  return Array.from({ length: count }, (_, i) => {
    const length = i === 0 ? least : i === 1 ? most : least + (get16(dice, 2 * i) % (most - least));
    return frameOf(length, seed + i, destination);
  });
}

/** Sends all, and takes as many where they are to arrive; both at once. */
async function pass(
  frames: readonly Uint8Array[],
  send: (frame: Uint8Array) => void | Promise<void>,
  take: () => Promise<Uint8Array>,
): Promise<void> {
  const sending = (async () => {
    for (const frame of frames) await send(frame);
  })();
  for (const [i, frame] of frames.entries()) {
    const arrived = await take();
    if (Buffer.compare(arrived, frame) !== 0)
      expect.fail(`frame ${i} of ${frame.length} bytes arrived as other ${arrived.length}`);
  }
  await sending;
}

const senderOf = (iface: Vtnet): ((frame: Uint8Array) => Promise<void>) => {
  const writer = iface.writable.getWriter();
  return (frame) => writer.write(frame);
};

const takerOf = (iface: Vtnet): (() => Promise<Uint8Array>) => {
  const frames = iface[Symbol.asyncIterator]();
  return async () => (await frames.next()).value as Uint8Array;
};

/** What QEMU says of a queue of `net0`. */
async function queueOf(machine: QemuMachine, queue: number): Promise<Record<string, number>> {
  const path = "/machine/peripheral/net0/virtio-backend";
  const status = await machine.qmp.execute("x-query-virtio-queue-status", { path, queue });
  return status as Record<string, number>;
}

describe.skipIf(!hasQemu)("frames on QEMU's network device (needs QEMU)", () => {
  const noMerge = { features: { MRG_RXBUF: false } };
  const modes: readonly { name: string; device: QemuNetOptions; atOnce?: number }[] = [
    { name: "modern", device: {} },
    { name: "packed", device: { packed: true, eventIdx: false } },
    // When the socket was full meanwhile, QEMU 7.2 leaves the event of a packed queue where it was, and waits for no more: few at once.
    { name: "packed, event index", device: { packed: true }, atOnce: 8 },
    { name: "legacy", device: { legacy: "on" } },
    { name: "modern, mrg_rxbuf=off", device: noMerge },
    { name: "packed, mrg_rxbuf=off", device: { packed: true, eventIdx: false, ...noMerge } },
    { name: "legacy, mrg_rxbuf=off", device: { legacy: "on", ...noMerge } },
  ];
  it.each(modes)(
    "go both ways at once between the test and the driver: $name",
    async ({ device, atOnce = 300 }) => {
      const { machine, iface, wire } = await wired(device);
      const [send, take] = [senderOf(iface), takerOf(iface)];
      await iface.up();
      let sent = 0;
      for (const { count, most } of [
        { count: 300, most: 1514 },
        { count: 100, most: 9014 },
      ]) {
        await iface.setMtu(most - ETHERNET);
        const out = framesTo(OTHER, { count, most, seed: 1 });
        const back = framesTo(iface.mac, { count, most, seed: 1000 });
        for (let i = 0; i < count; i += atOnce)
          await Promise.all([
            pass(out.slice(i, i + atOnce), send, () => wire.next()),
            pass(back.slice(i, i + atOnce), (frame) => wire.send(frame), take),
          ]);
        // A frame is on the wire before it is used.
        sent += count;
        await expect.poll(() => iface.statistics.opackets).toBe(sent);
      }
      expect(iface.statistics).toMatchObject({ ipackets: sent, ierrors: 0, oqdrops: 0 });

      // QEMU has given back all that it took.
      const queues = await Promise.all([0, 1, 2].map((queue) => queueOf(machine, queue)));
      for (const queue of queues) {
        expect(queue["inuse"]).toBe(0);
        expect(queue["used-idx"]).toBe(queue["last-avail-idx"]);
      }
      // An MTU of 9000 takes buffers of another size: a reset is between.
      if (device.packed !== true) expect(queues[1]?.["used-idx"]).toBe(100);
    },
  );

  it("of 9014 bytes go both ways between two devices of one QEMU, one split, one packed", async () => {
    const backend = { type: "hubport", hubid: 0 } as const;
    const { interfaces } = await bench([
      { backend, mac: MACS[0] },
      { backend, mac: MACS[1], packed: true },
    ]);
    const [split, packed] = interfaces as [Vtnet, Vtnet];
    for (const iface of interfaces) {
      await iface.setMtu(9000);
      await iface.up();
    }
    // Each takes three of 256 buffers; of more than fit at once, QEMU's hub lets the first be overtaken.
    const sizes = { count: 85, least: 9013, most: 9014 };
    const [toPacked, toSplit] = [senderOf(split), senderOf(packed)];
    const [atPacked, atSplit] = [takerOf(packed), takerOf(split)];
    for (const seed of [1, 1001, 2001])
      await Promise.all([
        pass(framesTo(packed.mac, { ...sizes, seed }), toPacked, atPacked),
        pass(framesTo(split.mac, { ...sizes, seed: seed + 500 }), toSplit, atSplit),
      ]);
    for (const { statistics } of interfaces)
      expect(statistics).toMatchObject({ ipackets: 255, opackets: 255, ierrors: 0 });
  });
});

describe.skipIf(!hasQemu)("what QEMU tells the driver (needs QEMU)", () => {
  it("is that the link went down and up: a frame written meanwhile waits", async () => {
    const { machine, iface, wire } = await wired();
    await iface.up();
    const seen: boolean[] = [];
    iface.onLinkChange((up) => seen.push(up));
    await machine.qmp.execute("set_link", { name: "net0", up: false });
    await expect.poll(() => seen).toEqual([false]);
    expect(iface.link.up).toBe(false);
    const frame = frameOf(100, 1, OTHER);
    let over = false;
    const written = senderOf(iface)(frame).then(() => {
      over = true;
    });
    const { opackets } = iface.statistics;
    expect([over, opackets]).toEqual([false, 0]);
    await machine.qmp.execute("set_link", { name: "net0", up: true });
    expect(await wire.next()).toEqual(Buffer.from(frame));
    await written;
    await expect.poll(() => seen).toEqual([false, true]);
    expect(iface.link.up).toBe(true);
  });

  it("is to announce itself: it does, and the device sees that it did", async () => {
    const announced: string[] = [];
    const { machine, iface, wire } = await wired(
      {},
      { onAnnounce: (name) => announced.push(name) },
    );
    await iface.up();
    const [fn] = await virtioFunctions(machine);
    const config = await fn?.mapBar(4);
    const [at] = NetConfig.status;
    const status = (): Promise<number> | undefined => config?.read(CONFIG + at, 2);
    for (const round of [1, 2]) {
      const once = { initial: 10, max: 10, rounds: 1, step: 0 };
      await machine.qmp.execute("announce-self", once);
      await expect.poll(() => announced).toHaveLength(round);
      await expect.poll(status).toBe(NetStatus.LINK_UP);
      // QEMU sends the same for the interface.
      for (const frame of [await wire.next(), await wire.next()]) {
        const [header, arp] = [frame.subarray(0, ETHERNET), frame.subarray(ETHERNET)];
        expect([...header]).toEqual([
          ...[...parseMac("ff:ff:ff:ff:ff:ff"), ...parseMac(MACS[0])],
          ...[0x80, 0x35],
        ]);
        const mac = parseMac(MACS[0]);
        expect([...arp.subarray(0, 28)]).toEqual([
          ...[0, 1, 8, 0, 6, 4, 0, 3],
          ...[...mac, 0, 0, 0, 0],
          ...[...mac, 0, 0, 0, 0],
        ]);
      }
      expect(iface.statistics.opackets).toBe(round);
    }
    // A status that still asked for it would be answered again.
    await machine.qmp.execute("set_link", { name: "net0", up: false });
    await expect.poll(() => iface.link.up).toBe(false);
    expect(announced).toEqual(["vtnet0", "vtnet0"]);
  });
});

/** QEMU's layout of BAR 4 of a modern function: the device's configuration. */
const CONFIG = 0x2000;

/** The functions with virtio's vendor id. */
async function virtioFunctions(machine: QemuMachine) {
  const functions = await machine.buses[0].bus.functions();
  const vendors = await Promise.all(functions.map((fn) => fn.read(PciRegister.VENDOR_ID, 2)));
  return functions.filter((_, i) => vendors[i] === 0x1af4);
}

/** What QEMU lets through to `net0`, its tables in order. */
async function filterOf(machine: QemuMachine): Promise<Record<string, unknown>> {
  const [filter] = (await machine.qmp.execute("query-rx-filter", { name: "net0" })) as [
    Record<string, unknown[]>,
  ];
  const order = (a: unknown, b: unknown): number => (String(a) < String(b) ? -1 : 1);
  return Object.fromEntries(
    Object.entries(filter).map(([key, value]) => [
      key,
      Array.isArray(value) ? value.toSorted(order) : value,
    ]),
  );
}

/** Addresses of stations, or groups, each another. */
const addresses = (first: string, count: number): string[] =>
  Array.from({ length: count }, (_, i) => `${first}:00:00:00:00:${hex(i)}`);
const hex = (value: number): string => value.toString(16).padStart(2, "0");

describe.skipIf(!hasQemu)("the filter of QEMU's device (needs QEMU)", () => {
  const off = { promiscuous: false, unicast: "normal", multicast: "normal" } as const;

  it("is the driver's after each change, and again after the interface was down", async () => {
    const { machine, iface } = await wired();
    const filter = (): Promise<Record<string, unknown>> => filterOf(machine);
    await iface.setCapability(InterfaceCapability.VLAN_HWFILTER, true);
    await iface.up();
    const none = {
      "unicast-table": [],
      "multicast-table": [],
      "vlan-table": [],
      "main-mac": MACS[0],
    };
    expect(await filter()).toMatchObject({ ...off, ...none });

    const [stations, groups] = [addresses("02", 3), addresses("33", 5)];
    await iface.setUnicast(stations);
    expect(await filter()).toMatchObject({ ...off, "unicast-table": stations });
    await iface.setMulticast(groups);
    const tables = { "unicast-table": stations, "multicast-table": groups };
    expect(await filter()).toMatchObject({ ...off, ...tables });
    await iface.setPromiscuous(true);
    expect(await filter()).toMatchObject({ ...off, ...tables, promiscuous: true });
    await iface.setAllMulticast(true);
    const all = { ...off, ...tables, promiscuous: true, multicast: "all" };
    expect(await filter()).toMatchObject(all);
    await iface.setPromiscuous(false);
    await iface.setMac(OTHER);
    await iface.addVlan(1);
    await iface.addVlan(4094);
    await iface.addVlan(77);
    await iface.removeVlan(77);
    const end = {
      ...{ ...all, promiscuous: false, "main-mac": OTHER },
      ...{ vlan: "normal", "vlan-table": [1, 4094] },
    };
    expect(await filter()).toMatchObject(end);

    await iface.down();
    expect(await filter()).toMatchObject({ ...none, promiscuous: true });
    await iface.addVlan(5);
    await iface.setAllMulticast(false);
    await iface.up();
    const after = { ...end, multicast: "normal", "vlan-table": [1, 4094, 5] };
    expect(await filter()).toMatchObject(after);
  });

  it("falls back to all when there are more addresses than fit, and comes back from there", async () => {
    const { machine, iface } = await wired();
    await iface.up();
    const filter = (): Promise<Record<string, unknown>> => filterOf(machine);
    // More than QEMU takes, which is 64 of both; not more than the driver.
    await iface.setUnicast(addresses("02", 65));
    const over = { "unicast-overflow": true, "unicast-table": [] };
    expect(await filter()).toMatchObject({ ...off, ...over, "multicast-overflow": false });
    // More than the driver sends.
    await iface.setUnicast(addresses("02", 129));
    expect(await filter()).toMatchObject({ ...off, promiscuous: true, "unicast-table": [] });
    await iface.setMulticast(addresses("33", 129));
    expect(await filter()).toMatchObject({ ...off, promiscuous: true, multicast: "all" });
    const groups = addresses("33", 64);
    await iface.setMulticast(groups);
    expect(await filter()).toMatchObject({ promiscuous: true, "multicast-table": groups });
    await iface.setUnicast([]);
    expect(await filter()).toMatchObject({
      ...{ ...off, "unicast-table": [], "multicast-table": groups },
      ...{ "unicast-overflow": false, "multicast-overflow": false },
    });
  });

  it("lets those frames through that the driver wants", async () => {
    const { iface, wire } = await wired();
    await iface.setCapability(InterfaceCapability.VLAN_HWFILTER, true);
    await iface.setMulticast(addresses("33", 2));
    await iface.addVlan(5);
    await iface.up();
    const tagged = (vlan: number): Uint8Array =>
      ethernet(
        { destination: iface.mac, source: OTHER, etherType: ETHER_TYPE, vlan },
        pattern(60, vlan),
      );
    const groups = addresses("33", 3).map((group, i) => frameOf(64, i, group));
    const wanted = [groups[0], groups[1], tagged(5), frameOf(70, 9, iface.mac)] as Uint8Array[];
    for (const frame of [groups[2], wanted[0], frameOf(60, 8, OTHER), wanted[1], tagged(6)])
      wire.send(frame as Uint8Array);
    for (const frame of wanted.slice(2)) wire.send(frame);
    const take = takerOf(iface);
    for (const frame of wanted) expect(Buffer.compare(await take(), frame)).toBe(0);
  });

  it("has the address that was written into the configuration of a legacy device", async () => {
    const { machine, iface } = await wired({ legacy: "on", features: { CTRL_MAC_ADDR: false } });
    await iface.up();
    await iface.setMac(OTHER);
    expect(await filterOf(machine)).toMatchObject({ "main-mac": OTHER });
    await iface.down();
    await iface.up();
    expect(await filterOf(machine)).toMatchObject({ "main-mac": OTHER });
  });
});

/** Whether this user may make a tap with several queues and give it an address. */
const hasTap = ((): boolean => {
  const name = `vprb${process.pid % 100_000}`;
  const ip = (...args: string[]): boolean => spawnSync("ip", args).status === 0;
  const made = ip("tuntap", "add", "dev", name, "mode", "tap", "multi_queue");
  return made && ip("link", "delete", name);
})();

/** Where the kernel is, and the interface. */
const HOST = "10.99.78.1";
const GUEST = "10.99.78.2";

interface Tapped extends Bench {
  readonly iface: Vtnet;
  readonly name: string;
  /** Its address on the tap. */
  readonly host: string;
}

/** vtnet on a tap that QEMU makes, which ends with it; the kernel has HOST on it, and knows GUEST. */
async function tapped(device: QemuNetOptions = {}): Promise<Tapped> {
  const name = `vtap${process.pid % 100_000}`;
  const made = await bench([{ mac: MACS[0], backend: `tap:${name}`, ...device }]);
  const ip = (...args: string[]): void => void execFileSync("ip", args);
  // No router solicitations of the kernel's.
  ip("link", "set", name, "addrgenmode", "none");
  ip("address", "add", `${HOST}/24`, "dev", name);
  ip("link", "set", name, "up");
  ip("neighbor", "replace", GUEST, "lladdr", MACS[0], "dev", name, "nud", "permanent");
  const host = readFileSync(`/sys/class/net/${name}/address`, "utf8").trim();
  const iface = made.interfaces[0] as Vtnet;
  await iface.up();
  return { ...made, iface, name, host };
}

/** An IP packet to the kernel, in a frame. */
const toHost = (host: string, packet: Uint8Array): Uint8Array =>
  ethernet({ destination: host, source: MACS[0], etherType: EtherType.IPV4 }, packet);

/** Replaces the checksum of a frame by what a device completes: the sum over the pseudo header (virtio 1.4 §5.1.6.2). */
function withoutChecksum(frame: Uint8Array, protocol: IpProtocol, offset: number): Uint8Array {
  const l4 = ETHERNET + 20;
  put16(frame, l4 + offset, pseudoSum4(frame, ETHERNET, protocol, frame.length - l4));
  return frame;
}

/** A UDP socket on the tap's address that says what it gets, and sends it back. */
async function echoSocket(heard: Buffer[]): Promise<number> {
  const socket = createSocket("udp4");
  onTestFinished(() => void socket.close());
  socket.on("message", (bytes, { port, address }) => {
    heard.push(bytes);
    socket.send(bytes, port, address);
  });
  await new Promise<void>((resolve) => socket.bind(0, HOST, resolve));
  return socket.address().port;
}

describe.skipIf(!hasQemu)("a tap (needs QEMU)", () => {
  it.skipIf(!hasTap)(
    "with several queues takes datagrams without checksum on each, and answers on the same (needs a tun device)",
    async () => {
      const { machine, iface, host, name } = await tapped({ queues: 4 });
      expect(iface.queuePairs).toBe(4);
      const heard: Buffer[] = [];
      const destinationPort = await echoSocket(heard);
      const answers = new Map<number, Uint8Array>();
      const queues = new Map<number, number>();
      const headers = new Headers();
      const frames: (Frame | null)[] = [];
      iface.onReceive = (queue) => {
        for (let n = iface.receiveBurst(queue, frames, 32); n > 0; ) {
          for (const frame of frames.slice(0, n) as Frame[]) {
            const bytes = frame.bytes.slice(frame.offset, frame.offset + frame.length);
            headers.parse(bytes, 0, bytes.length);
            if (headers.protocol === IpProtocol.UDP) {
              const port = get16(bytes, headers.l4 + 2);
              answers.set(port, bytes.subarray(headers.payload));
              queues.set(port, frame.queue);
            }
            iface.release(frame);
          }
          n = iface.receiveBurst(queue, frames, 32);
        }
      };
      const path = { source: GUEST, destination: HOST, destinationPort };
      for (const queue of [3, 1, 0, 2]) {
        const packet = udp({ ...path, sourcePort: 5000 + queue }, pattern(1000, 2 * queue + 1));
        const frame = withoutChecksum(toHost(host, packet), IpProtocol.UDP, 6);
        const place = { csumStart: ETHERNET + 20, csumOffset: 6 };
        transmit(iface, frame, { ...place, flags: NetHeaderFlag.NEEDS_CSUM, queue });
        await expect.poll(() => answers.has(5000 + queue)).toBe(true);
        expect(answers.get(5000 + queue)).toEqual(pattern(1000, 2 * queue + 1));
        expect(queues.get(5000 + queue)).toBe(queue);
        // Receive queues are 0, 2, 4, 6, transmit queues 1, 3, 5, 7.
        expect((await queueOf(machine, 2 * queue + 1))["used-idx"]).toBe(1);
      }
      expect(heard).toHaveLength(4);
      await machine.close();
      expect(spawnSync("ip", ["link", "show", name]).status).not.toBe(0);
    },
  );

  it.skipIf(!hasTap).each([{ features: {} }, { features: { CSUM: false, HOST_UFO: false } }])(
    "gets datagrams whose checksum is good, whoever completes it: $features (needs a tun device)",
    async ({ features }) => {
      const { iface, host } = await tapped({ features });
      const heard: Buffer[] = [];
      const destinationPort = await echoSocket(heard);
      const path = { source: GUEST, destination: HOST, destinationPort, sourcePort: 6000 };
      const datagram = (text: string): Uint8Array =>
        withoutChecksum(toHost(host, udp(path, Buffer.from(text))), IpProtocol.UDP, 6);
      // The kernel drops what is not whole and does not say so.
      transmit(iface, datagram("bad"), {});
      const place = { csumStart: ETHERNET + 20, csumOffset: 6 };
      transmit(iface, datagram("good"), { ...place, flags: NetHeaderFlag.NEEDS_CSUM });
      await expect.poll(() => heard.map(String)).toEqual(["good"]);
      const answer = await takerOf(iface)();
      const headers = new Headers();
      expect(headers.parse(answer, 0, answer.length)).toBe(true);
      expect(verify(answer, 0, headers)).toBe(true);
    },
  );

  it.skipIf(!hasTap)(
    "takes a TCP packet of many segments, and gives one (needs a tun device)",
    async () => {
      const { iface, host } = await tapped();
      const [asked, answered] = [pattern(20_000, 1), pattern(12_000, 3)];
      const got: Buffer[] = [];
      const server = createServer((socket: Socket) => {
        // The test ends the connection by a reset.
        socket.on("error", () => {});
        socket.on("data", (chunk) => {
          got.push(chunk as Buffer);
          if (Buffer.concat(got).length === asked.length) socket.write(answered);
        });
      });
      onTestFinished(() => void server.close());
      await once(server.listen(0, HOST), "listening");
      const { port } = server.address() as AddressInfo;
      const path = { source: GUEST, destination: HOST, sourcePort: 7000, destinationPort: port };
      const send = senderOf(iface);
      const take = takerOf(iface);
      const headers = new Headers();
      /** The next segment of the connection. */
      const segment = async (): Promise<{ bytes: Uint8Array; sequence: number }> => {
        for (;;) {
          const bytes = await take();
          if (!headers.parse(bytes, 0, bytes.length) || headers.protocol !== IpProtocol.TCP)
            continue;
          expect(verify(bytes, 0, headers)).toBe(true);
          return { bytes, sequence: get32(bytes, headers.l4 + 4) };
        }
      };
      const options = Uint8Array.of(2, 4, 1460 >> 8, 1460 & 0xff);
      const open = { ...path, sequence: 1000, flags: TcpFlag.SYN, options };
      await send(toHost(host, tcp(open, new Uint8Array(0))));
      const first = (await segment()).sequence + 1;
      expect(headers.tcpFlags).toBe(TcpFlag.SYN | TcpFlag.ACK);
      const flags = TcpFlag.ACK | TcpFlag.PSH;
      const data = { ...path, sequence: 1001, acknowledgement: first, flags };
      transmit(iface, withoutChecksum(toHost(host, tcp(data, asked)), IpProtocol.TCP, 16), {
        ...{ flags: NetHeaderFlag.NEEDS_CSUM, csumStart: ETHERNET + 20, csumOffset: 16 },
        ...{ gsoType: NetGso.TCPV4, gsoSize: 1460 },
      });
      const seen = new Uint8Array(answered.length);
      let longest = 0;
      for (let count = 0; count < answered.length; ) {
        const { bytes, sequence } = await segment();
        const payload = bytes.subarray(headers.payload);
        seen.set(payload, sequence - first);
        count += payload.length;
        longest = Math.max(longest, bytes.length);
      }
      expect(Buffer.compare(Buffer.concat(got), asked)).toBe(0);
      expect(Buffer.compare(seen, answered)).toBe(0);
      expect(longest).toBeGreaterThan(1514);
      expect(iface.statistics).toMatchObject({ ierrors: 0, oerrors: 0 });
      const end = { ...path, sequence: 1001 + asked.length, flags: TcpFlag.RST };
      await send(toHost(host, tcp(end, new Uint8Array(0))));
    },
  );
});

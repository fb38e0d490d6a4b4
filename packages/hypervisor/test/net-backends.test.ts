// What stands behind a network device: the gateway's network, captures, sockets.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Duplex } from "node:stream";
import {
  ArpOperation,
  arp,
  BROADCAST_MAC,
  type DhcpMessage,
  DhcpMessageType,
  dhcp,
  EtherType,
  echo,
  ethernet,
  formatIpv4,
  Headers,
  multicastMac,
  neighbor,
  PcapngWriter,
  parseArp,
  parseDhcp,
  parseEcho,
  parseNeighbor,
  readPcap,
  solicitedNode,
  udp,
  verify,
} from "@virtio/packets";
import { describe, expect, it, onTestFinished } from "vitest";
import type { NetBackend } from "../src/net-backend.js";
import { GatewayBackend } from "../src/net-backends/gateway.js";
import { PcapBackend } from "../src/net-backends/pcap.js";
import { openNetBackend, StreamBackend } from "../src/node/index.js";

const STATION = "52:54:00:12:34:56";

/** A device on a backend: takes frames while it has room; tasks run when the test says. */
class Device {
  readonly frames: Uint8Array[] = [];
  room = Number.POSITIVE_INFINITY;
  readonly #tasks: (() => void)[] = [];
  readonly backend: NetBackend;

  constructor(backend: NetBackend) {
    this.backend = backend;
    backend.deliver = (bytes, offset, length) => {
      if (this.room === 0) return false;
      this.room -= 1;
      this.frames.push(Uint8Array.from(bytes.subarray(offset, offset + length)));
      return true;
    };
    backend.connect?.({
      now: () => 5,
      enqueue: (task) => void this.#tasks.push(task),
      callout: () => ({ stop: () => {} }),
    });
  }

  /** Does the work that waits. */
  run(): void {
    for (let task = this.#tasks.shift(); task !== undefined; task = this.#tasks.shift()) task();
  }

  /** Sends a frame from the middle of a buffer, and takes what comes back. */
  ask(frame: Uint8Array): Uint8Array[] {
    const buffer = new Uint8Array(frame.length + 20);
    buffer.set(frame, 10);
    expect(this.backend.send(buffer, 10, frame.length)).toBe(true);
    expect(this.frames).toEqual([]);
    this.run();
    return this.frames.splice(0);
  }

  make(more: number): void {
    this.room = more;
    this.backend.room?.();
    this.run();
  }
}

const parsed = (frame: Uint8Array | undefined): [Uint8Array, Headers] => {
  const headers = new Headers();
  if (frame === undefined || !headers.parse(frame, 0, frame.length)) throw new Error("no frame");
  expect(verify(frame, 0, headers)).toBe(true);
  return [frame, headers];
};

describe("the gateway", () => {
  const device = (): Device => new Device(new GatewayBackend());
  const frame = (etherType: EtherType, payload: Uint8Array, destination = BROADCAST_MAC) =>
    ethernet({ destination, source: STATION, etherType }, payload);
  const whoHas = (targetIp: string) =>
    frame(
      EtherType.ARP,
      arp({
        operation: ArpOperation.REQUEST,
        senderMac: STATION,
        senderIp: "10.0.2.15",
        targetMac: "00:00:00:00:00:00",
        targetIp,
      }),
    );

  it("answers ARP for itself and the name server, and for nobody else", () => {
    const { ask } = bound(device());
    for (const ip of ["10.0.2.2", "10.0.2.3"]) {
      const [reply] = ask(whoHas(ip));
      expect(parseArp(...parsed(reply))).toEqual({
        operation: ArpOperation.REPLY,
        senderMac: "52:55:0a:00:02:02",
        senderIp: ip,
        targetMac: STATION,
        targetIp: "10.0.2.15",
      });
    }
    expect(ask(whoHas("10.0.2.15"))).toEqual([]);
    expect(ask(whoHas("10.0.2.77"))).toEqual([]);
  });

  it.each([
    ["10.0.2.15", "10.0.2.2"],
    ["fec0::15", "fec0::2"],
    ["fe80::5054:ff:fe12:3456", "fe80::2"],
  ])("answers the echo request of %s to %s with its own data", (source, destination) => {
    const { ask } = bound(device());
    const data = Uint8Array.from({ length: 100 }, (_, i) => i);
    const request = echo({ source, destination }, { type: "request", id: 7, sequence: 3, data });
    const etherType = source.includes(":") ? EtherType.IPV6 : EtherType.IPV4;
    const answers = ask(frame(etherType, request));
    expect(answers).toHaveLength(1);
    expect(parseEcho(...parsed(answers[0]))).toEqual({ type: "reply", id: 7, sequence: 3, data });
    const elsewhere = { source, destination: source.includes(":") ? "fec0::99" : "10.0.2.99" };
    const other = echo(elsewhere, { type: "request", id: 7, sequence: 3, data });
    expect(ask(frame(etherType, other))).toEqual([]);
  });

  it("answers UDP on port 7, and nothing on port 9", () => {
    const { ask } = bound(device());
    const path = { source: "10.0.2.15", destination: "10.0.2.2", sourcePort: 4000 };
    const data = Uint8Array.of(1, 2, 3);
    const [back] = ask(frame(EtherType.IPV4, udp({ ...path, destinationPort: 7 }, data)));
    const swapped = udp(
      {
        ...{ source: "10.0.2.2", destination: "10.0.2.15", hopLimit: 255 },
        ...{ sourcePort: 7, destinationPort: 4000 },
      },
      data,
    );
    expect(back?.subarray(14)).toEqual(swapped);
    expect(ask(frame(EtherType.IPV4, udp({ ...path, destinationPort: 9 }, data)))).toEqual([]);
  });

  it("drops frames that are tagged, cut short, or have a wrong checksum", () => {
    const { ask } = bound(device());
    const message = { type: "request", id: 1, sequence: 1, data: new Uint8Array(9) } as const;
    const packet = echo({ source: "10.0.2.15", destination: "10.0.2.2" }, message);
    const header = { destination: BROADCAST_MAC, source: STATION, etherType: EtherType.IPV4 };
    expect(ask(ethernet({ ...header, vlan: 5 }, packet))).toEqual([]);
    expect(ask(ethernet(header, packet.subarray(0, 25)))).toEqual([]);
    packet[packet.length - 1] = 1;
    expect(ask(ethernet(header, packet))).toEqual([]);
    expect(ask(new Uint8Array(0))).toEqual([]);
  });

  it("answers solicitations of neighbors and of routers, and of who has no address", () => {
    const { ask } = bound(device());
    for (const target of ["fec0::2", "fec0::3", "fe80::2"]) {
      const destination = solicitedNode(target);
      const solicit = (source: string) =>
        ask(
          frame(
            EtherType.IPV6,
            neighbor({ source, destination }, { type: "neighbor-solicitation", target }),
            multicastMac(destination),
          ),
        )[0];
      const said = { type: "neighbor-advertisement", target, mac: "52:56:00:00:00:02" };
      expect(parseNeighbor(...parsed(solicit("fec0::15")))).toMatchObject({
        ...said,
        solicited: true,
      });
      expect(parseNeighbor(...parsed(solicit("::")))).toMatchObject({ ...said, solicited: false });
    }
    const path = { source: "fe80::1234", destination: "ff02::2" };
    const [router] = ask(
      frame(EtherType.IPV6, neighbor(path, { type: "router-solicitation", mac: STATION })),
    );
    expect(parseNeighbor(...parsed(router))).toMatchObject({
      type: "router-advertisement",
      prefixes: [{ address: "fec0::", length: 64, autonomous: true }],
      dnsServers: ["fec0::3"],
    });
  });

  const converse = (ask: (frame: Uint8Array) => Uint8Array[]) => (message: DhcpMessage) => {
    const path = { source: "0.0.0.0", destination: "255.255.255.255" };
    const ports = { sourcePort: 68, destinationPort: 67 };
    const [answer] = ask(frame(EtherType.IPV4, udp({ ...path, ...ports }, dhcp(message))));
    if (answer === undefined) return null;
    const [bytes, headers] = parsed(answer);
    expect(formatIpv4(bytes, headers.l3 + 12)).toBe("10.0.2.2");
    return parseDhcp(bytes.subarray(headers.payload, headers.end));
  };

  it("leases 10.0.2.15 first, and the same address to the same station", () => {
    const say = converse(bound(device()).ask);
    const from = { transaction: 0x1234, clientMac: STATION };
    const given = {
      ...{ ...from, yourAddress: "10.0.2.15", serverId: "10.0.2.2", leaseTime: 86400 },
      ...{ subnetMask: "255.255.255.0", routers: ["10.0.2.2"], dnsServers: ["10.0.2.3"] },
    };
    expect(say({ ...from, type: DhcpMessageType.DISCOVER })).toMatchObject({
      ...given,
      type: DhcpMessageType.OFFER,
    });
    const request = { ...from, type: DhcpMessageType.REQUEST, requestedAddress: "10.0.2.15" };
    expect(say(request)).toMatchObject({ ...given, type: DhcpMessageType.ACK });
    // Somebody else's server was chosen.
    expect(say({ ...request, serverId: "10.0.2.9" })).toBeNull();
    expect(say({ ...request, requestedAddress: "10.0.2.16" })).toMatchObject({
      type: DhcpMessageType.NAK,
    });
    const other = { ...from, clientMac: "52:54:00:00:00:02", type: DhcpMessageType.DISCOVER };
    expect(say(other)?.yourAddress).toBe("10.0.2.16");
  });

  it("runs out of leases, and has them again when they are released", () => {
    const say = converse(bound(device()).ask);
    const station = (n: number) => `52:54:00:00:00:${n.toString(16).padStart(2, "0")}`;
    const discover = (n: number) =>
      say({ type: DhcpMessageType.DISCOVER, transaction: n, clientMac: station(n) })?.yourAddress;
    const all = Array.from({ length: 16 }, (_, n) => discover(n));
    expect(all).toEqual(all.map((_, n) => `10.0.2.${15 + n}`));
    expect(discover(16)).toBeUndefined();
    say({ type: DhcpMessageType.RELEASE, transaction: 1, clientMac: station(3) });
    expect(discover(16)).toBe("10.0.2.18");
  });

  it("keeps answers while the device has no room, and loses those beyond a bound", () => {
    const station = device();
    station.room = 0;
    const request = whoHas("10.0.2.2");
    for (let i = 0; i < 30_000; i++) station.backend.send(request, 0, request.length);
    station.run();
    expect(station.frames).toEqual([]);
    station.make(2);
    expect(station.frames).toHaveLength(2);
    station.make(30_000);
    expect(station.frames.length).toBeGreaterThan(1000);
    expect(station.frames.length).toBeLessThan(30_000);
  });
});

/** Its methods, apart from it. */
function bound(device: Device): { readonly ask: Device["ask"] } {
  return { ask: (frame) => device.ask(frame) };
}

const numbered = (n: number, length = 60): Uint8Array => new Uint8Array(length).fill(n);

describe("a capture as a wire", () => {
  const captured = (bytes: Uint8Array, length = bytes.length) =>
    ({ time: 0, direction: null, interface: null, bytes, length }) as const;

  it("plays its frames when the device has sent one, at the device's pace", () => {
    const frames = [captured(numbered(1)), captured(numbered(2), 61), captured(numbered(3))];
    const backend = new PcapBackend({ frames });
    const device = new Device(backend);
    device.run();
    expect(device.frames).toEqual([]);
    device.room = 1;
    // The second was cut short when it was captured.
    expect(device.ask(numbered(9))).toEqual([numbered(1)]);
    device.make(9);
    expect(device.frames).toEqual([numbered(3)]);
  });

  it("plays more frames than may wait", () => {
    const frames = Array.from({ length: 1000 }, (_, n) => captured(numbered(n & 0xff, 1514)));
    const backend = new PcapBackend({ frames });
    backend.play();
    const device = new Device(backend);
    device.run();
    expect(device.frames.map(([first]) => first)).toEqual(
      frames.map(({ bytes: [first] }) => first),
    );
  });

  it("records what the device sends", () => {
    const blocks: Uint8Array[] = [];
    const record = (block: Uint8Array): void => void blocks.push(block);
    new Device(new PcapBackend({ record })).ask(numbered(9));
    expect(readPcap(Buffer.concat(blocks))).toMatchObject([
      { time: 5, direction: "out", interface: "wire", length: 60 },
    ]);
  });

  it("is read from a file, and recorded beside it", async () => {
    const folder = temporaryFolder();
    const writer = new PcapngWriter();
    const blocks = [writer.header(), writer.addInterface("em0")];
    blocks.push(writer.frame({ direction: "in", time: 1, bytes: numbered(7) }));
    writeFileSync(join(folder, "in.pcapng"), Buffer.concat(blocks));
    const backend = await openNetBackend("pcap:in.pcapng", folder);
    const device = new Device(backend);
    expect(device.ask(numbered(8))).toEqual([numbered(7)]);
    await backend.close();
    const recorded = readPcap(readFileSync(join(folder, "in.pcapng.out.pcapng")));
    expect(recorded.map(({ bytes }) => [...bytes])).toEqual([[...numbered(8)]]);
  });

  it.each([
    ["pcap:nosuch", "NOT_FOUND", "net,backend=pcap:nosuch: no such file"],
    ["stream:nosuch", "NOT_FOUND", "net,backend=stream:nosuch: no such socket"],
    ["loop", "INVALID", "net,backend=loop: is not one of pcap:FILE, stream:SOCKET, tap:IF"],
  ] as const)("that is not there is one clear error: %s", async (backend, code, message) => {
    await expect(openNetBackend(backend, temporaryFolder())).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    });
  });
});

describe("a tap", () => {
  it("that cannot be had is one clear error", async () => {
    await expect(openNetBackend("tap:no/name", ".")).rejects.toMatchObject({
      // The second where there is no /dev/net/tun.
      code: expect.stringMatching(/^(INVALID|UNSUPPORTED)$/),
      message: expect.stringMatching(/^net,backend=tap:no\/name: .*cannot be opened|needs/),
    });
  });
});

/** A folder that ends with the test. */
function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "virtio-net-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** One end of a socket in memory. */
class Wire extends Duplex {
  readonly written: Buffer[] = [];
  done: (() => void) | null = null;

  constructor() {
    super({ writableHighWaterMark: 100 });
  }

  override _read(): void {}

  override _write(chunk: Buffer, _: BufferEncoding, done: () => void): void {
    this.written.push(chunk);
    this.done = done;
  }
}

const framed = (...frames: Uint8Array[]): Buffer =>
  Buffer.concat(
    frames.map((frame) => {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(frame.length);
      return Buffer.concat([length, frame]);
    }),
  );

const settle = async (): Promise<void> => {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
};

describe("a stream as a wire", () => {
  it("finds frames wherever the chunks end", async () => {
    const wire = new Wire();
    const device = new Device(new StreamBackend(wire));
    const bytes = framed(numbered(1), numbered(2, 1514), numbered(3, 14));
    for (const byte of bytes) {
      wire.push(Uint8Array.of(byte));
      await settle();
      device.run();
    }
    expect(device.frames).toEqual([numbered(1), numbered(2, 1514), numbered(3, 14)]);
  });

  it("keeps frames while the device has no room, and reads no more", async () => {
    const wire = new Wire();
    const device = new Device(new StreamBackend(wire));
    device.room = 1;
    wire.push(framed(numbered(1), numbered(2)));
    await settle();
    device.run();
    wire.push(framed(numbered(3)));
    await settle();
    device.run();
    expect(device.frames).toEqual([numbered(1)]);
    expect(wire.readableLength).toBe(64);
    device.make(9);
    await settle();
    device.run();
    expect(device.frames).toEqual([numbered(1), numbered(2), numbered(3)]);
  });

  it("makes the device wait while the socket is full", async () => {
    const wire = new Wire();
    const backend = new StreamBackend(wire);
    const device = new Device(backend);
    let ready = 0;
    backend.onReady = () => {
      ready += 1;
    };
    const frame = numbered(5, 90);
    expect(backend.send(frame, 0, 90)).toBe(true);
    expect(backend.send(frame, 0, 90)).toBe(true);
    expect(backend.send(frame, 0, 90)).toBe(false);
    for (let i = 0; i < 2; i++) {
      wire.done?.();
      await settle();
    }
    device.run();
    expect(ready).toBe(1);
    expect(backend.send(frame, 0, 90)).toBe(true);
    expect(Buffer.concat(wire.written.slice(0, 2))).toEqual(framed(frame, frame));
  });

  it.each([
    ["a length longer than a frame", (wire: Wire) => void wire.push(Buffer.alloc(4, 0xff))],
    ["the end of the socket", (wire: Wire) => void wire.push(null)],
    ["an error of the socket", (wire: Wire) => void wire.destroy(new Error("reset"))],
  ])("loses its link at %s", async (_, end) => {
    const wire = new Wire();
    const backend = new StreamBackend(wire);
    const device = new Device(backend);
    const links: boolean[] = [];
    backend.onLinkChange = () => links.push(backend.linkUp);
    end(wire);
    await settle();
    device.run();
    await settle();
    device.run();
    expect(links).toEqual([false]);
    // A frame that is sent then is lost, as on a cut wire.
    expect(backend.send(numbered(1), 0, 60)).toBe(true);
    expect(wire.written).toEqual([]);
  });

  it("connects to a socket", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "wire.sock");
    const accepted = new Promise<Socket>((resolve) => {
      const server = createServer(resolve).listen(path);
      onTestFinished(() => void server.close());
    });
    const backend = await openNetBackend("stream:wire.sock", folder);
    const device = new Device(backend);
    const socket = await accepted;
    expect(backend.send(numbered(1), 0, 60)).toBe(true);
    expect(await new Promise((resolve) => socket.once("data", resolve))).toEqual(
      framed(numbered(1)),
    );
    const arrived = new Promise<void>((resolve) => {
      const { deliver } = backend;
      backend.deliver = (...frame) => {
        resolve();
        return deliver?.(...frame) ?? false;
      };
    });
    socket.write(framed(numbered(2)));
    const pump = setInterval(() => device.run(), 1);
    await arrived;
    clearInterval(pump);
    expect(device.frames).toEqual([numbered(2)]);
    await backend.close();
    socket.destroy();
  });
});

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type Arp,
  ArpOperation,
  arp,
  DhcpMessageType,
  DhcpPort,
  dhcp,
  EtherType,
  echo,
  ethernet,
  formatIpv4,
  formatIpv6,
  get16,
  IpProtocol,
  type NeighborMessage,
  neighbor,
  parseArp,
  parseDhcp,
  parseEcho,
  parseNeighbor,
  put16,
  tcp,
  udp,
} from "../src/index.js";
import { CLIENT, framesOf, headersOf } from "./captures.js";

const slirp = framesOf("slirp.pcap").map((frame) => frame.bytes);
const at = (index: number): Uint8Array => slirp[index] as Uint8Array;

const four = { source: "10.0.2.15", destination: "10.0.2.2" };
const six = { source: "fe80::5054:ff:fe12:3456", destination: "ff02::1" };

function frameOf(packet: Uint8Array, etherType: EtherType): Uint8Array {
  return ethernet({ destination: CLIENT, source: CLIENT, etherType }, packet);
}

/** What UDP carries in a frame. */
function datagram(frame: Uint8Array): Uint8Array {
  const headers = headersOf(frame);
  expect(headers.protocol).toBe(IpProtocol.UDP);
  return frame.subarray(headers.payload, headers.end);
}

describe("DHCP", () => {
  it("of libslirp is understood: offer and acknowledgement", () => {
    const lease = {
      clientMac: CLIENT,
      clientAddress: "0.0.0.0",
      yourAddress: "10.0.2.15",
      nextServer: "10.0.2.2",
      subnetMask: "255.255.255.0",
      routers: ["10.0.2.2"],
      dnsServers: ["10.0.2.3"],
      serverId: "10.0.2.2",
      leaseTime: 86400,
    };
    expect(parseDhcp(datagram(at(1)))).toMatchObject({
      ...lease,
      type: DhcpMessageType.OFFER,
      transaction: 0x3903f326,
    });
    expect(parseDhcp(datagram(at(3)))).toMatchObject({
      ...lease,
      type: DhcpMessageType.ACK,
      transaction: 0x3903f327,
    });
    expect(get16(at(1), 34)).toBe(DhcpPort.SERVER);
    expect(get16(at(1), 36)).toBe(DhcpPort.CLIENT);
  });

  it("messages come back as they were written, every field", () => {
    const ip = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((bytes) => formatIpv4(bytes));
    const ips = fc.array(ip, { minLength: 1, maxLength: 4 });
    const optional = {
      subnetMask: ip,
      routers: ips,
      dnsServers: ips,
      hostName: fc.string({ minLength: 1, maxLength: 40, unit: "grapheme-ascii" }),
      requestedAddress: ip,
      leaseTime: fc.nat(0xffffffff),
      serverId: ip,
      parameters: fc.array(fc.nat(255), { minLength: 1 }),
      clientId: fc.uint8Array({ minLength: 2, maxLength: 255 }),
    };
    const required = {
      type: fc.integer({ min: 1, max: 8 }),
      transaction: fc.nat(0xffffffff),
      clientMac: fc.constant(CLIENT),
      broadcast: fc.boolean(),
      clientAddress: ip,
      yourAddress: ip,
      nextServer: ip,
    };
    fc.assert(
      fc.property(
        fc.record(required),
        fc.record(optional, { requiredKeys: [] }),
        (fixed, options) => {
          const message = { ...fixed, ...options };
          const bytes = dhcp(message);
          expect(parseDhcp(bytes)).toEqual(message);
          expect(bytes.length).toBeGreaterThanOrEqual(300);
        },
      ),
    );
  });

  it("options too long to write are refused", () => {
    const message = { type: DhcpMessageType.INFORM, transaction: 1, clientMac: CLIENT };
    expect(() => dhcp({ ...message, hostName: "x".repeat(256) })).toThrow(/option 12 of 256/);
  });

  it("that is cut short, of another cookie, direction or length of an option is nothing", () => {
    const good = datagram(at(1));
    expect(parseDhcp(good.subarray(0, 239))).toBeNull();
    for (const [where, value] of [
      [236, 0],
      [0, 1],
      [1, 6],
      [2, 8],
    ] as const) {
      const bad = good.slice();
      bad[where] = value;
      expect(parseDhcp(bad)).toBeNull();
    }
    const message = { type: DhcpMessageType.ACK, transaction: 1, clientMac: CLIENT };
    const bytes = dhcp({ ...message, leaseTime: 60 });
    // Behind the type: option 51, 4 bytes.
    expect([...bytes.subarray(243, 245)]).toEqual([51, 4]);
    bytes[244] = 3;
    expect(parseDhcp(bytes)).toBeNull();
    bytes[244] = 255;
    expect(parseDhcp(bytes)).toBeNull();
  });
});

describe("ARP", () => {
  it("of libslirp is understood", () => {
    expect(parseArp(at(5), headersOf(at(5)))).toEqual({
      operation: ArpOperation.REPLY,
      senderMac: "52:55:0a:00:02:02",
      senderIp: "10.0.2.2",
      targetMac: CLIENT,
      targetIp: "10.0.2.15",
    });
  });

  it("comes back as it was written, and only of IPv4 over Ethernet", () => {
    const packet: Arp = {
      operation: ArpOperation.REQUEST,
      senderMac: CLIENT,
      senderIp: "10.0.2.15",
      targetMac: "00:00:00:00:00:00",
      targetIp: "10.0.2.2",
    };
    const frame = frameOf(arp(packet), EtherType.ARP);
    const headers = headersOf(frame);
    expect(parseArp(frame, headers)).toEqual(packet);
    for (const where of [15, 16, 18, 19]) {
      const other = frame.slice();
      other[where] = 9;
      expect(parseArp(other, headers)).toBeNull();
    }
    expect(parseArp(frame.subarray(0, 41), headersOf(frame.subarray(0, 41)))).toBeNull();
    expect(parseArp(at(7), headersOf(at(7)))).toBeNull();
  });
});

describe("echo", () => {
  it("of libslirp is understood, ICMP and ICMPv6", () => {
    const read = (frame: Uint8Array) => {
      const message = parseEcho(frame, headersOf(frame));
      return message === null ? null : { ...message, data: String.fromCharCode(...message.data) };
    };
    expect(read(at(7))).toEqual({ type: "reply", id: 7, sequence: 1, data: "abcdefghi" });
    expect(read(at(19))).toEqual({ type: "reply", id: 8, sequence: 2, data: "abcdefgh" });
    expect(read(at(9))).toBeNull();
    expect(read(at(13))).toBeNull();
  });

  it("comes back as it was written; not with a wrong checksum", () => {
    const message = { id: 0xfffe, sequence: 0x8001, data: Uint8Array.of(1, 2, 3) };
    for (const type of ["request", "reply"] as const) {
      for (const frame of [
        frameOf(echo(four, { ...message, type }), EtherType.IPV4),
        frameOf(echo(six, { ...message, type }), EtherType.IPV6),
      ]) {
        expect(parseEcho(frame, headersOf(frame))).toEqual({ ...message, type });
        frame[frame.length - 1] = 4;
        expect(parseEcho(frame, headersOf(frame))).toBeNull();
      }
    }
  });
});

describe("neighbor discovery", () => {
  const read = (frame: Uint8Array) => parseNeighbor(frame, headersOf(frame));

  it("of libslirp is understood: router and neighbor advertisements", () => {
    expect(read(at(13))).toEqual({
      type: "router-advertisement",
      hopLimit: 64,
      managed: false,
      other: false,
      lifetime: 1800,
      mac: "52:56:00:00:00:02",
      prefixes: [
        {
          address: "fec0::",
          length: 64,
          onLink: true,
          autonomous: true,
          validLifetime: 86400,
          preferredLifetime: 14400,
        },
      ],
      dnsServers: [],
    });
    expect(read(at(15))).toEqual({
      type: "neighbor-advertisement",
      target: "fec0::2",
      router: true,
      solicited: true,
      override: true,
      mac: "52:56:00:00:00:02",
    });
  });

  it("of Linux is understood: duplicate address detection and router solicitation", () => {
    const kernel = framesOf("kernel.pcapng").map((frame) => frame.bytes);
    // An option with a nonce (RFC 7527) is passed over; from the unspecified address no MAC address is told.
    expect(read(kernel[2] as Uint8Array)).toEqual({
      type: "neighbor-solicitation",
      target: "fe80::a4c9:2fff:fe63:34d",
    });
    expect(read(kernel[7] as Uint8Array)).toEqual({
      type: "router-solicitation",
      mac: "a6:c9:2f:63:03:4d",
    });
  });

  it("comes back as it was written, every field", () => {
    const ip = fc
      .uint8Array({ minLength: 16, maxLength: 16 })
      .map((bytes) => formatIpv6(bytes.with(0, 0xfd)));
    const mac = fc.constant(CLIENT);
    const seconds = fc.nat(0xffffffff);
    const prefix = fc.record({
      address: ip,
      length: fc.nat(128),
      onLink: fc.boolean(),
      autonomous: fc.boolean(),
      validLifetime: seconds,
      preferredLifetime: seconds,
    });
    const some = { requiredKeys: ["type", "target"] as ("type" | "target")[] };
    const message: fc.Arbitrary<NeighborMessage> = fc.oneof(
      fc.record(
        { type: fc.constant("router-solicitation" as const), mac },
        { requiredKeys: ["type"] },
      ),
      fc.record({ type: fc.constant("neighbor-solicitation" as const), target: ip, mac }, some),
      fc.record({
        type: fc.constant("neighbor-advertisement" as const),
        target: ip,
        router: fc.boolean(),
        solicited: fc.boolean(),
        override: fc.boolean(),
        mac,
      }),
      fc.record({
        type: fc.constant("router-advertisement" as const),
        hopLimit: fc.nat(255),
        managed: fc.boolean(),
        other: fc.boolean(),
        lifetime: fc.nat(0xffff),
        mac,
        mtu: fc.nat(0xffffffff),
        prefixes: fc.array(prefix, { maxLength: 3 }),
        dnsServers: fc.array(ip, { maxLength: 3 }),
      }),
    );
    fc.assert(
      fc.property(message, (sent) => {
        const frame = frameOf(neighbor(six, sent), EtherType.IPV6);
        expect(read(frame)).toEqual(sent);
        // A router passed it on (RFC 4861 §3.1).
        frame[21] = 254;
        expect(read(frame)).toBeNull();
      }),
    );
  });

  it("with an option of no length is nothing", () => {
    const packet = neighbor(six, { type: "router-solicitation", mac: CLIENT });
    const frame = frameOf(packet, EtherType.IPV6);
    const checksum = 14 + 40 + 2;
    expect(frame[14 + 40 + 9]).toBe(1);
    frame[14 + 40 + 9] = 0;
    // The checksum is right again: one less in the sum.
    put16(frame, checksum, get16(frame, checksum) + 1);
    expect(read(frame)).toBeNull();
    frame[14 + 40 + 9] = 2;
    put16(frame, checksum, get16(frame, checksum) - 2);
    expect(read(frame)).toBeNull();
  });
});

describe("builders", () => {
  it("refuse what does not fit", () => {
    const header = { ...four, sourcePort: 1, destinationPort: 2 };
    expect(() => udp(header, new Uint8Array(65508))).toThrow(/65536 bytes, more than 65535/);
    expect(udp(header, new Uint8Array(65507)).length).toBe(65535);
    const segment = { ...header, sequence: 0, flags: 0 };
    expect(() => tcp({ ...segment, options: new Uint8Array(3) }, new Uint8Array(0))).toThrow(
      /3 bytes/,
    );
    expect(() => tcp({ ...segment, options: new Uint8Array(44) }, new Uint8Array(0))).toThrow(/44/);
    expect(() => udp({ ...header, destination: "fe80::1" }, new Uint8Array(0))).toThrow(/IPv4/);
  });

  it("write 0xffff where the checksum of UDP comes out as 0", () => {
    const header = { ...four, sourcePort: 1, destinationPort: 2 };
    const payload = new Uint8Array(2);
    // The checksum itself makes the sum whole.
    put16(payload, 0, get16(udp(header, payload), 26));
    expect(get16(udp(header, payload), 26)).toBe(0xffff);
  });
});

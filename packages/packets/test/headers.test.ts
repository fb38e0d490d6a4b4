import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  EtherType,
  echo,
  ethernet,
  Headers,
  IpProtocol,
  ipv4,
  ipv6,
  parseArp,
  parseDhcp,
  parseEcho,
  parseNeighbor,
  put16,
  TcpFlag,
  tcp,
  udp,
  verify,
} from "../src/index.js";
import { CLIENT, framesOf, headersOf } from "./captures.js";

const captured = [...framesOf("slirp.pcap"), ...framesOf("kernel.pcapng")].map(
  (frame) => frame.bytes,
);

const four = { source: "10.0.2.15", destination: "10.0.2.2" };
const six = { source: "fec0::15", destination: "fec0::2" };
const ports = { sourcePort: 40001, destinationPort: 40002 };
const data = Uint8Array.from({ length: 33 }, (_, at) => at);

function frameOf(packet: Uint8Array, vlan?: number): Uint8Array {
  const etherType = packet[0] === 0x60 ? EtherType.IPV6 : EtherType.IPV4;
  const tag = vlan === undefined ? {} : { vlan };
  return ethernet({ destination: "52:55:0a:00:02:02", source: CLIENT, etherType, ...tag }, packet);
}

/** An IPv6 packet whose extension headers are `types`, each of 8 bytes, before UDP. */
function extended(types: readonly number[], fragment = 0): Uint8Array {
  const datagram = udp({ ...six, ...ports }, data).subarray(40);
  const extensions = types.flatMap((_, at) => [
    types[at + 1] ?? IpProtocol.UDP,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
  ]);
  const at = types.indexOf(44);
  if (at >= 0) {
    extensions[at * 8 + 2] = fragment >>> 8;
    extensions[at * 8 + 3] = fragment & 0xff;
  }
  const payload = Uint8Array.from([...extensions, ...datagram]);
  return frameOf(ipv6({ ...six, protocol: types[0] ?? IpProtocol.UDP }, payload));
}

describe("headers", () => {
  it("of TCP, UDP and what is neither are found, with and without a VLAN tag", () => {
    const options = Uint8Array.of(1, 1, 1, 0);
    const flags = TcpFlag.SYN | TcpFlag.ECE;
    for (const vlan of [undefined, 0xe00a]) {
      const l3 = vlan === undefined ? 14 : 18;
      const common = { vlan: vlan ?? -1, l3, fragment: false };
      expect(
        headersOf(frameOf(tcp({ ...four, ...ports, sequence: 1, flags, options }, data), vlan)),
      ).toMatchObject({
        ...common,
        etherType: EtherType.IPV4,
        ip: 4,
        protocol: IpProtocol.TCP,
        l4: l3 + 20,
        l4HeaderLength: 24,
        tcpFlags: 0x42,
        payload: l3 + 44,
        end: l3 + 77,
      });
      expect(headersOf(frameOf(udp({ ...six, ...ports }, data), vlan))).toMatchObject({
        ...common,
        etherType: EtherType.IPV6,
        ip: 6,
        protocol: IpProtocol.UDP,
        l4: l3 + 40,
        l4HeaderLength: 8,
        tcpFlags: 0,
        payload: l3 + 48,
        end: l3 + 81,
      });
      expect(headersOf(frameOf(ipv4({ ...four, protocol: 89 }, data), vlan))).toMatchObject({
        ...common,
        protocol: 89,
        l4: l3 + 20,
        l4HeaderLength: 0,
        payload: l3 + 20,
        end: l3 + 53,
      });
    }
  });

  it("are found in a frame inside a larger array, and say nothing of the frame before", () => {
    const frame = frameOf(tcp({ ...four, ...ports, sequence: 1, flags: TcpFlag.ACK }, data), 7);
    const memory = new Uint8Array(frame.length + 200);
    memory.set(frame, 101);
    const headers = new Headers();
    expect(headers.parse(memory, 101, frame.length)).toBe(true);
    expect(headers).toEqual(headersOf(frame));
    expect(verify(memory, 101, headers)).toBe(true);
    expect(headers.parse(memory, memory.length - 20, 21)).toBe(false);
    expect(headers).toEqual(new Headers());
  });

  it("end before the padding of Ethernet", () => {
    const frame = new Uint8Array(60).fill(0xee);
    frame.set(frameOf(udp({ ...four, ...ports }, data.subarray(0, 3))));
    const headers = headersOf(frame);
    expect(headers.end).toBe(14 + 20 + 8 + 3);
    expect(verify(frame, 0, headers)).toBe(true);
  });

  it("of a fragment stop at IP", () => {
    for (const field of [0x2000, 0x0001, 0x20b9]) {
      const frame = frameOf(udp({ ...four, ...ports }, data));
      put16(frame, 20, field);
      expect(headersOf(frame)).toMatchObject({ fragment: true, l4: -1, payload: 34 });
    }
    for (const field of [0x0001, 0x0008]) {
      expect(headersOf(extended([44], field))).toMatchObject({
        fragment: true,
        protocol: IpProtocol.UDP,
        l4: -1,
        payload: 62,
      });
    }
    // RFC 6946: an atomic fragment is whole.
    expect(headersOf(extended([44]))).toMatchObject({ fragment: false, l4: 62 });
  });

  it("of IPv6 are followed through eight extension headers, no more", () => {
    const frame = extended([0, 60, 43, 60, 60, 60, 60, 60]);
    const headers = headersOf(frame);
    expect(headers).toMatchObject({ protocol: IpProtocol.UDP, l4: 54 + 64, payload: 54 + 72 });
    expect(verify(frame, 0, headers)).toBe(true);
    const more = extended([0, 60, 43, 60, 60, 60, 60, 60, 60]);
    expect(new Headers().parse(more, 0, more.length)).toBe(false);
  });

  it("cut short are refused at each length, but where only payload is missing nothing is", () => {
    const frames = [
      frameOf(tcp({ ...four, ...ports, sequence: 1, flags: TcpFlag.ACK }, data)),
      frameOf(udp({ ...six, ...ports }, data), 5),
      extended([0, 60]),
    ];
    for (const frame of frames) {
      for (let length = 0; length < frame.length; length++) {
        expect(new Headers().parse(frame, 0, length)).toBe(false);
      }
    }
  });

  it.each([
    ["an IP version", 14, 0x55],
    ["an IPv4 header length below 5", 14, 0x44],
    ["an IPv4 header longer than its packet", 14, 0x4f],
    ["a total length below the header's", 17, 19],
    ["a total length beyond the frame", 17, 74],
    ["a TCP data offset below 5", 46, 0x40],
    ["a TCP data offset beyond the packet", 46, 0xf0],
  ])("with %s that cannot be are refused", (_, at, value) => {
    const segment = tcp({ ...four, ...ports, sequence: 1, flags: 0 }, data);
    const frame = frameOf(segment);
    expect(new Headers().parse(frame, 0, frame.length)).toBe(true);
    frame[at] = value;
    expect(new Headers().parse(frame, 0, frame.length)).toBe(false);
  });

  it.each([7, 42])("with a UDP length of %d, of 41, are refused", (length) => {
    const frame = frameOf(udp({ ...four, ...ports }, data));
    put16(frame, 38, length);
    expect(new Headers().parse(frame, 0, frame.length)).toBe(false);
  });

  it("and checksums of what libslirp and Linux sent are right", () => {
    for (const frame of captured) expect(verify(frame, 0, headersOf(frame))).toBe(true);
    // Linux's multicast listener reports stand behind a hop-by-hop header.
    expect(headersOf(framesOf("kernel.pcapng")[0]?.bytes as Uint8Array)).toMatchObject({
      protocol: IpProtocol.ICMPV6,
      l4: 62,
    });
  });

  it("and checksums are wrong where any bit of what they cover is", () => {
    const packets = [
      tcp({ ...four, ...ports, sequence: 1, flags: 0 }, data),
      udp({ ...six, ...ports }, data),
      echo(four, { type: "request", id: 1, sequence: 2, data }),
      echo(six, { type: "request", id: 1, sequence: 2, data }),
    ];
    for (const packet of packets) {
      const frame = frameOf(packet);
      const headers = headersOf(frame);
      expect(verify(frame, 0, headers)).toBe(true);
      // IPv6 has no checksum of its own header: only addresses and what follows.
      for (let at = headers.ip === 4 ? 14 : 22; at < frame.length; at++) {
        for (let bit = 0; bit < 8; bit++) {
          frame[at] = (frame[at] as number) ^ (1 << bit);
          expect(verify(frame, 0, headers)).toBe(false);
          frame[at] = (frame[at] as number) ^ (1 << bit);
        }
      }
    }
  });

  it("without a UDP checksum are right over IPv4, wrong over IPv6", () => {
    for (const [path, right] of [
      [four, true],
      [six, false],
    ] as const) {
      const frame = frameOf(udp({ ...path, ...ports }, data));
      const headers = headersOf(frame);
      put16(frame, headers.l4 + 6, 0);
      expect(verify(frame, 0, headers)).toBe(right);
    }
  });

  it("of frames broken anywhere stay inside the frame, and no parser throws", () => {
    const headers = new Headers();
    const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 });
    fc.assert(
      fc.property(fc.constantFrom(...captured), fc.nat(), changes, (good, end, list) => {
        const frame = good.slice(0, end % 3 === 0 ? end % (good.length + 1) : good.length);
        // The headers are hit more often than the rest.
        for (const [at, value] of list) frame[12 + (at % (at % 2 === 0 ? 60 : 400))] = value;
        const whole = headers.parse(frame, 0, frame.length);
        const { l3, l4, payload, end: last } = headers;
        for (const offset of [l3, l4, payload, last]) {
          expect(offset === -1 || (offset >= 14 && offset <= frame.length)).toBe(true);
        }
        expect(payload).toBeLessThanOrEqual(last);
        if (!whole) return;
        if (l4 >= 0) expect(payload).toBe(l4 + headers.l4HeaderLength);
        verify(frame, 0, headers);
        parseArp(frame, headers);
        parseEcho(frame, headers);
        parseNeighbor(frame, headers);
        parseDhcp(frame.subarray(payload, last));
      }),
      { numRuns: 3000 },
    );
  });
});

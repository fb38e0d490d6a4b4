import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CapturedFrame } from "@virtio/core";
import { VirtioFault } from "@virtio/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  EtherType,
  echo,
  ethernet,
  ipv6,
  PcapngWriter,
  readPcap,
  TcpFlag,
  tcp,
  udp,
} from "../src/index.js";
import { CLIENT, capture, framesOf } from "./captures.js";

const bytes = fc.uint8Array({ maxLength: 70 });
const written = fc.record<CapturedFrame>({
  direction: fc.constantFrom("in", "out"),
  time: fc.integer({ min: 0, max: 2 ** 41 }),
  bytes,
});

function concat(blocks: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(blocks.flatMap((block) => [...block]));
}

function write(frames: readonly CapturedFrame[]): Uint8Array {
  const writer = new PcapngWriter();
  const head = [writer.header(), writer.addInterface("vtnet0"), writer.addInterface("vtnet12")];
  return concat([...head, ...frames.map((frame, at) => writer.frame(frame, at % 2))]);
}

describe("captures", () => {
  it("come back as they were written", () => {
    fc.assert(
      fc.property(fc.array(written, { maxLength: 6 }), (frames) => {
        const read = readPcap(write(frames));
        expect(read.length).toBe(frames.length);
        read.forEach((frame, at) => {
          const from = frames[at] as CapturedFrame;
          expect(frame.direction).toBe(from.direction);
          expect(frame.interface).toBe(at % 2 === 0 ? "vtnet0" : "vtnet12");
          expect(frame.bytes).toEqual(from.bytes);
          expect(frame.length).toBe(from.bytes.length);
          expect(frame.time).toBeCloseTo(from.time, 2);
        });
      }),
    );
  });

  it("keep nanoseconds of the machine's clock", () => {
    const frame: CapturedFrame = { direction: "in", time: 4294.967297, bytes: new Uint8Array(0) };
    expect(readPcap(write([frame]))[0]?.time).toBeCloseTo(4294.967297, 6);
  });

  it("of an interface that was not added are refused", () => {
    const frame: CapturedFrame = { direction: "in", time: 0, bytes: new Uint8Array(14) };
    expect(() => new PcapngWriter().frame(frame)).toThrow(/interface 0 of a capture of 0/);
  });

  it("are read from QEMU's pcap and tshark's pcapng", () => {
    const slirp = framesOf("slirp.pcap");
    expect(slirp.map((frame) => frame.bytes.length)).toEqual([
      342, 590, 342, 590, 42, 64, 51, 60, 47, 60, 58, 60, 70, 110, 86, 86, 86, 86, 70, 70,
    ]);
    expect((slirp[19]?.time ?? 0) - (slirp[0]?.time ?? 0)).toBeCloseTo(2258.675, 2);
    const kernel = framesOf("kernel.pcapng");
    expect(kernel.map((frame) => frame.length)).toEqual([
      90, 90, 86, 86, 90, 90, 90, 70, 90, 70, 90, 90,
    ]);
    expect((kernel[11]?.time ?? 0) - (kernel[0]?.time ?? 0)).toBeCloseTo(2124.022, 2);
  });

  it("are read in big-endian order, and with simple packets", () => {
    const pcap = Uint8Array.from(
      [0xa1b23c4d, 0x00020004, 0, 0, 0x10000, 1, 5, 500_000, 4, 60, 0x01020304].flatMap((word) => [
        word >>> 24,
        (word >>> 16) & 0xff,
        (word >>> 8) & 0xff,
        word & 0xff,
      ]),
    );
    const [frame] = readPcap(pcap);
    expect(frame).toMatchObject({ time: 5000.5, direction: null, interface: null, length: 60 });
    expect([...(frame?.bytes ?? [])]).toEqual([1, 2, 3, 4]);
    const words = [0x0a0d0d0a, 28, 0x1a2b3c4d, 0x10000, -1, -1, 28, 1, 20, 0x10000, 3, 20];
    const simple = [3, 20, 60, 0x01020304, 20];
    const pcapng = Uint8Array.from(
      [...words, ...simple].flatMap((word) => [24, 16, 8, 0].map((by) => (word >>> by) & 0xff)),
    );
    // Its snapshot length is 3.
    expect([...(readPcap(pcapng)[0]?.bytes ?? [])]).toEqual([1, 2, 3]);
  });

  it("of another link type are refused", () => {
    const file = capture("slirp.pcap").slice();
    file[20] = 101;
    expect(() => readPcap(file)).toThrow(/link type 101/);
  });

  it("cut short or broken anywhere give frames or one fault, never anything else", () => {
    const files = [capture("slirp.pcap"), capture("kernel.pcapng")];
    fc.assert(
      fc.property(
        fc.constantFrom(...files),
        fc.nat(),
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
        (file, end, changes) => {
          const broken = file.slice(0, end % (file.length + 1));
          for (const [at, value] of changes) broken[at % (at % 2 ? 160 : file.length)] = value;
          try {
            for (const frame of readPcap(broken)) {
              expect(frame.bytes.length).toBeLessThanOrEqual(broken.length);
            }
          } catch (fault) {
            expect(fault).toBeInstanceOf(VirtioFault);
          }
        },
      ),
      { numRuns: 1000 },
    );
    expect(() => readPcap(capture("slirp.pcap").subarray(0, 200))).toThrow(/at 24/);
  });

  it("and what is in them, are right to tshark", ({ skip }) => {
    if (spawnSync("tshark", ["--version"]).error !== undefined) skip("tshark is not installed");
    const four = { source: "10.0.2.15", destination: "10.0.2.2" };
    const six = { source: "fec0::15", destination: "fec0::2" };
    const ports = { sourcePort: 40001, destinationPort: 40002 };
    const data = Uint8Array.from({ length: 33 }, (_, at) => at);
    const segment = { ...ports, sequence: 7, acknowledgement: 9, flags: TcpFlag.ACK | TcpFlag.PSH };
    const options = Uint8Array.of(2, 4, 5, 0xb4);
    const address = { destination: "52:55:0a:00:02:02", source: CLIENT };
    const frames = [
      ...[udp({ ...four, ...ports }, data), tcp({ ...four, ...segment, options }, data)],
      echo(four, { type: "request", id: 1, sequence: 2, data }),
    ].map((packet) => ethernet({ ...address, etherType: EtherType.IPV4 }, packet));
    frames.push(
      ...[
        udp({ ...six, ...ports }, data),
        tcp({ ...six, ...segment }, data),
        echo(six, { type: "reply", id: 1, sequence: 2, data }),
        ipv6({ ...six, protocol: 59 }, new Uint8Array(0)),
      ].map((packet) => ethernet({ ...address, etherType: EtherType.IPV6, vlan: 0x6005 }, packet)),
    );
    const dir = mkdtempSync(join(tmpdir(), "packets-"));
    try {
      const path = join(dir, "frames.pcapng");
      const file = write(
        frames.map((frame, at) => ({ direction: at % 2 ? "out" : "in", time: at, bytes: frame })),
      );
      writeFileSync(path, file);
      const fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.time_epoch",
        "vlan.id",
        "ip.checksum.status",
        "udp.checksum.status",
        "tcp.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
        "tcp.options.mss_val",
        "_ws.malformed",
      ];
      const checks = ["ip", "udp", "tcp"].flatMap((p) => ["-o", `${p}.check_checksum:TRUE`]);
      const shown = ["-T", "fields", "-E", "separator=,", ...fields.flatMap((f) => ["-e", f])];
      const text = execFileSync("tshark", ["-r", path, ...checks, ...shown], {
        encoding: "utf8",
        stdio: ["ignore", "pipe", "ignore"],
      });
      expect(text.trimEnd().split("\n")).toEqual([
        "vtnet0,0x00000001,0.000000000,,1,1,,,,,",
        "vtnet12,0x00000002,0.001000000,,1,,1,,,1460,",
        "vtnet0,0x00000001,0.002000000,,1,,,1,,,",
        "vtnet12,0x00000002,0.003000000,5,,1,,,,,",
        "vtnet0,0x00000001,0.004000000,5,,,1,,,,",
        "vtnet12,0x00000002,0.005000000,5,,,,,1,,",
        "vtnet0,0x00000001,0.006000000,5,,,,,,,",
      ]);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

// What a driver leaves to the network device when it transmits: checksums, segments, header sizes, hostile headers.
import { DeviceStatus, ReservedFeature } from "@virtio/core";
import { NetFeature, NetGso, NetHeaderFlag } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { frame, GUEST_MAC, look, PEER_MAC, pattern } from "./frames.js";
import { type HeaderFields, NetGuest, type NetGuestOptions, TestWire } from "./net-guest.js";

const outward = { to: PEER_MAC, from: GUEST_MAC };

async function withGuest(
  options: NetGuestOptions,
  body: (guest: NetGuest) => Promise<void>,
): Promise<void> {
  const guest = await NetGuest.start(options);
  try {
    await body(guest);
  } finally {
    await guest.close();
  }
}

const gsoAlone = [NetFeature.MAC, NetFeature.CSUM, NetFeature.GSO];

/** The header in a descriptor of its own, as drivers without ANY_LAYOUT have it. */
async function transmitLegacy(g: NetGuest, bytes: Uint8Array, fields: HeaderFields): Promise<void> {
  g.queue(1).offer([g.header(fields), bytes]);
  await g.ring(1);
  await g.settle();
}

describe("a network device that transmits", () => {
  it("sends a frame as it is, however the driver cut it, and ignores unknown flags and junk offsets", () =>
    withGuest({}, async (g) => {
      const one = frame({ ...outward, payload: 100 });
      const queue = g.queue(1);
      const header = g.header({ flags: 0x80, csumStart: 5000, csumOffset: 60000, hdrLen: 999 });
      const whole = Uint8Array.of(...header, ...one);
      for (const cuts of [[], [12], [5, 20], [12, 13, 60, 61]]) {
        const ends = [...cuts, whole.length];
        queue.offer(ends.map((end, i) => whole.slice(ends[i - 1] ?? 0, end)));
        await g.ring(1);
      }
      await g.settle();
      expect(queue.used().map(({ length }) => length)).toEqual([0, 0, 0, 0]);
      expect(g.wire.sent).toEqual([one, one, one, one]);
    }));

  for (const ip of [4, 6] as const)
    for (const protocol of ["tcp", "udp"] as const)
      for (const vlan of [undefined, 5])
        it(`completes the checksum of ${protocol} over IPv${ip}${vlan ? " in a VLAN" : ""}`, () =>
          withGuest({}, async (g) => {
            const spec = { ...outward, ip, protocol, payload: 333, ...(vlan ? { vlan } : {}) };
            const csumStart = (vlan ? 18 : 14) + (ip === 4 ? 20 : 40);
            await g.transmit([frame(spec, true)], {
              flags: NetHeaderFlag.NEEDS_CSUM,
              csumStart,
              csumOffset: protocol === "tcp" ? 16 : 6,
            });
            expect(g.wire.sent).toEqual([frame(spec)]);
            expect(look(g.wire.sent[0] ?? new Uint8Array()).problems).toEqual([]);
            expect(g.clauses()).toEqual([]);
          }));

  it("stores 0xffff where a UDP checksum is 0", () =>
    withGuest({}, async (g) => {
      // The two bytes that make the sum all ones are found by trying.
      const spec = (n: number) => ({
        ...outward,
        protocol: "udp" as const,
        payload: Uint8Array.of(n >> 8, n & 0xff),
      });
      const n = Array.from({ length: 0x1_0000 }, (_, i) => i).find((value) => {
        const bytes = frame(spec(value));
        return bytes[40] === 0xff && bytes[41] === 0xff;
      });
      if (n === undefined) throw new Error("there is one");
      await g.transmit([frame(spec(n), true)], { flags: 1, csumStart: 34, csumOffset: 6 });
      expect(g.wire.sent).toEqual([frame(spec(n))]);
    }));

  for (const ip of [4, 6] as const)
    for (const [gsoSize, payload] of [
      [1448, 20_000],
      [1448, 1448 * 3],
      [536, 30_000],
      [1, 5],
      [1448, 100],
    ] as const)
      for (const vlan of [undefined, 77])
        it(`cuts ${payload} bytes of TCP over IPv${ip}${vlan ? " in a VLAN" : ""} into segments of ${gsoSize}`, () =>
          withGuest({}, async (g) => {
            // FIN, PSH, ACK and CWR; options of 12 bytes.
            const spec = { ...outward, ip, payload, flags: 0x99, options: 12, id: 0xfffe };
            const tagged = vlan === undefined ? spec : { ...spec, vlan };
            const l4 = (vlan ? 18 : 14) + (ip === 4 ? 20 : 40);
            await g.transmit([frame({ ...tagged, sequence: 0xffff_fff0 }, true)], {
              flags: NetHeaderFlag.NEEDS_CSUM,
              gsoType: (ip === 4 ? NetGso.TCPV4 : NetGso.TCPV6) | NetGso.ECN,
              gsoSize,
              hdrLen: l4 + 32,
              csumStart: l4,
              csumOffset: 16,
            });
            const count = Math.ceil(payload / gsoSize);
            const data = pattern(payload);
            const seen = g.wire.sent.map(look);
            expect(seen.flatMap(({ problems }) => problems)).toEqual([]);
            expect(seen.map(({ payload: bytes }) => bytes.length)).toEqual(
              Array.from({ length: count }, (_, i) => Math.min(gsoSize, payload - i * gsoSize)),
            );
            expect(Uint8Array.from(seen.flatMap(({ payload: bytes }) => [...bytes]))).toEqual(data);
            for (const [i, { sequence, flags, id }] of seen.entries()) {
              expect(sequence).toBe((0xffff_fff0 + i * gsoSize) % 2 ** 32);
              expect(id).toBe(ip === 4 ? (0xfffe + i) & 0xffff : 0);
              const last = i === count - 1 ? 0x09 : 0;
              expect(flags).toBe(0x10 | last | (i === 0 ? 0x80 : 0));
            }
            // Everything before the lengths is each segment's.
            for (const bytes of g.wire.sent)
              expect(bytes.slice(0, 14)).toEqual(frame(tagged).slice(0, 14));
            expect(g.clauses()).toEqual([]);
            expect(g.port.counters).toMatchObject({ transmitted: 1, segments: count });
          }));

  it("does not rely on hdr_len when it cuts", () =>
    withGuest({}, async (g) => {
      for (const hdrLen of [0, 0xffff])
        await g.transmit([frame({ ...outward, payload: 3000 }, true)], {
          flags: 1,
          gsoType: NetGso.TCPV4,
          gsoSize: 1000,
          hdrLen,
          csumStart: 34,
          csumOffset: 16,
        });
      expect(g.wire.sent).toHaveLength(6);
      expect(g.wire.sent.flatMap((bytes) => look(bytes).problems)).toEqual([]);
    }));

  for (const ip of [4, 6] as const)
    it(`cuts UDP over IPv${ip} into datagrams`, () =>
      withGuest({}, async (g) => {
        const l4 = ip === 4 ? 34 : 54;
        const spec = { ...outward, ip, protocol: "udp" as const, payload: 2500 };
        await g.transmit([frame(spec, true)], {
          flags: 1,
          gsoType: NetGso.UDP_L4,
          gsoSize: 1000,
          hdrLen: l4 + 8,
          csumStart: l4,
          csumOffset: 6,
        });
        const seen = g.wire.sent.map(look);
        expect(seen.flatMap(({ problems }) => problems)).toEqual([]);
        expect(seen.map(({ payload }) => payload.length)).toEqual([1000, 1000, 500]);
        expect(seen.flatMap(({ payload }) => [...payload])).toEqual([...pattern(2500)]);
      }));

  it("goes on with the segment that the wire had no room for, when it has", () =>
    withGuest({}, async (g) => {
      const spec = { ...outward, payload: 5000 };
      g.wire.credit = 2;
      const fields = { flags: 1, gsoType: NetGso.TCPV4, gsoSize: 1000, hdrLen: 54 };
      const back = await g.transmit([frame(spec, true), frame(spec, true)], {
        ...fields,
        csumStart: 34,
        csumOffset: 16,
      });
      expect([back, g.wire.sent.length]).toEqual([0, 2]);
      // Doorbells change nothing while there is no room.
      await g.ring(1);
      await g.settle();
      expect(g.wire.sent).toHaveLength(2);
      for (const credit of [1, 100]) {
        g.wire.credit = credit;
        g.wire.onReady?.();
        await g.settle();
      }
      expect(g.queue(1).used()).toHaveLength(2);
      expect(g.wire.sent).toHaveLength(10);
      expect(g.wire.sent.flatMap((bytes) => look(bytes).problems)).toEqual([]);
      const data = g.wire.sent.slice(0, 5).flatMap((bytes) => [...look(bytes).payload]);
      expect(data).toEqual([...pattern(5000)]);
    }));

  it("forgets half a frame when the device, or the queue, is reset", () =>
    withGuest({}, async (g) => {
      const spec = { ...outward, payload: 3000 };
      const fields = { flags: 1, gsoType: 1, gsoSize: 1000, csumStart: 34, csumOffset: 16 };
      for (const how of ["device", "queue"]) {
        g.wire.credit = 1;
        await g.transmit([frame(spec, true)], { ...fields, hdrLen: 54 });
        if (how === "device") await g.run();
        else {
          await g.resetQueue(1);
          await g.enable(1);
        }
        g.wire.sent.length = 0;
        g.wire.credit = 100;
        await g.transmit([frame(spec, true)], { ...fields, hdrLen: 54 });
        expect(g.wire.sent).toHaveLength(3);
      }
    }));

  it("is suspended though a frame waits for the wire, sends nothing meanwhile, and goes on when resumed", () =>
    withGuest({ start: false }, async (g) => {
      await g.run(undefined, [ReservedFeature.SUSPEND]);
      await g.post(2, 2000);
      g.wire.credit = 0;
      await g.transmit([frame(outward)]);
      await g.status(15 | DeviceStatus.SUSPEND);
      await g.settle();
      expect((await g.readStatus()) & DeviceStatus.SUSPEND).not.toBe(0);
      g.wire.credit = 9;
      g.wire.onReady?.();
      expect(g.wire.give(frame())).toEqual([true]);
      await g.settle();
      expect([g.wire.sent, g.received(), g.queue(1).used()]).toEqual([[], [], []]);
      await g.status(15);
      await g.settle();
      expect(g.wire.sent).toEqual([frame(outward)]);
      g.wire.give(frame());
      await g.settle();
      expect(g.received()).toHaveLength(1);
    }));

  it("forwards a frame of the MTU and its Ethernet header whole, tagged too, and no longer one", () =>
    withGuest({ mtu: 2000 }, async (g) => {
      const frames = [2000, 2004, 2001].map((size, i) => {
        const bytes = frame({ ...outward, payload: size - 40, ...(i === 1 ? { vlan: 3 } : {}) });
        return bytes.slice(0, 14 + size);
      });
      expect(frames.map(({ length }) => length)).toEqual([2014, 2018, 2015]);
      expect(await g.transmit(frames)).toBe(3);
      expect(g.wire.sent).toEqual(frames.slice(0, 2));
      expect(g.port.counters.malformed).toBe(1);
    }));

  it("drops frames while the link is down, and gives the buffers back", () =>
    withGuest({}, async (g) => {
      g.wire.linkUp = false;
      const spec = { ...outward, payload: 3000 };
      expect(await g.transmit([frame(outward)])).toBe(1);
      const fields = { flags: 1, gsoType: 1, gsoSize: 1000, csumStart: 34, csumOffset: 16 };
      expect(await g.transmit([frame(spec, true)], { ...fields, hdrLen: 54 })).toBe(1);
      expect(g.wire.sent).toEqual([]);
      expect(g.port.counters.unlinked).toBe(2);
    }));

  it("sends more frames than it takes in a turn", () =>
    withGuest({ queueSize: 256 }, async (g) => {
      const frames = Array.from({ length: 200 }, (_, id) => frame({ ...outward, id }));
      expect(await g.transmit(frames)).toBe(200);
      expect(g.wire.sent).toEqual(frames);
    }));

  for (const [accept, size] of [
    [[NetFeature.CSUM], 10],
    [[NetFeature.CSUM, NetFeature.MRG_RXBUF], 12],
  ] as const)
    it(`reads a legacy header of ${size} bytes`, () =>
      withGuest({ legacy: "on", accept }, async (g) => {
        expect(g.headerSize).toBe(size);
        const spec = { ...outward, payload: 50 };
        const header = g.header({ flags: 1, csumStart: 34, csumOffset: 16 });
        g.queue(1).offer([header, frame(spec, true)]);
        await g.ring(1);
        await g.settle();
        expect(g.wire.sent).toEqual([frame(spec)]);
      }));

  for (const [what, gsoType, spec, l4] of [
    ["TCP over IPv4", NetGso.TCPV4, {}, 34],
    ["TCP over IPv6 with ECN", NetGso.TCPV6 | NetGso.ECN, { ip: 6, flags: 0x90 }, 54],
    ["a UDP datagram", NetGso.UDP, { protocol: "udp" }, 34],
  ] as const)
    it(`cuts ${what} for a legacy driver that accepted GSO alone (§5.1.3.2)`, () =>
      withGuest({ legacy: "on", accept: gsoAlone }, async (g) => {
        const whole = { ...outward, ...spec, payload: 3000 };
        await transmitLegacy(g, frame(whole, true), {
          flags: NetHeaderFlag.NEEDS_CSUM,
          gsoType,
          gsoSize: 1000,
          hdrLen: 100,
          csumStart: l4,
          csumOffset: gsoType === NetGso.UDP ? 6 : 16,
        });
        expect(g.wire.sent.length).toBeGreaterThan(2);
        // What the fragments hold is another file's matter.
        if (gsoType !== NetGso.UDP) {
          const seen = g.wire.sent.map(look);
          expect(seen.flatMap(({ problems }) => problems)).toEqual([]);
          expect(seen.flatMap(({ payload }) => [...payload])).toEqual([...pattern(3000)]);
        }
        expect(g.port.counters).toMatchObject({ transmitted: 1, malformed: 0 });
        expect(g.clauses()).toEqual([]);
      }));

  it("cuts no UDP into datagrams for GSO alone, which is older", () =>
    withGuest({ legacy: "on", accept: gsoAlone }, async (g) => {
      const asked = { flags: 1, gsoType: NetGso.UDP_L4, gsoSize: 1000, hdrLen: 42 };
      const bytes = frame({ ...outward, protocol: "udp", payload: 2500 }, true);
      await transmitLegacy(g, bytes, { ...asked, csumStart: 34, csumOffset: 6 });
      expect([g.wire.sent, g.port.counters.malformed]).toEqual([[], 1]);
      expect(g.clauses().sort()).toEqual(["NET-TX-12", "NET-TX-13"]);
    }));

  it("reads a header of 20 bytes with HASH_REPORT", () =>
    withGuest({ features: { HASH_REPORT: true } }, async (g) => {
      expect(g.headerSize).toBe(20);
      await g.transmit([frame(outward)]);
      expect(g.wire.sent).toEqual([frame(outward)]);
      expect(g.clauses()).toEqual([]);
    }));
});

describe("a network device with a hostile driver", () => {
  const good = frame({ ...outward, payload: 3000 }, true);
  const tso = { flags: 1, gsoType: NetGso.TCPV4 as number, gsoSize: 1000, hdrLen: 54 };
  const sums = { csumStart: 34, csumOffset: 16 };
  const cut = (bytes: Uint8Array, at: number, value: number): Uint8Array => {
    const other = bytes.slice();
    other[at] = value;
    return other;
  };
  const cases: readonly (readonly [what: string, parts: (g: NetGuest) => Uint8Array[]])[] = [
    ["a header cut short", (g) => [g.header().slice(0, 11)]],
    ["no frame", (g) => [g.header()]],
    ["a frame of 13 bytes", (g) => [g.header(), new Uint8Array(13)]],
    ["a checksum beyond the frame", (g) => [g.header({ flags: 1, csumStart: 65535 }), good]],
    [
      "a checksum at the frame's end",
      (g) => [g.header({ flags: 1, csumStart: 34, csumOffset: good.length - 35 }), good],
    ],
    ["gso_size 0", (g) => [g.header({ ...tso, ...sums, gsoSize: 0 }), good]],
    ["segments without NEEDS_CSUM", (g) => [g.header({ ...tso, flags: 0 }), good]],
    [
      "segments longer than the wire takes",
      (g) => [
        g.header({ ...tso, ...sums, gsoSize: 9300 }),
        frame({ ...outward, payload: 20_000 }, true),
      ],
    ],
    ["TSO6 of IPv4", (g) => [g.header({ ...tso, ...sums, gsoType: 4 }), good]],
    [
      "TSO of UDP",
      (g) => [g.header({ ...tso, ...sums }), frame({ ...outward, protocol: "udp" }, true)],
    ],
    ["an unknown kind of segments", (g) => [g.header({ ...tso, ...sums, gsoType: 2 }), good]],
    ["fragments, which are not offered", (g) => [g.header({ ...tso, ...sums, gsoType: 3 }), good]],
    ["both tunnel bits", (g) => [g.header({ ...tso, ...sums, gsoType: 0x61 }), good]],
    [
      "an IPv4 length beyond the frame",
      (g) => [g.header({ ...tso, ...sums }), cut(good, 16, 0xff)],
    ],
    [
      "a TCP header beyond the frame",
      (g) => [
        g.header({ ...tso, ...sums }),
        cut(frame({ ...outward, payload: 4 }, true), 46, 0xf0),
      ],
    ],
    ["a fragment to be cut", (g) => [g.header({ ...tso, ...sums }), cut(good, 20, 0x20)]],
    ["an ARP frame to be cut", (g) => [g.header({ ...tso, ...sums }), cut(good, 13, 6)]],
    ["a giant frame", (g) => [g.header(), new Uint8Array(9235)]],
    ["a giant frame to be cut", (g) => [g.header({ ...tso, ...sums }), new Uint8Array(70_000)]],
  ];
  for (const [what, parts] of cases)
    it(`drops and counts ${what}, and goes on`, () =>
      withGuest({}, async (g) => {
        g.queue(1).offer(parts(g));
        await g.ring(1);
        await g.settle();
        expect(g.queue(1).used()).toHaveLength(1);
        expect(g.wire.sent).toEqual([]);
        expect(g.port.counters).toMatchObject({ malformed: 1, transmitted: 0 });
        await g.transmit([frame(outward)]);
        expect(g.wire.sent).toEqual([frame(outward)]);
      }));

  it("drops what was not negotiated", () =>
    withGuest({ accept: [NetFeature.MAC] }, async (g) => {
      for (const fields of [{ flags: 1 }, { gsoType: 1, gsoSize: 100 }])
        await g.transmit([good.slice(0, 1000)], { ...fields, ...sums });
      expect(g.wire.sent).toEqual([]);
      expect(g.port.counters.malformed).toBe(2);
    }));

  it("takes a chain with writable bytes for what is readable in it", () =>
    withGuest({}, async (g) => {
      g.queue(1).offer([Uint8Array.of(...g.header(), ...frame(outward)), 100]);
      g.queue(1).offer([100]);
      await g.ring(1);
      await g.settle();
      expect(
        g
          .queue(1)
          .used()
          .map(({ length }) => length),
      ).toEqual([0, 0]);
      expect(g.wire.sent).toEqual([frame(outward)]);
      expect(g.port.counters.malformed).toBe(1);
    }));

  it("refuses to be made on a wire too short for its MTU", async () => {
    await expect(NetGuest.start({ mtu: 9000, backend: new TestWire(1518) })).rejects.toMatchObject({
      code: "INVALID",
    });
  });
});

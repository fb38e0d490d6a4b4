// UDP datagrams of one flow that the network device puts together for the driver (GUEST_USO4, GUEST_USO6).
import { NetFeature, NetGso, NetHeaderFlag } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { type FrameSpec, frame, pattern } from "./frames.js";
import { le32, NetGuest, type NetGuestOptions, type Received } from "./net-guest.js";

const { MAC, CTRL_VQ, CTRL_GUEST_OFFLOADS, GUEST_CSUM, GUEST_USO4, GUEST_USO6, MRG_RXBUF } =
  NetFeature;

async function withGuest(
  options: NetGuestOptions,
  body: (guest: NetGuest) => Promise<void>,
  [buffers, length]: readonly [number, number] = [60, 2048],
): Promise<void> {
  const features = { GUEST_USO4: true, GUEST_USO6: true };
  const guest = await NetGuest.start({ features, ...options });
  try {
    await guest.post(buffers, length);
    await body(guest);
  } finally {
    await guest.close();
  }
}

/** Gives frames to the device in one batch; what the driver got. */
async function give(g: NetGuest, ...frames: readonly Uint8Array[]): Promise<Received[]> {
  expect(g.wire.give(...frames)).not.toContain(false);
  await g.settle();
  return g.received();
}

/** Datagrams that follow each other. */
const datagrams = (count: number, size: number, spec: FrameSpec = {}): Uint8Array[] =>
  Array.from({ length: count }, (_, i) =>
    frame({ protocol: "udp", ...spec, id: i, payload: pattern(size, i * size) }),
  );

/** What datagrams are together: one whose checksum is partial, and what its header says. */
function expectTogether(
  received: Received | undefined,
  payload: Uint8Array,
  size: number,
  spec: FrameSpec = {},
): void {
  if (received === undefined) throw new Error("nothing came");
  const { header, frame: bytes } = received;
  const l4 = (spec.vlan === undefined ? 14 : 18) + (spec.ip === 6 ? 40 : 20);
  expect(bytes).toEqual(frame({ protocol: "udp", ...spec, id: 0, payload }, true));
  expect([header.getUint8(0), header.getUint8(1)]).toEqual([
    NetHeaderFlag.NEEDS_CSUM,
    NetGso.UDP_L4,
  ]);
  expect([2, 4, 6, 8].map((at) => header.getUint16(at, true))).toEqual([l4 + 8, size, l4, 6]);
}

/** Frames that came as they are: flags, gso_type and bytes. */
const plain = (received: readonly Received[]): unknown[] =>
  received.map(({ header, frame: bytes }) => [header.getUint8(0), header.getUint8(1), bytes]);
const valid = (bytes: Uint8Array): unknown => [NetHeaderFlag.DATA_VALID, NetGso.NONE, bytes];
const unknown = (bytes: Uint8Array): unknown => [0, NetGso.NONE, bytes];

const broken = (bytes: Uint8Array): Uint8Array => {
  const other = bytes.slice();
  other[other.length - 1] = (other[other.length - 1] ?? 0) ^ 1;
  return other;
};

/** Bytes behind the datagram, in its IPv4 packet. */
const trailed = (bytes: Uint8Array): Uint8Array => {
  const other = Uint8Array.of(...bytes, 1, 2);
  other[17] = (other[17] ?? 0) + 2;
  other[25] = (other[25] ?? 0) - 2;
  return other;
};

describe("UDP datagrams that follow each other", () => {
  for (const ip of [4, 6] as const)
    for (const [merge, buffers] of [
      [true, [60, 2048]],
      [false, [2, 66_000]],
    ] as const)
      it(`come as one packet, IPv${ip}, in ${merge ? "merged buffers" : "one buffer"}`, () => {
        const accept = [MAC, GUEST_CSUM, GUEST_USO4, GUEST_USO6, ...(merge ? [MRG_RXBUF] : [])];
        return withGuest(
          { accept },
          async (g) => {
            const spec = { ip, vlan: 9 };
            const received = await give(g, ...datagrams(30, 1401, spec));
            expect(received).toHaveLength(1);
            expectTogether(received[0], pattern(30 * 1401), 1401, spec);
            expect(g.port.counters).toMatchObject({ received: 1, coalesced: 30 });
            expect(g.clauses()).toEqual([]);
          },
          buffers,
        );
      });

  it("end with a shorter one; what follows begins anew", () =>
    withGuest({}, async (g) => {
      const last = frame({ protocol: "udp", payload: pattern(60, 200) });
      const received = await give(g, ...datagrams(2, 100), last, ...datagrams(3, 60));
      expect(received).toHaveLength(2);
      expectTogether(received[0], pattern(260), 100);
      expectTogether(received[1], pattern(180), 60);
    }));

  it("stay together while they are of one length: a longer one begins anew", () =>
    withGuest({}, async (g) => {
      const received = await give(g, ...datagrams(2, 100), ...datagrams(2, 101));
      expect(received).toHaveLength(2);
      expectTogether(received[0], pattern(200), 100);
      expectTogether(received[1], pattern(202), 101);
    }));

  it("are no more than an IP packet holds", () =>
    withGuest({ queueSize: 256 }, async (g) => {
      await g.post(60, 2048);
      const received = await give(g, ...datagrams(60, 1400));
      expect(received.map(({ frame: bytes }) => (bytes.length - 42) / 1400)).toEqual([46, 14]);
    }));

  it("are put together per flow, and apart from TCP of the same ports", () =>
    withGuest({}, async (g) => {
      const one = datagrams(3, 100);
      const other = datagrams(3, 100, { ports: [1000, 81] });
      const third = datagrams(3, 100, { hosts: [3, 2] });
      const tcp = frame();
      const mixed = one.flatMap((bytes, i) => [bytes, other[i] ?? bytes, third[i] ?? bytes, tcp]);
      const received = await give(g, ...mixed);
      const all = received.filter(({ header }) => header.getUint8(1) === NetGso.UDP_L4);
      expect(all).toHaveLength(3);
      expectTogether(all[0], pattern(300), 100);
      expectTogether(all[1], pattern(300), 100, { ports: [1000, 81] });
      expectTogether(all[2], pattern(300), 100, { hosts: [3, 2] });
      const rest = received.filter((seen) => !all.includes(seen));
      expect(plain(rest)).toEqual([tcp, tcp, tcp].map(valid));
    }));

  it("come as they are, one by one, where nothing follows", () =>
    withGuest({}, async (g) => {
      const [bytes] = datagrams(1, 100);
      if (bytes === undefined) throw new Error("one");
      // Padding of Ethernet is not the datagram's.
      for (const given of [bytes, Uint8Array.of(...bytes, 0, 0)])
        expect(plain(await give(g, given))).toEqual([valid(bytes)]);
      expect(g.port.counters.coalesced).toBe(0);
    }));

  const [first = frame(), second = frame(), third = frame()] = datagrams(3, 100);
  const unsummed = second.slice();
  unsummed.fill(0, 40, 42);
  const fragment = second.slice();
  fragment[20] = 0x20;
  for (const [what, odd, is] of [
    ["without a checksum", unsummed, unknown],
    ["whose checksum is wrong", broken(second), unknown],
    ["without payload", frame({ protocol: "udp", payload: 0 }), valid],
    ["of another type of service", frame({ protocol: "udp", payload: 100, tos: 4 }), valid],
    ["with bytes behind it in its packet", trailed(second), valid],
  ] as const)
    it(`are not put together with one ${what}; the order stays`, () =>
      withGuest({}, async (g) => {
        expect(plain(await give(g, first, odd, third))).toEqual([
          valid(first),
          is(odd),
          valid(third),
        ]);
      }));

  it("are not put together with a fragment", () =>
    withGuest({}, async (g) => {
      const received = await give(g, first, fragment, third);
      expect(received.map(({ header }) => header.getUint8(1)).sort()).toEqual([0, 5]);
      expect(plain(received)).toContainEqual(unknown(fragment));
    }));

  for (const [accepted, other] of [
    [GUEST_USO4, 6],
    [GUEST_USO6, 4],
  ] as const)
    it(`stay separate over IPv${other} with ${NetFeature[accepted]} alone`, () =>
      withGuest({ accept: [GUEST_CSUM, accepted, MRG_RXBUF] }, async (g) => {
        const apart = datagrams(3, 100, { ip: other });
        expect(plain(await give(g, ...apart))).toEqual(apart.map(valid));
        const ip = other === 4 ? 6 : 4;
        const [received] = await give(g, ...datagrams(3, 100, { ip }));
        expectTogether(received, pattern(300), 100, { ip });
        // Nor are segments of TCP.
        const segments = [1, 101].map((sequence) => frame({ sequence, payload: 100 }));
        expect(plain(await give(g, ...segments))).toEqual(segments.map(valid));
      }));

  it("stay separate without the feature", () =>
    withGuest({ features: {} }, async (g) => {
      expect([g.accepted.includes(GUEST_USO4), g.accepted.includes(GUEST_USO6)]).toEqual([
        false,
        false,
      ]);
      const apart = datagrams(3, 100);
      expect(plain(await give(g, ...apart))).toEqual(apart.map(valid));
    }));

  it("follow what the driver switches, within what it accepted", () => {
    const accept = [MAC, CTRL_VQ, CTRL_GUEST_OFFLOADS, GUEST_CSUM, GUEST_USO4, MRG_RXBUF];
    return withGuest({ accept }, async (g) => {
      const all = datagrams(3, 100);
      const set = async (...features: readonly NetFeature[]): Promise<number> => {
        const words = [1 << GUEST_CSUM, 0];
        for (const bit of features) words[1] = (words[1] ?? 0) | (1 << (bit - 32));
        return (await g.command(5, 0, words.flatMap(le32))).ack;
      };
      expectTogether((await give(g, ...all))[0], pattern(300), 100);
      expect(await set()).toBe(0);
      expect(plain(await give(g, ...all))).toEqual(all.map(valid));
      expect(await set(GUEST_USO4)).toBe(0);
      expectTogether((await give(g, ...all))[0], pattern(300), 100);
      expect(g.clauses()).toEqual([]);
      expect(await set(GUEST_USO4, GUEST_USO6)).toBe(1);
      expect(g.clauses()).toEqual(["NET-OFFLOAD-1"]);
    });
  });

  it("wait for buffers, and nothing is lost", () =>
    withGuest(
      {},
      async (g) => {
        expect(await give(g, ...datagrams(10, 1000))).toEqual([]);
        await g.post(10, 2048);
        expectTogether(g.received()[0], pattern(10_000), 1000);
      },
      [1, 2048],
    ));
});

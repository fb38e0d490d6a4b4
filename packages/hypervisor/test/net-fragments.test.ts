// UDP datagrams that a driver leaves to the network device to be fragmented (HOST_UFO).
import { NetGso, NetHeaderFlag } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { checksum, frame, GUEST_MAC, PEER_MAC, pattern } from "./frames.js";
import { type HeaderFields, NetGuest } from "./net-guest.js";

const outward = { to: PEER_MAC, from: GUEST_MAC, protocol: "udp" } as const;

async function withGuest(body: (guest: NetGuest) => Promise<void>): Promise<void> {
  const guest = await NetGuest.start({ features: { HOST_UFO: true } });
  try {
    await body(guest);
  } finally {
    await guest.close();
  }
}

/** What asks for fragments of a datagram whose UDP header is at `l4`. */
const ufo = (gsoSize: number, l4 = 34): HeaderFields => ({
  flags: NetHeaderFlag.NEEDS_CSUM,
  gsoType: NetGso.UDP,
  gsoSize,
  hdrLen: l4 + 8,
  csumStart: l4,
  csumOffset: 6,
});

/** A fragment, taken apart. */
interface Fragment {
  /** All before the data, without lengths, offset, flags and checksum. */
  readonly head: readonly number[];
  readonly id: number;
  readonly offset: number;
  readonly more: boolean;
  /** What an IPv6 fragment header says that it holds. */
  readonly next: number;
  readonly data: readonly number[];
}

/** Takes a fragment apart whose IPv4 header, or IPv6 headers, end at `end`; lengths and the header's checksum must be right. */
function fragmentOf(bytes: Uint8Array, l3: number, end: number): Fragment {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const four = view.getUint16(l3 - 2) === 0x800;
  expect(view.getUint16(l3 + (four ? 2 : 4))).toBe(bytes.length - l3 - (four ? 0 : 40));
  const head = [...bytes.subarray(0, end)];
  if (four) {
    expect(checksum(head.slice(l3))).toBe(0);
    for (const at of [2, 3, 6, 7, 10, 11]) head[l3 + at] = 0;
    const word = view.getUint16(l3 + 6);
    // Neither the reserved bit nor "don't fragment".
    expect(word & 0xc000).toBe(0);
    const [id, offset, more] = [view.getUint16(l3 + 4), (word & 0x1fff) * 8, word >= 0x2000];
    return { head, id, offset, more, next: 17, data: [...bytes.subarray(end)] };
  }
  for (const at of [4, 5]) head[l3 + at] = 0;
  const word = view.getUint16(end + 2);
  expect([bytes[end + 1], word & 6]).toEqual([0, 0]);
  return {
    head,
    id: view.getUint32(end + 4),
    offset: word & 0xfff8,
    more: (word & 1) === 1,
    next: bytes[end] ?? -1,
    data: [...bytes.subarray(end + 8)],
  };
}

/** The fragments must be of one datagram, in order, all but the last of the most bytes there can be. Returns their data. */
function whole(fragments: readonly Fragment[], size: number): number[] {
  const data = fragments.flatMap((fragment) => fragment.data);
  const most = size - (size % 8);
  const count = Math.ceil(data.length / most);
  expect(fragments.map(({ offset }) => offset)).toEqual(
    Array.from({ length: count }, (_, i) => i * most),
  );
  expect(fragments.map(({ data: { length } }) => length)).toEqual(
    Array.from({ length: count }, (_, i) => Math.min(most, data.length - i * most)),
  );
  expect(fragments.map(({ more }) => more)).toEqual(
    Array.from({ length: count }, (_, i) => i < count - 1),
  );
  expect(new Set(fragments.map(({ id }) => id)).size).toBe(1);
  return data;
}

describe("a network device with HOST_UFO", () => {
  for (const ip of [4, 6] as const)
    for (const [gsoSize, payload] of [
      [1480, 30_000],
      [1477, 5000],
      [1400, 2792],
      [1400, 2793],
      [1448, 1441],
      [8, 100],
      [9000, ip === 4 ? 65_507 : 65_487],
    ] as const)
      for (const vlan of [undefined, 77])
        it(`cuts ${payload} bytes over IPv${ip}${vlan ? " in a VLAN" : ""} into fragments of ${gsoSize}`, () =>
          withGuest(async (g) => {
            const l3 = vlan === undefined ? 14 : 18;
            const l4 = l3 + (ip === 4 ? 20 : 40);
            const spec = { ...outward, ip, payload, id: 0xabcd, ...(vlan ? { vlan } : {}) };
            await g.transmit([frame(spec, true)], ufo(gsoSize, l4));
            const right = frame(spec);
            const fragments = g.wire.sent.map((bytes) => fragmentOf(bytes, l3, l4));
            // The checksum is of the whole datagram.
            expect(whole(fragments, gsoSize)).toEqual([...right.subarray(l4)]);
            const head = [...right.subarray(0, l4)];
            const cleared = ip === 4 ? [2, 3, 6, 7, 10, 11] : [4, 5];
            for (const at of cleared) head[l3 + at] = 0;
            if (ip === 6) head[l3 + 6] = 44;
            for (const { head: seen, id, next } of fragments) {
              expect(seen).toEqual(head);
              expect(next).toBe(17);
              if (ip === 4) expect(id).toBe(0xabcd);
            }
            expect(g.clauses()).toEqual([]);
            const { transmitted, segments } = g.port.counters;
            expect([transmitted, segments]).toEqual([1, fragments.length]);
          }));

  for (const ip of [4, 6] as const)
    it(`sends a datagram that one packet holds whole, its checksum complete (IPv${ip})`, () =>
      withGuest(async (g) => {
        // 108 bytes of IP payload: the last of a packet need no multiple of 8.
        const spec = { ...outward, ip, payload: 100 };
        await g.transmit([frame(spec, true)], ufo(108, ip === 4 ? 34 : 54));
        expect(g.wire.sent).toEqual([frame(spec)]);
      }));

  it("tells the fragments of one IPv6 datagram from another's", () =>
    withGuest(async (g) => {
      const one = frame({ ...outward, ip: 6, payload: 3000 }, true);
      await g.transmit([one, one, one], ufo(1448, 54));
      const ids = g.wire.sent.map((bytes) => fragmentOf(bytes, 14, 54).id);
      expect(ids).toHaveLength(9);
      expect(new Set(ids).size).toBe(3);
    }));

  for (const ip of [4, 6] as const)
    it(`goes on with the fragment that the wire had no room for, of the same identification (IPv${ip})`, () =>
      withGuest(async (g) => {
        const l4 = ip === 4 ? 34 : 54;
        const spec = { ...outward, ip, payload: 5000 };
        g.wire.credit = 2;
        expect(await g.transmit([frame(spec, true)], ufo(1000, l4))).toBe(0);
        for (const credit of [1, 100]) {
          g.wire.credit = credit;
          g.wire.onReady?.();
          await g.settle();
        }
        expect(g.queue(1).used()).toHaveLength(1);
        const data = whole(
          g.wire.sent.map((bytes) => fragmentOf(bytes, 14, l4)),
          1000,
        );
        expect(data).toEqual([...frame(spec).subarray(l4)]);
      }));

  it("gives to the first fragment alone the IPv4 options that are not copied", () =>
    withGuest(async (g) => {
      const plain = frame({ ...outward, payload: 3000 }, true);
      // Record route; no operation; router alert, which is copied; end, and what is behind it.
      const options = [7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0, 0, 7, 0, 0];
      const bytes = Uint8Array.of(...plain.subarray(0, 34), ...options, ...plain.subarray(34));
      bytes.set([0x49, 0, (3044 >> 8) & 0xff, 3044 & 0xff], 14);
      bytes.fill(0, 24, 26);
      const sum = checksum([...bytes.subarray(14, 50)]);
      bytes.set([sum >> 8, sum & 0xff], 24);
      await g.transmit([bytes], ufo(1448, 50));
      const fragments = g.wire.sent.map((sent) => fragmentOf(sent, 14, 50));
      const right = frame({ ...outward, payload: 3000 });
      expect(whole(fragments, 1448)).toEqual([...right.subarray(34)]);
      const later = [1, 1, 1, 1, 1, 1, 1, 1, 0x94, 4, 0, 0, 0, 7, 0, 0];
      expect(fragments.map(({ head }) => head.slice(34))).toEqual([options, later, later]);
    }));

  for (const options of [
    [7, 0, 0, 0, 68, 1, 7, 0],
    [7, 255, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 7],
    [0x94, 9, 0, 0, 0, 0, 0, 0],
  ])
    it(`leaves the datagram whole behind IPv4 options that make no sense: ${options}`, () =>
      withGuest(async (g) => {
        const plain = frame({ ...outward, payload: 3000 }, true);
        const bytes = Uint8Array.of(...plain.subarray(0, 34), ...options, ...plain.subarray(34));
        bytes.set([0x47, 0, 3036 >> 8, 3036 & 0xff], 14);
        await g.transmit([bytes], ufo(1448, 42));
        const fragments = g.wire.sent.map((sent) => fragmentOf(sent, 14, 42));
        const right = frame({ ...outward, payload: 3000 });
        expect(whole(fragments, 1448)).toEqual([...right.subarray(34)]);
      }));

  it("places the IPv6 fragment header behind the routing header, and before what only the end reads", () =>
    withGuest(async (g) => {
      const plain = frame({ ...outward, ip: 6, payload: 3000 }, true);
      const pad = [1, 4, 0, 0, 0, 0];
      // Hop-by-hop and destination options, a routing header without segments left, destination options again.
      const common = [...[60, 0, ...pad], ...[43, 0, ...pad], ...[60, 0, 4, 0, 0, 0, 0, 0]];
      const ending = [17, 1, 1, 12, ...Array<number>(12).fill(0)];
      const bytes = Uint8Array.of(
        ...plain.subarray(0, 54),
        ...common,
        ...ending,
        ...plain.subarray(54),
      );
      bytes.set([(3048 >> 8) & 0xff, 3048 & 0xff, 0], 18);
      await g.transmit([bytes], ufo(1448, 94));
      const fragments = g.wire.sent.map((sent) => fragmentOf(sent, 14, 78));
      const right = frame({ ...outward, ip: 6, payload: 3000 });
      expect(whole(fragments, 1448)).toEqual([...ending, ...right.subarray(54)]);
      for (const { head, next } of fragments) {
        expect(next).toBe(60);
        expect(head.slice(54)).toEqual([...common.slice(0, 16), 44, ...common.slice(17)]);
      }
    }));

  const good = frame({ ...outward, payload: 3000 }, true);
  const cut = (bytes: Uint8Array, at: number, value: number): Uint8Array => {
    const other = bytes.slice();
    other[at] = value;
    return other;
  };
  const six = frame({ ...outward, ip: 6, payload: 3000 }, true);
  const atomic = Uint8Array.of(
    ...six.subarray(0, 18),
    ...[3016 >> 8, 3016 & 0xff, 44, 64],
    ...six.subarray(22, 54),
    ...[17, 0, 0, 0, 0, 0, 0, 1],
    ...six.subarray(54),
  );
  // Hop-by-hop options of 2048 bytes.
  const long = Uint8Array.of(
    ...six.subarray(0, 18),
    ...[5056 >> 8, 5056 & 0xff, 0, 64],
    ...six.subarray(22, 54),
    ...[17, 255, ...Array<number>(2046).fill(0)],
    ...six.subarray(54),
  );
  const cases: readonly (readonly [what: string, fields: HeaderFields, bytes: Uint8Array])[] = [
    ["fragments without room for 8 bytes", ufo(7), good],
    ["gso_size 0", ufo(0), good],
    ["fragments without NEEDS_CSUM", { ...ufo(1000), flags: 0 }, good],
    ["fragments of TCP", ufo(1000), frame({ to: PEER_MAC, from: GUEST_MAC, payload: 3000 }, true)],
    ["a fragment to be fragmented", ufo(1000), cut(good, 20, 0x20)],
    ["an IPv6 packet with a fragment header", ufo(1000, 62), atomic],
    ["headers longer than a device keeps", ufo(1000, 54 + 2048), long],
    ["a frame that is not IP", ufo(1000), cut(good, 13, 6)],
    ["a UDP length beyond the packet", ufo(1000), cut(good, 38, 0xff)],
    ["a UDP length below its header's", ufo(1000), cut(cut(good, 38, 0), 39, 7)],
    [
      "fragments longer than the wire takes",
      ufo(9208),
      frame({ ...outward, payload: 20_000 }, true),
    ],
    [
      "the same with a fragment header",
      ufo(9176, 54),
      frame({ ...outward, ip: 6, payload: 20_000 }, true),
    ],
    ["a datagram in a tunnel", { ...ufo(1000), gsoType: NetGso.UDP | 0x20 }, good],
  ];
  for (const [what, fields, bytes] of cases)
    it(`drops and counts ${what}, and goes on`, () =>
      withGuest(async (g) => {
        expect(await g.transmit([bytes], fields)).toBe(1);
        expect(g.wire.sent).toEqual([]);
        expect(g.port.counters).toMatchObject({ malformed: 1, transmitted: 0, segments: 0 });
        await g.transmit([frame(outward)]);
        expect(g.wire.sent).toEqual([frame(outward)]);
      }));

  it("fills the wire's longest frames", () =>
    withGuest(async (g) => {
      for (const [ip, gsoSize] of [
        [4, 9200],
        [6, 9168],
      ] as const) {
        g.wire.sent.length = 0;
        const spec = { ...outward, ip, payload: 20_000 };
        await g.transmit([frame(spec, true)], ufo(gsoSize, ip === 4 ? 34 : 54));
        const most = g.wire.maxFrame - (ip === 4 ? 0 : 4);
        expect(g.wire.sent.map(({ length }) => length <= most)).toEqual([true, true, true]);
        expect(g.wire.sent[0]?.length).toBeGreaterThan(g.wire.maxFrame - 8);
      }
    }));

  it("is asked for nothing by a driver that did not accept it", async () => {
    const g = await NetGuest.start({ features: { HOST_UFO: true }, accept: [0] });
    await g.transmit([good], ufo(1000));
    expect([g.wire.sent, g.port.counters.malformed]).toEqual([[], 1]);
    await g.close();
  });
});

it("checks of this file can fail", () => {
  expect(() => fragmentOf(frame(outward), 14, 34)).toThrow();
  const one = { head: [], id: 1, offset: 0, more: false, next: 17, data: [...pattern(16)] };
  expect(
    whole(
      [
        { ...one, more: true },
        { ...one, offset: 16 },
      ],
      16,
    ),
  ).toHaveLength(32);
  expect(() => whole([one, { ...one, offset: 16 }], 16)).toThrow();
  expect(() =>
    whole(
      [
        { ...one, more: true },
        { ...one, offset: 8 },
      ],
      16,
    ),
  ).toThrow();
});

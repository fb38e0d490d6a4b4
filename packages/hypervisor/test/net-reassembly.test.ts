// IP fragments of UDP datagrams that the network device puts together for the driver (GUEST_UFO).
import { NetFeature, NetGso, NetHeaderFlag } from "@virtio/core/net";
import { Headers } from "@virtio/packets";
import { describe, expect, it } from "vitest";
import { ToeplitzHash } from "../src/models/net-hash.js";
import { NetReassembler } from "../src/models/net-reassembly.js";
import { checksum, type FrameSpec, frame, pattern } from "./frames.js";
import { le16, le32, NetGuest, type NetGuestOptions, type Received } from "./net-guest.js";

const { MAC, CTRL_VQ, CTRL_GUEST_OFFLOADS, GUEST_CSUM, GUEST_UFO, HASH_REPORT, MRG_RXBUF } =
  NetFeature;

async function withGuest(
  options: NetGuestOptions,
  body: (guest: NetGuest) => Promise<void>,
  [buffers, length]: readonly [number, number] = [60, 2048],
): Promise<void> {
  const guest = await NetGuest.start({
    ...options,
    features: { GUEST_UFO: true, ...options.features },
  });
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

const be16 = (n: number): number[] => [(n >>> 8) & 0xff, n & 0xff];
const be32 = (n: number): number[] => [...be16(n >>> 16), ...be16(n)];

/** Where the IP header is, and what it carries. */
const placeOf = (bytes: Uint8Array): { ip: 4 | 6; l3: number; l4: number } => {
  const l3 = bytes[12] === 0x81 ? 18 : 14;
  return bytes[l3 - 2] === 8
    ? { ip: 4, l3, l4: l3 + ((bytes[l3] ?? 0) & 15) * 4 }
    : { ip: 6, l3, l4: l3 + 40 };
};

/** A copy with other bytes from `at` on; the checksum of an IPv4 header is made right. */
function changed(bytes: Uint8Array, at: number, ...values: readonly number[]): Uint8Array {
  const other = bytes.slice();
  other.set(values, at);
  const { ip, l3, l4 } = placeOf(other);
  if (ip === 6) return other;
  other.set([0, 0], l3 + 10);
  other.set(be16(checksum([...other.subarray(l3, l4)])), l3 + 10);
  return other;
}

/** A UDP datagram in one frame, which may be fragmented. `partial`: its checksum is the pseudo header's sum. */
function datagram(spec: FrameSpec = {}, partial = false): Uint8Array {
  const bytes = frame({ protocol: "udp", ...spec }, partial);
  const { ip, l3 } = placeOf(bytes);
  return ip === 4 ? changed(bytes, l3 + 6, 0, 0) : bytes;
}

/** Cuts the frame of a datagram at these offsets of its IP payload (RFC 791 §3.2, RFC 8200 §4.5). */
function cutAt(bytes: Uint8Array, id: number, ...offsets: readonly number[]): Uint8Array[] {
  const { ip, l3, l4 } = placeOf(bytes);
  const head = [...bytes.subarray(0, l4)];
  return offsets.map((from, i) => {
    const data = bytes.subarray(l4 + from, l4 + (offsets[i + 1] ?? bytes.length));
    const more = i < offsets.length - 1;
    if (ip === 6) {
      const extension = [17, 0, ...be16(from + Number(more)), ...be32(id)];
      const fragment = Uint8Array.of(...head, ...extension, ...data);
      fragment.set([...be16(8 + data.length), 44], l3 + 4);
      return fragment;
    }
    const fragment = Uint8Array.of(...head, ...data);
    fragment.set([...be16(l4 - l3 + data.length), ...be16(id)], l3 + 2);
    return changed(fragment, l3 + 6, ...be16((from >>> 3) + (more ? 0x2000 : 0)));
  });
}

/** The same in pieces of one size, a multiple of 8. */
function cut(bytes: Uint8Array, size: number, id = 7): Uint8Array[] {
  const length = bytes.length - placeOf(bytes).l4;
  const offsets = Array.from({ length: Math.ceil(length / size) }, (_, i) => i * size);
  return cutAt(bytes, id, ...offsets);
}

/** What the driver gets of a datagram that is put together. */
function expectWhole(received: Received | undefined, spec: FrameSpec, size: number): void {
  if (received === undefined) throw new Error("nothing came");
  const { header, frame: bytes } = received;
  const { l4 } = placeOf(bytes);
  expect(bytes).toEqual(datagram(spec, true));
  expect([header.getUint8(0), header.getUint8(1)]).toEqual([NetHeaderFlag.NEEDS_CSUM, NetGso.UDP]);
  expect([2, 4, 6, 8].map((at) => header.getUint16(at, true))).toEqual([l4 + 8, size, l4, 6]);
}

/** Frames that came as they are: flags, gso_type and bytes. */
const plain = (received: readonly Received[]): unknown[] =>
  received.map(({ header, frame: bytes }) => [header.getUint8(0), header.getUint8(1), bytes]);
const unknown = (bytes: Uint8Array): unknown => [0, NetGso.NONE, bytes];
const valid = (bytes: Uint8Array): unknown => [NetHeaderFlag.DATA_VALID, NetGso.NONE, bytes];

/** Three fragments of one datagram, and something else. */
const spec = { payload: 2500 };
const whole = datagram(spec);
const pieces = cut(whole, 1000);
const [one = whole, two = whole, three = whole] = pieces;
const other = frame({ protocol: "udp", ports: [5, 6] });

describe("fragments of a UDP datagram", () => {
  for (const ip of [4, 6] as const)
    for (const vlan of [undefined, 9])
      for (const [merge, buffers] of [
        [true, [60, 2048]],
        [false, [2, 66_000]],
      ] as const)
        it(`come as one packet, IPv${ip}${vlan ? " in a VLAN" : ""}, in ${merge ? "merged buffers" : "one buffer"}`, () => {
          const accept = [MAC, GUEST_CSUM, GUEST_UFO, ...(merge ? [MRG_RXBUF] : [])];
          return withGuest(
            { accept },
            async (g) => {
              const big = { ip, payload: 30_001, ...(vlan ? { vlan } : {}) };
              const received = await give(g, ...cut(datagram(big), 1448));
              expect(received).toHaveLength(1);
              expectWhole(received[0], big, 1448);
              expect(g.port.counters).toMatchObject({ received: 1, coalesced: 21 });
              expect(g.clauses()).toEqual([]);
            },
            buffers,
          );
        });

  it("may be as large as an IP packet, and no larger", () =>
    withGuest({ queueSize: 128 }, async (g) => {
      await g.post(60, 2048);
      for (const [ip, payload] of [
        [4, 65_507],
        [6, 65_487],
      ] as const) {
        const received = await give(g, ...cut(datagram({ ip, payload }), 1480));
        expect(received).toHaveLength(1);
        expectWhole(received[0], { ip, payload }, 1480);
        await g.post(33, 2048);
      }
      for (const larger of [
        { ip: 4, payload: 65_508 },
        { ip: 6, payload: 65_488 },
      ] as const) {
        const most = cut(datagram(larger), 1480);
        expect(plain(await give(g, ...most))).toEqual(most.map(unknown));
        await g.post(most.length, 2048);
      }
    }));

  it("follow each other, datagram by datagram, and frames of others stay where they were", () =>
    withGuest({}, async (g) => {
      const again = { payload: pattern(2000, 9), id: 8 };
      const received = await give(g, ...pieces, other, ...cut(datagram(again), 1200, 8), other);
      expect(received).toHaveLength(4);
      expectWhole(received[0], spec, 1000);
      expectWhole(received[2], again, 1200);
      expect(plain([received[1], received[3]] as Received[])).toEqual([valid(other), valid(other)]);
    }));

  it("of several sizes come with the largest", () =>
    withGuest({}, async (g) => {
      const sizes = cutAt(whole, 7, 0, 8, 1208, 1808);
      const [received, ...more] = await give(g, ...sizes);
      expectWhole(received, spec, 1200);
      expect(more).toEqual([]);
    }));

  it("lose the padding of Ethernet, and keep it where they come as they are", () =>
    withGuest({}, async (g) => {
      const short = cutAt(whole, 7, 0, 1496, 2504);
      const padded = [
        ...short.slice(0, 2),
        Uint8Array.of(...(short[2] ?? whole), ...Array(22).fill(9)),
      ];
      expectWhole((await give(g, ...padded))[0], spec, 1496);
      expect(plain(await give(g, ...padded.slice(1)))).toEqual(padded.slice(1).map(unknown));
    }));

  it('keep "don\'t fragment" where all of them have it', () =>
    withGuest({}, async (g) => {
      const stern = pieces.map((bytes) => changed(bytes, 20, (bytes[20] ?? 0) | 0x40));
      const [received] = await give(g, ...stern);
      expect(received?.frame).toEqual(frame({ protocol: "udp", ...spec }, true));
      const mixed = [one, stern[1] ?? one, three];
      expect(plain(await give(g, ...mixed))).toEqual(mixed.map(unknown));
    }));

  it("have the IPv4 options of the first", () =>
    withGuest({}, async (g) => {
      const options = [7, 7, 4, 0, 0, 0, 0, 1];
      const first = Uint8Array.of(...one.subarray(0, 34), ...options, ...one.subarray(34));
      const [received] = await give(g, changed(first, 14, 0x47, 0, ...be16(28 + 1000)), two, three);
      const right = datagram(spec, true);
      const all = Uint8Array.of(...right.subarray(0, 34), ...options, ...right.subarray(34));
      expect(received?.frame).toEqual(changed(all, 14, 0x47, 0, ...be16(28 + 2508)));
      expect([2, 6].map((at) => received?.header.getUint16(at, true))).toEqual([50, 42]);
    }));

  it("have the IPv6 headers of the first, without the fragment header", () =>
    withGuest({}, async (g) => {
      const six = { ip: 6, payload: 2500 } as const;
      // Hop-by-hop options, a routing header without segments left.
      const headers = [43, 0, 1, 4, 0, 0, 0, 0, 44, 0, 4, 0, 0, 0, 0, 0];
      const long = cut(datagram(six), 1000).map((bytes) => {
        const all = Uint8Array.of(...bytes.subarray(0, 54), ...headers, ...bytes.subarray(54));
        all.set([...be16(all.length - 54), 0], 18);
        return all;
      });
      const [received] = await give(g, ...long);
      const right = datagram(six, true);
      const all = Uint8Array.of(...right.subarray(0, 54), ...headers, ...right.subarray(54));
      all.set([...be16(all.length - 54), 0], 18);
      all[62] = 17;
      expect(received?.frame).toEqual(all);
      expect([2, 6].map((at) => received?.header.getUint16(at, true))).toEqual([78, 70]);
    }));

  it("carry a hash of their own kind", () =>
    withGuest({ features: { HASH_REPORT: true, RSS: true }, queues: 2 }, async (g) => {
      await g.post(20, 2048, 1);
      // IPv4 and UDP over IPv4; two pairs, by the low bit.
      const key = Array.from({ length: 40 }, (_, i) => i * 7 + 1);
      const table = [...le16(1), ...le16(0), ...le16(0), ...le16(1)];
      await g.command(4, 1, [...le32(0x5), ...table, ...le16(2), 40, ...key]);
      const hashes = (of: readonly Received[]) =>
        of.map(({ header }) => [header.getUint32(12, true), header.getUint16(16, true)]);
      await give(g, two);
      const pair = g.queue(0).used().length > 0 ? 0 : 1;
      g.wire.give(two);
      await g.settle();
      const [alone] = hashes(g.received(pair));
      g.wire.give(...pieces);
      await g.settle();
      const received = g.received(pair);
      expect(received.map(({ header }) => header.getUint8(1))).toEqual([NetGso.UDP]);
      expect(hashes(received)).toEqual([alone]);
      expect(alone?.[1]).toBe(1);
    }));
});

describe("fragments come as they are, in their order, when", () => {
  const spoilt = (bytes: Uint8Array, at: number): Uint8Array => {
    const bad = bytes.slice();
    bad[at] = (bad[at] ?? 0) ^ 1;
    return bad;
  };
  const unsummed = whole.slice();
  unsummed.fill(0, 40, 42);
  // Its checksum is right, for all that there is.
  const shorter = datagram(spec);
  shorter.set(be16(2508 - 100), 38);
  const sum = ((shorter[40] ?? 0) << 8) + (shorter[41] ?? 0) + 100;
  shorter.set(be16((sum & 0xffff) + (sum >>> 16)), 40);
  const six = cut(datagram({ ip: 6, payload: 2500 }), 1000);
  const [six1 = whole, six2 = whole, six3 = whole] = six;
  const [, foreign = whole] = cut(datagram({ hosts: [3, 2], payload: 2500 }), 1000);
  const [, foreign6 = whole] = cut(datagram({ ip: 6, hosts: [3, 2], payload: 2500 }), 1000);
  const [, later = whole] = cut(whole, 1000, 8);
  const doubled = Uint8Array.of(
    ...six1.subarray(0, 54),
    // An atomic fragment header whose reserved byte looks like a length, and the real one.
    ...[44, 1, 0, 0, 0, 0, 0, 9],
    ...six1.subarray(54),
  );
  doubled.set(be16(doubled.length - 54), 18);
  const cases: readonly (readonly [what: string, frames: readonly Uint8Array[]])[] = [
    ["the last has not come", [one, two]],
    ["the first has not come", [two, three]],
    ["one between has not come", [one, three]],
    ["two are exchanged", [one, three, two]],
    ["the last is first", [three, one, two]],
    ["one comes twice", [one, two, two, three]],
    ["the first comes twice", [one, one, two]],
    ["two overlap", [one, cutAt(whole, 7, 0, 992, 2000)[1] ?? one, three]],
    ["there is a gap", [one, cutAt(whole, 7, 0, 1008, 2000)[1] ?? one, three]],
    ["another flow's comes between", [one, foreign, two, three]],
    ["another flow's comes in its place", [one, foreign, three]],
    ["another's comes in its place over IPv6", [six1, foreign6, six3]],
    ["one over IPv6 has another hop limit", [six1, changed(six2, 21, 63), six3]],
    ["another datagram's comes between", [one, two, later, three]],
    ["one has another datagram's number", [one, later, three]],
    ["one is of another type of service", [one, changed(two, 15, 4), three]],
    ["one has another time to live", [one, changed(two, 22, 63), three]],
    ["one comes from another station", [one, changed(two, 11, 9), three]],
    ["one is of another IP version", [one, six2, six3]],
    ["IPv6 ones are of another traffic class", [six1, changed(six2, 14, 0x61), six3]],
    ["IPv6 ones are of another datagram", [six1, changed(six2, 61, 9), six3]],
    ["the checksum of the datagram is wrong", [one, spoilt(two, 500), three]],
    ["the checksum over IPv6 is wrong", [six1, spoilt(six2, 500), six3]],
    ["the datagram has no checksum", cut(unsummed, 1000)],
    ["the datagram is shorter than its packet", cut(shorter, 1000)],
    ["the checksum of an IPv4 header is wrong", [one, spoilt(two, 24), three]],
    ["they are of another protocol", pieces.map((bytes) => changed(bytes, 23, 136))],
    ["one before the last has no multiple of 8 bytes", cutAt(whole, 7, 0, 1001, 2001)],
    ["one holds nothing", [one, cutAt(whole, 7, 0, 1000, 1000)[1] ?? one, two, three]],
    ["their headers do not lead to the fragment header", [doubled, six2, six3]],
  ];
  for (const [what, frames] of cases)
    it(what, () =>
      withGuest({}, async (g) => {
        expect(plain(await give(g, ...frames))).toEqual(frames.map(unknown));
        expect(g.port.counters).toMatchObject({
          received: frames.length,
          coalesced: 0,
          oversized: 0,
        });
        // And what comes next is put together.
        expectWhole((await give(g, ...pieces))[0], spec, 1000);
      }),
    );

  it("another frame comes between, which stays between", () =>
    withGuest({}, async (g) => {
      expect(plain(await give(g, one, two, other, three))).toEqual([
        ...[one, two].map(unknown),
        valid(other),
        unknown(three),
      ]);
    }));

  it("the rest comes in another batch", () =>
    withGuest({}, async (g) => {
      expect(plain(await give(g, one, two))).toEqual([one, two].map(unknown));
      expect(plain(await give(g, three))).toEqual([unknown(three)]);
    }));

  it("they are more than the device keeps", () =>
    withGuest(
      { queueSize: 256 },
      async (g) => {
        // 8 bytes of each datagram, and a hundred times as much that is not of it.
        const small = cut(datagram({ payload: 800 }), 8).map((bytes) =>
          Uint8Array.of(...bytes, ...Array<number>(1400).fill(9)),
        );
        expect(plain(await give(g, ...small))).toEqual(small.map(unknown));
      },
      [120, 2048],
    ));

  for (const [what, frames, options, buffers] of [
    [
      "the driver's buffers do not hold the datagram",
      pieces,
      { accept: [MAC, GUEST_CSUM, GUEST_UFO] },
      [10, 2048],
    ],
    [
      "all buffers of the queue together do not",
      cut(datagram({ payload: 9000 }), 1480),
      { queueSize: 4 },
      [4, 2048],
    ],
    ["there are too few buffers now", cut(datagram({ payload: 9000 }), 1480), {}, [3, 2048]],
  ] as const)
    it(`${what}; those that find no room wait`, () =>
      withGuest(
        options,
        async (g) => {
          const got = await give(g, ...frames);
          for (let turn = 0; turn < 10 && got.length < frames.length; turn++) {
            // Nothing overtakes them.
            expect(g.wire.give(other)).toEqual([false]);
            await g.post(2, 2048);
            got.push(...g.received());
          }
          expect(plain(got)).toEqual(frames.map(unknown));
          await g.post(2, 2048);
          expect(plain(await give(g, other))).toEqual([valid(other)]);
          expect(g.port.counters).toMatchObject({ coalesced: 0, oversized: 0 });
        },
        buffers,
      ));

  it("a frame interrupts them for which there is no room", () =>
    withGuest(
      {},
      async (g) => {
        expect(g.wire.give(one, two, other)).toEqual([true, true, false]);
        await g.settle();
        expect(plain(g.received())).toEqual([unknown(one)]);
        expect(g.wire.rooms).toBe(0);
        await g.post(1, 2048);
        expect(plain(g.received())).toEqual([unknown(two)]);
        expect(g.wire.rooms).toBe(1);
      },
      [1, 2048],
    ));

  it("a small frame interrupts them, for which there would be room", () =>
    withGuest(
      {},
      async (g) => {
        expect(g.wire.give(one, other)).toEqual([true, false]);
        await g.settle();
        expect(g.received()).toEqual([]);
        await g.post(1, 600);
        expect(plain(g.received())).toEqual([unknown(one)]);
      },
      [1, 600],
    ));

  it("their pair of queues has no buffers, which holds up no other pair", () =>
    withGuest(
      { queues: 2 },
      async (g) => {
        await g.post(20, 2048, 1);
        await g.command(4, 0, le16(2));
        const flows = Array.from({ length: 16 }, (_, i) =>
          cut(datagram({ payload: 2500, hosts: [i + 1, 40] }), 1000),
        );
        // The first pair has no buffers, and takes nothing.
        const [mine, others] = [false, true].map((taken) =>
          flows.find(([, bytes = two]) => g.wire.give(bytes)[0] === taken),
        );
        await g.settle();
        g.received(1);
        const [a = one, b = one, c = one] = mine ?? [];
        const [, foreigner = one] = others ?? [];
        await g.post(1, 2048);
        expect(g.wire.give(a, b, foreigner, c)).toEqual([true, true, true, false]);
        await g.settle();
        expect(plain(g.received(1))).toEqual([unknown(foreigner)]);
        expect(plain(g.received())).toEqual([unknown(a)]);
        await g.post(1, 2048);
        expect(plain(g.received())).toEqual([unknown(b)]);
      },
      [0, 2048],
    ));

  it("the feature was not accepted, or is switched off, or checksums are", async () => {
    const basic = [MAC, CTRL_VQ, CTRL_GUEST_OFFLOADS, GUEST_CSUM, HASH_REPORT, MRG_RXBUF];
    const features = { HASH_REPORT: true };
    await withGuest({ features, accept: basic }, async (g) =>
      expect(plain(await give(g, ...pieces))).toEqual(pieces.map(unknown)),
    );
    await withGuest({ features, accept: [...basic, GUEST_UFO] }, async (g) => {
      // Headers are looked at in any case.
      expect((await g.command(4, 2, [...le32(1), ...Array<number>(8).fill(0), 0])).ack).toBe(0);
      const set = async (...on: readonly NetFeature[]): Promise<void> => {
        const word = on.reduce((bits, bit) => bits | (1 << bit), 0);
        expect((await g.command(5, 0, [...le32(word), ...le32(0)])).ack).toBe(0);
      };
      expectWhole((await give(g, ...pieces))[0], spec, 1000);
      for (const on of [[GUEST_CSUM], [GUEST_UFO], []]) {
        await set(...on);
        expect(plain(await give(g, ...pieces))).toEqual(pieces.map(unknown));
      }
      await set(GUEST_CSUM, GUEST_UFO);
      expectWhole((await give(g, ...pieces))[0], spec, 1000);
    });
  });

  it("nobody named it: it is not offered", () =>
    withGuest({ features: { GUEST_UFO: false } }, async (g) => {
      expect(g.accepted).not.toContain(GUEST_UFO);
      expect(plain(await give(g, ...pieces))).toEqual(pieces.map(unknown));
    }));
});

it("fragments are forgotten with the queue that they are for, and with the device", () =>
  withGuest({}, async (g) => {
    for (const reset of [() => g.resetQueue(0), () => g.reset()]) {
      g.wire.give(one, two);
      await reset();
      await g.settle();
      expect(g.received()).toEqual([]);
      expect(g.port.counters.undelivered).toBe(0);
      if (reset.toString().includes("resetQueue")) await g.enable(0);
      else await g.run();
      await g.post(10, 2048);
      expect(plain(await give(g, three))).toEqual([unknown(three)]);
    }
  }));

it("nothing is added to fragments that wait for room", () => {
  let room = 0;
  const got: Uint8Array[] = [];
  const reassembler = new NetReassembler({
    whole: () => false,
    fragment: (_, bytes, offset, length) => {
      if (room > 0) got.push(bytes.slice(offset, offset + length));
      room -= 1;
      return room >= 0;
    },
  });
  reassembler.setOffloads([(1 << GUEST_CSUM) | (1 << GUEST_UFO)]);
  const headers = new Headers();
  const offer = (bytes: Uint8Array): boolean | null => {
    headers.parse(bytes, 0, bytes.length);
    return reassembler.offer(headers, bytes, 0, bytes.length, 0, new ToeplitzHash());
  };
  expect([offer(one), offer(two)]).toEqual([true, true]);
  reassembler.flush();
  expect([offer(three), offer(one)]).toEqual([null, null]);
  room = 2;
  expect(offer(three)).toBe(false);
  expect(got).toEqual([one, two]);
});

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

it("fragments that come in any order are put together just where a datagram has come whole", () =>
  withGuest(
    { queueSize: 256, accept: [MAC, GUEST_CSUM, GUEST_UFO, MRG_RXBUF] },
    async (g) => {
      let state = seed;
      const random = (limit: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
        return Math.floor((state / 2 ** 32) * limit);
      };
      for (let batch = 0; batch < 60; batch++) {
        const specs = Array.from({ length: 4 }, (_, id) => ({
          ip: random(2) === 0 ? (4 as const) : (6 as const),
          id,
          payload: pattern(300 + random(500), random(1000)),
        }));
        const size = 8 * (10 + random(20));
        const given = specs.flatMap((each, id) =>
          cut(datagram(each), size, id).map((bytes, index, { length }) => ({
            ...{ bytes, id, index, last: index === length - 1 },
          })),
        );
        // Some are lost, some come twice, some change places.
        for (let n = random(4); n > 0; n--) {
          const at = random(given.length - 1);
          const [taken] = given.splice(at, 1);
          if (taken !== undefined) given.splice(random(3) === 0 ? 0 : at + 1, random(3), taken);
        }
        const received = await give(g, ...given.map(({ bytes }) => bytes));
        const expected: unknown[] = [];
        for (let at = 0; at < given.length; ) {
          const { id = 0, bytes = one } = given[at] ?? {};
          // Where a run of this datagram from its first fragment on ends.
          const [start, ...rest] = given.slice(at);
          let length = start?.index === 0 ? 1 : 0;
          for (const next of rest)
            if (length > 0 && next.id === id && next.index === length) length += 1;
            else break;
          const whole = length > 0 && given[at + length - 1]?.last === true;
          expected.push(whole ? [1, NetGso.UDP, datagram(specs[id], true)] : unknown(bytes));
          at += whole ? length : 1;
        }
        expect(plain(received)).toEqual(expected);
        await g.post(received.flatMap(({ buffers }) => buffers).length, 1024);
      }
      expect(g.port.counters.coalesced).toBeGreaterThan(200);
    },
    [120, 1024],
  ));

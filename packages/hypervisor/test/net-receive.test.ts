// What the network device does to frames for the driver: filter, checksums, coalesced segments, queues, buffers.
import { NetFeature, NetGso, NetHeaderFlag } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { checksum, type FrameSpec, frame, GUEST_MAC, look, pattern } from "./frames.js";
import { le16, le32, NetGuest, type NetGuestOptions, type Received } from "./net-guest.js";

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

/** Gives frames to the device, and waits until the driver was told. */
async function give(g: NetGuest, ...frames: readonly Uint8Array[]): Promise<boolean[]> {
  const taken = g.wire.give(...frames);
  await g.settle();
  return taken;
}

const flagsOf = ({ header }: Received): number => header.getUint8(0);
/** The checksum of its IPv4 header is wrong. */
const misheaded = (bytes: Uint8Array): Uint8Array => {
  const other = bytes.slice();
  other[24] = (other[24] ?? 0) ^ 1;
  return other;
};
const plain = [NetFeature.MAC, NetFeature.STATUS] as const;
const broken = (bytes: Uint8Array): Uint8Array => {
  const other = bytes.slice();
  other[other.length - 1] = (other[other.length - 1] ?? 0) ^ 1;
  return other;
};

describe("a network device that receives", () => {
  it("puts a frame behind a header that says one buffer, and nothing else without offloads", () =>
    withGuest({ accept: plain }, async (g) => {
      await g.post(2, 2000);
      expect(await give(g, frame(), broken(frame()))).toEqual([true, true]);
      for (const [i, { header, frame: bytes, buffers }] of g.received().entries()) {
        expect(bytes).toEqual(i === 0 ? frame() : broken(frame()));
        expect(new Uint8Array(header.buffer)).toEqual(
          Uint8Array.of(...Array<number>(10).fill(0), 1, 0),
        );
        expect(buffers).toEqual([12 + bytes.length]);
      }
    }));

  for (const legacy of [10, 12])
    it(`writes a legacy header of ${legacy} bytes`, () =>
      withGuest(
        { legacy: "on", accept: legacy === 12 ? [...plain, NetFeature.MRG_RXBUF] : plain },
        async (g) => {
          g.queue(0).offer([legacy, 1600]);
          await g.ring(0);
          await g.settle();
          await give(g, frame());
          const [chain] = g.queue(0).used();
          expect(chain?.length).toBe(legacy + frame().length);
          expect(chain?.regions[1]?.bytes.slice(0, frame().length)).toEqual(frame());
          expect(chain?.regions[0]?.bytes.slice(10)).toEqual(
            Uint8Array.from(legacy === 12 ? [1, 0] : []),
          );
        },
      ));

  it("fills every buffer but the last, and says how many, when buffers are merged", () =>
    withGuest({}, async (g) => {
      await g.post(40, 100);
      const long = frame({ protocol: "udp", payload: 1000 });
      await give(g, frame({ protocol: "udp" }), long, frame({ protocol: "udp", payload: 46 }));
      const [one, many, exact] = g.received();
      expect(one?.buffers).toEqual([64]);
      expect(many?.buffers).toEqual([...Array<number>(10).fill(100), 54]);
      expect(many?.frame).toEqual(long);
      expect(many?.header.getUint16(10, true)).toBe(11);
      expect(exact?.buffers).toEqual([100]);
    }));

  it("splits even the header over buffers that are too small for it", () =>
    withGuest({}, async (g) => {
      await g.post(30, 5);
      const small = frame({ protocol: "udp", payload: 4 });
      await give(g, small);
      const bytes = g
        .queue(0)
        .used()
        .flatMap(({ regions, length }) => [...(regions[0]?.bytes.subarray(0, length) ?? [])]);
      expect(bytes.slice(12)).toEqual([...small]);
      expect(bytes[10]).toBe(Math.ceil((12 + small.length) / 5));
    }));

  it("refuses a frame without room, takes no buffer for it, and says when there is room", () =>
    withGuest({}, async (g) => {
      await g.post(3, 500);
      const long = frame({ protocol: "udp", payload: 2000 });
      expect(await give(g, long)).toEqual([false]);
      // Order is kept: what would fit waits behind it.
      expect(await give(g, frame({ protocol: "udp" }))).toEqual([false]);
      expect(g.queue(0).used()).toEqual([]);
      expect(g.wire.rooms).toBe(0);
      await g.post(3, 500);
      expect(g.wire.rooms).toBe(1);
      expect(await give(g, long, frame({ protocol: "udp" }))).toEqual([true, true]);
      expect(g.received().map(({ frame: bytes }) => bytes.length)).toEqual([long.length, 52]);
      expect(g.port.counters).toMatchObject({ received: 2, oversized: 0 });
    }));

  it("drops a frame that all buffers of the queue together cannot hold, or without merging one buffer", () =>
    withGuest({ queueSize: 8 }, async (g) => {
      await g.post(8, 50);
      expect(await give(g, frame({ payload: 1000 }))).toEqual([true]);
      expect(g.port.counters.oversized).toBe(1);
      await g.run(plain);
      await g.post(1, 100);
      expect(await give(g, frame({ payload: 1000 }), frame({ payload: 20 }))).toEqual([true, true]);
      expect(g.received().map(({ frame: bytes }) => bytes)).toEqual([frame({ payload: 20 })]);
      expect(g.port.counters.oversized).toBe(2);
    }));

  it("counts frames that come while no driver runs, and those that are none", () =>
    withGuest({ start: false }, async (g) => {
      expect(await give(g, frame())).toEqual([true]);
      await g.run();
      await g.post(4, 2000);
      expect(await give(g, new Uint8Array(13), new Uint8Array(9235))).toEqual([true, true]);
      await g.reset();
      expect(await give(g, frame())).toEqual([true]);
      expect(g.port.counters).toMatchObject({ undelivered: 2, oversized: 2, received: 0 });
    }));

  it("passes up no frame longer than the MTU and its Ethernet header, or 4 bytes more with a tag", () =>
    withGuest({ mtu: 1300 }, async (g) => {
      await g.post(8, 2000);
      const udp = (size: number, vlan?: number): Uint8Array =>
        frame({ protocol: "udp", payload: size - 28, ...(vlan === undefined ? {} : { vlan }) });
      await g.command(2, 0, le16(5));
      await give(g, udp(1300), udp(1301), udp(1300, 5), udp(1301, 5));
      expect(g.received().map(({ frame: bytes }) => bytes.length)).toEqual([1314, 1318]);
      expect(g.port.counters.oversized).toBe(2);
    }));

  it("takes no frame without a link, tells the driver, and says when the link is back", () =>
    withGuest({}, async (g) => {
      await g.post(2, 2000);
      expect(await g.field("status")).toBe(1);
      const generation = await g.generation();
      g.wire.linkUp = false;
      expect(await give(g, frame())).toEqual([false]);
      expect(await g.field("status")).toBe(0);
      expect(await g.generation()).not.toBe(generation);
      g.wire.linkUp = true;
      await g.settle();
      expect(g.wire.rooms).toBe(1);
      expect(await give(g, frame())).toEqual([true]);
    }));

  it("closes its wire", async () => {
    const g = await NetGuest.start();
    await g.close();
    expect([g.wire.closed, g.wire.deliver]).toEqual([true, null]);
  });
});

describe("checksums of received frames", () => {
  const accept = [NetFeature.MAC, NetFeature.GUEST_CSUM];

  for (const ip of [4, 6] as const)
    for (const protocol of ["tcp", "udp"] as const)
      it(`are looked at, ${protocol} over IPv${ip}: right ones are said to be valid, wrong ones not`, () =>
        withGuest({ accept }, async (g) => {
          await g.post(4, 2000);
          const spec = { ip, protocol, payload: 101 };
          const tagged = { ...spec, vlan: 7 };
          const padded = Uint8Array.of(...frame(spec), 1, 2, 3);
          await give(g, frame(spec), frame(tagged), padded, broken(frame(spec)));
          expect(g.received().map(flagsOf)).toEqual([2, 2, 2, 0]);
        }));

  it("are not said to be valid where there is none, or of a fragment, or of no IP", () =>
    withGuest({ accept }, async (g) => {
      await g.post(4, 2000);
      const unsummed = frame({ protocol: "udp" });
      unsummed.fill(0, 40, 42);
      const fragment = frame();
      fragment[20] = 0x20;
      const arp = frame();
      arp[13] = 6;
      const cut = frame().slice(0, 40);
      await give(g, unsummed, fragment, arp, cut);
      expect(g.received().map(flagsOf)).toEqual([0, 0, 0, 0]);
    }));

  for (const ip of [4, 6] as const)
    it(`are partial, as from another guest, where the device is asked for it (IPv${ip})`, () =>
      withGuest({ accept, partialChecksums: true }, async (g) => {
        await g.post(4, 2000);
        const l4 = ip === 4 ? 34 : 54;
        for (const protocol of ["tcp", "udp"] as const) {
          await give(g, frame({ ip, protocol }));
          const [received] = g.received();
          expect(received?.frame).toEqual(frame({ ip, protocol }, true));
          const { header } = received ?? { header: new DataView(new ArrayBuffer(12)) };
          expect([
            header.getUint8(0),
            header.getUint16(6, true),
            header.getUint16(8, true),
          ]).toEqual([NetHeaderFlag.NEEDS_CSUM, l4, protocol === "tcp" ? 16 : 6]);
        }
        const wrong = [broken(frame({ ip })), ...(ip === 4 ? [misheaded(frame())] : [])];
        for (const bytes of wrong) {
          await give(g, bytes);
          const [received] = g.received();
          expect([received?.frame, received && flagsOf(received)]).toEqual([bytes, 0]);
        }
      }));

  it("follow what the driver switches", () =>
    withGuest({}, async (g) => {
      await g.post(4, 2000);
      const udp = frame({ protocol: "udp" });
      await give(g, udp);
      expect((await g.command(5, 0, [...le32(0), ...le32(0)])).ack).toBe(0);
      await give(g, udp);
      expect((await g.command(5, 0, [...le32(1 << 1), ...le32(0)])).ack).toBe(0);
      await give(g, udp);
      expect(g.received().map(flagsOf)).toEqual([2, 0, 2]);
    }));
});

describe("TCP segments that follow each other", () => {
  const segments = (count: number, size: number, spec: FrameSpec = {}): Uint8Array[] =>
    Array.from({ length: count }, (_, i) =>
      frame({
        options: 12,
        ...spec,
        id: i,
        sequence: (0xffff_ff00 + i * size) >>> 0,
        payload: pattern(size, i * size),
      }),
    );

  /** What a merged frame must be: one that could have been sent whole, its checksum partial. */
  function expectMerged(
    received: Received | undefined,
    count: number,
    size: number,
    spec: FrameSpec = {},
  ): void {
    if (received === undefined) throw new Error("nothing came");
    const { header, frame: bytes } = received;
    const ip = spec.ip ?? 4;
    const l4 = (spec.vlan === undefined ? 14 : 18) + (ip === 4 ? 20 : 40);
    const whole = {
      options: 12,
      ...spec,
      id: 0,
      sequence: 0xffff_ff00,
      payload: pattern(count * size),
    };
    expect(bytes).toEqual(frame(whole, true));
    const gso = ip === 4 ? NetGso.TCPV4 : NetGso.TCPV6;
    const ecn = ((spec.flags ?? 0) & 0x80) !== 0 ? NetGso.ECN : 0;
    expect([header.getUint8(0), header.getUint8(1)]).toEqual([1, gso | ecn]);
    expect([2, 4, 6, 8].map((at) => header.getUint16(at, true))).toEqual([l4 + 32, size, l4, 16]);
  }

  for (const ip of [4, 6] as const)
    for (const merge of [true, false])
      it(`come as one frame, IPv${ip}, in ${merge ? "merged buffers" : "one buffer"}`, () =>
        withGuest(
          {
            accept: [
              NetFeature.GUEST_CSUM,
              NetFeature.GUEST_TSO4,
              NetFeature.GUEST_TSO6,
              ...(merge ? [NetFeature.MRG_RXBUF] : []),
            ],
          },
          async (g) => {
            await g.post(merge ? 60 : 4, merge ? 2048 : 66_000);
            const spec = { ip, vlan: 9 };
            await give(g, ...segments(30, 1400, spec));
            const received = g.received();
            expect(received).toHaveLength(1);
            expectMerged(received[0], 30, 1400, spec);
            expect(g.port.counters).toMatchObject({ received: 1, coalesced: 30 });
          },
        ));

  it("are no more than an IP packet holds", () =>
    withGuest({ queueSize: 256 }, async (g) => {
      await g.post(100, 2048);
      await give(g, ...segments(60, 1400));
      const received = g.received();
      expect(received.map(({ frame: bytes }) => (bytes.length - 66) / 1400)).toEqual([46, 14]);
    }));

  it("end with a shorter one, or PSH, and are put together per flow", () =>
    withGuest({}, async (g) => {
      await g.post(60, 2048);
      const one = segments(6, 100);
      const other = segments(6, 100, { ports: [5, 6] });
      one[2] = frame({ options: 12, sequence: 0xffff_ffc8, flags: 0x18, payload: 60 });
      await give(g, ...one.slice(0, 3).flatMap((bytes, i) => [bytes, other[i] ?? bytes]));
      const received = g.received();
      expect(received.map(({ frame: bytes }) => bytes.length - 66)).toEqual([260, 300]);
      expect(received[0]?.frame[47]).toBe(0x18);
      expectMerged(received[1], 3, 100, { ports: [5, 6] });
    }));

  for (const [what, odd] of [
    ["out of order", { sequence: 5 }],
    ["with another flag", { flags: 0x11 }],
    ["larger", { payload: 101 }],
    ["with other options", { options: 8 }],
    ["of another type of service", { tos: 4 }],
    ["without payload", { payload: 0 }],
  ] as const)
    it(`are not put together with one ${what}; the order stays`, () =>
      withGuest({}, async (g) => {
        await g.post(20, 2048);
        const strange = frame({
          options: 12,
          id: 2,
          sequence: (0xffff_ff00 + 200) >>> 0,
          payload: 100,
          ...odd,
        });
        await give(g, ...segments(2, 100), strange);
        const received = g.received();
        expect(received.map(({ frame: bytes }) => bytes.length)).toEqual([266, strange.length]);
        expect(received[1]?.frame).toEqual(strange);
        expect(received.map(flagsOf)).toEqual([1, 2]);
      }));

  for (const [what, spoil] of [
    ["checksum", broken],
    ["IPv4 header's checksum", misheaded],
  ] as const)
    it(`whose ${what} is wrong come as they are, behind those before them`, () =>
      withGuest({}, async (g) => {
        await g.post(20, 2048);
        const [a, b, c] = segments(3, 100);
        if (a === undefined || b === undefined || c === undefined) throw new Error("three");
        await give(g, a, spoil(b), c);
        const received = g.received();
        expect(received.map(({ frame: bytes }) => bytes)).toEqual([a, spoil(b), c]);
        expect(received.map(flagsOf)).toEqual([2, 0, 2]);
      }));

  it("begin with CWR only where ECN was accepted", () =>
    withGuest({}, async (g) => {
      await g.post(20, 2048);
      const [first] = segments(1, 100, { flags: 0x90 });
      if (first === undefined) throw new Error("one");
      const rest = segments(3, 100).slice(1);
      await give(g, first, ...rest);
      expectMerged(g.received()[0], 3, 100, { flags: 0x90 });
      const csum = (1 << NetFeature.GUEST_CSUM) | (1 << NetFeature.GUEST_TSO4);
      await g.command(5, 0, [...le32(csum), ...le32(0)]);
      await give(g, first, ...rest);
      expect(g.received().map(({ frame: bytes }) => bytes.length)).toEqual([166, 266]);
    }));

  it("stay separate without the feature, or switched off", () =>
    withGuest({ accept: [NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO6] }, async (g) => {
      await g.post(20, 2048);
      await give(g, ...segments(3, 100));
      expect(g.received().map(({ header }) => header.getUint8(1))).toEqual([0, 0, 0]);
    }));

  it("wait for buffers, and nothing is lost", () =>
    withGuest({ queueSize: 64 }, async (g) => {
      await g.post(1, 2048);
      const all = segments(10, 1000);
      expect((await give(g, ...all)).every((taken) => taken)).toBe(true);
      expect(g.received()).toEqual([]);
      await g.post(10, 2048);
      expectMerged(g.received()[0], 10, 1000);
    }));
});

describe("the receive filter", () => {
  const own = GUEST_MAC;
  const other = [2, 0, 0, 0, 0, 9];
  const third = [2, 0, 0, 0, 1, 9];
  const group = [1, 0, 0x5e, 0, 0, 1];
  const group2 = [1, 0, 0x5e, 0, 0, 2];
  const broadcast = [255, 255, 255, 255, 255, 255];
  const names = { own, other, third, group, group2, broadcast };

  /** Which of the addresses pass. */
  async function passing(g: NetGuest): Promise<string[]> {
    await g.post(6, 200);
    await give(g, ...Object.values(names).map((to) => frame({ to, protocol: "udp" })));
    return g
      .received()
      .map(({ frame: bytes }) => [...bytes.subarray(0, 6)].join())
      .map((to) => Object.entries(names).find(([, mac]) => mac.join() === to)?.[0] ?? to);
  }

  const accept = [NetFeature.CTRL_VQ, NetFeature.CTRL_RX, NetFeature.CTRL_RX_EXTRA, NetFeature.MAC];

  it("lets the own address and broadcast through after a reset, and everything where it cannot be set", () =>
    withGuest({ accept }, async (g) => {
      expect(await passing(g)).toEqual(["own", "broadcast"]);
      await g.command(0, 0, [1]);
      await g.run(accept);
      expect(await passing(g)).toEqual(["own", "broadcast"]);
      await g.run([NetFeature.CTRL_VQ]);
      expect(await passing(g)).toEqual(Object.keys(names));
    }));

  const modes: readonly (readonly [string, readonly (readonly [number, number])[], string[]])[] = [
    ["promisc", [[0, 1]], Object.keys(names)],
    [
      "promisc over nouni, nomulti and nobcast",
      [
        [0, 1],
        [3, 1],
        [4, 1],
        [5, 1],
      ],
      Object.keys(names),
    ],
    [
      "promisc switched off",
      [
        [0, 1],
        [0, 0],
      ],
      ["own", "broadcast"],
    ],
    ["allmulti", [[1, 1]], ["own", "group", "group2", "broadcast"]],
    ["alluni", [[2, 1]], ["own", "other", "third", "broadcast"]],
    [
      "nomulti over allmulti, not over broadcast",
      [
        [1, 1],
        [3, 1],
      ],
      ["own", "broadcast"],
    ],
    [
      "nouni over alluni",
      [
        [2, 1],
        [4, 1],
      ],
      ["broadcast"],
    ],
    [
      "nobcast over allmulti",
      [
        [1, 1],
        [5, 1],
      ],
      ["own", "group", "group2"],
    ],
  ];
  for (const [name, commands, expected] of modes)
    it(`knows ${name}`, () =>
      withGuest({ accept }, async (g) => {
        for (const [command, on] of commands)
          expect((await g.command(0, command, [on])).ack).toBe(0);
        expect(await passing(g)).toEqual(expected);
      }));

  it("holds tables of addresses, and shows them", () =>
    withGuest({ accept }, async (g) => {
      const set = (unicast: number[][], multicast: number[][]) =>
        g.command(1, 0, [
          ...le32(unicast.length),
          ...unicast.flat(),
          ...le32(multicast.length),
          ...multicast.flat(),
        ]);
      expect((await set([other], [group2])).ack).toBe(0);
      expect(await passing(g)).toEqual(["own", "other", "group2", "broadcast"]);
      const { filter } = g.port;
      expect(filter?.unicast).toEqual([Uint8Array.from(other)]);
      expect(filter?.multicast).toEqual([Uint8Array.from(group2)]);
      expect(filter?.modes.PROMISC).toBe(false);
      expect((await set([], [])).ack).toBe(0);
      expect(await passing(g)).toEqual(["own", "broadcast"]);
    }));

  it("lets all of a kind through when its table has no room for them", () =>
    withGuest({ accept, macTable: 2 }, async (g) => {
      const three = [...le32(3), ...other, ...other, ...other];
      await g.command(1, 0, [...three, ...le32(0)]);
      expect(await passing(g)).toEqual(["own", "other", "third", "broadcast"]);
      expect(g.port.filter).toMatchObject({ unicastOverflow: true, multicastOverflow: false });
      await g.command(1, 0, [...le32(0), ...le32(3), ...group, ...group, ...group]);
      expect(await passing(g)).toEqual(["own", "group", "group2", "broadcast"]);
    }));

  it("follows the address that the driver sets, until a reset", () =>
    withGuest({}, async (g) => {
      expect((await g.command(1, 1, other)).ack).toBe(0);
      expect(await g.mac()).toEqual(other);
      expect(await passing(g)).toEqual(["other", "broadcast"]);
      await g.run();
      expect(await g.mac()).toEqual(own);
    }));

  it("follows the address that a legacy driver writes", () =>
    withGuest(
      { legacy: "on", accept: [...plain, NetFeature.CTRL_VQ, NetFeature.CTRL_RX] },
      async (g) => {
        for (const [i, byte] of other.entries()) await g.writeConfig(i, 1, byte);
        expect(await g.mac()).toEqual(other);
        expect(await passing(g)).toEqual(["other", "broadcast"]);
      },
    ));

  it("lets the VLANs of its table through, id 0 and untagged frames; without it all", () =>
    withGuest({}, async (g) => {
      const ids = async (): Promise<number[]> => {
        await g.post(4, 200);
        const tagged = [0, 5, 4095].map((id) => frame({ protocol: "udp", vlan: 0xe000 | id }));
        await give(g, frame({ protocol: "udp" }), ...tagged);
        return g.received().map(({ frame: bytes }) => {
          const view = new DataView(bytes.buffer);
          return view.getUint16(12) === 0x8100 ? view.getUint16(14) & 0xfff : -1;
        });
      };
      expect(await ids()).toEqual([-1, 0]);
      await g.command(2, 0, le16(5));
      await g.command(2, 0, le16(4095));
      expect(await ids()).toEqual([-1, 0, 5, 4095]);
      expect(g.port.filter?.vlans).toEqual([5, 4095]);
      await g.command(2, 1, le16(5));
      expect(await ids()).toEqual([-1, 0, 4095]);
      await g.run([NetFeature.MAC]);
      expect(await ids()).toEqual([-1, 0, 5, 4095]);
    }));
});

describe("several pairs of queues", () => {
  const flow = (n: number, back = false): FrameSpec => ({
    protocol: "udp",
    ports: back ? [80, 1000 + n] : [1000 + n, 80],
    hosts: back ? [2, 1] : [1, 2],
  });

  async function counts(g: NetGuest, frames: readonly Uint8Array[]): Promise<number[]> {
    await give(g, ...frames);
    return [0, 1, 2, 3].map((pair) => g.received(pair).length);
  }

  async function start(options: NetGuestOptions, body: (g: NetGuest) => Promise<void>) {
    const { queues = 4 } = options;
    await withGuest({ ...options, queues }, async (g) => {
      for (let pair = 0; pair < queues; pair++) await g.post(40, 200, pair);
      await body(g);
    });
  }

  it("are used when the driver says so: the first alone before, and after a reset", () =>
    start({}, async (g) => {
      const flows = Array.from({ length: 32 }, (_, n) => frame(flow(n)));
      expect(await counts(g, flows)).toEqual([32, 0, 0, 0]);
      expect((await g.command(4, 0, le16(3))).ack).toBe(0);
      expect(g.port.activePairs).toBe(3);
      const spread = await counts(g, flows);
      expect(spread.slice(0, 3).every((n) => n > 0)).toBe(true);
      expect(spread[3]).toBe(0);
      await g.run();
      await g.post(40, 200, 0);
      expect(await counts(g, flows.slice(0, 10))).toEqual([10, 0, 0, 0]);
    }));

  it("get a flow's frames where the driver transmits it, in either direction, and always the same", () =>
    start({}, async (g) => {
      await g.command(4, 0, le16(4));
      for (const pair of [2, 0, 3, 1]) {
        await g.transmit([frame({ ...flow(pair, true), to: [2, 0, 0, 0, 0, 1] })], {}, pair);
        const expected = [0, 0, 0, 0];
        expected[pair] = 3;
        const one = frame(flow(pair));
        expect(await counts(g, [one, one, one])).toEqual(expected);
      }
    }));

  it("leave out a queue that is being reset; without any the frame is dropped", () =>
    start({ queues: 2 }, async (g) => {
      await g.command(4, 0, le16(2));
      await g.resetQueue(0);
      const flows = Array.from({ length: 8 }, (_, n) => frame(flow(n)));
      await give(g, ...flows);
      expect(g.received(1)).toHaveLength(8);
      await g.resetQueue(2);
      expect(await give(g, ...flows)).not.toContain(false);
      expect(g.port.counters.undelivered).toBe(8);
    }));

  it("keep a transmit queue that is not enabled waiting until it is", () =>
    start({}, async (g) => {
      const out = frame({ ...flow(1, true), to: [2, 0, 0, 0, 0, 1], from: GUEST_MAC });
      expect(await g.transmit([out], {}, 2)).toBe(0);
      await g.command(4, 0, le16(3));
      expect(g.queue(5).used()).toHaveLength(1);
      expect(g.wire.sent).toEqual([out]);
    }));

  // The key and the vectors are Microsoft's, "Verifying the RSS Hash Calculation".
  const key = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
  ];
  const vector = (from: number[], to: number[], ports: [number, number]): Uint8Array => {
    const bytes = frame({ ports });
    bytes.set([...from, ...to], 26);
    bytes.fill(0, 24, 26);
    const sum = checksum([...bytes.subarray(14, 34)]);
    bytes.set([sum >> 8, sum & 0xff], 24);
    return bytes;
  };
  const vectors = [
    [vector([66, 9, 149, 187], [161, 142, 100, 80], [2794, 1766]), 0x51ccc178, 0x323e8fc2],
    [vector([199, 92, 111, 2], [65, 69, 140, 83], [14230, 4739]), 0xc626b0ea, 0xd718262a],
    [vector([24, 19, 198, 95], [12, 22, 207, 184], [12898, 38024]), 0x5c2b394a, 0xd2d0a5de],
  ] as const;
  const rss = (types: number, table: number[], unclassified = 0, pairs = 4): number[] => [
    ...le32(types),
    ...le16(table.length - 1),
    ...le16(unclassified),
    ...table.flatMap(le16),
    ...le16(pairs),
    key.length,
    ...key,
  ];

  it("are chosen by hash and table with RSS; what has no hash takes the queue for it", () =>
    start({ features: { RSS: true, HASH_REPORT: true } }, async (g) => {
      const table = Array.from({ length: 8 }, (_, i) => (i * 3) % 4);
      expect((await g.command(4, 1, rss(2, table, 3))).ack).toBe(0);
      for (const [bytes, tcp] of vectors) {
        await g.command(0, 0, [1]);
        await give(g, bytes);
        const pair = table[tcp & 7] ?? -1;
        const [received] = g.received(pair);
        expect(received?.header.getUint32(12, true)).toBe(tcp);
        expect(received?.header.getUint16(16, true)).toBe(2);
      }
      await give(g, frame({ protocol: "udp" }));
      expect(g.received(3)[0]?.header.getUint16(16, true)).toBe(0);
      // Addresses alone.
      expect((await g.command(4, 1, rss(1, table))).ack).toBe(0);
      for (const [bytes, , addresses] of vectors) {
        await give(g, bytes);
        const [received] = g.received(table[addresses & 7] ?? -1);
        expect(received?.header.getUint32(12, true)).toBe(addresses);
        expect(received?.header.getUint16(16, true)).toBe(1);
      }
    }));

  it("report hashes without RSS as well, and drop what RSS sends to a queue that is being reset", () =>
    start({ features: { RSS: true, HASH_REPORT: true } }, async (g) => {
      const hash = [...le32(2), ...Array<number>(8).fill(0), key.length, ...key];
      expect((await g.command(4, 2, hash)).ack).toBe(0);
      await g.command(0, 0, [1]);
      const [[bytes, tcp]] = vectors;
      await give(g, bytes);
      expect(g.received(0)[0]?.header.getUint32(12, true)).toBe(tcp);
      await g.command(4, 1, rss(2, [2]));
      await g.resetQueue(4);
      await give(g, bytes);
      expect(g.port.counters.undelivered).toBe(1);
    }));

  it("say what they can do with hashes", () =>
    start({ features: { RSS: true, HASH_REPORT: true }, indirectionTable: 256 }, async (g) => {
      expect(await g.field("rssMaxKeySize")).toBe(40);
      expect(await g.field("rssMaxIndirectionTableLength")).toBe(256);
      expect(await g.field("supportedHashTypes")).toBe(0x3f);
      expect(await g.field("maxVirtqueuePairs")).toBe(4);
      for (const bad of [
        rss(1 << 6, [0]),
        rss(1, [4]),
        rss(1, [0, 1, 2]),
        rss(1, Array<number>(512).fill(0)),
        rss(1, [0], 4),
        rss(1, [0], 0, 0),
        rss(1, [0], 0, 5),
        rss(1, [0]).slice(1),
      ])
        expect((await g.command(4, 1, bad)).ack).toBe(1);
    }));
});

describe("a network device that lies", () => {
  it("says another number of buffers, length, header and configuration, and answers as it likes", () =>
    withGuest(
      {
        lies: {
          numBuffers: () => 65535,
          usedLength: () => 3,
          header: (header) => header.fill(0xee, 0, 2),
          config: (offset, _, honest) => (offset === 6 ? 0x55 : honest),
          ack: (controlClass, _, honest) =>
            controlClass === 0 ? 7 : controlClass === 2 ? null : honest,
        },
      },
      async (g) => {
        await g.post(1, 200);
        await give(g, frame({ protocol: "udp" }));
        const [chain] = g.queue(0).used();
        expect(chain?.length).toBe(3);
        expect([...(chain?.regions[0]?.bytes.subarray(0, 12) ?? [])]).toEqual([
          0xee, 0xee, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff,
        ]);
        expect(await g.field("status")).toBe(0x55);
        expect((await g.command(0, 0, [1])).ack).toBe(7);
        expect((await g.command(1, 1, [2, 0, 0, 0, 0, 1])).ack).toBe(0);
        expect((await g.command(2, 0, le16(1))).ack).toBe(-1);
      },
    ));
});

it("checks of this file can fail", () => {
  expect(look(broken(frame())).problems).not.toEqual([]);
});

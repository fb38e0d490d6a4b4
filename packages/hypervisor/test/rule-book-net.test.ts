// Each rule of the network device's language is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { ReservedFeature } from "@virtio/core";
import { NetFeature, NetGso } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { frame, GUEST_MAC, PEER_MAC } from "./frames.js";
import { type HeaderFields, le16, le32, NetGuest, type NetGuestOptions } from "./net-guest.js";

const outward = { to: PEER_MAC, from: GUEST_MAC };
const F = NetFeature;
const mac = F.MAC;

/** Clause, what the guest does, how it does it, to which device. */
type Crime = readonly [
  clause: string,
  what: string,
  commit: (guest: NetGuest) => Promise<unknown>,
  device?: NetGuestOptions,
];

/** A TCP frame of 3000 bytes to be cut, as it should be; and the same with one thing wrong. */
const tso = (wrong: HeaderFields = {}, bytes = frame({ ...outward, payload: 3000 }, true)) =>
  [
    async (g: NetGuest): Promise<void> => {
      const right = { flags: 1, gsoType: NetGso.TCPV4, gsoSize: 1000, hdrLen: 54 };
      await g.transmit([bytes], { ...right, csumStart: 34, csumOffset: 16, ...wrong });
    },
  ] as const;
const sent = (fields: HeaderFields = {}, bytes: Uint8Array = frame(outward)) =>
  [
    async (g: NetGuest): Promise<void> => {
      await g.transmit([bytes], fields);
    },
  ] as const;
const command = (controlClass: number, number: number, data: readonly number[] = []) =>
  [
    async (g: NetGuest): Promise<void> => {
      expect((await g.command(controlClass, number, data)).ack).toBe(1);
    },
  ] as const;
const partial = { flags: 1, csumStart: 34, csumOffset: 16 };
const spoilt = (at: number, bytes: Uint8Array = frame(outward, true)): Uint8Array => {
  const other = bytes.slice();
  other[at] = (other[at] ?? 0) ^ 0x55;
  return other;
};
const received = async (g: NetGuest, length: number): Promise<void> => {
  await g.post(10, length);
  g.wire.give(frame({ protocol: "udp" }));
  await g.settle();
};
const hashing = { queues: 2, features: { RSS: true, HASH_REPORT: true } };
const rss = (types: number, table: number[]): number[] => [
  ...[...le32(types), ...le16(table.length - 1), ...le16(0), ...table.flatMap(le16)],
  ...[...le16(1), 4, 1, 2, 3, 4],
];
const entries = (count: number): number[] => Array<number>(count).fill(0);
const be16 = (n: number): number[] => le16(n).reverse();
const be32 = (n: number): number[] => le32(n).reverse();
const swap16 = (n: number): number => (n >>> 8) | ((n & 0xff) << 8);
const old = { legacy: "on" } as const;

const crimes: readonly Crime[] = [
  ["NET-CFG-1", "writes its address", (g) => g.writeConfig(0, 1, 2)],
  ["NET-CFG-2", "does not take the address it is offered", async () => {}, { accept: [] }],
  ["NET-CFG-3", "sends from another address", ...sent({}, frame(outward).fill(2, 6, 12))],
  ["NET-CFG-7", "does not take the MTU", async () => {}, { mtu: 1500, accept: [mac] }],
  [
    "NET-CFG-8",
    "posts buffers smaller than the MTU",
    (g) => received(g, 1525),
    { mtu: 1500, accept: [mac, F.MTU] },
  ],
  ["NET-CFG-8", "posts too few of them", (g) => received(g, 151), { mtu: 1500 }],
  [
    "NET-CFG-9",
    "sends more than the MTU",
    ...sent({}, frame({ ...outward, payload: 1961 })),
    { mtu: 2000 },
  ],
  [
    "NET-CFG-13",
    "takes HASH_REPORT without CTRL_VQ",
    async () => {},
    { ...hashing, accept: [mac, F.HASH_REPORT] },
  ],
  [
    "NET-CFG-14",
    "takes CTRL_RX_EXTRA without CTRL_VQ",
    async () => {},
    { accept: [mac, F.CTRL_RX_EXTRA] },
  ],
  [
    "NET-TX-1",
    "takes its header for a smaller one",
    async (g) => {
      g.headerSize = 10;
      await g.transmit([frame(outward)]);
    },
  ],
  [
    "NET-RXBUF-4",
    "takes its header for a larger one",
    async (g) => {
      g.headerSize = 20;
      await g.transmit([frame(outward)]);
    },
  ],
  [
    "NET-TX-1",
    "sends less than a header",
    (g) =>
      g.transmit([]).then(async () => {
        g.queue(1).offer([4]);
        g.queue(1).offer([new Uint8Array(11)]);
        await g.ring(1);
        await g.settle();
      }),
  ],
  ["NET-TX-2", "sets num_buffers", ...sent({ numBuffers: 1 })],
  ["NET-TX-3", "sets flags without CSUM", ...sent({ flags: 1 }), { accept: [mac] }],
  [
    "NET-TX-4",
    "leaves a checksum undone without CSUM",
    ...sent({}, frame(outward, true)),
    { accept: [mac] },
  ],
  [
    "NET-TX-7",
    "asks for TSO4, which was not negotiated",
    ...tso(),
    { accept: [mac, F.CSUM, F.HOST_TSO6] },
  ],
  [
    "NET-TX-9",
    "asks for TSO6, which was not negotiated",
    ...tso({ gsoType: 4 }),
    { accept: [mac, F.CSUM, F.HOST_TSO4] },
  ],
  ["NET-TX-11", "asks for UFO, which was not negotiated", ...tso({ gsoType: 3 })],
  [
    "NET-TX-13",
    "asks for USO, which was not negotiated",
    ...tso({ gsoType: 5 }),
    { accept: [mac, F.CSUM, F.HOST_TSO4] },
  ],
  [
    "NET-TX-14",
    "sends CWR to be cut without HOST_ECN",
    ...tso({}, frame({ ...outward, payload: 3000, flags: 0x90 }, true)),
    { accept: [mac, F.CSUM, F.HOST_TSO4] },
  ],
  [
    "NET-TX-15",
    "sends CWR to be cut without saying so",
    ...tso({}, frame({ ...outward, payload: 3000, flags: 0x90 }, true)),
  ],
  ["NET-TX-17", "sets a tunnel bit", ...tso({ gsoType: 0x21 })],
  ["NET-TX-42", "sets the other tunnel bit", ...tso({ gsoType: 0x41 })],
  ["NET-TX-25", "sets both tunnel bits", ...tso({ gsoType: 0x61 })],
  ["NET-TX-22", "sets UDP_TUNNEL_CSUM", ...tso({ flags: 9, gsoType: 0x21 })],
  ["NET-TX-43", "sets UDP_TUNNEL_CSUM of a plain frame", ...sent({ flags: 8 })],
  ["NET-TX-26", "sets UDP_TUNNEL_CSUM without a tunnel", ...sent({ flags: 8 })],
  ["NET-TX-6", "asks for TSO4 without it", ...tso(), { accept: [mac, F.CSUM] }],
  ["NET-TX-8", "asks for TSO6 without it", ...tso({ gsoType: 4 }), { accept: [mac, F.CSUM] }],
  ["NET-TX-10", "asks for UFO without it", ...tso({ gsoType: 3 })],
  ["NET-TX-12", "asks for USO without it", ...tso({ gsoType: 5 }), { accept: [mac, F.CSUM] }],
  ["NET-TX-27", "leaves a checksum to a device without CSUM", ...sent(partial), { accept: [mac] }],
  ["NET-TX-20", "leaves an outer checksum to the device", ...tso({ flags: 9, gsoType: 0x21 })],
  ["NET-TX-23", "leaves the other outer checksum to it", ...tso({ flags: 9, gsoType: 0x41 })],
  ["NET-TX-24", "asks for UFO in a tunnel", ...tso({ gsoType: 0x23 })],
  ["NET-TX-46", "says that a checksum in a tunnel is valid", ...tso({ flags: 3, gsoType: 0x21 })],
  ["NET-TX-28", "leaves the IPv4 checksum wrong", ...sent(partial, spoilt(24))],
  ["NET-TX-29", "stores another sum than the pseudo header's", ...sent(partial, spoilt(50))],
  ["NET-TX-30", "places the checksum beyond the frame", ...sent({ ...partial, csumStart: 1000 })],
  [
    "NET-TX-30",
    "places the checksum elsewhere",
    ...sent({ ...partial, csumOffset: 6 }, frame(outward, true)),
  ],
  ["NET-TX-31", "asks for segments where there are none", ...tso(), { accept: [mac, F.CSUM] }],
  ["NET-TX-32", "asks for segments without NEEDS_CSUM", ...tso({ flags: 0 })],
  ["NET-TX-33", "asks for segments of 0 bytes", ...tso({ gsoSize: 0 })],
  [
    "NET-TX-34",
    "gives another header length",
    ...tso({ hdrLen: 55 }),
    { features: { GUEST_HDRLEN: true } },
  ],
  ["NET-TX-35", "gives too small a header length", ...tso({ hdrLen: 53 })],
  [
    "NET-TX-44",
    "does not take GUEST_HDRLEN",
    async () => {},
    { features: { GUEST_HDRLEN: true }, accept: [mac] },
  ],
  ["NET-TX-45", "says that a checksum is valid", ...sent({ flags: 2 })],
  [
    "NET-RXBUF-2",
    "posts buffers too small for any frame",
    (g) => received(g, 1525),
    { accept: [mac] },
  ],
  [
    "NET-RXBUF-1",
    "posts buffers too small for several segments",
    (g) => received(g, 65_600),
    { accept: [mac, F.GUEST_CSUM, F.GUEST_TSO4] },
  ],
  [
    "NET-RXBUF-1",
    "posts buffers too small for them and a hash",
    (g) => received(g, 65_608),
    { ...hashing, accept: [mac, F.CTRL_VQ, F.HASH_REPORT, F.GUEST_CSUM, F.GUEST_TSO6] },
  ],
  ["NET-RXBUF-5", "enables a pair without buffers", (g) => g.command(4, 0, le16(2)), { queues: 2 }],
  ["NET-RXBUF-3", "posts buffers smaller than a header", (g) => received(g, 11)],
  [
    "NET-CTRL-RX-1",
    "sets a mode without CTRL_RX",
    ...command(0, 0, [1]),
    { accept: [mac, F.CTRL_VQ] },
  ],
  [
    "NET-CTRL-RX-2",
    "sets a mode without CTRL_RX_EXTRA",
    ...command(0, 2, [1]),
    { accept: [mac, F.CTRL_VQ, F.CTRL_RX] },
  ],
  [
    "NET-CTRL-MAC-1",
    "sets addresses without CTRL_RX",
    ...command(1, 0, entries(8)),
    { accept: [mac, F.CTRL_VQ] },
  ],
  ["NET-CTRL-MAC-3", "sends half a table", ...command(1, 0, entries(4))],
  [
    "NET-CTRL-MAC-3",
    "names a group among the stations",
    (g) => g.command(1, 0, [...le32(1), 1, 0, 0, 0, 0, 0, ...le32(0)]),
  ],
  [
    "NET-ANNOUNCE-2",
    "does not acknowledge that it is to announce itself",
    async (g) => {
      g.port.announce();
      await g.settle();
      await g.field("status");
      await g.reset();
    },
  ],
  [
    "NET-MQ-1",
    "enables pairs whose queues it has not made",
    async (g) => {
      await g.resetQueue(2);
      await g.command(4, 0, le16(2));
    },
    { queues: 2 },
  ],
  ["NET-MQ-2", "sets 0 pairs", ...command(4, 0, le16(0)), { queues: 2 }],
  ["NET-MQ-2", "sets more pairs than there are", ...command(4, 0, le16(3)), { queues: 2 }],
  [
    "NET-MQ-3",
    "transmits by the second pair before it enabled it",
    (g) => g.transmit([frame(outward)], {}, 1),
    { queues: 2 },
  ],
  [
    "NET-MQ-4",
    "transmits by the second pair when it enabled one",
    async (g) => {
      await g.command(4, 0, le16(1));
      await g.transmit([frame(outward)], {}, 1);
    },
    { queues: 2 },
  ],
  [
    "NET-HASHCFG-1",
    "sets reserved bytes of HASH_CONFIG",
    (g) => g.command(4, 2, [...le32(1), 1, ...entries(7), 0]),
    hashing,
  ],
  [
    "NET-RSS-1",
    "configures RSS, which it did not take",
    ...command(4, 1, rss(1, [0])),
    { ...hashing, accept: [mac, F.CTRL_VQ, F.MQ] },
  ],
  ["NET-RSS-2", "names a queue that there is not", ...command(4, 1, rss(1, [2])), hashing],
  ["NET-RSS-3", "has a table of three", ...command(4, 1, rss(1, [0, 0, 0])), hashing],
  [
    "NET-RSS-4",
    "has a larger table than the device",
    ...command(4, 1, rss(1, entries(256))),
    hashing,
  ],
  ["NET-RSS-5", "wants a hash that there is not", ...command(4, 1, rss(0x40, [0])), hashing],
  [
    "NET-OFFLOAD-1",
    "enables an offload that it did not take",
    ...command(5, 0, [...le32(1 << 8), ...le32(0)]),
    { accept: [mac, F.CTRL_VQ, F.CTRL_GUEST_OFFLOADS, F.GUEST_CSUM] },
  ],
  [
    "NET-COAL-1",
    "names a queue that there is not",
    ...command(6, 3, [...le16(2), ...le16(0)]),
    { features: { VQ_NOTF_COAL: true } },
  ],
  [
    "NET-COAL-2",
    "sets coalescing without NOTF_COAL",
    ...command(6, 0, entries(8)),
    { features: { VQ_NOTF_COAL: true } },
  ],
  [
    "NET-COAL-3",
    "sets a queue's without VQ_NOTF_COAL",
    ...command(6, 2, entries(12)),
    { features: { NOTF_COAL: true } },
  ],
  ["NET-INNERHASH-1", "sets a hash of inner headers", ...command(7, 0, entries(4))],
  ["NET-RSSCTX-1", "adds an RSS context", ...command(9, 0, entries(8))],
  [
    "NET-HDR-LEGACY-1",
    "writes headers in the other byte order",
    ...sent({ flags: 1, csumStart: swap16(34), csumOffset: swap16(16) }, frame(outward, true)),
    old,
  ],
  [
    "NET-CTRL-MAC-LEGACY-1",
    "counts addresses in the other byte order",
    ...command(1, 0, [...be32(1), ...PEER_MAC, ...be32(0)]),
    old,
  ],
  ["NET-VLAN-LEGACY-1", "names a VLAN in it", ...command(2, 0, be16(4094)), old],
  ["NET-MQ-LEGACY-1", "enables pairs in it", ...command(4, 0, be16(2)), { ...old, queues: 2 }],
  [
    "NET-OFFLOAD-LEGACY-1",
    "sets offloads in it",
    ...command(5, 0, [...be32(1 << 1), ...be32(0)]),
    old,
  ],
  ["NET-FRAME-LEGACY-1", "has header and frame in one descriptor", ...sent(), { legacy: "on" }],
  [
    "NET-FRAME-LEGACY-2",
    "has class, command and data in one descriptor",
    (g) => g.command(0, 0, [1]),
    { legacy: "on" },
  ],
  [
    "NET-FRAME-LEGACY-3",
    "cuts the data of a command in two",
    async (g) => {
      g.queue(2).offer([Uint8Array.of(2, 0), Uint8Array.of(1), Uint8Array.of(0), 1]);
      await g.ring(2);
      await g.settle();
    },
    { legacy: "on" },
  ],
  [
    "NET-FRAME-LEGACY-4",
    "has both tables in one descriptor",
    async (g) => {
      g.queue(2).offer([Uint8Array.of(1, 0), new Uint8Array(8), 1]);
      await g.ring(2);
      await g.settle();
    },
    { legacy: "on" },
  ],
  [
    "NET-FRAME-LEGACY-5",
    "has two bytes for an answer",
    async (g) => {
      g.queue(2).offer([Uint8Array.of(0, 0), Uint8Array.of(1), 2]);
      await g.ring(2);
      await g.settle();
    },
    { legacy: "on" },
  ],
];

describe("the rule book of the network device", () => {
  for (const [clause, what, commit, device] of crimes)
    it(`reports a guest that ${what} [${clause} fires]`, async () => {
      const g = await NetGuest.start(device);
      try {
        await commit(g);
        expect(g.clauses()).toContain(clause);
        expect(g.rules.violations.at(-1)?.device).toBe("net0");
      } finally {
        await g.close();
      }
    });

  it("keeps them of a guest that does all of this as it should", async () => {
    const features = { NOTF_COAL: true, VQ_NOTF_COAL: true, RSS: true, GUEST_HDRLEN: true };
    const g = await NetGuest.start({ queues: 2, mtu: 1500, features });
    const done = async (controlClass: number, number: number, data: number[]): Promise<void> =>
      expect((await g.command(controlClass, number, data, number === 3 ? 8 : 0)).ack).toBe(0);
    await g.post(10, 2048, 1);
    await done(4, 0, le16(2));
    await done(4, 0, le16(2));
    await done(4, 1, rss(1, [0, 1]));
    await done(0, 0, [0]);
    await done(0, 2, [0]);
    await done(1, 0, [...le32(1), ...PEER_MAC, ...le32(1), 1, 0, 0x5e, 0, 0, 1]);
    await done(5, 0, [...le32(1 << 1), ...le32(0)]);
    await done(6, 0, entries(8));
    await done(6, 2, entries(12));
    g.port.announce();
    await g.settle();
    expect(await g.field("status")).toBe(3);
    await done(3, 0, []);
    await received(g, 2048);
    await g.transmit([frame(outward)]);
    await g.transmit([frame(outward, true)], partial);
    await tso()[0](g);
    await tso({ gsoType: 0x81 }, frame({ ...outward, payload: 3000, flags: 0x90 }, true))[0](g);
    await g.reset();
    await g.run([mac, F.MTU, F.GUEST_HDRLEN], [ReservedFeature.RING_RESET]);
    await g.transmit([frame(outward)]);
    await received(g, 1526);
    await g.reset();
    await g.run([mac, F.MTU, F.GUEST_HDRLEN, F.GUEST_CSUM, F.GUEST_TSO4]);
    await received(g, 65_601);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    const other = /LEGACY|HASHCFG|NET-TX-35|NET-TX-14|NET-TX-8|NET-TX-10|NET-TX-12/;
    for (const clause of crimes.map(([id]) => id).filter((id) => !other.test(id)))
      expect([clause, g.rules.kept(clause) > 0]).toEqual([clause, true]);
    await g.close();
  });

  it("does not ask a promiscuous guest, or one with several addresses, for the card's own", async () => {
    const g = await NetGuest.start();
    const bridged = frame({ to: PEER_MAC, from: [2, 0, 0, 0, 0, 9] });
    await g.command(1, 0, [...le32(1), 2, 0, 0, 0, 0, 9, ...le32(0)]);
    await g.transmit([bridged]);
    await g.command(1, 0, [...le32(0), ...le32(0)]);
    await g.command(0, 0, [1]);
    await g.transmit([bridged]);
    expect(g.clauses()).toEqual([]);
    await g.command(0, 0, [0]);
    await g.transmit([bridged]);
    expect(g.clauses()).toEqual(["NET-CFG-3"]);
    await g.close();
  });

  it("finds nothing wrong with a legacy guest that frames everything as it must", async () => {
    const g = await NetGuest.start({ legacy: "on" });
    for (const parts of [
      [Uint8Array.of(0, 0), Uint8Array.of(1), 1],
      [Uint8Array.of(1, 0), new Uint8Array(4), new Uint8Array(4), 1],
    ])
      g.queue(2).offer(parts);
    await g.ring(2);
    g.queue(1).offer([g.header(), frame(outward)]);
    await g.ring(1);
    await g.settle();
    expect(g.clauses()).toEqual([]);
    expect(g.wire.sent).toHaveLength(1);
    await g.close();
  });
});

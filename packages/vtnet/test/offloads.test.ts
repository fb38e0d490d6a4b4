import { type Frame, InterfaceCapability } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { type Fake, header, running, usual } from "./fake-device.js";

/** RFC 1071 by its words, byte after byte: not the sum that is tested. */
function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (const [i, byte] of bytes.entries()) sum += i % 2 === 0 ? byte * 256 : byte;
  while (sum > 0xffff) sum = (sum % 0x1_0000) + Math.floor(sum / 0x1_0000);
  return 0xffff - sum;
}

const put16 = (bytes: Uint8Array, at: number, value: number): void => {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value & 0xff;
};

interface Packet {
  readonly bytes: Uint8Array;
  /** Where TCP or UDP begins, and its checksum. */
  readonly start: number;
  readonly place: number;
  readonly pseudo: Uint8Array;
}

/** A frame of TCP or UDP whose checksum is the pseudo header's sum. */
function packet({
  ip = 4,
  protocol = "tcp",
  payload = 100,
  port = 80,
  cwr = false,
}: {
  ip?: 4 | 6;
  protocol?: "tcp" | "udp";
  payload?: number;
  port?: number;
  cwr?: boolean;
} = {}): Packet {
  const tcp = protocol === "tcp";
  const start = 14 + (ip === 4 ? 20 : 40);
  const l4 = (tcp ? 20 : 8) + payload;
  const bytes = new Uint8Array(start + l4);
  bytes.set([2, 0, 0, 0, 0, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
  put16(bytes, 12, ip === 4 ? 0x0800 : 0x86dd);
  const number = tcp ? 6 : 17;
  let addresses: Uint8Array;
  if (ip === 4) {
    bytes.set([0x45, 0, 0, 0, 0, 1, 0, 0, 64, number, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2], 14);
    put16(bytes, 16, Math.min(20 + l4, 0xffff));
    put16(bytes, 24, checksum(bytes.subarray(14, 34)));
    addresses = bytes.subarray(26, 34);
  } else {
    bytes.set([0x60, 0, 0, 0, 0, 0, number, 64], 14);
    put16(bytes, 18, Math.min(l4, 0xffff));
    for (let i = 0; i < 32; i++) bytes[22 + i] = i;
    addresses = bytes.subarray(22, 54);
  }
  put16(bytes, start, 4000);
  put16(bytes, start + 2, port);
  if (tcp) bytes.set([0x50, cwr ? 0x90 : 0x10], start + 12);
  else put16(bytes, start + 4, l4);
  for (let i = 0; i < payload; i++) bytes[bytes.length - payload + i] = i * 13;
  const pseudo = Uint8Array.from([...addresses, 0, number, (l4 >>> 8) & 0xff, l4 & 0xff]);
  const place = start + (tcp ? 16 : 6);
  put16(bytes, place, 0xffff - checksum(pseudo));
  return { bytes, start, place, pseudo };
}

/** Whether the checksum above IP is right. */
function isRight(bytes: Uint8Array, { start, pseudo }: Packet): boolean {
  return checksum(Uint8Array.from([...pseudo, ...bytes.subarray(start)])) === 0;
}

/** Transmits a packet, cut into buffers of some lengths. */
function send(
  { net }: Fake,
  { bytes, start, place }: Packet,
  change: Partial<Frame> = {},
  cuts: readonly number[] = [],
): number {
  let head: Frame | null = null;
  let tail: Frame | null = null;
  let at = 0;
  let parts = 0;
  while (at < bytes.length) {
    const part = net.allocate();
    if (part === null) throw new Error("no frame");
    const cut = cuts[parts] ?? part.room;
    parts += 1;
    const piece = bytes.subarray(at, at + cut);
    part.bytes.set(piece, part.offset);
    part.length = piece.length;
    at += piece.length;
    head ??= part;
    if (tail !== null) tail.next = part;
    tail = part;
  }
  if (head === null) throw new Error("nothing");
  Object.assign(head, { flags: 1, csumStart: start, csumOffset: place - start, ...change });
  return net.transmitBurst(-1, [head], 1);
}

const offloads = [...usual, NetFeature.CSUM, NetFeature.GUEST_CSUM];
const all = [...offloads, NetFeature.HOST_TSO4, NetFeature.HOST_TSO6];
const kinds = [
  { ip: 4, protocol: "tcp" },
  { ip: 4, protocol: "udp" },
  { ip: 6, protocol: "tcp" },
  { ip: 6, protocol: "udp" },
] as const;

describe("transmit checksums", () => {
  it.each(kinds)(
    "are the device's with CSUM: IPv$ip $protocol [NET-TX-27] [NET-TX-30]",
    async (kind) => {
      const made = await running({ features: offloads });
      const sent = packet(kind);
      send(made, sent);
      const [seen] = made.device.sent(0);
      expect(seen?.frame).toEqual(sent.bytes);
      expect(seen?.header).toEqual(
        header({
          flags: 1,
          csumStart: sent.start,
          csumOffset: sent.place - sent.start,
          numBuffers: 0,
        }),
      );
    },
  );

  it.each(kinds)("are completed here without: IPv$ip $protocol [NET-TX-4]", async (kind) => {
    for (const features of [usual, offloads]) {
      const made = await running({ features });
      if (features === offloads)
        for (const capability of [InterfaceCapability.TXCSUM, InterfaceCapability.TXCSUM_IPV6])
          await made.net.setCapability(capability, false);
      // Cuts at odd places too.
      for (const cuts of [[], [75, 1], [74, 33]]) {
        const sent = packet({ ...kind, payload: 301 });
        send(made, sent, {}, cuts);
        const [seen] = made.device.sent(0);
        expect(seen?.header[0]).toBe(0);
        expect(isRight(seen?.frame ?? new Uint8Array(), sent)).toBe(true);
      }
    }
  });

  it("that lie outside of the frame, or of no IP packet, are errors", async () => {
    const made = await running({ features: offloads });
    const free = made.net.statistics.oerrors;
    send(made, packet(), { csumOffset: 4000 });
    send(made, packet(), { csumStart: 0 });
    const other = packet();
    put16(other.bytes, 12, 0x88b5);
    send(made, other);
    expect(made.device.sent(0)).toEqual([]);
    expect(made.net.statistics.oerrors - free).toBe(3);
    expect(made.sysctl.find("vtnet.tx_csum_unknown_ethtype")[0]?.read()).toBe(1);
  });
});

describe("TSO", () => {
  it.each([
    { ip: 4, gsoType: 1 },
    { ip: 6, gsoType: 4 },
  ] as const)(
    "asks for segments, IPv$ip [NET-TX-6] [NET-TX-8] [NET-TX-32] [NET-TX-33] [NET-TX-34]",
    async ({ ip, gsoType }) => {
      const made = await running({ features: all });
      const sent = packet({ ip, payload: 20_000 });
      send(made, sent, { gsoType, gsoSize: 1448 });
      const [seen] = made.device.sent(0);
      expect(seen?.frame).toEqual(sent.bytes);
      expect(seen?.header).toEqual(
        header({
          flags: 1,
          gsoType,
          hdrLen: sent.start + 20,
          gsoSize: 1448,
          csumStart: sent.start,
          csumOffset: 16,
          numBuffers: 0,
        }),
      );
      made.net.transmitBurst(0, [], 0);
      expect(made.sysctl.find("vtnet.txq0.tso")[0]?.read()).toBe(1);
    },
  );

  it("says the length of headers of every frame, or more [NET-TX-35]", async () => {
    const made = await running({ features: all });
    send(made, packet(), { flags: 0 });
    const [seen] = made.device.sent(0);
    expect(seen?.header[2]).toBeGreaterThanOrEqual(54);
  });

  it.each([
    { what: "is not switched on", off: true },
    { what: "was not negotiated", features: offloads },
    { what: "comes without a partial checksum", change: { flags: 0 } },
    { what: "is of another IP version", change: { gsoType: 4 } },
    { what: "has segments of 0 bytes", change: { gsoSize: 0 } },
    { what: "is of UDP", kind: { protocol: "udp" as const } },
    { what: "is of no type that there is", change: { gsoType: 2 } },
  ])("that $what is an error [NET-TX-7] [NET-TX-9] [NET-TX-31]", async (wrong) => {
    const made = await running({ features: wrong.features ?? all });
    if (wrong.off === true) await made.net.setCapability(InterfaceCapability.TSO4, false);
    send(made, packet({ payload: 4000, ...wrong.kind }), {
      gsoType: 1,
      gsoSize: 1448,
      ...wrong.change,
    });
    expect(made.device.sent(0)).toEqual([]);
    expect(made.net.statistics.oerrors).toBe(1);
  });

  it("marks CWR where HOST_ECN was negotiated, else drops it [NET-TX-14] [NET-TX-15]", async () => {
    const gso = { gsoType: 1, gsoSize: 1448 };
    const made = await running({ features: [...all, NetFeature.HOST_ECN] });
    send(made, packet({ payload: 4000, cwr: true }), gso);
    send(made, packet({ payload: 4000 }), gso);
    expect(made.device.sent(0).map(({ header: bytes }) => bytes[1])).toEqual([0x81, 1]);
    const without = await running({ features: all });
    send(without, packet({ payload: 4000, cwr: true }), gso);
    send(without, packet({ payload: 4000, cwr: true }), gso);
    expect(without.device.sent(0)).toEqual([]);
    expect(without.lines.filter((line) => line.startsWith("TSO with ECN"))).toHaveLength(1);
  });

  it.each([
    { what: "UFO", gsoType: 3, feature: NetFeature.HOST_UFO },
    { what: "USO", gsoType: 5, feature: NetFeature.HOST_USO },
  ])(
    "of UDP goes where $what was negotiated [NET-TX-10] [NET-TX-11] [NET-TX-12] [NET-TX-13]",
    async (kind) => {
      const { gsoType, feature } = kind;
      const sent = packet({ protocol: "udp", payload: 4000 });
      const gso = { gsoType, gsoSize: 1400 };
      const made = await running({ features: [...all, feature] });
      send(made, sent, gso);
      expect(made.device.sent(0)[0]?.header[1]).toBe(gsoType);
      const without = await running({ features: all });
      send(without, sent, gso);
      expect(without.device.sent(0)).toEqual([]);
    },
  );
});

describe("VLAN tags", () => {
  const tagged = (bytes: Uint8Array, tag: number): Uint8Array =>
    Uint8Array.from([
      ...bytes.subarray(0, 12),
      0x81,
      0,
      tag >>> 8,
      tag & 0xff,
      ...bytes.subarray(12),
    ]);

  it("are put in", async () => {
    const made = await running({ features: offloads });
    const sent = packet();
    send(made, sent, { vlanTag: 0x2005 });
    const [seen] = made.device.sent(0);
    expect(seen?.frame).toEqual(tagged(sent.bytes, 0x2005));
    expect(seen?.header).toEqual(
      header({ flags: 1, csumStart: sent.start + 4, csumOffset: 16, numBuffers: 0 }),
    );
  });

  it("in the bytes are room besides the MTU, wherever they lie", async () => {
    const made = await running({ features: offloads });
    const { bytes, start, place } = packet({ payload: 1460 });
    const sent = tagged(bytes, 0x2005);
    for (const cuts of [[], [12, 1], [13], [17]]) {
      expect(send(made, { bytes: sent, start, place, pseudo: bytes }, { flags: 0 }, cuts)).toBe(1);
      expect(made.device.sent(0).map(({ frame }) => frame)).toEqual([sent]);
    }
    expect(made.net.statistics.oerrors).toBe(0);
  });

  it("are taken out, or left where that is switched off", async () => {
    const made = await running({ features: offloads });
    const { bytes, start } = packet();
    const frames: (Frame | null)[] = [];
    const receive = (): Frame => {
      made.device.receive(
        0,
        tagged(bytes, 0x2005),
        header({ flags: 1, csumStart: start + 4, csumOffset: 16 }),
      );
      expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
      if (!frames[0]) throw new Error("no frame");
      return frames[0];
    };
    const frame = receive();
    expect(frame).toMatchObject({ vlanTag: 0x2005, length: bytes.length, csumStart: start });
    expect(frame.bytes.slice(frame.offset, frame.offset + frame.length)).toEqual(bytes);
    await made.net.setCapability(InterfaceCapability.VLAN_HWTAGGING, false);
    expect(receive()).toMatchObject({ vlanTag: -1, length: bytes.length + 4 });
  });
});

describe("receive checksums", () => {
  it("are handed up partial, or completed where that is asked for", async () => {
    const { bytes, start, place, pseudo } = packet({ payload: 333 });
    const sent = { bytes, start, place, pseudo };
    for (const fixup of [false, true]) {
      const made = await running({ features: offloads, driver: { fixupNeedsCsum: fixup } });
      made.device.receive(0, bytes, header({ flags: 1, csumStart: start, csumOffset: 16 }));
      const frames: (Frame | null)[] = [];
      expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
      const [frame] = frames;
      if (!frame) throw new Error("no frame");
      expect(frame.flags).toBe(fixup ? 2 : 1);
      expect(isRight(frame.bytes.slice(frame.offset, frame.offset + frame.length), sent)).toBe(
        fixup,
      );
    }
  });

  it("of LRO come with what they were put together from", async () => {
    const made = await running({ features: [...offloads, NetFeature.GUEST_TSO4] });
    const frames: (Frame | null)[] = [];
    const gso = { flags: 1, csumStart: 34, csumOffset: 16, gsoType: 1, gsoSize: 1448 };
    const { bytes } = packet({ payload: 1900 });
    made.device.receive(0, bytes, header(gso));
    // Types that were not negotiated, and sizes of 0, are nothing.
    made.device.receive(0, bytes, header({ ...gso, gsoType: 4 }));
    made.device.receive(0, bytes, header({ ...gso, gsoSize: 0 }));
    expect(made.net.receiveBurst(0, frames, 8)).toBe(3);
    expect(frames.map((frame) => [frame?.gsoType, frame?.gsoSize])).toEqual([
      [1, 1448],
      [0, 0],
      [0, 0],
    ]);
  });
});

describe("flows", () => {
  it("stay on one queue however their frames are cut up, and several use several", async () => {
    const made = await running({
      features: [...offloads, NetFeature.MQ],
      config: { maxVirtqueuePairs: 4 },
    });
    const used = new Set<number>();
    for (let port = 0; port < 64; port++) {
      for (const cuts of [[], [13, 0, 1], [36]]) send(made, packet({ port }), {}, cuts);
      const queues = [0, 1, 2, 3].filter((pair) => {
        const seen = made.device.sent(pair);
        expect([0, 3]).toContain(seen.length);
        return seen.length > 0;
      });
      expect(queues).toHaveLength(1);
      used.add(queues[0] ?? -1);
    }
    expect([...used].sort()).toEqual([0, 1, 2, 3]);
    send(made, packet(), { queue: 6 });
    expect(made.device.sent(2)).toHaveLength(1);
  });
});

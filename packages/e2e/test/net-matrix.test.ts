// Two interfaces on one cable, in every kind that rings, offloads, VLANs, queues and frame sizes make: what is on the cable, and what
// is received, is compared with frames that this test builds by itself. `npm test` takes a pairwise covering array of the kinds,
// VIRTIO_TEST_FULL=1 all of them.
import type { Frame } from "@virtio/core";
import { pairwise, product } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import {
  couple,
  fill,
  NEEDS_CSUM,
  type Received,
  type Station,
  transmit,
  until,
} from "./net-couple.js";
import { Flow, families, generator, type Kind, load, type Sending } from "./net-load.js";
import {
  answerTo,
  build,
  CWR,
  checksumOffsetOf,
  flowOf,
  headersOf,
  mergedOf,
  type Packet,
  segmentsOf,
  transportOf,
} from "./wire-frames.js";

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

const axes = {
  mergeable: [true, false],
  csum: ["off", "on", "partial"],
  tso4: [true, false],
  tso6: [true, false],
  ecn: [true, false],
  lro: [true, false],
  vlan: ["none", "metadata", "bytes"],
  pairs: [1, 2, 8],
  ring: ["split", "packed"],
  mtu: [1500, 9000, 9216],
} as const;
/** What virtio 1.4 §5.1.3.1 lets be offered; what is sent does not matter for checksums that are received partial. */
const allowed = ({ csum, tso4, tso6, ecn, lro }: Kind): boolean =>
  (csum !== "off" || !(tso4 || tso6 || lro)) &&
  (csum !== "partial" || (tso4 && tso6)) &&
  (!ecn || tso4 || tso6);
const all = product(axes);
const kinds: readonly Kind[] =
  process.env["VIRTIO_TEST_FULL"] === "1" ? all.filter(allowed) : pairwise(axes, allowed);

const DATA_VALID = 2;
const ECN = 0x80;

/** TCP has two zeros: both are right (RFC 1624 §3). */
function alike(given: Uint8Array, packet: Packet, expected: Uint8Array, tagged: boolean): boolean {
  if (Buffer.compare(given, expected) === 0) return true;
  if (packet.ip === 0 || packet.protocol === "udp") return false;
  const at = transportOf(packet, tagged) + checksumOffsetOf(packet);
  if (expected[at] !== 0 || expected[at + 1] !== 0 || given[at] !== 0xff) return false;
  return Buffer.compare(given, expected.fill(0xff, at, at + 2)) === 0;
}

function same(
  what: string,
  given: Uint8Array,
  packet: Packet,
  tagged: boolean,
  partial = false,
): void {
  const expected = build(packet, tagged, partial);
  if (alike(given, packet, expected, tagged)) return;
  const at = expected.findIndex((byte, i) => byte !== given[i]);
  throw new Error(
    `${what}: ${given.length} bytes of flow ${packet.port}, not ${expected.length}, or another byte ${at}: ` +
      `${given[at]}, not ${expected[at]}`,
  );
}

/** By flow. */
function byFlow(packets: readonly Packet[]): Map<number, Packet[]> {
  const flows = new Map<number, Packet[]>();
  for (const packet of packets) {
    const flow = flows.get(packet.port);
    if (flow === undefined) flows.set(packet.port, [packet]);
    else flow.push(packet);
  }
  return flows;
}

/** Frames of the cable that a received frame was made of. */
const segmentsIn = ({ bytes, gsoSize, gsoType, tag }: Received, first: Packet): number => {
  const headers = 14 + (tag < 0 && first.tag >= 0 ? 4 : 0) + headersOf(first);
  return gsoType === 0 ? 1 : Math.ceil((bytes.length - headers) / gsoSize);
};

/** One received frame: bytes, and what is said of them. `left` are the frames of its flow that are to come. */
function checkReceived(kind: Kind, got: Received, left: Packet[]): void {
  const [first] = left;
  if (first === undefined) throw new Error(`flow ${got.flow} has a frame too many`);
  // Taken out where it can be.
  const stripped = kind.vlan === "metadata" && kind.csum !== "off";
  expect(got.tag).toBe(stripped ? first.tag : -1);
  const tagged = kind.vlan !== "none" && !stripped;
  const segments = left.splice(0, segmentsIn(got, first));
  const partial = (got.flags & NEEDS_CSUM) !== 0;
  if (partial)
    expect(got.checksumAt).toEqual([transportOf(first, tagged), checksumOffsetOf(first)]);

  if (got.gsoType !== 0) {
    expect(kind.lro).toBe(true);
    expect(segments.length).toBeGreaterThan(1);
    expect(got.flags).toBe(NEEDS_CSUM);
    expect(got.gsoType).toBe((first.ip === 4 ? 1 : 4) | ((first.flags & CWR) === 0 ? 0 : ECN));
    for (const { payload } of segments.slice(0, -1)) expect(payload.length).toBe(got.gsoSize);
    for (const [i, { sequence }] of segments.entries())
      expect(sequence).toBe((first.sequence + i * got.gsoSize) >>> 0);
    expect(segments.every(({ checksum }) => checksum === "right")).toBe(true);
    same("put together", got.bytes, mergedOf(segments), tagged, true);
    return;
  }
  const known = first.ip !== 0 && first.checksum === "right" && kind.csum !== "off";
  if (!known) expect(got.flags).toBe(0);
  // A segment that waited for others, and that none followed.
  else if (kind.csum === "partial" && !(kind.lro && first.protocol === "tcp"))
    expect(got.flags).toBe(NEEDS_CSUM);
  else if (kind.csum === "partial") expect([NEEDS_CSUM, DATA_VALID]).toContain(got.flags);
  else expect(got.flags).toBe(DATA_VALID);
  // LRO forgets what is behind a packet.
  const bare = kind.lro && known && first.protocol === "tcp" && first.payload.length > 0;
  same("received", got.bytes, bare ? { ...first, padding: 0 } : first, tagged, partial);
}

describe("two interfaces on a cable", () => {
  it.each(kinds)(
    "exchange every frame: mergeable $mergeable, csum $csum, TSO4 $tso4, TSO6 $tso6, ECN $ecn, LRO $lro, VLAN $vlan, $pairs pairs, $ring, MTU $mtu",
    async (kind) => {
      const random = generator(seed);
      const { stations, cable, inject } = await couple(kind);
      const [sender, receiver] = stations;
      const sendings = load(kind, random);
      const sent = sendings.filter(({ refused = false }) => !refused);
      const wired = sent.flatMap(({ packet, ask }) =>
        typeof ask === "number" ? segmentsOf(packet, ask) : [packet],
      );

      const foreign = families.flatMap((family, i) =>
        new Flow(kind, random, { ...family, port: 2000 + i }).foreign(),
      );
      for (const packet of foreign) inject(build(packet, kind.vlan !== "none"));
      await transmit(sender, kind, sendings, random);
      let checked = 0;
      const left = byFlow([...wired, ...foreign]);
      const queues = new Map<number, Set<number>>();
      const missing = (): number => [...left.values()].flat().length;
      await until(
        () => {
          for (; checked < receiver.received.length; checked++) {
            const got = receiver.received[checked] as Received;
            checkReceived(kind, got, left.get(got.flow) ?? []);
            queues.set(got.flow, (queues.get(got.flow) ?? new Set()).add(got.queue));
          }
          return missing() === 0;
        },
        () => `${missing()} frames of ${wired.length} never came`,
      );

      // What the device made of it: checksums, tags, segment boundaries.
      const onCable = byFlow(wired);
      expect(cable).toHaveLength(wired.length);
      for (const bytes of cable) {
        const packet = onCable.get(flowOf(bytes))?.shift();
        if (packet === undefined) throw new Error("a frame too many on the cable");
        same("on the cable", bytes, packet, kind.vlan !== "none");
      }

      // Each flow stays on one queue, and they do not all take the same.
      for (const used of queues.values()) expect(used.size).toBe(1);
      const used = new Set([...queues.values()].flatMap((each) => [...each]));
      expect(stations.map(({ iface }) => iface.queuePairs)).toEqual([kind.pairs, kind.pairs]);
      expect(used.size).toBeGreaterThan(kind.pairs === 1 ? 0 : 1);

      // Who did it: the device what was offered, the driver the rest.
      const cut = sent.filter(({ ask }) => typeof ask === "number");
      const summed = sent.filter(({ ask }) => ask !== "nothing");
      const segments = cut.reduce(
        (sum, { packet, ask }) => sum + segmentsOf(packet, Number(ask)).length,
        0,
      );
      expect(sender.counter("tx_tso_offloaded")).toBe(cut.length);
      expect(sender.counter("tx_csum_offloaded")).toBe(kind.csum === "off" ? 0 : summed.length);
      expect(sender.port.counters.segments).toBe(segments);
      expect(receiver.port.counters.coalesced > 0).toBe(kind.lro);
      const verified = receiver.received.filter(({ flags }) => flags !== 0).length;
      expect(receiver.counter("rx_csum_offloaded")).toBe(verified);
      expect(sender.iface.statistics).toMatchObject({
        opackets: sent.length,
        obytes: sent.reduce(
          (sum, { packet }) => sum + build(packet, kind.vlan !== "none").length,
          0,
        ),
        oerrors: sendings.length - sent.length,
        oqdrops: 0,
      });
      expect(receiver.iface.statistics).toMatchObject({
        ipackets: receiver.received.length,
        ibytes: receiver.received.reduce((sum, { bytes }) => sum + bytes.length, 0),
        ierrors: 0,
        iqdrops: 0,
      });
      for (const { port } of stations)
        expect(port.counters).toMatchObject({
          malformed: 0,
          oversized: 0,
          filtered: 0,
          refused: 0,
        });
      for (const { iface } of stations) await iface.detach();
    },
  );

  it.each(
    pairwise({ pairs: [2, 8], ring: ["split", "packed"], mergeable: [true, false] } as const),
  )(
    "answer a flow on the queue that it was sent by: $pairs pairs, $ring, mergeable $mergeable",
    async (some) => {
      const random = generator(seed);
      const base = kinds.find(({ csum, vlan }) => csum !== "off" && vlan !== "bytes") as Kind;
      const kind: Kind = { ...base, vlan: "none", mtu: 1500, ...some };
      const { stations } = await couple(kind);
      const [sender, receiver] = stations;
      const next = async ({ received }: Station): Promise<Received> => {
        await until(
          () => received.length > 0,
          () => "no frame came",
        );
        return received.shift() as Received;
      };
      for (const [i, family] of families.entries())
        for (let queue = 0; queue < kind.pairs; queue++) {
          const flow = new Flow(kind, random, { ...family, port: 3000 + 16 * i + queue });
          flow.some();
          const back = random(kind.pairs);
          for (const [turn, [sending]] of flow.groups.entries()) {
            const frame = fill(sender.iface, kind, sending as Sending, random);
            expect(sender.iface.transmitBurst(queue, [frame], 1)).toBe(1);
            const there = await next(receiver);
            // The first time it is the device's choice.
            if (turn > 0) expect(there.queue).toBe(back);
            const answer = receiver.iface.allocate() as Frame;
            const bytes = answerTo(build((sending as Sending).packet, false));
            answer.bytes.set(bytes, answer.offset);
            answer.length = bytes.length;
            expect(receiver.iface.transmitBurst(back, [answer], 1)).toBe(1);
            const here = await next(sender);
            expect(here.queue).toBe(queue);
            if ((here.flags & NEEDS_CSUM) === 0) expect(here.bytes).toEqual(bytes);
          }
        }
    },
  );
});

// Frames that hold several, between two interfaces on a cable: datagrams fragmented by the device (HOST_UFO) and put together by it
// (GUEST_UFO, GUEST_USO4, GUEST_USO6), and what the legacy GSO permits.
import { type Frame, InterfaceCapability } from "@virtio/core";
import {
  type EmbeddedMachine,
  type EmbeddedNetOptions,
  embedded,
  NetPort,
  net,
  RuleBook,
  Wire,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { transmit } from "@virtio/testing";
import { afterEach, describe, expect, it } from "vitest";
import { type Vtnet, vtnet } from "../src/index.js";
import { until } from "./bench.js";

const machines: EmbeddedMachine[] = [];
const books: RuleBook[] = [];
afterEach(async () => {
  for (const machine of machines.splice(0)) await machine.close();
  for (const rules of books.splice(0)) expect(rules.violations).toEqual([]);
});

/** Two interfaces, up, and a cable between them; `sender`: what is said of the first besides, `both`: of both. */
async function couple(
  features: Record<string, boolean>,
  sender: EmbeddedNetOptions = {},
  both: EmbeddedNetOptions = {},
): Promise<readonly [Vtnet, Vtnet]> {
  const { ends } = new Wire();
  const rules = new RuleBook();
  const machine = await embedded({
    rules,
    devices: ends.map((backend, i) =>
      net({ backend, features, ...both, ...(i === 0 ? sender : {}) }),
    ),
  });
  machines.push(machine);
  books.push(rules);
  const interfaces: Vtnet[] = [];
  for (const [unit, node] of (await probe(machine.buses[0].bus)).entries()) {
    const iface = await attach(node, vtnet(), { unit, name: `vtnet${unit}`, cpus: machine.cpus });
    await iface.up();
    interfaces.push(iface);
  }
  return interfaces as [Vtnet, Vtnet];
}

/** A received frame, copied, and what its header said. */
interface Received {
  readonly bytes: Uint8Array;
  readonly flags: number;
  readonly gsoType: number;
  readonly gsoSize: number;
  readonly checksumAt: readonly [number, number];
}

/** Takes frames until there are enough. */
async function receive(iface: Vtnet, enough: (all: readonly Received[]) => boolean) {
  const all: Received[] = [];
  const frames: (Frame | null)[] = [];
  await until(() => {
    const queues = Array.from({ length: iface.queuePairs }, (_, queue) => queue);
    while (queues.some((queue) => iface.receiveBurst(queue, frames, 1) === 1)) {
      const [head] = frames;
      if (!head) throw new Error("no frame");
      const bytes: number[] = [];
      for (let part: Frame | null = head; part !== null; part = part.next)
        bytes.push(...part.bytes.subarray(part.offset, part.offset + part.length));
      const { flags, gsoType, gsoSize, csumStart, csumOffset } = head;
      const checksumAt = [csumStart, csumOffset] as const;
      all.push({ bytes: Uint8Array.from(bytes), flags, gsoType, gsoSize, checksumAt });
      iface.release(head);
    }
    return enough(all);
  });
  return all;
}

/** RFC 1071 by its words, byte after byte. */
function checksum(bytes: readonly number[]): number {
  let sum = 0;
  for (const [i, byte] of bytes.entries()) sum += i % 2 === 0 ? byte * 256 : byte;
  while (sum > 0xffff) sum = (sum % 0x1_0000) + Math.floor(sum / 0x1_0000);
  return 0xffff - sum;
}

const be16 = (n: number): number[] => [n >>> 8, n & 0xff];

interface Datagram {
  readonly bytes: Uint8Array;
  /** Where UDP begins, and the sum of the pseudo header. */
  readonly l4: number;
  readonly pseudo: readonly number[];
}

/** UDP from the first interface to the second; its checksum is the pseudo header's sum. */
function datagram(ip: 4 | 6, payload: number): Datagram {
  const length = 8 + payload;
  const addresses =
    ip === 4 ? [10, 0, 0, 1, 10, 0, 0, 2] : Array.from({ length: 32 }, (_, i) => 0xfd + i * 3);
  const pseudo = [...addresses.map((byte) => byte & 0xff), 0, 17, ...be16(length)];
  const network =
    ip === 4
      ? [0x45, 0, ...be16(20 + length), 0x12, 0x34, 0, 0, 64, 17, 0, 0]
      : [0x60, 0, 0, 0, ...be16(length), 17, 64];
  network.push(...pseudo.slice(0, -4));
  if (ip === 4) network.splice(10, 2, ...be16(checksum(network)));
  const bytes = Uint8Array.from([
    ...[0x52, 0x54, 0, 0x12, 0x34, 0x57, 0x52, 0x54, 0, 0x12, 0x34, 0x56],
    ...(ip === 4 ? [8, 0] : [0x86, 0xdd]),
    ...network,
    ...[...be16(4000), ...be16(80), ...be16(length), ...be16(0xffff - checksum(pseudo))],
    ...Array.from({ length: payload }, (_, i) => (i * 13) >>> 3),
  ]);
  return { bytes, l4: ip === 4 ? 34 : 54, pseudo };
}

/** TCP likewise. */
function stream(ip: 4 | 6, payload: number, flags: number): Datagram {
  const { bytes, l4, pseudo } = datagram(ip, 12 + payload);
  const tcp = pseudo.with(-3, 6);
  bytes[ip === 4 ? 23 : 20] = 6;
  bytes.set([...be16(4000), ...be16(80), 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags], l4);
  bytes.set([...be16(0x4000), ...be16(0xffff - checksum(tcp)), 0, 0], l4 + 14);
  if (ip === 4) {
    bytes.set([0, 0], 24);
    bytes.set(be16(checksum([...bytes.subarray(14, 34)])), 24);
  }
  return { bytes, l4, pseudo: tcp };
}

/** The same frame the other way; no checksum changes by it. */
function swapped(bytes: Uint8Array): Uint8Array {
  return Uint8Array.of(...bytes.subarray(6, 12), ...bytes.subarray(0, 6), ...bytes.subarray(12));
}

const ask = (l4: number, gsoType: number, gsoSize: number): Partial<Frame> => ({
  ...{ flags: 1, csumStart: l4, csumOffset: 6 },
  ...{ gsoType, gsoSize },
});

const UFO = 3;
const USO = 5;

describe("a device with HOST_UFO", () => {
  it.each([
    { ip: 4, fragment: 1480 },
    { ip: 6, fragment: 1448 },
  ] as const)(
    "cuts a datagram over IPv$ip into fragments [NET-TX-10]",
    async ({ ip, fragment }) => {
      const [sender, receiver] = await couple({ HOST_UFO: true });
      const { bytes, l4, pseudo } = datagram(ip, 30_000);
      transmit(sender, bytes, ask(l4, UFO, fragment));
      const count = Math.ceil(30_008 / fragment);
      const fragments = await receive(receiver, ({ length }) => length === count);
      const data = ip === 4 ? l4 : l4 + 8;
      const upper: number[] = [];
      const ids = new Set<number>();
      for (const [i, { bytes: got, flags, gsoType }] of fragments.entries()) {
        const view = new DataView(got.buffer);
        const more = i < count - 1;
        expect([flags, gsoType, got.length > 1514]).toEqual([0, 0, false]);
        expect(view.getUint16(ip === 4 ? 16 : 18)).toBe(got.length - (ip === 4 ? 14 : 54));
        if (ip === 4) {
          expect(view.getUint16(18)).toBe(0x1234);
          expect(view.getUint16(20)).toBe((i * fragment) / 8 + (more ? 0x2000 : 0));
          expect(checksum([...got.subarray(14, 34)])).toBe(0);
        } else {
          expect([got[20], got[54], got[55]]).toEqual([44, 17, 0]);
          expect(view.getUint16(56)).toBe(i * fragment + Number(more));
          ids.add(view.getUint32(58));
        }
        expect(got.length - data).toBe(more ? fragment : 30_008 - i * fragment);
        upper.push(...got.subarray(data));
      }
      expect(upper.slice(8)).toEqual([...bytes.subarray(l4 + 8)]);
      expect(ids.size).toBe(ip === 4 ? 0 : 1);
      // One checksum, of the whole datagram.
      expect(checksum([...pseudo, ...upper])).toBe(0);
      expect(sender.statistics.oerrors).toBe(0);
    },
  );
});

describe("a device with GUEST_UFO", () => {
  const features = { HOST_UFO: true, GUEST_UFO: true };

  it.each([
    { ip: 4, fragment: 1480, MRG_RXBUF: true, queues: 1, packed: false },
    { ip: 6, fragment: 1448, MRG_RXBUF: true, queues: 2, packed: false },
    { ip: 4, fragment: 1480, MRG_RXBUF: true, queues: 2, packed: true },
    { ip: 4, fragment: 1480, MRG_RXBUF: false, queues: 1, packed: false },
    { ip: 6, fragment: 1448, MRG_RXBUF: false, queues: 2, packed: true },
  ] as const)(
    "hands up a datagram over IPv$ip that came in fragments as one, while LRO is on: merging $MRG_RXBUF, packed $packed, $queues pairs",
    async ({ ip, fragment, MRG_RXBUF, ...both }) => {
      const port = new NetPort();
      const [sender, receiver] = await couple({ ...features, MRG_RXBUF }, { port }, both);
      const { bytes, l4, pseudo } = datagram(ip, 30_000);
      transmit(sender, bytes, ask(l4, UFO, fragment));
      const [together] = await receive(receiver, ({ length }) => length === 1);
      if (together === undefined) throw new Error("nothing came");
      expect(port.counters.segments).toBe(21);
      expect(together).toMatchObject({ flags: 1, gsoType: UFO, gsoSize: fragment });
      expect(together.checksumAt).toEqual([l4, 6]);
      // What the sender had, its checksum the pseudo header's sum again.
      expect(together.bytes).toEqual(bytes);
      expect(receiver.statistics).toMatchObject({ ipackets: 1, ibytes: bytes.length, ierrors: 0 });

      // And back by the other's, as it was received.
      transmit(receiver, swapped(together.bytes), ask(l4, UFO, fragment));
      const [back] = await receive(sender, ({ length }) => length === 1);
      expect(back?.bytes).toEqual(swapped(bytes));

      await receiver.setCapability(InterfaceCapability.LRO, false);
      transmit(sender, bytes, ask(l4, UFO, fragment));
      const apart = await receive(receiver, ({ length }) => length === 21);
      expect(new Set(apart.map(({ flags, gsoType }) => `${flags} ${gsoType}`))).toEqual(
        new Set(["0 0"]),
      );
      const upper = apart.flatMap(({ bytes: got }) => [...got.subarray(ip === 4 ? 34 : 62)]);
      expect(checksum([...pseudo, ...upper])).toBe(0);
      expect(upper.slice(8)).toEqual([...bytes.subarray(l4 + 8)]);
    },
  );
});

describe("a legacy device that offers GSO without HOST_TSO4, HOST_TSO6 and HOST_UFO", () => {
  const features = { HOST_TSO4: false, HOST_TSO6: false };
  const gso = { legacy: "on", features } as const;

  it.each([
    { ip: 4, type: 1, cwr: false },
    { ip: 6, type: 4, cwr: false },
    { ip: 4, type: 1, cwr: true },
  ] as const)("cuts TCP over IPv$ip into segments, with ECN $cwr", async ({ ip, type, cwr }) => {
    const [sender, receiver] = await couple({ GUEST_TSO4: false, GUEST_TSO6: false }, gso);
    expect(sender.capabilities.has(InterfaceCapability.TSO4)).toBe(true);
    expect(sender.capabilities.has(InterfaceCapability.TSO6)).toBe(true);
    const { bytes, l4, pseudo } = stream(ip, 10_000, cwr ? 0x90 : 0x10);
    transmit(sender, bytes, { ...ask(l4, type, 1400), csumOffset: 16 });
    const segments = await receive(receiver, ({ length }) => length === 8);
    for (const [i, { bytes: got }] of segments.entries()) {
      const length = got.length - l4;
      expect(length).toBe(20 + (i < 7 ? 1400 : 200));
      expect(checksum([...pseudo.slice(0, -2), ...be16(length), ...got.subarray(l4)])).toBe(0);
      expect(new DataView(got.buffer).getUint32(l4 + 4)).toBe(1 + i * 1400);
      expect(got[l4 + 13]).toBe(cwr && i === 0 ? 0x90 : 0x10);
      if (ip === 4) expect(checksum([...got.subarray(14, 34)])).toBe(0);
    }
    const payload = segments.flatMap(({ bytes: got }) => [...got.subarray(l4 + 20)]);
    expect(payload).toEqual([...bytes.subarray(l4 + 20)]);
    expect(sender.statistics.oerrors).toBe(0);
  });

  it("cuts a UDP datagram into fragments, and no UDP into datagrams [NET-TX-13]", async () => {
    const [sender, receiver] = await couple({ GUEST_UFO: true }, gso);
    const { bytes, l4 } = datagram(4, 5000);
    transmit(sender, bytes, ask(l4, UFO, 1480));
    const [together] = await receive(receiver, ({ length }) => length === 1);
    expect(together).toMatchObject({ gsoType: UFO, gsoSize: 1480 });
    expect(together?.bytes).toEqual(bytes);
    transmit(sender, bytes, ask(l4, USO, 1480));
    expect(sender.statistics.oerrors).toBe(1);
  });

  it("is asked for no segments where GSO is held back too [NET-TX-31]", async () => {
    const held = { legacy: "on", features: { ...features, GSO: false } } as const;
    const [sender] = await couple({}, held);
    expect(sender.capabilities.has(InterfaceCapability.TSO4)).toBe(false);
    const { bytes, l4 } = stream(4, 10_000, 0x10);
    transmit(sender, bytes, { ...ask(l4, 1, 1400), csumOffset: 16 });
    expect(sender.statistics.oerrors).toBe(1);
  });
});

describe("a device with GUEST_USO4 and GUEST_USO6", () => {
  const features = { GUEST_USO4: true, GUEST_USO6: true };

  it.each([{ ip: 4 }, { ip: 6 }] as const)(
    "hands up the datagrams of one flow over IPv$ip together, while LRO is on",
    async ({ ip }) => {
      const [sender, receiver] = await couple(features);
      const { bytes, l4, pseudo } = datagram(ip, 10_500);
      transmit(sender, bytes, ask(l4, USO, 1000));
      const [together] = await receive(receiver, ({ length }) => length === 1);
      if (together === undefined) throw new Error("nothing came");
      expect(together).toMatchObject({ flags: 1, gsoType: USO, gsoSize: 1000 });
      expect(together.checksumAt).toEqual([l4, 6]);
      // What the sender had, its checksum the pseudo header's sum again.
      expect(together.bytes).toEqual(bytes);

      await receiver.setCapability(InterfaceCapability.LRO, false);
      transmit(sender, bytes, ask(l4, USO, 1000));
      const apart = await receive(receiver, ({ length }) => length === 11);
      for (const [i, { bytes: got, flags, gsoType }] of apart.entries()) {
        expect([flags, gsoType, got.length - l4]).toEqual([2, 0, i < 10 ? 1008 : 508]);
        const over = [...pseudo.slice(0, -2), ...be16(got.length - l4)];
        expect(checksum([...over, ...got.subarray(l4)])).toBe(0);
      }
      const payload = apart.flatMap(({ bytes: got }) => [...got.subarray(l4 + 8)]);
      expect(payload).toEqual([...bytes.subarray(l4 + 8)]);
    },
  );
});

import { type Frame, InterfaceCapability, SysctlTree } from "@virtio/core";
import { NetHash } from "@virtio/core/net";
import {
  type EmbeddedMachine,
  type EmbeddedNetOptions,
  embedded,
  LoopbackBackend,
  type NetLies,
  NetPort,
  net,
  RuleBook,
} from "@virtio/hypervisor";
import {
  complete,
  EtherType,
  Headers,
  IpProtocol,
  parseMac,
  pseudoSum4,
  put16,
  sum,
} from "@virtio/packets";
import { attach, probe } from "@virtio/pci-transport";
import { afterEach, describe, expect, it } from "vitest";
import { type Vtnet, type VtnetOptions, vtnet } from "../src/index.js";
import { frameOf } from "./fake-device.js";

const machines: EmbeddedMachine[] = [];
const books: RuleBook[] = [];
afterEach(async () => {
  for (const machine of machines.splice(0)) await machine.close();
  // Nothing that the rule book knows was broken.
  for (const rules of books.splice(0)) expect(rules.violations).toEqual([]);
});

interface Bench {
  readonly iface: Vtnet;
  readonly lines: string[];
  readonly sysctl: SysctlTree;
}

async function bench(options: EmbeddedNetOptions = {}, driver: VtnetOptions = {}): Promise<Bench> {
  const rules = new RuleBook();
  const lines: string[] = [];
  const machine = await embedded({
    devices: [net({ backend: new LoopbackBackend(), ...options })],
    rules,
  });
  machines.push(machine);
  books.push(rules);
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no device");
  const sysctl = new SysctlTree();
  const iface = await attach(node, vtnet(driver), {
    cpus: machine.cpus,
    log: (line) => lines.push(line),
    sysctl: sysctl.node("vtnet", ""),
  });
  return { iface, lines, sysctl };
}

/** Turns of the event loop until it is so. */
async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error("it never came");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** TCP over IPv4 from the interface to itself; the checksum is the pseudo header's sum. */
function tcp(payload: number): Uint8Array {
  const bytes = new Uint8Array(54 + payload);
  bytes.set(parseMac("52:54:00:12:34:56"), 0);
  bytes.set(parseMac("52:54:00:12:34:56"), 6);
  put16(bytes, 12, EtherType.IPV4);
  bytes.set([0x45, 0, 0, 0, 0, 1, 0, 0, 64, IpProtocol.TCP, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2], 14);
  put16(bytes, 16, 40 + payload);
  put16(bytes, 24, complete(sum(bytes, 14, 34)));
  put16(bytes, 34, 4000);
  put16(bytes, 36, 80);
  bytes.set([0x50, 0x10], 46);
  for (let i = 0; i < payload; i++) bytes[54 + i] = (i * 13) >>> 3;
  put16(bytes, 50, pseudoSum4(bytes, 14, IpProtocol.TCP, 20 + payload));
  return bytes;
}

/** Puts bytes into a chain of frames, and sends it. */
function send(iface: Vtnet, bytes: Uint8Array, change: Partial<Frame> = {}): void {
  let head: Frame | null = null;
  let tail: Frame | null = null;
  for (let at = 0; at < bytes.length; ) {
    const part = iface.allocate();
    if (part === null) throw new Error("no frame");
    const piece = bytes.subarray(at, at + part.room);
    part.bytes.set(piece, part.offset);
    part.length = piece.length;
    at += piece.length;
    head ??= part;
    if (tail !== null) tail.next = part;
    tail = part;
  }
  if (head === null) throw new Error("nothing");
  Object.assign(head, change);
  expect(iface.transmitBurst(-1, [head], 1)).toBe(1);
}

const tso = { flags: 1, csumStart: 34, csumOffset: 16, gsoType: 1, gsoSize: 1448 };

describe("vtnet on the embedded machine", () => {
  const rings = [{ packed: false }, { packed: true }];
  const merging = [{ features: {} }, { features: { MRG_RXBUF: false } }];
  it.each(
    rings.flatMap((ring) =>
      merging.flatMap((merge) =>
        [1500, 9216].flatMap((mtu) =>
          [1, 8].map((queues) => ({ ...ring, ...merge, frames: mtu, queues })),
        ),
      ),
    ),
  )(
    "sends and receives frames: packed $packed, $features, MTU $frames, $queues pairs",
    async ({ frames: mtu, ...options }) => {
      const { iface } = await bench(options);
      await iface.setPromiscuous(true);
      await iface.setMtu(mtu);
      await iface.up();
      const writer = iface.writable.getWriter();
      const frames = iface[Symbol.asyncIterator]();
      for (const length of [60, 61, 1514, mtu + 14]) {
        const frame = frameOf(length, length);
        await writer.write(frame);
        const { value } = await frames.next();
        expect(value).toEqual(frame);
      }
      await iface.detach();
    },
  );

  it.each([{ legacy: "on" as const }, { legacy: "transitional" as const }])(
    "drives a device that is $legacy legacy",
    async (options) => {
      const { iface } = await bench({ ...options, features: { MRG_RXBUF: false } });
      await iface.setPromiscuous(true);
      await iface.up();
      await iface.writable.getWriter().write(frameOf(1000));
      expect((await iface[Symbol.asyncIterator]().next()).value).toEqual(frameOf(1000));
    },
  );

  it.each([{ lro: false }, { lro: true }])(
    "has a TCP packet cut into segments, LRO $lro",
    async ({ lro }) => {
      for (const MRG_RXBUF of [true, false]) {
        const { iface } = await bench({ features: { MRG_RXBUF } }, { lroDisable: !lro });
        await iface.up();
        const whole = tcp(20_000);
        send(iface, whole, tso);
        const got: number[] = [];
        const sizes: number[] = [];
        for await (const segment of iface) {
          const headers = new Headers();
          expect(headers.parse(segment, 0, segment.length)).toBe(true);
          const length = headers.end - headers.l4;
          const pseudo = pseudoSum4(segment, headers.l3, IpProtocol.TCP, length);
          expect(complete(sum(segment, headers.l4, headers.end, pseudo))).toBe(0);
          got.push(...segment.subarray(headers.payload, headers.end));
          sizes.push(headers.end - headers.payload);
          if (got.length >= 20_000) break;
        }
        expect(Uint8Array.from(got)).toEqual(whole.subarray(54));
        if (lro) expect(Math.max(...sizes)).toBeGreaterThan(1448);
        else expect(sizes).toEqual([...new Array(13).fill(1448), 20_000 - 13 * 1448]);
      }
    },
  );

  it("hands up partial checksums, which are right when they are completed", async () => {
    const { iface } = await bench({ partialChecksums: true }, { lroDisable: true });
    await iface.up();
    const { gsoType: _, gsoSize: __, ...csum } = tso;
    send(iface, tcp(600), csum);
    const { value } = await iface[Symbol.asyncIterator]().next();
    const pseudo = pseudoSum4(value ?? new Uint8Array(54), 14, IpProtocol.TCP, 620);
    expect(complete(sum(value ?? new Uint8Array(), 34, 654, pseudo))).toBe(0);
  });

  it("is filtered as it says", async () => {
    const port = new NetPort();
    const { iface } = await bench({ port });
    await iface.setMulticast(["01:00:5e:00:00:01"]);
    await iface.setUnicast(["02:00:00:00:00:01", "02:00:00:00:00:02"]);
    await iface.setCapability(InterfaceCapability.VLAN_HWFILTER, true);
    await iface.addVlan(5);
    await iface.setMac("02:00:00:00:00:77");
    await iface.up();
    expect(port.filter).toMatchObject({
      unicast: ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(parseMac),
      multicast: [parseMac("01:00:5e:00:00:01")],
      vlans: [5],
    });
    expect(port.counters.refused).toBe(0);
  });

  it("announces itself, and follows the link [NET-ANNOUNCE-2]", async () => {
    const port = new NetPort();
    const backend = new LoopbackBackend();
    const { iface } = await bench({ port, backend });
    await iface.up();
    const { commands } = port.counters;
    port.announce();
    await until(() => port.counters.commands > commands);
    await until(() => port.counters.transmitted > 0);
    for (const up of [false, true]) {
      backend.linkUp = up;
      await until(() => iface.link.up === up);
    }
  });

  it.each([
    { queues: 4, features: { RSS: true, HASH_REPORT: true }, pairs: 4 },
    { queues: 4, features: { RSS: true }, pairs: 4 },
    { queues: 1, features: { HASH_REPORT: true }, pairs: 1 },
  ])(
    "spreads flows and reports hashes: $queues pairs, $features [NET-RSS-1] [NET-RSS-2] [NET-RSS-3] [NET-RSS-4] [NET-RSS-5] [NET-HASHCFG-1]",
    async ({ pairs, features, queues }) => {
      const port = new NetPort();
      const { iface } = await bench({ port, queues, features });
      await iface.up();
      expect([iface.queuePairs, port.activePairs]).toEqual([pairs, pairs]);
      expect(port.counters.refused).toBe(0);
      const { gsoType: _, gsoSize: __, ...csum } = tso;
      send(iface, tcp(600), csum);
      const frames: (Frame | null)[] = [];
      let hash = 0;
      await until(() => {
        for (let queue = 0; queue < pairs; queue++)
          if (iface.receiveBurst(queue, frames, 1) === 1) {
            hash = frames[0]?.hashType ?? -1;
            return true;
          }
        return false;
      });
      expect(hash).toBe("HASH_REPORT" in features ? NetHash.TCPV4 + 1 : 0);
    },
  );

  it("has as many pairs as it says", async () => {
    const port = new NetPort();
    const { iface } = await bench({ port, queues: 4 });
    await iface.up();
    expect([iface.queuePairs, port.activePairs]).toEqual([4, 4]);
  });
});

describe("a hostile device", () => {
  it.each<{ what: string; lies: NetLies }>([
    { what: "num_buffers 0", lies: { numBuffers: () => 0 } },
    { what: "num_buffers 65535", lies: { numBuffers: () => 65_535 } },
    { what: "used lengths shorter than a header", lies: { usedLength: () => 3 } },
    { what: "used lengths of 0", lies: { usedLength: () => 0 } },
    { what: "headers of ones", lies: { header: (header) => header.fill(0xff) } },
  ])("with $what is counted, no frame invented, no buffer lost", async ({ lies }) => {
    let lying = true;
    const { iface } = await bench({
      lies: {
        numBuffers: (n) => (lying ? (lies.numBuffers?.(n) ?? n) : n),
        usedLength: (n) => (lying ? (lies.usedLength?.(n) ?? n) : n),
        header: (header) => {
          if (lying) lies.header?.(header);
        },
      },
    });
    await iface.setPromiscuous(true);
    await iface.up();
    const frames = iface[Symbol.asyncIterator]();
    const next = frames.next();
    const writer = iface.writable.getWriter();
    // More than the ring has buffers.
    for (let i = 0; i < 600; i++) {
      await writer.write(frameOf(64));
      if (i % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => iface.statistics.ierrors > 0 && iface.statistics.opackets > 500);
    expect(iface.statistics.ipackets).toBe(0);
    lying = false;
    await writer.write(frameOf(1000));
    await until(() => iface.statistics.ipackets > 0);
    let value = (await next).value;
    while (value?.length !== 1000) value = (await frames.next()).value;
    expect(value).toEqual(frameOf(1000));
  });

  it.each([
    { what: "no pairs", offset: 8, value: 0 },
    { what: "more pairs than there can be", offset: 8, value: 0xffff },
  ])("that says $what is driven without", async ({ offset, value }) => {
    const { iface, lines } = await bench({
      queues: 4,
      mtu: 2000,
      lies: { config: (at, _, honest) => (at === offset ? value : honest) },
    });
    expect(lines.join()).toContain("feature disabled");
    await iface.setPromiscuous(true);
    await iface.up();
    await iface.writable.getWriter().write(frameOf(100));
    expect((await iface[Symbol.asyncIterator]().next()).value).toEqual(frameOf(100));
  });

  it("that answers commands with nonsense refused them", async () => {
    const { iface } = await bench({ queues: 4, lies: { ack: () => 99 } });
    await iface.up();
    expect(iface.queuePairs).toBe(1);
    await expect(iface.setPromiscuous(true)).rejects.toThrow(
      expect.objectContaining({ code: "IO" }),
    );
  });
});

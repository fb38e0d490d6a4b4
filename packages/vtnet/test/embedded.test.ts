import { type Frame, InterfaceCapability } from "@virtio/core";
import { NetHash } from "@virtio/core/net";
import { LoopbackBackend, type NetLies, NetPort } from "@virtio/hypervisor";
import { complete, Headers, IpProtocol, parseMac, pseudoSum4, sum } from "@virtio/packets";
import { transmit } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { bench, tcp, tso, until } from "./bench.js";
import { frameOf } from "./fake-device.js";

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

  it("reads the configuration of a legacy device in its own byte order [NET-CFG-LEGACY-1]", async () => {
    const backend = new LoopbackBackend();
    const { iface } = await bench({ legacy: "on", queues: 3, backend });
    await iface.up();
    expect([iface.queuePairs, iface.link.up]).toEqual([3, true]);
    backend.linkUp = false;
    await until(() => !iface.link.up);
  });

  it.each([{ lro: false }, { lro: true }])(
    "has a TCP packet cut into segments, LRO $lro",
    async ({ lro }) => {
      for (const MRG_RXBUF of [true, false]) {
        const { iface } = await bench({ features: { MRG_RXBUF } }, { lroDisable: !lro });
        await iface.up();
        const whole = tcp(20_000);
        transmit(iface, whole, tso);
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
    transmit(iface, tcp(600), csum);
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
      transmit(iface, tcp(600), csum);
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

// What the network device offers and says of itself, and its control queue: every command is answered, bad ones with ERR.
import { NetControlAck, NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { embedded, net, Wire } from "../src/index.js";
import { frame, GUEST_MAC, PEER_MAC } from "./frames.js";
import { le16, le32, NetGuest, type NetGuestOptions, TestWire } from "./net-guest.js";

const { OK, ERR } = NetControlAck;

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

/** Offered when named. */
const datagrams = { HOST_UFO: true, GUEST_UFO: true, GUEST_USO4: true, GUEST_USO6: true };

const acks = async (
  g: NetGuest,
  commands: readonly (readonly [number, number, readonly number[]])[],
): Promise<number[]> => {
  const answers: number[] = [];
  for (const [controlClass, command, data] of commands)
    answers.push((await g.command(controlClass, command, data)).ack);
  return answers;
};

describe("a network device says of itself", () => {
  it("its address, link, pairs, MTU, speed and duplex", () =>
    withGuest({ queues: 8, mtu: 9000, speed: 10_000, duplex: "full" }, async (g) => {
      expect(await g.mac()).toEqual(GUEST_MAC);
      expect(await g.field("status")).toBe(1);
      expect(await g.field("maxVirtqueuePairs")).toBe(8);
      expect(await g.field("mtu")).toBe(9000);
      expect(await g.field("speed")).toBe(10_000);
      expect(await g.field("duplex")).toBe(1);
      expect(g.queues).toHaveLength(17);
    }));

  it("that it knows no speed when it only knows its duplex", () =>
    withGuest({ duplex: "half" }, async (g) => {
      expect([await g.field("speed"), await g.field("duplex")]).toEqual([0xffff_ffff, 0]);
    }));

  it("nothing that it does not offer", () =>
    withGuest({ features: { MAC: false, STATUS: false } }, async (g) => {
      expect(await g.mac()).toEqual([0, 0, 0, 0, 0, 0]);
      for (const field of ["status", "maxVirtqueuePairs", "mtu", "speed", "duplex"] as const)
        expect(await g.field(field)).toBe(0);
      for (const bit of [NetFeature.MQ, NetFeature.MTU, NetFeature.SPEED_DUPLEX, NetFeature.RSS])
        expect(g.accepted).not.toContain(bit);
    }));

  it("what it offers: no dependent feature of one that is held back", () =>
    withGuest({ features: { CTRL_VQ: false, CSUM: false, GUEST_TSO4: false } }, async (g) => {
      const gone = [NetFeature.CTRL_RX, NetFeature.CTRL_RX_EXTRA, NetFeature.CTRL_VLAN];
      const cut = [NetFeature.HOST_TSO4, NetFeature.HOST_TSO6, NetFeature.HOST_ECN];
      for (const bit of [...gone, ...cut, NetFeature.HOST_USO, NetFeature.CTRL_GUEST_OFFLOADS])
        expect(g.accepted).not.toContain(bit);
      expect(g.accepted).toContain(NetFeature.GUEST_ECN);
      expect(g.queues).toHaveLength(2);
    }));

  it("GSO on its legacy interface alone, where it completes checksums", async () => {
    for (const [legacy, CSUM, there] of [
      ["on", true, true],
      ["on", false, false],
      ["off", true, false],
      ["transitional", true, false],
    ] as const)
      await withGuest({ legacy, start: false, features: { CSUM } }, async (g) =>
        // A transitional device is looked at by its modern interface.
        expect((await g.offeredFeatures()).includes(NetFeature.GSO)).toBe(there),
      );
    const held = { legacy: "on", start: false, features: { GSO: false } } as const;
    await withGuest(held, async (g) =>
      expect(await g.offeredFeatures()).not.toContain(NetFeature.GSO),
    );
    await expect(embedded({ devices: ["net,gso=on"] })).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    const unsummed = embedded({ devices: ["net,legacy=on,gso=on,csum=off"] });
    await expect(unsummed).rejects.toMatchObject({ code: "INVALID" });
  });

  for (const [what, options] of [
    ["queues without a control queue", { queues: 2, features: { CTRL_VQ: false } }],
    ["a named feature without what it needs", { features: { CSUM: false, HOST_TSO4: true } }],
    ["fragments without checksums", { features: { CSUM: false, HOST_UFO: true } }],
    ["datagrams together without checksums", { features: { GUEST_CSUM: false, GUEST_USO4: true } }],
    ["no pair of queues", { queues: 0 }],
    ["more pairs than there are doorbells", { queues: 257 }],
    ["an MTU of 67", { mtu: 67 }],
    ["a group address", { mac: "01:00:5e:00:00:01" }],
    ["a negative speed", { speed: -1 }],
    ["an indirection table of 100", { indirectionTable: 100 }],
  ] as const)
    it(`refuses ${what}, and closes the wire`, async () => {
      const wire = new TestWire();
      await expect(NetGuest.start({ ...options, backend: wire })).rejects.toMatchObject({
        code: "INVALID",
      });
      expect(wire.closed).toBe(true);
    });

  it("refuses a wire that it cannot open, and a feature that it does not know", async () => {
    await expect(embedded({ devices: ["net,backend=tap:tap0"] })).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    await expect(embedded({ devices: ["net,rsc_ext=on"] })).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });

  it("opens a wire by the function it was given", async () => {
    const asked: string[] = [];
    const machine = await embedded({
      devices: ["net,backend=stream:/tmp/x"],
      openNet: async (backend) => {
        asked.push(backend);
        return new TestWire();
      },
    });
    await machine.close();
    expect(asked).toEqual(["stream:/tmp/x"]);
  });

  it("an address of its own for each device", async () => {
    const machine = await embedded({ devices: ["net,backend=loop", net()] });
    const functions = await machine.buses[0].bus.functions();
    expect(functions).toHaveLength(2);
    await machine.close();
  });

  for (const [bit, needs] of [
    [NetFeature.HOST_ECN, NetFeature.HOST_TSO4],
    [NetFeature.GUEST_ECN, NetFeature.GUEST_TSO6],
    [NetFeature.GUEST_TSO4, NetFeature.GUEST_CSUM],
    [NetFeature.GUEST_UFO, NetFeature.GUEST_CSUM],
    [NetFeature.GUEST_USO4, NetFeature.GUEST_CSUM],
    [NetFeature.GUEST_USO6, NetFeature.GUEST_CSUM],
    [NetFeature.HOST_UFO, NetFeature.CSUM],
    [NetFeature.MQ, NetFeature.CTRL_VQ],
  ])
    it(`agrees to feature ${NetFeature[bit as number]} only with what it needs`, () =>
      withGuest({ start: false, queues: 2, features: datagrams }, async (g) => {
        const csums = [NetFeature.CSUM, NetFeature.GUEST_CSUM].filter((csum) => csum !== needs);
        expect(await g.negotiate([...csums, bit as NetFeature])).toBe(false);
        expect(await g.negotiate([...csums, bit as NetFeature, needs as NetFeature])).toBe(true);
      }));
});

describe("a control command is answered ERR when it", () => {
  it("is of no class, or no command of its class", () =>
    withGuest({ queues: 2, features: { NOTF_COAL: true, VQ_NOTF_COAL: true } }, async (g) => {
      for (const controlClass of [0, 1, 2, 3, 4, 5, 6, 7, 8, 255])
        expect((await g.command(controlClass, 200, [0, 0])).ack).toBe(ERR);
      expect(g.port.counters).toMatchObject({ commands: 10, refused: 10 });
    }));

  it("has data of another length, or values that there are not", () =>
    withGuest({ queues: 2, features: { NOTF_COAL: true, VQ_NOTF_COAL: true } }, async (g) => {
      const bad: (readonly [number, number, number[]])[] = [
        [0, 0, []],
        [0, 0, [1, 1]],
        [0, 0, [2]],
        [1, 1, [2, 0, 0, 0, 0]],
        [1, 1, [1, 0, 0, 0, 0, 0]],
        [1, 0, [...le32(0)]],
        [1, 0, [...le32(1), ...le32(0)]],
        [1, 0, [...le32(0xffff_ffff), ...le32(0)]],
        [1, 0, [...le32(0), ...le32(0x2aaa_aaab), 1, 2]],
        [1, 0, [...le32(0), ...le32(0), 0]],
        [2, 0, [1]],
        [2, 0, le16(4096)],
        [3, 0, [0]],
        [4, 0, le16(0)],
        [4, 0, le16(3)],
        [4, 0, [1]],
        [4, 1, le32(0)],
        [4, 2, le32(0)],
        [5, 0, le32(0)],
        [5, 0, [...le32(1 << NetFeature.GUEST_UFO), ...le32(0)]],
        [5, 0, [...le32(0), ...le32(1)]],
        [6, 0, le32(0)],
        [6, 2, le32(0)],
        [6, 2, [...le16(4), ...le16(0), ...le32(1), ...le32(1)]],
        [6, 3, le16(0)],
        [6, 3, [...le16(9), ...le16(0)]],
      ];
      expect(await acks(g, bad)).toEqual(bad.map(() => ERR));
    }));

  it("needs a feature that was not accepted", () =>
    withGuest({ accept: [NetFeature.CTRL_VQ] }, async (g) => {
      const all: (readonly [number, number, number[]])[] = [
        [0, 0, [1]],
        [0, 2, [1]],
        [1, 1, [2, 0, 0, 0, 0, 1]],
        [2, 0, le16(5)],
        [3, 0, []],
        [4, 0, le16(1)],
        [5, 0, [...le32(0), ...le32(0)]],
        [6, 0, [...le32(0), ...le32(0)]],
      ];
      expect(await acks(g, all)).toEqual(all.map(() => ERR));
    }));

  it("is cut short, or longer than any", () =>
    withGuest({}, async (g) => {
      const queue = g.queue(2);
      for (const bytes of [Uint8Array.of(0), new Uint8Array(200_000)]) {
        queue.offer([bytes, 1]);
        await g.ring(2);
        await g.settle();
        expect(queue.used()[0]?.regions[1]?.bytes[0]).toBe(ERR);
      }
    }));

  it("has no room for an answer: then nothing is done, and nothing said", () =>
    withGuest({}, async (g) => {
      g.queue(2).offer([Uint8Array.of(0, 0, 1)]);
      await g.ring(2);
      await g.settle();
      expect(g.queue(2).used()[0]?.length).toBe(0);
      expect(g.port.filter?.modes.PROMISC).toBe(false);
    }));
});

describe("the control queue", () => {
  it("takes a command however the driver cut it", () =>
    withGuest({}, async (g) => {
      g.queue(2).offer([Uint8Array.of(0), Uint8Array.of(0), Uint8Array.of(1), 1]);
      await g.ring(2);
      await g.settle();
      expect(g.queue(2).used()[0]?.regions[3]?.bytes[0]).toBe(OK);
      expect(g.port.filter?.modes.PROMISC).toBe(true);
    }));

  it("is the third queue where pairs of queues were not accepted", () =>
    withGuest({ queues: 4, accept: [NetFeature.CTRL_VQ, NetFeature.CTRL_RX] }, async (g) => {
      expect((await g.command(0, 0, [1])).ack).toBe(OK);
    }));

  it("takes more commands than in a turn", () =>
    withGuest({}, async (g) => {
      for (let i = 0; i < 20; i++) g.queue(2).offer([Uint8Array.of(0, 0, i & 1), 1]);
      await g.ring(2);
      await g.settle();
      expect(g.queue(2).used()).toHaveLength(20);
    }));

  it("asks the driver to announce itself, and takes its word for it", () =>
    withGuest({}, async (g) => {
      const generation = await g.generation();
      g.port.announce();
      await g.settle();
      expect(await g.field("status")).toBe(3);
      expect(await g.generation()).not.toBe(generation);
      expect((await g.command(3, 0)).ack).toBe(OK);
      expect(await g.field("status")).toBe(1);
      await g.run([NetFeature.STATUS]);
      g.port.announce();
      await g.settle();
      expect(await g.field("status")).toBe(1);
    }));
});

describe("coalescing of notifications", () => {
  const features = { NOTF_COAL: true, VQ_NOTF_COAL: true };
  const get = async (g: NetGuest, queue: number): Promise<number[]> => {
    const { ack, result } = await g.command(6, 3, [...le16(queue), ...le16(0xffff)], 8);
    expect(ack).toBe(OK);
    const view = new DataView(result.buffer);
    return [view.getUint32(0, true), view.getUint32(4, true)];
  };

  it("is set for a direction or a queue, read back, and 0 after a reset", () =>
    withGuest({ queues: 2, features }, async (g) => {
      expect(await get(g, 0)).toEqual([0, 0]);
      await g.command(6, 1, [...le32(10), ...le32(100)]);
      await g.command(6, 0, [...le32(20), ...le32(200)]);
      await g.command(6, 2, [...le16(2), ...le16(0xaaaa), ...le32(30), ...le32(300)]);
      expect(await get(g, 0)).toEqual([10, 100]);
      expect(await get(g, 1)).toEqual([20, 200]);
      expect(await get(g, 2)).toEqual([30, 300]);
      await g.resetQueue(2);
      await g.enable(2);
      expect(await get(g, 2)).toEqual([10, 100]);
      await g.run();
      expect(await get(g, 0)).toEqual([0, 0]);
      expect(await get(g, 1)).toEqual([0, 0]);
    }));

  it("answers ERR for a queue that is not enabled", () =>
    withGuest({ queues: 2, features }, async (g) => {
      await g.resetQueue(3);
      expect((await g.command(6, 3, [...le16(3), ...le16(0)], 8)).ack).toBe(ERR);
      expect((await g.command(6, 2, [...le16(3), ...le16(0), ...le32(1), ...le32(1)])).ack).toBe(
        ERR,
      );
    }));

  /** Gives frames; how many the driver sees, and whether it was interrupted. */
  const give = async (g: NetGuest, n: number): Promise<[number, boolean]> => {
    await g.isr();
    for (let i = 0; i < n; i++) g.wire.give(frame({ protocol: "udp" }));
    await g.settle();
    return [g.received().length, ((await g.isr()) & 1) !== 0];
  };
  const HOUR = 3_600_000_000;

  it("shows used buffers at once, and interrupts after as many packets as were set", () =>
    withGuest({ features }, async (g) => {
      await g.post(20, 200);
      expect(await give(g, 1)).toEqual([1, true]);
      await g.command(6, 1, [...le32(3), ...le32(HOUR)]);
      expect(await give(g, 2)).toEqual([2, false]);
      expect(await give(g, 1)).toEqual([1, true]);
      expect(await give(g, 2)).toEqual([2, false]);
      // What waits is told when it is switched off.
      await g.isr();
      await g.command(6, 1, [...le32(0), ...le32(0)]);
      expect((await g.isr()) & 1).toBe(1);
      expect(await give(g, 1)).toEqual([1, true]);
    }));

  it("interrupts after the time that was set", () =>
    withGuest({ features, seed: 1 }, async (g) => {
      await g.post(20, 200);
      await g.command(6, 1, [...le32(100), ...le32(HOUR)]);
      const before = g.machine.tasks.now();
      await g.isr();
      g.wire.give(frame({ protocol: "udp" }));
      for (let turn = 0; ((await g.isr()) & 1) === 0; turn++) {
        if (turn === 100) throw new Error("no interrupt came");
        await g.settle();
      }
      expect(g.machine.tasks.now() - before).toBeGreaterThanOrEqual(HOUR / 1000);
    }));

  it("holds back those of transmission as well", () =>
    withGuest({ features }, async (g) => {
      await g.command(6, 0, [...le32(2), ...le32(HOUR)]);
      const one = frame({ to: PEER_MAC, from: GUEST_MAC });
      for (const interrupted of [false, true]) {
        await g.isr();
        expect(await g.transmit([one])).toBe(1);
        expect(((await g.isr()) & 1) !== 0).toBe(interrupted);
      }
    }));
});

describe("a wire", () => {
  async function pair() {
    const wire = new Wire();
    const a = await NetGuest.start({ backend: wire.ends[0] });
    const b = await NetGuest.start({ backend: wire.ends[1], mac: "02:00:00:00:00:01" });
    const close = async (): Promise<void> => {
      await a.close();
      await b.close();
    };
    const settle = async (): Promise<void> => {
      for (let i = 0; i < 3; i++) {
        await a.settle();
        await b.settle();
      }
    };
    return { wire, a, b, close, settle };
  }
  const out = (n: number): Uint8Array =>
    frame({ protocol: "udp", to: PEER_MAC, from: GUEST_MAC, id: n, payload: 10 + (n % 900) });

  it("carries frames of one machine to the other, both ways, in order, and waits for buffers", async () => {
    const { a, b, close, settle } = await pair();
    const frames = Array.from({ length: 60 }, (_, n) => out(n));
    await a.transmit(frames.slice(0, 30));
    await b.post(10, 2000);
    await a.transmit(frames.slice(30));
    await settle();
    const got = b.received().map(({ frame: bytes }) => bytes);
    expect(got).toEqual(frames.slice(0, 10));
    await b.post(60, 2000);
    await settle();
    expect(b.received().map(({ frame: bytes }) => bytes)).toEqual(frames.slice(10));
    await a.post(1, 2000);
    await b.transmit([frame({ protocol: "udp" })]);
    await settle();
    expect(a.received().map(({ frame: bytes }) => bytes)).toEqual([frame({ protocol: "udp" })]);
    await close();
  });

  it("holds the sender back when it is full, and loses nothing", async () => {
    const { a, b, close, settle } = await pair();
    const big = (n: number): Uint8Array =>
      frame({ protocol: "udp", to: PEER_MAC, from: GUEST_MAC, id: n, payload: 9000 });
    await b.post(1, 9100);
    let sent = 0;
    // Some 116 frames fit the wire.
    for (let round = 0; round < 4; round++) {
      const frames = Array.from({ length: 40 }, () => big(sent++));
      const back = await a.transmit(frames);
      if (round < 2) expect(back).toBe(40);
    }
    await settle();
    let received = b.received().length;
    for (let round = 0; round < 6; round++) {
      await b.post(27, 9100);
      await settle();
      const ids = b.received().map(({ frame: bytes }) => new DataView(bytes.buffer).getUint16(18));
      expect(ids).toEqual(ids.map((_, i) => received + i));
      received += ids.length;
    }
    expect(received).toBe(sent);
    await close();
  });

  it("loses what is on it when it is pulled, and both ends see it", async () => {
    const { wire, a, b, close, settle } = await pair();
    await a.transmit([out(1)]);
    await settle();
    wire.linkUp = false;
    await settle();
    expect([await a.field("status"), await b.field("status")]).toEqual([0, 0]);
    wire.linkUp = true;
    await b.post(3, 2000);
    await a.transmit([out(2)]);
    await settle();
    expect(b.received().map(({ frame: bytes }) => bytes)).toEqual([out(2)]);
    await close();
  });

  it("ends with its device: what is sent to nobody is lost", async () => {
    const { a, b, close, settle } = await pair();
    await b.close();
    expect(await a.transmit([out(1)])).toBe(1);
    await settle();
    await close();
  });
});

it("a loopback plug gives a device its own frames", async () => {
  const g = await NetGuest.start({ backend: "loop" });
  await g.post(4, 2000);
  const own = frame({ to: GUEST_MAC, from: GUEST_MAC, protocol: "udp" });
  await g.transmit([own, frame({ to: PEER_MAC, from: GUEST_MAC, protocol: "udp" }), own]);
  await g.settle();
  expect(g.received().map(({ frame: bytes }) => bytes)).toEqual([own, own]);
  await g.close();
});

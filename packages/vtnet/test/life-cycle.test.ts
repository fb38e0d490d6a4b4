import { InterfaceCapability, ReservedFeature } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { type Fake, fake, frameOf, running, turns, usual } from "./fake-device.js";

/** Without MRG_RXBUF a buffer takes all segments. */
const wholeBuffers = [
  NetFeature.GUEST_CSUM,
  NetFeature.GUEST_TSO4,
  ReservedFeature.INDIRECT_DESC,
] as const;

/** Sends one frame; how many were taken. */
function send({ net }: Fake, length = 60): number {
  const frame = net.allocate();
  if (frame === null) throw new Error("no frame");
  frame.length = length;
  const taken = net.transmitBurst(-1, [frame], 1);
  if (taken === 0) net.release(frame);
  return taken;
}

describe("the link", () => {
  it("is up without STATUS, which is not read [NET-CFG-5]", async () => {
    const { net, device } = await running({ features: [NetFeature.MAC], config: { status: 0 } });
    expect(net.link.up).toBe(true);
    expect(device.reads).not.toContain(6);
  });

  it("goes down and up with bit 0 of status, and nothing is transmitted meanwhile [NET-CFG-6]", async () => {
    const made = await running();
    const seen: boolean[] = [];
    const stop = made.net.onLinkChange((up) => seen.push(up));
    made.device.configure("status", 0);
    made.device.changed();
    await turns();
    expect(made.net.link.up).toBe(false);
    expect(send(made)).toBe(0);
    made.device.configure("status", 1);
    made.device.changed();
    await turns();
    expect(send(made)).toBe(1);
    expect(seen).toEqual([false, true]);
    stop();
    made.device.configure("status", 0);
    made.device.changed();
    await turns();
    expect(seen).toHaveLength(2);
    expect(made.lines.slice(-2)).toEqual([
      "link state changed to UP",
      "link state changed to DOWN",
    ]);
  });

  it("that flaps is read once more at most for all that happened meanwhile", async () => {
    const made = await running();
    const reads = made.device.reads.length;
    for (let i = 0; i < 1001; i++) {
      made.device.configure("status", i & 1);
      made.device.onConfigChange?.();
    }
    await turns();
    expect(made.net.link.up).toBe(false);
    expect(made.device.reads.length - reads).toBeLessThan(4);
  });

  it("has a speed and a duplex, read again at each change [NET-CFG-12]", async () => {
    const { net, device } = await running({
      features: [...usual, NetFeature.SPEED_DUPLEX],
      config: { speed: 10_000, duplex: 1 },
    });
    expect(net.link).toEqual({ up: true, speed: 10_000, duplex: "full" });
    device.configure("speed", 0x7fff_ffff);
    device.configure("duplex", 0);
    device.changed();
    await turns();
    expect(net.link).toEqual({ up: true, speed: 0x7fff_ffff, duplex: "half" });
  });

  it("has no speed and no duplex that there cannot be [NET-CFG-11]", async () => {
    const { net, device } = await running({
      features: [...usual, NetFeature.SPEED_DUPLEX],
      config: { speed: 0xffff_ffff, duplex: 0xff },
    });
    expect(net.link).toEqual({ up: true, speed: null, duplex: null });
    device.configure("speed", 0x8000_0000);
    device.configure("duplex", 2);
    device.changed();
    await turns();
    expect(net.link).toEqual({ up: true, speed: null, duplex: null });
  });

  it("is announced when the device asks for it, and that is acknowledged [NET-ANNOUNCE-1] [NET-ANNOUNCE-2]", async () => {
    const told: string[] = [];
    const made = await running({
      features: [...usual, NetFeature.GUEST_ANNOUNCE],
      driver: { onAnnounce: (name) => told.push(name) },
    });
    made.device.commands.length = 0;
    made.device.configure("status", 3);
    made.device.changed();
    await turns();
    expect(told).toEqual(["vtnet0"]);
    expect(made.device.commands).toMatchObject([{ class: 3, command: 0 }]);
    const [seen] = made.device.sent(0);
    expect([...(seen?.frame.subarray(0, 14) ?? [])]).toEqual([
      ...[255, 255, 255, 255, 255, 255],
      ...[0x52, 0x54, 0, 0x12, 0x34, 0x56],
      ...[0x80, 0x35],
    ]);
  });
});

describe("the MTU", () => {
  it("is 1500 at first, and never more than the device says [NET-CFG-8]", async () => {
    const { net, device } = await running({
      features: [NetFeature.MAC, NetFeature.MTU],
      config: { mtu: 4000 },
    });
    expect([net.mtu, net.maxMtu]).toEqual([1500, 4000]);
    // Without merging a buffer takes what the device may send, whatever is set here.
    expect(device.posted(0)[0]?.writableLength).toBeGreaterThanOrEqual(4000 + 12 + 14);
    await expect(net.setMtu(4001)).rejects.toThrow(expect.objectContaining({ code: "INVALID" }));
    await expect(net.setMtu(67)).rejects.toThrow(expect.objectContaining({ code: "INVALID" }));
  });

  it("that is below 68 is not taken", async () => {
    const { net, lines, device } = await fake({
      features: [...usual, NetFeature.MTU],
      config: { mtu: 67 },
    });
    expect(lines).toContain("Invalid MTU value: 67. MTU feature disabled.");
    expect(device.negotiated.has(NetFeature.MTU)).toBe(false);
    expect(net.maxMtu).toBe(9216);
  });

  it.each([
    { what: "with merging", features: usual },
    { what: "without", features: [NetFeature.MAC] },
  ])(
    "can be 9216, $what: buffers are made anew, frames that are held stay",
    async ({ features }) => {
      const made = await running({ features });
      made.device.receive(0, frameOf(64));
      const held: Parameters<typeof made.net.receiveBurst>[1] = [];
      expect(made.net.receiveBurst(0, held, 1)).toBe(1);
      await made.net.setMtu(9216);
      expect(made.net.running).toBe(true);
      const bytes = made.device
        .posted(0)
        .reduce((sum, { writableLength }) => sum + writableLength, 0);
      expect(bytes).toBeGreaterThan(9216 + 18 + 12);
      const [frame] = held;
      if (frame === null || frame === undefined) throw new Error("no frame");
      expect(frame.bytes.slice(frame.offset, frame.offset + 64)).toEqual(frameOf(64));
      // It lies in a cluster of the pool before.
      expect(made.net.transmitBurst(0, [frame], 1)).toBe(1);
      expect(made.net.statistics.oerrors).toBe(1);
      const before = made.device.memory.available;
      made.net.release(frame);
      await made.net.setMtu(1500);
      await made.net.setMtu(9216);
      expect(made.device.memory.available).toBe(before);
    },
  );

  it("gives buffers of 1526 bytes at least [NET-RXBUF-2] [NET-RXBUF-3]", async () => {
    const { net, device } = await running({ features: [NetFeature.MAC] });
    await net.setMtu(100);
    for (const { writableLength } of device.posted(0))
      expect(writableLength).toBeGreaterThanOrEqual(1526);
  });

  it("gives buffers of 65609 bytes for several segments without merging [NET-RXBUF-1]", async () => {
    const { device, net } = await running({ size: 64, features: wholeBuffers });
    const before = device.posted(0).length;
    for (const { writableLength } of device.posted(0))
      expect(writableLength).toBeGreaterThanOrEqual(65_609);
    const whole = frameOf(60_000);
    const frames: Parameters<typeof net.receiveBurst>[1] = [];
    for (let i = 0; i < 100; i++) {
      device.receive(0, whole);
      expect(net.receiveBurst(0, frames, 4)).toBe(1);
      const got: number[] = [];
      for (let part = frames[0] ?? null; part !== null; part = part.next)
        got.push(...part.bytes.subarray(part.offset, part.offset + part.length));
      if (i % 25 === 0) expect(Uint8Array.from(got)).toEqual(whole);
      if (frames[0]) net.release(frames[0]);
      expect(device.posted(0)).toHaveLength(before);
      for (const { writableLength } of device.posted(0))
        expect(writableLength).toBeGreaterThanOrEqual(65_609);
    }
  });
});

it("does not take several segments without merging where a ring is shorter than such a buffer", async () => {
  const { device, lines } = await running({ size: 16, features: wholeBuffers });
  expect(device.negotiated.has(NetFeature.GUEST_TSO4)).toBe(false);
  expect(lines.join()).toContain("LRO disabled due to a receive queue of 16 descriptors");
  expect(device.posted(0)).toHaveLength(16);
});

describe("life", () => {
  it("begins down and visible, and ends with all memory given back", async () => {
    const made = await fake();
    expect(made.net.running).toBe(false);
    expect(made.lines).toEqual(["Ethernet address: 52:54:00:12:34:56", "link state changed to UP"]);
    await made.net.up();
    expect(made.net.running).toBe(true);
    await made.net.detach();
    expect(made.device.memory.available).toBe(8 << 20);
    expect(await made.net.closed).toBeNull();
    expect(made.net.allocate()).toBeNull();
    await expect(made.net.up()).rejects.toThrow(expect.objectContaining({ code: "CLOSED" }));
  });

  it("has fewer buffers where there is little memory, and fails where there is none", async () => {
    const made = await running({ size: 256, memory: 1 << 20 });
    expect(made.net.running).toBe(true);
    expect(made.device.posted(0).length).toBeGreaterThanOrEqual(16);
    await expect(fake({ memory: 100_000 })).rejects.toThrow(
      expect.objectContaining({ code: "OUT_OF_MEMORY" }),
    );
  });

  it("goes on after a reset that the device asked for", async () => {
    const made = await running();
    send(made);
    const { reinits } = made.device;
    made.device.fail("NEEDS_RESET");
    await turns(20);
    expect(made.device.reinits).toBe(reinits + 1);
    expect(made.net.running).toBe(true);
    expect(made.net.statistics.oqdrops).toBe(1);
    expect(made.device.posted(0)).toHaveLength(16);
    made.device.receive(0, frameOf(64));
    expect(made.net.receiveBurst(0, [], 8)).toBe(1);
  });

  it("ends when resets do not help", async () => {
    const made = await running();
    for (let i = 0; i < 4; i++) {
      made.device.fail("NEEDS_RESET");
      await turns(20);
    }
    expect(await made.net.closed).toMatchObject({ code: "NEEDS_RESET" });
    expect(made.net.allocate()).toBeNull();
    await made.net.detach();
  });

  it("ends once when the device goes away, and its memory is not used again", async () => {
    const made = await running();
    made.device.fail("CLOSED");
    await turns();
    expect(await made.net.closed).toMatchObject({ code: "CLOSED" });
    await expect(made.net.setPromiscuous(true)).rejects.toThrow(
      expect.objectContaining({ code: "CLOSED" }),
    );
    const before = made.device.memory.available;
    await made.net.detach();
    expect(made.lines.at(-1)).toContain("their memory is lost");
    expect(made.device.memory.available - before).toBeLessThan(100_000);
  });

  it("resets a device that does not transmit, after five seconds", async () => {
    const made = await running();
    send(made);
    await made.device.tasks.pass(4500);
    expect(made.lines.join()).not.toContain("watchdog");
    await made.device.tasks.pass(600);
    await turns(20);
    expect(made.lines).toContain("watchdog timeout on queue 0");
    expect(made.net.running).toBe(true);
    expect(made.net.statistics).toMatchObject({ opackets: 0, oqdrops: 1 });
    // One that does is left alone.
    send(made);
    made.device.sent(0);
    await made.device.tasks.pass(20_000);
    expect(made.lines.filter((line) => line.includes("watchdog"))).toHaveLength(1);
    expect(made.net.statistics.opackets).toBe(1);
  });

  it("has nothing in flight while it is suspended, and goes on as it was", async () => {
    const made = await running();
    send(made);
    await made.net.suspend();
    expect(made.device.suspends).toBe(1);
    expect(send(made)).toBe(0);
    await expect(made.net.down().then(() => made.net.up())).rejects.toThrow(
      expect.objectContaining({ code: "BUSY" }),
    );
    await made.net.resume();
    await made.net.up();
    expect(made.device.posted(0)).toHaveLength(16);
    expect(send(made)).toBe(1);
  });

  it("counts by queue", async () => {
    const made = await running();
    made.device.receive(0, frameOf(64));
    made.net.receiveBurst(0, [], 8);
    const read = (name: string): unknown => made.sysctl.find(`vtnet.${name}`)[0]?.read();
    expect(read("rxq0.ipackets")).toBe(1);
    expect(read("rxq0.ibytes")).toBe(64);
    expect(read("max_vq_pairs")).toBe(1);
  });

  it("knows no capability that the device has not", async () => {
    const { net } = await fake();
    await expect(net.setCapability(InterfaceCapability.TSO4, true)).rejects.toThrow(
      expect.objectContaining({ code: "UNSUPPORTED" }),
    );
  });
});

import type { Frame } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import {
  type Fake,
  fake,
  frameOf,
  header,
  plainHeader,
  running,
  turns,
  usual,
} from "./fake-device.js";

const bytesOf = (frame: Frame | null | undefined): Uint8Array => {
  const parts: number[] = [];
  for (let part = frame ?? null; part !== null; part = part.next)
    parts.push(...part.bytes.subarray(part.offset, part.offset + part.length));
  return Uint8Array.from(parts);
};

/** Sends some bytes as one frame; how many were taken. */
function send({ net }: Fake, bytes: Uint8Array, change: (frame: Frame) => void = () => {}): number {
  const frame = net.allocate();
  if (frame === null) throw new Error("no frame");
  frame.bytes.set(bytes, frame.offset);
  frame.length = bytes.length;
  change(frame);
  return net.transmitBurst(-1, [frame], 1);
}

/** All received frames, released. */
function received({ net }: Fake, queue = 0): Uint8Array[] {
  const frames: (Frame | null)[] = [];
  const seen: Uint8Array[] = [];
  const n = net.receiveBurst(queue, frames, 64);
  for (const frame of frames.slice(0, n)) {
    seen.push(bytesOf(frame));
    if (frame !== null) net.release(frame);
  }
  return seen;
}

describe("receiveBurst", () => {
  it("gives each frame once, and another buffer takes its place", async () => {
    const made = await running();
    const before = made.device.posted(0).length;
    for (let i = 0; i < 3; i++) made.device.receive(0, frameOf(64 + i, i));
    expect(received(made)).toEqual([frameOf(64, 0), frameOf(65, 1), frameOf(66, 2)]);
    expect(made.device.posted(0)).toHaveLength(before);
    expect(received(made)).toEqual([]);
    expect(made.net.statistics).toMatchObject({ ipackets: 3, ibytes: 64 + 65 + 66 });
  });

  it("drops a frame that has no replacement, and the device keeps its buffer", async () => {
    const made = await running();
    const { net, device } = made;
    const before = device.posted(0).length;
    const held: Frame[] = [];
    for (let frame = net.allocate(); frame !== null; frame = net.allocate()) held.push(frame);
    device.receive(0, frameOf(64));
    expect(received(made)).toEqual([]);
    expect(net.statistics).toMatchObject({ ipackets: 0, iqdrops: 1 });
    expect(device.posted(0)).toHaveLength(before);
    for (const frame of held) net.release(frame);
    device.receive(0, frameOf(64));
    expect(received(made)).toEqual([frameOf(64)]);
  });

  it("puts a frame of several buffers together", async () => {
    const made = await running();
    const { device } = made;
    const whole = frameOf(5000);
    device.fill(0, Uint8Array.from([...plainHeader(3), ...whole.subarray(0, 2016)]));
    device.fill(0, whole.subarray(2016, 4044));
    device.fill(0, whole.subarray(4044));
    device.deliver(0);
    expect(received(made)).toEqual([whole]);
    expect(device.posted(0)).toHaveLength(16);
  });

  it.each([
    ["a length shorter than a header", (d: Fake["device"]) => d.fill(0, plainHeader(), 5)],
    ["a header without a frame", (d: Fake["device"]) => d.fill(0, plainHeader(), 12)],
    [
      "num_buffers 0",
      (d: Fake["device"]) => d.fill(0, Uint8Array.from([...plainHeader(0), ...frameOf(64)])),
    ],
    [
      "num_buffers 65535",
      (d: Fake["device"]) => d.fill(0, Uint8Array.from([...plainHeader(65535), ...frameOf(64)])),
    ],
    [
      "a tunnel that was not negotiated [NET-RX-8]",
      (d: Fake["device"]) =>
        d.fill(0, Uint8Array.from([...header({ flags: 1, gsoType: 0x61 }), ...frameOf(64)])),
    ],
    [
      "a tunnel without a partial checksum [NET-RX-10]",
      (d: Fake["device"]) =>
        d.fill(0, Uint8Array.from([...header({ gsoType: 0x21, gsoSize: 9 }), ...frameOf(64)])),
    ],
    [
      "a tunnel whose checksum is valid [NET-RX-10]",
      (d: Fake["device"]) =>
        d.fill(0, Uint8Array.from([...header({ flags: 3, gsoType: 0x44 }), ...frameOf(64)])),
    ],
    [
      "a tunnel without segments [NET-RX-10]",
      (d: Fake["device"]) =>
        d.fill(0, Uint8Array.from([...header({ flags: 1, gsoType: 0x20 }), ...frameOf(64)])),
    ],
    [
      "a tunnel's checksum without a tunnel [NET-RX-11]",
      (d: Fake["device"]) => d.fill(0, Uint8Array.from([...header({ flags: 9 }), ...frameOf(64)])),
    ],
  ])("counts %s as an error, and no buffer is lost", async (_, lie) => {
    const made = await running();
    for (let i = 0; i < 100; i++) {
      lie(made.device);
      made.device.deliver(0);
      expect(received(made)).toEqual([]);
    }
    expect(made.net.statistics).toMatchObject({ ipackets: 0, ierrors: 100 });
    expect(made.device.posted(0)).toHaveLength(16);
    made.device.receive(0, frameOf(80));
    expect(received(made)).toEqual([frameOf(80)]);
  });

  it("frees what came of a frame whose other buffers did not", async () => {
    const made = await running();
    const { device, net } = made;
    const free = count(net);
    device.fill(0, Uint8Array.from([...plainHeader(2), ...frameOf(2016)]));
    device.deliver(0);
    expect(received(made)).toEqual([]);
    expect(count(net)).toBe(free);
  });

  it("ignores unknown flags [NET-RX-1]", async () => {
    const made = await running();
    made.device.receive(0, frameOf(64), header({ flags: 0xf8 }));
    expect(received(made)).toEqual([frameOf(64)]);
  });

  it("does not rely on hdr_len [NET-RX-5] [NET-RX-6]", async () => {
    const made = await running();
    for (const hdrLen of [0, 1, 0xffff]) {
      made.device.receive(0, frameOf(64), header({ hdrLen, flags: 2 }));
      expect(received(made)).toEqual([frameOf(64)]);
    }
  });

  it("has no fields of tunnels: the frame begins behind num_buffers or the hash [NET-RX-3] [NET-RX-9]", async () => {
    for (const size of [12, 20]) {
      const hash = size === 20 ? [NetFeature.HASH_REPORT] : [];
      const made = await running({ features: [...usual, ...hash] });
      const frame = frameOf(64).fill(0xff, 0, 12);
      made.device.receive(
        0,
        frame,
        Uint8Array.from([...plainHeader(), ...new Array(size - 12).fill(0)]),
      );
      expect(received(made)).toEqual([frame]);
    }
  });

  it("vouches for no checksum that the device does not vouch for [NET-RX-7]", async () => {
    const made = await running({ features: [...usual, NetFeature.GUEST_CSUM] });
    const frames: (Frame | null)[] = [];
    for (const flags of [0, 0x10]) {
      made.device.receive(0, frameOf(64), header({ flags, csumStart: 34, csumOffset: 16 }));
      expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
      expect(frames[0]?.flags).toBe(0);
    }
  });

  it("does not look at the offsets of a checksum that is not partial [NET-RX-4]", async () => {
    const made = await running({ features: [...usual, NetFeature.GUEST_CSUM] });
    made.device.receive(
      0,
      frameOf(64),
      header({ flags: 2, csumStart: 0xffff, csumOffset: 0xffff }),
    );
    const frames: (Frame | null)[] = [];
    expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
    expect(frames[0]?.flags).toBe(2);
    // RSC_INFO: they are counts.
    made.device.receive(0, frameOf(64), header({ flags: 5, csumStart: 14, csumOffset: 6 }));
    expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
    expect(frames[0]?.flags).toBe(0);
    made.device.receive(0, frameOf(64), header({ csumStart: 0xffff, csumOffset: 0xffff }));
    expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
    // Neither bit: nobody answers for the checksum.
    expect(frames[0]?.flags).toBe(0);
  });

  it("does not believe in a checksum outside of the frame", async () => {
    const made = await running({ features: [...usual, NetFeature.GUEST_CSUM] });
    made.device.receive(0, frameOf(64), header({ flags: 1, csumStart: 60, csumOffset: 16 }));
    const frames: (Frame | null)[] = [];
    expect(made.net.receiveBurst(0, frames, 1)).toBe(1);
    expect(frames[0]).toMatchObject({ flags: 0, length: 64 });
    expect(made.sysctl.find("vtnet.rx_csum_bad_offset")[0]?.read()).toBe(1);
  });

  it("is refilled when buffers come back", async () => {
    const made = await running({ size: 64 });
    expect(made.device.posted(0)).toHaveLength(64);
  });
});

/** Frames that can be had. */
function count(net: Fake["net"]): number {
  const all: Frame[] = [];
  for (let frame = net.allocate(); frame !== null; frame = net.allocate()) all.push(frame);
  for (const frame of all) net.release(frame);
  return all.length;
}

describe("transmitBurst", () => {
  it("puts header and frame into one descriptor, the header zero [NET-TX-2] [NET-TX-3]", async () => {
    const made = await running();
    expect(send(made, frameOf(60))).toBe(1);
    const [seen] = made.device.sent(0);
    expect(seen).toMatchObject({ segments: 1, frame: frameOf(60), header: new Uint8Array(12) });
  });

  it("sends a received frame in its own buffer, DATA_VALID left out [NET-TX-45]", async () => {
    const made = await running({ features: [...usual, NetFeature.GUEST_CSUM, NetFeature.CSUM] });
    made.device.receive(0, frameOf(64), header({ flags: 2 }));
    const frames: (Frame | null)[] = [];
    expect(made.net.receiveBurst(0, frames, 32)).toBe(1);
    expect(made.net.transmitBurst(0, frames, 1)).toBe(1);
    expect(made.device.sent(0)[0]).toMatchObject({
      header: new Uint8Array(12),
      frame: frameOf(64),
    });
  });

  it("takes only what there is room for, and calls onRoom when there is again", async () => {
    const made = await running();
    let sent = 0;
    while (send(made, frameOf(60)) === 1) sent += 1;
    expect(sent).toBe(16);
    let rooms = 0;
    made.net.onRoom = () => {
      rooms += 1;
    };
    expect(made.device.sent(0)).toHaveLength(16);
    await turns();
    expect(rooms).toBe(1);
    expect(send(made, frameOf(60))).toBe(1);
  });

  it("counts a frame larger than the MTU as an error, and takes it [NET-CFG-9]", async () => {
    const made = await running({
      features: [...usual, NetFeature.MTU],
      config: { mtu: 1000 },
    });
    expect(made.net.mtu).toBe(1000);
    const free = count(made.net);
    expect(send(made, frameOf(1014))).toBe(1);
    expect(send(made, frameOf(1015))).toBe(1);
    expect(made.device.sent(0).map(({ frame }) => frame.length)).toEqual([1014]);
    expect(made.net.statistics.oerrors).toBe(1);
    // Taken back at the next burst.
    made.net.transmitBurst(0, [], 0);
    expect(count(made.net)).toBe(free);
    expect(made.net.statistics.opackets).toBe(1);
  });

  it("copies a frame that leaves no room for the header", async () => {
    const made = await running();
    const moved = frameOf(60);
    const sent = send(made, moved, (frame) => {
      const to = frame.offset - 30;
      frame.bytes.copyWithin(to, frame.offset, frame.offset + frame.length);
      frame.offset = to;
    });
    expect(sent).toBe(1);
    expect(made.device.sent(0)[0]?.frame).toEqual(moved);
    expect(made.sysctl.find("vtnet.tx_defragged")[0]?.read()).toBe(1);
  });

  it("does not take a frame twice", async () => {
    const made = await running();
    const frame = made.net.allocate();
    if (frame === null) throw new Error("no frame");
    frame.length = 60;
    expect(made.net.transmitBurst(0, [frame, frame], 2)).toBe(2);
    expect(made.device.sent(0)).toHaveLength(1);
    expect(made.net.statistics.oerrors).toBe(1);
    made.net.release(frame);
    made.net.transmitBurst(0, [], 0);
    const free = count(made.net);
    made.net.release(frame);
    expect(count(made.net)).toBe(free);
  });

  it("takes nothing while it is down, and calls onRoom when it is up", async () => {
    const made = await fake();
    let rooms = 0;
    made.net.onRoom = () => {
      rooms += 1;
    };
    expect(send(made, frameOf(60))).toBe(0);
    await made.net.up();
    await turns();
    expect(rooms).toBe(1);
  });
});

describe("an old device", () => {
  it("has a descriptor of 10 bytes for the header, in both directions [NET-FRAME-LEGACY-1]", async () => {
    const made = await running({ features: [NetFeature.MAC], legacy: true });
    const { device } = made;
    // Two descriptors each.
    const posted = device.posted(0);
    expect(posted).toHaveLength(8);
    for (const chain of posted)
      expect(chain.writablePieces(0, chain.writableLength).map(({ length }) => length)).toEqual([
        10, 2016,
      ]);
    device.receive(0, frameOf(300), new Uint8Array(10));
    expect(received(made)).toEqual([frameOf(300)]);
    expect(device.posted(0)).toHaveLength(8);
    expect(send(made, frameOf(301))).toBe(1);
    expect(device.sent(0, 10)).toMatchObject([
      { segments: 2, header: new Uint8Array(10), frame: frameOf(301) },
    ]);
  });
});

it("looks at no used length of transmitted frames and of commands on the legacy interface [NET-HDR-LEGACY-2]", async () => {
  const made = await fake({ legacy: true });
  for (made.device.usedLength of [0, 77, 0xffff_ffff]) {
    await made.net.up();
    const { opackets } = made.net.statistics;
    expect(send(made, frameOf(60))).toBe(1);
    expect(made.device.sent(0)).toHaveLength(1);
    made.net.transmitBurst(0, [], 0);
    expect(made.net.statistics.opackets).toBe(opackets + 1);
    await made.net.down();
  }
});

describe("whatever a device does with its buffers", () => {
  it.each([1, 2, 3, 4, 5])("none is lost and none comes twice, seed %i", async (seed) => {
    let state = seed;
    const random = (below: number): number => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    const made = await running({ features: [...usual, NetFeature.GUEST_CSUM, NetFeature.CSUM] });
    const { net, device } = made;
    const free = count(net);
    const held: Frame[] = [];
    for (let round = 0; round < 300; round++) {
      for (let n = random(5); n > 0; n--) {
        const bytes = Uint8Array.from({ length: 12 + random(200) }, () => random(256));
        // Mostly few buffers, sometimes any number.
        bytes[10] = random(4) === 0 ? random(256) : random(3);
        bytes[11] = random(8) === 0 ? random(256) : 0;
        device.fill(0, bytes, random(bytes.length + 1));
      }
      device.deliver(0);
      const frames: (Frame | null)[] = [];
      const n = net.receiveBurst(0, frames, 1 + random(8));
      for (const frame of frames.slice(0, n)) {
        if (frame === null) throw new Error("no frame");
        expect(held).not.toContain(frame);
        expect(frame.length).toBeGreaterThanOrEqual(10);
        held.push(frame);
      }
      // Some wait, some are sent, some are released.
      while (held.length > 8) {
        const [frame] = held.splice(random(held.length), 1);
        if (frame === undefined) break;
        if (random(2) === 0 || net.transmitBurst(-1, [frame], 1) === 0) net.release(frame);
      }
      if (random(3) === 0) device.sent(0);
    }
    for (const frame of held) net.release(frame);
    device.sent(0);
    received(made);
    net.transmitBurst(0, [], 0);
    device.sent(0);
    expect(device.posted(0)).toHaveLength(16);
    expect(count(net)).toBe(free);
    expect(net.running).toBe(true);
  });
});

import type { CapturedFrame, Frame } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import type { Vtnet } from "../src/index.js";
import { fake, frameOf, header, plainHeader, running, turns, usual } from "./fake-device.js";

/** Frames that can be allocated; they are given back. */
function free(net: Vtnet): number {
  const frames: Frame[] = [];
  for (let frame = net.allocate(); frame !== null; frame = net.allocate()) frames.push(frame);
  for (const frame of frames) net.release(frame);
  return frames.length;
}

describe("readable", () => {
  it("gives copies in order, waiting for them", async () => {
    const { net, device } = await running();
    const reader = net.readable.getReader();
    const first = reader.read();
    await turns();
    device.receive(0, frameOf(64, 1));
    device.receive(0, frameOf(65, 2));
    expect((await first).value).toEqual(frameOf(64, 1));
    expect((await reader.read()).value).toEqual(frameOf(65, 2));
    expect(device.posted(0)).toHaveLength(16);
  });

  it("gives frames of as many buffers as a device has", async () => {
    const { net, device } = await running({ size: 512 });
    const bytes = frameOf(13 + 400);
    device.fill(0, Uint8Array.of(...plainHeader(400), ...bytes.subarray(0, 14)));
    for (let i = 14; i < bytes.length; i++) device.fill(0, bytes.subarray(i, i + 1));
    device.deliver(0);
    expect((await net.readable.getReader().read()).value).toEqual(bytes);
  });

  it.each([1, 4])("gives others their turn after %i frames", async (rxProcessLimit) => {
    const { net, device } = await running({ driver: { rxProcessLimit } });
    for (let i = 0; i < 16; i++) device.receive(0, frameOf(64, i));
    let read = 0;
    const reader = net.readable.getReader();
    const all = (async () => {
      for (; read < 16; read++) await reader.read();
    })();
    const seen: number[] = [];
    while (read < 16) {
      seen.push(read);
      await turns(1);
    }
    await all;
    for (const [i, before] of seen.entries())
      expect((seen[i + 1] ?? 16) - before).toBeLessThanOrEqual(rxProcessLimit);
  });

  it("that nobody reads holds nothing: frames stay with the device", async () => {
    const { net, device } = await running();
    const { readable } = net;
    for (let i = 0; i < 16; i++) device.receive(0, frameOf(64, i));
    await turns();
    expect(net.statistics.ipackets).toBe(0);
    expect(device.posted(0)).toEqual([]);
    let i = 0;
    for await (const frame of readable) {
      expect(frame).toEqual(frameOf(64, i));
      i += 1;
      if (i === 16) break;
    }
    expect(device.posted(0)).toHaveLength(16);
  });

  it("can be left and taken up again", async () => {
    const { net, device } = await running();
    for (let i = 0; i < 4; i++) {
      device.receive(0, frameOf(64, i));
      for await (const frame of net) {
        expect(frame).toEqual(frameOf(64, i));
        break;
      }
    }
    await net.readable.cancel();
    device.receive(0, frameOf(64, 9));
    const reader = net.readable.getReader();
    expect((await reader.read()).value).toEqual(frameOf(64, 9));
  });

  it("gets none while onReceive is set, and all again after it", async () => {
    const { net, device } = await running();
    const reader = net.readable.getReader();
    const read = reader.read();
    const seen: number[] = [];
    net.onReceive = (queue) => {
      seen.push(queue);
    };
    device.receive(0, frameOf(64));
    await turns();
    expect(seen.length).toBeGreaterThan(0);
    net.onReceive = null;
    expect((await read).value).toEqual(frameOf(64));
  });

  it("has the tag in its frames, and checksums that are complete", async () => {
    const { net, device } = await running({
      features: [...usual, NetFeature.CSUM, NetFeature.GUEST_CSUM],
    });
    const bytes = frameOf(100);
    bytes.set([0x81, 0, 0, 5], 12);
    device.receive(0, bytes, header({ flags: 1, csumStart: 18, csumOffset: 0 }));
    const { value } = await net.readable.getReader().read();
    if (value === undefined) throw new Error("no frame");
    expect(value.subarray(0, 18)).toEqual(bytes.subarray(0, 18));
    let sum = 0;
    // What stood at the place of the checksum is part of the sum.
    for (let i = 18; i < 100; i += 2) sum += ((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0);
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
    expect(((value[18] ?? 0) << 8) | (value[19] ?? 0)).toBe(0xffff - sum);
    expect(value.subarray(20)).toEqual(bytes.subarray(20));
  });

  it("ends with the interface, in order or not", async () => {
    const one = await running();
    const read = one.net.readable.getReader().read();
    await one.net.detach();
    expect((await read).done).toBe(true);
    const two = await running();
    const failing = expect(two.net.readable.getReader().read()).rejects.toThrow(
      expect.objectContaining({ code: "CLOSED" }),
    );
    two.device.fail("CLOSED");
    await failing;
  });
});

describe("writable", () => {
  it("waits for room, and for the interface to be up", async () => {
    const { net, device } = await fake();
    const writer = net.writable.getWriter();
    const written: number[] = [];
    for (let i = 0; i < 40; i++) void writer.write(frameOf(1000, i)).then(() => written.push(i));
    await turns();
    expect(written).toEqual([]);
    await net.up();
    await turns(30);
    expect(written).toHaveLength(16);
    const seen = [];
    for (let i = 0; i < 3; i++) {
      seen.push(...device.sent(0));
      await turns(30);
    }
    expect(seen.map(({ frame }) => frame)).toEqual(
      Array.from({ length: 40 }, (_, i) => frameOf(1000, i)),
    );
    expect(written).toHaveLength(40);
  });

  it("takes jumbo frames, over several clusters", async () => {
    const { net, device } = await running();
    await net.setMtu(9000);
    await net.writable.getWriter().write(frameOf(9014));
    expect(device.sent(0)[0]?.frame).toEqual(frameOf(9014));
  });

  it("refuses a frame larger than the MTU, and another writable goes on", async () => {
    const { net, device } = await running();
    await expect(net.writable.getWriter().write(frameOf(1515))).rejects.toThrow(
      expect.objectContaining({ code: "INVALID" }),
    );
    await net.writable.getWriter().write(frameOf(1514));
    expect(device.sent(0)).toHaveLength(1);
  });

  it("can be aborted while it waits", async () => {
    const { net } = await fake();
    const writer = net.writable.getWriter();
    const write = expect(writer.write(frameOf(64))).rejects.toThrow("enough");
    await turns();
    await writer.abort(new Error("enough"));
    await write;
  });

  it("rejects when the interface is detached", async () => {
    const { net } = await fake();
    const write = expect(net.writable.getWriter().write(frameOf(64))).rejects.toThrow(
      expect.objectContaining({ code: "CLOSED" }),
    );
    await turns();
    await net.detach();
    await write;
  });
});

describe("capture", () => {
  it("sees both directions, with nobody else receiving, until it stops", async () => {
    const { net, device } = await running();
    const seen: CapturedFrame[] = [];
    const stop = net.capture((frame) => seen.push(frame));
    device.receive(0, frameOf(64, 1));
    await turns();
    await net.writable.getWriter().write(frameOf(70, 2));
    expect(seen.map(({ direction, bytes }) => [direction, bytes])).toEqual([
      ["in", frameOf(64, 1)],
      ["out", frameOf(70, 2)],
    ]);
    expect(net.statistics.iqdrops).toBe(1);
    stop();
    device.receive(0, frameOf(64, 3));
    await turns();
    expect(seen).toHaveLength(2);
    expect(net.receiveBurst(0, [], 4)).toBe(1);
  });

  it("may answer what it sees: no frame is lost or taken for another", async () => {
    const { net, device } = await running();
    const before = free(net);
    const writer = net.writable.getWriter();
    await writer.ready;
    net.capture(({ direction, bytes }) => {
      if (direction === "in") void writer.write(frameOf(70, bytes[20]));
    });
    device.receive(0, frameOf(64, 1));
    await turns();
    const reader = net.readable.getReader();
    device.receive(0, frameOf(64, 2));
    expect((await reader.read()).value).toEqual(frameOf(64, 2));
    await turns();
    expect(device.sent(0)).toHaveLength(2);
    expect(free(net)).toBe(before);
  });

  it("that fails is over, and nobody else notices", async () => {
    const { net, device, lines } = await running();
    const seen: unknown[] = [];
    net.capture(() => {
      throw new Error("no disk");
    });
    net.capture((frame) => seen.push(frame));
    const frames: Parameters<typeof net.receiveBurst>[1] = [];
    for (let i = 0; i < 2; i++) {
      device.receive(0, frameOf(64));
      expect(net.receiveBurst(0, frames, 4)).toBe(1);
      if (frames[0]) expect(net.transmitBurst(0, frames, 1)).toBe(1);
    }
    expect(seen).toHaveLength(4);
    expect(lines.filter((line) => line.includes("no disk"))).toHaveLength(1);
  });
});

describe("onReceive", () => {
  it("is called for frames, and again when it left some", async () => {
    const { net, device } = await running();
    const frames: Parameters<typeof net.receiveBurst>[1] = [];
    let taken = 0;
    net.onReceive = (queue) => {
      const n = net.receiveBurst(queue, frames, 2);
      taken += n;
      for (const frame of frames.slice(0, n)) if (frame !== null) net.release(frame);
    };
    await turns();
    for (let i = 0; i < 10; i++) device.receive(0, frameOf(64, i));
    await turns(20);
    expect(taken).toBe(10);
    device.receive(0, frameOf(64));
    await turns();
    expect(taken).toBe(11);
  });
});

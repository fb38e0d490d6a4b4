// Bytes and their flow control: nothing is lost or reordered, nothing spins, every wait can be ended.

import { virtualTime } from "@virtio/testing";
import { describe, expect, it, vi } from "vitest";
import { bench, bytesOf, pattern, read, text, turns, until, write } from "./attached.js";

/** Bytes that a driver's buffers hold in one direction, and a host's end. */
const BUFFERS = 64 * 1024;

async function single(options: Parameters<typeof bench>[0] = {}) {
  const made = await bench(options);
  const port = made.device.ports.at(-1);
  const end = made.host.ports.at(-1);
  if (port === undefined || end === undefined) throw new Error("no port");
  return { ...made, port, end };
}

const serial = { ports: [{ console: true }, { name: "serial" }] };

describe("a port of vtcon", () => {
  it("leaves what nobody reads with the device, and gives all of it to who reads later", async () => {
    const { port, end } = await single(serial);
    await port.open();
    await until(() => end.guestOpen);
    const bytes = pattern(2 * BUFFERS + 5000);
    let at = end.write(bytes);
    await turns();
    at += end.write(bytes, at);
    await turns();
    at += end.write(bytes, at);
    // The buffers are full, and so is the host's end: nobody reads.
    expect([at, end.pending]).toEqual([2 * BUFFERS, BUFFERS]);
    await turns();
    expect(end.pending).toBe(BUFFERS);
    const reading = read(port.readable, bytes.length);
    await until(() => end.pending < BUFFERS);
    end.write(bytes, at);
    expect(Buffer.compare(await reading, bytes)).toBe(0);
  });

  it("waits for a device that does not take what is written, and loses nothing", async () => {
    const { port, end } = await single(serial);
    const bytes = pattern(3 * BUFFERS);
    let over = false;
    const writing = write(port.writable, bytes).then(() => {
      over = true;
    });
    await turns();
    expect([over, end.readableLength, port.pending]).toEqual([false, BUFFERS, BUFFERS]);
    const seen = await read(end.readable, bytes.length);
    await writing;
    expect(Buffer.compare(seen, bytes)).toBe(0);
    expect(port.pending).toBe(0);
  });

  it("says that a write is over when the device has taken its last byte, and not before", async () => {
    const { port, end } = await single(serial);
    await write(port.writable, pattern(BUFFERS));
    let over = false;
    const writing = write(port.writable, bytesOf("x")).then(() => {
      over = true;
    });
    await turns();
    expect([over, port.pending]).toEqual([false, 1]);
    end.read(new Uint8Array(1));
    await writing;
  });

  it("ends a wait for the device when the writer is aborted, and takes other writes afterwards", async () => {
    const { port, end } = await single(serial);
    const writer = port.writable.getWriter();
    const writing = writer.write(pattern(3 * BUFFERS));
    const refused = expect(writing).rejects.toThrow("enough");
    await turns();
    await writer.abort(new Error("enough"));
    await refused;
    // What was given before is the device's: it comes, and nothing is in between.
    const seen = read(end.readable, 2 * BUFFERS + 4);
    await write(port.writable, bytesOf("next"));
    const bytes = await seen;
    expect(Buffer.compare(bytes.subarray(0, 2 * BUFFERS), pattern(2 * BUFFERS))).toBe(0);
    expect(text(bytes.subarray(2 * BUFFERS))).toBe("next");
  });

  it("keeps what is written to a port that nobody has open at the other end until somebody has", async () => {
    const { port, end } = await single({ ports: [{ console: true }, { open: false }] });
    const writing = write(port.writable, bytesOf("patience"));
    await turns();
    expect([port.transmit(bytesOf("x")), end.discarded, end.guestOpen]).toEqual([0, 0, true]);
    end.open();
    await writing;
    expect(text(await read(end.readable, 8))).toBe("patience");
    expect(end.discarded).toBe(0);
  });

  it("sleeps while it waits for the other end to be opened again", async () => {
    const { port, end, machine } = await single(serial);
    const writing = write(port.writable, pattern(3 * BUFFERS));
    await turns();
    end.close();
    await until(() => !port.connected);
    end.read(new Uint8Array(1));
    await until(() => end.discarded > 0);
    await turns();
    const tasks = vi.spyOn(machine.tasks, "enqueue");
    await turns(50);
    expect(tasks.mock.calls.length).toBeLessThan(10);
    tasks.mockRestore();
    end.open();
    // What the device had taken when nobody was there is lost; the driver gave it nothing more.
    const left = 3 * BUFFERS - end.discarded - 1;
    expect(
      Buffer.compare(
        (await read(end.readable, left)).subarray(-1000),
        pattern(3 * BUFFERS).subarray(-1000),
      ),
    ).toBe(0);
    await writing;
  });

  it("gives the device at once what is written to a console, whoever listens", async () => {
    const { device, host } = await bench({ ports: [{ console: true, open: false }, {}] });
    const port = device.port(0);
    if (port === undefined) throw new Error("no port");
    await write(port.writable, bytesOf("hello?"));
    expect(host.port(0).discarded).toBe(6);
  });

  it("takes and gives bytes without streams, in pieces of any size", async () => {
    const { port, end } = await single(serial);
    await port.open();
    await until(() => end.guestOpen);
    const bytes = pattern(30_000);
    end.write(bytes);
    await until(() => end.pending === 0);
    const into = new Uint8Array(bytes.length);
    const sizes = [1, 1023, 1024, 1025, 7, 3000, 0, 4096];
    for (let at = 0, n = 0; at < into.length; n++) {
      const end = Math.min(into.length, at + (sizes[n % sizes.length] as number));
      const length = port.receive(into.subarray(at, end));
      expect(length).toBe(end - at);
      at += length;
    }
    expect(Buffer.compare(into, bytes)).toBe(0);
    expect(port.receive(into)).toBe(0);
    for (let at = 0, n = 0; at < bytes.length; n++) {
      const piece = bytes.subarray(
        0,
        Math.min(bytes.length, at + (sizes[n % sizes.length] as number)),
      );
      at += port.transmit(piece, at);
    }
    await port.drain();
    expect(Buffer.compare(await read(end.readable, bytes.length), bytes)).toBe(0);
  });

  it("calls onReceive when bytes came after all were taken, and onRoom when there is room again", async () => {
    const { port, end } = await single(serial);
    await port.open();
    await until(() => end.guestOpen);
    const into = new Uint8Array(BUFFERS);
    const came: number[] = [];
    port.onReceive = () => {
      let sum = 0;
      for (let n = port.receive(into); n > 0; n = port.receive(into)) sum += n;
      came.push(sum);
    };
    for (let n = 1; n <= 3; n++) {
      end.write(pattern(n * 100));
      await until(() => came.length === n);
    }
    expect(came).toEqual([100, 200, 300]);
    port.onReceive = null;

    let rooms = 0;
    port.onRoom = () => {
      rooms += 1;
    };
    const bytes = pattern(4 * BUFFERS);
    let at = port.transmit(bytes);
    expect(at).toBe(BUFFERS);
    await until(() => rooms === 1);
    at += port.transmit(bytes, at);
    await turns();
    expect([at, rooms]).toEqual([2 * BUFFERS, 1]);
    end.read(new Uint8Array(2000));
    await until(() => rooms === 2);
    at += port.transmit(bytes, at);
    expect(at).toBeGreaterThan(2 * BUFFERS);
  });

  it("closes in order: readers are at the end, what was written is taken, and a later reader has what they left", async () => {
    const { port, end } = await single(serial);
    const reader = port.readable.getReader();
    const first = reader.read();
    await until(() => end.guestOpen);
    end.write(bytesOf("one"));
    expect(text((await first).value as Uint8Array)).toBe("one");
    const last = reader.read();
    await turns();
    expect(port.transmit(bytesOf("bye"))).toBe(3);
    await port.close();
    expect((await last).done).toBe(true);
    expect(text(await read(end.readable, 3))).toBe("bye");
    end.write(bytesOf("two"));
    await turns();
    expect(end.pending).toBe(3);
    expect(text(await read(port.readable, 3))).toBe("two");
  });

  it("says TIMED_OUT when the device does not take what was written before close()", async () => {
    const passing = virtualTime();
    const { port, end } = await single(serial);
    await port.open();
    port.transmit(pattern(BUFFERS));
    await turns();
    port.transmit(pattern(BUFFERS));
    await expect(passing(port.close())).rejects.toMatchObject({
      code: "TIMED_OUT",
      message: "ttyV0.1: 65536 bytes are not taken after 5000 ms",
    });
    expect([port.opened, end.guestOpen]).toEqual([false, false]);
    // They are not lost.
    expect(Buffer.compare(await read(end.readable, BUFFERS), pattern(BUFFERS))).toBe(0);
    expect(Buffer.compare(await read(end.readable, BUFFERS), pattern(BUFFERS))).toBe(0);
  });

  it("is an async iterator of what comes", async () => {
    const { port, end } = await single(serial);
    const pieces: string[] = [];
    const reading = (async () => {
      for await (const piece of port) {
        pieces.push(text(piece));
        if (pieces.join("").length === 6) break;
      }
    })();
    await until(() => end.guestOpen);
    end.write(bytesOf("abc"));
    await until(() => pieces.length === 1);
    end.write(bytesOf("def"));
    await reading;
    expect(pieces.join("")).toBe("abcdef");
    // Leaving the loop cancels nothing.
    end.write(bytesOf("ghi"));
    expect(text(await read(port.readable, 3))).toBe("ghi");
  });

  it("refuses a chunk that is not of bytes", async () => {
    const { port } = await single(serial);
    await expect(write(port.writable, "text" as unknown as Uint8Array)).rejects.toMatchObject({
      code: "INVALID",
    });
    await write(port.writable, bytesOf("bytes"));
  });

  it("counts what passes, in sysctl", async () => {
    const { port, end, sysctl } = await single(serial);
    await write(port.writable, pattern(3000));
    end.write(pattern(2000));
    await read(port.readable, 2000);
    expect(
      Object.fromEntries(
        sysctl.find("vtcon.port1").map(({ name, read }) => [name.slice(12), read()]),
      ),
    ).toEqual({
      ...{ connected: 1, console: 0, ibytes: 2000, name: "serial", obytes: 3000, opened: 1 },
      pending: 0,
    });
  });
});

// A line of bytes as streams, over a line in the test's hands.
import { describe, expect, it } from "vitest";
import { type ByteLine, ByteStreams, VirtioFault } from "../src/index.js";

/** A line that has and takes what the test says. */
class Line implements ByteLine {
  readonly name = "line0";
  incoming = new Uint8Array();
  /** Bytes for which there is room. */
  room = Number.POSITIVE_INFINITY;
  readonly given: number[] = [];
  unsent = 0;
  opened = 0;
  tasks = 0;
  wants = { bytes: 0, room: 0 };
  opening: Promise<void> = Promise.resolve();

  receive(into: Uint8Array): number {
    const length = Math.min(into.length, this.incoming.length);
    into.set(this.incoming.subarray(0, length));
    this.incoming = this.incoming.slice(length);
    return length;
  }
  transmit(bytes: Uint8Array, start: number): number {
    const length = Math.min(this.room, bytes.length - start);
    this.given.push(...bytes.subarray(start, start + length));
    this.room -= length;
    return length;
  }
  pending(): number {
    return this.unsent;
  }
  open(): Promise<void> {
    this.opened += 1;
    return this.opening;
  }
  wantBytes(): void {
    this.wants.bytes += 1;
  }
  wantRoom(): void {
    this.wants.room += 1;
  }
  later(task: () => void): void {
    this.tasks += 1;
    setImmediate(task);
  }
}

function lineOf(): { line: Line; streams: ByteStreams } {
  const line = new Line();
  return { line, streams: new ByteStreams(line) };
}

const fault = new VirtioFault("CLOSED", "gone");
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("the streams of a line", () => {
  it("take nothing of it before somebody reads, and then what there is", async () => {
    const { line, streams } = lineOf();
    line.incoming = Uint8Array.of(1, 2, 3);
    const reader = streams.readable.getReader();
    await turn();
    expect([line.incoming.length, line.opened]).toEqual([3, 0]);
    expect((await reader.read()).value).toEqual(Uint8Array.of(1, 2, 3));
    const next = reader.read();
    await turn();
    expect(line.wants.bytes).toBe(1);
    line.incoming = Uint8Array.of(4);
    streams.arrived();
    expect((await next).value).toEqual(Uint8Array.of(4));
  });

  it("let others have their turn when there is always more", async () => {
    const { line, streams } = lineOf();
    const reader = streams.readable.getReader();
    for (let n = 0; n < 200; n++) {
      line.incoming = Uint8Array.of(n);
      expect((await reader.read()).value).toEqual(Uint8Array.of(n));
    }
    expect(line.tasks).toBe(3);
  });

  it("go on with another reader where one was cancelled, or closed", async () => {
    const { line, streams } = lineOf();
    const first = streams.readable.getReader();
    const waiting = first.read();
    await turn();
    await first.cancel();
    expect((await waiting).done).toBe(true);
    const second = streams.readable.getReader();
    const reading = second.read();
    await turn();
    streams.closeReadable();
    expect((await reading).done).toBe(true);
    streams.closeReadable();
    line.incoming = Uint8Array.of(7);
    for await (const bytes of { [Symbol.asyncIterator]: () => streams[Symbol.asyncIterator]() }) {
      expect(bytes).toEqual(Uint8Array.of(7));
      break;
    }
  });

  it("fail the reader and the writer whose use does not open the line, and no later one", async () => {
    const { line, streams } = lineOf();
    line.opening = Promise.reject(fault);
    await expect(streams.readable.getReader().read()).rejects.toBe(fault);
    await expect(streams.writable.getWriter().write(Uint8Array.of(1))).rejects.toBe(fault);
    line.opening = Promise.resolve();
    line.incoming = Uint8Array.of(1);
    expect((await streams.readable.getReader().read()).value).toEqual(Uint8Array.of(1));
    await streams.writable.getWriter().write(Uint8Array.of(1));
  });

  it("write in order, wait for room, and are done when the other end has all", async () => {
    const { line, streams } = lineOf();
    line.room = 2;
    let over = false;
    const writing = streams.writable
      .getWriter()
      .write(Uint8Array.of(1, 2, 3, 4))
      .then(() => {
        over = true;
      });
    await turn();
    expect([line.given, line.wants.room]).toEqual([[1, 2], 1]);
    line.room = 10;
    line.unsent = 4;
    streams.moved();
    await turn();
    expect([line.given, over]).toEqual([[1, 2, 3, 4], false]);
    line.unsent = 0;
    streams.moved();
    await writing;
  });

  it("fail a write that is aborted, or whose bytes were lost, and not the next", async () => {
    const { line, streams } = lineOf();
    line.room = 0;
    const writer = streams.writable.getWriter();
    const aborted = expect(writer.write(Uint8Array.of(1))).rejects.toThrow("enough");
    await turn();
    await writer.abort(new Error("enough"));
    await aborted;
    const lost = expect(streams.writable.getWriter().write(Uint8Array.of(2))).rejects.toBe(fault);
    await turn();
    streams.breakWrites(fault);
    await lost;
    line.room = 1;
    await streams.writable.getWriter().write(Uint8Array.of(3));
    expect(line.given).toEqual([3]);
  });

  it("end with the line: readers after what came before, writers at once", async () => {
    const { line, streams } = lineOf();
    const reader = streams.readable.getReader();
    const reading = reader.read();
    line.room = 0;
    const writing = expect(streams.writable.getWriter().write(Uint8Array.of(1))).rejects.toBe(
      fault,
    );
    await turn();
    line.incoming = Uint8Array.of(9);
    streams.end(fault);
    await writing;
    expect((await reading).value).toEqual(Uint8Array.of(9));
    await expect(reader.read()).rejects.toBe(fault);
    await expect(streams.writable.getWriter().write(Uint8Array.of(1))).rejects.toBe(fault);
    expect(line.opened).toBe(2);
  });
});

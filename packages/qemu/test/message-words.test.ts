import { DmaWindow } from "@virtio/core";
import { describe, expect, it, onTestFinished } from "vitest";
import { MessageWords } from "../src/message-words.js";
import { NodeTaskQueue } from "../src/tasks.js";

function words(length = 1 << 16) {
  const memory = new DmaWindow(new ArrayBuffer(length), { start: 4096 });
  const messages = new MessageWords(memory, new NodeTaskQueue());
  onTestFinished(() => messages.stop());
  const view = new Uint32Array(memory.buffer);
  return {
    memory,
    messages,
    send: ({ address, data }: { address: number; data: number }) =>
      Atomics.store(view, address / 4, data),
    at: (address: number) => view[address / 4],
  };
}

describe("message words", () => {
  it("runs the handler of the word that its cookie appears in, once a message", async () => {
    const { messages, send, at } = words();
    let other = 0;
    let wake = (): void => {};
    const seen = (): Promise<void> =>
      new Promise((resolve) => {
        wake = resolve;
      });
    let count = 0;
    const vector = messages.add("vtblk0 request", () => {
      count++;
      wake();
    });
    messages.add("vtblk0 config", () => other++);
    for (let i = 1; i <= 3; i++) {
      const handled = seen();
      send(vector);
      await handled;
      expect(count).toBe(i);
      expect(at(vector.address)).toBe(0);
    }
    expect(other).toBe(0);
    expect(messages.counters()).toEqual([
      { irq: "irq256", names: ["vtblk0 request"], count: 3 },
      { irq: "irq257", names: ["vtblk0 config"], count: 0 },
    ]);
  });

  it("notices a message that comes after a long silence", async () => {
    const { messages, send } = words();
    const handled = new Promise<void>((resolve) => {
      const vector = messages.add("late", resolve);
      setTimeout(() => send(vector), 100);
    });
    await handled;
  });

  it("gives every vector a word and a cookie of its own, aligned and not 0", () => {
    const { messages } = words();
    const vectors = Array.from({ length: 2000 }, (_, i) => messages.add(`v${i}`, () => {}));
    expect(new Set(vectors.map(({ address }) => address)).size).toBe(2000);
    expect(new Set(vectors.map(({ data }) => data)).size).toBe(2000);
    expect(vectors.every(({ address, data }) => address % 4 === 0 && data > 0)).toBe(true);
  });

  it("does not run a handler that was taken back, and never gives its word to anything else", async () => {
    const { memory, messages, send } = words();
    let ran = 0;
    const vector = messages.add("gone", () => ran++);
    const free = memory.available;
    send(vector);
    vector.remove();
    vector.remove();
    expect(memory.available).toBe(free);
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(ran).toBe(0);
    expect(messages.counters()).toEqual([]);
  });

  it("takes no turn of the event loop when nobody handles a message", async () => {
    const { messages } = words();
    messages.add("gone", () => {}).remove();
    messages.wake();
    messages.stop();
    const before = performance.eventLoopUtilization();
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(performance.eventLoopUtilization(before).utilization).toBeLessThan(0.5);
  });
});

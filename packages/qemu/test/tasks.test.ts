import { describe, expect, it } from "vitest";
import { NodeTaskQueue } from "../src/tasks.js";
import { settle } from "./support/fake-socket.js";

describe("the task queue", () => {
  it("runs tasks in order, never inside the caller nor inside one another", async () => {
    const tasks = new NodeTaskQueue();
    const seen: string[] = [];
    tasks.enqueue(() => {
      seen.push("a begins");
      tasks.enqueue(() => seen.push("c"));
      seen.push("a ends");
    });
    tasks.enqueue(() => seen.push("b"));
    expect(seen).toEqual([]);
    await settle();
    expect(seen).toEqual(["a begins", "a ends", "b", "c"]);
  });

  it("goes on after a task that throws, whose error nobody swallows", async () => {
    const tasks = new NodeTaskQueue();
    const seen: unknown[] = [];
    const listeners = process.listeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    process.once("uncaughtException", (error) => seen.push(error));
    try {
      const error = new Error("of the first task");
      tasks.enqueue(() => {
        throw error;
      });
      tasks.enqueue(() => seen.push("second"));
      await settle();
      expect(seen).toEqual(["second", error]);
    } finally {
      for (const listener of listeners) process.on("uncaughtException", listener);
    }
  });

  it("has a clock that does not go back", () => {
    const tasks = new NodeTaskQueue();
    const before = tasks.now();
    expect(tasks.now()).toBeGreaterThanOrEqual(before);
  });

  it("runs a callout after its delay, as a task", async () => {
    const tasks = new NodeTaskQueue();
    const start = tasks.now();
    const waited = await new Promise<number>((resolve) =>
      tasks.callout(10, () => resolve(tasks.now() - start)),
    );
    expect(waited).toBeGreaterThanOrEqual(9);
  });

  it("does not run a callout that was stopped, even when it was due", async () => {
    const tasks = new NodeTaskQueue();
    const ran: string[] = [];
    const stopped = tasks.callout(1, () => ran.push("early"));
    stopped.stop();
    const due = tasks.callout(1, () => ran.push("due"));
    const end = performance.now() + 5;
    while (performance.now() < end);
    // Both timers are due now; the first task of the turn stops the second.
    setImmediate(() => due.stop());
    await new Promise<void>((resolve) => tasks.callout(20, resolve));
    expect(ran).toEqual([]);
  });
});

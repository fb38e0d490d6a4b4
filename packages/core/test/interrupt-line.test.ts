import { describe, expect, it } from "vitest";
import { InterruptLine } from "../src/interrupt-line.js";
import type { TaskQueue } from "../src/tasks.js";

/** Virtual time: `advance` runs what is due, and lets promises settle in between. */
class VirtualTasks implements TaskQueue {
  #now = 0;
  #due: { at: number; task: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  enqueue(task: () => void): void {
    this.callout(0, task);
  }

  callout(delayMs: number, task: () => void): { stop(): void } {
    const entry = { at: this.#now + delayMs, task };
    this.#due.push(entry);
    return {
      stop: () => {
        this.#due = this.#due.filter((other) => other !== entry);
      },
    };
  }

  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    for (;;) {
      for (let i = 0; i < 2_000; i++) await null;
      const [next] = this.#due.sort((a, b) => a.at - b.at);
      if (next === undefined || next.at > end) break;
      this.#due.shift();
      this.#now = next.at;
      next.task();
    }
    this.#now = end;
  }
}

function shared() {
  const tasks = new VirtualTasks();
  const log: string[] = [];
  return { tasks, log, line: new InterruptLine(21, tasks, (text) => log.push(text)) };
}

describe("a shared interrupt line", () => {
  it("is served, never inside the one who raised it, until it is low", async () => {
    const { tasks, line, log } = shared();
    let left = 3;
    let calls = 0;
    line.join("a", async () => {
      calls++;
      if (--left === 0) line.set(false);
      return true;
    });
    line.set(true);
    expect(calls).toBe(0);
    await tasks.advance(0);
    expect(calls).toBe(3);
    expect([line.count, line.names, log]).toEqual([1, ["a"], []]);
  });

  it("calls all services of a round before any of them has answered", async () => {
    const { tasks, line } = shared();
    const seen: string[] = [];
    for (const name of ["a", "b"])
      line.join(name, async () => {
        seen.push(`${name} asks`);
        await null;
        seen.push(`${name} has the answer`);
        line.set(false);
        return true;
      });
    line.set(true);
    await tasks.advance(0);
    expect(seen).toEqual(["a asks", "b asks", "a has the answer", "b has the answer"]);
  });

  it("is served again when it is raised during a round", async () => {
    const { tasks, line } = shared();
    let calls = 0;
    line.join("a", async () => {
      calls++;
      line.set(false);
      if (calls === 1) line.set(true);
      return true;
    });
    line.set(true);
    await tasks.advance(0);
    expect([calls, line.count]).toEqual([2, 2]);
  });

  it("that is busy, low and high again in every round, is never stuck", async () => {
    const { tasks, line, log } = shared();
    let calls = 0;
    line.join("a", async () => {
      line.set(false);
      if (++calls < 1_000) line.set(true);
      return true;
    });
    line.set(true);
    await tasks.advance(0);
    expect([calls, log]).toEqual([1_000, []]);
  });

  it("that stays high is logged once, and looked at every 20 ms", async () => {
    const { tasks, line, log } = shared();
    let calls = 0;
    line.join("deaf", async () => {
      calls++;
      return false;
    });
    line.set(true);
    await tasks.advance(0);
    expect(calls).toBe(100);
    expect(log).toEqual(["irq21: stuck interrupt: high after 100 rounds of deaf"]);
    await tasks.advance(200);
    expect(calls).toBe(110);
    expect(log).toHaveLength(1);
  });

  it("that was stuck is served at once when it was low and is raised, and can be stuck again", async () => {
    const { tasks, line, log } = shared();
    let calls = 0;
    line.join("deaf", async () => {
      calls++;
      return false;
    });
    line.set(true);
    await tasks.advance(5);
    line.set(false);
    line.set(true);
    await tasks.advance(0);
    expect(calls).toBe(200);
    expect(log).toHaveLength(2);
  });

  it("that is high calls a service that joins, stuck or not", async () => {
    const { tasks, line } = shared();
    line.set(true);
    await tasks.advance(0);
    const leave = line.join("deaf", async () => false);
    await tasks.advance(5);
    let calls = 0;
    line.join("late", async () => {
      calls++;
      line.set(false);
      return true;
    });
    await tasks.advance(0);
    expect(calls).toBe(1);
    leave();
    expect(line.names).toEqual(["late"]);
  });

  it("is served though one service fails", async () => {
    const { tasks, line } = shared();
    let calls = 0;
    line.join("broken", async () => {
      throw new Error("of this one");
    });
    line.join("a", async () => {
      calls++;
      line.set(false);
      return true;
    });
    line.set(true);
    await tasks.advance(0);
    expect(calls).toBe(1);
  });
});

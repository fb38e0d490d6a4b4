import { describe, expect, it } from "vitest";
import { Scheduler } from "../src/scheduler.js";

/** Turns of the host until it is so. */
async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 10_000) throw new Error("it never came");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Three parties of ten tasks each, which take promises and callouts on the way; who ran, in order. */
async function story(seed: number): Promise<string> {
  const scheduler = new Scheduler({ seed });
  const ran: string[] = [];
  for (const name of ["a", "b", "c"]) {
    const lane = scheduler.lane();
    const step = (n: number): void => {
      ran.push(`${name}${n}@${lane.now()}`);
      if (n === 9) return;
      if (n % 3 === 2) lane.callout(n * 1000, () => step(n + 1));
      else void Promise.resolve().then(() => lane.enqueue(() => step(n + 1)));
    };
    lane.enqueue(() => step(0));
  }
  await until(() => ran.length === 30);
  return ran.join(" ");
}

describe("the seeded scheduler", () => {
  it("replays an interleaving from its seed, and draws others from other seeds", async () => {
    const stories = await Promise.all([1, 1, 2, 3, 4].map(story));
    expect(stories[0]).toBe(stories[1]);
    expect(new Set(stories).size).toBe(4);
  });

  it("keeps each lane's own order", async () => {
    const ran = await story(5);
    for (const name of ["a", "b", "c"])
      expect([...ran.matchAll(new RegExp(`${name}(\\d)`, "g"))].map(([, n]) => n).join("")).toBe(
        "0123456789",
      );
  });

  it("runs in virtual time: an hour passes at once, in the order of what is due", async () => {
    const scheduler = new Scheduler({ seed: 1 });
    const lane = scheduler.lane();
    const began = performance.now();
    const due: number[] = [];
    for (const delay of [3_600_000, 5, 60_000]) lane.callout(delay, () => due.push(lane.now()));
    const never = lane.callout(10, () => due.push(-1));
    never.stop();
    await until(() => due.length === 3);
    expect(due).toEqual([5, 60_000, 3_600_000]);
    expect(performance.now() - began).toBeLessThan(1000);
  });

  it("lets no virtual time pass while work outside is under way", async () => {
    const scheduler = new Scheduler({ seed: 1 });
    const lane = scheduler.lane();
    let read: (value: string) => void = () => {};
    const reading = scheduler.outside(
      new Promise<string>((resolve) => {
        read = resolve;
      }),
    );
    let timedOut = false;
    lane.callout(1000, () => {
      timedOut = true;
    });
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect([timedOut, lane.now()]).toEqual([false, 0]);
    read("data");
    expect(await reading).toBe("data");
    await until(() => timedOut);
  });
});

describe("the scheduler on the host's clock", () => {
  it("runs tasks later, in order of arrival, and never inside the caller", async () => {
    const scheduler = new Scheduler();
    const [a, b] = [scheduler.lane(), scheduler.lane()];
    const ran: string[] = [];
    for (let i = 0; i < 200; i++) (i % 2 === 0 ? a : b).enqueue(() => ran.push(`${i}`));
    expect(ran).toEqual([]);
    await until(() => ran.length === 200);
    expect(ran).toEqual(Array.from({ length: 200 }, (_, i) => `${i}`));
  });

  it("lets the host have its turn between two batches", async () => {
    const lane = new Scheduler().lane();
    let ran = 0;
    let stop = false;
    const again = (): void => {
      ran += 1;
      if (!stop) lane.enqueue(again);
    };
    lane.enqueue(again);
    await until(() => ran > 1000);
    stop = true;
    await new Promise((resolve) => setTimeout(resolve, 1));
  });

  it("steps the devices for a driver that polls, and runs each of their tasks once", async () => {
    const scheduler = new Scheduler();
    const [driver, device] = [scheduler.lane(), scheduler.lane()];
    const ran: string[] = [];
    driver.enqueue(() => ran.push("driver"));
    device.enqueue(() => ran.push("device"));
    scheduler.step(driver);
    expect(ran).toEqual(["device"]);
    await until(() => ran.length === 2);
    expect(ran).toEqual(["device", "driver"]);
  });

  it("goes on after a task that throws, and gives its error to the host", async () => {
    const scheduler = new Scheduler();
    const lane = scheduler.lane();
    const boom = new Error("boom");
    const listeners = process.listeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    const caught = new Promise((resolve) => process.once("uncaughtException", resolve));
    let after = false;
    lane.enqueue(() => {
      throw boom;
    });
    lane.enqueue(() => {
      after = true;
    });
    expect(await caught).toBe(boom);
    for (const listener of listeners) process.on("uncaughtException", listener);
    await until(() => after);
  });

  it("runs no callout after it is closed, and still what waits", async () => {
    const scheduler = new Scheduler();
    const lane = scheduler.lane();
    let fired = false;
    lane.callout(1, () => {
      fired = true;
    });
    let ran = false;
    lane.enqueue(() => {
      ran = true;
    });
    scheduler.close();
    await until(() => ran);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(fired).toBe(false);
  });
});

// When the driver looks at the ring, and when it asks the device to interrupt.
import { describe, expect, it } from "vitest";
import { turns } from "./bios.js";
import { type Fake, type FakeQueue, fake } from "./fake-device.js";

async function patient(): Promise<Fake & { readonly queue: FakeQueue }> {
  const made = await fake();
  made.device.prompt = false;
  const [queue] = made.device.queues;
  if (queue === undefined) throw new Error("no queue");
  return { ...made, queue };
}

const read = ({ disk }: Fake): Promise<unknown> =>
  disk.read(0, new Uint8Array(512)).catch((fault: unknown) => fault);

describe("a queue", () => {
  it("interrupts for the first request, and not while those that follow are quick", async () => {
    const made = await patient();
    const { device, queue } = made;
    for (let request = 0; request < 10; request++) {
      const reading = read(made);
      device.serve(queue);
      await reading;
    }
    expect(queue.counters.interrupts).toBe(1);
  });

  it("interrupts again when nothing came for a while", async () => {
    const made = await patient();
    const { device, queue } = made;
    const quick = read(made);
    device.serve(queue);
    await quick;
    const slow = read(made);
    for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(queue.interrupting).toBe(false);
    await turns();
    expect(queue.interrupting).toBe(true);
    device.serve(queue);
    await slow;
    expect(queue.counters.interrupts).toBe(2);
  });

  it("is looked at no more once nothing is in flight, and again for the next request", async () => {
    const made = await patient();
    const { device, queue } = made;
    const first = read(made);
    device.serve(queue);
    await first;
    await turns();
    expect(queue.interrupting).toBe(false);
    const second = read(made);
    device.serve(queue);
    await second;
    expect(queue.counters.interrupts).toBe(1);
  });

  it("is not touched once the disk is detached, whatever was in flight", async () => {
    const made = await patient();
    const { disk, device, queue } = made;
    const first = read(made);
    device.serve(queue);
    await first;
    const late = read(made);
    await disk.detach();
    expect(await late).toMatchObject({ code: "CLOSED" });
    await turns();
    expect(device.released).toBe(1);
  });
});

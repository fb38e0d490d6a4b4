// Queues by number, and what is to be written before DRIVER_OK: of a balloon, whose queues have holes.
import { DeviceType, featureSet, type QueueSpec, type VirtioDevice } from "@virtio/core";
import { BalloonFeature, BalloonQueue } from "@virtio/core/balloon";
import { BalloonPort, balloon, type EmbeddedBalloonOptions, embedded } from "@virtio/hypervisor";
import { describe, expect, it, onTestFinished } from "vitest";
import { attach, probe } from "../src/index.js";

const { INFLATE, DEFLATE, STATS, FREE_PAGE, REPORTING } = BalloonQueue;
const POISON_AT = 12;

const spec = (index?: number): QueueSpec => ({
  name: `queue ${index ?? "?"}`,
  maxSegments: 1,
  interrupt: true,
  ...(index === undefined ? {} : { index }),
});

/** A device in the hands of a test, as its driver has it before it allocates queues. */
async function deviceOf(
  options: EmbeddedBalloonOptions,
  during: (device: VirtioDevice) => Promise<void>,
): Promise<{ device: VirtioDevice; port: BalloonPort }> {
  const port = new BalloonPort();
  const machine = await embedded({ devices: [balloon({ port, ...options })] });
  onTestFinished(() => machine.close());
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  const found = await attach(node, {
    ...{ name: "test", description: "", types: [DeviceType.BALLOON] },
    ...{ features: [], tunables: [], options: {} },
    attach: async (device) => {
      await device.negotiate(
        featureSet<BalloonFeature>().with(
          BalloonFeature.MUST_TELL_HOST,
          BalloonFeature.PAGE_POISON,
          BalloonFeature.PAGE_REPORTING,
        ),
      );
      await device.finalizeFeatures();
      await during(device);
      await device.setupInterrupts();
      const nothing = async (): Promise<void> => {};
      return {
        device,
        detach: () => device.release(),
        suspend: nothing,
        resume: nothing,
        closed: Promise.resolve(null),
      };
    },
  });
  return { device: found.device, port };
}

const features = { STATS_VQ: false, FREE_PAGE_HINT: false };

describe.each(["off", "on"] as const)("queues of a device, legacy=%s,", (legacy) => {
  it("are those of the numbers that were asked for, in that order, and each interrupts its own", async () => {
    const numbers = [REPORTING, DEFLATE, INFLATE];
    let queues: Awaited<ReturnType<VirtioDevice["allocateQueues"]>> = [];
    const { device, port } = await deviceOf({ features, legacy }, async (own) => {
      queues = await own.allocateQueues(numbers.map(spec));
    });
    expect(queues.map(({ index, name }) => [index, name])).toEqual(
      numbers.map((index) => [index, `queue ${index}`]),
    );
    const page = device.memory.allocate(4096, 4096);
    const list = device.memory.allocate(4);
    new DataView(list.bytes.buffer, list.offset).setUint32(0, page.address / 4096, true);
    const used = (at: number): Promise<number> => {
      const queue = queues[at];
      if (queue === undefined) throw new Error("no queue");
      queue.enableInterrupt();
      return new Promise((resolve) => {
        queue.onUsed = () => resolve(queue.dequeue());
      });
    };
    const inflated = used(2);
    queues[2]?.enqueueReadable(7, list.address, 4);
    queues[2]?.notify();
    expect([await inflated, port.pages]).toEqual([7, 1]);
    const reported = used(0);
    queues[0]?.enqueueWritable(8, page.address, 4096);
    queues[0]?.notify();
    expect([await reported, port.reported]).toEqual([8, 4096]);
    await device.reinit();
    const again = used(0);
    queues[0]?.enqueueWritable(9, page.address, 4096);
    queues[0]?.notify();
    expect([await again, port.reported]).toEqual([9, 8192]);
    await device.release();
  });

  it("that are not there are not found, and then others can be asked for", async () => {
    const tried: unknown[] = [];
    const { device } = await deviceOf({ features, legacy }, async (own) => {
      const free = own.memory.available;
      for (const missing of [STATS, FREE_PAGE, 5])
        tried.push(
          await own.allocateQueues([INFLATE, missing].map(spec)).catch((fault: unknown) => fault),
        );
      expect(own.memory.available).toBe(free);
      await own.allocateQueues([spec(), spec()]);
      tried.push(await own.allocateQueues([spec(4)]).catch((fault: unknown) => fault));
    });
    const codes = tried.map((fault) => (fault as { code?: string }).code);
    expect(codes).toEqual(["NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "INVALID"]);
    await device.release();
  });

  it("run only after what is to be written before, at a reset and at a resume that is one", async () => {
    const { device, port } = await deviceOf(
      { features: { ...features, SUSPEND: false }, legacy },
      async (own) => {
        await own.allocateQueues([spec(), spec()]);
      },
    );
    expect(port.poison).toBeNull();
    for (const [value, again] of [
      [3, (prepare: () => Promise<void>) => device.reinit(undefined, prepare)],
      [
        4,
        async (prepare: () => Promise<void>) => {
          await device.suspend();
          await expect(device.config.write(POISON_AT, 4, 9)).rejects.toMatchObject({
            code: "BUSY",
          });
          await device.resume(prepare);
        },
      ],
    ] as const) {
      await again(() => device.config.write(POISON_AT, 4, value));
      expect(port.poison).toBe(value);
    }
    await device.release();
  });
});

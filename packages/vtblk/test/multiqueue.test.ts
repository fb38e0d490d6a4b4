// vtblk with several request queues on the embedded machine: contents, and what the rule book sees.
import {
  type Attached,
  DeviceType,
  type Driver,
  featureSet,
  type VirtioDevice,
  type Virtqueue,
} from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import { blk, embedded } from "@virtio/hypervisor";
import { attach } from "@virtio/pci-transport";
import { diskContract } from "@virtio/storage/contract";
import { describe, expect, it } from "vitest";
import { bench, HeldBackend, nodeOf, until } from "./attached.js";

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() % 1_000_000_007);
console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

describe("a vtbd disk of four queues keeps the Disk contract", () => {
  const rings = [
    { name: "with a vector for each", vectors: 5 },
    { name: "with one vector for all", vectors: 2 },
    { name: "on INTx", vectors: 0 },
    { name: "with queues of 4, without indirect tables", queueSize: 4, indirect: false },
    { name: "on packed rings", packed: true },
    { name: "in order, each queue by itself", features: { IN_ORDER: true } },
    {
      name: "in order over a backend that takes its time",
      features: { IN_ORDER: true },
      backend: new HeldBackend(8 << 20),
    },
    { name: "in a drawn order of work", seed },
  ];
  for (const { name, ...options } of rings)
    describe(name, () => {
      const ready = bench({ queues: 4, ...options });
      for (const { name: what, run } of diskContract) it(what, async () => run((await ready).disk));
      it("and breaks no rule", async () => {
        const { rules, machine } = await ready;
        expect(rules.violations).toEqual([]);
        await machine.close();
      });
    });
});

describe("a vtbd disk of four queues", () => {
  it("counts interrupts of each queue by its name", async () => {
    const { disk, machine } = await bench({ queues: 4, vectors: 5 });
    for (let i = 0; i < 8; i++) await disk.read(i * 512, new Uint8Array(512));
    const counted = machine.interrupts().filter(({ count }) => count > 0);
    expect(counted.flatMap(({ names }) => names).sort()).toEqual(
      [0, 1, 2, 3].map((i) => `vtblk0 request ${i}`),
    );
    await machine.close();
  });

  it("has requests of all queues in flight at once, and gives all memory back when detached then", async () => {
    const backend = new HeldBackend();
    const { disk, machine, rules } = await bench({ queues: 4, queueSize: 4, backend });
    backend.held = true;
    const codes: string[] = [];
    const reads = Array.from({ length: 32 }, (_, i) =>
      disk.read(i * 512, new Uint8Array(512)).catch(({ code }: { code: string }) => {
        codes.push(code);
      }),
    );
    // Each queue of 4 holds 4 of them.
    await until(() => backend.waiting === 16);
    const detaching = disk.detach();
    backend.letGo();
    await detaching;
    await Promise.all(reads);
    expect(codes).toEqual(new Array(32).fill("CLOSED"));
    expect(machine.memory.available).toBe(machine.memory.buffer.byteLength);
    expect(rules.violations).toEqual([]);
    await machine.close();
  });
});

describe("a vtbd disk whose device is taken out of the machine", () => {
  for (const queues of [1, 4])
    it(`ends each of 32 requests in flight on ${queues} of its queues once, with ENXIO`, async () => {
      const backend = new HeldBackend();
      const { disk, machine } = await bench({ queues, backend });
      const [fn] = await machine.buses[0].bus.functions();
      if (fn === undefined) throw new Error("no function");
      backend.held = true;
      const errnos: string[] = [];
      const end = ({ errno }: { errno: string }): void => void errnos.push(errno);
      const ended = Promise.all([
        ...Array.from({ length: 31 }, (_, i) => disk.read(i * 512, new Uint8Array(512)).catch(end)),
        disk.flush().catch(end),
      ]);
      await until(() => backend.waiting === 32);
      const out = machine.unplug(fn.address);
      await ended;
      expect(errnos).toEqual(new Array(32).fill("ENXIO"));
      await disk.write(0, new Uint8Array(512)).catch(end);
      await disk.detach();
      // The backend still had them all: what it does now nobody sees.
      backend.letGo();
      await out;
      expect(errnos).toHaveLength(33);
      expect(await disk.closed).toMatchObject({ code: "CLOSED" });
      await machine.close();
    });
});

describe("the embedded block device", () => {
  it("resets one queue, and gives back what it has of the other", async () => {
    const backend = new HeldBackend();
    const machine = await embedded({ devices: [blk({ queues: 2, backend })] });
    let device: VirtioDevice | undefined;
    let queues: readonly Virtqueue[] = [];
    const spec = { maxSegments: 3, interrupt: true };
    const driver: Driver<Attached> = {
      name: "bare",
      description: "",
      types: [DeviceType.BLOCK],
      features: [],
      tunables: [],
      options: {},
      attach: async (given) => {
        device = given;
        await given.negotiate(featureSet<BlockFeature>().with(BlockFeature.MQ));
        await given.finalizeFeatures();
        queues = await given.allocateQueues([
          { name: "first", ...spec },
          { name: "second", ...spec },
        ]);
        await given.setupInterrupts();
        const end = (): Promise<void> => given.release();
        return { detach: end, suspend: end, resume: end, closed: Promise.resolve(null) };
      },
    };
    const attached = await attach(await nodeOf(machine), driver);
    const [first, second] = queues;
    if (device === undefined || first === undefined || second === undefined) throw new Error();
    const { address } = machine.memory.allocate(4096, 4096);
    // A read of sector 0: header, data, status.
    const segments = Uint32Array.of(address, 16, address + 512, 512, address + 1024, 1);
    const read = (queue: Virtqueue): void => {
      expect(queue.enqueue(queue.index, segments, 0, 1, 2)).toBe(0);
      queue.notify();
    };
    backend.held = true;
    read(first);
    read(second);
    await until(() => backend.waiting === 2);
    let reset = false;
    const resetting = device.resetQueue(first).then(() => {
      reset = true;
    });
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    // It waits for the backend, which may still write to the first queue's memory.
    expect(reset).toBe(false);
    backend.letGo();
    await resetting;
    await until(() => second.dequeue() === 1);
    read(first);
    await until(() => first.dequeue() === 0);
    await attached.detach();
    await machine.close();
  });
});

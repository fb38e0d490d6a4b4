// Every ring mode on QEMU's own block device: data checked, a queue reset in the middle, and in the end QEMU's indices are the
// driver's. The driver here is the smallest that does block I/O, so that the queue itself is in the test's hands.
import {
  type Attached,
  DeviceType,
  type Driver,
  featureSet,
  ReservedFeature,
  type VirtioDevice,
  type Virtqueue,
} from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { blk, qemu } from "@virtio/qemu";
import { PackedQueue, SplitQueue } from "@virtio/ring";
import { describe, expect, it } from "vitest";
import { hasQemu, pattern } from "./machines.js";

const SLOTS = 16;
const BLOCK = 4096;
const BLOCKS = 256;
const ROUNDS = 2000;
/** Bytes of a slot: header, status, data. */
const SLOT = 8192;
const DATA = 4096;

interface RawBlock extends Attached {
  readonly device: VirtioDevice;
  readonly queue: Virtqueue;
  /** Reads or writes a block of a slot's data; one request a slot at a time. */
  request(slot: number, write: boolean, block: number): Promise<void>;
  data(slot: number): Uint8Array;
}

const rawBlock: Driver<RawBlock> = {
  name: "raw",
  description: "Raw block requests",
  types: [DeviceType.BLOCK],
  features: [],
  tunables: [],
  options: {},
  attach: async (device) => {
    await device.negotiate(
      featureSet<ReservedFeature>().with(ReservedFeature.INDIRECT_DESC, ReservedFeature.EVENT_IDX),
    );
    await device.finalizeFeatures();
    const [queue] = await device.allocateQueues([
      { name: "raw0 request", maxSegments: 3, interrupt: true },
    ]);
    if (queue === undefined) throw new Error("no queue");
    await device.setupInterrupts();
    queue.enableInterrupt();
    const memory = device.memory.allocate(SLOTS * SLOT, 4096);
    const words = new Uint32Array(device.memory.buffer, memory.offset, memory.length >>> 2);
    const waiting = new Map<number, { resolve: () => void; reject: (error: Error) => void }>();
    queue.onBroken = (fault) => {
      for (const { reject } of waiting.values()) reject(fault);
    };
    queue.onUsed = () => {
      do
        for (let slot = queue.dequeue(); slot >= 0; slot = queue.dequeue()) {
          const caller = waiting.get(slot);
          waiting.delete(slot);
          if (memory.bytes[slot * SLOT + 16] === 0) caller?.resolve();
          else
            caller?.reject(new Error(`status ${memory.bytes[slot * SLOT + 16]} of slot ${slot}`));
        }
      while (queue.enableInterrupt());
    };
    return {
      device,
      queue,
      data: (slot) => memory.bytes.subarray(slot * SLOT + DATA, slot * SLOT + DATA + BLOCK),
      request: (slot, write, block) =>
        new Promise((resolve, reject) => {
          waiting.set(slot, { resolve, reject });
          const at = memory.address + slot * SLOT;
          words.set([write ? 1 : 0, 0, (block * BLOCK) / 512, 0], (slot * SLOT) >>> 2);
          memory.bytes[slot * SLOT + 16] = 0xff;
          const error = queue.enqueue(
            slot,
            new Uint32Array([at, 16, at + DATA, BLOCK, at + 16, 1]),
            0,
            write ? 2 : 1,
            write ? 1 : 2,
          );
          if (error !== 0) reject(new Error(`enqueue: ${error}`));
          queue.notify();
        }),
      detach: async () => {
        await device.release();
        memory.free();
      },
      suspend: async () => {},
      resume: async () => {},
      closed: Promise.resolve(null),
    };
  },
};

/** Random reads and writes, each slot on blocks of its own, every byte read checked against what was written last. */
async function traffic(raw: RawBlock, rounds: number, seed: number): Promise<void> {
  const share = BLOCKS / SLOTS;
  await Promise.all(
    Array.from({ length: SLOTS }, async (_, slot) => {
      const written = new Map<number, Uint8Array>();
      let state = seed + slot;
      for (let n = 0; n < rounds / SLOTS; n++) {
        state = (Math.imul(state, 1664525) + 1013904223) | 0;
        const block = slot * share + ((state >>> 8) % share);
        if ((state >>> 30) % 2 === 0) {
          const bytes = pattern(BLOCK, state);
          raw.data(slot).set(bytes);
          await raw.request(slot, true, block);
          written.set(block, bytes);
        } else {
          raw.data(slot).fill(0xee);
          await raw.request(slot, false, block);
          const expected = written.get(block);
          if (expected !== undefined) expect(Buffer.compare(raw.data(slot), expected)).toBe(0);
        }
      }
    }),
  );
}

/** QEMU's positions in the queue, and the driver's. */
function positions(
  queue: Virtqueue,
  seen: Record<string, number | boolean>,
): { qemu: unknown[]; driver: unknown[] } {
  if (queue instanceof SplitQueue) {
    const { published, consumed } = queue.save();
    return {
      qemu: [seen["last-avail-idx"], seen["used-idx"], seen["inuse"]],
      driver: [published, consumed, 0],
    };
  }
  if (!(queue instanceof PackedQueue)) throw new Error("a queue of neither format");
  const { next, usedAt, nextWrap, usedWrap } = queue.save();
  expect(nextWrap).toBe(usedWrap);
  return {
    qemu: [
      Number(seen["last-avail-idx"]) & 0x7fff,
      Number(seen["used-idx"]) & 0x7fff,
      seen["inuse"],
    ],
    driver: [next, usedAt, 0],
  };
}

describe("block I/O on QEMU in every ring mode (needs QEMU)", () => {
  const modes = [
    { name: "split", indirect: false, eventIdx: false },
    { name: "split, indirect, event index", indirect: true, eventIdx: true },
    { name: "packed", packed: true, indirect: false, eventIdx: false },
    { name: "packed, indirect, event index", packed: true, indirect: true, eventIdx: true },
  ];
  for (const { name, ...mode } of modes)
    for (const queueSize of [64, 256])
      it.skipIf(!hasQemu)(
        `${name}, queue of ${queueSize}: ${2 * ROUNDS} requests with a queue reset in the middle`,
        async () => {
          const machine = await qemu({
            devices: [blk({ size: BLOCKS * BLOCK, queueSize, ...mode })],
          });
          const [node] = await probe(machine.buses[0].bus);
          if (node === undefined) throw new Error("no device");
          const raw = await attach(node, rawBlock);
          await traffic(raw, ROUNDS, 1);
          await raw.device.resetQueue(raw.queue);
          raw.queue.enableInterrupt();
          await traffic(raw, ROUNDS, 2);
          const path = "/machine/peripheral/blk0/virtio-backend";
          const seen = await machine.qmp.execute("x-query-virtio-queue-status", { path, queue: 0 });
          const { qemu: theirs, driver: ours } = positions(
            raw.queue,
            seen as Record<string, number>,
          );
          expect(theirs).toEqual(ours);
          expect(raw.queue.counters.buffers).toBe(2 * ROUNDS);
          await machine.close();
        },
      );
});

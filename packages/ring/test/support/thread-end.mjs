// One end of a queue in a thread of its own. It shares nothing with the other end but the ring's memory and two words, the doorbell
// and the interrupt line; it sleeps on its own word whenever the queue says that it may, and a sleep of ten seconds is a lost wake-up.
import { performance } from "node:perf_hooks";
import { parentPort, workerData } from "node:worker_threads";
import { DmaWindow, GuestRegions } from "@virtio/core";
import { PackedDeviceQueue, PackedQueue, SplitDeviceQueue, SplitQueue } from "@virtio/ring";

const { role, mode, count, buffer, signals, areas } = workerData;
const { format, size, indirect, eventIdx, inOrder } = mode;
const BASE = 0x10_0000;
const DOORBELL = 0;
const INTERRUPT = 1;
const WORDS = 4;
const PATIENCE_MS = 10_000;
/** Word `i` of request `n`, and of its answer. */
const asked = (n, i) => Math.imul(n + i, 0x9e37_79b1) >>> 0;
const answered = (word) => (word ^ 0x5bd1_e995) >>> 0;

/** Tells the other end. */
function signal(word) {
  Atomics.add(signals, word, 1);
  Atomics.notify(signals, word);
}

/** Sleeps until the word is no longer `seen`. */
function sleep(word, seen, what) {
  if (Atomics.wait(signals, word, seen, PATIENCE_MS) === "timed-out")
    throw new Error(`lost wake-up: ${what}`);
}

const tasks = {
  now: () => performance.now(),
  enqueue: queueMicrotask,
  callout: () => ({ stop() {} }),
};

function drive() {
  const memory = new DmaWindow(buffer, { base: BASE });
  const window = Math.min(size, 256);
  const data = memory.allocate(window * 64, 64);
  const words = new Uint32Array(buffer, data.offset, window * 16);
  const options = {
    index: 0,
    name: "thread",
    device: "thread0",
    size,
    memory,
    tasks,
    indirect,
    eventIdx,
    inOrder,
    maxSegments: 2,
    doorbell: () => signal(DOORBELL),
  };
  const queue = format === "split" ? new SplitQueue(options) : new PackedQueue(options);
  parentPort.postMessage({ areas: queue.addresses });
  const segments = new Uint32Array(4);
  const free = Array.from({ length: window }, (_, slot) => slot);
  const requests = new Float64Array(window).fill(-1);
  let sent = 0;
  let back = 0;
  let slept = 0;
  let next = -1;
  while (back < count) {
    const seen = Atomics.load(signals, INTERRUPT);
    queue.disableInterrupt();
    while (sent < count && (next >= 0 || free.length > 0)) {
      const slot = next >= 0 ? next : free.pop();
      const at = slot * 16;
      for (let i = 0; i < WORDS; i++) {
        words[at + i] = asked(sent, i);
        words[at + 8 + i] = 0;
      }
      segments[0] = data.address + slot * 64;
      segments[1] = WORDS * 4;
      segments[2] = data.address + slot * 64 + 32;
      segments[3] = WORDS * 4;
      const room = queue.enqueue(slot, segments, 0, 1, 1) === 0;
      next = room ? -1 : slot;
      if (!room) break;
      requests[slot] = sent;
      sent += 1;
    }
    queue.notify();
    const before = back;
    do {
      for (let slot = queue.dequeue(); slot >= 0; slot = queue.dequeue()) {
        const n = requests[slot];
        if (n < 0) throw new Error(`slot ${slot} came back and was not out`);
        requests[slot] = -1;
        if (queue.usedLength !== WORDS * 4)
          throw new Error(`request ${n}: length ${queue.usedLength}`);
        for (let i = 0; i < WORDS; i++)
          if (words[slot * 16 + 8 + i] !== answered(asked(n, i)))
            throw new Error(`request ${n}: word ${i} is wrong`);
        free.push(slot);
        back += 1;
      }
      if (queue.broken !== null) throw queue.broken;
    } while (queue.enableInterrupt());
    if (back === before && back < count) {
      slept += 1;
      sleep(INTERRUPT, seen, `${back} of ${count} requests came back, ${queue.dump()}`);
    }
  }
  return { back, slept, counters: queue.counters };
}

function serve() {
  const wide = (low) => ({ low, high: 0 });
  const bytes = new Uint8Array(buffer);
  let fault = null;
  const options = {
    index: 0,
    size,
    memory: new GuestRegions([{ address: BASE, length: bytes.length, bytes }]),
    descriptors: wide(areas.descriptors),
    driver: wide(areas.driver),
    device: wide(areas.device),
    indirect,
    eventIdx,
    inOrder,
    onBroken: (broken) => {
      fault = broken;
    },
  };
  const queue = format === "split" ? new SplitDeviceQueue(options) : new PackedDeviceQueue(options);
  const request = new Uint8Array(WORDS * 4);
  const words = new Uint32Array(request.buffer);
  /** Half of the chains are given back in the opposite order, where the mode allows it. */
  const held = [];
  let served = 0;
  let slept = 0;
  const answer = (chain) => {
    if (chain.read(0, request) !== request.length) throw new Error("a request is too short");
    for (let i = 0; i < WORDS; i++) words[i] = answered(words[i]);
    queue.give(chain, chain.write(0, request));
    served += 1;
  };
  while (served < count) {
    const seen = Atomics.load(signals, DOORBELL);
    queue.disableNotify();
    const before = served;
    do {
      for (let chain = queue.take(); chain !== null; chain = queue.take()) {
        if (inOrder) answer(chain);
        else {
          held.push(chain);
          if (held.length === 8) while (held.length > 0) answer(held.pop());
        }
      }
      while (held.length > 0) answer(held.pop());
      if (queue.wantsInterrupt()) signal(INTERRUPT);
      if (fault !== null) throw fault;
    } while (served < count && queue.enableNotify());
    if (served === before) {
      slept += 1;
      sleep(DOORBELL, seen, `${served} of ${count} requests were served`);
    }
  }
  return { served, slept };
}

parentPort.postMessage({ done: role === "driver" ? drive() : serve() });

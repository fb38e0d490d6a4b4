// The device's thread: serves all queues while a round is on, sleeps between rounds.
import { workerData } from "node:worker_threads";
import { type DevicePart, makeDevices } from "./pair.js";
import { serve } from "./passes.js";

const part = workerData as DevicePart;
const { running } = part;
const queues = makeDevices(part);
for (;;) {
  Atomics.wait(running, 0, 0);
  while (Atomics.load(running, 0) === 1) for (const queue of queues) serve(queue);
}

// One load as a process of its own, like the twin in C:
//
//     node load.js SHAPE
//
// For each line of standard input, a number of buffers, it passes that many through the rings and prints the nanoseconds it took
// and the garbage collections it saw.
import { PerformanceObserver, performance } from "node:perf_hooks";
import { createInterface } from "node:readline";
import { setImmediate as turn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { type DriverEnd, makeDevices, makeDrivers } from "./pair.js";
import { collect, collectAll, serve, submit, submitSingles, submitSlots } from "./passes.js";
import type { Shape } from "./shape.js";

const shape = JSON.parse(process.argv[2] ?? "") as Shape;
const { batch, threads, segments: perChain } = shape;
const { queues, segments, device } = makeDrivers(shape);

/** The driver's half of one batch on queue `i`. */
function submitter(): (i: number) => void {
  const queue = (i: number): DriverEnd => queues[i] as DriverEnd;
  if (!shape.template && perChain === 1) return (i) => submitSingles(queue(i), segments, batch);
  if (!shape.template) return (i) => submit(queue(i), segments, batch, perChain);
  const templates = queues.map((each) => {
    const template = each.template(batch, perChain - 1, 1);
    for (let n = 0; n < batch * perChain; n++)
      template.set(
        Math.floor(n / perChain),
        n % perChain,
        segments[2 * n] as number,
        segments[2 * n + 1] as number,
      );
    return template;
  });
  return (i) => submitSlots(queue(i), templates[i] as (typeof templates)[0], batch);
}

/** A round in one thread. */
function alone(): (buffers: number) => void {
  const submitTo = submitter();
  const devices = makeDevices(device);
  return (buffers) => {
    for (let left = buffers; left > 0; )
      for (let i = 0; i < queues.length; i++) {
        submitTo(i);
        serve(devices[i] as (typeof devices)[0]);
        if (collect(queues[i] as DriverEnd, 0) !== batch) throw new Error("buffers are missing");
        left -= batch;
      }
  };
}

/** A round with the device end on a thread of its own. */
function together(): (buffers: number) => void {
  const submitTo = submitter();
  const worker = new Worker(new URL("./device-thread.js", import.meta.url), { workerData: device });
  worker.on("error", (error) => {
    throw error;
  });
  const run = (running: 0 | 1): void => {
    Atomics.store(device.running, 0, running);
    Atomics.notify(device.running, 0);
  };
  return (buffers) => {
    run(1);
    for (let left = buffers; left > 0; )
      for (let i = 0; i < queues.length; i++) {
        submitTo(i);
        collectAll(queues[i] as DriverEnd, batch);
        left -= batch;
      }
    run(0);
  };
}

const round = threads === 1 ? alone() : together();
const collections: number[] = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) collections.push(entry.startTime);
}).observe({ entryTypes: ["gc"] });

for await (const line of createInterface({ input: process.stdin })) {
  const began = performance.now();
  round(Number(line));
  const ended = performance.now();
  // What the observer has seen comes in a later turn.
  await turn();
  await turn();
  const seen = collections.filter((at) => at >= began && at <= ended).length;
  console.log(`${Math.round((ended - began) * 1e6)} ${seen}`);
}
process.exit();

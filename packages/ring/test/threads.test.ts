// Two worker threads on one SharedArrayBuffer, the driver's end and the device's, every payload checked. They run what was built:
// `npm test` builds first.
import { Worker } from "node:worker_threads";
import { product } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { type Format, type Mode, nameOf } from "./support/rig.js";

const full = process.env["VIRTIO_TEST_FULL"] === "1";
const count = full ? 10_000_000 : 1_000_000;

const modes: readonly Mode[] = product({
  format: ["split", "packed"] as readonly Format[],
  size: [256],
  indirect: [false, true],
  eventIdx: [false, true],
  inOrder: [false, true],
});

interface Report {
  readonly areas?: unknown;
  readonly done?: Readonly<Record<string, unknown>>;
}

/** A thread for one end; `hear` gets what it posts. Settles when the thread is gone. */
function thread(
  workerData: object,
  hear: (report: Report) => void,
): { worker: Worker; gone: Promise<void> } {
  const worker = new Worker(new URL("support/thread-end.mjs", import.meta.url), {
    workerData,
    execArgv: [],
  });
  worker.on("message", hear);
  const gone = new Promise<void>((resolve, reject) => {
    worker.on("error", reject);
    worker.on("exit", () => resolve());
  });
  return { worker, gone };
}

describe("two threads on shared memory", () => {
  for (const mode of modes)
    it(`exchange ${count.toExponential()} chains and check every byte (${nameOf(mode)})`, async () => {
      const shared = {
        mode,
        count,
        buffer: new SharedArrayBuffer(0x8_0000),
        signals: new Int32Array(new SharedArrayBuffer(8)),
      };
      const reports: Report[] = [];
      const workers: Worker[] = [];
      try {
        let tell = (_areas: unknown): void => {};
        const told = new Promise<unknown>((resolve) => {
          tell = resolve;
        });
        const driver = thread({ ...shared, role: "driver" }, (report) => {
          if (report.areas !== undefined) tell(report.areas);
          else reports.push(report);
        });
        workers.push(driver.worker);
        const given = await Promise.race([told, driver.gone]);
        const device = thread({ ...shared, role: "device", areas: given }, (report) =>
          reports.push(report),
        );
        workers.push(device.worker);
        await Promise.all([driver.gone, device.gone]);
      } finally {
        await Promise.all(workers.map((worker) => worker.terminate()));
      }
      expect(reports.map(({ done }) => done?.["back"] ?? done?.["served"])).toEqual([count, count]);
    }, 600_000);
});

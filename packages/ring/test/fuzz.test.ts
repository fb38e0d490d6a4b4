// 10^6 steps here; `npm run fuzz -- --steps 1e8` runs this file with VIRTIO_FUZZ_STEPS.
import { expect, it } from "vitest";
import { fuzz } from "./support/fuzz.js";
import { random, runSeed } from "./support/random.js";

const steps = Number(process.env["VIRTIO_FUZZ_STEPS"] ?? 1e6);
const seed = runSeed();

it(`keeps every promise through ${steps.toExponential()} random steps of both ends and of a liar`, () => {
  const began = performance.now();
  let said = began;
  const figures = fuzz(steps, random(seed), ({ steps: done }) => {
    if (performance.now() - said < 10_000) return;
    said = performance.now();
    console.log(`${done.toExponential(2)} steps`);
  });
  const seconds = (performance.now() - began) / 1000;
  const { lies, chains, driverBroken, deviceBroken, found } = figures;
  console.log(
    `${steps.toExponential()} steps in ${seconds.toFixed(1)} s: ${lies} lies, ${chains} chains came back, ` +
      `found by the driver's end ${driverBroken} times, by the device's ${deviceBroken} times`,
  );
  if (process.env["VIRTIO_FUZZ_STEPS"] !== undefined)
    for (const [kind, times] of [...found].sort(([, a], [, b]) => b - a))
      console.log(`${times}\t${kind}`);
  expect(chains).toBeGreaterThan(steps / 100);
  expect(Math.min(driverBroken, deviceBroken)).toBeGreaterThan(steps / 100_000);
}, 3_600_000);

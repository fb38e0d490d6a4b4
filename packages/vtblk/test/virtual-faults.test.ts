// A back end that goes wrong, on a machine in virtual time.
import { FaultBackend, MemoryBackend } from "@virtio/hypervisor";
import { expect, it } from "vitest";
import { bench } from "./attached.js";

it("ends a request whose delay is a callout of the machine", { timeout: 2000 }, async () => {
  const backend = new FaultBackend(new MemoryBackend(1 << 20));
  const { disk, machine } = await bench({ backend, seed: 1 });
  backend.fate = () => new Promise((resolve) => machine.tasks.callout(10, resolve));
  await disk.read(0, new Uint8Array(512));
  expect(disk.statistics.reads).toBe(1);
  await machine.close();
});

it("times a request out that is never answered", { timeout: 2000 }, async () => {
  const backend = new FaultBackend(new MemoryBackend(1 << 20));
  const { disk, machine } = await bench({ backend, seed: 1 });
  backend.fate = () => "never";
  await expect(disk.read(0, new Uint8Array(512))).rejects.toMatchObject({ code: "TIMED_OUT" });
  await machine.close();
});

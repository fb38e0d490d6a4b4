// Abort of a request that the device still holds (architecture, section 2): bounced ones reject at once and their pages stay taken.
import type { Disk } from "@virtio/core";
import {
  blk,
  type EmbeddedMachine,
  embedded,
  type Fate,
  FaultBackend,
  MemoryBackend,
  RuleBook,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { vtblk } from "@virtio/vtblk";
import { describe, expect, it, onTestFinished } from "vitest";
import { pattern } from "./machines.js";

const MIB = 1 << 20;
/** What vtblk bounces through. */
const PAGES = 4 * MIB;

/** A disk whose back end answers reads when it is told to. */
async function heldDisk(timeout: number): Promise<{
  disk: Disk;
  machine: EmbeddedMachine;
  backend: FaultBackend;
  rules: RuleBook;
  asked: string[];
}> {
  const rules = new RuleBook();
  const asked: string[] = [];
  const backend = new FaultBackend(new MemoryBackend(pattern(8 * MIB, 1)));
  const machine = await embedded({ devices: [blk({ backend })], rules });
  onTestFinished(() => machine.close());
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no device");
  return { disk: await attach(node, vtblk({ timeout })), machine, backend, rules, asked };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function turns(until: () => boolean): Promise<void> {
  for (let n = 0; !until(); n++) {
    if (n === 5000) throw new Error("it never came");
    await turn();
  }
}

describe("an aborted request that the device holds", () => {
  it("rejects at once, and its bounce pages stay taken until the device gives them back", async () => {
    const { disk, backend, rules, asked } = await heldDisk(30);
    const release: (() => void)[] = [];
    backend.fate = ({ operation, position }): Fate => {
      asked.push(`${operation} ${position}`);
      return new Promise((resolve) => {
        release.push(resolve);
      });
    };
    const controller = new AbortController();
    const into = new Uint8Array(PAGES);
    const first = disk.read(0, into, { signal: controller.signal });
    await turns(() => asked.length === 4);
    controller.abort(new Error("enough"));
    await expect(first).rejects.toThrow("enough");
    const next = new Uint8Array(512);
    const second = disk.read(PAGES, next);
    for (let n = 0; n < 50; n++) await turn();
    expect(asked).toHaveLength(4);
    backend.fate = () => undefined;
    for (const go of release) go();
    await second;
    expect(Buffer.compare(next, pattern(8 * MIB, 1).subarray(PAGES, PAGES + 512))).toBe(0);
    expect(into.every((byte) => byte === 0)).toBe(true);
    expect(rules.violations).toEqual([]);
  });

  for (const how of ["gave it back", "was reset"] as const)
    it(`rejects when the device ${how}, if it is in the caller's own memory`, async () => {
      const { disk, machine, backend, rules, asked } = await heldDisk(how === "was reset" ? 1 : 30);
      const release: (() => void)[] = [];
      backend.fate = (): Fate => {
        asked.push("read");
        if (how === "was reset") return "never";
        return new Promise((resolve) => {
          release.push(resolve);
        });
      };
      const own = machine.memory.allocate(4096, 4096);
      const controller = new AbortController();
      const ended: string[] = [];
      const reading = disk
        .read(0, own.bytes, { signal: controller.signal })
        .catch((error: Error) => ended.push(error.message));
      const bounced = disk
        .read(0, new Uint8Array(4096), { signal: controller.signal })
        .catch((error: Error) => ended.push(`bounced: ${error.message}`));
      await turns(() => asked.length === 2);
      controller.abort(new Error("enough"));
      await bounced;
      for (let n = 0; n < 20; n++) await turn();
      expect(ended).toEqual(["bounced: enough"]);
      backend.fate = () => undefined;
      for (const go of release) go();
      await reading;
      expect(ended).toEqual(["bounced: enough", "enough"]);
      own.free();
      await disk.write(0, new Uint8Array(512));
      expect(rules.violations).toEqual([]);
    });
});

// What the end-to-end tests share: whether QEMU is here, a folder of their own, and disks attached on a machine.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Disk, PciBus } from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { vtblk } from "@virtio/vtblk";
import { afterAll } from "vitest";

/** Whether QEMU and its tools can be run. */
export const hasQemu: boolean = ["qemu-system-x86_64", "qemu-img"].every(
  (name) => spawnSync(name, ["--version"]).status === 0,
);

/** A folder for this file's tests, removed after them. */
export function folder(): (name: string) => string {
  const path = mkdtempSync(join(tmpdir(), "virtio-e2e-"));
  afterAll(() => rmSync(path, { recursive: true, force: true }));
  return (name) => join(path, name);
}

/** vtblk on every device of a bus. */
export async function disksOf(bus: PciBus): Promise<Disk[]> {
  return Promise.all(
    (await probe(bus)).map((node, unit) => attach(node, vtblk(), { unit, name: `vtblk${unit}` })),
  );
}

/** Bytes that differ from place to place and from seed to seed. */
export function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

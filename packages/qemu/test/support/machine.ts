import { execFileSync } from "node:child_process";
import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { type QemuMachine, type QemuOptions, qemu } from "@virtio/qemu";
import { onTestFinished } from "vitest";

const executable = (path: string): boolean => {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
};

/** The file that `name` runs, from the PATH. */
export const findProgram = (name: string): string | undefined =>
  (process.env["PATH"] ?? "")
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find(executable);

/** Whether the suites that start machines can run here. */
export const hasQemu: boolean =
  process.platform === "linux" &&
  findProgram("qemu-system-x86_64") !== undefined &&
  findProgram("qemu-img") !== undefined;

/** Runs qemu-img. @returns what it prints */
export const qemuImg = (...args: readonly string[]): string =>
  execFileSync(findProgram("qemu-img") ?? "", args, { encoding: "utf8" });

/** A machine that ends with the test. */
export async function launch(options: QemuOptions = {}): Promise<QemuMachine> {
  const machine = await qemu(options);
  onTestFinished(() => machine.close());
  return machine;
}

/** A folder that ends with the test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "virtio-qemu-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Whether a process exists (a zombie does not count). */
export async function isRunning(pid: number): Promise<boolean> {
  const { readFile } = await import("node:fs/promises");
  try {
    return !/^State:\s+[ZX]/m.test(await readFile(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

/** Looks every few milliseconds until `holds`; fails after `limitMs`. */
export async function until(
  what: string,
  holds: () => boolean | Promise<boolean>,
  limitMs = 5_000,
): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

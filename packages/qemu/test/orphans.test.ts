import { spawn } from "node:child_process";
import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { findProgram, hasQemu, isRunning, temporaryFolder, until } from "./support/machine.js";

const parent = fileURLToPath(new URL("support/parent.mjs", import.meta.url));
const entry = fileURLToPath(new URL("../src/index.ts", import.meta.url));

/** Starts a process that starts a machine. @returns both process ids */
async function startParent(path: string): Promise<{ readonly pid: number; readonly qemu: number }> {
  const child = spawn(process.execPath, [parent, entry], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, PATH: path },
  });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  const qemu = await new Promise<number>((resolve, reject) => {
    child.stdout.once("data", (chunk: Buffer) => resolve(Number(chunk.toString())));
    child.once("exit", (code) => reject(new Error(`the parent ended: ${code}`)));
  });
  onTestFinished(async () => {
    if (await isRunning(qemu)) process.kill(qemu, "SIGKILL");
  });
  return { pid: child.pid ?? 0, qemu };
}

describe.skipIf(!hasQemu)("a process that is killed (needs QEMU)", () => {
  it("leaves no QEMU behind", { timeout: 30_000 }, async () => {
    const { pid, qemu } = await startParent(process.env["PATH"] ?? "");
    expect(await isRunning(qemu)).toBe(true);
    process.kill(pid, "SIGKILL");
    await until("QEMU is gone", async () => !(await isRunning(qemu)));
  });

  it("leaves no QEMU behind where there is no setpriv", { timeout: 30_000 }, async () => {
    const bin = join(temporaryFolder(), "bin");
    mkdirSync(bin);
    symlinkSync(findProgram("qemu-system-x86_64") ?? "", join(bin, "qemu-system-x86_64"));
    const { pid, qemu } = await startParent(bin);
    expect(await isRunning(qemu)).toBe(true);
    process.kill(pid, "SIGKILL");
    await until("QEMU is gone", async () => !(await isRunning(qemu)));
  });
});

// The built `virtio` command as a process of its own.
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const CLI = fileURLToPath(new URL("../../virtio/dist/cli.js", import.meta.url));
const BOUND_MS = 60_000;

/** How a command ended. */
export interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command that runs. */
export interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  /** Resolves when standard output holds `text`. */
  printed(text: string): Promise<void>;
}

/** Starts `virtio boot ARGS` in a folder. */
export function start(
  cwd: string,
  args: readonly string[],
  stdin: "ignore" | "pipe" = "ignore",
): Running {
  const env = { ...process.env };
  // What the test runner's own start left behind is not this user's.
  delete env["INIT_CWD"];
  const child = spawn(process.execPath, [CLI, "boot", ...args], {
    cwd,
    env,
    stdio: [stdin, "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  const waiting = new Set<() => void>();
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
    for (const look of waiting) look();
  });
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const bound = setTimeout(() => child.kill("SIGKILL"), BOUND_MS);
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status, signal) => {
      clearTimeout(bound);
      resolve({ status, signal, stdout, stderr });
    });
  });
  const printed = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (!stdout.includes(text)) return;
        waiting.delete(look);
        resolve();
      };
      waiting.add(look);
      look();
      void ended.then(({ stdout: all, stderr: errors }) =>
        reject(new Error(`ended before it printed '${text}'\n${all}${errors}`)),
      );
    });
  return { child, ended, printed };
}

/** Runs `virtio boot ARGS` to its end. */
export function boot(cwd: string, ...args: readonly string[]): Promise<Ended> {
  return start(cwd, args).ended;
}

/** Processes that hold a file of this name open as an argument: QEMUs of a test. */
export function processesNaming(name: string): number[] {
  return readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid) && Number(pid) !== process.pid)
    .filter((pid) => {
      try {
        const line = readFileSync(`/proc/${pid}/cmdline`, "utf8");
        return line.startsWith("qemu") || line.includes("/qemu-system")
          ? line.includes(name)
          : false;
      } catch {
        return false; // it ended while we looked
      }
    })
    .map(Number);
}

/** Looks again and again until it is so. */
export async function until(what: string, done: () => boolean): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!done()) {
    if (Date.now() > deadline) throw new Error(`not within 10 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

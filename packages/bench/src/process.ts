// A load as a process: numbers of buffers in, nanoseconds out.
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

/** Milliseconds that a round should take. */
const ROUND_MS = 150;
/** Milliseconds after which a round is given up. */
const BOUND_MS = 60_000;

/** One round. */
interface Round {
  /** Nanoseconds a buffer. */
  readonly ns: number;
  /** Garbage collections seen; of a twin in C: 0. */
  readonly collections: number;
}

/** A load that runs in a process of its own. */
export interface Load {
  /** Passes so many buffers through the rings; without a number, as many as fill a round. */
  round(buffers?: number): Promise<Round>;
  end(): void;
}

/** The CPUs this process may run on. */
function cpus(): number[] {
  const list = /^Cpus_allowed_list:\s*(.+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return (list ?? "").split(",").flatMap((range) => {
    const [first = 0, last = first] = range.split("-").map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** What stands before a command to keep it on the last `threads` CPUs; nothing where there is no taskset(1). */
function pinned(threads: number): string[] {
  if (spawnSync("taskset", ["-V"]).status !== 0) return [];
  return ["taskset", "-c", cpus().slice(-threads).join(",")];
}

/** Says on which CPUs loads of so many threads run. */
export function pinning(threads: number): string {
  const [, , list] = pinned(threads);
  return list === undefined ? "not pinned (no taskset)" : `pinned to CPU ${list}`;
}

/** Starts a load, and warms it up until a round of it has its length. */
export async function startLoad(
  command: readonly string[],
  threads: number,
  batch: number,
): Promise<Load> {
  const [program = "", ...args] = [...pinned(threads), ...command];
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout });
  const run = (buffers: number): Promise<Round> =>
    new Promise((resolve, reject) => {
      const fail = (why: string): void => {
        child.kill("SIGKILL");
        reject(new Error(`${command.join(" ")}: ${why}`));
      };
      const bound = setTimeout(() => fail(`no answer in ${BOUND_MS} ms`), BOUND_MS);
      const settle = (): void => {
        clearTimeout(bound);
        child.off("error", failed).off("exit", exited);
        lines.off("line", answered);
      };
      const failed = (error: Error): void => {
        settle();
        reject(error);
      };
      const exited = (status: number | null): void => {
        settle();
        fail(`ended with status ${status}`);
      };
      const answered = (line: string): void => {
        settle();
        const [ns = Number.NaN, collections = 0] = line.split(" ").map(Number);
        resolve({ ns: ns / buffers, collections });
      };
      child.once("error", failed).once("exit", exited);
      lines.once("line", answered);
      child.stdin.write(`${buffers}\n`);
    });
  // The whole of a turn of six queues, so that each count is a multiple of it.
  const unit = 6 * batch;
  const filling = (ns: number): number => Math.ceil((ROUND_MS * 1e6) / ns / unit) * unit;
  let buffers = 2000 * unit;
  for (let i = 0; i < 4; i++) buffers = filling((await run(buffers)).ns);
  return { round: (count = buffers) => run(count), end: () => void child.stdin.end() };
}

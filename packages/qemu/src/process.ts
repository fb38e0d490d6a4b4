// The QEMU process: started so that it dies with this one, and ended so that nothing is left.
import { type ChildProcess, execFile, spawn } from "node:child_process";
import type { Duplex } from "node:stream";
import { VirtioFault } from "@virtio/core";
import { findExecutable } from "./executable.js";

/** How a process ended. */
export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The last lines it wrote to standard error. */
  readonly stderr: readonly string[];
}

/** What to start. */
export interface ProcessOptions {
  readonly executable: string;
  readonly args: readonly string[];
  /** What the new process gets as descriptors 5, 6, 7 and so on: descriptors of this process, and new sockets to it. */
  readonly descriptors: readonly (number | "socket")[];
  readonly cwd: string;
  /** Called for each line on standard error. */
  readonly onStderr: (line: string) => void;
}

/** First number of `ProcessOptions.descriptors` in the new process; 3 and 4 are its sockets. */
export const FIRST_DESCRIPTOR = 5;

/** Lines of standard error that are kept. */
const KEPT_LINES = 20;
/** Milliseconds that standard error may take to end after the process did. */
const STDERR_GRACE_MS = 200;
/** Milliseconds after which a process that SIGKILL did not end is given up. */
const KILL_GRACE_MS = 5_000;

/** By path of setpriv: whether it is util-linux's, which knows --pdeathsig. */
const knowsDeathSignal = new Map<string, Promise<boolean>>();

/** The command in front that makes the kernel kill a process when the thread that started it ends (prctl(2) PR_SET_PDEATHSIG). */
async function deathSignalCommand(): Promise<readonly string[]> {
  const setpriv = await findExecutable("setpriv");
  if (setpriv === undefined) return [];
  const known =
    knowsDeathSignal.get(setpriv) ??
    new Promise<boolean>((resolve) => {
      execFile(
        setpriv,
        ["--pdeathsig", "KILL", setpriv, "--version"],
        { timeout: 5_000 },
        (error) => resolve(error === null),
      );
    });
  knowsDeathSignal.set(setpriv, known);
  return (await known) ? [setpriv, "--pdeathsig", "KILL"] : [];
}

/**
 * Kills `pid` when this process ends without having said so, for systems without util-linux's setpriv: a shell that waits for the
 * end of a pipe whose other end only this process holds. @returns calls it off
 */
function guard(pid: number): () => void {
  const shell = spawn("/bin/sh", ["-c", 'read -r end; kill -KILL "$1"', "sh", String(pid)], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  });
  // Without a shell there is no guard; everything else works.
  shell.on("error", (error) =>
    process.emitWarning(`QEMU may outlive this process: ${error.message}`),
  );
  shell.stdin.on("error", () => shell.kill("SIGKILL"));
  shell.unref();
  return () => shell.kill("SIGKILL");
}

/** A running QEMU with two sockets: descriptor 3 and 4 on its side. */
export class QemuProcess {
  readonly pid: number;
  /** Sockets to its descriptors 3 and 4. */
  readonly sockets: readonly [Duplex, Duplex];
  /** Sockets among `ProcessOptions.descriptors`, in their order. */
  readonly inherited: readonly Duplex[];
  /** Resolves when the process is gone. Never rejects. */
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  readonly #stderr: string[] = [];
  #giveUp: () => void = () => {};

  private constructor(child: ChildProcess, pid: number, options: ProcessOptions) {
    this.#child = child;
    this.pid = pid;
    // Node's pipes are socket pairs: Duplex streams.
    const socket = (fd: number): Duplex => child.stdio[fd as 3] as Duplex;
    this.sockets = [socket(3), socket(4)];
    this.inherited = options.descriptors.flatMap((what, i) =>
      what === "socket" ? [socket(FIRST_DESCRIPTOR + i)] : [],
    );
    const stderrEnded = this.#collect(options.onStderr);
    this.ended = new Promise((resolve) => {
      const end = (code: number | null, signal: NodeJS.Signals | null): void =>
        resolve({ code, signal, stderr: this.#stderr });
      this.#giveUp = () => end(null, "SIGKILL");
      child.once("exit", (code, signal) => {
        const late = setTimeout(() => end(code, signal), STDERR_GRACE_MS);
        void stderrEnded.then(() => {
          clearTimeout(late);
          end(code, signal);
        });
      });
    });
  }

  /**
   * Starts it in a session of its own, so that Ctrl-C at the terminal reaches this process only and the machine ends in order; and
   * so that it is killed when this process ends in whatever way. The death signal hangs on the thread that calls: a machine that a
   * worker thread made ends with that thread.
   * @throws VirtioFault IO when the system starts no process
   */
  static async start(options: ProcessOptions): Promise<QemuProcess> {
    const prefix = await deathSignalCommand();
    const [program = options.executable, ...args] = [
      ...prefix,
      options.executable,
      ...options.args,
    ];
    const child = spawn(program, args, {
      cwd: options.cwd,
      detached: true,
      stdio: [
        ...(["ignore", "ignore", "pipe", "pipe", "pipe"] as const),
        ...options.descriptors.map((what) => (what === "socket" ? "pipe" : what)),
      ],
    });
    const { pid } = child;
    if (pid === undefined) {
      const cause = await new Promise<Error>((resolve) => child.once("error", resolve));
      throw new VirtioFault("IO", `cannot start ${options.executable}: ${cause.message}`, {
        cause,
      });
    }
    const qemu = new QemuProcess(child, pid, options);
    if (prefix.length === 0) {
      const callOff = guard(pid);
      child.once("exit", callOff);
    }
    return qemu;
  }

  /** SIGKILL; `ended` resolves within seconds, whatever happens. After the end: nothing. */
  kill(): void {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill("SIGKILL");
    setTimeout(this.#giveUp, KILL_GRACE_MS).unref();
  }

  #collect(onStderr: (line: string) => void): Promise<void> {
    const { stderr } = this.#child;
    if (stderr === null) return Promise.resolve();
    let rest = "";
    const keep = (line: string): void => {
      if (line.trim() === "") return;
      this.#stderr.push(line);
      if (this.#stderr.length > KEPT_LINES) this.#stderr.shift();
      onStderr(line);
    };
    stderr.setEncoding("utf8");
    stderr.on("data", (chunk: string) => {
      const lines = (rest + chunk).split("\n");
      // A line without an end is cut, not collected for ever.
      rest = (lines.pop() ?? "").slice(-4096);
      for (const line of lines) keep(line);
    });
    return new Promise((resolve) => {
      stderr.once("close", () => {
        keep(rest);
        resolve();
      });
    });
  }
}

// The command `virtio`, apart from the process it runs in.
import type { Writable } from "node:stream";
import { VirtioFault } from "@virtio/core";
import type { Kernel } from "../kernel.js";
import { type BootOptions, boot } from "../node/boot.js";
import { FileHost } from "../node/file-host.js";
import { release } from "../node/release.js";
import { Shell } from "../shell/shell.js";
import { help, type Invocation, parseArguments, UsageFault } from "./arguments.js";
import { Prompt, runLines } from "./input.js";
import { Interrupts, type SignalSource } from "./interrupts.js";
import { type InputStream, ProcessInput } from "./standard-input.js";

/** Longest wait for an orderly end, in milliseconds: longer than all that a kernel waits for by itself. */
const SHUTDOWN_LIMIT = 120_000;

/** What the command works with. */
export interface Io {
  readonly stdin: InputStream;
  readonly stdout: Writable & { readonly isTTY?: boolean };
  readonly stderr: Writable & { readonly isTTY?: boolean };
  /** Folder in which the user typed. */
  readonly cwd: string;
  readonly signals: SignalSource;
  /** Ends the process at once: a second Ctrl-C. */
  readonly exit: (status: number) => void;
  /** Starts the machine. Default: the real ones. */
  readonly open?: BootOptions["open"];
}

/**
 * Runs `virtio` with arguments.
 * @returns exit status: 0; 2 wrong usage; 1 anything else that failed; with commands, the status of the first that failed; 128 + n
 * when signal n ended it
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  const complain = (cause: unknown): void => {
    io.stderr.write(`virtio: ${cause instanceof Error ? cause.message : String(cause)}\n`);
  };
  let invocation: Invocation;
  try {
    invocation = parseArguments(argv);
  } catch (cause) {
    if (!(cause instanceof UsageFault)) throw cause;
    complain(cause);
    return 2;
  }
  if (invocation.kind !== "boot") {
    io.stdout.write(invocation.kind === "help" ? help : `virtio ${release}\n`);
    return 0;
  }

  const interrupts = new Interrupts(io.signals, io.exit);
  const brokenPipe = (): void => interrupts.brokenPipe();
  io.stdout.on("error", brokenPipe);
  try {
    const status = await run(invocation, io, interrupts);
    return interrupts.status ?? status;
  } catch (cause) {
    if (interrupts.status !== null && !(cause instanceof VirtioFault)) return interrupts.status;
    if (!(cause instanceof VirtioFault)) throw cause;
    complain(cause);
    return 1;
  } finally {
    io.stdout.off("error", brokenPipe);
    interrupts.stop();
  }
}

async function run(
  { commands, quiet, ...what }: Extract<Invocation, { readonly kind: "boot" }>,
  io: Io,
  interrupts: Interrupts,
): Promise<number> {
  const { stdin, stdout, stderr, cwd } = io;
  const out = (text: string): void => void stdout.write(text);
  let print = out;
  const kernel = await boot({
    ...what,
    cwd,
    console: (line) => {
      if (!quiet) print(`${line}\n`);
    },
    signal: interrupts.signal,
    open: io.open,
  });
  // Lines that come by a file or a pipe are commands: no command has an input then.
  const interactive = stdin.isTTY === true && stdout.isTTY === true;
  const shell = new Shell({
    kernel,
    input: commands !== undefined || interactive ? new ProcessInput(stdin) : null,
    host: new FileHost(cwd),
    out,
    err: (text) => void stderr.write(text),
    terminal: stderr.isTTY === true,
  });

  try {
    if (commands !== undefined) return await runAll(shell, interrupts, commands);
    if (!interactive) return await runLines(shell, interrupts, stdin);
    const prompt = new Prompt(shell, interrupts, stdin, stdout);
    print = (text) => prompt.print(text);
    const status = await prompt.run();
    print = out;
    return status;
  } finally {
    await shell.close();
    // A halt that failed has said so.
    if (!shell.halted) await end(kernel);
  }
}

/** `-c`: up to the first that fails. */
async function runAll(
  shell: Shell,
  interrupts: Interrupts,
  commands: readonly string[],
): Promise<number> {
  for (const line of commands) {
    const status = await interrupts.during((signal) => shell.run(line, signal));
    if (status !== 0 || shell.halted) return status;
  }
  return 0;
}

/** An orderly end that does not wait for ever. */
async function end(kernel: Kernel): Promise<void> {
  const waited = new AbortController();
  const limit = setTimeout(() => waited.abort(), SHUTDOWN_LIMIT);
  try {
    await Promise.race([
      kernel.shutdown(),
      new Promise<never>((_, reject) => {
        waited.signal.addEventListener("abort", () =>
          reject(
            new VirtioFault("TIMED_OUT", `the machine did not end in ${SHUTDOWN_LIMIT / 1000} s`),
          ),
        );
      }),
    ]);
  } finally {
    clearTimeout(limit);
  }
}

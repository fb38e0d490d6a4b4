// The shell: command lines in, text and an exit status out.
import { VirtioFault } from "@virtio/core";
import type { Kernel } from "../kernel.js";
import { IpHost } from "../net/ip-host.js";
import { type Command, type Session, UsageError } from "./command.js";
import { commands } from "./commands/index.js";
import type { Host } from "./host.js";
import type { StandardInput } from "./input.js";
import { Jobs } from "./jobs.js";
import { parseCommands } from "./words.js";

/** Exit status of a command that is not there, as sh(1) has it. */
const NO_COMMAND = 127;
/** Exit status of a command that Ctrl-C ended: 128 and the signal's number. */
const INTERRUPTED = 130;

/** Where a shell works. */
export interface ShellOptions {
  readonly kernel: Kernel;
  readonly host: Host;
  /** Standard output. */
  readonly out: (text: string) => void;
  /** Standard error. */
  readonly err: (text: string) => void;
  /** Standard input of commands. Default: none. */
  readonly input?: StandardInput | null;
  /** Whether standard error is a terminal. Default false. */
  readonly terminal?: boolean;
}

/** Part of a line, and what it may become. */
export interface Completion {
  /** The word that is being typed. */
  readonly word: string;
  /** Whole words to put in its place. */
  readonly candidates: readonly string[];
}

/** Runs command lines on one kernel. */
export class Shell {
  readonly #session: Omit<Session, "signal">;

  constructor({ kernel, host, out, err, input = null, terminal = false }: ShellOptions) {
    this.#session = {
      ...{ kernel, host, out, err, input, terminal },
      net: new IpHost(kernel),
      jobs: new Jobs(),
    };
  }

  /** Ends what runs behind the commands: captures. */
  async close(): Promise<void> {
    await this.#session.jobs.stop();
  }

  /** Whether `halt`, or anyone else, ended the kernel: no command can follow. */
  get halted(): boolean {
    const { state } = this.#session.kernel;
    return state === "halting" || state === "halted";
  }

  /**
   * Runs the commands of one line, up to the first that fails, or halts.
   * @returns its exit status, 0 when none failed. Never rejects: what goes wrong is printed.
   */
  async run(line: string, signal: AbortSignal = new AbortController().signal): Promise<number> {
    try {
      for (const [name = "", ...args] of parseCommands(line)) {
        const status = await this.#run(name, args, signal);
        if (status !== 0 || this.halted) return status;
      }
      return 0;
    } catch (error) {
      this.#session.err(`syntax error: ${messageOf(error)}\n`);
      return 2;
    }
  }

  async #run(name: string, args: readonly string[], signal: AbortSignal): Promise<number> {
    const { err } = this.#session;
    const command = find(name);
    if (command === undefined) {
      err(`${name}: not found (help lists the commands)\n`);
      return NO_COMMAND;
    }
    try {
      signal.throwIfAborted();
      return await command.run(args, { ...this.#session, signal });
    } catch (error) {
      if (signal.aborted) return INTERRUPTED;
      if (!(error instanceof UsageError)) err(`${name}: ${messageOf(error)}\n`);
      else {
        if (error.message !== "") err(`${name}: ${error.message}\n`);
        err(`usage: ${command.usage}\n`);
      }
      return 1;
    }
  }

  /** What may be typed at the end of a line. */
  async complete(line: string): Promise<Completion> {
    const start = line.lastIndexOf(";") + 1;
    const [name, ...args] = line.slice(start).trimStart().split(/\s+/);
    const word = args.at(-1) ?? name ?? "";
    const all =
      args.length === 0
        ? commands.map((command) => command.name)
        : await this.#arguments(name ?? "", args);
    const candidates = all.filter((each) => each.startsWith(word)).sort();
    return { word, candidates };
  }

  async #arguments(name: string, args: readonly string[]): Promise<readonly string[]> {
    const signal = new AbortController().signal;
    return (await find(name)?.complete?.(args, { ...this.#session, signal })) ?? [];
  }
}

function find(name: string): Command | undefined {
  return commands.find((command) => command.name === name);
}

/** A fault's own line; anything else is a bug of a driver or of ours, and says what it is. */
function messageOf(error: unknown): string {
  if (error instanceof VirtioFault) return error.message;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

// What a command of the shell is.
import type { Kernel } from "../kernel.js";
import type { IpHost } from "../net/ip-host.js";
import type { Host } from "./host.js";
import type { StandardInput } from "./input.js";
import type { Jobs } from "./jobs.js";

/** What a command works with. */
export interface Session {
  readonly kernel: Kernel;
  readonly host: Host;
  /** The IP host on the kernel's interfaces. */
  readonly net: IpHost;
  /** What runs on behind the commands that follow. */
  readonly jobs: Jobs;
  /** Standard output, newlines included. */
  readonly out: (text: string) => void;
  /** Standard error. */
  readonly err: (text: string) => void;
  /** Standard input; null: there is none, or the command lines come by it. */
  readonly input: StandardInput | null;
  /** Whether standard error is a terminal: then a progress line may be drawn over and over. */
  readonly terminal: boolean;
  /** Ends the command: Ctrl-C. */
  readonly signal: AbortSignal;
}

/** One command, with FreeBSD's name and form. */
export interface Command {
  readonly name: string;
  /** `diskinfo [-sv] disk ...` */
  readonly usage: string;
  /** One line for `help`. */
  readonly summary: string;
  /** @returns exit status. @throws UsageError, VirtioFault */
  run(args: readonly string[], session: Session): Promise<number>;
  /** What the last of these arguments, typed in part, may become. */
  complete?(args: readonly string[], session: Session): Promise<readonly string[]>;
}

/** A command line that a command cannot take; its usage is printed. An empty message prints the usage alone. */
export class UsageError extends Error {
  override readonly name: string = "UsageError";
}

/** Options and operands of a command line. */
export interface Options {
  /** Letters given, those with a value too. */
  readonly flags: ReadonlySet<string>;
  /** Values, by letter. */
  readonly values: ReadonlyMap<string, string>;
  readonly operands: readonly string[];
}

/**
 * Options as getopt(3) takes them, `--` included.
 * @param letters - `"in:v"`: a letter before a colon has a value.
 * @throws UsageError
 */
export function getopt(args: readonly string[], letters: string): Options {
  const flags = new Set<string>();
  const values = new Map<string, string>();
  const rest = [...args];
  for (;;) {
    const [word] = rest;
    if (word === undefined || word === "-" || !word.startsWith("-")) break;
    rest.shift();
    if (word === "--") break;
    for (let at = 1; at < word.length; at++) {
      const letter = word.charAt(at);
      const known = letter === ":" ? -1 : letters.indexOf(letter);
      if (known < 0) throw new UsageError(`illegal option -- ${letter}`);
      flags.add(letter);
      if (letters[known + 1] !== ":") continue;
      const value = at + 1 < word.length ? word.slice(at + 1) : rest.shift();
      if (value === undefined) throw new UsageError(`option requires an argument -- ${letter}`);
      values.set(letter, value);
      break;
    }
  }
  return { flags, values, operands: rest };
}

/** Refuses operands beyond the last that a command takes. @throws UsageError */
export function noMore(operands: readonly string[]): void {
  if (operands.length > 0) throw new UsageError(`unexpected argument '${operands[0]}'`);
}

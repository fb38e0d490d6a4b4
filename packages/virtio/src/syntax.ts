// Where in a text something stands: what every error of a parser begins with.
import { VirtioFault } from "@virtio/core";

/** A place in a file, counted from 1. */
export interface Position {
  /** As the user named it. */
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

/** `loader.conf:3:14: expected '"'` */
export function syntaxFault({ file, line, column }: Position, what: string): VirtioFault {
  return new VirtioFault("INVALID", `${file}:${line}:${column}: ${what}`);
}

/** The lines of a text, whatever ends them. */
export function linesOf(text: string): readonly string[] {
  return text.split(/\r?\n/);
}

/** What a parser found where it expected something else: `'='`, or `the end of the line`. */
export function found(rest: string): string {
  const [character] = rest;
  return character === undefined ? "the end of the line" : `'${character}'`;
}

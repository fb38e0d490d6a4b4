// Standard input of a command.

/** Where a command's input comes from. */
export interface StandardInput {
  /** Keys as they are typed, not echoed, Ctrl-C among them. False: a file or a pipe. */
  readonly terminal: boolean;
  /** Begins to read. One reader at a time. */
  open(): InputReader;
}

/** Reads until it is closed: what was not read stays there. */
export interface InputReader {
  /** What came next; null: the end, or it was closed. One call at a time. */
  read(): Promise<Uint8Array | null>;
  close(): void;
}

// What the shell needs of the computer it runs on: files, and the time of day. A browser brings its own.

/** A file of the host, open. Positions and lengths are in bytes. */
export interface HostFile {
  /** When it was opened. */
  readonly size: number;
  /** Fills `into` as far as the file goes. @returns bytes read. */
  read(position: number, into: Uint8Array): Promise<number>;
  /** All of `from`. @throws VirtioFault NO_SPACE, IO */
  write(position: number, from: Uint8Array): Promise<void>;
  /** Cuts it, or extends it with zeros. */
  truncate(size: number): Promise<void>;
  /** Resolves when what was written is on stable storage. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** Files and clock of the host. Rejections are VirtioFaults whose message begins with the path as the user gave it. */
export interface Host {
  /** For reading. @throws VirtioFault NOT_FOUND, INVALID (not a regular file), IO */
  open(path: string): Promise<HostFile>;
  /** For writing; makes the file when it is not there, and leaves what it holds. @throws VirtioFault */
  create(path: string): Promise<HostFile>;
  /** Milliseconds since 1970. */
  time(): number;
  /** Paths that begin with `prefix`, for completion; folders end in `/`. */
  list(prefix: string): Promise<readonly string[]>;
}

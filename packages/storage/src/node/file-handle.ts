// A disk with the shape of Node's fs.promises.FileHandle.
import {
  type BigIntStats,
  createReadStream,
  createWriteStream,
  type ReadPosition,
  type ReadStream,
  type ReadVResult,
  type StatOptions,
  type Stats,
  type WriteStream,
  type WriteVResult,
} from "node:fs";
import type {
  CreateReadStreamOptions,
  CreateWriteStreamOptions,
  FileHandle,
  FileReadResult,
} from "node:fs/promises";
import { createInterface, type Interface } from "node:readline";
import { ReadableStream } from "node:stream/web";
import type { Disk } from "@virtio/core";
import { ByteAccess, lengthOf } from "./byte-access.js";
import { bigIntStatsOf, statsOf } from "./disk-stats.js";
import { abortError, rangeError, systemError, systemErrorOf, typeError } from "./system-error.js";

/** Bytes of a buffer that the caller leaves to us, as Node has it. */
const BUFFER_SIZE = 16384;
/** Most bytes that are read into one buffer, as Node has it. */
const FILE_MAX = 2 ** 31 - 1;

type View = NodeJS.ArrayBufferView;
type Position = ReadPosition | null | undefined;
type TextOptions = Parameters<FileHandle["writeFile"]>[1];

interface Part {
  readonly offset?: number | null | undefined;
  readonly length?: number | null | undefined;
  readonly position?: Position;
}

/**
 * What of Node's FileHandle a disk can serve. Absent: `fd`, `appendFile`, owners, modes and times; `truncate` says EINVAL as it does for
 * a block device. Positions may be bigints.
 */
export type DiskFileHandle = Pick<
  FileHandle,
  | "close"
  | "createReadStream"
  | "createWriteStream"
  | "datasync"
  | "read"
  | "readFile"
  | "readLines"
  | "readableWebStream"
  | "readv"
  | "stat"
  | "sync"
  | "truncate"
  | "write"
  | "writeFile"
  | "writev"
  | typeof Symbol.asyncDispose
> & {
  read<T extends View>(
    buffer: T,
    offset?: number | null,
    length?: number | null,
    position?: Position,
  ): Promise<FileReadResult<T>>;
};

/**
 * Opens a disk as a file of bytes. Reads and writes may begin and end anywhere: parts of sectors are read as whole sectors, and
 * written by reading and writing back the sectors at the edges. Writes through handles of one disk that share a sector follow each
 * other; writes that the disk is given directly meanwhile may be lost where they share a sector with one of them.
 *
 * A read ends at the end of the media (`bytesRead` 0 there), a write too; one that begins there fails with ENOSPC. A call without a
 * position (null, or -1) begins where the call before it ends, even if that is still under way. Closing waits for what is under
 * way and leaves the disk attached.
 *
 * Errors are Node's: `code` (`EIO`, `EROFS`, `ENXIO`, … of the disk's VirtioFault, which is the `cause`), `errno`, `syscall`; EBADF
 * once closed; ERR_OUT_OF_RANGE and ERR_INVALID_ARG_TYPE for arguments.
 */
export function fileHandle(disk: Disk): DiskFileHandle {
  return new Handle(disk);
}

class Handle implements DiskFileHandle {
  readonly #disk: Disk;
  readonly #bytes: ByteAccess;
  readonly #calls = new Set<Promise<unknown>>();
  #closed: Promise<void> | null = null;
  /** Where a call without a position begins. */
  #position = 0;

  constructor(disk: Disk) {
    this.#disk = disk;
    this.#bytes = ByteAccess.of(disk);
  }

  // ── bytes ───────────────────────────────────────────────────────────────────

  read<T extends View>(
    buffer: T,
    offset?: number | null,
    length?: number | null,
    position?: Position,
  ): Promise<FileReadResult<T>>;
  read<T extends View>(buffer: T, options?: Part): Promise<FileReadResult<T>>;
  read<T extends View = Buffer<ArrayBuffer>>(
    options?: Part & { readonly buffer?: T },
  ): Promise<FileReadResult<T>>;
  async read(
    first: View | (Part & { readonly buffer?: View }) = {},
    second?: number | Part | null,
    length?: number | null,
    position?: Position,
  ): Promise<FileReadResult<View>> {
    const inOptions = !ArrayBuffer.isView(first);
    const buffer = inOptions ? (first.buffer ?? Buffer.alloc(BUFFER_SIZE)) : first;
    const part = inOptions ? first : partOf(second, length, position);
    const into = bytesOf(buffer, part);
    const bytesRead = await this.#transfer("read", [into], positionOf(part.position));
    return { bytesRead, buffer };
  }

  write<T extends View>(
    buffer: T,
    offset?: number | Part | null,
    length?: number | null,
    position?: Position,
  ): Promise<{ bytesWritten: number; buffer: T }>;
  write(
    data: string,
    position?: Position,
    encoding?: BufferEncoding | null,
  ): Promise<{ bytesWritten: number; buffer: string }>;
  async write(
    buffer: View | string,
    second?: number | bigint | Part | null,
    third?: number | BufferEncoding | null,
    position?: Position,
  ): Promise<{ bytesWritten: number; buffer: View | string }> {
    if (typeof buffer === "string") {
      const from = Buffer.from(buffer, (third as BufferEncoding | null | undefined) ?? "utf8");
      const at = positionOf(second as Position);
      return { bytesWritten: await this.#transfer("write", [from], at), buffer };
    }
    const part = partOf(second as number | Part | null, third as number | null, position);
    const from = bytesOf(buffer, part);
    const bytesWritten = await this.#transfer("write", [from], positionOf(part.position));
    return { bytesWritten, buffer };
  }

  async readv<T extends readonly View[]>(buffers: T, position?: Position): Promise<ReadVResult<T>> {
    const into = buffers.map((buffer) => bytesOf(buffer, {}));
    const bytesRead = await this.#transfer("read", into, positionOf(position));
    return { bytesRead, buffers };
  }

  async writev<T extends readonly View[]>(
    buffers: T,
    position?: Position,
  ): Promise<WriteVResult<T>> {
    const from = buffers.map((buffer) => bytesOf(buffer, {}));
    const bytesWritten = await this.#transfer("write", from, positionOf(position));
    return { bytesWritten, buffers };
  }

  /** From where the handle stands to the end of the media. */
  readFile(
    options?: { encoding?: null | undefined; signal?: AbortSignal | undefined } | null,
  ): Promise<Buffer<ArrayBuffer>>;
  readFile(
    options: { encoding: BufferEncoding; signal?: AbortSignal | undefined } | BufferEncoding,
  ): Promise<string>;
  readFile(options?: TextOptions): Promise<string & Buffer<ArrayBuffer>>;
  async readFile(options?: TextOptions): Promise<string | Buffer<ArrayBuffer>> {
    const { encoding, signal } = textOptions(options);
    const length = Math.max(0, this.#disk.mediaSize - this.#position);
    if (length > FILE_MAX)
      throw Object.assign(new RangeError(`File size (${length}) is greater than 2 GiB`), {
        code: "ERR_FS_FILE_TOO_LARGE",
      });
    const bytes = Buffer.alloc(length);
    const read = await this.#transfer("read", [bytes], null, signal);
    const whole = bytes.subarray(0, read);
    return encoding === undefined ? whole : whole.toString(encoding);
  }

  /** From where the handle stands. @throws ENOSPC, what fits being written */
  async writeFile(data: string | View, options?: TextOptions): Promise<void> {
    const { encoding = "utf8", signal } = textOptions(options);
    if (signal?.aborted === true) throw abortError(signal.reason);
    const from = typeof data === "string" ? Buffer.from(data, encoding) : bytesOf(data, {});
    for (let at = 0; at < from.length; )
      at += await this.#transfer("write", [from.subarray(at)], null);
  }

  /** Moves what lies before the end of the media. @returns bytes */
  #transfer(
    syscall: "read" | "write",
    pieces: readonly Uint8Array[],
    position: number | null,
    signal?: AbortSignal,
  ): Promise<number> {
    return this.#call(syscall, async () => {
      const start = position ?? this.#position;
      const length = lengthOf(pieces);
      const count = Math.min(length, Math.max(0, this.#disk.mediaSize - start));
      if (count === 0) {
        if (length > 0 && syscall === "write") throw systemError("ENOSPC", syscall);
        return 0;
      }
      const end = start + count;
      if (position === null) this.#position = end;
      try {
        const options = signal === undefined ? {} : { signal };
        await this.#bytes[syscall](start, firstOf(pieces, count), options);
      } catch (error) {
        if (position === null && this.#position === end) this.#position = start;
        throw signal?.aborted === true ? abortError(signal.reason) : error;
      }
      return count;
    });
  }

  // ── the device ──────────────────────────────────────────────────────────────

  stat(options?: StatOptions & { bigint?: false | undefined }): Promise<Stats>;
  stat(options: StatOptions & { bigint: true }): Promise<BigIntStats>;
  stat(options?: StatOptions): Promise<Stats & BigIntStats>;
  stat(options: StatOptions = {}): Promise<Stats | BigIntStats> {
    return this.#call("fstat", async () =>
      options.bigint === true ? bigIntStatsOf(this.#disk) : statsOf(this.#disk),
    );
  }

  sync(): Promise<void> {
    return this.#call("fsync", () => this.#disk.flush());
  }

  datasync(): Promise<void> {
    return this.#call("fdatasync", () => this.#disk.flush());
  }

  /** @throws EINVAL: a block device cannot be truncated */
  truncate(): Promise<void> {
    return this.#call("ftruncate", async () => {
      throw systemError("EINVAL", "ftruncate");
    });
  }

  close(): Promise<void> {
    this.#closed ??= Promise.allSettled(this.#calls).then(() => {});
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Each call ends with an error of Node's, or well. */
  async #call<T>(syscall: string, work: () => Promise<T>): Promise<T> {
    if (this.#closed !== null) throw systemError("EBADF", syscall);
    const call = work();
    this.#calls.add(call);
    try {
      return await call;
    } catch (error) {
      throw systemErrorOf(error, syscall);
    } finally {
      this.#calls.delete(call);
    }
  }

  // ── streams ─────────────────────────────────────────────────────────────────
  // Node's own, over this handle instead of a file descriptor.

  createReadStream({ encoding, ...options }: CreateReadStreamOptions = {}): ReadStream {
    return createReadStream(this.#disk.name, {
      ...options,
      ...(encoding ? { encoding } : {}),
      fs: this.#streamed,
    });
  }

  createWriteStream({ encoding, ...options }: CreateWriteStreamOptions = {}): WriteStream {
    return createWriteStream(this.#disk.name, {
      ...options,
      ...(encoding ? { encoding } : {}),
      fs: this.#streamed,
    });
  }

  readLines(options?: CreateReadStreamOptions): Interface {
    const input = this.createReadStream(options);
    return createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  }

  readableWebStream(): ReadableStream {
    return new ReadableStream({
      type: "bytes",
      autoAllocateChunkSize: BUFFER_SIZE,
      pull: async (controller) => {
        const view = controller.byobRequest?.view;
        if (!view) throw typeError("view", "of a request", view);
        const into = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
        const { bytesRead } = await this.read(into);
        if (bytesRead === 0) controller.close();
        controller.byobRequest?.respond(bytesRead);
      },
    });
  }

  /** What Node's file streams call (`options.fs`). No file descriptor is any file's. */
  get #streamed() {
    type Done = (error: unknown, count?: number, buffer?: unknown) => void;
    const end = (work: Promise<void>, done: Done): void => void work.then(() => done(null), done);
    return {
      open: (_path: string, _flags: string, _mode: number, done: Done) => done(null, -1),
      read: (_fd: number, into: Buffer, at: number, length: number, from: Position, done: Done) =>
        void this.read(into, at, length, from).then((end) => done(null, end.bytesRead, into), done),
      write: (_fd: number, from: Buffer, at: number, length: number, to: Position, done: Done) =>
        void this.write(from, at, length, to).then(
          (end) => done(null, end.bytesWritten, from),
          done,
        ),
      writev: (_fd: number, from: readonly Buffer[], to: Position, done: Done) =>
        void this.writev(from, to).then((end) => done(null, end.bytesWritten, from), done),
      fsync: (_fd: number, done: Done) => end(this.sync(), done),
      close: (_fd: number, done: Done) => end(this.close(), done),
    };
  }
}

const partOf = (
  offset: number | Part | null | undefined,
  length: number | null | undefined,
  position: Position,
): Part => (typeof offset === "object" && offset !== null ? offset : { offset, length, position });

/** The bytes of a view that are meant. @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE */
function bytesOf(view: View, { offset, length }: Part): Uint8Array {
  if (!ArrayBuffer.isView(view))
    throw typeError("buffer", "an instance of Buffer, TypedArray, or DataView", view);
  const at = offset ?? 0;
  wholeNumber("offset", at, view.byteLength);
  const count = length ?? view.byteLength - at;
  wholeNumber("length", count, view.byteLength - at);
  return new Uint8Array(view.buffer, view.byteOffset + at, count);
}

/** Null: where the handle stands. @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE */
function positionOf(position: Position): number | null {
  if (position === undefined || position === null) return null;
  if (typeof position === "bigint") {
    if (position < -1n || position >= 2n ** 63n)
      throw rangeError("position", ">= -1 && < 2 ** 63", position);
    return position === -1n ? null : Number(position);
  }
  if (position === -1) return null;
  wholeNumber("position", position, Number.MAX_SAFE_INTEGER);
  return position;
}

function wholeNumber(name: string, value: number, most: number): void {
  if (typeof value !== "number") throw typeError(name, "of type number", value);
  if (!Number.isInteger(value)) throw rangeError(name, "an integer", value);
  if (value < 0 || value > most) throw rangeError(name, `>= 0 && <= ${most}`, value);
}

function textOptions(options: TextOptions): { encoding?: BufferEncoding; signal?: AbortSignal } {
  const given = typeof options === "string" ? { encoding: options } : (options ?? {});
  const { encoding, signal } = given as { encoding?: BufferEncoding; signal?: AbortSignal };
  return { ...(encoding ? { encoding } : {}), ...(signal ? { signal } : {}) };
}

/** The first `count` bytes. */
function firstOf(pieces: readonly Uint8Array[], count: number): readonly Uint8Array[] {
  const first: Uint8Array[] = [];
  let left = count;
  for (const piece of pieces) {
    first.push(piece.subarray(0, left));
    left -= Math.min(left, piece.length);
  }
  return first;
}

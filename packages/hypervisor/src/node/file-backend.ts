// A block backend over an image file.
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { VirtioFault } from "@virtio/core";
import { type BlockBackend, mediaSize } from "../block-backend.js";

/**
 * Bytes of a file, read and written in place. One writer at a time: the file is not locked. Node cannot punch holes: a discard does
 * nothing, and zeroes are written as zeroes.
 */
export class FileBackend implements BlockBackend {
  readonly readOnly: boolean;
  onResize: (() => void) | null = null;
  readonly #file: FileHandle;
  #size: number;

  constructor(file: FileHandle, size: number, readOnly: boolean) {
    this.#file = file;
    this.#size = size;
    this.readOnly = readOnly;
  }

  get size(): number {
    return this.#size;
  }

  /**
   * Grows by zeroes, or loses its end. The device tells its driver.
   * @param size - bytes, a multiple of 512
   * @throws VirtioFault INVALID, READ_ONLY, IO
   */
  async resize(size: number): Promise<void> {
    if (this.readOnly) throw new VirtioFault("READ_ONLY", "the image is open for reading");
    await this.#file.truncate(mediaSize(size)).catch((error: Error) => {
      throw new VirtioFault("IO", error.message, { cause: error });
    });
    this.#size = size;
    this.onResize?.();
  }

  /**
   * Opens an image; errors call it `name`, the path as the user typed it.
   * @throws VirtioFault NOT_FOUND, READ_ONLY, INVALID (not a file, or not a positive multiple of 512 bytes), IO
   */
  static async open(
    path: string,
    options: { readonly readOnly?: boolean; readonly name?: string } = {},
  ): Promise<FileBackend> {
    const { readOnly = false, name = path } = options;
    const file = await open(path, readOnly ? constants.O_RDONLY : constants.O_RDWR).catch(
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") throw new VirtioFault("NOT_FOUND", `${name}: no such file`);
        if (error.code === "EACCES" || error.code === "EROFS" || error.code === "EPERM")
          throw new VirtioFault(
            "READ_ONLY",
            `${name}: cannot be opened for ${readOnly ? "reading" : "writing (readonly=on would only read it)"}`,
          );
        if (error.code === "EISDIR")
          throw new VirtioFault("INVALID", `${name}: is a directory, not an image`);
        throw new VirtioFault("IO", `${name}: ${error.message}`, { cause: error });
      },
    );
    const { size } = await file.stat();
    if (size === 0 || size % 512 !== 0) {
      await file.close();
      throw new VirtioFault(
        "INVALID",
        `${name}: ${size} bytes is not a positive multiple of 512, so it is no raw image`,
      );
    }
    return new FileBackend(file, size, readOnly);
  }

  async read(position: number, into: readonly Uint8Array[]): Promise<void> {
    await whole(
      into,
      async (pieces, done) => (await this.#file.readv(pieces, position + done)).bytesRead,
    );
  }

  async write(position: number, from: readonly Uint8Array[]): Promise<void> {
    await whole(
      from,
      async (pieces, done) => (await this.#file.writev(pieces, position + done)).bytesWritten,
    );
  }

  flush(): Promise<void> {
    return this.#file.datasync();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

/** Again and again until every piece is through; each step must move something. */
async function whole(
  pieces: readonly Uint8Array[],
  step: (pieces: readonly Uint8Array[], done: number) => Promise<number>,
): Promise<void> {
  const total = pieces.reduce((sum, piece) => sum + piece.length, 0);
  let done = 0;
  let left = pieces;
  while (done < total) {
    const n = await step(left, done);
    if (n === 0) throw new VirtioFault("IO", `the image ended ${total - done} bytes early`);
    done += n;
    let skip = n;
    left = left.flatMap((piece) => {
      const cut = Math.min(skip, piece.length);
      skip -= cut;
      return cut === piece.length ? [] : [piece.subarray(cut)];
    });
  }
}

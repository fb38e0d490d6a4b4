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

  async read(position: number, into: readonly Uint8Array[]): Promise<number> {
    return (await this.#file.readv(into, position)).bytesRead;
  }

  async write(position: number, from: readonly Uint8Array[]): Promise<number> {
    return (await this.#file.writev(from, position)).bytesWritten;
  }

  flush(): Promise<void> {
    return this.#file.datasync();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

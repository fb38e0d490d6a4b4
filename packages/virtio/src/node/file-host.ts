// Files and clock of the computer this runs on, for the shell.
import { constants } from "node:fs";
import { type FileHandle, open, readdir } from "node:fs/promises";
import { resolve } from "node:path";
import { VirtioFault } from "@virtio/core";
import type { Host, HostFile } from "../shell/host.js";
import { fileFault } from "./file-fault.js";

/** {@inheritDoc Host} Relative paths start from one folder. */
export class FileHost implements Host {
  readonly #cwd: string;

  constructor(cwd: string) {
    this.#cwd = cwd;
  }

  open(path: string): Promise<HostFile> {
    return this.#open(path, constants.O_RDONLY);
  }

  create(path: string): Promise<HostFile> {
    return this.#open(path, constants.O_RDWR | constants.O_CREAT);
  }

  time(): number {
    return Date.now();
  }

  async list(prefix: string): Promise<readonly string[]> {
    const folder = prefix.slice(0, prefix.lastIndexOf("/") + 1);
    try {
      const entries = await readdir(resolve(this.#cwd, folder === "" ? "." : folder), {
        withFileTypes: true,
      });
      return entries.map((entry) => `${folder}${entry.name}${entry.isDirectory() ? "/" : ""}`);
    } catch {
      // A folder that cannot be listed completes to nothing.
      return [];
    }
  }

  async #open(path: string, flags: number): Promise<HostFile> {
    try {
      // Without O_NONBLOCK a pipe that nobody writes to would be waited for.
      const handle = await open(resolve(this.#cwd, path), flags | constants.O_NONBLOCK, 0o666);
      const stat = await handle.stat();
      if (stat.isFile()) return new OpenFile(path, handle, stat.size);
      await handle.close();
      const what = stat.isDirectory() ? "Is a directory" : "is not a regular file";
      throw new VirtioFault("INVALID", `${path}: ${what}`);
    } catch (cause) {
      throw fileFault(path, cause);
    }
  }
}

class OpenFile implements HostFile {
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly size: number;

  constructor(path: string, handle: FileHandle, size: number) {
    this.#path = path;
    this.#handle = handle;
    this.size = size;
  }

  async read(position: number, into: Uint8Array): Promise<number> {
    return this.#attempt(async () => {
      let done = 0;
      while (done < into.length) {
        const { bytesRead } = await this.#handle.read(
          into,
          done,
          into.length - done,
          position + done,
        );
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return done;
    });
  }

  async write(position: number, from: Uint8Array): Promise<void> {
    await this.#attempt(async () => {
      for (let done = 0; done < from.length; ) {
        const { bytesWritten } = await this.#handle.write(
          from,
          done,
          from.length - done,
          position + done,
        );
        if (bytesWritten === 0)
          throw new VirtioFault("NO_SPACE", `${this.#path}: write of 0 bytes`);
        done += bytesWritten;
      }
    });
  }

  truncate(size: number): Promise<void> {
    return this.#attempt(() => this.#handle.truncate(size));
  }

  sync(): Promise<void> {
    return this.#attempt(() => this.#handle.sync());
  }

  close(): Promise<void> {
    return this.#attempt(() => this.#handle.close());
  }

  async #attempt<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      throw fileFault(this.#path, cause);
    }
  }
}

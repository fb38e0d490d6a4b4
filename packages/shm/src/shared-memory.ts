// Memory that other threads and processes see too: a memfd, mapped shared.
import { closeSync, fstatSync, ftruncateSync } from "node:fs";
import { VirtioFault } from "@virtio/core";
import { type Libc, libc } from "./libc.js";

const checkLength = (length: number): void => {
  if (!Number.isSafeInteger(length) || length <= 0)
    throw new VirtioFault(
      "INVALID",
      `shared memory of ${length} bytes: not a positive whole number`,
    );
};

/** Mappings whose last view went after `release`. */
const released = new FinalizationRegistry<() => void>((unmap) => unmap());

/**
 * An anonymous file of `length` zero bytes (memfd_create(2)), for memory or for what a child process is to open as
 * `/proc/self/fd/N`. Closed on exec unless it is passed on; the caller closes it.
 * @returns its descriptor
 * @throws VirtioFault INVALID, UNSUPPORTED, NO_SPACE, IO
 */
export function createMemfd(name: string, length: number): number {
  checkLength(length);
  if (name.includes("\0") || Buffer.byteLength(name) > 249)
    throw new VirtioFault("INVALID", "name of shared memory: more than 249 bytes, or holds a NUL");
  const fd = libc().memfdCreate(name);
  try {
    ftruncateSync(fd, length);
  } catch (cause) {
    closeSync(fd);
    throw new VirtioFault("NO_SPACE", `no room for ${length} bytes of shared memory`, { cause });
  }
  return fd;
}

/**
 * A range of memory that other threads and processes map too. `buffer` is a plain ArrayBuffer whose bytes are the file's:
 * typed arrays over it, Atomics included, see what the others store.
 *
 * Two ways end it. `close()` unmaps now: **touching `buffer`, or any typed array made of it, afterwards crashes the process**, so
 * it is for those who made every view. `release()` unmaps when the last view has been collected: always safe.
 */
export class SharedMemory implements Disposable {
  /** The memfd. Pass it to a child process, or its number to a worker thread that calls {@link SharedMemory.map}. */
  readonly fd: number;
  /** Bytes. */
  readonly length: number;
  readonly #owned: boolean;
  readonly #libc: Libc;
  #mapping: { readonly pointer: bigint; readonly buffer: ArrayBuffer } | null;

  private constructor(fd: number, length: number, owned: boolean) {
    this.fd = fd;
    this.length = length;
    this.#owned = owned;
    this.#libc = libc();
    this.#mapping = this.#libc.map(fd, length);
  }

  /**
   * New memory, all zero. Owns its descriptor.
   * @param name shown as `/memfd:name` in /proc/self/maps
   * @throws VirtioFault INVALID, UNSUPPORTED (not Linux, or koffi does not load), NO_SPACE, OUT_OF_MEMORY, IO
   */
  static create(name: string, length: number): SharedMemory {
    const fd = createMemfd(name, length);
    try {
      return new SharedMemory(fd, length, true);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /**
   * Memory that exists, mapped once more: in a worker thread of the same process, by the number of the descriptor. The descriptor
   * stays the caller's.
   * @throws VirtioFault INVALID (the file is shorter than `length`), NOT_FOUND (no such descriptor), UNSUPPORTED, OUT_OF_MEMORY, IO
   */
  static map(fd: number, length: number): SharedMemory {
    checkLength(length);
    if (!Number.isInteger(fd) || fd < 0 || fd > 0x7fff_ffff)
      throw new VirtioFault("INVALID", `file descriptor ${fd}: not a whole number from 0`);
    let size: number;
    try {
      size = fstatSync(fd).size;
    } catch (cause) {
      throw new VirtioFault("NOT_FOUND", `file descriptor ${fd} is not open`, { cause });
    }
    // A byte mapped behind the end of the file would be SIGBUS when touched.
    if (size < length)
      throw new VirtioFault("INVALID", `file descriptor ${fd} holds ${size} bytes, not ${length}`);
    return new SharedMemory(fd, length, false);
  }

  /** The bytes, always the same object. @throws VirtioFault CLOSED after close or release */
  get buffer(): ArrayBuffer {
    if (this.#mapping === null) throw new VirtioFault("CLOSED", "shared memory is closed");
    return this.#mapping.buffer;
  }

  /**
   * Unmaps, and closes the descriptor if `create` made it. A second call does nothing. Whatever still uses a view of `buffer` then
   * crashes the process: that is the caller's to rule out.
   */
  close(): void {
    const mapping = this.#end();
    if (mapping !== null) this.#libc.unmap(mapping.pointer, this.length);
  }

  /**
   * Closes the descriptor if `create` made it; the mapping stays until the last view of `buffer` has been collected as garbage, so
   * that views which others hold stay valid. A second call does nothing.
   */
  release(): void {
    const mapping = this.#end();
    if (mapping === null) return;
    const { pointer } = mapping;
    const { length } = this;
    const system = this.#libc;
    released.register(mapping.buffer, () => system.unmap(pointer, length));
  }

  /** `close()`, at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }

  #end(): { readonly pointer: bigint; readonly buffer: ArrayBuffer } | null {
    const mapping = this.#mapping;
    this.#mapping = null;
    if (mapping !== null && this.#owned) closeSync(this.fd);
    return mapping;
  }
}

// A backend that goes wrong as a test says.
import { VirtioFault } from "@virtio/core";
import type { BlockBackend } from "./block-backend.js";
import { bytesOf, transferZeroes } from "./transfer.js";

/** A request that a backend gets. */
export interface BackendRequest {
  readonly operation: "read" | "write" | "flush" | "discard" | "writeZeroes";
  /** Bytes; 0 of a flush. */
  readonly position: number;
  readonly length: number;
}

/**
 * What becomes of a request:
 * - undefined: it is done;
 * - "error": it fails, and nothing was moved;
 * - `{ torn }`: the first `torn` bytes of the data are read or written, then it fails;
 * - `{ short }`: a read or a write moves the first `short` bytes and says so; anything else fails;
 * - "never": it is not answered, until the device is reset;
 * - a promise: it is done once that resolves, and fails if it rejects. Made from `machine.tasks.callout` it is a delay.
 */
export type Fate =
  | "error"
  | "never"
  | { readonly torn: number }
  | { readonly short: number }
  | Promise<void>
  | undefined;

/** Wraps another backend; `fate` is asked at each request. */
export class FaultBackend implements BlockBackend {
  /** May be exchanged at any time. */
  fate: (request: BackendRequest) => Fate;
  readonly #backend: BlockBackend;
  /** Ends requests that are not answered. */
  readonly #unanswered = new Set<() => void>();

  constructor(backend: BlockBackend, fate: (request: BackendRequest) => Fate = () => undefined) {
    this.#backend = backend;
    this.fate = fate;
  }

  /** Reads and writes that touch these sectors fail: a fate. */
  static badSectors(
    first: number,
    count: number,
    operations: readonly BackendRequest["operation"][] = ["read", "write"],
  ): (request: BackendRequest) => Fate {
    const [from, to] = [first * 512, (first + count) * 512];
    return ({ operation, position, length }) =>
      operations.includes(operation) && position < to && position + length > from
        ? "error"
        : undefined;
  }

  get size(): number {
    return this.#backend.size;
  }

  /** As the wrapped one: a fate may wait for a callout of the machine. */
  get outside(): boolean {
    return this.#backend.outside ?? true;
  }

  get readOnly(): boolean {
    return this.#backend.readOnly;
  }

  get mayUnmap(): boolean {
    return this.#backend.mayUnmap ?? false;
  }

  get onResize(): (() => void) | null {
    return this.#backend.onResize ?? null;
  }

  set onResize(listener: (() => void) | null) {
    this.#backend.onResize = listener;
  }

  /** Requests that are not answered. */
  get unanswered(): number {
    return this.#unanswered.size;
  }

  read(position: number, into: readonly Uint8Array[]): Promise<number> | number {
    return this.#do({ operation: "read", position, length: bytesOf(into) }, (length) =>
      this.#backend.read(position, firstOf(into, length)),
    );
  }

  write(position: number, from: readonly Uint8Array[]): Promise<number> | number {
    return this.#do({ operation: "write", position, length: bytesOf(from) }, (length) =>
      this.#backend.write(position, firstOf(from, length)),
    );
  }

  flush(): Promise<void> | undefined {
    return this.#do({ operation: "flush", position: 0, length: 0 }, () => this.#backend.flush());
  }

  discard(position: number, length: number): Promise<void> | undefined {
    return this.#do({ operation: "discard", position, length }, (part) =>
      this.#backend.discard?.(position, part),
    );
  }

  writeZeroes(position: number, length: number, unmap: boolean): Promise<void> | undefined {
    return this.#do({ operation: "writeZeroes", position, length }, (part) =>
      this.#backend.writeZeroes === undefined
        ? transferZeroes(this.#backend, position, part)
        : this.#backend.writeZeroes(position, part, unmap),
    );
  }

  /** @param work - does the first bytes of the request */
  #do<T, Now extends T>(
    request: BackendRequest,
    work: (length: number) => Promise<T> | Now,
  ): Promise<T> | Now {
    const fate = this.fate(request);
    const failed = (): Promise<never> =>
      Promise.reject(new VirtioFault("IO", `${request.operation} at ${request.position} failed`));
    if (fate === undefined) return work(request.length);
    if (fate === "error") return failed();
    if (fate === "never")
      return new Promise((_, reject) => {
        const end = (): void => reject(new VirtioFault("IO", "cancelled"));
        this.#unanswered.add(end);
      });
    if (fate instanceof Promise) return fate.then(() => work(request.length));
    const told = "short" in fate && (request.operation === "read" || request.operation === "write");
    const done = work(Math.min("short" in fate ? fate.short : fate.torn, request.length));
    return told ? done : Promise.resolve(done).then(failed);
  }

  cancel(): void {
    for (const end of this.#unanswered) end();
    this.#unanswered.clear();
    this.#backend.cancel?.();
  }

  close(): Promise<void> {
    return this.#backend.close();
  }
}

/** The first bytes of scattered data. */
function firstOf(pieces: readonly Uint8Array[], length: number): readonly Uint8Array[] {
  let left = length;
  return pieces.map((piece) => {
    const part = piece.subarray(0, left);
    left -= part.length;
    return part;
  });
}

// Errors as Node's fs makes them: `EIO: i/o error, read`, with errno, code and syscall.
import { getSystemErrorMap } from "node:util";
import { type ErrnoName, VirtioFault } from "@virtio/core";

/** Numbers and texts differ from system to system. */
const known: ReadonlyMap<string, readonly [errno: number, text: string]> = new Map(
  [...getSystemErrorMap()].map(([errno, [code, text]]) => [code, [errno, text]]),
);

/** What a system call fails with. */
export function systemError(
  code: ErrnoName | "EBADF",
  syscall: string,
  cause?: unknown,
): NodeJS.ErrnoException {
  const [errno, text] = known.get(code) ?? [0, "unknown error"];
  const error = new Error(`${code}: ${text}, ${syscall}`, cause === undefined ? {} : { cause });
  return Object.assign(error, { errno, code, syscall });
}

/** A disk's fault as the system call fails with it, the fault its cause; what is no fault stays what it is. */
export const systemErrorOf = (error: unknown, syscall: string): unknown =>
  error instanceof VirtioFault ? systemError(error.errno, syscall, error) : error;

/** The caller's signal ended it. */
export const abortError = (cause: unknown): Error =>
  Object.assign(new Error("The operation was aborted", { cause }), {
    name: "AbortError",
    code: "ABORT_ERR",
  });

/** An argument that is none. */
export const typeError = (name: string, expected: string, value: unknown): TypeError =>
  Object.assign(
    new TypeError(`The "${name}" argument must be ${expected}. Received ${String(value)}`),
    { code: "ERR_INVALID_ARG_TYPE" },
  );

/** A number that does not fit. */
export const rangeError = (name: string, range: string, value: unknown): RangeError =>
  Object.assign(
    new RangeError(
      `The value of "${name}" is out of range. It must be ${range}. Received ${String(value)}`,
    ),
    { code: "ERR_OUT_OF_RANGE" },
  );

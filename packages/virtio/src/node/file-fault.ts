import { type FaultCode, VirtioFault } from "@virtio/core";

const known: Readonly<Record<string, readonly [FaultCode, string]>> = {
  ENOENT: ["NOT_FOUND", "No such file or directory"],
  ENOTDIR: ["NOT_FOUND", "Not a directory"],
  EACCES: ["INVALID", "Permission denied"],
  EPERM: ["INVALID", "Operation not permitted"],
  EISDIR: ["INVALID", "Is a directory"],
  EROFS: ["READ_ONLY", "Read-only file system"],
  ENOSPC: ["NO_SPACE", "No space left on device"],
  EDQUOT: ["NO_SPACE", "Disc quota exceeded"],
  EFBIG: ["NO_SPACE", "File too large"],
};

/** What Node says about a file, as a fault in FreeBSD's words: `in.bin: No such file or directory`. */
export function fileFault(path: string, cause: unknown): VirtioFault {
  if (cause instanceof VirtioFault) return cause;
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  const [fault, words] = known[code] ?? [
    "IO",
    cause instanceof Error ? cause.message : String(cause),
  ];
  return new VirtioFault(fault, `${path}: ${words}`, { cause });
}

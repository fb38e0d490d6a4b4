// The one closed set of faults. Hot paths return negative errnos; everything else throws or rejects with a VirtioFault.

/** Errno values, with FreeBSD's numbers (errno(2)). Hot paths return them negated. */
export enum Errno {
  EPERM = 1,
  ENOENT = 2,
  EIO = 5,
  ENXIO = 6,
  ENOMEM = 12,
  EBUSY = 16,
  EEXIST = 17,
  EINVAL = 22,
  ENOSPC = 28,
  EROFS = 30,
  EMSGSIZE = 40,
  ENOTSUP = 45,
  ETIMEDOUT = 60,
  EPROTO = 92,
}

/** FreeBSD's name of an errno. */
export type ErrnoName = keyof typeof Errno;

/**
 * The closed set of fault codes:
 *
 * - `NEGOTIATION` no acceptable feature set (EINVAL)
 * - `NOT_FOUND` no such device, module or file (ENOENT)
 * - `EXISTS` it is there already (EEXIST)
 * - `OUT_OF_MEMORY` no DMA memory left (ENOMEM)
 * - `INVALID` a caller's argument (EINVAL)
 * - `UNSUPPORTED` the device or driver does not do this (ENOTSUP)
 * - `IO` the device reported failure (EIO)
 * - `TIMED_OUT` (ETIMEDOUT)
 * - `BUSY` (EBUSY)
 * - `READ_ONLY` (EROFS)
 * - `NO_SPACE` (ENOSPC)
 * - `DEVICE_MISBEHAVED` seen from a driver: the device broke a rule (EIO)
 * - `DRIVER_MISBEHAVED` seen from a device: the driver broke a rule (EPROTO)
 * - `NEEDS_RESET` the device asked for a reset (EIO)
 * - `CLOSED` detached, or the machine is gone (ENXIO)
 */
export type FaultCode =
  | "NEGOTIATION"
  | "NOT_FOUND"
  | "EXISTS"
  | "OUT_OF_MEMORY"
  | "INVALID"
  | "UNSUPPORTED"
  | "IO"
  | "TIMED_OUT"
  | "BUSY"
  | "READ_ONLY"
  | "NO_SPACE"
  | "DEVICE_MISBEHAVED"
  | "DRIVER_MISBEHAVED"
  | "NEEDS_RESET"
  | "CLOSED";

const errnoOf: Readonly<Record<FaultCode, ErrnoName>> = {
  NEGOTIATION: "EINVAL",
  NOT_FOUND: "ENOENT",
  EXISTS: "EEXIST",
  OUT_OF_MEMORY: "ENOMEM",
  INVALID: "EINVAL",
  UNSUPPORTED: "ENOTSUP",
  IO: "EIO",
  TIMED_OUT: "ETIMEDOUT",
  BUSY: "EBUSY",
  READ_ONLY: "EROFS",
  NO_SPACE: "ENOSPC",
  DEVICE_MISBEHAVED: "EIO",
  DRIVER_MISBEHAVED: "EPROTO",
  NEEDS_RESET: "EIO",
  CLOSED: "ENXIO",
};

/** What a fault carries besides its code and message. */
export interface FaultDetails {
  /** Device the fault belongs to, as it prints: `vtbd0`, `virtio_pci2`. */
  readonly device?: string | undefined;
  /** Clause or section, e.g. `SPLIT-USED-4` or `virtio 1.4 §2.7.8`. */
  readonly clause?: string | undefined;
  /** What led to it. */
  readonly cause?: unknown;
}

/** Every error of this project. Message: `vtbd0: what happened: value, limit [virtio 1.4 §2.7.8]`. */
export class VirtioFault extends Error {
  override readonly name: string = "VirtioFault";
  readonly code: FaultCode;
  /** FreeBSD's name of the errno that belongs to the code. */
  readonly errno: ErrnoName;
  readonly device: string | undefined;
  readonly clause: string | undefined;

  constructor(code: FaultCode, what: string, details: FaultDetails = {}) {
    const { device, clause, cause } = details;
    super(
      `${device === undefined ? "" : `${device}: `}${what}${clause === undefined ? "" : ` [${clause}]`}`,
      cause === undefined ? undefined : { cause },
    );
    this.code = code;
    this.errno = errnoOf[code];
    this.device = device;
    this.clause = clause;
  }
}

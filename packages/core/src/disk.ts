// What block and SCSI drivers offer (FreeBSD's disk(9)).
import type { Attached } from "./attached.js";

/** Options of a transfer. */
export interface TransferOptions {
  /** Ends the wait: a bounced request rejects at once, one in the caller's own DMA region when the device gave it back. */
  readonly signal?: AbortSignal;
}

/**
 * vtbd, da: one contract, one contract suite. Positions and lengths are in bytes, multiples of sectorSize (else INVALID), and end
 * within mediaSize (else INVALID). Rejections are VirtioFaults: IO, READ_ONLY, UNSUPPORTED, CLOSED, DEVICE_MISBEHAVED; an aborted
 * call rejects with the signal's reason.
 */
export interface Disk extends Attached {
  readonly kind: "disk";
  /** `vtbd0` */
  readonly name: string;
  /** Serial number; empty when the device has none. */
  readonly ident: string;
  /** Bytes. */
  readonly sectorSize: number;
  /** Bytes. */
  readonly mediaSize: number;
  readonly readOnly: boolean;
  read(position: number, into: Uint8Array, options?: TransferOptions): Promise<void>;
  write(position: number, from: Uint8Array, options?: TransferOptions): Promise<void>;
  /** Resolves when every write that resolved before is on stable storage. */
  flush(): Promise<void>;
  /** @throws UNSUPPORTED */
  discard(position: number, length: number): Promise<void>;
  /** @throws UNSUPPORTED */
  writeZeroes(position: number, length: number): Promise<void>;
}

// A SCSI command as a logical unit gets it, and what the unit answers (SAM-5).
import {
  type ScsiAsc,
  ScsiResponse,
  ScsiSense,
  ScsiSenseFormat,
  type ScsiSenseKey,
  ScsiStatus,
} from "@virtio/core/scsi";
import { get16, get32, put16, put32 } from "@virtio/packets";
import type { DeviceChain } from "@virtio/ring";

/** Bytes of a CDB that any command here has. */
export const CDB_SIZE = 16;

/** What became of a command. */
export interface ScsiReply {
  readonly response: ScsiResponse;
  readonly status: ScsiStatus;
  /** Empty, or sense data in fixed format. */
  readonly sense: Uint8Array;
  /** Bytes of data-out that were taken, and of data-in that were given. */
  readonly taken: number;
  readonly given: number;
}

/** A reply, now or later. It does not reject. */
export type ScsiOutcome = ScsiReply | Promise<ScsiReply>;

const noSense = new Uint8Array(0);

const nothing: ScsiReply = {
  response: ScsiResponse.OK,
  status: ScsiStatus.GOOD,
  sense: noSense,
  taken: 0,
  given: 0,
};

/** Done. `given`: bytes of data-in. */
export const good = (given = 0): ScsiReply => ({ ...nothing, given });

/** Done. `taken`: bytes of data-out. */
export const took = (taken: number): ScsiReply => ({ ...nothing, taken });

/** CHECK CONDITION with sense data. */
export const checkCondition = (key: ScsiSenseKey, asc: ScsiAsc, taken = 0): ScsiReply => ({
  ...nothing,
  status: ScsiStatus.CHECK_CONDITION,
  sense: fixedSense(key, asc),
  taken,
});

/** The command's end is not one of SCSI: it did not get to the unit, or back. */
export const responded = (response: ScsiResponse): ScsiReply => ({ ...nothing, response });

/** A status that has no sense data. */
export const ended = (status: ScsiStatus): ScsiReply => ({ ...nothing, status });

/** Sense data in fixed format (SPC-4 §4.5.3). */
export function fixedSense(key: ScsiSenseKey, asc: ScsiAsc): Uint8Array {
  const sense = new Uint8Array(ScsiSense.SIZE);
  sense[ScsiSense.RESPONSE_CODE] = ScsiSenseFormat.FIXED;
  sense[ScsiSense.KEY] = key;
  sense[ScsiSense.ADDITIONAL_LENGTH] = ScsiSense.SIZE - 1 - ScsiSense.ADDITIONAL_LENGTH;
  put16(sense, ScsiSense.ASC, asc);
  return sense;
}

/** One command: its CDB, a private copy, and its data, in guest memory. */
export class ScsiCommand {
  readonly cdb: Uint8Array;
  /** Bytes of data-out that there are, and of data-in that there is room for. */
  readonly dataOut: number;
  readonly dataIn: number;
  readonly #chain: DeviceChain;
  readonly #outAt: number;
  readonly #inAt: number;

  /**
   * @param cdb - CDB_SIZE bytes
   * @param outAt - where data-out begins in what can be read of the chain
   * @param inAt - where data-in begins in what can be written of it
   */
  constructor(cdb: Uint8Array, chain: DeviceChain, outAt: number, inAt: number) {
    this.cdb = cdb;
    this.dataOut = chain.readableLength - outAt;
    this.dataIn = chain.writableLength - inAt;
    this.#chain = chain;
    this.#outAt = outAt;
    this.#inAt = inAt;
  }

  get opcode(): number {
    return this.cdb[0] as number;
  }

  /** Byte `at` of the CDB. */
  byte(at: number): number {
    return this.cdb[at] as number;
  }

  word16(at: number): number {
    return get16(this.cdb, at);
  }

  word32(at: number): number {
    return get32(this.cdb, at);
  }

  /** Above 2^53 it is not exact, and beyond any medium. */
  word64(at: number): number {
    return get64(this.cdb, at);
  }

  /** Views of the first bytes of data-out. */
  outPieces(length: number): readonly Uint8Array[] {
    return this.#chain.readablePieces(this.#outAt, length);
  }

  /** Views of the first bytes of data-in. */
  inPieces(length: number): readonly Uint8Array[] {
    return this.#chain.writablePieces(this.#inAt, length);
  }

  /** Copies data-out into bytes `start` to `end` of `into`. */
  copyOut(into: Uint8Array, start: number = 0, end: number = into.length): void {
    this.#chain.read(this.#outAt, into, start, end);
  }

  /** Copies bytes `start` to `end` of `from` to data-in. */
  copyIn(from: Uint8Array, start: number = 0, end: number = from.length): void {
    this.#chain.write(this.#inAt, from, start, end);
  }

  /** Answers with as many of `bytes` as the CDB allows. */
  answer(bytes: Uint8Array, allocationLength: number): ScsiReply {
    const length = Math.min(bytes.length, allocationLength, this.dataIn);
    this.copyIn(bytes, 0, length);
    return good(length);
  }
}

/** A big-endian word of 64 bits; above 2^53 it is not exact. */
export const get64 = (bytes: Uint8Array, at: number): number =>
  get32(bytes, at) * 0x1_0000_0000 + get32(bytes, at + 4);

/** The same, written. */
export function put64(bytes: Uint8Array, at: number, value: number): void {
  put32(bytes, at, Math.floor(value / 0x1_0000_0000));
  put32(bytes, at + 4, value % 0x1_0000_0000);
}

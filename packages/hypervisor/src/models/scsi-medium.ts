// The medium of a SCSI disk: the commands that read and write blocks, over a backend (SBC-3).
import { ScsiAsc, ScsiOpcode, ScsiSenseKey } from "@virtio/core/scsi";
import { get16, get32 } from "@virtio/packets";
import type { BlockBackend } from "../block-backend.js";
import { transfer, transferZeroes } from "../transfer.js";
import {
  checkCondition,
  get64,
  good,
  type ScsiCommand,
  type ScsiOutcome,
  type ScsiReply,
  took,
} from "./scsi-command.js";
import type { ScsiModePages } from "./scsi-mode.js";

/** Bytes that are compared, or written with one pattern, at a time. */
const CHUNK = 1 << 16;
/** Blocks of READ (6) and WRITE (6) that say 0. */
const BLOCKS_OF_0 = 256;
/** Header and descriptors of UNMAP's parameter list. */
const UNMAP_HEADER_SIZE = 8;
const UNMAP_DESCRIPTOR_SIZE = 16;
/** Descriptors of one UNMAP, as the block limits page says. */
export const UNMAP_DESCRIPTORS_MAX = 255;

// Bits of byte 1 of a CDB, which mean something else in each command.
/** RDPROTECT, WRPROTECT, VRPROTECT: there is no protection information. */
const PROTECT = 0xe0;
/** READ, WRITE: past the cache. */
const FUA = 0x08;
/** VERIFY: compare with data-out; and one block with each. */
const BYTCHK = 0x02;
const BYTCHK_ONE_BLOCK = 0x04;
/** WRITE SAME: blocks of zeroes need not be kept. */
const SAME_UNMAP = 0x08;
/** WRITE SAME (16): the block is of zeroes, there is no data-out. */
const SAME_NDOB = 0x01;
/** WRITE SAME: WRPROTECT, ANCHOR, PBDATA, LBDATA. */
const SAME_UNKNOWN = 0xf6;
/** UNMAP. */
const UNMAP_ANCHOR = 0x01;

const invalidField = (): ScsiReply =>
  checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_FIELD_IN_CDB);
const outOfRange = (): ScsiReply =>
  checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.LBA_OUT_OF_RANGE);
const badList = (asc: ScsiAsc): ScsiReply => checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, asc);
const readFailed = (): ScsiReply =>
  checkCondition(ScsiSenseKey.MEDIUM_ERROR, ScsiAsc.UNRECOVERED_READ_ERROR);
const writeFailed = (): ScsiReply => checkCondition(ScsiSenseKey.MEDIUM_ERROR, ScsiAsc.WRITE_ERROR);

/** The first block that a CDB names; the length of a CDB is that of its operation code's group (SPC-4 §4.3.5). */
function lbaOf(command: ScsiCommand): number {
  switch (command.opcode >>> 5) {
    case 0:
      return command.word32(0) & 0x1f_ffff;
    case 4:
      return command.word64(2);
    default:
      return command.word32(2);
  }
}

/** Blocks that a CDB names. */
export function blocksOf(command: ScsiCommand): number {
  switch (command.opcode >>> 5) {
    case 0:
      return command.byte(4) || BLOCKS_OF_0;
    case 4:
      return command.word32(10);
    case 5:
      return command.word32(6);
    default:
      return command.word16(7);
  }
}

/** Blocks of data-out that VERIFY compares. */
export const comparedBlocks = (command: ScsiCommand): number =>
  (command.byte(1) & BYTCHK) === 0 ? 0 : blocksOf(command);

/** Blocks of data-out of WRITE SAME. */
export const sameBlocks = (command: ScsiCommand): number => (hasNoBlock(command) ? 0 : 1);

const hasNoBlock = (command: ScsiCommand): boolean =>
  command.opcode === ScsiOpcode.WRITE_SAME_16 && (command.byte(1) & SAME_NDOB) !== 0;

/** Whether bits of byte 1 are set that the 6-byte commands do not have. */
const has = (command: ScsiCommand, flags: number): boolean =>
  command.opcode >= 0x20 && (command.byte(1) & flags) !== 0;

/** Blocks over a backend. */
export class ScsiMedium {
  readonly backend: BlockBackend;
  /** Bytes, a power of two from 512 on. */
  readonly blockSize: number;
  readonly readOnly: boolean;

  readonly #modes: ScsiModePages;

  constructor(backend: BlockBackend, blockSize: number, readOnly: boolean, modes: ScsiModePages) {
    this.#modes = modes;
    this.backend = backend;
    this.blockSize = blockSize;
    this.readOnly = readOnly || backend.readOnly;
  }

  /** Blocks of the medium. */
  get blocks(): number {
    return Math.floor(this.backend.size / this.blockSize);
  }

  /** READ. */
  read(command: ScsiCommand): ScsiOutcome {
    const { backend, blockSize } = this;
    const lba = lbaOf(command);
    const blocks = blocksOf(command);
    if (has(command, PROTECT)) return invalidField();
    if (lba + blocks > this.blocks) return outOfRange();
    const length = blocks * blockSize;
    const at = lba * blockSize;
    const { content } = backend;
    if (content !== undefined) {
      command.copyIn(content, at, at + length);
      return good(length);
    }
    const done = transfer(at, command.inPieces(length), (from, rest) => backend.read(from, rest));
    return done === undefined ? good(length) : done.then(() => good(length), readFailed);
  }

  /** WRITE, with FUA to stable storage. */
  write(command: ScsiCommand): ScsiOutcome {
    const { backend, blockSize } = this;
    const lba = lbaOf(command);
    const blocks = blocksOf(command);
    if (has(command, PROTECT)) return invalidField();
    const refused = this.#unwritable(lba, blocks);
    if (refused !== null) return refused;
    const length = blocks * blockSize;
    const at = lba * blockSize;
    const forced = has(command, FUA);
    const { content } = backend;
    if (content === undefined) {
      const pieces = command.outPieces(length);
      const done = transfer(at, pieces, (from, rest) => backend.write(from, rest));
      return this.#written(done, length, forced);
    }
    command.copyOut(content, at, at + length);
    return this.#written(undefined, length, forced);
  }

  /** SYNCHRONIZE CACHE: all of it, whichever blocks it names. */
  synchronize(command: ScsiCommand): ScsiOutcome {
    if (lbaOf(command) + blocksOf(command) > this.blocks) return outOfRange();
    return this.#written(undefined, 0, true);
  }

  /** VERIFY: reads the blocks, and with BYTCHK compares them with data-out. */
  verify(command: ScsiCommand): ScsiOutcome {
    const lba = lbaOf(command);
    const blocks = blocksOf(command);
    if (has(command, PROTECT | BYTCHK_ONE_BLOCK)) return invalidField();
    if (lba + blocks > this.blocks) return outOfRange();
    const compared = comparedBlocks(command) * this.blockSize;
    return this.#compare(
      lba * this.blockSize,
      blocks * this.blockSize,
      command.outPieces(compared),
    );
  }

  /** @param expected - what is to be there; empty: anything */
  async #compare(at: number, length: number, expected: readonly Uint8Array[]): Promise<ScsiReply> {
    const chunk = new Uint8Array(CHUNK);
    const wanted = new Cursor(expected);
    for (let done = 0; done < length; done += CHUNK) {
      const part = chunk.subarray(0, length - done);
      try {
        await transfer(at + done, [part], (from, rest) => this.backend.read(from, rest));
      } catch {
        return readFailed();
      }
      if (expected.length > 0 && !wanted.equals(part))
        return checkCondition(ScsiSenseKey.MISCOMPARE, ScsiAsc.MISCOMPARE_DURING_VERIFY, length);
    }
    return took(expected.length > 0 ? length : 0);
  }

  /** WRITE SAME: one block all over, or, of zeroes and with UNMAP, none. */
  writeSame(command: ScsiCommand): ScsiOutcome {
    const { blockSize } = this;
    const lba = lbaOf(command);
    const blocks = blocksOf(command);
    // The block limits page says that 0 blocks are none (WSNZ).
    if (has(command, SAME_UNKNOWN) || blocks === 0) return invalidField();
    if (command.opcode === ScsiOpcode.WRITE_SAME_10 && has(command, SAME_NDOB))
      return invalidField();
    const refused = this.#unwritable(lba, blocks);
    if (refused !== null) return refused;
    const taken = sameBlocks(command) * blockSize;
    const block = new Uint8Array(blockSize);
    command.copyOut(block, 0, taken);
    const length = blocks * blockSize;
    const unmap = has(command, SAME_UNMAP);
    const done = block.every((byte) => byte === 0)
      ? this.#zero(lba * blockSize, length, unmap)
      : this.#repeat(lba * blockSize, length, block);
    return this.#written(done, taken, false);
  }

  #zero(at: number, length: number, unmap: boolean): Promise<void> | undefined {
    const { backend } = this;
    return backend.writeZeroes === undefined
      ? transferZeroes(backend, at, length)
      : backend.writeZeroes(at, length, unmap);
  }

  async #repeat(at: number, length: number, block: Uint8Array): Promise<void> {
    const chunk = new Uint8Array(Math.min(length, Math.max(CHUNK, block.length)));
    for (let i = 0; i < chunk.length; i += block.length) chunk.set(block, i);
    for (let done = 0; done < length; done += chunk.length)
      await transfer(at + done, [chunk.subarray(0, length - done)], (to, rest) =>
        this.backend.write(to, rest),
      );
  }

  /** UNMAP: every range is checked before the first is touched. */
  unmap(command: ScsiCommand): ScsiOutcome {
    const listLength = command.word16(7);
    if (has(command, UNMAP_ANCHOR)) return invalidField();
    if (this.readOnly) return this.#writeProtected();
    if (listLength === 0) return good();
    if (listLength < UNMAP_HEADER_SIZE) return badList(ScsiAsc.PARAMETER_LIST_LENGTH_ERROR);
    const list = new Uint8Array(listLength);
    command.copyOut(list);
    const described = get16(list, 2);
    const count = Math.floor(described / UNMAP_DESCRIPTOR_SIZE);
    if (described > listLength - UNMAP_HEADER_SIZE || count > UNMAP_DESCRIPTORS_MAX)
      return badList(ScsiAsc.INVALID_FIELD_IN_PARAMETER_LIST);
    const ranges = Array.from({ length: count }, (_, i) => {
      const at = UNMAP_HEADER_SIZE + i * UNMAP_DESCRIPTOR_SIZE;
      return { lba: get64(list, at), blocks: get32(list, at + 8) };
    });
    if (ranges.some(({ lba, blocks }) => lba + blocks > this.blocks)) return outOfRange();
    return this.#written(this.#discard(ranges), listLength, false);
  }

  async #discard(
    ranges: readonly { readonly lba: number; readonly blocks: number }[],
  ): Promise<void> {
    for (const { lba, blocks } of ranges)
      await this.backend.discard?.(lba * this.blockSize, blocks * this.blockSize);
  }

  /** Why these blocks cannot be written; null: they can. */
  #unwritable(lba: number, blocks: number): ScsiReply | null {
    if (this.readOnly) return this.#writeProtected();
    return lba + blocks > this.blocks ? outOfRange() : null;
  }

  #writeProtected(): ScsiReply {
    return checkCondition(ScsiSenseKey.DATA_PROTECT, ScsiAsc.WRITE_PROTECTED);
  }

  /** A write is over when it is done, and without a write cache, or where it is `forced`, when it is stable. */
  #written(done: Promise<void> | undefined, taken: number, forced: boolean): ScsiOutcome {
    const stable = forced || !this.#modes.writeCache;
    const flush = (): Promise<void> | undefined => (stable ? this.backend.flush() : undefined);
    const all = done === undefined ? flush() : done.then(flush);
    return all === undefined ? took(taken) : all.then(() => took(taken), writeFailed);
  }
}

/** Reads through scattered bytes. */
class Cursor {
  readonly #pieces: readonly Uint8Array[];
  #piece = 0;
  #at = 0;

  constructor(pieces: readonly Uint8Array[]) {
    this.#pieces = pieces;
  }

  /** Whether the next bytes are these. */
  equals(bytes: Uint8Array): boolean {
    for (const byte of bytes) {
      if (this.#at === this.#pieces[this.#piece]?.length) {
        this.#piece += 1;
        this.#at = 0;
      }
      if (this.#pieces[this.#piece]?.[this.#at] !== byte) return false;
      this.#at += 1;
    }
    return true;
  }
}

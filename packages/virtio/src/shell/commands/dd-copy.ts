// The copy loop of dd(1): reads run ahead, writes follow in order and overlap, memory is bounded.
import type { TaskQueue } from "@virtio/core";
import type { Sink, Source } from "./dd-ends.js";

/** Most bytes of one request: larger blocks are moved in pieces. A multiple of every sector size. */
const PIECE_MAX = 1 << 20;
/** Bytes in flight at most. */
const WINDOW_BYTES = 8 << 20;
/** Requests in flight at most. */
const WINDOW_PIECES = 64;

/** Milliseconds after which the machine, and with it Ctrl-C, get a turn: zeros to nowhere wait for nothing. */
const TURN = 20;

/** What to copy. All in bytes. */
export interface CopyPlan {
  readonly source: Source;
  readonly sink: Sink;
  /** Of the sink, and a multiple of both sector sizes. */
  readonly blockSize: number;
  /** Whether blocks of zeros are made by {@link Sink.zero}. */
  readonly sparse: boolean;
  /** Position in the source. */
  readonly from: number;
  /** Position in the sink. */
  readonly to: number;
  /** Bytes to read. */
  readonly data: number;
  /** Bytes to write: past `data` zeros. */
  readonly length: number;
}

/** How far a copy got: bytes from the start without a gap. */
export interface CopyCount {
  read: number;
  written: number;
}

/** What a copy works with. */
export interface CopyOptions {
  readonly tasks: TaskQueue;
  readonly signal: AbortSignal;
  /** Called after each piece. */
  readonly progress: () => void;
}

/**
 * Copies. A piece is written only after every byte before it was read, so that a read that fails leaves nothing behind it written;
 * nothing is under way any more when this returns or throws.
 * @param count - kept up to date, also when this throws.
 * @throws what a read or write throws, or the signal's reason
 */
export async function copy(
  plan: CopyPlan,
  count: CopyCount,
  { tasks, signal, progress }: CopyOptions,
): Promise<void> {
  signal.throwIfAborted();
  const { source, sink } = plan;
  const pieceSize = Math.min(plan.blockSize, PIECE_MAX);
  // A device copied onto itself must see its own writes: one piece after the other.
  const window =
    source.name === sink.name
      ? 1
      : Math.max(1, Math.min(WINDOW_PIECES, Math.floor(WINDOW_BYTES / pieceSize)));
  const failures: unknown[] = [];
  let next = 0;
  let allRead: Promise<unknown> = Promise.resolve();
  let allWritten: Promise<unknown> = Promise.resolve();

  let turn: Promise<void> = Promise.resolve();
  let turnAt = tasks.now();
  const breathe = (): Promise<void> => {
    if (tasks.now() - turnAt >= TURN) {
      turnAt = Number.POSITIVE_INFINITY;
      turn = new Promise((resolve) =>
        tasks.enqueue(() => {
          turnAt = tasks.now();
          resolve();
        }),
      );
    }
    return turn;
  };

  const movePiece = async (at: number, piece: Uint8Array): Promise<void> => {
    const data = Math.max(0, Math.min(piece.length, plan.data - at));
    piece.fill(0, data);
    const reading =
      data === 0 ? Promise.resolve() : source.read(plan.from + at, piece.subarray(0, data), signal);
    const read = Promise.all([allRead, reading]);
    allRead = read;
    await settled(read, reading);
    count.read += data;
    signal.throwIfAborted();
    const writing =
      plan.sparse && isZero(piece)
        ? sink.zero(plan.to + at, piece, signal)
        : sink.write(plan.to + at, piece, signal);
    const written = Promise.all([allWritten, writing]);
    allWritten = written;
    await settled(written, writing);
    count.written += piece.length;
    progress();
  };

  const lane = async (): Promise<void> => {
    const buffer = new Uint8Array(pieceSize);
    while (next < plan.length && failures.length === 0 && !signal.aborted) {
      const at = next;
      next += Math.min(pieceSize, plan.length - at);
      try {
        await movePiece(at, buffer.subarray(0, next - at));
      } catch (failure) {
        failures.push(failure);
      }
      await breathe();
    }
  };
  const lanes = Math.min(window, Math.ceil(plan.length / pieceSize));
  await Promise.all(Array.from({ length: lanes }, lane));
  if (failures.length > 0) throw failures[0];
  signal.throwIfAborted();
}

function isZero(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** Waits for `chain`, and when it fails also for the end of `own`, whose buffer the caller will use again. */
async function settled(chain: Promise<unknown>, own: Promise<unknown>): Promise<void> {
  try {
    await chain;
  } catch (failure) {
    await Promise.allSettled([own]);
    throw failure;
  }
}

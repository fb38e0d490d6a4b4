// Transfers between guest memory and a backend that may move less than it was asked.
import { VirtioFault } from "@virtio/core";
import type { BlockBackend } from "./block-backend.js";

/** Bytes of zeroes that are written at a time. */
const ZEROES = 1 << 20;

/** One of a backend's reads or writes: gives the bytes that it moved. */
type Step = (position: number, pieces: readonly Uint8Array[]) => Promise<number> | number;

/**
 * Every byte of the pieces, in as many steps as it takes; without waiting where there is nothing to wait for. Rejects where a step
 * moves nothing, or says that it moved more than there was.
 */
export function transfer(
  position: number,
  pieces: readonly Uint8Array[],
  step: Step,
): Promise<void> | undefined {
  const length = bytesOf(pieces);
  if (length === 0) return undefined;
  const moved = step(position, pieces);
  return moved === length ? undefined : whatIsLeft(moved, length, position, pieces, step);
}

async function whatIsLeft(
  first: Promise<number> | number,
  length: number,
  position: number,
  pieces: readonly Uint8Array[],
  step: Step,
): Promise<void> {
  let left = pieces;
  let moved = await first;
  let done = 0;
  for (;;) {
    if (!Number.isInteger(moved) || moved <= 0 || moved > length - done)
      throw new VirtioFault("IO", `the backend moved ${moved} of ${length - done} bytes`);
    done += moved;
    if (done === length) return;
    left = piecesFrom(left, moved);
    moved = await step(position + done, left);
  }
}

/** Zeroes for a backend that has none of its own. */
export async function transferZeroes(
  backend: BlockBackend,
  position: number,
  length: number,
): Promise<void> {
  const zeroes = new Uint8Array(Math.min(length, ZEROES));
  for (let done = 0; done < length; done += zeroes.length)
    await transfer(position + done, [zeroes.subarray(0, length - done)], (at, from) =>
      backend.write(at, from),
    );
}

export const bytesOf = (pieces: readonly Uint8Array[]): number =>
  pieces.reduce((sum, piece) => sum + piece.length, 0);

/** Scattered data without its first bytes. */
function piecesFrom(pieces: readonly Uint8Array[], start: number): readonly Uint8Array[] {
  let skip = start;
  return pieces.flatMap((piece) => {
    const cut = Math.min(skip, piece.length);
    skip -= cut;
    return cut === piece.length ? [] : [piece.subarray(cut)];
  });
}

// What stat says of a disk: a block device (stat(2)).
import { type BigIntStats, constants, type Stats } from "node:fs";
import type { Disk } from "@virtio/core";

const no = (): boolean => false;

/** A block device of nobody, in no file system, that has no times. */
const kind = {
  isFile: no,
  isDirectory: no,
  isBlockDevice: () => true,
  isCharacterDevice: no,
  isSymbolicLink: no,
  isFIFO: no,
  isSocket: no,
};

/** `size` is the media's, `blksize` the device's own block, of which transfers are best multiples. */
export function statsOf({ mediaSize, sectorSize, stripeSize, readOnly }: Disk): Stats {
  const never = new Date(0);
  return {
    ...kind,
    ...{ dev: 0, ino: 0, nlink: 1, uid: 0, gid: 0, rdev: 0 },
    mode: constants.S_IFBLK | (readOnly ? 0o400 : 0o600),
    size: mediaSize,
    blksize: stripeSize === 0 ? sectorSize : stripeSize,
    blocks: mediaSize / 512,
    ...{ atimeMs: 0, mtimeMs: 0, ctimeMs: 0, birthtimeMs: 0 },
    ...{ atime: never, mtime: never, ctime: never, birthtime: never },
  };
}

/** The same in bigints. */
export function bigIntStatsOf(disk: Disk): BigIntStats {
  const { mode, size, blksize, blocks, ...rest } = statsOf(disk);
  return {
    ...rest,
    ...{ dev: 0n, ino: 0n, nlink: 1n, uid: 0n, gid: 0n, rdev: 0n },
    mode: BigInt(mode),
    size: BigInt(size),
    blksize: BigInt(blksize),
    blocks: BigInt(blocks),
    ...{ atimeMs: 0n, mtimeMs: 0n, ctimeMs: 0n, birthtimeMs: 0n },
    ...{ atimeNs: 0n, mtimeNs: 0n, ctimeNs: 0n, birthtimeNs: 0n },
  };
}

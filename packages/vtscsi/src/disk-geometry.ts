// What a SCSI disk says of itself, checked (SBC-3: READ CAPACITY, MODE SENSE, VPD pages B0 and B2).
import { VirtioFault } from "@virtio/core";
import { ScsiPeripheral, ScsiVpd } from "@virtio/core/scsi";
import type { RangeLimits } from "@virtio/storage";
import {
  type Capacity,
  type Modes,
  modes,
  readCapacity,
  refusesSync,
  vitalProductData,
} from "./commands.js";
import type { Found } from "./scan.js";
import type { Sim } from "./sim.js";

/** Block sizes of disks. */
const BLOCK_SIZE_MIN = 512;
const BLOCK_SIZE_MAX = 65536;
const CD_BLOCK_SIZE = 2048;
/** Physical blocks of more than 2^16 bytes are no disk's: nothing is said of them. */
const STRIPE_MAX = 1 << 20;
/** Most blocks of a WRITE SAME where the disk does not say: 16 bits' worth. */
const WRITE_SAME_MAX = 0xffff;
/** Most where it does: 4 GiB of the smallest blocks, which no disk takes a minute for. */
const WRITE_SAME_16_MAX = 0x7f_ffff;
/** Most blocks that one command can name. */
const BLOCKS_MAX = 0xffff_ffff;

/** Fields of the block limits page without its header (SBC-3 §6.6.4): offsets, be32 unless said otherwise. */
enum BlockLimits {
  MAX_TRANSFER = 4,
  MAX_UNMAP_BLOCKS = 16,
  MAX_UNMAP_DESCRIPTORS = 20,
  UNMAP_GRANULARITY = 24,
  /** be64 */
  MAX_WRITE_SAME = 32,
}

/** Bits of the second byte of the logical block provisioning page without its header (SBC-3 §6.6.5). */
enum Provisioning {
  /** UNMAP */
  LBPU = 0x80,
  /** WRITE SAME(16) unmaps */
  LBPWS = 0x40,
  /** what is unmapped reads as zeroes: one of three bits */
  LBPRZ = 0x1c,
}

/** How a disk takes what BIO_DELETE asks for. */
export enum DeleteMethod {
  UNMAP,
  WRITE_SAME,
}

/** How a disk makes writes stable. */
export enum FlushMethod {
  /** Every write is. */
  NONE,
  SYNCHRONIZE_CACHE,
  /** It has no such command: each write is marked (FUA). */
  FUA,
}

/** Bytes, but for `blockSize`'s own. */
export interface DiskGeometry {
  readonly sectorSize: number;
  readonly mediaSize: number;
  readonly stripeSize: number;
  readonly stripeOffset: number;
  readonly maxTransfer: number;
  readonly readOnly: boolean;
  readonly flush: FlushMethod;
  readonly discard: RangeLimits | null;
  readonly deleteMethod: DeleteMethod;
  readonly writeZeroes: RangeLimits | null;
  /** A write of zeroes may give space back: what it leaves reads as zeroes all the same. */
  readonly mayUnmap: boolean;
}

/** @throws VirtioFault what the unit says, DEVICE_MISBEHAVED (it is no disk's), UNSUPPORTED (larger than 2^53 bytes) */
export async function readDiskGeometry(sim: Sim, found: Found): Promise<DiskGeometry> {
  const { unit, pages } = found;
  const capacity = await capacityOf(sim, found);
  const mode = await modes(sim, unit);
  const page = async (code: ScsiVpd): Promise<DataView> => {
    const bytes = pages.has(code) ? await vitalProductData(sim, unit, code) : new Uint8Array(0);
    // Fields that the page is too short for are zero: not said.
    const whole = new Uint8Array(64);
    whole.set(bytes.subarray(0, whole.length));
    return new DataView(whole.buffer);
  };
  const limits = await page(ScsiVpd.BLOCK_LIMITS);
  const provisioning = (await page(ScsiVpd.LOGICAL_BLOCK_PROVISIONING)).getUint8(1);
  const { blockSize } = capacity;
  const has = (bits: Provisioning): boolean => (provisioning & bits) !== 0;
  const most = limits.getUint32(BlockLimits.MAX_TRANSFER) || BLOCKS_MAX;
  const maxTransfer = Math.floor(Math.min(sim.host.maxTransfer, most * blockSize) / blockSize);
  if (maxTransfer < 1)
    throw new VirtioFault("UNSUPPORTED", `a command cannot move a block of ${blockSize} bytes`);
  const readOnly = mode.writeProtected || found.inquiry.type === ScsiPeripheral.CD_ROM;
  const unmaps = capacity.thin && unmapLimits(limits, has(Provisioning.LBPU));
  const same = writeSameLimits(limits, has(Provisioning.LBPWS));
  const bytes = ({ max, align }: RangeLimits): RangeLimits => ({
    max: max * blockSize,
    align: align * blockSize,
  });
  return {
    sectorSize: blockSize,
    mediaSize: capacity.blocks * blockSize,
    ...stripe(capacity),
    maxTransfer: maxTransfer * blockSize,
    readOnly,
    flush: readOnly ? FlushMethod.NONE : await flushMethod(sim, found, mode),
    discard: unmaps
      ? bytes(unmaps)
      : capacity.thin && same !== null && has(Provisioning.LBPWS)
        ? bytes(same)
        : null,
    deleteMethod: unmaps ? DeleteMethod.UNMAP : DeleteMethod.WRITE_SAME,
    writeZeroes: same === null ? null : bytes(same),
    mayUnmap: has(Provisioning.LBPWS) && (capacity.readsZeroes || has(Provisioning.LBPRZ)),
  };
}

/** Of a drive without a medium nothing. @throws VirtioFault */
async function capacityOf(sim: Sim, { unit, inquiry }: Found): Promise<Capacity> {
  try {
    return checkedCapacity(await readCapacity(sim, unit));
  } catch (fault) {
    if (!inquiry.removable || !(fault instanceof VirtioFault && fault.code === "IO")) throw fault;
    return {
      blocks: 0,
      blockSize: inquiry.type === ScsiPeripheral.CD_ROM ? CD_BLOCK_SIZE : BLOCK_SIZE_MIN,
      physicalExponent: 0,
      lowestAligned: 0,
      thin: false,
      readsZeroes: false,
    };
  }
}

/** @throws VirtioFault DEVICE_MISBEHAVED */
export function checkedCapacity(capacity: Capacity): Capacity {
  const { blocks, blockSize } = capacity;
  if (
    blockSize < BLOCK_SIZE_MIN ||
    blockSize > BLOCK_SIZE_MAX ||
    (blockSize & (blockSize - 1)) !== 0
  )
    throw new VirtioFault(
      "DEVICE_MISBEHAVED",
      `device misbehaved: its blocks have ${blockSize} bytes`,
    );
  if (!Number.isSafeInteger(blocks * blockSize))
    throw new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: it has ${blocks} blocks`);
  return capacity;
}

/** In blocks. */
function unmapLimits(limits: DataView, offered: boolean): RangeLimits | null {
  const max = limits.getUint32(BlockLimits.MAX_UNMAP_BLOCKS);
  const descriptors = limits.getUint32(BlockLimits.MAX_UNMAP_DESCRIPTORS);
  if (!offered || max === 0 || descriptors === 0) return null;
  return { max, align: limits.getUint32(BlockLimits.UNMAP_GRANULARITY) };
}

/** In blocks. */
function writeSameLimits(limits: DataView, offered: boolean): RangeLimits | null {
  const high = limits.getUint32(BlockLimits.MAX_WRITE_SAME);
  const low = limits.getUint32(BlockLimits.MAX_WRITE_SAME + 4);
  if (high === 0 && low === 0) return offered ? { max: WRITE_SAME_MAX, align: 0 } : null;
  return { max: high > 0 ? WRITE_SAME_16_MAX : Math.min(low, WRITE_SAME_16_MAX), align: 0 };
}

/** FreeBSD's formula: the first physical block that is whole begins LOWEST ALIGNED blocks in. */
function stripe({
  blockSize,
  physicalExponent,
  lowestAligned,
}: Capacity): Pick<DiskGeometry, "stripeSize" | "stripeOffset"> {
  const stripeSize = blockSize * 2 ** physicalExponent;
  if (physicalExponent === 0 || stripeSize > STRIPE_MAX) return { stripeSize: 0, stripeOffset: 0 };
  const before = (lowestAligned * blockSize) % stripeSize;
  return { stripeSize, stripeOffset: (stripeSize - before) % stripeSize };
}

async function flushMethod(sim: Sim, { unit }: Found, mode: Modes): Promise<FlushMethod> {
  if (!mode.writeCache) return FlushMethod.NONE;
  if (mode.fua && (await refusesSync(sim, unit))) return FlushMethod.FUA;
  return FlushMethod.SYNCHRONIZE_CACHE;
}

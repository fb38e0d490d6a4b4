// Rules that a block device sees in requests: virtio 1.4 §5.2.6.1, §5.2.6.3, §5.2.6.4.
import { DeviceType } from "@virtio/core";
import {
  BLOCK_HEADER_SIZE,
  BLOCK_ID_SIZE,
  BLOCK_RANGE_SIZE,
  BlockFeature,
  BlockRequestType,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { DeviceChain } from "@virtio/ring";
import type { RuleBook } from "./rule-book.js";

/** One request as the device read it. */
export interface BlockRequest {
  readonly type: number;
  /** Low and high word. */
  readonly sectorLow: number;
  readonly sectorHigh: number;
  /** Bytes between header and status: readable for writes, writable for reads. */
  readonly dataOut: number;
  readonly dataIn: number;
}

const ranged: readonly number[] = [
  BlockRequestType.DISCARD,
  BlockRequestType.WRITE_ZEROES,
  BlockRequestType.SECURE_ERASE,
];

/** Looks at one request. */
export function checkBlockRequest(
  book: RuleBook,
  device: string,
  request: BlockRequest,
  capacity: number,
): void {
  const { type, sectorLow, sectorHigh, dataOut, dataIn } = request;
  const sector = sectorHigh * 0x1_0000_0000 + sectorLow;
  const check = (clause: string, kept: boolean, what: () => string): void =>
    book.check(clause, kept, device, what);
  if (type === BlockRequestType.IN || type === BlockRequestType.OUT) {
    const length = type === BlockRequestType.IN ? dataIn : dataOut;
    check(
      "BLK-OP-6",
      length % SECTOR_SIZE === 0,
      () => `request type ${type} with ${length} bytes of data`,
    );
    const end = sector + Math.ceil(length / SECTOR_SIZE);
    check(
      "BLK-OP-2",
      end <= capacity,
      () => `request type ${type} to sector ${end} of ${capacity}`,
    );
  }
  if (type === BlockRequestType.FLUSH) {
    check("BLK-OP-4", sector === 0, () => `flush of sector ${sector}`);
    check(
      "BLK-OP-5",
      dataOut === 0 && dataIn === 0,
      () => `flush with ${dataOut + dataIn} bytes of data`,
    );
  }
  if (type === BlockRequestType.GET_ID)
    check("BLK-OP-8", dataIn === BLOCK_ID_SIZE, () => `GET_ID with ${dataIn} bytes`);
  if (ranged.includes(type))
    check(
      "BLK-OP-7",
      dataOut % BLOCK_RANGE_SIZE === 0,
      () => `request type ${type} with ${dataOut} bytes`,
    );
}

/** Feature that gates each configuration field by its offset (virtio 1.4 §5.2.4). */
export const blockConfigGates: readonly (readonly [
  from: number,
  to: number,
  feature: BlockFeature,
])[] = [
  [8, 12, BlockFeature.SIZE_MAX],
  [12, 16, BlockFeature.SEG_MAX],
  [16, 20, BlockFeature.GEOMETRY],
  [20, 24, BlockFeature.BLK_SIZE],
  [24, 32, BlockFeature.TOPOLOGY],
  [32, 33, BlockFeature.CONFIG_WCE],
  [34, 36, BlockFeature.MQ],
  [36, 48, BlockFeature.DISCARD],
  [48, 57, BlockFeature.WRITE_ZEROES],
  [60, 72, BlockFeature.SECURE_ERASE],
  [72, 93, BlockFeature.ZONED],
];

/** Bytes at the start of each type's configuration that change while they are read, and that no generation guards (§2.5.4): `capacity`. */
export const racyConfigLength: ReadonlyMap<DeviceType, number> = new Map([[DeviceType.BLOCK, 8]]);

const requestTypes: readonly unknown[] = Object.values(BlockRequestType);

/**
 * Looks at one chain of a legacy driver: words in the guest's byte order, which is this host's, and without ANY_LAYOUT a header and a
 * status of their own.
 */
export function checkLegacyBlockChain(
  check: (clause: string, kept: boolean, what: () => string) => void,
  chain: DeviceChain,
  anyLayout: boolean,
): void {
  const header = new DataView(new ArrayBuffer(BLOCK_HEADER_SIZE));
  chain.read(0, new Uint8Array(header.buffer));
  const swapped = header.getUint32(0, false);
  check(
    "BLK-OP-LEGACY-1",
    requestTypes.includes(header.getUint32(0, true)) || !requestTypes.includes(swapped),
    () => `request type ${swapped} is in the other byte order`,
  );
  if (anyLayout) return;
  const { readableLength, writableLength } = chain;
  const [first] = chain.readablePieces(0, readableLength);
  const last = chain.writablePieces(0, writableLength).at(-1);
  check(
    "BLK-FRAME-LEGACY-1",
    first?.length === BLOCK_HEADER_SIZE && last?.length === 1,
    () => `header in ${first?.length ?? 0} bytes, status in ${last?.length ?? 0} (no ANY_LAYOUT)`,
  );
}

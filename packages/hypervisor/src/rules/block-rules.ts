// Rules that a block device sees in requests: virtio 1.4 §5.2.6.1, §5.2.6.3, §5.2.6.4.
import { DeviceType } from "@virtio/core";
import {
  BLOCK_HEADER_SIZE,
  BLOCK_ID_SIZE,
  BLOCK_RANGE_SIZE,
  BlockConfig,
  BlockFeature,
  BlockRangeFlag,
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
  /** Flags of all its ranges, if it names ranges. */
  readonly rangeFlags: number;
}

/** Requests that name ranges, and the clause that bounds how many. */
const ranged = new Map<number, string>([
  [BlockRequestType.DISCARD, "BLK-OP-9"],
  [BlockRequestType.SECURE_ERASE, "BLK-OP-10"],
  [BlockRequestType.WRITE_ZEROES, "BLK-OP-11"],
]);

/**
 * Looks at one request.
 * @param capacity - sectors that the driver may take the disk to have
 * @param maxSegments - the device's limit for a request of this type; 0 where it has none
 */
export function checkBlockRequest(
  book: RuleBook,
  device: string,
  request: BlockRequest,
  capacity: number,
  maxSegments: number,
): void {
  const { type, sectorLow, sectorHigh, dataOut, dataIn, rangeFlags } = request;
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
  const bound = ranged.get(type);
  if (bound === undefined) return;
  check(
    "BLK-OP-7",
    dataOut % BLOCK_RANGE_SIZE === 0,
    () => `request type ${type} with ${dataOut} bytes`,
  );
  const segments = Math.ceil(dataOut / BLOCK_RANGE_SIZE);
  check(
    bound,
    maxSegments === 0 || segments <= maxSegments,
    () => `request type ${type} with ${segments} segments of ${maxSegments}`,
  );
  if (type === BlockRequestType.DISCARD)
    check("BLK-OP-14", (rangeFlags & BlockRangeFlag.UNMAP) === 0, () => "discard with unmap");
}

/** Looks at one write to the configuration. `writable`: whether the driver may switch the cache mode. */
export function checkWriteback(
  book: RuleBook,
  device: string,
  offset: number,
  value: number,
  writable: boolean,
): void {
  if (offset !== BlockConfig.writeback[0]) return;
  book.check(
    "BLK-OP-12",
    writable && (value === 0 || value === 1),
    device,
    () => `${value} written to writeback${writable ? "" : " without CONFIG_WCE"}`,
  );
}

/** Watches what a driver makes of a capacity that changes (§5.2.6.1). */
export class CapacityRules {
  readonly #book: RuleBook;
  readonly #device: string;
  #capacity: number;
  /** By queue: what requests in it may still take the capacity for. */
  readonly #known: number[];
  /** The driver was told of a change, and did not read the capacity since. */
  #unread = false;
  /** All that was asked for before the change is over, in some queue. */
  #settled = false;
  /** And there were requests after that. */
  #wentOn = false;

  constructor(book: RuleBook, device: string, queues: number, capacity: number) {
    this.#book = book;
    this.#device = device;
    this.#capacity = capacity;
    this.#known = Array.from({ length: queues }, () => capacity);
  }

  /** Sectors that requests in this queue may take the disk to have. */
  known(queue: number): number {
    return this.#known[queue] ?? 0;
  }

  /** `told`: whether the driver gets a notification of it. */
  changed(capacity: number, told: boolean): void {
    this.#end();
    this.#capacity = capacity;
    for (const [queue, known] of this.#known.entries())
      this.#known[queue] = Math.max(known, capacity);
    this.#unread = told;
  }

  configRead(offset: number): void {
    if (!this.#unread || offset >= CAPACITY_LENGTH) return;
    this.#unread = false;
    this.#book.check("BLK-OP-1", true, this.#device, () => "");
  }

  /** A request was taken. */
  taken(): void {
    this.#wentOn ||= this.#unread && this.#settled;
  }

  /** This queue was found empty. */
  idle(queue: number): void {
    if (this.#unread) this.#settled = true;
    else this.#known[queue] = this.#capacity;
  }

  /** The device was reset. */
  reset(): void {
    this.#end();
    this.#known.fill(this.#capacity);
  }

  #end(): void {
    if (this.#unread && this.#wentOn)
      this.#book.broken(
        "BLK-OP-1",
        this.#device,
        "capacity was not read after a change, and requests went on",
      );
    this.#unread = false;
    this.#settled = false;
    this.#wentOn = false;
  }
}

/** Feature that gates each configuration field by its offset (virtio 1.4 §5.2.4). */
const blockConfigGates: readonly (readonly [from: number, to: number, feature: BlockFeature])[] = [
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

/** Feature that gates a configuration offset; undefined: always there. */
export const blockConfigGate = (offset: number): BlockFeature | undefined =>
  blockConfigGates.find(([from, to]) => offset >= from && offset < to)?.[2];

/** Bytes of `capacity`, the first field. */
const CAPACITY_LENGTH = 8;

/**
 * Bytes at the start of each type's configuration that change while they are read, and that no generation guards (§2.5.4): `capacity`;
 * a console's `cols` and `rows`.
 */
export const racyConfigLength: ReadonlyMap<DeviceType, number> = new Map([
  [DeviceType.BLOCK, CAPACITY_LENGTH],
  [DeviceType.CONSOLE, 4],
]);

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

// The commands of a block device over a backend (virtio 1.4 §5.2.6), written from the device clauses.
import {
  BLOCK_APPEND_SECTOR_SIZE,
  BLOCK_BARRIER,
  BLOCK_HEADER_SIZE,
  BLOCK_ID_SIZE,
  BLOCK_LIFETIME_SIZE,
  BLOCK_RANGE_SIZE,
  type BlockConfigField,
  BlockFeature,
  BlockRangeFlag,
  BlockRequestType,
  BlockStatus,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { DeviceChain } from "@virtio/ring";
import type { BlockBackend } from "../block-backend.js";
import type { ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";
import { checkBlockRequest } from "../rules/block-rules.js";
import { checkZoneRequest } from "../rules/zone-rules.js";
import { transfer, transferZeroes } from "../transfer.js";
import type { BlockCharacteristics, BlockConfiguration } from "./block-config.js";
import { Zones } from "./zones.js";

/** Legacy name of FLUSH: `VIRTIO_BLK_T_FLUSH_OUT` (§5.2.6.3). */
const FLUSH_OUT = 5;

/** Words of the request header (§5.2.6). */
enum Header {
  TYPE = 0,
  SECTOR_LOW = 2,
  SECTOR_HIGH = 3,
}

/** Words of a range (§5.2.6). */
enum Range {
  SECTOR_LOW = 0,
  SECTOR_HIGH = 1,
  SECTORS = 2,
  FLAGS = 3,
  SIZE = 4,
}

/** What a request that names ranges needs, is bounded by, and may say. */
interface RangedCommand {
  readonly feature: BlockFeature;
  readonly maxSectors: BlockConfigField;
  readonly maxSegments: BlockConfigField;
  readonly flags: number;
}

const rangedCommands: ReadonlyMap<number, RangedCommand> = new Map([
  [
    BlockRequestType.DISCARD,
    {
      feature: BlockFeature.DISCARD,
      maxSectors: "maxDiscardSectors",
      maxSegments: "maxDiscardSeg",
      flags: 0,
    },
  ],
  [
    BlockRequestType.WRITE_ZEROES,
    {
      feature: BlockFeature.WRITE_ZEROES,
      maxSectors: "maxWriteZeroesSectors",
      maxSegments: "maxWriteZeroesSeg",
      flags: BlockRangeFlag.UNMAP,
    },
  ],
  [
    BlockRequestType.SECURE_ERASE,
    {
      feature: BlockFeature.SECURE_ERASE,
      maxSectors: "maxSecureEraseSectors",
      maxSegments: "maxSecureEraseSeg",
      flags: 0,
    },
  ],
]);

/** A status, or the backend's work: done means OK, a rejection IOERR. */
export type Outcome = BlockStatus | Promise<void>;

/** SECTOR_SIZE as a shift. */
const SECTOR_SHIFT = 9;

/** What executes the commands of one device. */
export class BlockCommands {
  readonly #name: string;
  readonly #backend: BlockBackend;
  readonly #configuration: BlockConfiguration;
  readonly #id = new Uint8Array(BLOCK_ID_SIZE);
  readonly #lifetime = new Uint8Array(BLOCK_LIFETIME_SIZE);
  readonly #blockSize: number;
  /** Null: there are none, or none that show. */
  readonly #zones: Zones | null;
  /** With SIZE_MAX offered; else there is no bound. */
  readonly #sizeMax: number;
  readonly #bounded: boolean;
  /** The header of the request that is executed: bytes, and the same as words. */
  readonly #header = new Uint8Array(BLOCK_HEADER_SIZE);
  readonly #words: Uint32Array;

  /** @param serial - at most 20 bytes of ASCII */
  constructor(
    name: string,
    backend: BlockBackend,
    configuration: BlockConfiguration,
    serial: string,
    { blockSize = SECTOR_SIZE, lifetime, zoned }: BlockCharacteristics,
  ) {
    this.#name = name;
    this.#backend = backend;
    this.#configuration = configuration;
    this.#blockSize = blockSize;
    this.#zones =
      zoned === undefined || zoned.model === "none"
        ? null
        : new Zones(
            zoned,
            configuration.field("writeGranularity"),
            configuration.field("maxAppendSectors"),
            () => backend.size / SECTOR_SIZE,
          );
    this.#sizeMax = configuration.field("sizeMax") || Number.POSITIVE_INFINITY;
    this.#bounded = this.#sizeMax < Number.POSITIVE_INFINITY;
    this.#words = new Uint32Array(this.#header.buffer);
    new TextEncoder().encodeInto(serial, this.#id);
    const { preEolInfo = 1, estTypA = 1, estTypB = 1 } = lifetime ?? {};
    const answer = new DataView(this.#lifetime.buffer);
    for (const [i, value] of [preEolInfo, estTypA, estTypB].entries())
      answer.setUint16(i * 2, value, true);
  }

  /** With BARRIER: whether everything before this request is to be over before it starts, and it before everything after (§5.2.6.3). */
  isBarrier(chain: DeviceChain): boolean {
    if (chain.read(0, this.#header) < BLOCK_HEADER_SIZE) return false;
    return ((this.#words[Header.TYPE] as number) & BLOCK_BARRIER) !== 0;
  }

  /**
   * 16 bytes of header, data, one byte of status, cut into segments in any way (§2.7.4, §5.2.6).
   * @param known - sectors that the driver may take the disk to have, for the rules
   */
  execute(host: ModelHost, chain: DeviceChain, known: number): Outcome {
    const words = this.#words;
    const backend = this.#backend;
    if (chain.read(0, this.#header) < BLOCK_HEADER_SIZE) return BlockStatus.IOERR;
    const barrier = hasBit(host.features, BlockFeature.BARRIER) ? BLOCK_BARRIER : 0;
    const type = ((words[Header.TYPE] as number) & ~barrier) >>> 0;
    const sectorLow = words[Header.SECTOR_LOW] as number;
    const sectorHigh = words[Header.SECTOR_HIGH] as number;
    const dataOut = chain.readableLength - BLOCK_HEADER_SIZE;
    const dataIn = chain.writableLength - 1;
    const sector = sectorHigh * 0x1_0000_0000 + sectorLow;
    // Most are reads and writes, the first two types: those name no ranges.
    const ranged = type <= BlockRequestType.OUT ? undefined : rangedCommands.get(type);
    const ranges = ranged === undefined ? noRanges : this.#ranges(chain, dataOut, ranged);
    const zones = this.#zones;
    const zoned = zones !== null && hasBit(host.features, BlockFeature.ZONED);
    if (host.rules !== null) {
      const rangeFlags = flagsOf(ranges);
      const request = { type, sectorLow, sectorHigh, dataOut, dataIn, rangeFlags };
      const maxSegments = ranged === undefined ? 0 : this.#configuration.field(ranged.maxSegments);
      checkBlockRequest(host.rules, this.#name, request, known, maxSegments);
      if (zoned) checkZoneRequest(host.rules, this.#name, request, known, zones);
    }
    if (ranged !== undefined) return this.#executeRanged(host, type, ranged, ranges, dataOut);

    switch (type) {
      case BlockRequestType.IN:
        if (!this.#fits(sector, dataIn)) return BlockStatus.IOERR;
        if (zones !== null) return this.#readZones(zones, chain, sector, dataIn);
        return this.#read(chain, sector * SECTOR_SIZE, dataIn);
      case BlockRequestType.OUT:
        // A read-only device writes nothing (§5.2.6.2).
        if (backend.readOnly || !this.#fits(sector, dataOut)) return BlockStatus.IOERR;
        if (zones !== null) {
          const status = zones.write(sector, dataOut / SECTOR_SIZE, zoned);
          if (status !== BlockStatus.OK) return status;
        }
        return this.#write(chain, sector * SECTOR_SIZE, dataOut);
      case FLUSH_OUT:
        if (this.#configuration.modern) return BlockStatus.UNSUPP;
        return backend.flush() ?? BlockStatus.OK;
      case BlockRequestType.FLUSH:
        return backend.flush() ?? BlockStatus.OK;
      case BlockRequestType.GET_ID:
        chain.write(0, this.#id.subarray(0, Math.min(dataIn, BLOCK_ID_SIZE)));
        return BlockStatus.OK;
      case BlockRequestType.GET_LIFETIME:
        if (!hasBit(host.features, BlockFeature.LIFETIME)) return BlockStatus.UNSUPP;
        if (dataIn < BLOCK_LIFETIME_SIZE) return BlockStatus.IOERR;
        chain.write(0, this.#lifetime);
        return BlockStatus.OK;
      default:
        if (!zoned || BlockRequestType[type] === undefined) return BlockStatus.UNSUPP;
        return this.#zoned(zones, chain, type, sector);
    }
  }

  /** What was not written since its zone was emptied reads as zeroes. */
  #readZones(zones: Zones, chain: DeviceChain, sector: number, length: number): Outcome {
    const status = zones.read(sector, length / SECTOR_SIZE);
    if (status !== BlockStatus.OK) return status;
    const gaps = zones
      .unwritten(sector, length / SECTOR_SIZE)
      .flatMap(([from, to]) =>
        chain.writablePieces((from - sector) * SECTOR_SIZE, (to - from) * SECTOR_SIZE),
      );
    const clear = (): void => {
      for (const gap of gaps) gap.fill(0);
    };
    const outcome = this.#read(chain, sector * SECTOR_SIZE, length);
    if (outcome instanceof Promise) return outcome.then(clear);
    clear();
    return outcome;
  }

  /** A request about zones (§5.2.6). */
  #zoned(zones: Zones, chain: DeviceChain, type: BlockRequestType, sector: number): Outcome {
    const dataIn = chain.writableLength - 1;
    if (type === BlockRequestType.ZONE_REPORT) {
      const report = zones.report(sector, dataIn);
      if (report === null) return BlockStatus.ZONE_INVALID_CMD;
      chain.fill(0, dataIn);
      chain.write(0, report);
      return BlockStatus.OK;
    }
    if (this.#backend.readOnly) return BlockStatus.IOERR;
    if (type !== BlockRequestType.ZONE_APPEND) return zones.manage(type, sector);
    const length = chain.readableLength - BLOCK_HEADER_SIZE;
    if (dataIn < BLOCK_APPEND_SECTOR_SIZE || length % this.#blockSize !== 0)
      return BlockStatus.IOERR;
    const { status, at } = zones.append(sector, length / SECTOR_SIZE);
    if (status !== BlockStatus.OK) return status;
    const answer = (): void => {
      const words = Uint32Array.of(at, at / 0x1_0000_0000);
      chain.write(0, new Uint8Array(words.buffer));
    };
    const outcome = this.#write(chain, at * SECTOR_SIZE, length);
    if (outcome instanceof Promise) return outcome.then(answer);
    answer();
    return outcome;
  }

  #read(chain: DeviceChain, position: number, length: number): Outcome {
    const { content } = this.#backend;
    if (content !== undefined && !this.#bounded) {
      chain.write(0, content, position, position + length);
      return BlockStatus.OK;
    }
    const into = chain.writablePieces(0, length);
    if (this.#oversize(into)) return BlockStatus.IOERR;
    return transfer(position, into, (at, rest) => this.#backend.read(at, rest)) ?? BlockStatus.OK;
  }

  #write(chain: DeviceChain, position: number, length: number): Outcome {
    const { content } = this.#backend;
    if (content !== undefined && !this.#bounded) {
      chain.read(BLOCK_HEADER_SIZE, content, position, position + length);
      return this.#written(undefined) ?? BlockStatus.OK;
    }
    const from = chain.readablePieces(BLOCK_HEADER_SIZE, length);
    if (this.#oversize(from)) return BlockStatus.IOERR;
    const done = transfer(position, from, (at, rest) => this.#backend.write(at, rest));
    return this.#written(done) ?? BlockStatus.OK;
  }

  /** The ranges of a request, a private copy: what is checked is what is done. No more than the device takes. */
  #ranges(chain: DeviceChain, dataOut: number, { maxSegments }: RangedCommand): Uint32Array {
    const count = Math.floor(dataOut / BLOCK_RANGE_SIZE);
    const ranges = new Uint32Array(
      Range.SIZE * Math.min(count, this.#configuration.field(maxSegments)),
    );
    chain.read(BLOCK_HEADER_SIZE, new Uint8Array(ranges.buffer));
    return ranges;
  }

  /** Every range is checked before the first is touched. */
  #executeRanged(
    host: ModelHost,
    type: number,
    { feature, maxSectors, flags }: RangedCommand,
    ranges: Uint32Array,
    dataOut: number,
  ): Outcome {
    if (!hasBit(host.features, feature)) return BlockStatus.UNSUPP;
    // §5.2.6.2: unknown flags, and unmap where it says nothing.
    if ((flagsOf(ranges) & ~flags) !== 0) return BlockStatus.UNSUPP;
    if (this.#backend.readOnly || dataOut !== ranges.byteLength) return BlockStatus.IOERR;
    const most = this.#configuration.field(maxSectors);
    const work: (() => Promise<void> | undefined)[] = [];
    for (let at = 0; at < ranges.length; at += Range.SIZE) {
      const [low = 0, high = 0, sectors = 0, flag = 0] = ranges.subarray(at, at + Range.SIZE);
      const sector = high * 0x1_0000_0000 + low;
      const length = sectors * SECTOR_SIZE;
      if (sectors > most || !this.#fits(sector, length)) return BlockStatus.IOERR;
      const status = this.#zones?.range(type, sector, sectors) ?? BlockStatus.OK;
      if (status !== BlockStatus.OK) return status;
      work.push(() => this.#apply(type, sector * SECTOR_SIZE, length, flag));
    }
    return this.#written(inTurn(work)) ?? BlockStatus.OK;
  }

  #apply(type: number, position: number, length: number, flags: number): Promise<void> | undefined {
    const backend = this.#backend;
    if (type === BlockRequestType.SECURE_ERASE)
      this.#zones?.erase(position / SECTOR_SIZE, length / SECTOR_SIZE);
    // Discarded sectors may read as anything, and so as before (§5.2.6.2).
    if (type === BlockRequestType.DISCARD) return backend.discard?.(position, length);
    // A secure erase leaves zeroes: nothing here keeps what was overwritten.
    const unmap = (flags & BlockRangeFlag.UNMAP) !== 0;
    return backend.writeZeroes === undefined
      ? transferZeroes(backend, position, length)
      : backend.writeZeroes(position, length, unmap);
  }

  /** A write is over when it is done, and with a writethrough cache when it is stable (§5.2.6.2). */
  #written(done: Promise<void> | undefined): Promise<void> | undefined {
    if (!this.#configuration.writethrough) return done;
    return done === undefined ? this.#backend.flush() : done.then(() => this.#backend.flush());
  }

  /** Whole blocks, as QEMU has it, that lie on the disk. A block is a power of two: the low 32 bits tell. */
  #fits(sector: number, length: number): boolean {
    const odd = this.#blockSize - 1;
    if ((length & odd) !== 0 || (sector & (odd >>> SECTOR_SHIFT)) !== 0) return false;
    return sector * SECTOR_SIZE + length <= this.#backend.size;
  }

  #oversize(pieces: readonly Uint8Array[]): boolean {
    return pieces.some((piece) => piece.length > this.#sizeMax);
  }
}

const noRanges = new Uint32Array(0);

/** The flags of all ranges. */
const flagsOf = (ranges: Uint32Array): number =>
  ranges.reduce((flags, word, i) => (i % Range.SIZE === Range.FLAGS ? flags | word : flags), 0) >>>
  0;

/** One after the other, without waiting where there is nothing to wait for. */
function inTurn(work: readonly (() => Promise<void> | undefined)[]): Promise<void> | undefined {
  for (const [i, step] of work.entries()) {
    const pending = step();
    if (pending !== undefined) return pending.then(() => inTurn(work.slice(i + 1)));
  }
  return undefined;
}

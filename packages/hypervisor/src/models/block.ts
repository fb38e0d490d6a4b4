// The block device (virtio 1.4 §5.2), written from the device clauses: reads, writes, flush and serial over a backend.
import { DeviceType, featureSet, featureSetFromWords, ReservedFeature } from "@virtio/core";
import {
  BLOCK_CONFIG_SIZE,
  BLOCK_HEADER_SIZE,
  BLOCK_ID_SIZE,
  BlockFeature,
  BlockRequestType,
  BlockStatus,
  SECTOR_SIZE,
} from "@virtio/core/block";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { BlockBackend } from "../block-backend.js";
import type { DeviceModel, ModelHost } from "../device-model.js";
import type { RegisterSpace } from "../registers.js";
import { blockConfigGates, checkBlockRequest } from "../rules/block-rules.js";

/** How a block device is made. */
export interface BlockModelOptions {
  readonly name: string;
  readonly backend: BlockBackend;
  /** At most 20 bytes of ASCII. */
  readonly serial: string;
  /** Most data segments of a request. */
  readonly segMax: number;
  /** Features that are not offered though the model could. */
  readonly without: readonly BlockFeature[];
  /** Request queues; MQ is offered when there are several. Default 1. */
  readonly queues?: number;
}

/** Features of this model that an option can hold back. */
export const blockModelFeatures: readonly BlockFeature[] = [
  BlockFeature.SEG_MAX,
  BlockFeature.BLK_SIZE,
  BlockFeature.FLUSH,
];

/** Mass storage, other controller: what QEMU's virtio-blk-pci says. */
const CLASS_CODE = 0x01_00_00;

/** Chains taken in one task; more wait for the next, so that other devices get their turn. */
const BATCH = 64;

/** A request that was taken and cannot be given back yet. `status` is null when there is no room for one. */
interface BlockRequestInHand {
  readonly chain: DeviceChain;
  status: BlockStatus | null;
  done: boolean;
}

/** What was taken from one queue and not given back. */
interface Backlog {
  /** Requests that the backend has. */
  busy: number;
  /** Resets that wait for them: then nothing is given back. */
  idle: (() => void)[];
  /** With IN_ORDER: requests in the order in which they were taken. */
  order: BlockRequestInHand[];
}

/** Words of the request header (§5.2.6). */
enum Header {
  TYPE = 0,
  SECTOR_LOW = 2,
  SECTOR_HIGH = 3,
}

/** {@inheritDoc DeviceModel} */
export class BlockModel implements DeviceModel {
  readonly type: DeviceType = DeviceType.BLOCK;
  readonly classCode: number = CLASS_CODE;
  readonly queues: number;
  // A device that offers CONFIG_WCE offers FLUSH (§5.2.5.2): a matter of the device, not of what the driver accepts.
  readonly prerequisites: DeviceModel["prerequisites"] = [];
  readonly name: string;
  readonly features: readonly number[];
  readonly config: RegisterSpace;
  readonly #backend: BlockBackend;
  readonly #id: Uint8Array;
  /** The header of the request that is executed: bytes, and the same as words. */
  readonly #header = new Uint8Array(BLOCK_HEADER_SIZE);
  readonly #words: Uint32Array;
  readonly #status = new Uint8Array(1);
  readonly #backlogs: readonly Backlog[];
  #host: ModelHost | null = null;

  constructor({ name, backend, serial, segMax, without, queues = 1 }: BlockModelOptions) {
    this.name = name;
    this.queues = queues;
    this.#words = new Uint32Array(this.#header.buffer);
    this.#backlogs = Array.from({ length: queues }, () => ({ busy: 0, idle: [], order: [] }));
    this.#backend = backend;
    this.#id = new Uint8Array(BLOCK_ID_SIZE);
    new TextEncoder().encodeInto(serial, this.#id);
    const offered = [...blockModelFeatures];
    if (backend.readOnly) offered.push(BlockFeature.RO);
    if (queues > 1) offered.push(BlockFeature.MQ);
    this.features = featureSet<BlockFeature>()
      .with(...offered.filter((bit) => !without.includes(bit)))
      .words();
    const bytes = new DataView(new ArrayBuffer(BLOCK_CONFIG_SIZE));
    const capacity = backend.size / SECTOR_SIZE;
    bytes.setUint32(0, capacity, true);
    bytes.setUint32(4, Math.floor(capacity / 0x1_0000_0000), true);
    bytes.setUint32(12, segMax, true);
    bytes.setUint32(20, SECTOR_SIZE, true);
    if (queues > 1) bytes.setUint16(34, queues, true);
    this.config = {
      length: BLOCK_CONFIG_SIZE,
      read: (offset, width) =>
        width === 1
          ? bytes.getUint8(offset)
          : width === 2
            ? bytes.getUint16(offset, true)
            : bytes.getUint32(offset, true),
      // No field of what is offered here can be written.
      write: () => {},
    };
  }

  configGate(offset: number): number | undefined {
    return blockConfigGates.find(([from, to]) => offset >= from && offset < to)?.[2];
  }

  connect(host: ModelHost): void {
    this.#host = host;
  }

  notified(index: number): void {
    const host = this.#host;
    const queue = host?.queue(index) ?? null;
    const backlog = this.#backlogs[index];
    if (host === null || queue === null || backlog === undefined) return;
    const features = featureSetFromWords<ReservedFeature>(host.features);
    const inOrder = features.has(ReservedFeature.IN_ORDER);
    for (let n = 0; n < BATCH; n++) {
      const chain = queue.take();
      if (chain !== null) {
        host.taken(queue, chain);
        // No room for a status: nothing can be said.
        const outcome = chain.writableLength < 1 ? null : this.#execute(host, chain);
        if (outcome instanceof Promise) this.#wait(host, queue, backlog, chain, outcome, inOrder);
        else if (inOrder) {
          backlog.order.push({ chain, status: outcome, done: true });
          this.#finishInOrder(queue, backlog);
        } else this.#finish(queue, chain, outcome);
      } else if (!queue.enableNotify()) {
        // Doorbells were asked for before the last look, so no chain is missed.
        host.used(index);
        return;
      }
    }
    host.used(index);
    host.tasks.enqueue(() => this.notified(index));
  }

  /** Gives a request back when the backend is done with it. */
  #wait(
    host: ModelHost,
    queue: DeviceQueue,
    backlog: Backlog,
    chain: DeviceChain,
    outcome: Promise<void>,
    inOrder: boolean,
  ): void {
    const request: BlockRequestInHand = { chain, status: null, done: false };
    if (inOrder) backlog.order.push(request);
    backlog.busy += 1;
    const done = (status: BlockStatus): void => {
      backlog.busy -= 1;
      request.status = status;
      request.done = true;
      if (backlog.idle.length === 0) {
        if (inOrder) this.#finishInOrder(queue, backlog);
        else this.#finish(queue, chain, status);
        host.tasks.enqueue(() => host.used(queue.index));
      }
      if (backlog.busy === 0) for (const idle of backlog.idle.splice(0)) idle();
    };
    void host.outside(outcome).then(
      () => done(BlockStatus.OK),
      () => done(BlockStatus.IOERR),
    );
  }

  /** With IN_ORDER: gives back every request at the front that is done (virtio 1.4 §6.2). */
  #finishInOrder(queue: DeviceQueue, { order }: Backlog): void {
    for (let first = order[0]; first?.done === true; first = order[0]) {
      order.shift();
      this.#finish(queue, first.chain, first.status);
    }
  }

  /** 16 bytes of header, data, one byte of status, cut into segments in any way (§2.7.4, §5.2.6). */
  #execute(host: ModelHost, chain: DeviceChain): BlockStatus | Promise<void> {
    const words = this.#words;
    const backend = this.#backend;
    if (chain.read(0, this.#header) < BLOCK_HEADER_SIZE) return BlockStatus.IOERR;
    const type = words[Header.TYPE] as number;
    const sectorLow = words[Header.SECTOR_LOW] as number;
    const sectorHigh = words[Header.SECTOR_HIGH] as number;
    const dataOut = chain.readableLength - BLOCK_HEADER_SIZE;
    const dataIn = chain.writableLength - 1;
    const sector = sectorHigh * 0x1_0000_0000 + sectorLow;
    if (host.rules !== null)
      checkBlockRequest(
        host.rules,
        this.name,
        { type, sectorLow, sectorHigh, dataOut, dataIn },
        backend.size / SECTOR_SIZE,
      );

    switch (type) {
      case BlockRequestType.IN:
        if (!this.#fits(sector, dataIn)) return BlockStatus.IOERR;
        return (
          backend.read(sector * SECTOR_SIZE, chain.writablePieces(0, dataIn)) ?? BlockStatus.OK
        );
      case BlockRequestType.OUT:
        // A read-only device writes nothing (§5.2.6.2).
        if (backend.readOnly || !this.#fits(sector, dataOut)) return BlockStatus.IOERR;
        return (
          backend.write(sector * SECTOR_SIZE, chain.readablePieces(BLOCK_HEADER_SIZE, dataOut)) ??
          BlockStatus.OK
        );
      case BlockRequestType.FLUSH:
        return backend.flush() ?? BlockStatus.OK;
      case BlockRequestType.GET_ID:
        chain.write(0, this.#id.subarray(0, Math.min(dataIn, BLOCK_ID_SIZE)));
        return BlockStatus.OK;
      default:
        return BlockStatus.UNSUPP;
    }
  }

  #fits(sector: number, length: number): boolean {
    const sectors = length / SECTOR_SIZE;
    return length % SECTOR_SIZE === 0 && sector + sectors <= this.#backend.size / SECTOR_SIZE;
  }

  /** Writes the status byte, the last writable one, and puts the chain back. */
  #finish(queue: DeviceQueue, chain: DeviceChain, status: BlockStatus | null): void {
    if (status !== null) {
      this.#status[0] = status;
      // used.len counts from the first writable byte: what comes before the status was written, or is cleared now (§2.7.8.2).
      if (status !== BlockStatus.OK) chain.fill(0, chain.writableLength - 1);
      chain.write(chain.writableLength - 1, this.#status);
    }
    // Made visible by host.used(), which follows: one ordered store for a batch.
    queue.put(chain, chain.writableLength);
  }

  reset(queue?: number): Promise<void> | null {
    const waits: Promise<void>[] = [];
    for (const [index, backlog] of this.#backlogs.entries()) {
      if (queue !== undefined && queue !== index) continue;
      backlog.order = [];
      if (backlog.busy > 0) waits.push(new Promise((resolve) => backlog.idle.push(resolve)));
    }
    return waits.length === 0 ? null : Promise.all(waits).then(() => {});
  }

  close(): Promise<void> {
    return this.#backend.close();
  }
}

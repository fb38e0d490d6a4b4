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

/** A request that was taken. `status` is null when there is no room for one. */
interface BlockRequestInHand {
  readonly chain: DeviceChain;
  status: BlockStatus | null;
  done: boolean;
}

/** {@inheritDoc DeviceModel} */
export class BlockModel implements DeviceModel {
  readonly type: DeviceType = DeviceType.BLOCK;
  readonly classCode: number = CLASS_CODE;
  readonly queues = 1;
  // A device that offers CONFIG_WCE offers FLUSH (§5.2.5.2): a matter of the device, not of what the driver accepts.
  readonly prerequisites: DeviceModel["prerequisites"] = [];
  readonly name: string;
  readonly features: readonly number[];
  readonly config: RegisterSpace;
  readonly #backend: BlockBackend;
  readonly #id: Uint8Array;
  readonly #header = new DataView(new ArrayBuffer(BLOCK_HEADER_SIZE));
  readonly #status = new Uint8Array(1);
  #host: ModelHost | null = null;
  /** Requests that the backend has. */
  #busy = 0;
  #idle: (() => void)[] = [];
  /** With IN_ORDER: requests that were taken and not given back, in order. */
  #order: BlockRequestInHand[] = [];

  constructor({ name, backend, serial, segMax, without }: BlockModelOptions) {
    this.name = name;
    this.#backend = backend;
    this.#id = new Uint8Array(BLOCK_ID_SIZE);
    new TextEncoder().encodeInto(serial, this.#id);
    const offered = backend.readOnly
      ? [...blockModelFeatures, BlockFeature.RO]
      : blockModelFeatures;
    this.features = featureSet<BlockFeature>()
      .with(...offered.filter((bit) => !without.includes(bit)))
      .words();
    const bytes = new DataView(new ArrayBuffer(BLOCK_CONFIG_SIZE));
    const capacity = backend.size / SECTOR_SIZE;
    bytes.setUint32(0, capacity, true);
    bytes.setUint32(4, Math.floor(capacity / 0x1_0000_0000), true);
    bytes.setUint32(12, segMax, true);
    bytes.setUint32(20, SECTOR_SIZE, true);
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
    if (host === null || queue === null) return;
    for (let n = 0; n < BATCH; n++) {
      const chain = queue.take();
      if (chain !== null) {
        host.taken(queue, chain);
        this.#request(host, queue, chain);
      } else if (!queue.enableNotify()) {
        // Doorbells were asked for before the last look, so no chain is missed.
        host.used(index);
        return;
      }
    }
    host.used(index);
    host.tasks.enqueue(() => this.notified(index));
  }

  /** Executes one request and gives its chain back, now or when the backend is done. */
  #request(host: ModelHost, queue: DeviceQueue, chain: DeviceChain): void {
    const inOrder = featureSetFromWords<ReservedFeature>(host.features).has(
      ReservedFeature.IN_ORDER,
    );
    // No room for a status: nothing can be said.
    const outcome = chain.writableLength < 1 ? null : this.#execute(host, chain);
    const request = {
      chain,
      status: typeof outcome === "number" ? outcome : null,
      done: !(outcome instanceof Promise),
    };
    if (inOrder) this.#order.push(request);
    if (request.done) {
      this.#complete(queue, request, inOrder);
      return;
    }
    this.#busy += 1;
    const done = (status: BlockStatus): void => {
      this.#busy -= 1;
      request.status = status;
      request.done = true;
      // A reset waits for this: then nothing is given back.
      if (this.#idle.length === 0) {
        this.#complete(queue, request, inOrder);
        host.tasks.enqueue(() => host.used(queue.index));
      }
      if (this.#busy === 0) for (const idle of this.#idle.splice(0)) idle();
    };
    void host.outside(outcome as Promise<void>).then(
      () => done(BlockStatus.OK),
      () => done(BlockStatus.IOERR),
    );
  }

  /** Gives one request back, or with IN_ORDER every request at the front that is done (virtio 1.4 §6.2). */
  #complete(queue: DeviceQueue, request: BlockRequestInHand, inOrder: boolean): void {
    if (!inOrder) {
      this.#finish(queue, request);
      return;
    }
    for (let first = this.#order[0]; first?.done === true; first = this.#order[0]) {
      this.#order.shift();
      this.#finish(queue, first);
    }
  }

  /** 16 bytes of header, data, one byte of status, cut into segments in any way (§2.7.4, §5.2.6). */
  #execute(host: ModelHost, chain: DeviceChain): BlockStatus | Promise<void> {
    const header = this.#header;
    const backend = this.#backend;
    if (chain.read(0, new Uint8Array(header.buffer)) < BLOCK_HEADER_SIZE) return BlockStatus.IOERR;
    const type = header.getUint32(0, true);
    const sectorLow = header.getUint32(8, true);
    const sectorHigh = header.getUint32(12, true);
    const dataOut = chain.readableLength - BLOCK_HEADER_SIZE;
    const dataIn = chain.writableLength - 1;
    const capacity = backend.size / SECTOR_SIZE;
    if (host.rules !== null)
      checkBlockRequest(
        host.rules,
        this.name,
        { type, sectorLow, sectorHigh, dataOut, dataIn },
        capacity,
      );

    const sector = sectorHigh * 0x1_0000_0000 + sectorLow;
    const fits = (length: number): boolean =>
      length % SECTOR_SIZE === 0 && sector + length / SECTOR_SIZE <= capacity;
    switch (type) {
      case BlockRequestType.IN:
        if (!fits(dataIn)) return BlockStatus.IOERR;
        return (
          backend.read(sector * SECTOR_SIZE, chain.writablePieces(0, dataIn)) ?? BlockStatus.OK
        );
      case BlockRequestType.OUT:
        // A read-only device writes nothing (§5.2.6.2).
        if (backend.readOnly || !fits(dataOut)) return BlockStatus.IOERR;
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

  /** Writes the status byte, the last writable one, and puts the chain back. */
  #finish(queue: DeviceQueue, { chain, status }: BlockRequestInHand): void {
    if (status !== null) {
      this.#status[0] = status;
      // used.len counts from the first writable byte: what comes before the status was written, or is cleared now (§2.7.8.2).
      if (status !== BlockStatus.OK) chain.fill(0, chain.writableLength - 1);
      chain.write(chain.writableLength - 1, this.#status);
    }
    // Made visible by host.used(), which follows: one ordered store for a batch.
    queue.put(chain, chain.writableLength);
  }

  reset(): Promise<void> | null {
    this.#order = [];
    if (this.#busy === 0) return null;
    return new Promise((resolve) => {
      this.#idle.push(resolve);
    });
  }

  close(): Promise<void> {
    return this.#backend.close();
  }
}

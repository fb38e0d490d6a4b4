// The block device (virtio 1.4 §5.2), written from the device clauses: its queues, and what is in the backend's hands.
import { DeviceType, featureSet, ReservedFeature } from "@virtio/core";
import { BlockFeature, BlockStatus, SECTOR_SIZE } from "@virtio/core/block";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { BlockBackend } from "../block-backend.js";
import type { DeviceModel, ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";
import type { RegisterSpace } from "../registers.js";
import { blockConfigGate, CapacityRules, checkWriteback } from "../rules/block-rules.js";
import { ZoneNegotiationRules } from "../rules/zone-rules.js";
import { BlockCommands } from "./block-commands.js";
import { type BlockCharacteristics, BlockConfiguration } from "./block-config.js";

/** How a block device lies; for tests of drivers. What is left out is honest. */
export interface BlockLies {
  /** The status byte in place of the honest one. */
  readonly status?: (honest: number) => number;
  /** used.len in place of the bytes that were written: less, never more than there was room for. */
  readonly usedLength?: (honest: number) => number;
  /** What a read of the configuration gives. */
  readonly config?: (offset: number, width: 1 | 2 | 4, honest: number) => number;
}

/** How a block device is made. */
export interface BlockModelOptions {
  readonly name: string;
  readonly backend: BlockBackend;
  /** At most 20 bytes of ASCII. */
  readonly serial: string;
  /** Most data segments of a request. */
  readonly segMax: number;
  /** Request queues; MQ is offered when there are several. */
  readonly queues: number;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: BlockCharacteristics;
  readonly lies: BlockLies;
}

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
  /** A request with BARRIER that waits for those before it. */
  barrier: DeviceChain | null;
  /** A request with BARRIER waits or is executed: no other is taken. */
  closed: boolean;
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
  readonly #configuration: BlockConfiguration;
  readonly #commands: BlockCommands;
  readonly #lies: BlockLies;
  readonly #backlogs: readonly Backlog[];
  #host: ModelHost | null = null;
  #capacityRules: CapacityRules | null = null;
  #zoneRules: ZoneNegotiationRules | null = null;

  /** @throws VirtioFault INVALID */
  constructor(options: BlockModelOptions) {
    const { name, backend, serial, queues, characteristics, lies } = options;
    this.name = name;
    this.queues = queues;
    this.#backlogs = Array.from({ length: queues }, freshBacklog);
    this.#backend = backend;
    this.#lies = lies;
    const configuration = new BlockConfiguration(options);
    this.#configuration = configuration;
    this.#commands = new BlockCommands(name, backend, configuration, serial, characteristics);
    this.features = featureSet<BlockFeature>()
      .with(...configuration.offered)
      .words();
    this.config = {
      length: configuration.length,
      read: (offset, width) => this.#readConfig(offset, width),
      write: (offset, width, value) => this.#writeConfig(offset, width, value),
    };
  }

  configGate(offset: number): number | undefined {
    return blockConfigGate(offset);
  }

  accepts(): boolean {
    return this.#configuration.acceptable;
  }

  statusWrite(value: number, status: number): void {
    this.#zoneRules?.statusWrite(value, status, this.#host?.features ?? []);
  }

  #readConfig(offset: number, width: 1 | 2 | 4): number {
    this.#capacityRules?.configRead(offset);
    const honest = this.#configuration.read(offset, width);
    return this.#lies.config?.(offset, width, honest) ?? honest;
  }

  #writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    const rules = this.#host?.rules ?? null;
    if (rules !== null)
      checkWriteback(rules, this.name, offset, value, this.#configuration.writebackWritable);
    this.#configuration.write(offset, width, value);
  }

  connect(host: ModelHost): void {
    this.#host = host;
    this.#configuration.connect(host.features);
    const sectors = this.#sectors;
    if (host.rules !== null)
      this.#capacityRules = new CapacityRules(host.rules, this.name, this.queues, sectors);
    const { hostManaged, offered } = this.#configuration;
    if (host.rules !== null && offered.includes(BlockFeature.ZONED))
      this.#zoneRules = new ZoneNegotiationRules(host.rules, this.name, hostManaged);
    this.#backend.onResize = () => host.tasks.enqueue(() => this.#resized(host));
  }

  get #sectors(): number {
    return this.#backend.size / SECTOR_SIZE;
  }

  /** The driver is told of the new capacity (§5.2.6.2). */
  #resized(host: ModelHost): void {
    this.#configuration.resized();
    this.#capacityRules?.changed(this.#sectors, host.queue(0) !== null);
    host.configChanged();
  }

  notified(index: number): void {
    const host = this.#host;
    const queue = host?.queue(index) ?? null;
    const backlog = this.#backlogs[index];
    if (host === null || queue === null || backlog === undefined) return;
    const barriers = hasBit(host.features, BlockFeature.BARRIER);
    for (let n = 0; n < BATCH && !backlog.closed; n++) {
      const chain = queue.take();
      if (chain !== null) {
        host.taken(queue, chain);
        this.#capacityRules?.taken();
        if (barriers && this.#commands.isBarrier(chain)) {
          backlog.closed = true;
          if (backlog.busy > 0) backlog.barrier = chain;
          else this.#start(host, queue, backlog, chain);
          if (backlog.busy === 0) backlog.closed = false;
        } else this.#start(host, queue, backlog, chain);
      } else if (!queue.enableNotify()) {
        // Doorbells were asked for before the last look, so no chain is missed.
        this.#capacityRules?.idle(index);
        host.used(index);
        return;
      }
    }
    host.used(index);
    // Behind a barrier, the end of the request goes on.
    if (!backlog.closed) host.tasks.enqueue(() => this.notified(index));
  }

  #start(host: ModelHost, queue: DeviceQueue, backlog: Backlog, chain: DeviceChain): void {
    const inOrder = hasBit(host.features, ReservedFeature.IN_ORDER);
    const known = this.#capacityRules?.known(queue.index) ?? 0;
    // No room for a status: nothing can be said.
    const outcome = chain.writableLength < 1 ? null : this.#commands.execute(host, chain, known);
    if (outcome instanceof Promise) this.#wait(host, queue, backlog, chain, outcome, inOrder);
    else if (inOrder) {
      backlog.order.push({ chain, status: outcome, done: true });
      this.#finishInOrder(queue, backlog);
    } else this.#finish(queue, chain, outcome);
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
      if (backlog.busy > 0) return;
      if (backlog.idle.length === 0) this.#pastBarrier(host, queue, backlog);
      for (const idle of backlog.idle.splice(0)) idle();
    };
    const over = this.#backend.outside === false ? outcome : host.outside(outcome);
    void over.then(
      () => done(BlockStatus.OK),
      () => done(BlockStatus.IOERR),
    );
  }

  /** Nothing is in the backend's hands: the request that waited for that starts, or those that waited for it. */
  #pastBarrier(host: ModelHost, queue: DeviceQueue, backlog: Backlog): void {
    if (!backlog.closed) return;
    const { barrier } = backlog;
    backlog.barrier = null;
    if (barrier !== null) this.#start(host, queue, backlog, barrier);
    if (backlog.busy > 0) return;
    backlog.closed = false;
    host.tasks.enqueue(() => this.notified(queue.index));
  }

  /** With IN_ORDER: gives back every request at the front that is done (virtio 1.4 §6.2). */
  #finishInOrder(queue: DeviceQueue, { order }: Backlog): void {
    for (let first = order[0]; first?.done === true; first = order[0]) {
      order.shift();
      this.#finish(queue, first.chain, first.status);
    }
  }

  /** Writes the status byte, the last writable one, and puts the chain back. */
  #finish(queue: DeviceQueue, chain: DeviceChain, status: BlockStatus | null): void {
    const lies = this.#lies;
    if (status !== null) {
      // used.len counts from the first writable byte: what comes before the status was written, or is cleared now (§2.7.8.2).
      if (status !== BlockStatus.OK) chain.fill(0, chain.writableLength - 1);
      chain.writeLast(lies.status?.(status) ?? status);
    }
    // Made visible by host.used(), which follows: one ordered store for a batch.
    const length = chain.writableLength;
    queue.put(chain, Math.min(length, lies.usedLength?.(length) ?? length));
  }

  reset(queue?: number): Promise<void> | null {
    const waits: Promise<void>[] = [];
    for (const [index, backlog] of this.#backlogs.entries()) {
      if (queue !== undefined && queue !== index) continue;
      backlog.order = [];
      backlog.barrier = null;
      backlog.closed = false;
      if (backlog.busy > 0) waits.push(new Promise((resolve) => backlog.idle.push(resolve)));
    }
    if (queue === undefined) {
      this.#configuration.reset();
      this.#capacityRules?.reset();
      this.#backend.cancel?.();
    }
    return waits.length === 0 ? null : Promise.all(waits).then(() => {});
  }

  close(): Promise<void> {
    return this.#backend.close();
  }
}

const freshBacklog = (): Backlog => ({
  busy: 0,
  idle: [],
  order: [],
  barrier: null,
  closed: false,
});

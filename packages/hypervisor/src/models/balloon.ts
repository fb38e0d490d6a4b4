// The memory balloon (virtio 1.4 §5.5), written from the device clauses. A page in the balloon has no content: it reads as zeroes.
import { DeviceType, featureSet, ReservedFeature } from "@virtio/core";
import {
  BALLOON_HINT_FIRST,
  BALLOON_HINT_SIZE,
  BALLOON_STATISTIC_SIZE,
  BalloonFeature,
  BalloonHint,
  BalloonQueue,
  type BalloonStatistic,
} from "@virtio/core/balloon";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { DeviceModel, ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";
import type { RegisterSpace } from "../registers.js";
import { BalloonRules } from "../rules/balloon-rules.js";
import {
  BalloonConfiguration,
  balloonConfigGate,
  balloonModelFeatures,
  queuesByNumber,
} from "./balloon-config.js";
import { BalloonPages, isFilled } from "./balloon-pages.js";
import type { BalloonPort } from "./balloon-port.js";

/** How a balloon lies; for tests of drivers. What is left out is honest. */
export interface BalloonLies {
  /** What a read of the configuration gives. */
  readonly config?: (offset: number, width: 1 | 2 | 4, honest: number) => number;
  /** used.len in place of 0; never more than there was room for. */
  readonly usedLength?: () => number;
}

/** What a balloon is like. */
export interface BalloonCharacteristics {
  /** Queues are numbered without holes, as QEMU does; else as §5.5.2 says. Default false. */
  readonly compactQueues?: boolean | undefined;
  /** What pages read as that were taken away, hinted or reported. Default 0; hinted pages are then left alone. */
  readonly scribble?: number | undefined;
}

/** How a balloon is made. */
export interface BalloonModelOptions {
  readonly name: string;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: BalloonCharacteristics;
  readonly port: BalloonPort;
  readonly lies: BalloonLies;
}

/** Processing accelerator, other: what QEMU's virtio-balloon-pci says is 0x00ff00. */
const CLASS_CODE = 0x00_ff_00;

/** Chains taken in one task; more wait for the next, so that other devices get their turn. */
const BATCH = 64;

/** Most bytes of statistics that are looked at. */
const STATISTICS_MAX = 4096;

/** A chain that is kept: see BalloonPort.hold. */
interface Kept {
  readonly queue: DeviceQueue;
  readonly role: BalloonQueue;
  readonly chain: DeviceChain;
}

/** {@inheritDoc DeviceModel} */
export class BalloonModel implements DeviceModel {
  readonly type: DeviceType = DeviceType.BALLOON;
  readonly classCode: number = CLASS_CODE;
  readonly prerequisites: DeviceModel["prerequisites"] = [];
  readonly name: string;
  readonly features: readonly number[];
  readonly queues: number;
  readonly config: RegisterSpace;
  readonly #roles: readonly (BalloonQueue | null)[];
  readonly #configuration: BalloonConfiguration;
  readonly #port: BalloonPort;
  readonly #lies: BalloonLies;
  readonly #scribble: number | undefined;
  /** Numbers of the pages in the balloon, and of those whose request is kept. */
  readonly #balloon = new Set<number>();
  readonly #pending = new Set<number>();
  #kept: Kept[] = [];
  /** The buffer of statistics, and whether there ever was one. */
  #statistics: { readonly queue: DeviceQueue; readonly chain: DeviceChain } | null = null;
  #hadStatistics = false;
  /** The command id that the driver said last: what it hints is of that round. */
  #round: number = BalloonHint.STOP;
  #host: ModelHost | null = null;
  #pages: BalloonPages | null = null;
  #rules: BalloonRules | null = null;

  constructor({ name, features, characteristics, port, lies }: BalloonModelOptions) {
    this.name = name;
    const offered = balloonModelFeatures.filter((bit) => features[BalloonFeature[bit]] ?? true);
    this.features = featureSet<BalloonFeature>()
      .with(...offered)
      .words();
    this.#roles = queuesByNumber(offered, characteristics.compactQueues ?? false);
    this.queues = this.#roles.length;
    this.#port = port;
    this.#lies = lies;
    this.#scribble = characteristics.scribble;
    const configuration = new BalloonConfiguration(offered, port);
    this.#configuration = configuration;
    this.config = {
      length: configuration.length,
      read: (offset, width) => this.#readConfig(offset, width),
      write: (offset, width, value) => this.#writeConfig(offset, width, value),
    };
  }

  hasQueue(index: number): boolean {
    return (this.#roles[index] ?? null) !== null;
  }

  configGate(offset: number): number | undefined {
    return balloonConfigGate(offset);
  }

  #readConfig(offset: number, width: 1 | 2 | 4): number {
    this.#rules?.configRead(offset);
    const honest = this.#configuration.read(offset, width);
    return this.#lies.config?.(offset, width, honest) ?? honest;
  }

  #writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    this.#rules?.configWrite(offset, width, value);
    if (this.#configuration.write(offset, width, value) === "actual")
      this.#port.onActual?.(this.#port.actual);
  }

  connect(host: ModelHost): void {
    const port = this.#port;
    this.#host = host;
    this.#pages = new BalloonPages(host.memory, this.#scribble ?? 0);
    if (host.rules !== null)
      this.#rules = new BalloonRules(host.rules, {
        name: this.name,
        tasks: host.tasks,
        offered: this.features,
        accepted: host.features,
        pages: this.#balloon,
        pending: this.#pending,
        get target() {
          return port.target;
        },
        get hintCommand() {
          return port.hintCommand;
        },
      });
    port.back = {
      configChanged: () => host.tasks.enqueue(() => host.configChanged()),
      askStatistics: () => this.#askStatistics(host),
      letGo: () => host.tasks.enqueue(() => this.#letGo(host)),
    };
  }

  notified(index: number): void {
    const host = this.#host;
    const role = this.#roles[index] ?? null;
    const queue = host?.queue(index) ?? null;
    if (host === null || role === null || queue === null) return;
    this.#rules?.start();
    for (let n = 0; n < BATCH; n++) {
      const chain = queue.take();
      if (chain !== null) {
        host.taken(queue, chain);
        this.#took(queue, role, chain);
      } else if (!queue.enableNotify()) {
        host.used(index);
        return;
      }
    }
    host.used(index);
    host.tasks.enqueue(() => this.notified(index));
  }

  #took(queue: DeviceQueue, role: BalloonQueue, chain: DeviceChain): void {
    if (role === BalloonQueue.STATS) {
      this.#tookStatistics(queue, chain);
      return;
    }
    this.#execute(role, chain);
    if (this.#port.held.has(role)) this.#kept.push({ queue, role, chain });
    else this.#finish({ queue, role, chain });
  }

  #execute(role: BalloonQueue, chain: DeviceChain): void {
    if (role === BalloonQueue.INFLATE) this.#inflate(chain);
    else if (role === BalloonQueue.DEFLATE) this.#deflate(chain, true);
    else if (role === BalloonQueue.FREE_PAGE) this.#hint(chain);
    else this.#report(chain);
  }

  /** Gives a chain back, after a last look. */
  #finish({ queue, role, chain }: Kept): void {
    if (role === BalloonQueue.INFLATE) this.#inflated(chain);
    else if (role === BalloonQueue.DEFLATE) this.#deflate(chain, false);
    else if (role === BalloonQueue.REPORTING) this.#reported(chain);
    // Made visible by host.used(), which follows.
    queue.put(chain, Math.min(chain.writableLength, this.#lies.usedLength?.() ?? 0));
  }

  #letGo(host: ModelHost): void {
    for (const kept of this.#kept.splice(0)) {
      this.#finish(kept);
      host.used(kept.queue.index);
    }
  }

  #has(bit: BalloonFeature | ReservedFeature): boolean {
    return hasBit(this.#host?.features ?? [], bit);
  }

  // ── pages (§5.5.6) ──────────────────────────────────────────────────────────

  /** Pages outside guest memory are none. */
  *#each(chain: DeviceChain): Generator<readonly [page: number, bytes: Uint8Array]> {
    const pages = this.#pages;
    if (pages === null) return;
    for (const page of pages.numbers(chain)) {
      const bytes = pages.bytes(page);
      if (bytes !== null) yield [page, bytes];
    }
  }

  #inflate(chain: DeviceChain): void {
    for (const [page, bytes] of this.#each(chain)) {
      this.#rules?.inflating(page);
      this.#pages?.drop(bytes);
      this.#balloon.add(page);
      this.#pending.add(page);
    }
    this.#port.pages = this.#balloon.size;
  }

  #inflated(chain: DeviceChain): void {
    for (const [page, bytes] of this.#each(chain)) {
      this.#rules?.inflated(page, this.#pages?.isDropped(bytes) ?? true);
      this.#pending.delete(page);
    }
  }

  /** Pages leave the balloon when the request is used: `began`, it came. */
  #deflate(chain: DeviceChain, began: boolean): void {
    if (began) this.#rules?.deflating();
    for (const [page, bytes] of this.#each(chain)) {
      this.#rules?.deflated(page, this.#pages?.isDropped(bytes) ?? true);
      if (!began) this.#balloon.delete(page);
    }
    this.#port.pages = this.#balloon.size;
  }

  // ── statistics (§5.5.6.3) ───────────────────────────────────────────────────

  /** The buffer is kept until somebody asks. */
  #tookStatistics(queue: DeviceQueue, chain: DeviceChain): void {
    const before = this.#statistics;
    const bytes = new Uint8Array(Math.min(chain.readableLength, STATISTICS_MAX));
    chain.read(0, bytes);
    this.#rules?.statistics(bytes, before !== null);
    if (before !== null) before.queue.put(before.chain, 0);
    this.#statistics = { queue, chain };
    // Of a legacy driver the first means nothing (§5.5.6.3.3).
    const meant = this.#hadStatistics || this.#has(ReservedFeature.VERSION_1);
    this.#hadStatistics = true;
    if (meant) this.#port.tell(parse(bytes));
  }

  #askStatistics(host: ModelHost): boolean {
    const held = this.#statistics;
    if (held === null) return false;
    this.#statistics = null;
    this.#rules?.statisticsAsked();
    host.tasks.enqueue(() => {
      // It may have been reset.
      if (!held.chain.held || host.queue(held.queue.index) !== held.queue) return;
      held.queue.put(held.chain, 0);
      host.used(held.queue.index);
    });
    return true;
  }

  // ── hints (§5.5.6.5) ────────────────────────────────────────────────────────

  #hint(chain: DeviceChain): void {
    const port = this.#port;
    if (chain.readableLength > 0) {
      const word = new DataView(new ArrayBuffer(BALLOON_HINT_SIZE));
      chain.read(0, new Uint8Array(word.buffer));
      const id = word.getUint32(0, true);
      this.#rules?.hintCommand(id, chain.readableLength, port.lastHint);
      this.#round = id;
      if (id === BalloonHint.STOP) port.hintsEnded = true;
    }
    if (chain.writableLength === 0) return;
    this.#rules?.hinting();
    // Under another id than the current they mean nothing, and after DONE they are the guest's (§5.5.6.5.2).
    if (this.#round < BALLOON_HINT_FIRST || this.#round !== port.hintCommand) return;
    for (const { address, length, bytes } of this.#pages?.ranges(chain) ?? []) {
      port.hinted.push({ address, length });
      if (this.#scribble !== undefined) bytes.fill(this.#scribble);
    }
  }

  // ── reports (§5.5.6.7) ──────────────────────────────────────────────────────

  get #poison(): number | null {
    return this.#has(BalloonFeature.PAGE_POISON) ? (this.#port.poison ?? 0) : null;
  }

  #report(chain: DeviceChain): void {
    const poison = this.#poison;
    for (const { address, length, bytes } of this.#pages?.ranges(chain) ?? []) {
      this.#rules?.reporting(length, poison === null ? null : isFilled(bytes, poison));
      this.#port.reported += length;
      this.#port.onReport?.({ address, length });
      // With PAGE_POISON nothing but poison_val may be there, which is there already.
      if (poison === null) this.#pages?.drop(bytes);
    }
  }

  #reported(chain: DeviceChain): void {
    if (this.#rules === null) return;
    const poison = this.#poison;
    for (const { length, bytes } of this.#pages?.ranges(chain) ?? [])
      this.#rules.reported(
        length,
        poison === null ? (this.#pages?.isDropped(bytes) ?? true) : isFilled(bytes, poison),
      );
  }

  /** There is nothing to be done with the buffer of statistics until somebody asks. */
  suspending(): void {
    this.#statistics?.queue.put(this.#statistics.chain, 0);
    this.#statistics = null;
  }

  // ── reset ───────────────────────────────────────────────────────────────────

  reset(queue?: number): null {
    const port = this.#port;
    if (queue !== undefined) {
      this.#kept = this.#kept.filter(({ queue: { index } }) => index !== queue);
      if (this.#roles[queue] === BalloonQueue.STATS) this.#statistics = null;
      return null;
    }
    this.#rules?.reset(this.#kept.length === 0);
    this.#kept = [];
    this.#statistics = null;
    this.#hadStatistics = false;
    this.#round = BalloonHint.STOP;
    this.#balloon.clear();
    this.#pending.clear();
    port.pages = 0;
    this.#configuration.reset();
    port.forget();
    return null;
  }

  async close(): Promise<void> {
    this.#port.back = null;
  }
}

/** In any order, and whatever tags there are (§5.5.6.3.2): of one that comes twice the last counts. */
function parse(bytes: Uint8Array): Map<BalloonStatistic, number> {
  const view = new DataView(bytes.buffer);
  const found = new Map<BalloonStatistic, number>();
  for (let at = 0; at + BALLOON_STATISTIC_SIZE <= bytes.length; at += BALLOON_STATISTIC_SIZE)
    found.set(
      view.getUint16(at, true),
      view.getUint32(at + 2, true) + view.getUint32(at + 6, true) * 0x1_0000_0000,
    );
  return found;
}

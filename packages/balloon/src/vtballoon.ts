// vtballoon: the VirtIO memory balloon driver (virtio 1.4 §5.5; FreeBSD's virtio_balloon(4)).
// A worker brings the balloon to the size that the device asks for, one request at a time.
import {
  DeviceType,
  type Driver,
  type DriverContext,
  type FeatureSet,
  ReservedFeature,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { BalloonConfig, BalloonFeature, BalloonHint } from "@virtio/core/balloon";
import { Arrivals } from "./arrivals.js";
import { PAGES_PER_REQUEST } from "./balloon.js";
import type { BalloonDevice } from "./balloon-device.js";
import { type Features, featureNames, settle } from "./features.js";
import { byTunable, tunables, type VtballoonOptions } from "./options.js";
import { makeParts, type Parts } from "./parts.js";
import { allocateQueues, type BalloonQueues } from "./queues.js";
import { Requests } from "./request.js";
import type { BalloonCounters } from "./statistics.js";
import { Worker } from "./worker.js";

/** How long the balloon waits for a page to become free (VTBALLOON_LOWMEM_TIMEOUT), and leaves those alone that it gave back. */
const RETRY_MS = 1000;
/** How long free pages lie before they are reported: they may be needed again. */
const REPORT_MS = 2000;
/** Resets one after the other, no request done between them, before the device counts as dead. */
const RESETS_MAX = 3;

/** What is read of a device that is not there any more. */
const NO_ANSWER = 0xffff_ffff;

/** Times of the worker: something is to be done at once, or nothing is. */
const NOW = 0;
const NEVER = Number.POSITIVE_INFINITY;

/**
 * The balloon driver: `attach(node, vtballoon())` gives a {@link BalloonDevice}.
 * @see virtio_balloon(4)
 */
export function vtballoon(options: VtballoonOptions = {}): Driver<BalloonDevice> {
  return {
    name: "vtballoon",
    description: "VirtIO Balloon Adapter",
    types: [DeviceType.BALLOON],
    features: featureNames,
    tunables,
    options: byTunable(options),
    attach: (device, context) => Vtballoon.attach(device, context),
  };
}

/** States: running, suspended, closed. The worker works in the first alone. */
class Vtballoon implements BalloonDevice {
  readonly name: string;
  readonly closed: Promise<VirtioFault | null>;
  readonly statistics: BalloonCounters = {
    inflated: 0,
    deflated: 0,
    relieved: 0,
    failures: 0,
    hinted: 0,
    reported: 0,
    statistics: 0,
    resets: 0,
  };
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #features: FeatureSet<Features>;
  readonly #queues: readonly Virtqueue[];
  readonly #requests: Requests;
  readonly #parts: Parts;
  readonly #worker: Worker;
  readonly #arrivals = new Arrivals();
  readonly #unwatch: () => void;
  #desired = 0;
  /** The configuration changed since it was read. */
  #changed = true;
  /** No page was to be had: when the next look is due. */
  #retryAt = NOW;
  /** Memory was short: the balloon leaves what is free alone until then. */
  #pausedUntil = NOW;
  /** Memory is short, and the device is to be told before a page is used. */
  #relief = false;
  /** When free pages are to be reported. */
  #reportAt = NEVER;
  #suspended = false;
  /** What a queue broke with, until the device is reset. */
  #trouble: VirtioFault | null = null;
  #resets = 0;
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  private constructor(
    device: VirtioDevice,
    context: DriverContext,
    features: FeatureSet<Features>,
    queues: BalloonQueues,
  ) {
    const { memory, tasks } = device;
    this.name = context.name;
    this.#device = device;
    this.#context = context;
    this.#features = features;
    const timeoutMs = context.tunables.number("timeout") * 1000;
    this.#requests = new Requests({ name: context.name, tasks, timeoutMs });
    this.#parts = makeParts(queues, {
      memory,
      tasks,
      requests: this.#requests,
      counters: this.statistics,
      tunables: context.tunables,
      features,
    });
    const { inflate, deflate, stats, freePage, reporting } = queues;
    const served = [inflate, deflate, reporting].filter((queue) => queue !== null);
    for (const queue of served) this.#requests.serve(queue);
    this.#queues = [...served, stats, freePage].filter((queue) => queue !== null);
    for (const queue of this.#queues) queue.onBroken = (fault) => this.#broken(queue, fault);
    this.#worker = new Worker({
      tasks,
      step: () => this.#step(),
      failed: (error) => this.#recover(error),
    });
    device.onConfigChange = () => {
      // A look is due now, whatever it waited for (FreeBSD).
      this.#retryAt = NOW;
      this.#changed = true;
      this.#worker.wake();
    };
    this.#unwatch = memory.watch({
      shortage: () => this.#shortage(),
      freed: () => this.#freed(),
    });
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
  }

  /** virtio 1.4 §3.1.1, steps 4 to 7; §5.5.5. */
  static async attach(device: VirtioDevice, context: DriverContext): Promise<Vtballoon> {
    const settled = await settle(device, context.tunables);
    await device.finalizeFeatures();
    const queues = await allocateQueues(device, settled, context.name);
    await device.setupInterrupts();
    // Last, because nobody but the driver gives this memory back.
    const driver = new Vtballoon(device, context, settled.features, queues);
    try {
      await driver.#prepare();
      await driver.#look();
    } catch (error) {
      driver.#unwatch();
      driver.#dispose();
      throw error;
    }
    const { sysctl } = context;
    sysctl.value("desired", "Desired balloon size in pages", () => driver.desired);
    sysctl.value("current", "Current balloon size in pages", () => driver.current);
    return driver;
  }

  /** Before DRIVER_OK, and not after it (§5.5.6.6.1). */
  async #prepare(): Promise<void> {
    if (!this.#features.has(BalloonFeature.PAGE_POISON)) return;
    const poison = this.#context.tunables.number("page_poison");
    await this.#device.config.write(BalloonConfig.poisonVal[0], 4, poison);
  }

  /** DRIVER_OK is set. */
  async started(): Promise<void> {
    this.#start(true);
  }

  /** `fresh`: the device was reset, and has no buffer of statistics. */
  #start(fresh: boolean): void {
    this.#changed = true;
    this.#requests.arm();
    this.#parts.statistics?.start(fresh);
    if (this.#parts.reports !== null) this.#reportAt = this.#now + REPORT_MS;
    this.#worker.begin();
  }

  get desired(): number {
    return this.#desired;
  }

  get current(): number {
    return this.#parts.balloon.current;
  }

  reached({ signal }: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    if (this.#fault !== null) return Promise.reject(this.#fault);
    const arrival = this.#arrivals.wait(signal);
    this.#worker.wake();
    return arrival;
  }

  get #now(): number {
    return this.#device.tasks.now();
  }

  // ── the worker (vtballoon_thread) ───────────────────────────────────────────

  /** Looks at what the device wants. @throws VirtioFault CLOSED where nothing answers, besides what readAll throws */
  async #look(): Promise<void> {
    const { numPages, actual, freePageHintCmdId } = BalloonConfig;
    const { hints } = this.#parts;
    // Only what a notification was sent for counts: QEMU shows STOP while a round goes on.
    const command = hints !== null && this.#changed;
    this.#changed = false;
    const config: Record<string, number> = await this.#device.config.readAll<string>({
      numPages,
      actual,
      ...(command ? { freePageHintCmdId } : {}),
    });
    // Nobody wrote that there.
    if (config["actual"] === NO_ANSWER)
      throw new VirtioFault("CLOSED", "the device is gone", { device: this.name });
    this.#desired = config["numPages"] ?? 0;
    if (command) hints.command = config["freePageHintCmdId"] ?? BalloonHint.STOP;
  }

  /** Does one thing: when there may be more to do. */
  async #step(): Promise<number> {
    if (this.#trouble !== null) throw this.#trouble;
    const { balloon, hints, reports } = this.#parts;
    this.#arrivals.look();
    await this.#look();
    if (await this.#resize()) {
      await this.#update();
      return NOW;
    }
    if (!balloon.owes && balloon.current === this.#desired) this.#arrivals.arrived();
    if (hints !== null && (await hints.step())) return this.#done();
    if (reports !== null && this.#now >= this.#reportAt) {
      if (await reports.step()) return this.#done();
      this.#reportAt = NEVER;
    }
    const inflateAt = balloon.current < this.#desired ? this.#inflateAt : NEVER;
    return Math.min(inflateAt, this.#reportAt);
  }

  get #inflateAt(): number {
    return Math.max(this.#retryAt, this.#pausedUntil);
  }

  #done(): number {
    this.#resets = 0;
    return NOW;
  }

  /** One request towards the size that is wanted: whether there was one. */
  async #resize(): Promise<boolean> {
    const { balloon } = this.#parts;
    const more = this.#desired - balloon.current;
    if (balloon.owes) await balloon.tellRelieved();
    else if (this.#relief) await this.#relieve();
    else if (more < 0) await balloon.deflate(-more);
    else if (more > 0 && this.#now >= this.#inflateAt) return this.#inflate(more);
    else return false;
    return true;
  }

  async #inflate(more: number): Promise<boolean> {
    const got = await this.#parts.balloon.inflate(more);
    if (got < Math.min(more, PAGES_PER_REQUEST)) {
      this.#retryAt = this.#now + RETRY_MS;
      this.statistics.failures += 1;
    }
    return got > 0;
  }

  /** The device knows how many pages it has: after every request, as FreeBSD (§5.5.6.1). */
  async #update(): Promise<void> {
    const [offset] = BalloonConfig.actual;
    await this.#device.config.write(offset, 4, this.#parts.balloon.actual);
    this.#resets = 0;
  }

  // ── memory (see FreeMemoryWatcher) ──────────────────────────────────────────

  /** DEFLATE_ON_OOM: the oldest pages are free at once, where the device may be told afterwards. */
  #shortage(): boolean {
    const { balloon } = this.#parts;
    const yields = this.#features.has(BalloonFeature.DEFLATE_ON_OOM);
    if (!yields || this.#fault !== null || balloon.current === 0) return false;
    this.#pausedUntil = this.#now + RETRY_MS;
    this.#worker.wake();
    if (this.#features.has(BalloonFeature.MUST_TELL_HOST)) {
      this.#relief = true;
      return false;
    }
    const count = balloon.relieve();
    this.statistics.relieved += count;
    return count > 0;
  }

  /** With MUST_TELL_HOST: whoever asks again finds memory. */
  async #relieve(): Promise<void> {
    const { balloon } = this.#parts;
    this.#relief = false;
    const before = balloon.current;
    await balloon.deflate(PAGES_PER_REQUEST);
    this.statistics.relieved += before - balloon.current;
    this.#pausedUntil = this.#now + RETRY_MS;
  }

  #freed(): void {
    if (this.#parts.reports === null || this.#reportAt !== NEVER || !this.#worker.working) return;
    this.#reportAt = this.#now + REPORT_MS;
    this.#worker.wake();
  }

  // ── faults ──────────────────────────────────────────────────────────────────

  #broken(queue: Virtqueue, fault: VirtioFault): void {
    // A reset may have come between.
    if (queue.broken !== fault) return;
    this.#trouble ??= fault;
    this.#requests.fail(fault);
    // One that is suspended cannot be set up.
    if (this.#suspended && this.#fault === null) this.#die(fault);
    this.#worker.wake();
  }

  /** The worker cannot go on: resets a device that does not answer, or asks for it. All pages are the guest's then. */
  async #recover(error: unknown): Promise<void> {
    const fault = this.#trouble ?? asFault(error, this.name);
    const mends = fault.code === "TIMED_OUT" || fault.code === "NEEDS_RESET";
    if (!mends || this.#resets === RESETS_MAX) {
      this.#die(fault);
      return;
    }
    this.#resets += 1;
    this.statistics.resets += 1;
    this.#context.log(`${fault.message.replace(`${this.name}: `, "")}: resetting the device`);
    try {
      await this.#reset();
      if (this.#worker.working) this.#start(true);
    } catch (reason) {
      this.#die(asFault(reason, this.name));
    }
  }

  /** The device has nothing any more. @throws VirtioFault what reinit throws */
  async #reset(): Promise<void> {
    this.#parts.statistics?.stop();
    await this.#device.reinit(undefined, () => this.#prepare());
    this.#trouble = null;
    this.#requests.restart();
    this.#forget();
  }

  #forget(): void {
    const { balloon, hints, reports } = this.#parts;
    balloon.empty();
    hints?.forget();
    reports?.forget();
    this.#relief = false;
  }

  /** The device broke a rule, cannot be reset, or is gone: what it has waits for a reset. */
  #die(fault: VirtioFault): void {
    this.#fault = fault;
    this.#unwatch();
    this.#worker.stop();
    this.#parts.statistics?.stop();
    this.#arrivals.fail(fault);
    if (this.#detaching === null) this.#close(fault);
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  /** As FreeBSD, all pages go back while the device runs; unlike it, the last size is written, too (§5.5.6.1). */
  async #detach(): Promise<void> {
    this.#unwatch();
    await this.#worker.halt();
    const orderly = this.#fault === null;
    this.#fault ??= new VirtioFault("CLOSED", "the balloon is detached", { device: this.name });
    try {
      if (orderly && !this.#suspended) await this.#giveAllBack();
    } catch (error) {
      this.#context.log(`pages are given back by a reset: ${String(error)}`);
    }
    this.#parts.statistics?.stop();
    this.#requests.fail(this.#fault);
    try {
      await this.#device.release();
      this.#free();
    } finally {
      this.#arrivals.fail(this.#fault);
      this.#close(orderly ? null : this.#fault);
    }
  }

  /** @throws VirtioFault what Requests.run throws */
  async #giveAllBack(): Promise<void> {
    const { balloon } = this.#parts;
    while (balloon.actual > 0) {
      if (this.#trouble !== null) throw this.#trouble;
      if (balloon.owes) await balloon.tellRelieved();
      else await balloon.deflate(PAGES_PER_REQUEST);
      await this.#update();
    }
  }

  /** A device that went away was not reset: memory that it has is never used again. */
  #free(): void {
    const gone = this.#queues.some(({ broken }) => broken?.code === "CLOSED");
    if (gone && (this.current > 0 || this.#queues.some(({ used }) => used > 0))) {
      this.#context.log(`the device went away with ${this.current} pages: they are lost`);
      return;
    }
    this.#forget();
    this.#dispose();
  }

  #dispose(): void {
    const { balloon, statistics, hints } = this.#parts;
    for (const part of [balloon, statistics, hints]) part?.dispose();
  }

  /** Pages stay in the balloon of a device that suspends; one that is reset instead gives them back before. */
  async suspend(): Promise<void> {
    if (this.#fault !== null || this.#suspended) return;
    await this.#worker.halt();
    // One that failed meanwhile has nothing to suspend.
    if (this.#fault !== null) return;
    let reset = false;
    try {
      if (this.#trouble !== null) throw this.#trouble;
      if (!this.#suspends) {
        await this.#giveAllBack();
        await this.#reset();
        reset = true;
      }
      this.#parts.statistics?.stop();
      await this.#device.suspend();
      this.#suspended = true;
    } catch (error) {
      this.#start(reset);
      throw error;
    }
  }

  get #suspends(): boolean {
    return this.#features.has(ReservedFeature.SUSPEND);
  }

  async resume(): Promise<void> {
    if (this.#fault !== null || !this.#suspended) return;
    await this.#device.resume(() => this.#prepare());
    this.#suspended = false;
    this.#start(!this.#suspends);
  }
}

function asFault(error: unknown, device: string): VirtioFault {
  return error instanceof VirtioFault
    ? error
    : new VirtioFault("IO", String(error), { device, cause: error });
}

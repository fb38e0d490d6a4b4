// Up and down, resets and recovery, suspend and detach (vtnet_init_locked, vtnet_stop, vtnet_watchdog).
//
// One thing is done after the other; a fault alone does not wait for its turn.
import {
  type FeatureSet,
  type Log,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import type { ControlQueue } from "./control-queue.js";
import type { Features } from "./features.js";
import type { LinkWatch } from "./link.js";
import type { Setup } from "./setup.js";
import type { Statistics } from "./statistics.js";
import type { Traffic } from "./traffic.js";

/** Resets one after the other, no frame sent or received between them, before the device counts as dead. */
const RESETS_MAX = 3;

/** What is brought to life. */
export interface LifeCycleOptions {
  /** `vtnet0` */
  readonly name: string;
  readonly log: Log;
  readonly device: VirtioDevice;
  readonly virtqueues: readonly Virtqueue[];
  /** Null: there is none. */
  readonly control: ControlQueue | null;
  readonly setup: Setup;
  readonly traffic: Traffic;
  readonly link: LinkWatch;
  readonly statistics: Statistics;
}

/**
 * An interface is down, up, or closed; up, it is running except while it is set up anew: after a change that the device must be reset
 * for, when it is hung, or while it is suspended. The device lives in each state: one that is down has no buffers.
 */
export class LifeCycle {
  readonly closed: Promise<VirtioFault | null>;
  /** Called when the interface is detached. */
  unpublish: () => void = () => {};
  readonly #name: string;
  readonly #log: Log;
  readonly #device: VirtioDevice;
  readonly #virtqueues: readonly Virtqueue[];
  readonly #control: ControlQueue | null;
  readonly #setup: Setup;
  readonly #traffic: Traffic;
  readonly #link: LinkWatch;
  readonly #statistics: Statistics;
  /** Pairs in use. */
  #pairs = 1;
  /** IFF_UP */
  #up = false;
  #running = false;
  #suspended = false;
  /** The device was reset, and was given nothing since. */
  #fresh = true;
  /** Ends when what was begun before is over; never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  /** A reset is to come that mends what is wrong. */
  #recovering = false;
  /** What the last reset was to mend. */
  #cause: VirtioFault | null = null;
  #resets = 0;
  /** Frames that had passed at the last reset. */
  #passed = -1;
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};

  constructor(options: LifeCycleOptions) {
    this.#name = options.name;
    this.#log = options.log;
    this.#device = options.device;
    this.#virtqueues = options.virtqueues;
    this.#control = options.control;
    this.#setup = options.setup;
    this.#traffic = options.traffic;
    this.#link = options.link;
    this.#statistics = options.statistics;
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    for (const queue of options.virtqueues)
      queue.onBroken = (fault) => {
        // A reset may have come between.
        if (queue.broken === fault) this.#broken(fault);
      };
  }

  /** Frames are received, and transmitted while the link is up (IFF_DRV_RUNNING). */
  get running(): boolean {
    return this.#running;
  }

  get pairs(): number {
    return this.#pairs;
  }

  /** Does `work` when all before is done. @throws VirtioFault what ended the interface */
  serial(work: () => Promise<void>): Promise<void> {
    const result = this.#last.then(() => {
      if (this.#fault !== null) throw this.#fault;
      return work();
    });
    this.#last = result.catch(() => {});
    return result;
  }

  // ── up and down ─────────────────────────────────────────────────────────────

  up(): Promise<void> {
    return this.serial(async () => {
      if (this.#running) return;
      if (this.#suspended) throw this.#fail("BUSY", "the device is suspended");
      await this.#init();
      this.#up = true;
    });
  }

  down(): Promise<void> {
    return this.serial(async () => {
      this.#up = false;
      await this.#stop();
    });
  }

  /** Within serial(): changes what cannot be changed while the device has buffers. @throws VirtioFault what `change` throws, when it runs again */
  async anew(change: () => void): Promise<void> {
    const running = this.#running;
    await this.#stop();
    try {
      change();
    } finally {
      if (running) await this.#init();
    }
  }

  /** Buffers, filters, pairs of queues; then frames pass. @throws VirtioFault, and does not run then */
  async #init(): Promise<void> {
    try {
      const features = this.#setup.wanted;
      const same = features.words().every((word, i) => word === this.#setup.features.words()[i]);
      if (!this.#fresh || !same) await this.#reset(features);
      this.#fresh = false;
      this.#traffic.setFlags(features, this.#setup.enabled);
      this.#control?.arm();
      await this.#setup.everything();
      this.#traffic.begin(features);
      this.#pairs = await this.#setup.pairs();
    } catch (error) {
      await this.#stop();
      throw error;
    }
    if (this.#fault !== null) throw this.#fault;
    this.#running = true;
    this.#traffic.start(this.#pairs);
    this.#traffic.setLink(this.#link.now.up);
    await this.#link.changed();
  }

  #halt(): void {
    this.#running = false;
    this.#traffic.stop();
  }

  /** No frame passes; the device has no buffers any more. */
  async #stop(): Promise<void> {
    this.#halt();
    this.#pairs = 1;
    // One that halted for a fault has them still.
    if (this.#fresh || this.#fault !== null) return;
    await this.#reset(this.#setup.features);
    await this.#link.changed();
  }

  /** The device forgets everything, and is live again. @throws VirtioFault, and the interface is dead then */
  async #reset(features: FeatureSet<Features>): Promise<void> {
    this.#control?.fail(this.#fail("BUSY", "the device is being reset"));
    this.#link.paused = true;
    try {
      await this.#device.reinit(features);
    } catch (error) {
      const fault = error instanceof VirtioFault ? error : this.#fail("IO", String(error));
      this.#die(fault);
      throw fault;
    }
    // Detached meanwhile: nothing is begun any more.
    if (this.#fault !== null) throw this.#fault;
    this.#link.paused = false;
    this.#traffic.end();
    this.#control?.restart();
    this.#setup.features = features;
    this.#fresh = true;
    this.#recovering = false;
  }

  // ── faults ──────────────────────────────────────────────────────────────────

  /** A transmit queue does not get on. */
  hung(queue: number): void {
    const what = `watchdog timeout on queue ${queue}`;
    this.#recover(what, this.#fail("TIMED_OUT", what));
  }

  #broken(fault: VirtioFault): void {
    if (fault.code === "NEEDS_RESET") this.#recover("the device needs a reset", fault);
    else this.#die(fault);
  }

  /** Resets the device and sets it up again. What it had to send is lost. */
  #recover(why: string, fault: VirtioFault): void {
    if (this.#fault !== null || this.#recovering) return;
    // What was transmitted is counted when it is taken back.
    this.#traffic.reap();
    const { ipackets, opackets } = this.#statistics.interface;
    this.#resets = ipackets + opackets === this.#passed ? this.#resets + 1 : 1;
    this.#passed = ipackets + opackets;
    if (this.#suspended || this.#resets > RESETS_MAX) {
      this.#die(fault);
      return;
    }
    this.#log(why);
    this.#recovering = true;
    this.#cause = fault;
    this.#control?.fail(fault);
    this.#halt();
    // A device that has nothing is reset too.
    this.#fresh = false;
    const work = this.serial(async () => {
      // Something that was begun before may have reset it, or suspended it.
      if (this.#recovering && this.#suspended) throw fault;
      if (this.#recovering) await this.#stop();
      if (this.#up && !this.#running && !this.#suspended) await this.#init();
    });
    void work.catch((error: unknown) => {
      // One that came while it was set up is mended in its turn.
      if (error === fault || error !== this.#cause)
        this.#die(error instanceof VirtioFault ? error : fault);
    });
  }

  /** The device broke a rule, cannot be reset, or is gone. */
  #die(fault: VirtioFault): void {
    if (this.#fault !== null) return;
    this.#end(fault);
    this.#traffic.close(fault);
    this.#close(fault);
  }

  /** Nothing is begun any more; what is under way ends, each part of it being bounded. */
  #end(fault: VirtioFault): void {
    this.#fault = fault;
    this.#link.paused = true;
    this.#halt();
    this.#control?.fail(fault);
  }

  // ── suspend and detach ──────────────────────────────────────────────────────

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  async #detach(): Promise<void> {
    this.unpublish();
    const orderly = this.#fault === null;
    if (orderly) this.#end(this.#fail("CLOSED", "the interface is detached"));
    await this.#last;
    try {
      await this.#device.release();
      this.#free();
    } finally {
      if (orderly) {
        this.#traffic.close(null);
        this.#close(null);
      }
    }
  }

  /** A device that went away was not reset: memory that it may still write to is never used again. */
  #free(): void {
    if (this.#virtqueues.some((queue) => queue.broken?.code === "CLOSED" && queue.used > 0)) {
      this.#log("the device went away with buffers: their memory is lost");
      return;
    }
    this.#traffic.free();
    this.#control?.free();
  }

  /** As FreeBSD: stopped, so that the device has nothing. */
  suspend(): Promise<void> {
    return this.#suspendable(async () => {
      await this.#stop();
      await this.#device.suspend();
      this.#link.paused = true;
      this.#suspended = true;
    });
  }

  resume(): Promise<void> {
    return this.#suspendable(async () => {
      await this.#device.resume();
      if (this.#fault !== null) throw this.#fault;
      this.#link.paused = false;
      this.#suspended = false;
      if (this.#up && !this.#running) await this.#init();
      else await this.#link.changed();
    });
  }

  /** One that failed has nothing to suspend. */
  async #suspendable(work: () => Promise<void>): Promise<void> {
    if (this.#fault === null) await this.serial(work);
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#name });
  }
}

// A logical unit as commands meet it: what it may have at a time, and what waits for room (CAM's device queue).
import { VirtioFault } from "@virtio/core";
import { ScsiSenseKey, ScsiStatus } from "@virtio/core/scsi";
import type { Ccb } from "./ccb.js";
import { isGood } from "./outcome.js";
import type { RequestQueue } from "./request-queue.js";
import { decodeSense, senseKey } from "./sense.js";

/** What a unit needs of its adapter. */
export interface LogicalUnitOptions {
  /** `vtscsi0` */
  readonly adapter: string;
  /** Commands that it may have at a time. */
  readonly openings: number;
  /** Why the adapter takes no commands any more; null: it does. */
  readonly fault: () => VirtioFault | null;
  /** Nothing is given to the device now. */
  readonly held: () => boolean;
  /** Why there will be no room; null: there may be some. */
  readonly noRoom: () => VirtioFault | null;
  /** A command found no room: progress() is to be called when there may be some. */
  readonly starved: (unit: LogicalUnit) => void;
  /** A command is over: the same. */
  readonly ended: (unit: LogicalUnit) => void;
  /** It has nothing any more. */
  readonly idle: (unit: LogicalUnit) => void;
  /** A command was not done, but told that something changed: `asc << 8 | ascq`. */
  readonly attention: (unit: LogicalUnit, code: number) => void;
}

/**
 * One target's LUN. All its commands go through one queue, so that the device gets them in the order in which they were given. Each
 * ends once: `done` of what start() took.
 */
export class LogicalUnit {
  readonly target: number;
  readonly lun: number;
  readonly queue: RequestQueue;
  /** Told when there may be room for what start() did not take. */
  onRoom: (() => void) | null = null;
  /** Why it takes no commands any more: it is gone. */
  fault: VirtioFault | null = null;
  /** Something is being done about it that no command may disturb. */
  frozen = false;
  /** It is there: known to the scan. Else it is forgotten once it is idle. */
  present = false;
  readonly #options: LogicalUnitOptions;
  /** Commands that are not over. */
  #inFlight = 0;
  /** Commands that are over for their owners and that the device still has. */
  #abandoned = 0;
  /** It takes no more before they are back. */
  #stuck = false;
  #waiting: Ccb[] = [];

  constructor(target: number, lun: number, queue: RequestQueue, options: LogicalUnitOptions) {
    this.target = target;
    this.lun = lun;
    this.queue = queue;
    this.#options = options;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Nobody is waited for, and nothing is the device's. */
  get idle(): boolean {
    return this.#inFlight === 0 && this.#abandoned === 0 && this.#waiting.length === 0;
  }

  /** Gives the device one command; false when there is no room for it now: then `onRoom` is called when there may be. */
  start(ccb: Ccb): boolean {
    if (this.#waiting.length > 0 || !this.#give(ccb)) {
      this.#options.starved(this);
      return false;
    }
    return true;
  }

  /** The same for one that waits for room by itself. */
  submit(ccb: Ccb): void {
    if (this.start(ccb)) return;
    ccb.unit = this;
    ccb.late = false;
    this.#waiting.push(ccb);
  }

  /** Takes one that waits back; false: it does not wait. */
  withdraw(ccb: Ccb, fault: VirtioFault): boolean {
    const at = this.#waiting.indexOf(ccb);
    if (at < 0) return false;
    this.#waiting.splice(at, 1);
    ccb.unit = null;
    ccb.fault = fault;
    ccb.done(ccb);
    return true;
  }

  #give(ccb: Ccb): boolean {
    const refusal = this.fault ?? this.#options.fault() ?? this.#refusal();
    if (refusal === null) {
      if (this.frozen || this.#inFlight >= this.#options.openings || this.#options.held())
        return false;
      ccb.unit = this;
      ccb.late = false;
      this.#inFlight += 1;
      if (this.queue.start(ccb, this)) return true;
      this.#inFlight -= 1;
      ccb.unit = null;
    }
    const fault = refusal ?? this.#options.noRoom();
    if (fault === null) return false;
    ccb.fault = fault;
    ccb.done(ccb);
    return true;
  }

  /** One that does not give back what timed out gets no more, until it does or the device is reset. */
  #refusal(): VirtioFault | null {
    if (!this.#stuck) return null;
    return new VirtioFault(
      "TIMED_OUT",
      `target ${this.target} lun ${this.lun} still has ${this.#abandoned} commands that timed out`,
      { device: this.#options.adapter },
    );
  }

  /** There may be room: what waits comes first. */
  progress(): void {
    let taken = 0;
    while (taken < this.#waiting.length && this.#give(this.#waiting[taken] as Ccb)) taken += 1;
    this.#waiting.splice(0, taken);
    if (this.#waiting.length > 0) this.#options.starved(this);
    else this.onRoom?.();
    this.queue.notify();
  }

  // ── of the queue ────────────────────────────────────────────────────────────

  /** A command is over. */
  over(ccb: Ccb, fault: VirtioFault | null): void {
    this.#inFlight -= 1;
    ccb.unit = null;
    // What a unit that is gone did not do it will not do.
    ccb.fault = fault ?? (isGood(ccb) ? null : this.fault);
    if (ccb.status === ScsiStatus.CHECK_CONDITION && ccb.fault === null) this.#attend(ccb);
    ccb.done(ccb);
    this.#options.ended(this);
    if (this.idle) this.#options.idle(this);
  }

  #attend({ sense, senseLength }: Ccb): void {
    const key = senseKey(sense, senseLength);
    // That a medium was taken out is said in no other way.
    if (key !== ScsiSenseKey.UNIT_ATTENTION && key !== ScsiSenseKey.NOT_READY) return;
    const said = decodeSense(sense, senseLength);
    if (said !== null) this.#options.attention(this, (said.asc << 8) | said.ascq);
  }

  /** A command ends that the device still has. */
  abandon(): void {
    this.#abandoned += 1;
    this.#stuck = true;
  }

  /** The device gave back what was abandoned. */
  returned(): void {
    this.#abandoned -= 1;
    if (this.#abandoned === 0) this.#stuck = false;
    this.#options.ended(this);
    if (this.idle) this.#options.idle(this);
  }

  // ── of the adapter ──────────────────────────────────────────────────────────

  /** It is gone: nothing more is given, and what waits ends. What the device has ends by the queue. */
  close(fault: VirtioFault): void {
    this.fault ??= fault;
    for (const ccb of this.#waiting.splice(0)) {
      ccb.unit = null;
      ccb.fault = this.fault;
      ccb.done(ccb);
    }
  }
}

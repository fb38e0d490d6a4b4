// One request queue of a SCSI host (virtio 1.4 §5.6.2, §5.6.6.1): a virtqueue, its slots, and the hot path.
import { type DmaMemory, type TaskQueue, VirtioFault, type Virtqueue } from "@virtio/core";
import { SCSI_SENSE_SIZE, ScsiAnswer, ScsiResponse, ScsiStatus } from "@virtio/core/scsi";
import type { BouncePages } from "@virtio/storage";
import { type Ccb, Direction } from "./ccb.js";
import type { CommandTimer } from "./command-timer.js";
import type { LogicalUnit } from "./logical-unit.js";
import { REQUEST_SIZE, RESPONSE_SIZE, RequestSlots } from "./request-slots.js";
import { senseKey, succeeded } from "./sense.js";

/** Segments of a command besides data: request and response. */
export const OVERHEAD_SEGMENTS = 2;
/** Used commands taken before other tasks get their turn. */
const BATCH = 256;
/**
 * Turns of other tasks after which the ring is looked at once more, in vain, before the device is asked to interrupt: waking up, here and
 * there, takes longer than many a command.
 */
const LOOKS = 16;

/** What a queue needs of its adapter. */
export interface RequestQueueOptions {
  /** `vtscsi0` */
  readonly adapter: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** Shared by all queues of the adapter. */
  readonly pages: BouncePages;
  readonly timer: CommandTimer;
  /** Most data segments of a command. */
  readonly dataSegments: number;
  /** A command takes one descriptor, else one for each segment. */
  readonly indirect: boolean;
  /** The legacy interface: used lengths say nothing (§5.6.6.0.1). */
  readonly legacy: boolean;
  /** Commands are over: there may be room. */
  readonly onProgress: () => void;
  /** See Virtqueue. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** What is remembered of a slot: words of one array, so that a command makes no object. */
enum Entry {
  /** 1 while the device has it. */
  HELD,
  /** First page it is bounced through; -1: in place, or no data. */
  PAGE,
  /** Bytes of data. */
  LENGTH,
  /** The timer's, when it is late. */
  DEADLINE,
}
const ENTRY_SHIFT = 2;

/** Gives commands to the device and takes them back; each ends once, by the device or by fail(). */
export class RequestQueue {
  readonly #queue: Virtqueue;
  readonly #index: number;
  readonly #options: RequestQueueOptions;
  readonly #memory: DmaMemory;
  readonly #pages: BouncePages;
  readonly #slots: RequestSlots;
  /** By slot; null: over, abandoned, or never begun. */
  readonly #ccbs: (Ccb | null)[];
  /** By slot: whose it is, until the device gives it back. */
  readonly #units: (LogicalUnit | null)[];
  readonly #record: Int32Array;
  readonly #segments: Uint32Array;
  /** Commands so far: the high word of their tags, so that an abort never meets another command of the same slot. */
  #generation = 0;
  #inFlight = 0;
  #abandoned = 0;
  /** The device will interrupt. While commands are in flight it will, or the ring is to be looked at. */
  #armed = false;
  /** A look is to come. */
  #looking = false;
  /** Looks that may still be in vain. */
  #looks = 0;
  #stopped = false;
  readonly #look = (): void => {
    this.#looking = false;
    // Of a ring that nothing is expected from the memory may be gone.
    if (this.#inFlight > 0 && !this.#stopped) this.#completions();
  };

  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(queue: Virtqueue, options: RequestQueueOptions) {
    this.#queue = queue;
    this.#index = queue.index;
    this.#options = options;
    this.#memory = options.memory;
    this.#pages = options.pages;
    this.#slots = new RequestSlots(options.memory, queue.size);
    this.#ccbs = new Array(queue.size).fill(null);
    this.#units = new Array(queue.size).fill(null);
    this.#record = new Int32Array(queue.size << ENTRY_SHIFT);
    for (let slot = 0; slot < queue.size; slot++)
      this.#record[(slot << ENTRY_SHIFT) + Entry.PAGE] = -1;
    this.#segments = new Uint32Array(2 * (options.dataSegments + OVERHEAD_SEGMENTS));
    queue.onUsed = () => this.#completions();
    queue.onBroken = (fault) => {
      // A reset may have come between.
      if (queue.broken === fault) options.onBroken(fault);
    };
  }

  /** Commands that the device has. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Of these the ones that are over for their owners: when they come back nobody knows. */
  get abandoned(): number {
    return this.#abandoned;
  }

  /** The device went away with chains of this queue: nobody knows whether it still writes to them. */
  get stranded(): boolean {
    return this.#queue.broken?.code === "CLOSED" && this.#queue.used > 0;
  }

  /** Used commands raise interrupts from now on. */
  arm(): void {
    this.#armed = true;
    if (this.#queue.enableInterrupt()) this.#lookLater();
  }

  /** Tells the device what start() gave it. */
  notify(): void {
    if (this.#stopped) return;
    this.#queue.notify();
    if (!this.#armed && this.#inFlight > 0) this.#lookLater();
  }

  /** The ring is not looked at any more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Gives the device one command, of at most the adapter's bytes; false when there is no room for it now. */
  start(ccb: Ccb, unit: LogicalUnit): boolean {
    const { data } = ccb.transfer;
    if (data === null && ccb.direction !== Direction.NONE) {
      // It waited, and there is nobody any more to move bytes for.
      unit.over(ccb, this.#fail("IO", "the command was given up"));
      return true;
    }
    const segments = this.#segments;
    const length = data === null ? 0 : data.length;
    const bounced = data !== null && data.buffer !== this.#memory.buffer;
    const pieces = bounced ? Math.ceil(length / this.#pages.size) : length > 0 ? 1 : 0;
    const count = OVERHEAD_SEGMENTS + pieces;
    if (this.#queue.free < (this.#options.indirect ? 1 : count)) return false;
    if (bounced && pieces > this.#pages.available) return false;

    const slot = this.#slots.take();
    ccb.tagLow = (this.#index << 16) | slot;
    ccb.tagHigh = this.#generation;
    this.#generation = (this.#generation + 1) >>> 0;
    this.#slots.begin(slot, ccb, unit.target, unit.lun);
    segments[0] = this.#slots.requestAddress(slot);
    segments[1] = REQUEST_SIZE;
    // Data-out lies between request and response, data-in behind them (§5.6.6.1).
    const out = ccb.direction === Direction.OUT;
    const dataAt = out ? 2 : 4;
    const responseAt = out ? 2 + 2 * pieces : 2;
    segments[responseAt] = this.#slots.responseAddress(slot);
    segments[responseAt + 1] = RESPONSE_SIZE;
    let page = -1;
    if (bounced) page = this.#bounce(data, pieces, dataAt, out);
    else if (data !== null && pieces > 0) {
      segments[dataAt] = this.#memory.base + data.byteOffset;
      segments[dataAt + 1] = length;
    }
    const readable = out ? 1 + pieces : 1;
    const error = this.#queue.enqueue(slot, segments, 0, readable, count - readable);
    if (error !== 0) {
      this.#pages.give(page);
      this.#slots.give(slot);
      const fault = this.#queue.broken ?? this.#fail("IO", `command refused: errno ${-error}`);
      unit.over(ccb, fault);
      return true;
    }
    const entry = slot << ENTRY_SHIFT;
    const record = this.#record;
    record[entry + Entry.HELD] = 1;
    record[entry + Entry.PAGE] = page;
    record[entry + Entry.LENGTH] = length;
    record[entry + Entry.DEADLINE] = this.#options.timer.deadline(ccb.timeout);
    this.#ccbs[slot] = ccb;
    this.#units[slot] = unit;
    this.#inFlight += 1;
    return true;
  }

  /** Segments of bounced data. Pages are taken from the last piece to the first, each linked in front of the one before. */
  #bounce(data: Uint8Array, pieces: number, at: number, out: boolean): number {
    const pages = this.#pages;
    const segments = this.#segments;
    let page = -1;
    for (let i = pieces - 1; i >= 0; i--) {
      const from = i * pages.size;
      const size = Math.min(pages.size, data.length - from);
      page = pages.take(page);
      if (out) pages.fill(page, data, from, size);
      segments[at + 2 * i] = pages.address(page);
      segments[at + 2 * i + 1] = size;
    }
    return page;
  }

  #lookLater(): void {
    if (this.#looking) return;
    this.#looking = true;
    this.#options.tasks.enqueue(this.#look);
  }

  /** The device signalled, or may have more: takes what is used, and looks again; arms when there is nothing for a while. */
  #completions(): void {
    const queue = this.#queue;
    this.#armed = false;
    queue.disableInterrupt();
    let taken = 0;
    for (let slot = queue.dequeue(); slot >= 0; slot = queue.dequeue()) {
      this.#complete(slot, queue.usedLength);
      taken += 1;
      if (taken === BATCH) break;
    }
    if (taken > 0) {
      this.#looks = LOOKS;
      this.#lookLater();
      this.#options.onProgress();
    } else if (this.#looks > 0) {
      this.#looks -= 1;
      this.#lookLater();
    } else this.arm();
  }

  /** Takes what is used and was not signalled yet. */
  reap(): void {
    if (this.#inFlight > 0 && !this.#stopped) this.#completions();
  }

  /** Lets the device run without interrupts and takes one used command; false when there is none yet. */
  poll(): boolean {
    if (this.#stopped) return false;
    const slot = this.#queue.poll(0);
    if (slot >= 0) this.#complete(slot, this.#queue.usedLength);
    return slot >= 0;
  }

  #complete(slot: number, used: number): void {
    const entry = slot << ENTRY_SHIFT;
    const record = this.#record;
    if (record[entry + Entry.HELD] !== 1) return;
    const ccb = this.#ccbs[slot] as Ccb | null;
    const unit = this.#units[slot] as LogicalUnit;
    const page = record[entry + Entry.PAGE] as number;
    let fault: VirtioFault | null = null;
    if (ccb !== null) {
      fault = this.#read(slot, ccb, record[entry + Entry.LENGTH] as number, used);
      if (fault === null && page >= 0 && ccb.direction === Direction.IN)
        this.#copyIn(ccb, page, record[entry + Entry.LENGTH] as number);
    }
    this.#release(slot);
    this.#slots.give(slot);
    if (ccb === null) unit.returned();
    else unit.over(ccb, fault);
  }

  /** Nothing of the slot is the device's any more. */
  #release(slot: number): void {
    const entry = slot << ENTRY_SHIFT;
    if (this.#ccbs[slot] === null) this.#abandoned -= 1;
    this.#pages.give(this.#record[entry + Entry.PAGE] as number);
    this.#record[entry + Entry.PAGE] = -1;
    this.#record[entry + Entry.HELD] = 0;
    this.#ccbs[slot] = null;
    this.#units[slot] = null;
    this.#inFlight -= 1;
  }

  /** Takes the answer over, once; null when it is one. Only of OK is there more than the response (§5.6.6.1). */
  #read(slot: number, ccb: Ccb, length: number, used: number): VirtioFault | null {
    const slots = this.#slots;
    const { legacy } = this.#options;
    ccb.status = 0;
    ccb.senseLength = 0;
    ccb.residual = length;
    if (!legacy && used < ScsiAnswer.SENSE) return this.#short(used);
    ccb.response = slots.response(slot);
    if (ccb.response !== ScsiResponse.OK) return null;
    const sense = slots.senseLength(slot);
    const residual = slots.residual(slot);
    if (sense > SCSI_SENSE_SIZE)
      return this.#lie(`sense_len is ${sense}, above sense_size ${SCSI_SENSE_SIZE}`);
    if (residual > length) return this.#lie(`residual is ${residual}, of ${length} bytes`);
    ccb.status = slots.status(slot);
    // What lies beyond the used length nobody says to have written (§2.7.8.3).
    if (!legacy && used < ScsiAnswer.SENSE + sense) return this.#short(used);
    slots.copySense(slot, ccb.sense, sense);
    ccb.senseLength = sense;
    if (!moves(ccb)) return null;
    const written = ccb.direction === Direction.IN ? length - residual : 0;
    if (!legacy && written > 0 && used < RESPONSE_SIZE + written) return this.#short(used);
    ccb.residual = residual;
    return null;
  }

  #copyIn({ transfer, residual }: Ccb, first: number, length: number): void {
    const pages = this.#pages;
    if (transfer.data === null) return;
    let left = length - residual;
    for (let page = first, at = 0; page >= 0 && left > 0; page = pages.next(page)) {
      const size = Math.min(pages.size, left);
      pages.copy(page, transfer.data, at, size);
      at += size;
      left -= size;
    }
  }

  /** Calls `each` with every command that is late and was not before. */
  late(tick: number, each: (ccb: Ccb) => void): void {
    for (let slot = 0; slot < this.#ccbs.length; slot++) {
      const ccb = this.#ccbs[slot];
      if (ccb === null || ccb === undefined || ccb.late) continue;
      if (tick < (this.#record[(slot << ENTRY_SHIFT) + Entry.DEADLINE] as number)) continue;
      ccb.late = true;
      each(ccb);
    }
  }

  /**
   * Ends commands with a fault. What the device holds of their memory is its own until it gives it back, or a reset. Their units must
   * not take commands meanwhile.
   * @param why - null: not this one
   */
  fail(why: (ccb: Ccb, unit: LogicalUnit) => VirtioFault | null): void {
    for (let slot = 0; slot < this.#ccbs.length; slot++) {
      const ccb = this.#ccbs[slot];
      const owner = this.#units[slot];
      if (ccb === null || ccb === undefined || owner === null || owner === undefined) continue;
      const fault = why(ccb, owner);
      if (fault === null) continue;
      this.#ccbs[slot] = null;
      this.#abandoned += 1;
      owner.abandon();
      ccb.residual = this.#record[(slot << ENTRY_SHIFT) + Entry.LENGTH] as number;
      owner.over(ccb, fault);
    }
  }

  /**
   * The device was reset and holds nothing any more: what it had is free again. Commands that are not over end as by a reset; those
   * that are late end with `late`. Their units must not take commands meanwhile.
   */
  reclaim(late: VirtioFault): void {
    const ccbs = [...this.#ccbs];
    const units = [...this.#units];
    for (let slot = 0; slot < ccbs.length; slot++)
      if (this.#record[(slot << ENTRY_SHIFT) + Entry.HELD] === 1) this.#release(slot);
    this.#slots.reset();
    for (const [slot, unit] of units.entries()) {
      const ccb = ccbs[slot] ?? null;
      if (unit === null) continue;
      if (ccb === null) unit.returned();
      else {
        ccb.response = ScsiResponse.RESET;
        ccb.status = 0;
        unit.over(ccb, ccb.late ? late : null);
      }
    }
  }

  /** Gives its memory back. Only when no device can write to it any more. */
  free(): void {
    this.#slots.free();
  }

  #short(used: number): VirtioFault {
    return this.#fail("IO", `the device wrote ${used} bytes, less than its answer`);
  }

  #lie(what: string): VirtioFault {
    return new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: ${what}`, {
      device: this.#options.adapter,
      clause: "virtio 1.4 §5.6.6.1",
    });
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#options.adapter });
  }
}

/** Whether residual says anything: of a command that failed some devices say that all was moved. */
function moves({ status, sense, senseLength }: Ccb): boolean {
  if (status === ScsiStatus.GOOD || status === ScsiStatus.CONDITION_MET) return true;
  return status === ScsiStatus.CHECK_CONDITION && succeeded(senseKey(sense, senseLength));
}

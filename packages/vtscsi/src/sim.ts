// The adapter as commands meet it: its queues and its units (CAM's SIM).
import {
  type DriverContext,
  type FeatureSet,
  ReservedFeature,
  type ScsiBusEvent,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { ScsiFeature } from "@virtio/core/scsi";
import { BouncePages } from "@virtio/storage";
import type { Ccb } from "./ccb.js";
import { CommandTimer } from "./command-timer.js";
import { ControlQueue } from "./control-queue.js";
import { EventQueue } from "./event-queue.js";
import type { Features } from "./features.js";
import { type Host, PAGE_SIZE } from "./host.js";
import { LogicalUnit, type LogicalUnitOptions } from "./logical-unit.js";
import { RequestQueue } from "./request-queue.js";

/** Pages that data is bounced through: 4 MiB in flight. */
const PAGES = 256;

/** What the adapter is made of, and whom it tells. */
export interface SimOptions {
  readonly device: VirtioDevice;
  readonly context: DriverContext;
  readonly features: FeatureSet<Features>;
  readonly host: Host;
  /** Control, event, and request queues (§5.6.2). */
  readonly queues: readonly Virtqueue[];
  /** Nothing is given to the device now. */
  readonly held: () => boolean;
  readonly onLate: (unit: LogicalUnit, ccb: Ccb) => void;
  readonly onEvent: (event: ScsiBusEvent) => void;
  readonly onAttention: (unit: LogicalUnit, code: number) => void;
  /** The device answered commands, and what there was room for was given. */
  readonly onAnswered: () => void;
  /** A queue is broken. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** Queues, bounce pages, timer and units of one adapter. */
export class Sim {
  /** `vtscsi0` */
  readonly name: string;
  readonly host: Host;
  readonly device: VirtioDevice;
  readonly control: ControlQueue;
  /** The device tells of events. Without, it gets no buffers for any, as in FreeBSD: there are devices that fail over that. */
  readonly hasEvents: boolean;
  /** Commands that waited because there was no room in a queue, or no bounce page. */
  starvations = 0;
  readonly #options: SimOptions;
  readonly #events: EventQueue;
  readonly #pages: BouncePages;
  readonly #queues: readonly RequestQueue[];
  readonly #timer: CommandTimer;
  readonly #units = new Map<number, LogicalUnit>();
  readonly #unitOptions: LogicalUnitOptions;
  /** Units that are to be told that there may be room. */
  readonly #ready = new Set<LogicalUnit>();
  #fault: VirtioFault | null = null;

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  constructor(options: SimOptions) {
    const { device, context, features, host, queues } = options;
    const { memory, tasks } = device;
    this.#options = options;
    this.name = context.name;
    this.host = host;
    this.device = device;
    this.hasEvents = features.has(ScsiFeature.HOTPLUG) || features.has(ScsiFeature.CHANGE);
    this.#timer = new CommandTimer({
      tasks,
      busy: () => this.inFlight > 0,
      onTick: (tick) => this.#look(tick),
    });
    const common = {
      adapter: context.name,
      memory,
      tasks,
      legacy: !features.has(ReservedFeature.VERSION_1),
      onBroken: options.onBroken,
    };
    const made: { free(): void }[] = [];
    const keep = <T extends { free(): void }>(part: T): T => {
      made.push(part);
      return part;
    };
    try {
      const pages = keep(new BouncePages(memory, PAGES, PAGE_SIZE));
      this.#pages = pages;
      const { onEvent } = options;
      const [control, event, ...requests] = queues as [Virtqueue, Virtqueue, ...Virtqueue[]];
      this.control = keep(new ControlQueue(control, common));
      this.#events = keep(new EventQueue(event, { ...common, size: host.eventSize, onEvent }));
      this.#queues = requests.map((queue) =>
        keep(
          new RequestQueue(queue, {
            ...common,
            pages,
            timer: this.#timer,
            dataSegments: host.dataSegments,
            indirect: features.has(ReservedFeature.INDIRECT_DESC),
            onProgress: () => {
              this.progress();
              options.onAnswered();
            },
          }),
        ),
      );
    } catch (error) {
      for (const part of made) part.free();
      throw error;
    }
    this.#unitOptions = {
      adapter: context.name,
      openings: host.openings,
      fault: () => this.#fault,
      held: options.held,
      noRoom: () => this.#exhausted(),
      starved: (unit) => {
        this.starvations += 1;
        this.#ready.add(unit);
      },
      ended: (unit) => {
        this.#ready.add(unit);
      },
      idle: (unit) => {
        if (!unit.present && this.#units.get(keyOf(unit)) === unit) this.#units.delete(keyOf(unit));
      },
      attention: options.onAttention,
    };
  }

  /** Commands that the device has. */
  get inFlight(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.inFlight, 0);
  }

  /** All there is was kept by the device when commands timed out: what waited for that would wait for ever. */
  #exhausted(): VirtioFault | null {
    const abandoned = this.#queues.reduce((sum, queue) => sum + queue.abandoned, 0);
    if (abandoned === 0 || this.inFlight > abandoned) return null;
    return new VirtioFault(
      "TIMED_OUT",
      `the device keeps the memory of ${abandoned} commands that timed out: there is none for another`,
      { device: this.name },
    );
  }

  // ── units ───────────────────────────────────────────────────────────────────

  /** A unit, whether the device has it or not. Units are spread over the queues, and each keeps to its own. */
  unit(target: number, lun: number): LogicalUnit {
    const key = keyOf({ target, lun });
    const known = this.#units.get(key);
    if (known !== undefined) return known;
    const queue = this.#queues[(target + lun) % this.#queues.length] as RequestQueue;
    const unit = new LogicalUnit(target, lun, queue, this.#unitOptions);
    this.#units.set(key, unit);
    return unit;
  }

  /** A unit is there. */
  keep(unit: LogicalUnit): void {
    unit.present = true;
    this.#units.set(keyOf(unit), unit);
  }

  /** A unit is gone: it takes nothing more, and what it was given may still come to an end. */
  drop(unit: LogicalUnit, fault: VirtioFault): void {
    unit.present = false;
    if (this.#units.get(keyOf(unit)) === unit) this.#units.delete(keyOf(unit));
    unit.close(fault);
    unit.onRoom?.();
  }

  /** Tells the device what units were given. */
  start(): void {
    if (this.#fault !== null) return;
    const queues = this.#queues;
    for (let i = 0; i < queues.length; i++) (queues[i] as RequestQueue).notify();
    if (this.inFlight > 0) this.#timer.watch();
  }

  /** There may be room again. */
  progress(): void {
    for (const unit of [...this.#ready]) {
      this.#ready.delete(unit);
      unit.progress();
    }
    if (this.inFlight > 0) this.#timer.watch();
  }

  #look(tick: number): void {
    for (const queue of this.#queues) {
      // It may be over, and only not seen yet.
      queue.reap();
      queue.late(tick, (ccb) => {
        if (ccb.unit !== null) this.#options.onLate(ccb.unit, ccb);
      });
    }
  }

  /** Lets the device run without interrupts and takes one command that is over; false when there is none yet. */
  poll(): boolean {
    return this.#queues.some((queue) => queue.inFlight > 0 && queue.poll());
  }

  /** Ends the commands for which there is a fault: see RequestQueue. */
  fail(why: (ccb: Ccb, unit: LogicalUnit) => VirtioFault | null): void {
    for (const queue of this.#queues) queue.fail(why);
    this.progress();
  }

  // ── life ────────────────────────────────────────────────────────────────────

  /** Before DRIVER_OK, and after each reset: the device gets its event buffers (§5.6.6.3). @throws VirtioFault IO */
  fill(): void {
    if (this.hasEvents) this.#events.fill();
  }

  /** After DRIVER_OK: the device interrupts. */
  arm(): void {
    this.control.arm();
    if (this.hasEvents) this.#events.arm();
    for (const queue of this.#queues) queue.arm();
  }

  /** The device was reset and holds nothing any more: see RequestQueue. */
  reclaim(late: VirtioFault): void {
    this.control.restart();
    for (const queue of this.#queues) queue.reclaim(late);
  }

  /** Nothing is taken any more, and everything ends; memory that the device has waits for a reset. */
  close(fault: VirtioFault): void {
    this.#fault ??= fault;
    this.#timer.stop();
    this.control.fail(fault);
    this.fail(() => fault);
    for (const unit of [...this.#units.values()]) this.drop(unit, fault);
  }

  /** Nothing is taken any more, and no ring is touched: its memory is about to be given back. */
  stop(fault: VirtioFault): void {
    this.#fault ??= fault;
    this.#timer.stop();
    this.control.fail(fault);
    this.control.stop();
    this.#events.stop();
    for (const queue of this.#queues) queue.stop();
  }

  /** Gives memory back, unless the device went away with some of it: that is never used again. @returns whether it was given back */
  free(): boolean {
    const parts = [this.control, this.#events, ...this.#queues];
    if (parts.some(({ stranded }) => stranded)) return false;
    this.#pages.free();
    for (const part of parts) part.free();
    return true;
  }
}

const keyOf = ({ target, lun }: { readonly target: number; readonly lun: number }): number =>
  target * 0x1_0000 + lun;

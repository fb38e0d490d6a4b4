// One adapter: its life from attach to detach, and the bus that it offers.
import {
  type DriverContext,
  type FeatureSet,
  type ScsiAddress,
  type ScsiBusEvent,
  type ScsiCommand,
  type ScsiFunction,
  type ScsiResult,
  type ScsiTask,
  type ScsiUnit,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  ScsiAsc,
  ScsiAsyncEvent,
  ScsiControl,
  ScsiControlResponse,
  ScsiEvent,
  ScsiResetReason,
  ScsiTmf,
} from "@virtio/core/scsi";
import type { StrategyDisk } from "@virtio/storage";
import { Debug, DebugLevel } from "./debug.js";
import type { Features } from "./features.js";
import { type Host, writeSizes } from "./host.js";
import type { LogicalUnit } from "./logical-unit.js";
import { PassThrough } from "./pass.js";
import { Peripherals } from "./peripherals.js";
import { Recovery } from "./recovery.js";
import { Scanner } from "./scan.js";
import { Sim } from "./sim.js";
import type { VtscsiBus } from "./vtscsi.js";

/** How long suspend waits for what is in flight. */
const QUIESCE_MS = 30_000;
/** Resets one after the other, no command answered between them, before the device counts as dead. */
const RESETS_MAX = 3;

const functions: Readonly<Record<ScsiFunction, ScsiTmf>> = {
  abortTaskSet: ScsiTmf.ABORT_TASK_SET,
  clearAca: ScsiTmf.CLEAR_ACA,
  clearTaskSet: ScsiTmf.CLEAR_TASK_SET,
  resetTarget: ScsiTmf.I_T_NEXUS_RESET,
  resetLun: ScsiTmf.LOGICAL_UNIT_RESET,
  queryTaskSet: ScsiTmf.QUERY_TASK_SET,
};

/** What an adapter is made of. */
export interface AdapterOptions {
  readonly device: VirtioDevice;
  readonly context: DriverContext;
  readonly features: FeatureSet<Features>;
  readonly host: Host;
  readonly queues: readonly Virtqueue[];
}

/**
 * States: running, resetting, suspended, closed. Only a running adapter gives the device commands; a closed one fails them, and in the
 * other states they wait.
 */
export class Adapter implements VtscsiBus {
  readonly kind = "scsi";
  readonly name: string;
  readonly adapter: string;
  readonly maxTarget: number;
  readonly maxLun: number;
  readonly maxTransfer: number;
  readonly closed: Promise<VirtioFault | null>;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #sim: Sim;
  readonly #pass: PassThrough;
  readonly #scanner: Scanner;
  readonly #peripherals: Peripherals;
  readonly #recovery: Recovery;
  readonly #debug: Debug;
  readonly #listeners = new Set<(event: ScsiBusEvent) => void>();
  /** Nothing is given to the device; `frozen`: it is told so. */
  #suspended: "no" | "quiescing" | "frozen" = "no";
  /** The reset that is under way; never rejects. */
  #reset: Promise<void> | null = null;
  /** Since a command was answered. */
  #resets = 0;
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};
  #unpublish: () => void = () => {};
  #onIdle: (() => void) | null = null;

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  constructor({ device, context, features, host, queues }: AdapterOptions) {
    const { tasks } = device;
    const { log, tunables } = context;
    this.name = `scbus${context.unit}`;
    this.adapter = context.name;
    this.maxTarget = host.maxTarget;
    this.maxLun = host.maxLun;
    this.maxTransfer = host.maxTransfer;
    this.#device = device;
    this.#context = context;
    this.#debug = new Debug(context);
    const timeout = tunables.number("timeout") * 1000;
    this.#sim = new Sim({
      device,
      context,
      features,
      host,
      queues,
      held: () => this.#suspended !== "no" || this.#reset !== null,
      onLate: (unit, ccb) => {
        const { target, lun } = unit;
        this.#debug.say(
          DebugLevel.ERROR,
          `timedout: target ${target} lun ${lun} tag ${ccb.tagLow}`,
        );
        this.#recovery.late(unit, ccb);
      },
      onEvent: (event) => this.#event(event),
      onAttention: (unit, code) => this.#attention(unit, code),
      onAnswered: () => {
        this.#resets = 0;
        this.#settled();
      },
      onBroken: (fault) => this.#broken(fault),
    });
    const sim = this.#sim;
    this.#pass = new PassThrough(sim, timeout, (what) => this.#debug.say(DebugLevel.TRACE, what));
    this.#peripherals = new Peripherals({ sim, context, timeout });
    this.#scanner = new Scanner({
      sim,
      log,
      known: () => this.#peripherals.targets,
      onTarget: (target, found) => this.#peripherals.update(target, found),
    });
    this.#recovery = new Recovery({
      adapter: context.name,
      tasks,
      log,
      control: sim.control,
      busResetDisabled: () => tunables.number("bus_reset_disable") !== 0,
      reset: (why) => this.#recover(why.message, why),
      fail: (why) => sim.fail(why),
      progress: (unit) => {
        unit.progress();
        sim.start();
      },
    });
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    const { sysctl } = context;
    sysctl.value("scsi_cmd_timeouts", "Commands that timed out", () => this.#recovery.timeouts);
    sysctl.value(
      "dequeue_no_requests",
      "Times that a command found no room",
      () => sim.starvations,
    );
    try {
      sim.fill();
    } catch (error) {
      sim.free();
      throw error;
    }
  }

  /** DRIVER_OK is set: the device interrupts, and the bus is scanned. */
  async started(): Promise<void> {
    this.#sim.arm();
    this.#unpublish = this.#context.publish(this);
    await this.#scanner.scan();
  }

  // ── the bus ─────────────────────────────────────────────────────────────────

  get units(): readonly ScsiUnit[] {
    return this.#peripherals.units;
  }

  get disks(): readonly StrategyDisk[] {
    return this.#peripherals.disks;
  }

  execute(command: ScsiCommand): Promise<ScsiResult> {
    return this.#pass.begin(command).result;
  }

  begin(command: ScsiCommand): ScsiTask {
    return this.#pass.begin(command);
  }

  abortTask(task: ScsiTask): Promise<boolean> {
    return this.#pass.abort(task);
  }

  queryTask(task: ScsiTask): Promise<boolean> {
    return this.#pass.query(task);
  }

  async manage(what: ScsiFunction, address: ScsiAddress): Promise<boolean> {
    this.#pass.checkAddress(address);
    this.#debug.say(DebugLevel.TRACE, `${what}: target ${address.target} lun ${address.lun}`);
    const response = await this.#sim.control.manage(functions[what], address);
    return response === ScsiControlResponse.FUNCTION_SUCCEEDED;
  }

  async queryNotifications(address: ScsiAddress, events: number): Promise<number> {
    this.#pass.checkAddress(address);
    return this.#sim.control.notifications(ScsiControl.AN_QUERY, address, events);
  }

  async subscribeNotifications(address: ScsiAddress, events: number): Promise<number> {
    this.#pass.checkAddress(address);
    if (!this.#sim.hasEvents)
      throw this.#fail("UNSUPPORTED", "there are no events: neither HOTPLUG nor CHANGE");
    return this.#sim.control.notifications(ScsiControl.AN_SUBSCRIBE, address, events);
  }

  onEvent(listener: (event: ScsiBusEvent) => void): () => void {
    // A listener of its own for each call, so that each is taken back by itself.
    const own = (event: ScsiBusEvent): void => listener(event);
    this.#listeners.add(own);
    return () => {
      this.#listeners.delete(own);
    };
  }

  async rescan(target?: number): Promise<void> {
    if (this.#fault !== null) throw this.#fault;
    if (target !== undefined) this.#pass.checkAddress({ target, lun: 0 });
    await this.#scanner.scan(target);
  }

  /** FreeBSD's bus reset; with bus_reset_disable it says so, and does nothing. */
  async reset(): Promise<void> {
    if (this.#fault !== null) throw this.#fault;
    if (this.#context.tunables.number("bus_reset_disable") !== 0) {
      this.#context.log("bus reset disabled");
      return;
    }
    await this.#recover("bus reset", this.#fail("IO", "the bus was reset"));
    if (this.#fault !== null) throw this.#fault;
  }

  // ── what the device tells ───────────────────────────────────────────────────

  #event(event: ScsiBusEvent): void {
    const { event: what, reason, target, lun, missed } = event;
    this.#debug.say(
      DebugLevel.INFO,
      `event ${what} target ${target} lun ${lun} reason 0x${reason.toString(16)}${missed ? " missed" : ""}`,
    );
    for (const listener of [...this.#listeners]) this.#device.tasks.enqueue(() => listener(event));
    // Whatever else it says: some of what was told before is not known (§5.6.6.3.1).
    if (missed) this.#rescan();
    if (what === ScsiEvent.TRANSPORT_RESET) {
      // A target is looked at as a whole: for LUN 0 that is asked for (§5.6.6.3.1).
      if (reason === ScsiResetReason.RESCAN || reason === ScsiResetReason.REMOVED)
        this.#rescan(target);
    } else if (what === ScsiEvent.PARAM_CHANGE)
      this.#changed({ target, lun }, ((reason & 0xff) << 8) | ((reason >>> 8) & 0xff));
    else if (what === ScsiEvent.ASYNC_NOTIFY && (reason & ScsiAsyncEvent.MEDIA_CHANGE) !== 0)
      void this.#peripherals.diskOf(event)?.recheck();
    else if (what !== ScsiEvent.NO_EVENT)
      this.#debug.say(DebugLevel.INFO, `unhandled event: ${what}`);
  }

  /** A command was not done, but told of a change; what a scan is told, it sees by itself. */
  #attention(unit: LogicalUnit, code: number): void {
    if (!this.#scanner.busy || code !== ScsiAsc.REPORTED_LUNS_DATA_CHANGED)
      this.#changed(unit, code);
  }

  #changed(address: ScsiAddress, code: number): void {
    if (code === ScsiAsc.REPORTED_LUNS_DATA_CHANGED) this.#rescan(address.target);
    else if (code === ScsiAsc.CAPACITY_DATA_CHANGED || code === ScsiAsc.MEDIUM_MAY_HAVE_CHANGED)
      void this.#peripherals.diskOf(address)?.recheck();
    else if (code >>> 8 === ScsiAsc.MEDIUM_NOT_PRESENT >>> 8)
      this.#peripherals.diskOf(address)?.noMedium();
  }

  #rescan(target?: number): void {
    if (this.#fault === null) void this.#scanner.scan(target);
  }

  // ── faults ──────────────────────────────────────────────────────────────────

  #settled(): void {
    if (this.#onIdle !== null && this.#idle) this.#onIdle();
  }

  get #idle(): boolean {
    return this.#reset === null && this.#sim.inFlight === 0;
  }

  #broken(fault: VirtioFault): void {
    if (fault.code === "NEEDS_RESET") void this.#recover("the device needs a reset", fault);
    else this.#die(fault);
  }

  /** Resets the device, which then holds no memory any more: what was in flight is tried again, or fails. Never rejects. */
  #recover(why: string, fault: VirtioFault): Promise<void> {
    if (this.#fault !== null) return Promise.resolve();
    if (this.#reset !== null) return this.#reset;
    // One that is suspended cannot be set up.
    if (this.#suspended === "frozen" || this.#resets === RESETS_MAX) {
      this.#die(fault);
      return Promise.resolve();
    }
    this.#resets += 1;
    this.#context.log(`${why}: resetting the device`);
    this.#sim.control.fail(this.#fail("IO", "the device is being reset"));
    this.#reset = this.#reinit(fault).then(() => {
      this.#reset = null;
      this.#goOn();
    });
    return this.#reset;
  }

  async #reinit(fault: VirtioFault): Promise<void> {
    try {
      await this.#device.reinit();
      // Who timed out fails; others are told that it was a reset, and may try again.
      this.#sim.reclaim(fault);
      await this.#setUpAgain();
    } catch (error) {
      this.#die(error instanceof VirtioFault ? error : fault);
    }
  }

  /** A reset took sizes and event buffers, and what the device would have told meanwhile. */
  async #setUpAgain(): Promise<void> {
    await writeSizes(this.#device.config);
    this.#sim.fill();
    this.#sim.arm();
    this.#rescan();
  }

  /** The device broke a rule, cannot be reset, or is gone: each command fails once; memory it held waits for a reset. */
  #die(fault: VirtioFault): void {
    this.#fault ??= fault;
    this.#scanner.stop();
    this.#sim.close(this.#fault);
    this.#peripherals.end(this.#fault, false);
    if (this.#detaching === null) this.#close(this.#fault);
    this.#settled();
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  async #detach(): Promise<void> {
    this.#unpublish();
    this.#scanner.stop();
    const orderly = this.#fault === null;
    this.#fault ??= this.#fail("CLOSED", "the adapter is detached");
    this.#sim.stop(this.#fault);
    await this.#reset;
    try {
      await this.#device.release();
      if (!this.#sim.free())
        this.#context.log("the device went away with commands in flight: their memory is lost");
    } finally {
      this.#sim.close(this.#fault);
      this.#peripherals.end(this.#fault, orderly);
      this.#settled();
      this.#close(orderly ? null : this.#fault);
    }
  }

  /** The device has nothing any more, not even event buffers. */
  async suspend(): Promise<void> {
    this.#suspended = "quiescing";
    if (!(await this.#quiesced())) {
      this.#suspended = "no";
      this.#goOn();
      throw this.#fail(
        "BUSY",
        `${this.#sim.inFlight} commands are in flight after ${QUIESCE_MS} ms`,
      );
    }
    // One that failed meanwhile has nothing to suspend.
    if (this.#fault !== null) return;
    this.#suspended = "frozen";
    try {
      this.#sim.control.fail(this.#fail("BUSY", "the device is suspended"));
      await this.#device.reinit();
      await this.#device.suspend();
    } catch (error) {
      const fault = error instanceof VirtioFault ? error : this.#fail("IO", String(error));
      this.#die(fault);
      throw fault;
    }
  }

  /** Waits until nothing is in flight, with a bound. */
  async #quiesced(): Promise<boolean> {
    if (this.#idle) return true;
    const idle = await new Promise<boolean>((resolve) => {
      const late = this.#device.tasks.callout(QUIESCE_MS, () => resolve(false));
      this.#onIdle = () => {
        late.stop();
        resolve(true);
      };
    });
    this.#onIdle = null;
    return idle;
  }

  async resume(): Promise<void> {
    if (this.#fault === null && this.#suspended === "frozen") {
      await this.#device.resume();
      this.#sim.reclaim(this.#fail("IO", "the device was suspended"));
      await this.#setUpAgain();
    }
    this.#suspended = "no";
    this.#goOn();
  }

  /** What waited is given now. */
  #goOn(): void {
    this.#sim.progress();
    this.#sim.start();
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.adapter });
  }
}

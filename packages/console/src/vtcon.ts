// vtcon: the VirtIO console driver (virtio 1.4 §5.3; FreeBSD's virtio_console(4)).
// Each vtconN has ports ttyVN.0, ttyVN.1 and so on. Ports are plain lines of bytes: none is the kernel's console.
import {
  type Attached,
  DeviceType,
  type Driver,
  type DriverContext,
  type FeatureSet,
  ReservedFeature,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { ConsoleEvent, ConsoleFeature, ConsoleQueue } from "@virtio/core/console";
import { ControlQueue } from "./control-queue.js";
import { Events } from "./events.js";
import { type Features, featureNames, wanted } from "./features.js";
import type { VtconOptions } from "./options.js";
import type { ConsolePort } from "./port.js";
import { type PortListener, Ports } from "./ports.js";
import { queueSpecs, readConfig, type Settled, writeEmergency } from "./setup.js";
import { type SizeListener, type WindowSize, WindowSizes } from "./sizes.js";

/** The id of messages that are about no port. */
const NO_PORT = 0xffff_ffff;
/** How long suspend waits for what is in flight. */
const QUIESCE_MS = 30_000;
/** Resets one after the other, no byte between them, before the device counts as dead. */
const RESETS_MAX = 3;

/**
 * The console driver: `attach(node, vtcon())` gives a {@link ConsoleDevice}.
 * @see virtio_console(4)
 */
export function vtcon(options: VtconOptions = {}): Driver<ConsoleDevice> {
  return {
    name: "vtcon",
    description: "VirtIO Console Adapter",
    types: [DeviceType.CONSOLE],
    features: featureNames,
    tunables: [],
    options: {},
    attach: (device, context) => ConsoleDevice.attach(device, context, options),
  };
}

/** A console device and its ports. States: running, resetting, suspended, closed. */
export class ConsoleDevice implements Attached {
  /** `vtcon0` */
  readonly name: string;
  /** Ports that there can be. */
  readonly maxPorts: number;
  readonly closed: Promise<VirtioFault | null>;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #features: FeatureSet<Features>;
  readonly #virtqueues: readonly Virtqueue[];
  readonly #gate = { open: true };
  readonly #ports: Ports;
  /** Null without MULTIPORT. */
  readonly #control: ControlQueue | null;
  readonly #sizes: WindowSizes;
  readonly #events: Events;
  /** Ends when what was begun before is over; never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  #recovering = false;
  #suspended = false;
  #resets = 0;
  /** Bytes that had passed at the last reset. */
  #passed = -1;
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  private constructor(
    device: VirtioDevice,
    context: DriverContext,
    settled: Settled,
    virtqueues: readonly Virtqueue[],
  ) {
    const { features, maxPorts, size } = settled;
    this.name = context.name;
    this.maxPorts = maxPorts;
    this.#device = device;
    this.#context = context;
    this.#features = features;
    this.#virtqueues = virtqueues;
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    this.#ports = new Ports({
      device,
      context,
      features,
      virtqueues,
      gate: this.#gate,
      announce: (id, open) => this.#announce(id, open),
    });
    this.#sizes = new WindowSizes(device, this.#ports, context.log, size);
    this.#events = new Events({
      name: context.name,
      log: context.log,
      maxPorts,
      ports: this.#ports,
      sizes: this.#sizes,
      control: () => this.#control,
    });
    const receive = virtqueues[ConsoleQueue.CONTROL_RECEIVE];
    const transmit = virtqueues[ConsoleQueue.CONTROL_TRANSMIT];
    this.#control =
      receive === undefined || transmit === undefined
        ? null
        : new ControlQueue({
            receive,
            transmit,
            memory: device.memory,
            gate: this.#gate,
            tasks: device.tasks,
            device: context.name,
            onMessage: (message) => this.#events.process(message),
            onShort: (length) =>
              context.verbose(`a control message of ${length} bytes is no message`),
          });
  }

  /** virtio 1.4 §3.1.1, steps 4 to 7; §5.3.5. @internal */
  static async attach(
    device: VirtioDevice,
    context: DriverContext,
    options: VtconOptions,
  ): Promise<ConsoleDevice> {
    const features = await device.negotiate(wanted);
    await device.finalizeFeatures();
    if (features.has(ConsoleFeature.EMERG_WRITE))
      await options.early?.((byte) => writeEmergency(device, byte));
    const settled = await readConfig(device, features);
    const virtqueues = await device.allocateQueues(queueSpecs(context.name, settled));
    await device.setupInterrupts();
    // Last, because nobody but the driver gives this memory back.
    const driver = new ConsoleDevice(device, context, settled, virtqueues);
    for (const queue of virtqueues)
      queue.onBroken = (fault) => {
        // A reset may have come between.
        if (queue.broken === fault) driver.#broken(fault);
      };
    device.onConfigChange = () => {
      // One that is being reset is not to be touched, and is read afterwards anyway.
      if (!driver.#recovering) void driver.#sizes.configChanged();
    };
    return driver;
  }

  /** DRIVER_OK is set: the ports become visible, those that the device names when it is asked. @throws VirtioFault */
  async started(): Promise<void> {
    if (this.#control === null) this.#events.add(0);
    else await this.#ready(this.#control);
    await this.#sizes.configChanged();
  }

  /** The device says which ports there are, and is told which of them were taken. */
  async #ready(control: ControlQueue): Promise<void> {
    control.start();
    await control.send(NO_PORT, ConsoleEvent.DEVICE_READY, 1);
    await control.settled();
  }

  // ── for users ───────────────────────────────────────────────────────────────

  /** Those that are there, in order of their numbers. */
  get ports(): readonly ConsolePort[] {
    return this.#ports.all;
  }

  /** By number, by name (`ttyV0.1`), or by the name that the device gives it (`org.qemu.guest_agent.0`). */
  port(which: number | string): ConsolePort | undefined {
    return this.ports.find(
      ({ id, name, alias }) => id === which || name === which || (alias === which && which !== ""),
    );
  }

  /** Calls `listener` as a task after a port came or went; call what it returns to stop. */
  onPortChange(listener: PortListener): () => void {
    return this.#ports.listen(listener);
  }

  /** Of the first port; null: the device does not say. */
  get size(): WindowSize | null {
    return this.#sizes.get(0);
  }

  /** Calls `listener` as a task after the window of a port, by its number, changed; call what it returns to stop. */
  onResize(listener: SizeListener): () => void {
    return this.#sizes.listen(listener);
  }

  /** Whether the device takes emergency writes. */
  get canWriteEmergency(): boolean {
    return this.#features.has(ConsoleFeature.EMERG_WRITE);
  }

  /**
   * Puts out one byte by the configuration alone: without queues, also when they are broken.
   * @param byte - 0 to 255
   * @throws VirtioFault UNSUPPORTED (no EMERG_WRITE), INVALID, BUSY (the device is suspended), CLOSED
   */
  async emergencyWrite(byte: number): Promise<void> {
    if (!this.canWriteEmergency)
      throw this.#fail("UNSUPPORTED", "the device takes no emergency writes");
    await writeEmergency(this.#device, byte);
  }

  async #announce(id: number, open: boolean): Promise<void> {
    await this.#control?.send(id, ConsoleEvent.PORT_OPEN, Number(open));
  }

  // ── faults ──────────────────────────────────────────────────────────────────

  #broken(fault: VirtioFault): void {
    if (fault.code === "NEEDS_RESET") this.#recover(fault);
    else this.#die(fault);
  }

  /** Resets the device and tells it everything again. Writes that were under way fail: nobody knows how far they came. */
  #recover(fault: VirtioFault): void {
    if (this.#fault !== null || this.#recovering) return;
    const { passed } = this.#ports;
    this.#resets = passed === this.#passed ? this.#resets + 1 : 1;
    this.#passed = passed;
    if (this.#suspended || this.#resets > RESETS_MAX) {
      this.#die(fault);
      return;
    }
    this.#context.log("the device needs a reset: resetting the device");
    this.#recovering = true;
    this.#gate.open = false;
    void this.#serial(async () => {
      await this.#device.reinit();
      this.#recovering = false;
      await this.#revive(fault);
    }).catch((error: unknown) => this.#die(error instanceof VirtioFault ? error : fault));
  }

  /** The device is live after a reset and knows nothing. */
  async #revive(fault: VirtioFault): Promise<void> {
    if (this.#fault !== null) throw this.#fault;
    this.#gate.open = true;
    this.#control?.reclaim();
    this.#ports.restart(fault);
    if (this.#control === null) this.#ports.fill(0);
    else {
      this.#events.expectAll();
      await this.#ready(this.#control);
      this.#events.removeUnconfirmed();
    }
    await this.#sizes.configChanged();
  }

  /** The device broke a rule, cannot be reset, or is gone. */
  #die(fault: VirtioFault): void {
    if (this.#fault !== null) return;
    this.#end(fault);
    this.#close(fault);
  }

  /** Nothing is begun any more; who waits is told. */
  #end(fault: VirtioFault): void {
    this.#fault = fault;
    this.#gate.open = false;
    this.#control?.stop(fault);
    for (const port of this.ports) this.#ports.remove(port, fault);
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  /** One thing after the other. @throws VirtioFault what ended the device */
  #serial(work: () => Promise<void>): Promise<void> {
    const result = this.#last.then(() => {
      if (this.#fault !== null) throw this.#fault;
      return work();
    });
    this.#last = result.catch(() => {});
    return result;
  }

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  async #detach(): Promise<void> {
    const orderly = this.#fault === null;
    if (orderly) this.#end(this.#fail("CLOSED", "the device is detached"));
    await this.#last;
    try {
      await this.#device.release();
      this.#free();
    } finally {
      if (orderly) this.#close(null);
    }
  }

  /** A device that went away was not reset: memory that it may still write to is never used again. */
  #free(): void {
    const gone = this.#virtqueues.some(({ broken }) => broken?.code === "CLOSED");
    if (gone && (this.#ports.stranded || this.#control?.stranded === true)) {
      this.#context.log("the device went away with buffers: their memory is lost");
      return;
    }
    this.#ports.free();
    this.#control?.free();
  }

  /**
   * With SUSPEND the device keeps its buffers. Without it, it is reset when it has taken what was transmitted; what it has given is kept
   * here.
   * @throws VirtioFault BUSY (the device does not take what was transmitted), and what a reset throws
   */
  async suspend(): Promise<void> {
    // One that failed has nothing to suspend.
    if (this.#fault !== null) return;
    await this.#serial(async () => {
      const suspends = this.#features.has(ReservedFeature.SUSPEND);
      this.#gate.open = false;
      try {
        if (suspends) await this.#device.suspend();
        else await this.#quiesce();
      } catch (error) {
        this.#goOn();
        throw error;
      }
      if (!suspends) await this.#takeBack();
      this.#suspended = true;
    });
  }

  /** Waits until the device has taken what was transmitted, with a bound. */
  async #quiesce(): Promise<void> {
    const late = new AbortController();
    const limit = this.#device.tasks.callout(QUIESCE_MS, () =>
      late.abort(
        this.#fail("BUSY", `bytes are not taken after ${QUIESCE_MS} ms: the device is in use`),
      ),
    );
    try {
      // A port that goes meanwhile has nothing to wait for.
      const drained = this.ports.map((port) =>
        port.drain({ signal: late.signal }).catch((error: unknown) => {
          if (this.#ports.get(port.id) === port) throw error;
        }),
      );
      await Promise.all(drained);
    } finally {
      limit.stop();
    }
  }

  /** Takes every buffer back, by a reset. */
  async #takeBack(): Promise<void> {
    try {
      await this.#device.reset();
      this.#ports.keep();
      for (const queue of this.#virtqueues) while (queue.drain() >= 0);
      await this.#device.suspend();
    } catch (error) {
      this.#die(error instanceof VirtioFault ? error : this.#fail("IO", String(error)));
      throw error;
    }
  }

  async resume(): Promise<void> {
    if (this.#fault !== null) return;
    await this.#serial(async () => {
      await this.#device.resume();
      this.#suspended = false;
      if (this.#features.has(ReservedFeature.SUSPEND)) this.#goOn();
      else await this.#revive(this.#fail("IO", "the device was reset"));
    });
  }

  /** The device is given the buffers that it could not be given. */
  #goOn(): void {
    this.#gate.open = true;
    this.#control?.resume();
    for (const port of this.ports) {
      this.#ports.fill(port.id);
      port.goOn();
    }
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

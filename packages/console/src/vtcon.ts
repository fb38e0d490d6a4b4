// vtcon: the VirtIO console driver (virtio 1.4 §5.3; FreeBSD's virtio_console(4)).
// Each vtconN has ports ttyVN.0, ttyVN.1 and so on. Ports are plain lines of bytes: none is the kernel's console.
import {
  type Attached,
  type ConfigField,
  DeviceType,
  type Driver,
  type DriverContext,
  type FeatureSet,
  type QueueSpec,
  ReservedFeature,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import {
  CONSOLE_RESIZE_SIZE,
  ConsoleConfig,
  ConsoleEvent,
  ConsoleFeature,
  ConsoleQueue,
} from "@virtio/core/console";
import { type ControlMessage, ControlQueue, errnoOf } from "./control-queue.js";
import { aliasError, portNameOf } from "./events.js";
import { type Features, featureNames, wanted } from "./features.js";
import type { VtconOptions } from "./options.js";
import type { ConsolePort, WindowSize } from "./port.js";
import { type PortListener, Ports } from "./ports.js";

/** Most ports of a device, FreeBSD's. */
const PORTS_MAX = 32;
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

/** What driver and device agreed on. */
interface Settled {
  readonly features: FeatureSet<Features>;
  /** Ports that there can be. */
  readonly maxPorts: number;
  readonly size: WindowSize | null;
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
  readonly #resizeListeners = new Set<(size: WindowSize, port: number) => void>();
  /** By number of the port. */
  readonly #sizes = new Map<number, WindowSize>();
  /** Ports that the device has not named again since it was reset. */
  readonly #unconfirmed = new Set<number>();
  /** The configuration changed since it was read; `reading`: it is being read. */
  #config: "read" | "reading" | "changed" = "read";
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
    if (size !== null) this.#sizes.set(0, size);
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
            onMessage: (message) => this.#process(message),
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
      await options.early?.((byte) => emergencyWrite(device, byte));
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
    device.onConfigChange = () => void driver.#configChanged();
    return driver;
  }

  /** DRIVER_OK is set: the ports become visible, those that the device names when it is asked. @throws VirtioFault */
  async started(): Promise<void> {
    if (this.#control === null) this.#add(0);
    else await this.#ready(this.#control);
    await this.#configChanged();
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
    return this.#sizes.get(0) ?? null;
  }

  /** Calls `listener` as a task after the window of a port, by its number, changed; call what it returns to stop. */
  onResize(listener: (size: WindowSize, port: number) => void): () => void {
    this.#resizeListeners.add(listener);
    return () => void this.#resizeListeners.delete(listener);
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
    await emergencyWrite(this.#device, byte);
  }

  // ── control messages (§5.3.6.2) ─────────────────────────────────────────────

  #process({ id, event, value, data }: ControlMessage): void {
    if (id >= this.maxPorts) {
      this.#context.log(`vtcon_ctrl_process_event: event ${event} invalid port ID ${id}`);
      return;
    }
    switch (event) {
      case ConsoleEvent.DEVICE_ADD:
        this.#portAdd(id);
        break;
      case ConsoleEvent.DEVICE_REMOVE:
        this.#portRemove(id);
        break;
      case ConsoleEvent.CONSOLE_PORT:
        this.#portConsole(id);
        break;
      case ConsoleEvent.RESIZE:
        this.#portResize(id, data);
        break;
      case ConsoleEvent.PORT_OPEN:
        this.#known("open", id)?.setConnected(value !== 0);
        break;
      case ConsoleEvent.PORT_NAME:
        this.#portName(id, data);
        break;
      default:
      // FreeBSD is silent about what it does not know.
    }
  }

  /** The port that a message is about; without it FreeBSD's line says so. */
  #known(verb: "remove" | "console" | "open" | "name", id: number): ConsolePort | undefined {
    const port = this.#ports.get(id);
    if (port === undefined)
      this.#context.log(`vtcon_ctrl_port_${verb}_event: ${verb} port ${id}, but does not exist`);
    return port;
  }

  #portAdd(id: number): void {
    const known = this.#ports.get(id);
    if (known !== undefined && !this.#unconfirmed.delete(id)) {
      this.#context.log(`vtcon_ctrl_port_add_event: adding port ${id}, but already exists`);
      return;
    }
    if (known === undefined) {
      try {
        this.#add(id);
      } catch (error) {
        this.#context.log(`vtcon_ctrl_port_add_event: cannot create port ${id}: ${errnoOf(error)}`);
        this.#control?.answer(id, ConsoleEvent.PORT_READY, 0);
        return;
      }
    } else this.#ports.fill(id);
    this.#control?.answer(id, ConsoleEvent.PORT_READY, 1);
    if (known?.opened === true) this.#control?.answer(id, ConsoleEvent.PORT_OPEN, 1);
  }

  #add(id: number): void {
    const port = this.#ports.add(id);
    const size = this.#sizes.get(id);
    if (size !== undefined) port.setSize(size);
  }

  #portRemove(id: number): void {
    const port = this.#known("remove", id);
    if (port === undefined) return;
    this.#unconfirmed.delete(id);
    if (id !== 0) this.#sizes.delete(id);
    this.#control?.drop(id);
    this.#ports.remove(port, this.#fail("CLOSED", `${port.name} was taken away`));
  }

  /** The answer is due whether somebody uses the port or not. */
  #portConsole(id: number): void {
    const port = this.#known("console", id);
    if (port === undefined) return;
    port.setConsole();
    this.#control?.answer(id, ConsoleEvent.PORT_OPEN, 1);
  }

  #portResize(id: number, data: Uint8Array): void {
    if (data.length < CONSOLE_RESIZE_SIZE) return;
    const words = new DataView(data.buffer, data.byteOffset);
    this.#resize(id, { cols: words.getUint16(0, true), rows: words.getUint16(2, true) });
  }

  /** A name is for ever: a second one is ignored, as one that is not ASCII. */
  #portName(id: number, data: Uint8Array): void {
    const port = this.#known("name", id);
    const name = portNameOf(data);
    if (port === undefined || port.alias !== "" || name === "") return;
    const error = aliasError(name, new Set(this.ports.map(({ alias }) => alias)));
    if (error === 0) port.setAlias(name);
    else this.#context.log(`cannot make dev alias (vtcon/${name}) error ${error}`);
  }

  async #announce(id: number, open: boolean): Promise<void> {
    await this.#control?.send(id, ConsoleEvent.PORT_OPEN, Number(open));
  }

  // ── window size ─────────────────────────────────────────────────────────────

  #resize(id: number, size: WindowSize): void {
    const before = this.#sizes.get(id);
    if (before?.cols === size.cols && before.rows === size.rows) return;
    this.#sizes.set(id, size);
    this.#ports.get(id)?.setSize(size);
    for (const listener of this.#resizeListeners)
      this.#device.tasks.enqueue(() => listener(size, id));
  }

  /** The configuration's columns and rows are the first port's. */
  async #configChanged(): Promise<void> {
    if (!this.#features.has(ConsoleFeature.SIZE) || this.#recovering) return;
    const reading = this.#config !== "read";
    this.#config = "changed";
    if (reading) return;
    try {
      while (this.#config === "changed") {
        this.#config = "reading";
        const { cols, rows } = ConsoleConfig;
        this.#resize(0, await this.#device.config.readAll({ cols, rows }));
      }
    } catch (error) {
      this.#context.log(`cannot read the window size: ${String(error)}`);
    } finally {
      this.#config = "read";
    }
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
      for (const { id } of this.ports) this.#unconfirmed.add(id);
      await this.#ready(this.#control);
      for (const id of [...this.#unconfirmed]) this.#portRemove(id);
    }
    await this.#configChanged();
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
   * What is transmitted is waited for. With SUSPEND the device keeps its buffers; without it is reset, and what it has given is kept here.
   * @throws VirtioFault BUSY (the device does not take what was transmitted), and what a reset throws
   */
  async suspend(): Promise<void> {
    // One that failed has nothing to suspend.
    if (this.#fault !== null) return;
    await this.#serial(async () => {
      if (this.#features.has(ReservedFeature.SUSPEND)) await this.#device.suspend();
      else await this.#giveUp();
      this.#suspended = true;
    });
  }

  /** Takes every buffer back. */
  async #giveUp(): Promise<void> {
    this.#gate.open = false;
    try {
      await this.#quiesce();
    } catch (error) {
      this.#gate.open = true;
      this.#goOn();
      throw error;
    }
    await this.#device.reset();
    this.#ports.keep();
    for (const queue of this.#virtqueues) while (queue.drain() >= 0);
    await this.#device.suspend();
  }

  async #quiesce(): Promise<void> {
    const late = new AbortController();
    const limit = this.#device.tasks.callout(QUIESCE_MS, () =>
      late.abort(
        this.#fail("BUSY", `bytes are not taken after ${QUIESCE_MS} ms: the device is in use`),
      ),
    );
    try {
      await Promise.all(this.ports.map((port) => port.drain({ signal: late.signal })));
    } finally {
      limit.stop();
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

  /** Buffers that could not be given to the device are. */
  #goOn(): void {
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

async function emergencyWrite(device: VirtioDevice, byte: number): Promise<void> {
  if (!Number.isInteger(byte) || byte < 0 || byte > 0xff)
    throw new VirtioFault("INVALID", `${byte} is no byte`);
  const [offset, width] = ConsoleConfig.emergWr;
  await device.config.write(offset, width as 4, byte);
}

/** What of the configuration was negotiated. */
async function readConfig(device: VirtioDevice, features: FeatureSet<Features>): Promise<Settled> {
  const { cols, rows, maxNrPorts } = ConsoleConfig;
  const fields: Record<string, ConfigField> = {
    ...(features.has(ConsoleFeature.SIZE) ? { cols, rows } : {}),
    ...(features.has(ConsoleFeature.MULTIPORT) ? { maxNrPorts } : {}),
  };
  const config: Record<string, number> =
    Object.keys(fields).length === 0 ? {} : await device.config.readAll(fields);
  const { cols: columns, rows: lines, maxNrPorts: ports = 1 } = config;
  return {
    features,
    maxPorts: Math.max(1, Math.min(ports, PORTS_MAX)),
    size: columns === undefined || lines === undefined ? null : { cols: columns, rows: lines },
  };
}

/** virtio 1.4 §5.3.2, with FreeBSD's names: they count pairs, so that port 1's are those of `port2`. */
function queueSpecs(name: string, { features, maxPorts }: Settled): readonly QueueSpec[] {
  const spec = (what: string): QueueSpec => ({
    name: `${name}-${what}`,
    maxSegments: 1,
    interrupt: true,
  });
  const pairs = [[spec("port0 in"), spec("port0 out")]];
  if (features.has(ConsoleFeature.MULTIPORT)) pairs.push([spec("control rx"), spec("control tx")]);
  for (let port = 1; port < maxPorts; port++)
    pairs.push([spec(`port${port + 1} in`), spec(`port${port + 1} out`)]);
  return pairs.flat();
}

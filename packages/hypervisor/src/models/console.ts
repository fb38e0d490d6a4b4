// The console device (virtio 1.4 §5.3), written from the device clauses: bytes between the driver's queues and the host's ends.
import { DeviceType, featureSet } from "@virtio/core";
import {
  ConsoleEvent,
  ConsoleFeature,
  ConsoleQueue,
  consoleReceiveQueue,
} from "@virtio/core/console";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { DeviceModel, ModelHost } from "../device-model.js";
import { hasBit } from "../feature-words.js";
import type { RegisterSpace } from "../registers.js";
import { ConsoleRules } from "../rules/console-rules.js";
import { ConsoleConfiguration } from "./console-config.js";
import { ConsoleControl } from "./console-control.js";
import type { ConsoleHost, ConsoleHostPort } from "./console-host.js";
import type { ConsoleLies } from "./console-lies.js";

/** How a console device is made. */
export interface ConsoleModelOptions {
  readonly name: string;
  readonly host: ConsoleHost;
  /** Ports that there can be; undefined: as many as there are. */
  readonly maxPorts: number | undefined;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly lies: ConsoleLies;
}

/** Communication controller, other: what QEMU's virtio-serial-pci says. */
const CLASS_CODE = 0x07_80_00;
/** Buffers that are moved in one task. */
const BATCH = 64;
/** Bytes that are moved at a time. */
const CHUNK = 4096;

/** A buffer of the driver's of which the host's end has not all bytes yet. */
interface Partial {
  readonly chain: DeviceChain;
  at: number;
}

/** What runs once the function carries the model. */
interface Running {
  readonly host: ModelHost;
  readonly control: ConsoleControl;
  readonly rules: ConsoleRules | null;
}

/** {@inheritDoc DeviceModel} */
export class ConsoleModel implements DeviceModel {
  readonly type: DeviceType = DeviceType.CONSOLE;
  readonly classCode: number = CLASS_CODE;
  readonly queues: number;
  readonly prerequisites: DeviceModel["prerequisites"] = [];
  readonly name: string;
  readonly features: readonly number[];
  readonly config: RegisterSpace;
  readonly #options: ConsoleModelOptions;
  readonly #configuration: ConsoleConfiguration;
  readonly #chunk = new Uint8Array(CHUNK);
  /** By port. */
  readonly #partial = new Map<number, Partial>();
  #running: Running | null = null;

  /** @throws VirtioFault INVALID */
  constructor(options: ConsoleModelOptions) {
    this.name = options.name;
    this.#options = options;
    const configuration = new ConsoleConfiguration(options);
    const { offered, maxPorts } = configuration;
    this.#configuration = configuration;
    this.queues = offered.includes(ConsoleFeature.MULTIPORT) ? 2 * maxPorts + 2 : 2;
    this.features = featureSet<ConsoleFeature>()
      .with(...offered)
      .words();
    this.config = {
      length: configuration.length,
      read: (offset, width) => {
        const honest = configuration.read(offset, width);
        return options.lies.config?.(offset, width, honest) ?? honest;
      },
      write: (offset, width, value) => configuration.write(offset, width, value),
    };
  }

  configGate(offset: number): number | undefined {
    return this.#configuration.gate(offset);
  }

  connect(host: ModelHost): void {
    const { name, host: back, lies } = this.#options;
    const rules = host.rules === null ? null : new ConsoleRules(host.rules, name, host.features);
    const control = new ConsoleControl({
      host,
      back,
      lies,
      rules,
      opened: (port) => this.#later(port),
    });
    this.#running = { host, control, rules };
    back.model = {
      tasks: host.tasks,
      added: (port) => control.later(() => control.add(port)),
      removed: (port) => control.later(() => this.#remove(port)),
      opened: (port) =>
        control.later(() => control.event(port, ConsoleEvent.PORT_OPEN, Number(port.opened))),
      resized: (port) => control.later(() => this.#resized(port)),
      moved: (port) => this.#later(port),
      inject: (message) => control.later(() => control.say(message)),
    };
  }

  /** The driver is told where it can see it: of port 0 by the configuration too (§5.3.4, §5.3.6.2). */
  #resized(port: ConsoleHostPort): void {
    const running = this.#running;
    if (running === null) return;
    running.control.resized(port);
    if (port.id === 0 && hasBit(running.host.features, ConsoleFeature.SIZE))
      running.host.configChanged();
  }

  get #multiport(): boolean {
    return hasBit(this.#running?.host.features ?? [], ConsoleFeature.MULTIPORT);
  }

  #portOf(id: number): ConsoleHostPort | undefined {
    return this.#options.host.ports.find((port) => port.id === id);
  }

  notified(index: number): void {
    const running = this.#running;
    if (running === null || this.#options.lies.looks?.(index) === false) return;
    if (this.#multiport && index === ConsoleQueue.CONTROL_RECEIVE) running.control.flush();
    else if (this.#multiport && index === ConsoleQueue.CONTROL_TRANSMIT) running.control.listen();
    else {
      const id = index < 2 ? 0 : (index - 2) >>> 1;
      if (!this.#multiport && id > 0) return;
      // Without MULTIPORT nobody says so.
      if (!this.#multiport) this.#portOf(0)?.setGuestOpen(true);
      if ((index & 1) === 0) this.#pumpIn(running, id);
      else this.#pumpOut(running, id, this.#portOf(id));
    }
  }

  /** There are bytes for the guest, or room for the guest's. */
  #later({ id }: ConsoleHostPort): void {
    const running = this.#running;
    if (running === null) return;
    running.host.tasks.enqueue(() => {
      const index = consoleReceiveQueue(id);
      const { looks } = this.#options.lies;
      if (looks?.(index) !== false) this.#pumpIn(running, id);
      if (looks?.(index + 1) !== false) this.#pumpOut(running, id, this.#portOf(id));
    });
  }

  /** Bytes for the guest go into its buffers while it has the port open. */
  #pumpIn({ host, rules }: Running, id: number): void {
    const index = consoleReceiveQueue(id);
    const queue = host.queue(index);
    const port = this.#portOf(id);
    if (queue === null) return;
    let used = 0;
    while (port?.guestOpen === true && port.toGuest.length > 0 && used < BATCH) {
      const chain = this.#take(host, queue);
      if (chain === null) break;
      rules?.receiveChain(chain, index);
      let written = 0;
      while (written < chain.writableLength && port.toGuest.length > 0) {
        const n = port.toGuest.take(this.#chunk, Math.min(CHUNK, chain.writableLength - written));
        chain.write(written, this.#chunk, 0, n);
        written += n;
      }
      queue.put(chain, this.#options.lies.usedLength?.(index, written) ?? written);
      used += 1;
    }
    if (used === 0) return;
    host.used(index);
    port?.taken();
    if (port?.loop === true || used === BATCH) this.#later(port as ConsoleHostPort);
  }

  /** Takes the next buffer; null: there is none, and the driver rings when there is. */
  #take(host: ModelHost, queue: DeviceQueue): DeviceChain | null {
    let chain = queue.take();
    if (chain === null && queue.enableNotify()) chain = queue.take();
    if (chain !== null) host.taken(queue, chain);
    return chain;
  }

  /**
   * The guest's bytes go to the host's end as it has room; where nobody has it open, or there is none, they are lost, as in QEMU.
   * @returns buffers that were given back
   */
  #pumpOut({ host, rules }: Running, id: number, port: ConsoleHostPort | undefined): number {
    const index = consoleReceiveQueue(id) + 1;
    const queue = host.queue(index);
    if (queue === null) return 0;
    let used = 0;
    let moved = 0;
    while (used < BATCH) {
      let part = this.#partial.get(id);
      if (part === undefined) {
        const chain = this.#take(host, queue);
        if (chain === null) break;
        rules?.transmitChain(chain, index);
        part = { chain, at: 0 };
        this.#partial.set(id, part);
      }
      const before = part.at;
      const done = this.#drain(part, port);
      moved += part.at - before;
      if (!done) break;
      this.#partial.delete(id);
      queue.put(part.chain, this.#options.lies.usedLength?.(index, 0) ?? 0);
      used += 1;
    }
    if (used > 0) host.used(index);
    if (moved > 0 && port !== undefined && port.opened) {
      if (port.loop) this.#later(port);
      else port.arrived();
    }
    if (used === BATCH && port !== undefined) this.#later(port);
    return used;
  }

  /** Moves what there is room for; true: the buffer is empty. */
  #drain(part: Partial, port: ConsoleHostPort | undefined): boolean {
    const { chain } = part;
    const length = chain.readableLength;
    if (port === undefined || !port.opened) {
      if (port !== undefined) port.discarded += length - part.at;
      part.at = length;
      return true;
    }
    while (part.at < length) {
      const n = Math.min(CHUNK, length - part.at, port.fromGuest.room);
      if (n === 0) return false;
      chain.read(part.at, this.#chunk, 0, n);
      port.fromGuest.put(this.#chunk, 0, n);
      part.at += n;
    }
    return true;
  }

  /** What the guest has written to a port that goes is lost; its receive buffers stay (§5.3.6.2). */
  #remove(port: ConsoleHostPort): void {
    const running = this.#running;
    if (running === null) return;
    running.control.remove(port);
    // Another may have its number already.
    while (this.#pumpOut(running, port.id, undefined) === BATCH);
  }

  reset(queue?: number): null {
    const running = this.#running;
    if (running === null) return null;
    for (const id of [...this.#partial.keys()])
      if (queue === undefined || queue === consoleReceiveQueue(id) + 1) this.#partial.delete(id);
    if (queue !== undefined) return null;
    running.rules?.reset();
    running.control.reset();
    for (const port of this.#options.host.ports) port.setGuestOpen(false);
    return null;
  }

  async close(): Promise<void> {
    this.#options.host.model = null;
    for (const port of this.#options.host.ports) port.end();
  }
}

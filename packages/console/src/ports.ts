// The ports of a device: those that are there, and what is kept of each number whether there is a port or not.
import {
  type DriverContext,
  type FeatureSet,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { ConsoleFeature, consoleReceiveQueue } from "@virtio/core/console";
import type { Features } from "./features.js";
import { ConsolePort } from "./port.js";
import { ReceiveQueue } from "./receive-queue.js";
import type { Gate } from "./slots.js";
import { TransmitQueue } from "./transmit-queue.js";

/** FreeBSD's digits of device names: 0 to 9, then letters. */
const DIGITS = 32;

/** The queues of one number. Their memory is the device's too, and so is kept when a port goes. */
interface PortQueues {
  readonly receive: ReceiveQueue;
  readonly transmit: TransmitQueue;
}

/** Called as a task after a port came, or went. */
export type PortListener = (port: ConsolePort, what: "added" | "removed") => void;

/** What ports are made of. */
export interface PortsOptions {
  readonly device: VirtioDevice;
  readonly context: DriverContext;
  readonly features: FeatureSet<Features>;
  readonly virtqueues: readonly Virtqueue[];
  readonly gate: Gate;
  /** Tells the device that a port was opened or closed; not called without MULTIPORT. */
  readonly announce: (id: number, open: boolean) => Promise<void>;
}

export class Ports {
  readonly #options: PortsOptions;
  readonly #queues = new Map<number, PortQueues>();
  readonly #ports = new Map<number, ConsolePort>();
  /** By number: takes the port back from who it was published to. */
  readonly #unpublish = new Map<number, () => void>();
  readonly #listeners = new Set<PortListener>();

  constructor(options: PortsOptions) {
    this.#options = options;
  }

  /** In order of their numbers. */
  get all(): readonly ConsolePort[] {
    return [...this.#ports.values()].sort((a, b) => a.id - b.id);
  }

  get(id: number): ConsolePort | undefined {
    return this.#ports.get(id);
  }

  listen(listener: PortListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Makes a port and publishes it; the device has its buffers.
   * @throws VirtioFault OUT_OF_MEMORY, and what who it is published to says
   */
  add(id: number): ConsolePort {
    const { context, device, features, announce } = this.#options;
    const queues = this.#queues.get(id) ?? this.#makeQueues(id);
    const port = new ConsolePort({
      name: `ttyV${context.unit.toString(DIGITS)}.${id.toString(DIGITS)}`,
      id,
      ...queues,
      tasks: device.tasks,
      announce: features.has(ConsoleFeature.MULTIPORT) ? (open) => announce(id, open) : null,
    });
    this.#unpublish.set(id, context.publish(port));
    // What is left in the buffers was another port's.
    queues.receive.takeAll();
    this.#ports.set(id, port);
    queues.receive.fill();
    this.#publishSysctl(port, queues);
    this.#tell(port, "added");
    return port;
  }

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  #makeQueues(id: number): PortQueues {
    const { device, virtqueues, gate } = this.#options;
    const index = consoleReceiveQueue(id);
    const [input, output] = [virtqueues[index], virtqueues[index + 1]];
    if (input === undefined || output === undefined)
      throw new VirtioFault("NOT_FOUND", `port ${id} has no queues`);
    const receive = new ReceiveQueue(input, device.memory, gate);
    let transmit: TransmitQueue;
    try {
      transmit = new TransmitQueue(output, device.memory, gate);
    } catch (error) {
      receive.slots.free();
      throw error;
    }
    input.onUsed = () => this.#ports.get(id)?.arrived();
    output.onUsed = () => this.#ports.get(id)?.moved();
    const queues = { receive, transmit };
    this.#queues.set(id, queues);
    return queues;
  }

  #publishSysctl(port: ConsolePort, { receive, transmit }: PortQueues): void {
    const node = this.#options.context.sysctl.node(`port${port.id}`, port.name);
    const before = { received: receive.received, transmitted: transmit.transmitted };
    node.value("name", "Name that the device gives it", () => port.alias);
    node.value("console", "The device nominated it a console", () => Number(port.console));
    node.value("opened", "It is open here", () => Number(port.opened));
    node.value("connected", "It is open at the other end", () => Number(port.connected));
    node.value("ibytes", "Bytes received", () => receive.received - before.received);
    node.value("obytes", "Bytes transmitted", () => transmit.transmitted - before.transmitted);
    node.value("pending", "Bytes that the device has not taken", () => port.pending);
  }

  #tell(port: ConsolePort, what: "added" | "removed"): void {
    for (const listener of this.#listeners)
      this.#options.device.tasks.enqueue(() => {
        // It may have stopped listening.
        if (this.#listeners.has(listener)) listener(port, what);
      });
  }

  /** The port ends with `fault`. What the device has of its buffers stays the device's. */
  remove(port: ConsolePort, fault: VirtioFault): void {
    this.#unpublish.get(port.id)?.();
    this.#unpublish.delete(port.id);
    this.#ports.delete(port.id);
    port.end(fault);
    this.#tell(port, "removed");
  }

  /** Bytes that passed, both ways. */
  get passed(): number {
    let sum = 0;
    for (const { receive, transmit } of this.#queues.values())
      sum += receive.received + transmit.transmitted;
    return sum;
  }

  /** Gives the device the buffers of a port that it knows again. */
  fill(id: number): void {
    this.#queues.get(id)?.receive.fill();
  }

  /** Keeps what came, before a reset. */
  keep(): void {
    for (const { receive } of this.#queues.values()) receive.keep();
  }

  /** The device was reset and has no buffers. @param fault - what writes fail with of which nobody knows how far they came */
  restart(fault: VirtioFault): void {
    for (const [id, { receive, transmit }] of this.#queues) {
      receive.slots.reclaim();
      const lost = transmit.reclaim();
      this.#ports.get(id)?.restarted(lost > 0 ? fault : null);
    }
  }

  get stranded(): boolean {
    return [...this.#queues.values()].some(
      ({ receive, transmit }) => receive.slots.stranded || transmit.slots.stranded,
    );
  }

  /** Gives the memory back. Only when no device can reach it any more. */
  free(): void {
    for (const { receive, transmit } of this.#queues.values()) {
      receive.slots.free();
      transmit.slots.free();
    }
    this.#queues.clear();
  }
}

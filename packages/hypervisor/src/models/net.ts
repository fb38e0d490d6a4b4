// The network device (virtio 1.4 §5.1), written from the device clauses: its queues, and what stands behind them.
import { DeviceType, featureSet } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import type { DeviceModel, ModelHost } from "../device-model.js";
import type { NetBackend } from "../net-backend.js";
import type { RegisterSpace } from "../registers.js";
import { NetRules } from "../rules/net-rules.js";
import { NetCoalescing } from "./net-coalescing.js";
import {
  type NetCharacteristics,
  NetConfiguration,
  netLegacyFeatures,
  netPrerequisites,
} from "./net-config.js";
import { NetControl } from "./net-control.js";
import { NetFilter } from "./net-filter.js";
import type { NetLies } from "./net-lies.js";
import type { NetPort } from "./net-port.js";
import { type NetParts, NetReceiver } from "./net-receive.js";
import { NetSteering } from "./net-steering.js";
import { NetTransmitter } from "./net-transmit.js";

/** How a network device is made. */
export interface NetModelOptions {
  readonly name: string;
  readonly backend: NetBackend;
  /** `52:54:00:12:34:56` */
  readonly mac: string;
  /** Pairs of queues; MQ is offered when there are several. */
  readonly queues: number;
  /** Undefined: MTU is not offered. */
  readonly mtu: number | undefined;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: NetCharacteristics;
  readonly port: NetPort;
  readonly lies: NetLies;
}

/** Network controller, Ethernet: what QEMU's virtio-net-pci says. */
const CLASS_CODE = 0x02_00_00;

/** Addresses of each kind in the receive filter: QEMU's. */
const MAC_TABLE_DEFAULT = 64;

/** What runs once the function carries the model. */
interface Running {
  readonly host: ModelHost;
  readonly receiver: NetReceiver;
  readonly transmitter: NetTransmitter;
  readonly control: NetControl;
  readonly coalescing: NetCoalescing;
  readonly rules: NetRules | null;
}

/** {@inheritDoc DeviceModel} */
export class NetModel implements DeviceModel {
  readonly type: DeviceType = DeviceType.NET;
  readonly classCode: number = CLASS_CODE;
  readonly queues: number;
  readonly prerequisites: DeviceModel["prerequisites"] = netPrerequisites;
  readonly name: string;
  readonly features: readonly number[];
  readonly legacyFeatures: readonly number[];
  readonly config: RegisterSpace;
  readonly #options: NetModelOptions;
  readonly #configuration: NetConfiguration;
  readonly #filter: NetFilter;
  readonly #steering: NetSteering;
  #running: Running | null = null;
  /** The driver's queues were looked at since the last reset: what it accepted is settled. */
  #started = false;

  /** @throws VirtioFault INVALID */
  constructor(options: NetModelOptions) {
    this.name = options.name;
    this.#options = options;
    const configuration = new NetConfiguration(options);
    const { offered, pairs, mac, indirectionTable } = configuration;
    this.#configuration = configuration;
    this.queues = 2 * pairs + Number(offered.includes(NetFeature.CTRL_VQ));
    this.features = featureSet<NetFeature>()
      .with(...offered)
      .without(...netLegacyFeatures)
      .words();
    this.legacyFeatures = netLegacyFeatures.filter((bit) => offered.includes(bit));
    this.#filter = new NetFilter(mac, options.characteristics.macTable ?? MAC_TABLE_DEFAULT);
    this.#steering = new NetSteering(indirectionTable);
    this.config = {
      length: configuration.length,
      read: (offset, width) => this.#readConfig(offset, width),
      write: (offset, width, value) => this.#writeConfig(offset, width, value),
    };
  }

  configGate(offset: number): number | undefined {
    return this.#configuration.gate(offset);
  }

  accepts(): boolean {
    return this.#configuration.acceptable;
  }

  #readConfig(offset: number, width: 1 | 2 | 4): number {
    this.#running?.rules?.configRead(offset, width);
    const honest = this.#configuration.read(offset, width);
    return this.#options.lies.config?.(offset, width, honest) ?? honest;
  }

  #writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    this.#running?.rules?.configWrite(offset);
    this.#configuration.write(offset, width, value);
  }

  connect(host: ModelHost): void {
    const { name, backend, characteristics, port, lies } = this.#options;
    const configuration = this.#configuration;
    const filter = this.#filter;
    const steering = this.#steering;
    configuration.connect(host.features);
    const coalescing = new NetCoalescing(host, 2 * configuration.pairs);
    const rules =
      host.rules === null
        ? null
        : new NetRules({ book: host.rules, device: name, host, configuration, filter });
    const { partialChecksums = false } = characteristics;
    const { counters } = port;
    const parts: NetParts = {
      host,
      backend,
      configuration,
      filter,
      steering,
      coalescing,
      counters,
      lies,
      rules,
      partialChecksums,
    };
    const receiver = new NetReceiver(parts);
    const transmitter = new NetTransmitter(parts);
    const control = new NetControl(parts, {
      setOffloads: (offloads) => receiver.setOffloads(offloads),
      setTransmitPairs: (pairs) => {
        transmitter.pairs = pairs;
        // What was made available before is looked at now.
        for (let pair = 0; pair < pairs; pair++)
          host.tasks.enqueue(() => this.notified(2 * pair + 1));
      },
    });
    this.#running = { host, receiver, transmitter, control, coalescing, rules };
    port.model = {
      announce: () => host.tasks.enqueue(() => this.#announce(host)),
      filter: () => filter.state(),
      get activePairs() {
        return transmitter.pairs;
      },
    };
    backend.deliver = (bytes, offset, length) => receiver.deliver(bytes, offset, length);
    backend.onReady = () => host.tasks.enqueue(() => transmitter.ready());
    backend.onLinkChange = () => host.tasks.enqueue(() => this.#linkChanged(host, receiver));
    backend.connect?.(host.tasks);
  }

  /** The driver is told when it can see it (§5.1.4). */
  #linkChanged(host: ModelHost, receiver: NetReceiver): void {
    if (this.#configuration.has(NetFeature.STATUS)) host.configChanged();
    if (this.#options.backend.linkUp) receiver.room();
  }

  /** §5.1.9.5.4: the driver is to send gratuitous packets. */
  #announce(host: ModelHost): void {
    const able = this.#configuration.has(NetFeature.GUEST_ANNOUNCE);
    if (!able || !this.#configuration.has(NetFeature.STATUS)) return;
    this.#configuration.announcing = true;
    this.#running?.rules?.announcing();
    host.configChanged();
  }

  notified(index: number): void {
    const running = this.#running;
    if (running === null) return;
    if (!this.#started) this.#start(running);
    const { controlQueue, maxPairs } = this.#configuration;
    if (index === controlQueue) running.control.notified(index);
    else if (index >= 2 * maxPairs) return;
    else if ((index & 1) === 0) running.receiver.notified(index >>> 1);
    else running.transmitter.notified(index >>> 1);
  }

  /** The driver runs: its features are settled. */
  #start({ receiver, transmitter, control, rules }: Running): void {
    this.#started = true;
    // A driver that cannot set a filter gets everything.
    this.#filter.filtersAddresses = this.#configuration.has(NetFeature.CTRL_RX);
    this.#filter.filtersVlans = this.#configuration.has(NetFeature.CTRL_VLAN);
    receiver.start();
    transmitter.start();
    control.start();
    rules?.start();
  }

  reset(queue?: number): null {
    const running = this.#running;
    if (running === null) return null;
    const { receiver, transmitter, control, coalescing, rules } = running;
    if (queue !== undefined) {
      if (queue >= 2 * this.#configuration.pairs) return null;
      coalescing.reset(queue);
      if ((queue & 1) === 0) receiver.reset(queue >>> 1);
      else transmitter.reset(queue >>> 1);
      return null;
    }
    rules?.reset();
    receiver.reset();
    transmitter.reset();
    control.reset();
    coalescing.reset();
    this.#filter.reset();
    this.#steering.reset();
    this.#configuration.reset();
    this.#started = false;
    return null;
  }

  async close(): Promise<void> {
    const { backend } = this.#options;
    backend.deliver = null;
    backend.onReady = null;
    backend.onLinkChange = null;
    await backend.close();
  }
}

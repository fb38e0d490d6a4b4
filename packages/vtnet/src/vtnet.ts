// vtnet: the VirtIO Ethernet driver (virtio 1.4 §5.1; FreeBSD's vtnet(4)): its attach, and an interface as those who use it see it.
import {
  type CapturedFrame,
  type Coalescing,
  DeviceType,
  type Driver,
  type DriverContext,
  type FeatureSet,
  type Frame,
  InterfaceCapability,
  type InterfaceStatistics,
  type NetworkInterface,
  type QueueSpec,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { formatMac, parseMac } from "@virtio/packets";
import { Commands } from "./commands.js";
import { CONTROL_SEGMENTS, ControlQueue } from "./control-queue.js";
import {
  capabilitiesOf,
  type Features,
  featureNames,
  featuresFor,
  guestOffloads,
} from "./features.js";
import { LifeCycle } from "./life-cycle.js";
import { type Link, LinkWatch } from "./link.js";
import { isUnicast, localAddress, rarp } from "./mac.js";
import { byTunable, tunables, type VtnetOptions } from "./options.js";
import { MTU_MAX, MTU_MIN, type Settled, settle } from "./settle.js";
import { Setup } from "./setup.js";
import { fitted, segmentsOf } from "./sizes.js";
import { Statistics } from "./statistics.js";
import { Traffic } from "./traffic.js";

/** Until somebody sets another. */
const DEFAULT_MTU = 1500;
const { RXCSUM, RXCSUM_IPV6, VLAN_HWFILTER } = InterfaceCapability;

/**
 * The Ethernet driver: `attach(node, vtnet())` gives a {@link Vtnet}.
 * @see vtnet(4)
 */
export function vtnet(options: VtnetOptions = {}): Driver<Vtnet> {
  return {
    name: "vtnet",
    description: "VirtIO Networking Adapter",
    types: [DeviceType.NET],
    features: featureNames,
    tunables,
    options: byTunable(options),
    attach: (device, context) => Vtnet.attach(device, context, options.onAnnounce ?? (() => {})),
  };
}

/** An interface. */
export class Vtnet implements NetworkInterface {
  readonly kind = "network";
  readonly name: string;
  readonly maxMtu: number;
  readonly capabilities: ReadonlySet<InterfaceCapability>;
  readonly closed: Promise<VirtioFault | null>;
  readonly #device: VirtioDevice;
  readonly #context: DriverContext;
  readonly #settled: Settled;
  readonly #onAnnounce: (name: string) => void;
  readonly #commands: Commands | null;
  readonly #statistics: Statistics;
  readonly #setup: Setup;
  readonly #traffic: Traffic;
  readonly #link: LinkWatch;
  readonly #life: LifeCycle;
  #announcing = false;

  /** @throws VirtioFault OUT_OF_MEMORY, none of it taken then */
  private constructor(
    device: VirtioDevice,
    context: DriverContext,
    settled: Settled,
    active: FeatureSet<Features>,
    enabled: Set<InterfaceCapability>,
    queues: readonly Virtqueue[],
    onAnnounce: (name: string) => void,
  ) {
    const { config, memory, tasks } = device;
    const { log, name } = context;
    this.name = name;
    this.#device = device;
    this.#context = context;
    this.#settled = settled;
    this.#onAnnounce = onAnnounce;
    this.maxMtu = Math.min(MTU_MAX, settled.mtu ?? MTU_MAX);
    this.capabilities = capabilitiesOf(settled.features, this.maxMtu);
    for (const capability of enabled)
      if (!this.capabilities.has(capability)) enabled.delete(capability);
    this.#statistics = new Statistics(settled.pairs);
    const queue = queues[2 * settled.devicePairs];
    const control = queue === undefined ? null : new ControlQueue(queue, memory, tasks, name);
    this.#commands = control === null ? null : new Commands(control);
    const mac = settled.mac ?? localAddress();
    this.#setup = new Setup({
      commands: this.#commands,
      config,
      settled,
      features: active,
      mac,
      enabled,
      log,
    });
    try {
      this.#traffic = new Traffic({
        device,
        context,
        settled,
        virtqueues: queues,
        statistics: this.#statistics,
        mtu: Math.min(DEFAULT_MTU, this.maxMtu),
        onHung: (queue) => this.#life.hung(queue),
      });
    } catch (error) {
      control?.free();
      throw error;
    }
    this.#link = new LinkWatch({
      config,
      setup: this.#setup,
      tasks,
      log,
      onLink: (up) => this.#traffic.setLink(up),
      onAnnounce: () => this.#announce(),
    });
    this.#life = new LifeCycle({
      name,
      log,
      device,
      virtqueues: queues,
      control,
      setup: this.#setup,
      traffic: this.#traffic,
      link: this.#link,
      statistics: this.#statistics,
    });
    this.closed = this.#life.closed;
  }

  /** virtio 1.4 §3.1.1, steps 4 to 7; §5.1.5. */
  static async attach(
    device: VirtioDevice,
    context: DriverContext,
    onAnnounce: (name: string) => void,
  ): Promise<Vtnet> {
    const settled = await settle(device, context);
    const { features, devicePairs, pairs, mac } = settled;
    if (mac !== null && !isUnicast(mac))
      context.log(`the device's MAC address ${formatMac(mac)} is none of an interface`);
    const enabled = capabilitiesOf(features, MTU_MAX);
    // Off until somebody has VLANs, as in FreeBSD.
    enabled.delete(VLAN_HWFILTER);
    const active = await device.negotiate(featuresFor(features, enabled));
    await device.finalizeFeatures();
    const { receive, transmit } = segmentsOf(features);
    const specs: QueueSpec[] = [];
    for (let i = 0; i < devicePairs; i++) {
      const interrupt = i < pairs;
      const name = `${context.name}-`;
      specs.push(
        { name: `${name}rx${i}`, maxSegments: interrupt ? receive : 1, interrupt },
        { name: `${name}tx${i}`, maxSegments: interrupt ? transmit : 1, interrupt },
      );
    }
    if (features.has(NetFeature.CTRL_VQ))
      specs.push({
        name: `${context.name} ctrl`,
        maxSegments: CONTROL_SEGMENTS,
        interrupt: true,
      });
    const queues = await device.allocateQueues(specs);
    await device.setupInterrupts();
    // Last, because nobody but the driver gives this memory back.
    const fit = fitted(settled, queues, context);
    const driver = new Vtnet(device, context, fit, active, enabled, queues, onAnnounce);
    device.onConfigChange = () => void driver.#link.changed();
    driver.#publishSysctl();
    return driver;
  }

  /** DRIVER_OK is set: the interface becomes visible. It is down. */
  async started(): Promise<void> {
    this.#context.log(`Ethernet address: ${this.mac}`);
    await this.#link.changed();
    this.#life.unpublish = this.#context.publish(this);
  }

  #publishSysctl(): void {
    const { sysctl } = this.#context;
    this.#statistics.publish(sysctl);
    sysctl.value("max_vq_pairs", "Pairs of queues of the device", () => this.#settled.devicePairs);
    sysctl.value("requested_vq_pairs", "Pairs of queues asked for", () => this.#settled.pairs);
    sysctl.value("act_vq_pairs", "Pairs of queues in use", () => this.queuePairs);
  }

  get mac(): string {
    return formatMac(this.#setup.mac);
  }
  get mtu(): number {
    return this.#traffic.mtu;
  }
  get running(): boolean {
    return this.#life.running;
  }
  get promiscuous(): boolean {
    return this.#setup.filters.promiscuous;
  }
  get allMulticast(): boolean {
    return this.#setup.filters.allMulticast;
  }
  get link(): Link {
    return this.#link.now;
  }
  get queuePairs(): number {
    return this.#life.pairs;
  }
  get enabled(): ReadonlySet<InterfaceCapability> {
    return this.#setup.enabled;
  }
  get statistics(): InterfaceStatistics {
    // What was transmitted is counted when it is taken back.
    this.#traffic.reap();
    return this.#statistics.interface;
  }

  // ── frames ──────────────────────────────────────────────────────────────────

  allocate(): Frame | null {
    return this.#traffic.allocate();
  }
  release(frame: Frame): void {
    this.#traffic.release(frame);
  }
  receiveBurst(queue: number, frames: (Frame | null)[], max: number): number {
    return this.#traffic.receiveBurst(queue, frames, max);
  }
  transmitBurst(queue: number, frames: readonly (Frame | null)[], count: number): number {
    return this.#traffic.transmitBurst(queue, frames, count);
  }
  get onReceive(): ((queue: number) => void) | null {
    return this.#traffic.onReceive;
  }
  set onReceive(handler: ((queue: number) => void) | null) {
    this.#traffic.onReceive = handler;
  }
  get onRoom(): (() => void) | null {
    return this.#traffic.onRoom;
  }
  set onRoom(handler: (() => void) | null) {
    this.#traffic.onRoom = handler;
  }
  get readable(): ReadableStream<Uint8Array> {
    return this.#traffic.streams.readable;
  }
  get writable(): WritableStream<Uint8Array> {
    return this.#traffic.streams.writable;
  }
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.#traffic.streams.readable.values({ preventCancel: true });
  }
  capture(listener: (frame: CapturedFrame) => void): () => void {
    return this.#traffic.captures.add(listener);
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  up(): Promise<void> {
    return this.#life.up();
  }
  down(): Promise<void> {
    return this.#life.down();
  }
  detach(): Promise<void> {
    return this.#life.detach();
  }
  /** As FreeBSD: stopped, so that the device has nothing. */
  suspend(): Promise<void> {
    return this.#life.suspend();
  }
  resume(): Promise<void> {
    return this.#life.resume();
  }
  onLinkChange(listener: (up: boolean) => void): () => void {
    return this.#link.listen(listener);
  }

  /** The machine moved: switches are to learn where the address is now, the device that they were told (§5.1.9.5.4). */
  #announce(): void {
    if (this.#announcing || !this.running) return;
    this.#announcing = true;
    this.#traffic.streams.transmit(rarp(this.#setup.mac));
    this.#device.tasks.enqueue(() => this.#onAnnounce(this.name));
    void this.#commands
      ?.ackAnnounce()
      .catch((error: unknown) => {
        this.#context.log(`cannot acknowledge the announcement: ${String(error)}`);
      })
      .finally(() => {
        this.#announcing = false;
      });
  }

  // ── what a person sets ──────────────────────────────────────────────────────

  setMtu(mtu: number): Promise<void> {
    return this.#life.serial(async () => {
      if (!Number.isInteger(mtu) || mtu < MTU_MIN || mtu > this.maxMtu)
        throw this.#fail("INVALID", `MTU ${mtu} is not ${MTU_MIN} to ${this.maxMtu}`);
      if (this.#traffic.needsClusters(mtu)) await this.#life.anew(() => this.#traffic.setMtu(mtu));
      else this.#traffic.setMtu(mtu);
    });
  }

  setMac(mac: string): Promise<void> {
    return this.#life.serial(async () => {
      const address = parseMac(mac);
      if (!isUnicast(address)) throw this.#fail("INVALID", `${mac} is none of an interface`);
      // A device without an address of its own does not look at it.
      if (
        !this.#setup.setsMacByCommand &&
        !this.#setup.setsMacByConfig &&
        this.#settled.mac !== null
      )
        throw this.#fail("UNSUPPORTED", "the device cannot be given a MAC address");
      if (this.running && this.#setup.setsMacByCommand) await this.#commands?.mac(address);
      this.#setup.mac = address;
      if (this.running && this.#setup.setsMacByConfig) await this.#setup.writeMac();
    });
  }

  setPromiscuous(on: boolean): Promise<void> {
    return this.#setMode(() => {
      this.#setup.filters.promiscuous = on;
    });
  }

  setAllMulticast(on: boolean): Promise<void> {
    return this.#setMode(() => {
      this.#setup.filters.allMulticast = on;
    });
  }

  /** Without CTRL_RX everything passes in any case. */
  #setMode(change: () => void): Promise<void> {
    return this.#life.serial(async () => {
      change();
      if (!this.running || !this.#setup.features.has(NetFeature.CTRL_RX)) return;
      if (!(await this.#setup.modes())) throw this.#fail("IO", "the device refused the mode");
    });
  }

  setUnicast(addresses: readonly string[]): Promise<void> {
    return this.#setTables(() => this.#setup.filters.setUnicast(addresses));
  }

  setMulticast(addresses: readonly string[]): Promise<void> {
    return this.#setTables(() => this.#setup.filters.setMulticast(addresses));
  }

  #setTables(change: () => void): Promise<void> {
    return this.#life.serial(async () => {
      change();
      if (!this.running || !this.#setup.features.has(NetFeature.CTRL_RX)) return;
      const modes = await this.#setup.modes();
      if (!(await this.#setup.tables()) || !modes)
        throw this.#fail("IO", "the device refused the addresses");
    });
  }

  addVlan(id: number): Promise<void> {
    return this.#setVlan(id, true, `cannot add VLAN ${id} to the host filter table`);
  }

  removeVlan(id: number): Promise<void> {
    return this.#setVlan(id, false, `cannot remove VLAN ${id} from the host filter table`);
  }

  #setVlan(id: number, on: boolean, message: string): Promise<void> {
    return this.#life.serial(async () => {
      if (!Number.isInteger(id) || id < 1 || id > 4094)
        throw this.#fail("INVALID", `VLAN ${id} is not 1 to 4094`);
      if (this.#setup.filters.hasVlan(id) === on) return;
      this.#setup.filters.setVlan(id, on);
      if (!this.running || !this.#setup.features.has(NetFeature.CTRL_VLAN)) return;
      if (!(await this.#setup.attempt(message, () => this.#commands?.vlan(id, on))))
        throw this.#fail("IO", message);
    });
  }

  setCapability(capability: InterfaceCapability, on: boolean): Promise<void> {
    return this.#life.serial(async () => {
      if (!this.capabilities.has(capability))
        throw this.#fail("UNSUPPORTED", `no ${InterfaceCapability[capability]}`);
      // A device does not tell IPv4 from IPv6 in what it checks.
      const both = capability === RXCSUM || capability === RXCSUM_IPV6;
      for (const each of both ? [RXCSUM, RXCSUM_IPV6] : [capability])
        if (on) this.#setup.enabled.add(each);
        else this.#setup.enabled.delete(each);
      if (this.running) await this.#switch();
    });
  }

  /** Tells the device what changed: by command where it can be, else by a reset (vtnet_ioctl_ifcap). */
  async #switch(): Promise<void> {
    const before = this.#setup.features;
    const after = this.#setup.wanted;
    const [low, high] = guestOffloads(after);
    const [mayLow, mayHigh] = guestOffloads(before);
    const bySet = NetFeature.CTRL_GUEST_OFFLOADS;
    const vlan = before.has(NetFeature.CTRL_VLAN) === after.has(NetFeature.CTRL_VLAN);
    const same = low === mayLow && high === mayHigh;
    if (vlan && (same || before.has(bySet)) && (low & ~mayLow) === 0 && (high & ~mayHigh) === 0) {
      const message = "cannot update Rx features";
      if (
        !before.has(bySet) ||
        (await this.#setup.attempt(message, () => this.#commands?.guestOffloads([low, high])))
      ) {
        this.#traffic.setFlags(before, this.#setup.enabled);
        return;
      }
    }
    await this.#life.anew(() => {});
  }

  setCoalescing(direction: "receive" | "transmit", coalescing: Coalescing): Promise<void> {
    return this.#life.serial(async () => {
      if (!this.#setup.features.has(NetFeature.NOTF_COAL))
        throw this.#fail("UNSUPPORTED", "the device does not coalesce notifications");
      for (const value of [coalescing.maxPackets, coalescing.maxMicroseconds])
        if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff)
          throw this.#fail("INVALID", `${value} is not 0 to 2^32 - 1`);
      if (this.running) await this.#commands?.coalescing(direction, coalescing);
      this.#setup.coalescing.set(direction, coalescing);
    });
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

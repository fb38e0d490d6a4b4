// vtnet: the VirtIO Ethernet driver (virtio 1.4 §5.1; FreeBSD's vtnet(4)).
//
// This file is the life cycle and what a person sets; frames go through receive-queue.ts and transmit-queue.ts.
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
import { MAC_SIZE, NetFeature } from "@virtio/core/net";
import { BROADCAST_MAC, formatMac, parseMac } from "@virtio/packets";
import { Commands } from "./commands.js";
import { CONTROL_SEGMENTS, ControlQueue } from "./control-queue.js";
import {
  capabilitiesOf,
  type Features,
  featureNames,
  featuresFor,
  guestOffloads,
  MTU_MAX,
  MTU_MIN,
  type Settled,
  settle,
} from "./features.js";
import { Filters } from "./filters.js";
import { type Link, readLink } from "./link.js";
import { byTunable, tunables, type VtnetOptions } from "./options.js";
import { Setup } from "./setup.js";
import { Statistics } from "./statistics.js";
import { fitted, segmentsOf, Traffic } from "./traffic.js";

/** Until somebody sets another. */
const DEFAULT_MTU = 1500;
/** Resets one after the other, no frame sent or received between them, before the device counts as dead. */
const RESETS_MAX = 3;
/** What QEMU sends for a guest that it moved: RARP, request reverse. */
const RARP = 0x8035;

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

/**
 * An interface. It is down, up, or closed; up, it is running except while it is set up anew: after a change that the device must be
 * reset for, when it is hung, or while it is suspended. The device lives in each state: one that is down has no buffers.
 */
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
  readonly #virtqueues: readonly Virtqueue[];
  readonly #control: ControlQueue | null;
  readonly #commands: Commands | null;
  readonly #statistics: Statistics;
  readonly #traffic: Traffic;
  readonly #filters = new Filters();
  readonly #setup: Setup;
  readonly #enabled: Set<InterfaceCapability>;
  readonly #linkListeners = new Set<(up: boolean) => void>();
  readonly #coalescing = new Map<"receive" | "transmit", Coalescing>();
  #mac: Uint8Array;
  #link: Link = { up: false, speed: null, duplex: null };
  /** Pairs in use. */
  #pairs = 1;
  /** IFF_UP */
  #up = false;
  /** Frames are received, and transmitted while the link is up (IFF_DRV_RUNNING). */
  #running = false;
  #suspended = false;
  /** The configuration is not to be read. */
  #resetting = false;
  /** The device was reset, and was given nothing since. */
  #fresh = true;
  /** Ends when what was begun before is over; never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  /** The configuration changed since it was read; `reading`: it is being read. */
  #config: "read" | "reading" | "changed" = "read";
  #announcing = false;
  #recovering = false;
  #resets = 0;
  /** Frames that had passed at the last reset. */
  #passed = -1;
  #fault: VirtioFault | null = null;
  #detaching: Promise<void> | null = null;
  #close: (fault: VirtioFault | null) => void = () => {};
  #unpublish: () => void = () => {};

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
    const { memory, tasks } = device;
    this.name = context.name;
    this.#device = device;
    this.#context = context;
    this.#settled = settled;
    this.#enabled = enabled;
    this.#virtqueues = queues;
    this.#onAnnounce = onAnnounce;
    this.maxMtu = Math.min(MTU_MAX, settled.mtu ?? MTU_MAX);
    this.capabilities = capabilitiesOf(settled.features, this.maxMtu);
    for (const capability of enabled)
      if (!this.capabilities.has(capability)) enabled.delete(capability);
    this.#mac = settled.mac ?? localAddress();
    this.#statistics = new Statistics(settled.pairs);
    for (const queue of queues)
      queue.onBroken = (fault) => {
        // A reset may have come between.
        if (queue.broken === fault) this.#broken(fault);
      };
    const control = queues[2 * settled.devicePairs];
    this.#control =
      control === undefined ? null : new ControlQueue(control, memory, tasks, this.name);
    this.#commands = this.#control === null ? null : new Commands(this.#control);
    this.#setup = new Setup({
      commands: this.#commands,
      config: device.config,
      settled,
      filters: this.#filters,
      log: context.log,
    });
    this.#setup.features = active;
    try {
      this.#traffic = new Traffic({
        device,
        context,
        settled,
        virtqueues: queues,
        statistics: this.#statistics,
        mtu: Math.min(DEFAULT_MTU, this.maxMtu),
        onHung: (queue) => this.#hung(queue),
      });
    } catch (error) {
      this.#control?.free();
      throw error;
    }
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
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
    device.onConfigChange = () => void driver.#configChanged();
    driver.#publishSysctl();
    return driver;
  }

  /** DRIVER_OK is set: the interface becomes visible. It is down. */
  async started(): Promise<void> {
    this.#context.log(`Ethernet address: ${this.mac}`);
    this.#control?.arm();
    await this.#configChanged();
    this.#unpublish = this.#context.publish(this);
  }

  #publishSysctl(): void {
    const { sysctl } = this.#context;
    this.#statistics.publish(sysctl);
    sysctl.value("max_vq_pairs", "Pairs of queues of the device", () => this.#settled.devicePairs);
    sysctl.value("requested_vq_pairs", "Pairs of queues asked for", () => this.#settled.pairs);
    sysctl.value("act_vq_pairs", "Pairs of queues in use", () => this.#pairs);
  }

  get mac(): string {
    return formatMac(this.#mac);
  }
  get mtu(): number {
    return this.#traffic.mtu;
  }
  get running(): boolean {
    return this.#running;
  }
  get promiscuous(): boolean {
    return this.#filters.promiscuous;
  }
  get allMulticast(): boolean {
    return this.#filters.allMulticast;
  }
  get link(): Link {
    return this.#link;
  }
  get queuePairs(): number {
    return this.#pairs;
  }
  get enabled(): ReadonlySet<InterfaceCapability> {
    return this.#enabled;
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
    return this.#traffic.readable;
  }
  get writable(): WritableStream<Uint8Array> {
    return this.#traffic.writable;
  }
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.#traffic.readable.values({ preventCancel: true });
  }
  capture(listener: (frame: CapturedFrame) => void): () => void {
    return this.#traffic.capture(listener);
  }

  // ── up and down (vtnet_init_locked, vtnet_stop) ─────────────────────────────

  up(): Promise<void> {
    return this.#serial(async () => {
      if (this.#up) return;
      if (this.#suspended) throw this.#fail("BUSY", "the device is suspended");
      await this.#init();
      this.#up = true;
    });
  }

  down(): Promise<void> {
    return this.#serial(async () => {
      if (!this.#up) return;
      this.#up = false;
      if (this.#running) await this.#stop();
    });
  }

  /** One after the other. @throws VirtioFault what ended the interface */
  #serial(work: () => Promise<void>): Promise<void> {
    const result = this.#last.then(() => {
      if (this.#fault !== null) throw this.#fault;
      return work();
    });
    this.#last = result.catch(() => {});
    return result;
  }

  /** Buffers, filters, pairs of queues; then frames pass. @throws VirtioFault, and is down then */
  async #init(): Promise<void> {
    try {
      const features = featuresFor(this.#settled.features, this.#enabled);
      const same = features.words().every((word, i) => word === this.#setup.features.words()[i]);
      if (!this.#fresh || !same) await this.#reset(features);
      this.#fresh = false;
      this.#traffic.setFlags(features, this.#enabled);
      this.#control?.arm();
      await this.#setup.mac(this.#mac);
      await this.#setup.allFilters();
      for (const [direction, coalescing] of this.#coalescing)
        await this.#setup.attempt(`cannot set coalescing`, () =>
          this.#commands?.coalescing(direction, coalescing),
        );
      this.#traffic.begin(features);
      this.#pairs = await this.#setup.pairs();
    } catch (error) {
      await this.#stop();
      throw error;
    }
    if (this.#fault !== null) throw this.#fault;
    this.#running = true;
    this.#traffic.start(this.#pairs);
    this.#traffic.setLink(this.#link.up);
    await this.#configChanged();
  }

  #halt(): void {
    this.#running = false;
    this.#traffic.stop();
  }

  /** No frame passes; the device has no buffers any more. */
  async #stop(): Promise<void> {
    this.#halt();
    this.#pairs = 1;
    if (this.#fault !== null) return;
    await this.#reset(this.#setup.features);
    await this.#configChanged();
  }

  /** The device forgets everything, and is live again. @throws VirtioFault, and the interface is dead then */
  async #reset(features: FeatureSet<Features>): Promise<void> {
    this.#control?.fail(this.#fail("BUSY", "the device is being reset"));
    this.#resetting = true;
    try {
      await this.#device.reinit(features);
    } catch (error) {
      const fault = error instanceof VirtioFault ? error : this.#fail("IO", String(error));
      this.#die(fault);
      throw fault;
    } finally {
      this.#resetting = false;
    }
    this.#traffic.end();
    this.#control?.restart();
    this.#setup.features = features;
    this.#fresh = true;
  }

  // ── what a person sets ──────────────────────────────────────────────────────

  setMtu(mtu: number): Promise<void> {
    return this.#serial(async () => {
      if (!Number.isInteger(mtu) || mtu < MTU_MIN || mtu > this.maxMtu)
        throw this.#fail("INVALID", `MTU ${mtu} is not ${MTU_MIN} to ${this.maxMtu}`);
      if (this.#traffic.needsClusters(mtu)) await this.#anew(() => this.#traffic.setMtu(mtu));
      else this.#traffic.setMtu(mtu);
    });
  }

  /** Changes what cannot be changed while frames pass. @throws VirtioFault what `change` throws, when it runs again */
  async #anew(change: () => void): Promise<void> {
    const running = this.#running;
    if (running) await this.#stop();
    try {
      change();
    } finally {
      if (running) await this.#init();
    }
  }

  setMac(mac: string): Promise<void> {
    return this.#serial(async () => {
      const address = parseMac(mac);
      if (!isUnicast(address)) throw this.#fail("INVALID", `${mac} is none of an interface`);
      // A device without an address of its own does not look at it.
      if (
        !this.#setup.setsMacByCommand &&
        !this.#setup.setsMacByConfig &&
        this.#settled.mac !== null
      )
        throw this.#fail("UNSUPPORTED", "the device cannot be given a MAC address");
      if (this.#running && this.#setup.setsMacByCommand) await this.#commands?.mac(address);
      this.#mac = address;
      if (this.#running && this.#setup.setsMacByConfig) await this.#setup.mac(address);
    });
  }

  setPromiscuous(on: boolean): Promise<void> {
    return this.#setMode(() => {
      this.#filters.promiscuous = on;
    });
  }

  setAllMulticast(on: boolean): Promise<void> {
    return this.#setMode(() => {
      this.#filters.allMulticast = on;
    });
  }

  /** Without CTRL_RX everything passes in any case. */
  #setMode(change: () => void): Promise<void> {
    return this.#serial(async () => {
      change();
      if (!this.#running || !this.#setup.features.has(NetFeature.CTRL_RX)) return;
      if (!(await this.#setup.modes())) throw this.#fail("IO", "the device refused the mode");
    });
  }

  setUnicast(addresses: readonly string[]): Promise<void> {
    return this.#setTables(() => this.#filters.setUnicast(addresses));
  }

  setMulticast(addresses: readonly string[]): Promise<void> {
    return this.#setTables(() => this.#filters.setMulticast(addresses));
  }

  #setTables(change: () => void): Promise<void> {
    return this.#serial(async () => {
      change();
      if (!this.#running || !this.#setup.features.has(NetFeature.CTRL_RX)) return;
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
    return this.#serial(async () => {
      if (!Number.isInteger(id) || id < 1 || id > 4094)
        throw this.#fail("INVALID", `VLAN ${id} is not 1 to 4094`);
      if (this.#filters.hasVlan(id) === on) return;
      this.#filters.setVlan(id, on);
      if (!this.#running || !this.#setup.features.has(NetFeature.CTRL_VLAN)) return;
      if (!(await this.#setup.attempt(message, () => this.#commands?.vlan(id, on))))
        throw this.#fail("IO", message);
    });
  }

  setCapability(capability: InterfaceCapability, on: boolean): Promise<void> {
    return this.#serial(async () => {
      if (!this.capabilities.has(capability))
        throw this.#fail("UNSUPPORTED", `no ${InterfaceCapability[capability]}`);
      // A device does not tell IPv4 from IPv6 in what it checks.
      const both = capability === RXCSUM || capability === RXCSUM_IPV6;
      for (const each of both ? [RXCSUM, RXCSUM_IPV6] : [capability])
        if (on) this.#enabled.add(each);
        else this.#enabled.delete(each);
      if (this.#running) await this.#switch();
    });
  }

  /** Tells the device what changed: by command where it can be, else by a reset (vtnet_ioctl_ifcap). */
  async #switch(): Promise<void> {
    const before = this.#setup.features;
    const after = featuresFor(this.#settled.features, this.#enabled);
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
        this.#traffic.setFlags(before, this.#enabled);
        return;
      }
    }
    await this.#stop();
    await this.#init();
  }

  setCoalescing(direction: "receive" | "transmit", coalescing: Coalescing): Promise<void> {
    return this.#serial(async () => {
      if (!this.#setup.features.has(NetFeature.NOTF_COAL))
        throw this.#fail("UNSUPPORTED", "the device does not coalesce notifications");
      for (const value of [coalescing.maxPackets, coalescing.maxMicroseconds])
        if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff)
          throw this.#fail("INVALID", `${value} is not 0 to 2^32 - 1`);
      if (this.#running) await this.#commands?.coalescing(direction, coalescing);
      this.#coalescing.set(direction, coalescing);
    });
  }

  // ── configuration ───────────────────────────────────────────────────────────

  onLinkChange(listener: (up: boolean) => void): () => void {
    const own = (up: boolean): void => listener(up);
    this.#linkListeners.add(own);
    return () => {
      this.#linkListeners.delete(own);
    };
  }

  /** However often it changes meanwhile, it is read once more (vtnet_config_change). */
  async #configChanged(): Promise<void> {
    // It is read afterwards in any case.
    if (this.#suspended || this.#resetting) return;
    const reading = this.#config !== "read";
    this.#config = "changed";
    if (reading) return;
    try {
      while (this.#config === "changed" && this.#fault === null) {
        this.#config = "reading";
        const { announce, ...link } = await readLink(this.#device.config, this.#setup.features);
        this.#linked(link);
        if (announce) this.#announce();
      }
    } catch (error) {
      this.#context.log(`cannot read the link status: ${String(error)}`);
    } finally {
      this.#config = "read";
    }
  }

  #linked(link: Link): void {
    const before = this.#link;
    this.#link = link;
    if (link.up === before.up) return;
    this.#traffic.setLink(link.up);
    this.#context.log(`link state changed to ${link.up ? "UP" : "DOWN"}`);
    for (const listener of this.#linkListeners)
      this.#device.tasks.enqueue(() => {
        if (this.#linkListeners.has(listener)) listener(link.up);
      });
  }

  /** The machine moved: switches are to learn where the address is now, the device that they were told (§5.1.9.5.4). */
  #announce(): void {
    if (this.#announcing || !this.#running) return;
    this.#announcing = true;
    this.#traffic.putCopy(rarp(this.#mac));
    this.#onAnnounce(this.name);
    void this.#commands
      ?.ackAnnounce()
      .catch((error: unknown) => {
        this.#context.log(`cannot acknowledge the announcement: ${String(error)}`);
      })
      .finally(() => {
        this.#announcing = false;
      });
  }

  // ── faults ──────────────────────────────────────────────────────────────────

  #hung(queue: number): void {
    const what = `watchdog timeout on queue ${queue}`;
    this.#recover(what, this.#fail("TIMED_OUT", what));
  }

  #broken(fault: VirtioFault): void {
    if (fault.code === "NEEDS_RESET") this.#recover("the device needs a reset", fault);
    else this.#die(fault);
  }

  /** Resets the device and sets it up again. What it had to send is lost. */
  #recover(why: string, fault: VirtioFault): void {
    if (this.#fault !== null || this.#recovering) return;
    const { ipackets, opackets } = this.statistics;
    this.#resets = ipackets + opackets === this.#passed ? this.#resets + 1 : 1;
    this.#passed = ipackets + opackets;
    if (this.#suspended || this.#resets > RESETS_MAX) {
      this.#die(fault);
      return;
    }
    this.#context.log(why);
    this.#recovering = true;
    this.#control?.fail(fault);
    this.#halt();
    const work = this.#serial(async () => {
      await this.#stop();
      this.#recovering = false;
      if (this.#up) await this.#init();
    });
    void work.catch((error: unknown) => {
      this.#recovering = false;
      this.#die(error instanceof VirtioFault ? error : fault);
    });
  }

  /** The device broke a rule, cannot be reset, or is gone. */
  #die(fault: VirtioFault): void {
    if (this.#fault !== null) return;
    this.#fault = fault;
    this.#running = false;
    this.#control?.fail(fault);
    this.#traffic.close(fault);
    this.#close(fault);
  }

  // ── life cycle ──────────────────────────────────────────────────────────────

  detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    return this.#detaching;
  }

  async #detach(): Promise<void> {
    this.#unpublish();
    const orderly = this.#fault === null;
    const fault = this.#fault ?? this.#fail("CLOSED", "the interface is detached");
    this.#fault = fault;
    this.#halt();
    // What is under way ends, each part of it being bounded.
    this.#control?.fail(fault);
    await this.#last;
    try {
      await this.#device.release();
      this.#free();
    } finally {
      if (orderly) {
        this.#traffic.close(null);
        this.#close(null);
      }
    }
  }

  /** A device that went away was not reset: memory that it may still write to is never used again. */
  #free(): void {
    if (this.#virtqueues.some((queue) => queue.broken?.code === "CLOSED" && queue.used > 0)) {
      this.#context.log("the device went away with buffers: their memory is lost");
      return;
    }
    this.#traffic.free();
    this.#control?.free();
  }

  /** As FreeBSD: stopped, so that the device has nothing. */
  suspend(): Promise<void> {
    return this.#suspendable(async () => {
      if (this.#running) await this.#stop();
      await this.#device.suspend();
      this.#suspended = true;
    });
  }

  resume(): Promise<void> {
    return this.#suspendable(async () => {
      await this.#device.resume();
      this.#suspended = false;
      if (this.#up) await this.#init();
      else await this.#configChanged();
    });
  }

  /** One that failed has nothing to suspend. */
  async #suspendable(work: () => Promise<void>): Promise<void> {
    if (this.#fault === null) await this.#serial(work);
  }

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

/** Neither a group nor nothing. */
function isUnicast(mac: Uint8Array): boolean {
  return ((mac[0] as number) & 1) === 0 && mac.some((byte) => byte !== 0);
}

/** For a device that has none: locally administered (§5.1.4.2), as FreeBSD makes it. */
function localAddress(): Uint8Array {
  const mac = crypto.getRandomValues(new Uint8Array(MAC_SIZE));
  mac[0] = 0xb2;
  return mac;
}

/** A frame by which switches learn where an address is (RFC 903). */
function rarp(mac: Uint8Array): Uint8Array {
  const frame = new Uint8Array(60);
  frame.set(parseMac(BROADCAST_MAC), 0);
  frame.set(mac, 6);
  frame.set([RARP >>> 8, RARP & 0xff, 0, 1, 8, 0, 6, 4, 0, 3], 12);
  frame.set(mac, 22);
  frame.set(mac, 32);
  return frame;
}

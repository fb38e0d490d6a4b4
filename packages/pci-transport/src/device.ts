// A virtio function as a device, by either interface (virtio 1.4 §3, §4.1; FreeBSD's virtio_pci.c).
import {
  type AttachContext,
  DeviceStatus,
  type DmaMemory,
  describeFeatures,
  type FeatureName,
  type FeatureSet,
  featureSetFromWords,
  type InterruptKind,
  type QueueSpec,
  ReservedFeature,
  reservedFeatureNames,
  type TaskQueue,
  type VirtioDevice,
  VirtioFault,
  type Virtqueue,
} from "@virtio/core";
import { IsrStatus } from "@virtio/core/pci";
import { QUEUE_SIZE_MAX } from "@virtio/core/ring";
import type { PciConfigSpace } from "./config-space.js";
import { chooseFeatures, haveSameReservedBits } from "./features.js";
import { Interrupts } from "./interrupts.js";
import type { Opened, PciNode } from "./node.js";
import type { OfferedQueue, VirtioRegisters } from "./registers.js";
import { makeRing, type Ring } from "./rings.js";

/**
 * Most descriptors of a queue that the driver decides: bounds what a device can make it allocate. On the legacy interface the device
 * decides, up to what a ring can have.
 */
const QUEUE_SIZE_LIMIT = 1024;

const TIMEOUT_MS = 5000;
const POLL_MS = 1;
/** What a register of a function that is not there reads. */
const NO_ANSWER = 0xff;

const interruptMessages: Readonly<Record<InterruptKind, string>> = {
  msix: "using per VQ MSIX interrupts",
  "msix-shared": "using shared MSIX interrupts",
  msi: "using MSI interrupt",
  intx: "using legacy interrupt",
  none: "using no interrupt",
};

interface Queue {
  readonly ring: Ring;
  readonly spec: QueueSpec;
}

/**
 * {@inheritDoc VirtioDevice}
 *
 * `attach` calls `begin` (reset, ACKNOWLEDGE, DRIVER), the driver sets the device up, `attach` calls `start` (queues enabled,
 * DRIVER_OK); `release` ends it, `abandon` after a failure. When the function is gone every queue fails with CLOSED.
 */
export class PciDevice implements VirtioDevice {
  readonly type: number;
  readonly location: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly config: PciConfigSpace;
  onConfigChange: (() => void) | null = null;
  onNeedsReset: (() => void) | null = null;

  readonly #node: PciNode;
  readonly #registers: VirtioRegisters;
  readonly #context: AttachContext;
  readonly #features: readonly FeatureName[];
  readonly #interrupts: Interrupts;
  #offered: readonly number[] = [];
  #negotiated: readonly number[] = [];
  /** Status when the features were written. */
  #chosenAt = 0;
  #queues: readonly Queue[] = [];
  #needsReset = false;
  #suspended = false;
  #gone: VirtioFault | null = null;
  #leaked = 0;

  constructor(
    node: PciNode,
    { registers, msix, msi }: Opened,
    context: AttachContext,
    features: readonly FeatureName[],
  ) {
    this.type = node.type;
    this.location = node.location;
    this.memory = node.bus.memory;
    this.tasks = node.bus.tasks;
    this.config = registers.config;
    this.#node = node;
    this.#registers = registers;
    this.#context = context;
    this.#features = features;
    this.#interrupts = new Interrupts(node.function, registers, msix, msi);
    void node.function.gone.then((fault) => this.#lost(fault));
  }

  /** What took the device away, or null. */
  get gone(): VirtioFault | null {
    return this.#gone;
  }

  poll(): void {
    this.#node.bus.poll();
  }

  // ── life cycle, for attach (virtio 1.4 §3.1.1) ──────────────────────────────

  /** Reset, ACKNOWLEDGE, DRIVER: steps 1 to 3. */
  async begin(): Promise<void> {
    await this.reset();
    await this.#seen();
    const { sysctl } = this.#context.transport;
    const names = [...reservedFeatureNames, ...this.#features];
    const features = (words: readonly number[]): string => describeFeatures(words, names);
    sysctl.value("nvqs", "Number of virtqueues", () => this.#queues.length);
    sysctl.value("host_features", "Features the device offers", () => features(this.#offered));
    sysctl.value("negotiated_features", "Features negotiated", () => features(this.#negotiated));
    sysctl.value(
      "leaked",
      "Bytes that a device which would not reset may still write to",
      () => this.#leaked,
    );
  }

  /** Queues enabled, then DRIVER_OK: step 8. */
  async start(): Promise<void> {
    const [status] = await Promise.all([
      this.#status(),
      this.#registers.enableQueues(this.#rings()),
    ]);
    await this.#registers.writeStatus(status | DeviceStatus.DRIVER_OK);
  }

  /** The driver's attach failed: FAILED, then as release, so that another driver may be tried. */
  async abandon(): Promise<void> {
    // What is wrong with a device that cannot even be set FAILED, its reset will say.
    await this.#addStatus(DeviceStatus.FAILED).catch(() => {});
    await this.release();
  }

  async release(): Promise<void> {
    const fault = await this.reset().then(
      () => null,
      (error: unknown) => error,
    );
    this.onConfigChange = null;
    this.onNeedsReset = null;
    if (fault === null) await this.#interrupts.release();
    else this.#interrupts.forget();
    for (const { ring } of this.#queues) {
      // Memory that a device may still write to is never used again.
      if (fault === null) ring.release();
      else this.#leaked += ring.bytes;
    }
    this.#queues = [];
    this.#negotiated = [];
    this.#node.attached = false;
    if (fault === null) await this.#registers.writeStatus(DeviceStatus.ACKNOWLEDGE);
    else if (this.#gone === null) throw fault;
  }

  async reset(): Promise<void> {
    if (this.#gone !== null) throw this.#gone;
    let status = await this.#registers.writeStatus(0);
    await this.#until("reset", "§2.4.2", async () => {
      if (status !== 0) status = await this.#status();
      return status === 0;
    });
    this.#needsReset = false;
  }

  async reinit<F extends number>(
    wanted?: FeatureSet<F>,
    prepare?: () => Promise<void>,
  ): Promise<void> {
    const expected = wanted?.words() ?? this.#negotiated;
    // The queues are those that were made for the bits of before.
    if (!haveSameReservedBits(expected, this.#negotiated))
      throw new VirtioFault(
        "INVALID",
        "reinit wants other features of queues and negotiation than were negotiated",
        { device: this.#context.name },
      );
    await this.reset();
    await this.#seen();
    const features = await this.#choose(expected);
    if (features.some((word, i) => word !== (expected[i] ?? 0)))
      throw this.#misbehaved("other features are offered after a reset", "§2.2.2");
    this.#negotiated = features;
    await this.finalizeFeatures();
    const rings = this.#rings();
    const offered = await this.#offeredQueues(rings.map(({ index }) => index));
    for (const { ring, spec } of this.#queues) {
      const { size = 0 } = offered[ring.index] ?? {};
      if (size < ring.size)
        throw this.#misbehaved(
          `'${spec.name}' changed size; old=${ring.size}, new=${size}`,
          "§2.6.1",
        );
      ring.restart();
    }
    await this.#registers.placeQueues(rings);
    await this.#remap("a reset");
    await prepare?.();
    await this.start();
  }

  async resetQueue(queue: Virtqueue): Promise<void> {
    const own = this.#rings().find((ring) => ring === queue);
    if (own === undefined)
      throw new VirtioFault("INVALID", `queue ${queue.index} is not of this device`, {
        device: this.#context.name,
      });
    if (!this.#has(ReservedFeature.RING_RESET))
      throw new VirtioFault("UNSUPPORTED", "RING_RESET was not negotiated", {
        device: this.#context.name,
      });
    await this.#registers.resetQueue(own.index);
    await this.#until(
      `reset queue ${own.index}`,
      "§2.6.1.1.2",
      async () => !(await this.#registers.isQueueResetting(own.index)),
    );
    own.restart();
    await this.#registers.placeQueues([own]);
    await this.#remap("a queue reset");
    await this.#registers.enableQueues([own]);
  }

  /** A reset unmaps vectors. */
  async #remap(after: string): Promise<void> {
    if (!(await this.#interrupts.remap()))
      throw this.#misbehaved(`vectors were refused after ${after}`, "§4.1.5.1.2.2");
  }

  // ── suspend (virtio 1.4 §3.4) ───────────────────────────────────────────────

  async suspend(): Promise<void> {
    if (this.#suspended) return;
    const rings = this.#rings();
    const suspends = this.#has(ReservedFeature.SUSPEND);
    const busy = rings.find((ring) => ring.used > 0);
    if (!suspends && busy !== undefined)
      throw new VirtioFault(
        "BUSY",
        `the device cannot suspend with ${busy.used} descriptors in flight on ${busy.name}`,
        { device: this.#context.name },
      );
    this.#suspended = true;
    for (const ring of rings) ring.freeze();
    this.config.frozen = true;
    if (!suspends) return this.reset();
    await this.#addStatus(DeviceStatus.SUSPEND);
    await this.#turned("suspend", DeviceStatus.SUSPEND, DeviceStatus.DRIVER_OK);
  }

  async resume(prepare?: () => Promise<void>): Promise<void> {
    if (!this.#suspended) return;
    if (this.#has(ReservedFeature.SUSPEND)) {
      await this.#addStatus(DeviceStatus.DRIVER_OK);
      await this.#turned("resume", DeviceStatus.DRIVER_OK, DeviceStatus.SUSPEND);
      for (const ring of this.#rings()) ring.thaw();
      this.config.frozen = false;
    } else {
      this.config.frozen = false;
      await this.reinit(undefined, prepare);
    }
    this.#suspended = false;
  }

  /** Waits until the device shows that it did what status asks for: one bit set, the other cleared. */
  async #turned(what: string, set: DeviceStatus, cleared: DeviceStatus): Promise<void> {
    await this.#until(what, "§3.4", async () => {
      const status = await this.#status();
      if ((status & DeviceStatus.DEVICE_NEEDS_RESET) !== 0) throw this.#demandsReset();
      return (status & set) !== 0 && (status & cleared) === 0;
    });
  }

  // ── features (virtio 1.4 §2.2, §4.1.4.3) ────────────────────────────────────

  async negotiate<F extends number>(wanted: FeatureSet<F>): Promise<FeatureSet<F>> {
    this.#negotiated = await this.#choose(wanted.words());
    const { verbose } = this.#context.transport;
    const names = [...reservedFeatureNames, ...this.#features];
    verbose(`host features: ${describeFeatures(this.#offered, names)}`);
    verbose(`negotiated features: ${describeFeatures(this.#negotiated, names)}`);
    return featureSetFromWords<F>(this.#negotiated);
  }

  /** Reads what is offered, writes back what of it is asked for and can be done. */
  async #choose(wanted: readonly number[]): Promise<readonly number[]> {
    const { legacy, unreachable } = this.#registers;
    this.#offered = await this.#registers.readFeatures();
    const chosen = chooseFeatures({
      offered: this.#offered,
      wanted,
      unreachable,
      legacy,
      features: this.#features,
    });
    const modern = featureSetFromWords<ReservedFeature>(chosen).has(ReservedFeature.VERSION_1);
    if (!legacy && !modern)
      throw new VirtioFault("NEGOTIATION", "the device does not offer VERSION_1", {
        device: this.#context.name,
        clause: "virtio 1.4 §6.1",
      });
    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures(chosen)]);
    this.#chosenAt = status;
    return chosen;
  }

  async finalizeFeatures(): Promise<void> {
    if (this.#registers.legacy) return;
    const status = await this.#registers.writeStatus(this.#chosenAt | DeviceStatus.FEATURES_OK);
    if ((status & DeviceStatus.FEATURES_OK) === 0)
      throw new VirtioFault("NEGOTIATION", "desired features were not accepted", {
        device: this.#context.name,
        clause: "virtio 1.4 §3.1.1",
      });
  }

  #has(feature: ReservedFeature): boolean {
    return ((this.#negotiated[feature >>> 5] ?? 0) & (1 << (feature & 31))) !== 0;
  }

  // ── queues (virtio 1.4 §4.1.5.1.3) ──────────────────────────────────────────

  async allocateQueues(specs: readonly QueueSpec[]): Promise<readonly Virtqueue[]> {
    const device = this.#context.name;
    if (this.#queues.length > 0 || specs.length === 0)
      throw new VirtioFault("INVALID", "queues are allocated once, at least one", { device });
    const numbers = specs.map(({ index }, place) => index ?? place);
    const offered = await this.#offeredQueues(numbers);
    for (const [place, index] of numbers.entries())
      if ((offered[index]?.size ?? 0) === 0)
        throw new VirtioFault(
          "NOT_FOUND",
          `virtqueue ${index} (${specs[place]?.name}) does not exist (size is zero)`,
          { device },
        );
    const queues: Queue[] = [];
    // Whatever is made is the device's: release() frees it after the reset.
    this.#queues = queues;
    for (const [place, spec] of specs.entries()) {
      const index = numbers[place] as number;
      queues.push({ ring: this.#makeRing(index, spec, offered[index] as OfferedQueue), spec });
    }
    const rings = this.#rings();
    await this.#registers.placeQueues(rings);
    for (const ring of rings) this.#publishCounters(ring);
    return rings;
  }

  /** Of the queues from 0 up to the highest of these. */
  #offeredQueues(numbers: readonly number[]): Promise<readonly OfferedQueue[]> {
    return this.#registers.offeredQueues(Math.max(...numbers) + 1, this.#negotiated);
  }

  #makeRing(
    index: number,
    { name, maxSegments, clip = false }: QueueSpec,
    { size, doorbell }: OfferedQueue,
  ): Ring {
    const features = featureSetFromWords<ReservedFeature>(this.#negotiated);
    if (!features.has(ReservedFeature.RING_PACKED) && (size & (size - 1)) !== 0)
      throw this.#misbehaved(
        `virtqueue ${index} (${name}) size is not a power of 2: ${size}`,
        "§2.7",
      );
    if (size > QUEUE_SIZE_MAX)
      throw this.#misbehaved(`virtqueue ${index} (${name}) size ${size} is above 32768`, "§2.6");
    return makeRing(features, {
      index,
      name,
      device: this.#context.name,
      size: this.#registers.legacy ? size : Math.min(size, QUEUE_SIZE_LIMIT),
      memory: this.memory,
      tasks: this.tasks,
      maxSegments,
      clip,
      doorbell: (_, next) => doorbell(next),
      poll: () => this.poll(),
    });
  }

  #rings(): readonly Ring[] {
    return this.#queues.map(({ ring }) => ring);
  }

  #publishCounters(ring: Ring): void {
    const { counters } = ring;
    const node = this.#context.sysctl.node(`vq${ring.index}`, ring.name);
    node.value("size", "Descriptors", () => ring.size);
    node.value("free", "Descriptors free", () => ring.free);
    node.value("kicks", "Doorbells rung", () => counters.kicks);
    node.value(
      "kicks_suppressed",
      "Doorbells the device did not want",
      () => counters.kicksSuppressed,
    );
    node.value("interrupts", "Interrupts", () => counters.interrupts);
    node.value("buffers", "Chains used by the device", () => counters.buffers);
    node.value("high_water", "Most descriptors in flight", () => counters.highWater);
  }

  // ── interrupts ──────────────────────────────────────────────────────────────

  async setupInterrupts(): Promise<InterruptKind> {
    const { transport } = this.#context;
    const kind = await this.#interrupts.setup(
      this.#queues.map(({ ring, spec }) => ({
        index: ring.index,
        name: spec.name,
        wanted: spec.interrupt,
      })),
      {
        name: transport.name,
        configChanged: () => this.#configChanged(),
        queueUsed: (index) => {
          for (const { ring } of this.#queues) if (ring.index === index) ring.interrupted();
        },
        service: () => this.#service(),
        failed: (error) => this.#lost(error),
      },
      transport.tunables.number("disable_msix") !== 0,
    );
    transport.verbose(interruptMessages[kind]);
    return kind;
  }

  /** Reads the ISR, which lowers the line, then runs what it says: a configuration change first, then every queue (§4.1.5.3). */
  async #service(): Promise<boolean> {
    const isr = await this.#registers.readIsr();
    if (isr === NO_ANSWER) return false;
    if ((isr & IsrStatus.CONFIG) !== 0) await this.#configChanged();
    if ((isr & IsrStatus.QUEUE) !== 0)
      this.tasks.enqueue(() => {
        for (const { ring, spec } of this.#queues) if (spec.interrupt) ring.interrupted();
      });
    return isr !== 0;
  }

  async #configChanged(): Promise<void> {
    if (this.#gone !== null) return;
    const status = await this.#status();
    if ((status & DeviceStatus.DEVICE_NEEDS_RESET) !== 0) this.#demandsReset();
    this.tasks.enqueue(() => this.onConfigChange?.());
  }

  /** DEVICE_NEEDS_RESET is set: every queue fails, and the driver is told, once. */
  #demandsReset(): VirtioFault {
    const fault = new VirtioFault("NEEDS_RESET", "the device needs a reset", {
      device: this.#context.name,
      clause: "virtio 1.4 §2.1.1",
    });
    if (!this.#needsReset) {
      this.#needsReset = true;
      for (const { ring } of this.#queues) ring.fail(fault);
      this.tasks.enqueue(() => this.onNeedsReset?.());
    }
    return fault;
  }

  /** Registers can no longer be reached: every request fails now rather than wait for an answer. */
  #lost(cause: unknown): VirtioFault {
    this.#gone ??=
      cause instanceof VirtioFault && cause.code === "CLOSED"
        ? cause
        : new VirtioFault("CLOSED", "the device is gone", { device: this.#context.name, cause });
    for (const { ring } of this.#queues) ring.fail(this.#gone);
    return this.#gone;
  }

  // ── small things ────────────────────────────────────────────────────────────

  /** ACKNOWLEDGE, then DRIVER: after a reset, which cleared all else. */
  async #seen(): Promise<void> {
    const { ACKNOWLEDGE, DRIVER } = DeviceStatus;
    await this.#registers.writeStatus(ACKNOWLEDGE, ACKNOWLEDGE | DRIVER);
  }

  /** Status bits are only ever added to what the device shows; a reset alone clears them (§2.1.1). */
  async #addStatus(bit: DeviceStatus): Promise<void> {
    await this.#registers.writeStatus((await this.#status()) | bit);
  }

  /** @throws VirtioFault CLOSED when nothing answers: no device shows every bit */
  async #status(): Promise<number> {
    const status = await this.#registers.readStatus();
    if (status === NO_ANSWER) throw this.#lost(null);
    return status;
  }

  /** Asks again and again until it is so, with a bound. */
  async #until(what: string, section: string, done: () => Promise<boolean>): Promise<void> {
    const deadline = this.tasks.now() + TIMEOUT_MS;
    while (!(await done())) {
      if (this.#gone !== null) throw this.#gone;
      if (this.tasks.now() >= deadline)
        throw new VirtioFault("TIMED_OUT", `${what} is not done after ${TIMEOUT_MS} ms`, {
          device: this.#context.name,
          clause: `virtio 1.4 ${section}`,
        });
      await new Promise<void>((resolve) => {
        this.tasks.callout(POLL_MS, resolve);
      });
    }
  }

  #misbehaved(what: string, section: string): VirtioFault {
    return new VirtioFault("DEVICE_MISBEHAVED", `device misbehaved: ${what}`, {
      device: this.#context.name,
      clause: `virtio 1.4 ${section}`,
    });
  }
}

// A modern virtio function as a device (virtio 1.4 §4.1; FreeBSD's virtio_pci_modern.c).
import {
  type AttachContext,
  type ConfigSpace,
  DeviceStatus,
  type DmaMemory,
  describeFeatures,
  type FeatureName,
  type FeatureSet,
  featureSet,
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
import { CommonConfig, IsrStatus } from "@virtio/core/pci";
import { PackedQueue, type QueueOptions, SplitQueue } from "@virtio/ring";
import { PciConfigSpace } from "./config-space.js";
import { Interrupts } from "./interrupts.js";
import type { ModernRegisters, PciNode } from "./node.js";
import type { Access } from "./region.js";

/** Bits that are the transport's own affair: accepted whenever they are offered (virtio 1.4 §6.1). */
const ownFeatures: FeatureSet<ReservedFeature> = featureSet<ReservedFeature>().with(
  ReservedFeature.VERSION_1,
  // Addresses are guest-physical, which is what a device behind an IOMMU that nobody programmed sees.
  ReservedFeature.ACCESS_PLATFORM,
  ReservedFeature.RING_PACKED,
  ReservedFeature.IN_ORDER,
  // The rings order their accesses with Atomics, which are barriers for every observer.
  ReservedFeature.ORDER_PLATFORM,
  ReservedFeature.NOTIFICATION_DATA,
  ReservedFeature.RING_RESET,
);

/** Queue and negotiation bits that this transport and the rings below it can do, when a driver asks for them. */
const transportFeatures: FeatureSet<ReservedFeature> = ownFeatures.with(
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

/** Bits of queues and negotiation, 24 to 40 and 43 (virtio 1.4 §2.2), as words; all others belong to the device type. */
const RESERVED_BITS: readonly number[] = [0xff00_0000, 0x0000_09ff];

/** 32-bit words of feature bits that are looked at: virtio 1.4 has bits past 64. */
const FEATURE_WORDS = 4;

/** Most descriptors of a queue: bounds what a device can make the driver allocate. */
const QUEUE_SIZE_LIMIT = 1024;

const RESET_TIMEOUT_MS = 5000;
const RESET_POLL_MS = 1;

const interruptMessages: Readonly<Record<InterruptKind, string>> = {
  msix: "using per VQ MSIX interrupts",
  "msix-shared": "using shared MSIX interrupts",
  msi: "using MSI interrupt",
  intx: "using legacy interrupt",
  none: "using no interrupt",
};

/** A queue of the format that was negotiated. */
type Ring = SplitQueue | PackedQueue;

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
export class ModernDevice implements VirtioDevice {
  readonly type: number;
  readonly location: string;
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  readonly config: ConfigSpace;
  onConfigChange: (() => void) | null = null;
  onNeedsReset: (() => void) | null = null;

  readonly #node: PciNode;
  readonly #registers: ModernRegisters;
  readonly #context: AttachContext;
  readonly #names: readonly FeatureName[];
  readonly #interrupts: Interrupts;
  #offered: readonly number[] = [];
  #negotiated: readonly number[] = [];
  #queues: readonly Queue[] = [];
  #needsReset = false;
  #gone: VirtioFault | null = null;
  #leaked = 0;

  constructor(
    node: PciNode,
    registers: ModernRegisters,
    context: AttachContext,
    names: readonly FeatureName[],
  ) {
    this.type = node.type;
    this.location = node.location;
    this.memory = node.bus.memory;
    this.tasks = node.bus.tasks;
    this.config = new PciConfigSpace(registers.common, registers.device, context.name);
    this.#node = node;
    this.#registers = registers;
    this.#context = context;
    this.#names = [...reservedFeatureNames, ...names];
    this.#interrupts = new Interrupts(node.function, registers);
    void node.function.gone.then((fault) => this.#lost(fault));
  }

  poll(): void {
    this.#node.bus.poll();
  }

  // ── life cycle, for attach (virtio 1.4 §3.1.1) ──────────────────────────────

  /** Reset, ACKNOWLEDGE, DRIVER: steps 1 to 3. */
  async begin(): Promise<void> {
    await this.reset();
    await this.#addStatus(DeviceStatus.ACKNOWLEDGE);
    await this.#addStatus(DeviceStatus.DRIVER);
    const { sysctl } = this.#context.transport;
    const features = (words: readonly number[]): string => describeFeatures(words, this.#names);
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
    const enable = this.#queues.flatMap(({ ring }): Access[] => [
      [CommonConfig.QUEUE_SELECT, 2, ring.index],
      [CommonConfig.QUEUE_ENABLE, 2, 1],
    ]);
    await this.#registers.common.exchange(enable);
    await this.#addStatus(DeviceStatus.DRIVER_OK);
  }

  /** The driver's attach failed: FAILED, then as release, so that another driver may be tried. */
  async abandon(): Promise<void> {
    if (this.#gone === null) await this.#addStatus(DeviceStatus.FAILED);
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
    else this.#node.function.interrupts.release();
    for (const { ring } of this.#queues) {
      // Memory that a device may still write to is never used again.
      if (fault === null) ring.release();
      else this.#leaked += ring.bytes;
    }
    this.#queues = [];
    this.#negotiated = [];
    this.#node.attached = false;
    if (fault === null) await this.#addStatus(DeviceStatus.ACKNOWLEDGE);
    else if (this.#gone === null) throw fault;
  }

  async reset(): Promise<void> {
    const { common } = this.#registers;
    if (this.#gone !== null) throw this.#gone;
    await common.write(CommonConfig.DEVICE_STATUS, 1, 0);
    await this.#until("reset", "§2.4.2", async () => {
      return (await common.read(CommonConfig.DEVICE_STATUS, 1)) === 0;
    });
    this.#needsReset = false;
  }

  async reinit(): Promise<void> {
    const { common } = this.#registers;
    await this.reset();
    await this.#addStatus(DeviceStatus.ACKNOWLEDGE);
    await this.#addStatus(DeviceStatus.DRIVER);
    const features = await this.#choose(this.#negotiated);
    if (features.some((word, i) => word !== this.#negotiated[i]))
      throw this.#misbehaved("other features are offered after a reset", "§2.2.2");
    await this.finalizeFeatures();
    for (const { ring, spec } of this.#queues) {
      const [size = 0] = await common.exchange([
        [CommonConfig.QUEUE_SELECT, 2, ring.index],
        [CommonConfig.QUEUE_SIZE, 2],
      ]);
      if (size < ring.size)
        throw this.#misbehaved(
          `'${spec.name}' changed size; old=${ring.size}, new=${size}`,
          "§2.6.1",
        );
      ring.restart();
      await this.#program(ring);
    }
    if (!(await this.#interrupts.program()))
      throw this.#misbehaved("vectors were refused after a reset", "§4.1.5.1.2.2");
    await this.start();
  }

  async resetQueue(queue: Virtqueue): Promise<void> {
    const { common } = this.#registers;
    const own = this.#queues.find(({ ring }) => ring === queue);
    if (own === undefined)
      throw new VirtioFault("INVALID", `queue ${queue.index} is not of this device`, {
        device: this.#context.name,
      });
    if (!featureSetFromWords<ReservedFeature>(this.#negotiated).has(ReservedFeature.RING_RESET))
      throw new VirtioFault("UNSUPPORTED", "RING_RESET was not negotiated", {
        device: this.#context.name,
      });
    await common.exchange([
      [CommonConfig.QUEUE_SELECT, 2, queue.index],
      [CommonConfig.QUEUE_RESET, 2, 1],
    ]);
    await this.#until(`reset queue ${queue.index}`, "§2.6.1.1.2", async () => {
      const [resetting] = await common.exchange([
        [CommonConfig.QUEUE_SELECT, 2, queue.index],
        [CommonConfig.QUEUE_RESET, 2],
      ]);
      return resetting === 0;
    });
    own.ring.restart();
    await this.#program(own.ring);
    if (!(await this.#interrupts.program()))
      throw this.#misbehaved("vectors were refused after a queue reset", "§4.1.5.1.2.2");
    await common.exchange([
      [CommonConfig.QUEUE_SELECT, 2, queue.index],
      [CommonConfig.QUEUE_ENABLE, 2, 1],
    ]);
  }

  // ── features (virtio 1.4 §2.2, §4.1.4.3) ────────────────────────────────────

  async negotiate<F extends number>(wanted: FeatureSet<F>): Promise<FeatureSet<F>> {
    this.#negotiated = await this.#choose(wanted.words());
    const { verbose } = this.#context.transport;
    verbose(`host features: ${describeFeatures(this.#offered, this.#names)}`);
    verbose(`negotiated features: ${describeFeatures(this.#negotiated, this.#names)}`);
    return featureSetFromWords<F>(this.#negotiated);
  }

  /** Reads what is offered, writes back what of it is asked for and can be done. */
  async #choose(asked: readonly number[]): Promise<readonly number[]> {
    const words = Array.from({ length: FEATURE_WORDS }, (_, i) => i);
    this.#offered = await this.#registers.common.exchange(
      words.flatMap((i): Access[] => [
        [CommonConfig.DEVICE_FEATURE_SELECT, 4, i],
        [CommonConfig.DEVICE_FEATURE, 4],
      ]),
    );
    const able = transportFeatures.words();
    const own = ownFeatures.words();
    const chosen = words.map((i) => {
      const reserved = RESERVED_BITS[i] ?? 0;
      const mine = ((asked[i] ?? 0) | (own[i] ?? 0)) & (~reserved | (able[i] ?? 0));
      return ((this.#offered[i] ?? 0) & mine) >>> 0;
    });
    if (!featureSetFromWords<ReservedFeature>(chosen).has(ReservedFeature.VERSION_1))
      throw new VirtioFault("NEGOTIATION", "the device does not offer VERSION_1", {
        device: this.#context.name,
        clause: "virtio 1.4 §6.1",
      });
    await this.#registers.common.exchange(
      chosen.flatMap((word, i): Access[] => [
        [CommonConfig.DRIVER_FEATURE_SELECT, 4, i],
        [CommonConfig.DRIVER_FEATURE, 4, word],
      ]),
    );
    return chosen;
  }

  async finalizeFeatures(): Promise<void> {
    await this.#addStatus(DeviceStatus.FEATURES_OK);
    const status = await this.#registers.common.read(CommonConfig.DEVICE_STATUS, 1);
    if ((status & DeviceStatus.FEATURES_OK) === 0)
      throw new VirtioFault("NEGOTIATION", "desired features were not accepted", {
        device: this.#context.name,
        clause: "virtio 1.4 §3.1.1",
      });
  }

  // ── queues (virtio 1.4 §4.1.5.1.3) ──────────────────────────────────────────

  async allocateQueues(specs: readonly QueueSpec[]): Promise<readonly Virtqueue[]> {
    const { common, notify, notifyMultiplier } = this.#registers;
    const device = this.#context.name;
    if (this.#queues.length > 0 || specs.length === 0)
      throw new VirtioFault("INVALID", "queues are allocated once, at least one", { device });
    const max = await common.read(CommonConfig.NUM_QUEUES, 2);
    if (specs.length > max)
      throw new VirtioFault(
        "NOT_FOUND",
        `requested virtqueue count ${specs.length} exceeds max ${max}`,
        { device },
      );
    const found = await common.exchange(
      specs.flatMap((_, index): Access[] => [
        [CommonConfig.QUEUE_SELECT, 2, index],
        [CommonConfig.QUEUE_SIZE, 2],
        [CommonConfig.QUEUE_NOTIFY_OFF, 2],
      ]),
    );
    const features = featureSetFromWords<ReservedFeature>(this.#negotiated);
    const packed = features.has(ReservedFeature.RING_PACKED);
    const withData = features.has(ReservedFeature.NOTIFICATION_DATA);
    const width = withData ? 4 : 2;
    const queues: Queue[] = [];
    try {
      for (const [index, spec] of specs.entries()) {
        const { name, maxSegments } = spec;
        const offered = found[index * 2] ?? 0;
        const doorbell = (found[index * 2 + 1] ?? 0) * notifyMultiplier;
        if (offered === 0)
          throw new VirtioFault(
            "NOT_FOUND",
            `virtqueue ${index} (${name}) does not exist (size is zero)`,
            { device },
          );
        if (doorbell % width !== 0 || doorbell + width > notify.length)
          throw this.#misbehaved(
            `doorbell of virtqueue ${index} at ${doorbell} of ${notify.length} bytes`,
            "§4.1.4.4",
          );
        if (!packed && (offered & (offered - 1)) !== 0)
          throw this.#misbehaved(
            `virtqueue ${index} (${name}) size is not a power of 2: ${offered}`,
            "§2.7",
          );
        const options: QueueOptions = {
          index,
          name,
          device,
          size: Math.min(offered, QUEUE_SIZE_LIMIT),
          memory: this.memory,
          tasks: this.tasks,
          indirect: features.has(ReservedFeature.INDIRECT_DESC),
          eventIdx: features.has(ReservedFeature.EVENT_IDX),
          inOrder: features.has(ReservedFeature.IN_ORDER),
          maxSegments,
          // §4.1.5.2: the index alone, or with where the driver will put its next descriptor.
          doorbell: withData
            ? (queue, next) => notify.post(doorbell, 4, (queue | (next << 16)) >>> 0)
            : (queue) => notify.post(doorbell, 2, queue),
          poll: () => this.poll(),
        };
        const ring = packed ? new PackedQueue(options) : new SplitQueue(options);
        queues.push({ ring, spec });
        await this.#program(ring);
        this.#publishCounters(ring);
      }
    } finally {
      // Whatever was made is the device's: release() frees it after the reset.
      this.#queues = queues;
    }
    return queues.map(({ ring }) => ring);
  }

  /** Size and addresses, low half first; the queue is enabled at the end (§4.1.4.3.2). */
  async #program({ index, size, addresses }: Ring): Promise<void> {
    await this.#registers.common.exchange([
      [CommonConfig.QUEUE_SELECT, 2, index],
      [CommonConfig.QUEUE_SIZE, 2, size],
      [CommonConfig.QUEUE_DESC, 4, addresses.descriptors],
      [CommonConfig.QUEUE_DESC + 4, 4, 0],
      [CommonConfig.QUEUE_DRIVER, 4, addresses.driver],
      [CommonConfig.QUEUE_DRIVER + 4, 4, 0],
      [CommonConfig.QUEUE_DEVICE, 4, addresses.device],
      [CommonConfig.QUEUE_DEVICE + 4, 4, 0],
    ]);
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
    const queues = this.#queues.map(({ ring, spec }) => ({
      index: ring.index,
      name: spec.name,
      wanted: spec.interrupt,
    }));
    const kind = await this.#interrupts.setup(
      queues,
      {
        name: transport.name,
        configChanged: () => {
          this.#configChanged().catch((error: unknown) => this.#lost(error));
        },
        queueUsed: (index) => this.#queues[index]?.ring.interrupted(),
        lineService: () => this.#serviceLine(),
      },
      transport.tunables.number("disable_msix") !== 0,
    );
    transport.verbose(interruptMessages[kind]);
    return kind;
  }

  /** Reads the ISR, which lowers the line, then runs what it says: a configuration change first, then every queue (§4.1.5.3). */
  async #serviceLine(): Promise<boolean> {
    const isr = await this.#registers.isr.read(0, 1);
    if ((isr & IsrStatus.CONFIG) !== 0) await this.#configChanged();
    if ((isr & IsrStatus.QUEUE) !== 0)
      this.tasks.enqueue(() => {
        for (const { ring, spec } of this.#queues) if (spec.interrupt) ring.interrupted();
      });
    return isr !== 0;
  }

  async #configChanged(): Promise<void> {
    if (this.#gone !== null) return;
    const status = await this.#registers.common.read(CommonConfig.DEVICE_STATUS, 1);
    if ((status & DeviceStatus.DEVICE_NEEDS_RESET) !== 0 && !this.#needsReset) {
      this.#needsReset = true;
      const fault = new VirtioFault("NEEDS_RESET", "the device needs a reset", {
        device: this.#context.name,
        clause: "virtio 1.4 §2.1.1",
      });
      for (const { ring } of this.#queues) ring.fail(fault);
      this.tasks.enqueue(() => this.onNeedsReset?.());
    }
    this.tasks.enqueue(() => this.onConfigChange?.());
  }

  /** Registers can no longer be reached: every request fails now rather than wait for an answer. */
  #lost(cause: unknown): void {
    this.#gone ??=
      cause instanceof VirtioFault
        ? cause
        : new VirtioFault("CLOSED", "the device is gone", { device: this.#context.name, cause });
    for (const { ring } of this.#queues) ring.fail(this.#gone);
  }

  // ── small things ────────────────────────────────────────────────────────────

  /** Status bits are only ever added to what the device shows; a reset alone clears them (§2.1.1). */
  async #addStatus(bit: DeviceStatus): Promise<void> {
    const { common } = this.#registers;
    const status = await common.read(CommonConfig.DEVICE_STATUS, 1);
    await common.write(CommonConfig.DEVICE_STATUS, 1, status | bit);
  }

  /** Asks again and again until it is so, with a bound. */
  async #until(what: string, section: string, done: () => Promise<boolean>): Promise<void> {
    const deadline = this.tasks.now() + RESET_TIMEOUT_MS;
    while (!(await done())) {
      if (this.tasks.now() >= deadline)
        throw new VirtioFault("TIMED_OUT", `${what} is not done after ${RESET_TIMEOUT_MS} ms`, {
          device: this.#context.name,
          clause: `virtio 1.4 ${section}`,
        });
      await new Promise<void>((resolve) => {
        this.tasks.callout(RESET_POLL_MS, resolve);
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

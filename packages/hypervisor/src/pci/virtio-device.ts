// One virtio device behind its PCI interfaces, written from the device clauses: features, status, queues, suspend and reset
// (virtio 1.4 chapters 2 and 3). Its registers are in modern-interface.ts and legacy-interface.ts.
import {
  DeviceStatus,
  type GuestMemory,
  ReservedFeature,
  type TaskQueue,
  type VirtioFault,
} from "@virtio/core";
import { NO_VECTOR } from "@virtio/core/pci";
import { QUEUE_SIZE_MAX } from "@virtio/core/ring";
import {
  type DeviceQueue,
  PackedDeviceQueue,
  SplitDeviceQueue,
  type WideAddress,
} from "@virtio/ring";
import type { DeviceModel, ModelHost } from "../device-model.js";
import { hasBit, withBits } from "../feature-words.js";
import { QueueRules } from "../rules/queue-rules.js";
import type { RuleBook } from "../rules/rule-book.js";
import type { FunctionInterrupts } from "./function-interrupts.js";

/** Which interfaces a function has (virtio 1.4 §4.1.2, §4.1.4.10). */
export type InterfaceKind = "modern" | "legacy" | "transitional";

/** What a device is made of. */
export interface VirtioDeviceOptions {
  readonly model: DeviceModel;
  readonly kind: InterfaceKind;
  readonly memory: GuestMemory;
  /** Whether another thread or process sees the memory. */
  readonly shared: boolean;
  /** The model's lane. */
  readonly tasks: TaskQueue;
  readonly outside: ModelHost["outside"];
  /** Descriptors of each queue; a power of two where rings are split. */
  readonly queueSize: number;
  /** Queue and negotiation bits that are offered, those of the legacy interface among them. */
  readonly reservedFeatures: readonly ReservedFeature[];
  readonly interrupts: FunctionInterrupts;
  /** Whether the function may reach memory now. */
  readonly mastering: () => boolean;
  readonly book: RuleBook | null;
  /** A queue's driver broke a legacy rule: for the rules of the registers. */
  readonly onLegacyBroken: (what: string) => void;
}

/** Where the three areas of a queue lie. */
export interface QueueAreas {
  readonly descriptors: WideAddress;
  readonly driver: WideAddress;
  readonly device: WideAddress;
}

/** One queue as the registers show it. */
export interface QueueState {
  size: number;
  vector: number;
  enabled: boolean;
  /** Reset by queue_reset, and the model still has work to end. */
  resetting: boolean;
  /** Descriptor area, driver area, device area: low and high words. */
  readonly areas: Uint32Array;
  queue: DeviceQueue | null;
  rules: QueueRules | null;
}

/** 32-bit words of the features that can be offered and accepted. */
const FEATURE_WORDS = 4;

/** Bits that only the legacy interface offers (§6.3). */
const legacyOnly: readonly ReservedFeature[] = [
  ReservedFeature.NOTIFY_ON_EMPTY,
  ReservedFeature.ANY_LAYOUT,
];

/** A device's state. */
export class VirtioDevice {
  readonly model: DeviceModel;
  readonly kind: InterfaceKind;
  /** Descriptors of each queue. */
  readonly queueSize: number;
  /** Words of what the modern interface offers. */
  readonly offered: readonly number[];
  /** What the legacy interface offers: bits 0 to 31 only. */
  readonly legacyOffered: number;
  readonly interrupts: FunctionInterrupts;
  /** Words of what the driver accepted; always the same array. */
  readonly accepted: Uint32Array = new Uint32Array(FEATURE_WORDS);
  status = 0;
  generation = 0;
  configVector: number = NO_VECTOR;
  queues: QueueState[] = [];
  /** The driver uses the legacy interface: legacy rules apply until it resets the device (§2.2.3). */
  legacy: boolean;
  readonly #memory: GuestMemory;
  readonly #shared: boolean;
  readonly #tasks: TaskQueue;
  readonly #mastering: () => boolean;
  readonly #book: RuleBook | null;
  readonly #onLegacyBroken: (what: string) => void;
  /** A reset was asked for and the model still has work to end. */
  #resetting = false;
  /** A legacy driver broke a rule: it has no DEVICE_NEEDS_RESET to be told so. */
  #broken = false;
  /** SUSPEND was written, and not every buffer that was taken is used. */
  #suspending = false;
  /** A configuration change while suspended, of which the driver is told when it resumes (§3.4.2). */
  #changeDeferred = false;
  /** Counts resets: work begun before one is not finished after it. */
  #epoch = 0;
  /** By queue: what wakes the model, made once, and the epoch of what is enqueued; -1: nothing is. */
  readonly #wakes: readonly (() => void)[];
  readonly #waking: number[];

  constructor(options: VirtioDeviceOptions) {
    const { model, kind, reservedFeatures } = options;
    this.model = model;
    this.kind = kind;
    this.queueSize = options.queueSize;
    this.interrupts = options.interrupts;
    this.legacy = kind === "legacy";
    this.#memory = options.memory;
    this.#shared = options.shared;
    this.#tasks = options.tasks;
    this.#mastering = options.mastering;
    this.#book = options.book;
    this.#onLegacyBroken = options.onLegacyBroken;
    this.#wakes = Array.from({ length: model.queues }, (_, i) => () => this.#woken(i));
    this.#waking = this.#wakes.map(() => -1);
    const words = Array.from({ length: FEATURE_WORDS }, (_, i) => model.features[i] ?? 0);
    const { legacyFeatures = [] } = model;
    this.legacyOffered = withBits(words, [...reservedFeatures, ...legacyFeatures])[0] ?? 0;
    this.offered = withBits(words, [
      ReservedFeature.VERSION_1,
      ...reservedFeatures.filter((bit) => !legacyOnly.includes(bit)),
    ]);
    this.#fresh();
    model.connect(this.#host(options.outside));
  }

  /** Nothing is done any more, and what was being done ends. */
  async stop(): Promise<void> {
    this.#epoch += 1;
    this.#resetting = true;
    this.interrupts.disconnect();
    await this.model.reset();
    await this.model.close();
  }

  /** Whether the driver accepted a feature. */
  has(feature: ReservedFeature): boolean {
    return hasBit(this.accepted, feature);
  }

  // ── features and status (§2.1, §2.2) ────────────────────────────────────────

  /** One word of what the driver accepts, on the modern interface. */
  accept(word: number, value: number): void {
    if (word < FEATURE_WORDS && (this.status & DeviceStatus.FEATURES_OK) === 0)
      this.accepted[word] = value;
  }

  /** What the driver accepts on the legacy interface: bits from 32 on are not acknowledged (§4.1.4.10). */
  acceptLegacy(value: number): void {
    this.accepted.fill(0);
    this.accepted[0] = value & this.legacyOffered;
  }

  /** Whether this device can run with what the driver accepted (§2.2.2). */
  #acceptable(): boolean {
    if (this.accepted.some((word, i) => (word & ~(this.offered[i] ?? 0)) !== 0)) return false;
    if (!this.has(ReservedFeature.VERSION_1) || this.model.accepts?.() === false) return false;
    return this.model.prerequisites.every(
      ([bit, needs]) => !hasBit(this.accepted, bit) || hasBit(this.accepted, needs),
    );
  }

  /** The status register is written. */
  writeStatus(value: number): void {
    if (this.#resetting) return;
    if (value === 0) this.#reset();
    else if (this.legacy) this.#writeLegacy(value);
    else if (this.suspended) this.#writeSuspended(value);
    else this.#writeModern(value);
  }

  #writeLegacy(value: number): void {
    const started = (value & ~this.status & DeviceStatus.DRIVER_OK) !== 0;
    // A legacy device knows no other bits.
    this.status |=
      value &
      (DeviceStatus.ACKNOWLEDGE |
        DeviceStatus.DRIVER |
        DeviceStatus.DRIVER_OK |
        DeviceStatus.FAILED);
    if (started) this.#wakeAll();
  }

  #writeModern(value: number): void {
    const before = this.status;
    this.model.statusWrite?.(value, before);
    let status = before | (value & ~DeviceStatus.SUSPEND);
    if ((status & ~before & DeviceStatus.FEATURES_OK) !== 0 && !this.#acceptable())
      status &= ~DeviceStatus.FEATURES_OK;
    this.status = status;
    if ((status & ~before & DeviceStatus.DRIVER_OK) !== 0) this.#wakeAll();
    // Only a device that runs, and that was told that it may be, is suspended (§3.4.2).
    const running = (before & DeviceStatus.DRIVER_OK) !== 0;
    if ((value & DeviceStatus.SUSPEND) !== 0 && running && this.has(ReservedFeature.SUSPEND)) {
      this.#suspending = true;
      for (const { rules } of this.queues) rules?.suspending();
      this.model.suspending?.();
      this.#later(() => this.#suspend());
    }
  }

  /** A reset, of which the driver sees the end as status 0 (§2.4). */
  #reset(): void {
    this.#epoch += 1;
    this.#suspending = false;
    const done = this.model.reset();
    if (done === null) {
      this.#fresh();
      return;
    }
    this.#resetting = true;
    const epoch = this.#epoch;
    void done.then(() => {
      if (epoch !== this.#epoch) return;
      this.#resetting = false;
      this.#fresh();
    });
  }

  /** As after a reset. */
  #fresh(): void {
    this.status = 0;
    this.accepted.fill(0);
    this.configVector = NO_VECTOR;
    this.legacy = this.kind === "legacy";
    this.#broken = false;
    this.#changeDeferred = false;
    this.queues = Array.from({ length: this.model.queues }, (_, i) => this.#freshQueue(i));
    this.interrupts.reset();
  }

  #freshQueue(index: number): QueueState {
    return {
      // One of size 0 is not there (§4.1.4.3).
      size: this.model.hasQueue?.(index) === false ? 0 : this.queueSize,
      vector: NO_VECTOR,
      enabled: false,
      resetting: false,
      areas: new Uint32Array(6),
      queue: null,
      rules: null,
    };
  }

  // ── suspend (§3.4) ──────────────────────────────────────────────────────────

  /** Status shows SUSPEND: no queue is touched, and nobody is told anything, until the driver resumes. */
  get suspended(): boolean {
    return (this.status & DeviceStatus.SUSPEND) !== 0;
  }

  /** Shows SUSPEND once every buffer that was taken is used, and the driver was told so. */
  #suspend(): void {
    if (!this.#suspending) return;
    for (const i of this.queues.keys()) this.#signalUsed(i);
    if (this.queues.some(({ queue }) => queue !== null && queue.held > 0)) return;
    this.#suspending = false;
    this.status = (this.status & ~DeviceStatus.DRIVER_OK) | DeviceStatus.SUSPEND;
  }

  #writeSuspended(value: number): void {
    this.status |= value & DeviceStatus.FAILED;
    if ((value & DeviceStatus.DRIVER_OK) === 0) return;
    this.#later(() => {
      if (!this.suspended) return;
      for (const { rules } of this.queues) rules?.resuming();
      this.status = (this.status & ~DeviceStatus.SUSPEND) | DeviceStatus.DRIVER_OK;
      if (this.#changeDeferred) this.#signalConfig();
      this.#changeDeferred = false;
      this.#wakeAll();
    });
  }

  // ── queues (§2.6, §4.1.4.3) ─────────────────────────────────────────────────

  /** The driver asks for a queue of `value` descriptors. */
  resize(index: number, value: number): void {
    const state = this.queues[index];
    const whole = this.has(ReservedFeature.RING_PACKED) || (value & (value - 1)) === 0;
    const fits =
      state?.size !== 0 && value > 0 && value <= Math.min(this.queueSize, QUEUE_SIZE_MAX) && whole;
    if (state !== undefined && !state.enabled && fits) state.size = value;
  }

  /** A queue begins to exist in memory. */
  enable(index: number, areas: QueueAreas): void {
    const state = this.queues[index];
    if (state === undefined || state.enabled || state.size === 0) return;
    const eventIdx = this.has(ReservedFeature.EVENT_IDX);
    const packed = this.has(ReservedFeature.RING_PACKED);
    if (this.#book !== null)
      state.rules = new QueueRules({
        book: this.#book,
        device: this.model.name,
        type: this.model.type,
        memory: this.#memory,
        areas,
        eventIdx,
        legacy: this.legacy,
        anyLayout: !this.legacy || this.has(ReservedFeature.ANY_LAYOUT),
        accessPlatform: this.has(ReservedFeature.ACCESS_PLATFORM),
        onLegacyBroken: this.#onLegacyBroken,
      });
    try {
      const Format = packed ? PackedDeviceQueue : SplitDeviceQueue;
      state.queue = new Format({
        index,
        size: state.size,
        memory: this.#memory,
        ...areas,
        indirect: this.has(ReservedFeature.INDIRECT_DESC),
        eventIdx,
        inOrder: this.has(ReservedFeature.IN_ORDER),
        notifyOnEmpty: this.has(ReservedFeature.NOTIFY_ON_EMPTY),
        shared: this.#shared,
        onBroken: (fault) => this.#misbehaved(state, fault),
      });
    } catch (error) {
      this.#misbehaved(state, error as VirtioFault);
      return;
    }
    state.enabled = true;
    state.rules?.enabled(state.queue);
    if ((this.status & DeviceStatus.DRIVER_OK) !== 0) this.#wake(index);
  }

  /** Nothing of the queue is executed or signalled after this (§2.6.1.1.1). */
  resetQueue(index: number): void {
    if (this.queues[index] === undefined) return;
    const fresh = { ...this.#freshQueue(index), resetting: true };
    this.queues[index] = fresh;
    const done = this.model.reset(index);
    if (done === null) fresh.resetting = false;
    else
      void done.then(() => {
        fresh.resetting = false;
      });
    this.#suspend();
  }

  /** The queue, when what is in it may be executed, or signalled. */
  #live(index: number): DeviceQueue | null {
    const started = this.legacy || (this.status & DeviceStatus.DRIVER_OK) !== 0;
    const live =
      started &&
      !this.#resetting &&
      !this.#broken &&
      (this.status & DeviceStatus.DEVICE_NEEDS_RESET) === 0;
    // Without bus mastering the function reaches no memory (PCI 3.0 §6.2.2).
    return live && this.#mastering() ? (this.queues[index]?.queue ?? null) : null;
  }

  #running(index: number): DeviceQueue | null {
    return this.#suspending ? null : this.#live(index);
  }

  /** A doorbell. A legacy driver may ring before DRIVER_OK (§3.1.2). */
  notified(index: number): void {
    const queue = this.#running(index);
    if (queue === null) return;
    this.queues[index]?.rules?.notified(queue);
    this.#wake(index);
  }

  /** Once for any number of doorbells: the model looks at all that is there. */
  #wake(index: number): void {
    if (this.#waking[index] === this.#epoch) return;
    this.#waking[index] = this.#epoch;
    this.#tasks.enqueue(this.#wakes[index] as () => void);
  }

  #woken(index: number): void {
    const epoch = this.#waking[index];
    this.#waking[index] = -1;
    if (epoch === this.#epoch && this.#running(index) !== null) this.model.notified(index);
  }

  /** Buffers made available before DRIVER_OK, or before a suspend, are looked at without a doorbell (§2.1.2). */
  #wakeAll(): void {
    for (const i of this.queues.keys()) this.#wake(i);
  }

  /** In the model's lane, unless the device is reset before. */
  #later(task: () => void): void {
    const epoch = this.#epoch;
    this.#tasks.enqueue(() => {
      if (epoch === this.#epoch) task();
    });
  }

  #misbehaved(state: QueueState, fault: VirtioFault): void {
    state.rules?.broken(fault);
    if (this.legacy) {
      this.#broken = true;
      return;
    }
    this.status |= DeviceStatus.DEVICE_NEEDS_RESET;
    // §2.1.2: with DRIVER_OK set, a configuration change notification follows.
    if ((this.status & DeviceStatus.DRIVER_OK) !== 0) this.#signalConfig();
  }

  // ── interrupts ──────────────────────────────────────────────────────────────

  #signalUsed(index: number): void {
    if (this.#live(index)?.wantsInterrupt() === true)
      this.interrupts.used(this.queues[index]?.vector ?? NO_VECTOR);
  }

  #signalConfig(): void {
    this.interrupts.configChanged(this.configVector);
  }

  #configChanged(): void {
    this.generation = (this.generation + 1) & 0xff;
    if (this.#suspending || this.suspended) this.#changeDeferred = true;
    else if ((this.status & DeviceStatus.DRIVER_OK) !== 0) this.#signalConfig();
  }

  // ── for the model ───────────────────────────────────────────────────────────

  #host(outside: ModelHost["outside"]): ModelHost {
    return {
      tasks: this.#tasks,
      memory: this.#memory,
      outside,
      rules: this.#book,
      features: this.accepted,
      queue: (index) => this.#running(index),
      taken: (queue, chain) => this.queues[queue.index]?.rules?.taken(queue, chain),
      used: (index) => {
        this.#signalUsed(index);
        this.#suspend();
      },
      configChanged: () => this.#configChanged(),
    };
  }
}

// A modern virtio device as a PCI function (virtio 1.4 §4.1), written from the device clauses: its registers, its queues, its
// interrupts.
import {
  DeviceStatus,
  type GuestMemory,
  ReservedFeature,
  type TaskQueue,
  type VirtioFault,
} from "@virtio/core";
import {
  CommonConfig,
  IsrStatus,
  NO_VECTOR,
  PciCommand,
  PciRegister,
  PciStatus,
} from "@virtio/core/pci";
import { QUEUE_SIZE_MAX } from "@virtio/core/ring";
import { type DeviceQueue, PackedDeviceQueue, SplitDeviceQueue } from "@virtio/ring";
import type { DeviceModel, ModelHost } from "../device-model.js";
import { allOnes, type Register, type RegisterSpace, RegisterTable } from "../registers.js";
import { FunctionRules } from "../rules/function-rules.js";
import { QueueRules } from "../rules/queue-rules.js";
import type { RuleBook } from "../rules/rule-book.js";
import type { PciConfiguration } from "./configuration.js";
import { MsixTable } from "./msix-table.js";
import type { PciRoot } from "./root.js";
import { layout, NOTIFY_MULTIPLIER, virtioConfiguration } from "./virtio-configuration.js";

/** How a function is made. */
export interface VirtioFunctionOptions {
  readonly model: DeviceModel;
  readonly root: PciRoot;
  readonly memory: GuestMemory;
  /** The model's lane. */
  readonly tasks: TaskQueue;
  readonly outside: ModelHost["outside"];
  /** Descriptors of each queue; a power of two. */
  readonly queueSize: number;
  /** MSI-X vectors; 0: no MSI-X capability. */
  readonly vectors: number;
  /** Queue and negotiation bits that are offered. */
  readonly reservedFeatures: readonly ReservedFeature[];
  readonly rules: RuleBook | null;
}

const FEATURE_WORDS = 4;

interface QueueState {
  size: number;
  vector: number;
  enabled: boolean;
  /** Reset by queue_reset. */
  resetting: boolean;
  /** Descriptor area, driver area, device area: low and high words. */
  readonly areas: Uint32Array;
  queue: DeviceQueue | null;
}

const has = (words: readonly number[], bit: number): boolean =>
  ((words[bit >>> 5] ?? 0) & (1 << (bit & 31))) !== 0;

/** One virtio device on the embedded machine's PCI root. */
export class VirtioFunction {
  readonly slot: number;
  readonly #model: DeviceModel;
  readonly #root: PciRoot;
  readonly #memory: GuestMemory;
  readonly #tasks: TaskQueue;
  readonly #queueSize: number;
  readonly #offered: readonly number[];
  readonly #configuration: PciConfiguration;
  readonly #msix: MsixTable | null;
  readonly #common: RegisterTable;
  readonly #book: RuleBook | null;
  readonly #rules: FunctionRules | null;

  #accepted: number[] = [0, 0, 0, 0];
  #status = 0;
  #generation = 0;
  #isr = 0;
  #configVector = NO_VECTOR;
  #deviceFeatureSelect = 0;
  #driverFeatureSelect = 0;
  #queueSelect = 0;
  #queues: QueueState[] = [];
  #queueRules: QueueRules | null = null;
  /** A reset was asked for and the model still has work to end. */
  #resetting = false;
  /** Counts resets: work begun before one is not finished after it. */
  #epoch = 0;

  constructor(options: VirtioFunctionOptions) {
    const { model, root, memory, tasks, queueSize, vectors, reservedFeatures, rules } = options;
    this.#model = model;
    this.#root = root;
    this.#memory = memory;
    this.#tasks = tasks;
    this.#queueSize = queueSize;
    const words = Array.from({ length: FEATURE_WORDS }, (_, i) => model.features[i] ?? 0);
    for (const bit of [ReservedFeature.VERSION_1, ...reservedFeatures])
      words[bit >>> 5] = (words[bit >>> 5] ?? 0) | (1 << (bit & 31));
    this.#offered = words.map((word) => word >>> 0);
    this.#common = new RegisterTable(this.#commonRegisters());
    this.#msix =
      vectors === 0 ? null : new MsixTable(vectors, (address, data) => root.message(address, data));
    this.#book = rules;
    this.#rules = rules === null ? null : new FunctionRules(rules, this.#observed());
    this.#configuration = virtioConfiguration({
      type: model.type,
      classCode: model.classCode,
      structures: this.#structures(),
      configLength: model.config.length,
      msix: this.#msix,
      onChange: () => this.#updateLine(),
      onWrite: (offset, allowed) => this.#rules?.configurationWrite(offset, allowed),
    });
    this.slot = root.add(this.#configuration);
    this.#resetState();
    model.connect(this.#host(options.outside));
  }

  /** The machine is closed: the device does nothing more, what it was doing ends, and its backend is closed. */
  async close(): Promise<void> {
    this.#epoch += 1;
    this.#resetting = true;
    await this.#model.reset();
    await this.#model.close();
  }

  // ── the structures BAR ──────────────────────────────────────────────────────

  #structures(): RegisterSpace {
    return {
      length: layout.length,
      read: (offset, width) => {
        if (offset < layout.isr) return this.#commonRead(offset, width);
        if (offset < layout.device)
          return offset === layout.isr && width === 1 ? this.#isrRead() : 0;
        return offset < layout.notify ? this.#configRead(offset - layout.device, width) : 0;
      },
      write: (offset, width, value) => {
        if (offset < layout.isr) this.#commonWrite(offset, width, value);
        else if (offset >= layout.notify) this.#doorbell(offset - layout.notify, width, value);
        else if (offset >= layout.device) this.#configWrite(offset - layout.device, width, value);
      },
    };
  }

  #commonRead(offset: number, width: 1 | 2 | 4): number {
    const register = this.#common.at(offset, width);
    this.#rules?.commonAccess(offset, width, register !== undefined, null);
    if (register === undefined) return allOnes(width);
    const value = register.read() >>> 0;
    if (offset === CommonConfig.DEVICE_STATUS) this.#rules?.statusRead(value);
    if (offset === CommonConfig.QUEUE_RESET)
      this.#rules?.queueResetRead(this.#queueSelect, value !== 0);
    return value;
  }

  #commonWrite(offset: number, width: 1 | 2 | 4, value: number): void {
    const register = this.#common.at(offset, width);
    this.#rules?.commonAccess(offset, width, register !== undefined, value);
    if (offset === CommonConfig.DEVICE_STATUS) this.#rules?.statusWrite(value);
    if (offset >= CommonConfig.QUEUE_SIZE && offset !== CommonConfig.QUEUE_NOTIFY_OFF)
      this.#rules?.queueWrite(this.#queueSelect, offset, value, this.#queueSize);
    register?.write?.(value);
  }

  #commonRegisters(): Register[] {
    const queue = (): QueueState | undefined => this.#queues[this.#queueSelect];
    const area = (name: string, offset: CommonConfig, index: number): Register[] =>
      [0, 1].map((half) => ({
        name: `${name}_${half === 0 ? "low" : "high"}`,
        offset: offset + 4 * half,
        width: 4 as const,
        read: () => queue()?.areas[index * 2 + half] ?? 0,
        write: (value: number) => {
          const state = queue();
          if (state !== undefined && !state.enabled) state.areas[index * 2 + half] = value;
        },
      }));
    return [
      {
        name: "device_feature_select",
        offset: CommonConfig.DEVICE_FEATURE_SELECT,
        width: 4,
        read: () => this.#deviceFeatureSelect,
        write: (v) => {
          this.#deviceFeatureSelect = v;
        },
      },
      {
        name: "device_feature",
        offset: CommonConfig.DEVICE_FEATURE,
        width: 4,
        read: () => this.#offered[this.#deviceFeatureSelect] ?? 0,
      },
      {
        name: "driver_feature_select",
        offset: CommonConfig.DRIVER_FEATURE_SELECT,
        width: 4,
        read: () => this.#driverFeatureSelect,
        write: (v) => {
          this.#driverFeatureSelect = v;
        },
      },
      {
        name: "driver_feature",
        offset: CommonConfig.DRIVER_FEATURE,
        width: 4,
        read: () => this.#accepted[this.#driverFeatureSelect] ?? 0,
        write: (v) => this.#acceptWord(v),
      },
      {
        name: "config_msix_vector",
        offset: CommonConfig.CONFIG_MSIX_VECTOR,
        width: 2,
        read: () => this.#configVector,
        write: (v) => {
          this.#configVector = this.#vector(v);
        },
      },
      {
        name: "num_queues",
        offset: CommonConfig.NUM_QUEUES,
        width: 2,
        read: () => this.#queues.length,
      },
      {
        name: "device_status",
        offset: CommonConfig.DEVICE_STATUS,
        width: 1,
        read: () => this.#status,
        write: (v) => this.#writeStatus(v),
      },
      {
        name: "config_generation",
        offset: CommonConfig.CONFIG_GENERATION,
        width: 1,
        read: () => this.#generation,
      },
      {
        name: "queue_select",
        offset: CommonConfig.QUEUE_SELECT,
        width: 2,
        read: () => this.#queueSelect,
        write: (v) => {
          this.#queueSelect = v;
        },
      },
      {
        name: "queue_size",
        offset: CommonConfig.QUEUE_SIZE,
        width: 2,
        read: () => queue()?.size ?? 0,
        write: (v) => this.#writeSize(v),
      },
      {
        name: "queue_msix_vector",
        offset: CommonConfig.QUEUE_MSIX_VECTOR,
        width: 2,
        read: () => queue()?.vector ?? NO_VECTOR,
        write: (v) => {
          const state = queue();
          if (state !== undefined) state.vector = this.#vector(v);
        },
      },
      {
        name: "queue_enable",
        offset: CommonConfig.QUEUE_ENABLE,
        width: 2,
        read: () => Number(queue()?.enabled ?? false),
        write: (v) => this.#enable(v),
      },
      {
        name: "queue_notify_off",
        offset: CommonConfig.QUEUE_NOTIFY_OFF,
        width: 2,
        read: () => (queue() === undefined ? 0 : this.#queueSelect),
      },
      ...area("queue_desc", CommonConfig.QUEUE_DESC, 0),
      ...area("queue_driver", CommonConfig.QUEUE_DRIVER, 1),
      ...area("queue_device", CommonConfig.QUEUE_DEVICE, 2),
      {
        name: "queue_reset",
        offset: CommonConfig.QUEUE_RESET,
        width: 2,
        read: () => Number(queue()?.resetting ?? false),
        write: (v) => this.#resetQueue(v),
      },
    ];
  }

  // ── features and status (§2.1, §2.2) ────────────────────────────────────────

  #acceptWord(value: number): void {
    if (
      this.#driverFeatureSelect < FEATURE_WORDS &&
      (this.#status & DeviceStatus.FEATURES_OK) === 0
    )
      this.#accepted[this.#driverFeatureSelect] = value;
  }

  /** Whether this device can run with what the driver accepted (§2.2.2). */
  #acceptable(): boolean {
    if (this.#accepted.some((word, i) => (word & ~(this.#offered[i] ?? 0)) !== 0)) return false;
    if (!has(this.#accepted, ReservedFeature.VERSION_1)) return false;
    return this.#model.prerequisites.every(
      ([bit, needs]) => !has(this.#accepted, bit) || has(this.#accepted, needs),
    );
  }

  #writeStatus(value: number): void {
    if (this.#resetting) return;
    if (value === 0) {
      this.#epoch += 1;
      const done = this.#model.reset();
      if (done === null) this.#resetState();
      else {
        this.#resetting = true;
        void done.then(() => {
          this.#resetting = false;
          this.#resetState();
        });
      }
      return;
    }
    const before = this.#status;
    let status = value | before;
    if (
      (before & DeviceStatus.FEATURES_OK) === 0 &&
      (value & DeviceStatus.FEATURES_OK) !== 0 &&
      !this.#acceptable()
    )
      status &= ~DeviceStatus.FEATURES_OK;
    this.#status = status;
    if ((before & DeviceStatus.DRIVER_OK) === 0 && (status & DeviceStatus.DRIVER_OK) !== 0)
      // Buffers made available before DRIVER_OK are looked at now, without a doorbell (§2.1.2).
      for (let i = 0; i < this.#queues.length; i++) this.#wake(i);
  }

  #resetState(): void {
    this.#status = 0;
    this.#accepted = [0, 0, 0, 0];
    this.#isr = 0;
    this.#configVector = NO_VECTOR;
    this.#queueSelect = 0;
    this.#queueRules = null;
    this.#queues = Array.from({ length: this.#model.queues }, () => this.#freshQueue());
    this.#updateLine();
  }

  #freshQueue(): QueueState {
    return {
      size: this.#queueSize,
      vector: NO_VECTOR,
      enabled: false,
      resetting: false,
      areas: new Uint32Array(6),
      queue: null,
    };
  }

  // ── queues (§4.1.4.3, §2.6.1) ───────────────────────────────────────────────

  #writeSize(value: number): void {
    const state = this.#queues[this.#queueSelect];
    const fits =
      value > 0 &&
      value <= Math.min(this.#queueSize, QUEUE_SIZE_MAX) &&
      (value & (value - 1)) === 0;
    if (state !== undefined && !state.enabled && fits) state.size = value;
  }

  #enable(value: number): void {
    const index = this.#queueSelect;
    const state = this.#queues[index];
    if (state === undefined || state.enabled || value !== 1) return;
    const eventIdx = has(this.#accepted, ReservedFeature.EVENT_IDX);
    const wide = (area: number): { low: number; high: number } => ({
      low: state.areas[area * 2] ?? 0,
      high: state.areas[area * 2 + 1] ?? 0,
    });
    if (this.#book !== null)
      this.#queueRules ??= new QueueRules(this.#book, this.#model.name, eventIdx);
    try {
      const Format = has(this.#accepted, ReservedFeature.RING_PACKED)
        ? PackedDeviceQueue
        : SplitDeviceQueue;
      state.queue = new Format({
        index,
        size: state.size,
        memory: this.#memory,
        descriptors: wide(0),
        driver: wide(1),
        device: wide(2),
        indirect: has(this.#accepted, ReservedFeature.INDIRECT_DESC),
        eventIdx,
        inOrder: has(this.#accepted, ReservedFeature.IN_ORDER),
        shared: this.#root.memory.shared,
        onBroken: (fault) => this.#misbehaved(fault),
      });
    } catch (error) {
      this.#misbehaved(error as VirtioFault);
      return;
    }
    state.enabled = true;
    this.#queueRules?.enabled(state.queue);
    if ((this.#status & DeviceStatus.DRIVER_OK) !== 0) this.#wake(index);
  }

  /** Nothing of the queue is executed or signalled after this (§2.6.1.1.1). */
  #resetQueue(value: number): void {
    const state = this.#queues[this.#queueSelect];
    if (state === undefined || value !== 1 || !has(this.#accepted, ReservedFeature.RING_RESET))
      return;
    const fresh = { ...this.#freshQueue(), resetting: true };
    this.#queues[this.#queueSelect] = fresh;
    const done = this.#model.reset(this.#queueSelect);
    if (done === null) fresh.resetting = false;
    else
      void done.then(() => {
        fresh.resetting = false;
      });
  }

  #running(index: number): DeviceQueue | null {
    const live =
      !this.#resetting &&
      (this.#status & DeviceStatus.DRIVER_OK) !== 0 &&
      (this.#status & DeviceStatus.DEVICE_NEEDS_RESET) === 0;
    // Without bus mastering the function reaches no memory (PCI 3.0 §6.2.2).
    const master = (this.#configuration.command & PciCommand.BUS_MASTER) !== 0;
    return live && master ? (this.#queues[index]?.queue ?? null) : null;
  }

  #doorbell(offset: number, width: 1 | 2 | 4, value: number): void {
    const index = offset / NOTIFY_MULTIPLIER;
    this.#rules?.notify(width, value, index);
    const queue = this.#running(index);
    if (queue === null) return;
    this.#queueRules?.notified(queue);
    this.#wake(index);
  }

  #wake(index: number): void {
    const epoch = this.#epoch;
    this.#tasks.enqueue(() => {
      if (epoch === this.#epoch && this.#running(index) !== null) this.#model.notified(index);
    });
  }

  #misbehaved(fault: VirtioFault): void {
    this.#queueRules?.broken(fault);
    this.#status |= DeviceStatus.DEVICE_NEEDS_RESET;
    // §2.1.2: with DRIVER_OK set, a configuration change notification follows.
    if ((this.#status & DeviceStatus.DRIVER_OK) !== 0) this.#signalConfig();
  }

  // ── interrupts (§4.1.4.5, §4.1.5.3, §4.1.5.4) ───────────────────────────────

  #vector(value: number): number {
    return this.#msix !== null && value < this.#msix.vectors ? value : NO_VECTOR;
  }

  #isrRead(): number {
    this.#rules?.isrRead();
    const isr = this.#isr;
    this.#isr = 0;
    this.#updateLine();
    return isr;
  }

  #signal(bits: IsrStatus, vector: number): void {
    if (this.#msix?.enabled === true) {
      // The configuration bit of the ISR status is set all the same (§4.1.4.5.1).
      if (bits === IsrStatus.CONFIG) this.#isr |= bits;
      if (bits === IsrStatus.QUEUE) this.#rules?.messageSent();
      if (vector !== NO_VECTOR) this.#msix.raise(vector);
      return;
    }
    this.#isr |= bits;
    this.#updateLine();
  }

  #signalConfig(): void {
    this.#signal(IsrStatus.CONFIG, this.#configVector);
  }

  /** INTA# and the status bit follow the ISR, unless MSI-X or the command register forbids it. */
  #updateLine(): void {
    const pending = this.#isr !== 0 && this.#msix?.enabled !== true;
    const status = this.#configuration.peek(PciRegister.STATUS, 2) & ~PciStatus.INTERRUPT;
    this.#configuration.set(PciRegister.STATUS, 2, status | (pending ? PciStatus.INTERRUPT : 0));
    this.#root.setLine(
      this.slot,
      pending && (this.#configuration.command & PciCommand.INTX_DISABLE) === 0,
    );
  }

  // ── device configuration (§2.5) ─────────────────────────────────────────────

  #configRead(offset: number, width: 1 | 2 | 4): number {
    const known = offset + width <= this.#model.config.length;
    this.#rules?.deviceConfigAccess(offset, known, false);
    return known ? this.#model.config.read(offset, width) : allOnes(width);
  }

  #configWrite(offset: number, width: 1 | 2 | 4, value: number): void {
    const known = offset + width <= this.#model.config.length;
    this.#rules?.deviceConfigAccess(offset, known, true);
    if (known) this.#model.config.write(offset, width, value);
  }

  // ── for the model ───────────────────────────────────────────────────────────

  #host(outside: ModelHost["outside"]): ModelHost {
    const self = this;
    return {
      tasks: this.#tasks,
      outside,
      rules: this.#book,
      get features() {
        return self.#accepted;
      },
      queue: (index) => this.#running(index),
      taken: (queue, chain) => this.#queueRules?.taken(queue, chain),
      used: (index) => {
        const state = this.#queues[index];
        if (this.#running(index)?.wantsInterrupt() === true)
          this.#signal(IsrStatus.QUEUE, state?.vector ?? NO_VECTOR);
      },
      configChanged: () => {
        this.#generation = (this.#generation + 1) & 0xff;
        if ((this.#status & DeviceStatus.DRIVER_OK) !== 0) this.#signalConfig();
      },
    };
  }

  #observed(): ConstructorParameters<typeof FunctionRules>[1] {
    const self = this;
    return {
      name: this.#model.name,
      offered: this.#offered,
      prerequisites: this.#model.prerequisites,
      configGate: (offset) => this.#model.configGate(offset),
      get accepted() {
        return self.#accepted;
      },
      get status() {
        return self.#status;
      },
      get msix() {
        return { enabled: self.#msix?.enabled ?? false, vectors: self.#msix?.vectors ?? 0 };
      },
    };
  }
}

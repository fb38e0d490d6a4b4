// Rules that a virtio function sees at the registers of its modern interface: virtio 1.4 chapters 2, 3, 4.1 and 6.
import { DeviceStatus, type DeviceType, ReservedFeature } from "@virtio/core";
import { CommonConfig, NO_VECTOR } from "@virtio/core/pci";
import { hasBit } from "../feature-words.js";
import { checkFeatures } from "./feature-rules.js";
import type { InterruptRules, VectorField } from "./interrupt-rules.js";
import type { RuleBook } from "./rule-book.js";
import { SuspendRules } from "./suspend-rules.js";

/** What the rules need to know of a function. */
export interface ObservedFunction {
  readonly name: string;
  readonly type: DeviceType;
  /** Words of all bits the modern interface offers. */
  readonly offered: readonly number[];
  /** Words of the bits the driver accepted so far. */
  readonly accepted: ArrayLike<number>;
  readonly status: number;
  readonly prerequisites: readonly (readonly [bit: number, needs: number])[];
  configGate(offset: number): number | undefined;
}

const hex = (value: number): string => `0x${value.toString(16)}`;
const WRITEBACK_AT = 32;

/** Order of the status bits in the initialization sequence (§3.1.1). */
const sequence = [
  DeviceStatus.ACKNOWLEDGE,
  DeviceStatus.DRIVER,
  DeviceStatus.FEATURES_OK,
  DeviceStatus.DRIVER_OK,
];

/** Read-only registers of the common configuration (§4.1.4.3.2). */
const readOnly = new Map<number, string>([
  [CommonConfig.DEVICE_FEATURE, "device_feature"],
  [CommonConfig.NUM_QUEUES, "num_queues"],
  [CommonConfig.CONFIG_GENERATION, "config_generation"],
  [CommonConfig.QUEUE_NOTIFY_OFF, "queue_notify_off"],
  [CommonConfig.QUEUE_NOTIF_CONFIG_DATA, "queue_notif_config_data"],
]);

/** Registers that belong to one queue. */
const isQueueSetup = (offset: number): boolean =>
  offset >= CommonConfig.QUEUE_SIZE && offset < CommonConfig.QUEUE_NOTIF_CONFIG_DATA;

/** The vector register at an offset, if it is one. */
const vectorField = (offset: number): VectorField | null =>
  offset === CommonConfig.CONFIG_MSIX_VECTOR
    ? "config"
    : offset === CommonConfig.QUEUE_MSIX_VECTOR
      ? "queue"
      : null;

/** Watches the modern registers of one function. */
export class FunctionRules {
  readonly #book: RuleBook;
  readonly #function: ObservedFunction;
  /** Whether status was ever written. */
  #touched = false;
  /** A reset was written, and status not yet read as 0. */
  #resetting = false;
  /** FAILED was set, and no reset written since. */
  #failed = false;
  /** FEATURES_OK was written, and status not yet read again. */
  #unconfirmed = false;
  #featuresRead = 0;
  /** Device configuration that must not be written, or read, before FEATURES_OK was. */
  #wroteEarly = false;
  #readWritebackEarly = false;
  /** Queues that were reset and not seen reset yet. */
  readonly #resettingQueues = new Set<number>();
  /** Queues that were reset and are to be set up anew. */
  readonly #resetQueues = new Set<number>();
  /** Fields written of the selected queue since its last enable or reset. */
  readonly #written = new Map<number, Set<number>>();
  readonly #interrupts: InterruptRules;
  readonly #suspend: SuspendRules;

  constructor(book: RuleBook, fn: ObservedFunction, interrupts: InterruptRules) {
    this.#book = book;
    this.#function = fn;
    this.#interrupts = interrupts;
    this.#suspend = new SuspendRules(book, fn.name);
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#function.name, what);
  }

  #accepted(feature: ReservedFeature): boolean {
    return hasBit(this.#function.accepted, feature);
  }

  statusRead(value: number): void {
    this.#suspend.statusRead(value);
    if (value === 0) this.#resetting = false;
    this.#unconfirmed = false;
  }

  /** Before the write takes effect. */
  statusWrite(value: number): void {
    const { status } = this.#function;
    this.#suspend.statusWrite(value, status, this.#accepted(ReservedFeature.SUSPEND));
    const wrote = (): string => `status ${hex(value)} written over ${hex(status)}`;
    if (!this.#touched)
      this.#check("INIT-2", value === 0, () => `first status write is ${hex(value)}, not 0`);
    this.#touched = true;
    if (value === 0) {
      this.#resetting = true;
      this.#failed = false;
      this.#unconfirmed = false;
      this.#featuresRead = 0;
      this.#interrupts.reset();
      this.#written.clear();
      return;
    }
    this.#check(
      "PCI-COMMON-5",
      !this.#resetting,
      () => `${wrote()} before status read 0 after a reset`,
    );
    this.#check("STATUS-2", (value & status) === status, wrote);
    this.#check(
      "STATUS-3",
      !this.#failed || (value & DeviceStatus.FAILED) !== 0,
      () => `${wrote()} after FAILED without a reset`,
    );
    if ((value & DeviceStatus.FAILED) !== 0) {
      this.#failed = true;
      return;
    }
    const stages = sequence.map((stage) => (value & stage) !== 0);
    const inOrder = stages.every((set, i) => !set || stages.slice(0, i).every((before) => before));
    this.#check("STATUS-1", inOrder, () => `status ${hex(value)} skips a stage`);
    const added = value & ~status;
    const one = sequence.filter((stage) => (added & stage) !== 0).length <= 1;
    if ((added & DeviceStatus.DRIVER) !== 0)
      this.#check("INIT-3", one && (status & DeviceStatus.ACKNOWLEDGE) !== 0, wrote);
    if ((added & DeviceStatus.FEATURES_OK) !== 0) {
      this.#unconfirmed = true;
      this.#check(
        "INIT-4",
        this.#featuresRead >= 2,
        () => "FEATURES_OK before both feature words were read",
      );
      const { name: device, ...fn } = this.#function;
      checkFeatures(this.#book, { ...fn, device, legacy: false });
      this.#check(
        "INIT-9",
        !this.#wroteEarly,
        () => "device configuration was written before FEATURES_OK",
      );
      this.#check(
        "BLK-INIT-4",
        !this.#readWritebackEarly,
        () => "writeback was read before FEATURES_OK",
      );
    }
    if ((added & DeviceStatus.DRIVER_OK) !== 0) {
      this.#check(
        "INIT-5",
        !this.#unconfirmed && (status & DeviceStatus.FEATURES_OK) !== 0,
        () => "DRIVER_OK before FEATURES_OK was read back",
      );
      this.#check("INIT-1", one && inOrder, wrote);
    }
  }

  /** Any access to the common configuration. Before it takes effect. */
  commonAccess(offset: number, width: number, known: boolean, value: number | null): void {
    this.#check(
      "PCI-ACCESS-1",
      known,
      () => `access of ${width} bytes at ${hex(offset)} of the common configuration`,
    );
    if (value === null) {
      if (offset === CommonConfig.DEVICE_FEATURE) this.#featuresRead += 1;
      const field = vectorField(offset);
      if (field !== null) this.#interrupts.vectorRead(field);
      return;
    }
    const { status } = this.#function;
    const name = readOnly.get(offset);
    this.#check("PCI-COMMON-1", name === undefined, () => `${value} written to ${name}`);
    if (offset !== CommonConfig.DEVICE_STATUS)
      this.#check(
        "RESET-1",
        !this.#resetting,
        () => `a write to ${hex(offset)} before status read 0 after a reset`,
      );
    if (offset === CommonConfig.DRIVER_FEATURE)
      this.#check(
        "INIT-10",
        (status & DeviceStatus.FEATURES_OK) === 0,
        () => "features written after FEATURES_OK",
      );
    if (isQueueSetup(offset) && this.#function.status !== 0)
      this.#check(
        "INIT-6",
        (status & DeviceStatus.FEATURES_OK) !== 0 || this.#isTearDown(offset, value),
        () => `queue register ${hex(offset)} written at status ${hex(status)}`,
      );
    if (offset !== CommonConfig.DEVICE_STATUS) this.#suspend.fieldWrite(`register ${hex(offset)}`);
    const field = vectorField(offset);
    if (field !== null) this.#interrupts.vectorWrite(field, value);
    else if (offset !== CommonConfig.QUEUE_SELECT) this.#interrupts.otherWrite();
  }

  /** Unmapping a vector is part of giving a device up, not of setting a queue up. */
  #isTearDown(offset: number, value: number): boolean {
    return offset === CommonConfig.QUEUE_MSIX_VECTOR && value === NO_VECTOR;
  }

  /** A write to a register of queue `queue`. Before it takes effect. */
  queueWrite(queue: number, offset: number, value: number, offeredSize: number): void {
    const written = this.#written.get(queue) ?? new Set();
    this.#written.set(queue, written);
    if (this.#resettingQueues.has(queue)) {
      const what = (): string => `queue ${queue} is written to before queue_reset read 0`;
      for (const clause of ["VQRESET-1", "PCI-COMMON-7"]) this.#check(clause, false, what);
    }
    if (offset === CommonConfig.QUEUE_SIZE) {
      const what = (): string => `queue_size ${value}, offered ${offeredSize}`;
      if (this.#accepted(ReservedFeature.RING_PACKED)) this.#check("PCI-COMMON-2", value > 0, what);
      else
        this.#check(
          "PCI-COMMON-3",
          value > 0 && (value & (value - 1)) === 0 && value <= offeredSize,
          what,
        );
    }
    if (offset === CommonConfig.QUEUE_ENABLE) {
      this.#check("PCI-COMMON-6", value !== 0, () => "0 written to queue_enable");
      const needed = [
        CommonConfig.QUEUE_DESC,
        CommonConfig.QUEUE_DRIVER,
        CommonConfig.QUEUE_DEVICE,
      ];
      const missing = needed.filter((field) => !written.has(field) || !written.has(field + 4));
      this.#check(
        "PCI-COMMON-4",
        missing.length === 0,
        () => `queue ${queue} enabled before ${missing.map(hex).join(", ")} was written`,
      );
      const wasReset = this.#resetQueues.delete(queue);
      if (wasReset) {
        const again = [CommonConfig.QUEUE_SIZE, ...needed].every((field) => written.has(field));
        this.#check(
          "VQREENABLE-1",
          again,
          () => `queue ${queue} is enabled again and was not set up again`,
        );
      }
      this.#check(
        "INIT-7",
        (this.#function.status & DeviceStatus.DRIVER_OK) === 0 ||
          written.has(CommonConfig.QUEUE_RESET),
        () => `queue ${queue} enabled after DRIVER_OK`,
      );
      written.clear();
      return;
    }
    if (offset === CommonConfig.QUEUE_RESET) {
      this.#resettingQueues.add(queue);
      this.#resetQueues.add(queue);
      written.clear();
    }
    written.add(offset);
  }

  /** A doorbell. `named`: what stands for the queue with NOTIF_CONFIG_DATA. */
  notify(width: number, value: number, queue: number, named: number): void {
    const { status } = this.#function;
    this.#suspend.doorbell(queue);
    this.#check(
      "INIT-13",
      (status & (DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND)) !== 0,
      () => `doorbell of queue ${queue} at status ${hex(status)}`,
    );
    const withConfig = this.#accepted(ReservedFeature.NOTIF_CONFIG_DATA);
    const withData = this.#accepted(ReservedFeature.NOTIFICATION_DATA);
    const [widthClause, wide] = withData ? ["PCI-NOTIFY-2", 4] : ["PCI-NOTIFY-1", 2];
    this.#check(widthClause, width === wide, () => `doorbell of ${width} bytes`);
    const clauses = withData
      ? { index: "PCI-NOTIFY-4", config: "PCI-NOTIFY-6" }
      : { index: "PCI-NOTIFY-3", config: "PCI-NOTIFY-5" };
    this.#check(
      withConfig ? clauses.config : clauses.index,
      (withData ? value & 0xffff : value) === (withConfig ? named : queue),
      () => `doorbell of queue ${queue} rung with ${hex(value)}`,
    );
  }

  /** Any access to the device configuration. */
  deviceConfigAccess(offset: number, known: boolean, write: boolean): void {
    const { status, offered } = this.#function;
    const gate = this.#function.configGate(offset);
    this.#check(
      "PCI-ACCESS-1",
      known,
      () => `unaligned or odd access at ${offset} of the device configuration`,
    );
    if (gate !== undefined)
      this.#check(
        "CONFIG-3",
        hasBit(offered, gate),
        () => `configuration offset ${offset} needs feature ${gate}`,
      );
    if (write) this.#suspend.fieldWrite("the device configuration");
    if ((status & DeviceStatus.FEATURES_OK) !== 0) return;
    if (write) this.#wroteEarly = true;
    else if (offset === WRITEBACK_AT) this.#readWritebackEarly = true;
  }

  /** A read of queue_reset. */
  queueResetRead(queue: number, resetting: boolean): void {
    if (resetting || !this.#resettingQueues.delete(queue)) return;
    for (const clause of ["VQRESET-1", "PCI-COMMON-7"]) this.#check(clause, true, () => "");
  }
}

// Rules that a virtio function sees at its registers: virtio 1.4 chapters 2, 3, 4.1 and 6.
import { DeviceStatus } from "@virtio/core";
import { CommonConfig, NO_VECTOR } from "@virtio/core/pci";
import type { RuleBook } from "./rule-book.js";

/** What the rules need to know of a function. */
export interface ObservedFunction {
  readonly name: string;
  /** Words of all bits the device offers. */
  readonly offered: readonly number[];
  /** Words of the bits the driver accepted so far. */
  readonly accepted: readonly number[];
  readonly status: number;
  readonly prerequisites: readonly (readonly [bit: number, needs: number])[];
  readonly msix: { readonly enabled: boolean; readonly vectors: number };
  configGate(offset: number): number | undefined;
}

const bit = (words: readonly number[], n: number): boolean =>
  ((words[n >>> 5] ?? 0) & (1 << (n & 31))) !== 0;
const hex = (value: number): string => `0x${value.toString(16)}`;
const VERSION_1 = 32;
const RING_PACKED = 34;
const NOTIFICATION_DATA = 38;
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

/** Watches the registers of one function. */
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
  /** The ISR was read while MSI-X was enabled. */
  #readIsr = false;
  /** Queues that were reset and not seen reset yet. */
  readonly #resettingQueues = new Set<number>();
  /** Queues that were reset and are to be set up anew. */
  readonly #resetQueues = new Set<number>();
  /** Fields written of the selected queue since its last enable or reset. */
  readonly #written = new Map<number, Set<number>>();
  #vectorUnread: number | null = null;

  constructor(book: RuleBook, fn: ObservedFunction) {
    this.#book = book;
    this.#function = fn;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#function.name, what);
  }

  statusRead(value: number): void {
    if (value === 0) this.#resetting = false;
    this.#unconfirmed = false;
  }

  /** Before the write takes effect. */
  statusWrite(value: number): void {
    const { status, accepted, offered, prerequisites } = this.#function;
    const wrote = (): string => `status ${hex(value)} written over ${hex(status)}`;
    if (!this.#touched)
      this.#check("INIT-2", value === 0, () => `first status write is ${hex(value)}, not 0`);
    this.#touched = true;
    if (value === 0) {
      this.#resetting = true;
      this.#failed = false;
      this.#unconfirmed = false;
      this.#featuresRead = 0;
      this.#vectorUnread = null;
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
      const extra = accepted.findIndex((word, i) => (word & ~(offered[i] ?? 0)) !== 0);
      this.#check(
        "FEAT-1",
        extra < 0,
        () =>
          `accepted ${hex((accepted[extra] ?? 0) >>> 0)} of offered ${hex(offered[extra] ?? 0)} in word ${extra}`,
      );
      const lacking = prerequisites.find(
        ([has, needs]) => bit(accepted, has) && !bit(accepted, needs),
      );
      this.#check(
        "FEAT-2",
        lacking === undefined,
        () => `feature ${lacking?.[0]} without feature ${lacking?.[1]}`,
      );
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
      if (bit(offered, VERSION_1))
        this.#check(
          "RESFEAT-1",
          bit(accepted, VERSION_1),
          () => "VERSION_1 was offered and not accepted",
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
      if (offset === CommonConfig.CONFIG_MSIX_VECTOR || offset === CommonConfig.QUEUE_MSIX_VECTOR) {
        if (this.#vectorUnread !== null)
          this.#check(
            "PCI-MSIX-5",
            this.#vectorUnread === offset,
            () => "another vector field was read back",
          );
        this.#vectorUnread = null;
      }
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
    this.#vectorWrite(offset, value);
  }

  /** Unmapping a vector is part of giving a device up, not of setting a queue up. */
  #isTearDown(offset: number, value: number): boolean {
    return offset === CommonConfig.QUEUE_MSIX_VECTOR && value === NO_VECTOR;
  }

  #vectorWrite(offset: number, value: number): void {
    const isVector =
      offset === CommonConfig.CONFIG_MSIX_VECTOR || offset === CommonConfig.QUEUE_MSIX_VECTOR;
    if (this.#vectorUnread !== null && offset !== CommonConfig.QUEUE_SELECT) {
      this.#check(
        "PCI-MSIX-5",
        false,
        () => `vector field ${hex(this.#vectorUnread ?? 0)} was written and not read back`,
      );
      this.#vectorUnread = null;
    }
    if (!isVector || value === NO_VECTOR) return;
    const { vectors } = this.#function.msix;
    this.#check("PCI-MSIX-4", value < vectors, () => `vector ${value} of a table of ${vectors}`);
    this.#vectorUnread = offset;
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
      if (bit(this.#function.accepted, RING_PACKED)) this.#check("PCI-COMMON-2", value > 0, what);
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

  /** A doorbell. */
  notify(width: number, value: number, queue: number): void {
    const { status } = this.#function;
    this.#check(
      "INIT-13",
      (status & DeviceStatus.DRIVER_OK) !== 0,
      () => `doorbell of queue ${queue} at status ${hex(status)}`,
    );
    // Without NOTIF_CONFIG_DATA the queue is named by its index (§4.1.5.2).
    if (bit(this.#function.accepted, NOTIFICATION_DATA)) {
      this.#check(
        "PCI-NOTIFY-2",
        width === 4,
        () => `doorbell of ${width} bytes with NOTIFICATION_DATA`,
      );
      this.#check(
        "PCI-NOTIFY-4",
        (value & 0xffff) === queue,
        () => `doorbell of queue ${queue} rung with ${hex(value)}`,
      );
    } else {
      this.#check("PCI-NOTIFY-1", width === 2, () => `doorbell of ${width} bytes`);
      this.#check(
        "PCI-NOTIFY-3",
        value === queue,
        () => `doorbell of queue ${queue} rung with ${value}`,
      );
    }
  }

  /** A read of the ISR status. */
  isrRead(): void {
    if (!this.#function.msix.enabled) return;
    this.#readIsr = true;
    this.#check("PCI-ISR-1", false, () => "ISR read while MSI-X is enabled");
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
        bit(offered, gate),
        () => `configuration offset ${offset} needs feature ${gate}`,
      );
    if ((status & DeviceStatus.FEATURES_OK) !== 0) return;
    if (write) this.#wroteEarly = true;
    else if (offset === WRITEBACK_AT) this.#readWritebackEarly = true;
  }

  /** A write to configuration space: where it hits a virtio capability, whether it may. */
  configurationWrite(offset: number, allowed: boolean): void {
    this.#check(
      "PCI-CAP-8",
      allowed,
      () => `configuration write to ${hex(offset)} of a virtio capability`,
    );
  }

  /** The function sent an MSI-X message for a queue. */
  messageSent(): void {
    this.#check("PCI-ISR-1", !this.#readIsr, () => "ISR was read while MSI-X is enabled");
  }

  /** A read of queue_reset. */
  queueResetRead(queue: number, resetting: boolean): void {
    if (resetting || !this.#resettingQueues.delete(queue)) return;
    for (const clause of ["VQRESET-1", "PCI-COMMON-7"]) this.#check(clause, true, () => "");
  }
}

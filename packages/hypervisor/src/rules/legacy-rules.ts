// Rules that a virtio function sees at the registers of its legacy interface: the legacy sections of virtio 1.4.
import { DeviceStatus, type DeviceType, type GuestMemory } from "@virtio/core";
import { LEGACY_PAGE_SIZE, LegacyRegister } from "@virtio/core/pci";
import { splitLayout } from "@virtio/ring";
import { hasBit } from "../feature-words.js";
import { racyConfigLength } from "./block-rules.js";
import { checkFeatures } from "./feature-rules.js";
import type { InterruptRules } from "./interrupt-rules.js";
import type { RuleBook } from "./rule-book.js";

/** What the rules need to know of a function. */
export interface ObservedLegacy {
  readonly name: string;
  readonly type: DeviceType;
  readonly memory: GuestMemory;
  /** Words of what the legacy interface offers. */
  readonly legacyOffered: readonly number[];
  readonly status: number;
  readonly prerequisites: readonly (readonly [bit: number, needs: number])[];
  /** Descriptors of each queue. */
  readonly queueSize: number;
  readonly configLength: number;
  configGate(offset: number): number | undefined;
}

const hex = (value: number): string => `0x${value.toString(16)}`;

/** Order of the status bits: there is no FEATURES_OK (§3.1.2). */
const sequence = [DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER, DeviceStatus.DRIVER_OK];

/** What was read of one byte of the device configuration: the last value, the one before, and how often. */
interface ByteReads {
  last: number;
  before: number;
  times: number;
}

/** Watches the legacy registers of one function. */
export class LegacyRules {
  readonly #book: RuleBook;
  readonly #function: ObservedLegacy;
  readonly #interrupts: InterruptRules;
  /** The driver wrote to a register since the last reset. */
  #inUse = false;
  /** Whether status was ever written. */
  #touched = false;
  /** A reset was written, and status not yet read as 0. */
  #resetting = false;
  #failed = false;
  #featuresRead = false;
  /** As the driver wrote it: the device takes less. */
  #accepted: number | null = null;
  #queueSelect = 0;
  /** Queues whose size was read: on the legacy interface it never changes. */
  readonly #sizeRead = new Set<number>();
  #reads = new Map<number, ByteReads>();
  /** Legacy rules broken since the last reset. */
  #broken = 0;

  constructor(book: RuleBook, fn: ObservedLegacy, interrupts: InterruptRules) {
    this.#book = book;
    this.#function = fn;
    this.#interrupts = interrupts;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#function.name, what);
  }

  /** A rule of a legacy section: who breaks one does not obey them (§2.2.3). */
  #checkLegacy(clause: string, kept: boolean, what: () => string): void {
    this.#check(clause, kept, what);
    if (!kept) this.broken(what());
  }

  /** A legacy rule was broken, here or in a queue. */
  broken(what: string): void {
    this.#broken += 1;
    this.#check("FEAT-LEGACY-2", false, () => what);
  }

  statusRead(value: number): void {
    if (value === 0) this.#resetting = false;
  }

  /** Before the write takes effect. */
  statusWrite(value: number): void {
    const { status } = this.#function;
    const wrote = (): string => `status ${hex(value)} written over ${hex(status)}`;
    this.#interrupts.otherWrite();
    if (!this.#touched)
      this.#checkLegacy("INIT-LEGACY-1", value === 0, () => `first status write is ${hex(value)}`);
    this.#touched = true;
    if (value === 0) {
      this.#reset();
      return;
    }
    this.#inUse = true;
    this.#check("RESET-1", !this.#resetting, () => `${wrote()} before status read 0`);
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
    const featuresOk = (value & DeviceStatus.FEATURES_OK) !== 0;
    if (featuresOk)
      this.#checkLegacy("FEAT-LEGACY-1", false, () => `${wrote()}: there is no FEATURES_OK here`);
    const stages = sequence.map((stage) => (value & stage) !== 0);
    const inOrder = stages.every((set, i) => !set || stages.slice(0, i).every((before) => before));
    const added = value & ~status;
    const one = sequence.filter((stage) => (added & stage) !== 0).length <= 1;
    this.#checkLegacy("INIT-LEGACY-1", inOrder && one && !featuresOk, wrote);
    if ((added & DeviceStatus.DRIVER_OK) !== 0) this.#ready();
  }

  #reset(): void {
    this.#inUse = false;
    this.#resetting = true;
    this.#failed = false;
    this.#featuresRead = false;
    this.#accepted = null;
    this.#queueSelect = 0;
    this.#reads = new Map();
    this.#broken = 0;
    this.#interrupts.reset();
  }

  /** The driver sets DRIVER_OK: what it did before is complete. */
  #ready(): void {
    const { name: device, legacyOffered: offered, type, prerequisites } = this.#function;
    this.#checkLegacy(
      "INIT-LEGACY-1",
      this.#featuresRead && this.#accepted !== null,
      () => "DRIVER_OK before the features were read, and written",
    );
    checkFeatures(this.#book, {
      device,
      type,
      offered,
      accepted: [this.#accepted ?? 0],
      prerequisites,
      legacy: true,
    });
    this.#check("FEAT-LEGACY-1", true, () => "");
    if (this.#broken === 0) this.#check("FEAT-LEGACY-2", true, () => "");
    const torn = [...this.#reads].find(
      ([, { times, last, before }]) => times < 2 || last !== before,
    );
    if (this.#reads.size > 0)
      this.#check(
        "CONFIG-LEGACY-1",
        torn === undefined,
        () => `configuration byte ${torn?.[0]} was not read until two reads agreed`,
      );
  }

  /** Any access to the registers before the device configuration, other than of the status. Before it takes effect. */
  access(offset: number, width: number, known: boolean, value: number | null): void {
    const isVector =
      offset >= LegacyRegister.CONFIG_MSIX_VECTOR && offset < LegacyRegister.QUEUE_MSIX_VECTOR + 2;
    const what = (): string => `access of ${width} bytes at ${hex(offset)} of the legacy registers`;
    // What misses the vector registers was meant for the device configuration, which MSI-X moves.
    this.#checkLegacy(isVector ? "PCI-LEGACY-3" : "PCI-LEGACY-1", known, what);
    if (value === null) {
      if (offset === LegacyRegister.DEVICE_FEATURES) this.#featuresRead = true;
      if (offset === LegacyRegister.QUEUE_SIZE) this.#sizeRead.add(this.#queueSelect);
      if (offset === LegacyRegister.CONFIG_MSIX_VECTOR) this.#interrupts.vectorRead("config");
      if (offset === LegacyRegister.QUEUE_MSIX_VECTOR) this.#interrupts.vectorRead("queue");
      return;
    }
    this.#inUse = true;
    const early = `register ${hex(offset)} written`;
    this.#check("RESET-1", !this.#resetting, () => `${early} before status read 0`);
    if (offset === LegacyRegister.CONFIG_MSIX_VECTOR) this.#interrupts.vectorWrite("config", value);
    else if (offset === LegacyRegister.QUEUE_MSIX_VECTOR)
      this.#interrupts.vectorWrite("queue", value);
    else if (offset !== LegacyRegister.QUEUE_SELECT) this.#interrupts.otherWrite();
    if (offset === LegacyRegister.QUEUE_SELECT) this.#queueSelect = value;
    if (offset === LegacyRegister.DRIVER_FEATURES) {
      this.#accepted = value;
      this.#inSetUp("features", DeviceStatus.DRIVER);
    }
  }

  /** Features and queues are set up between DRIVER and DRIVER_OK (§3.1.2). */
  #inSetUp(what: string, from: DeviceStatus): void {
    const { status } = this.#function;
    this.#checkLegacy(
      "INIT-LEGACY-1",
      (status & from) !== 0 && (status & DeviceStatus.DRIVER_OK) === 0,
      () => `${what} written at status ${hex(status)}`,
    );
  }

  /** A page number other than 0 is written to queue_address of queue `queue`. */
  placed(queue: number, page: number): void {
    const { memory, queueSize } = this.#function;
    this.#inSetUp("queue address", DeviceStatus.DRIVER);
    this.#checkLegacy(
      "SPLIT-LEGACY-1",
      this.#sizeRead.has(queue),
      () => `the size of queue ${queue} was not read`,
    );
    const { available, used, length } = splitLayout(queueSize, LEGACY_PAGE_SIZE);
    const address = page * LEGACY_PAGE_SIZE;
    const high = Math.floor(address / 0x1_0000_0000);
    const region = memory.regions[memory.locate(address >>> 0, high, length)];
    const at = address - (region?.address ?? 0);
    const isZero = (from: number, to: number): boolean =>
      region?.bytes.subarray(at + from, at + to).every((byte) => byte === 0) ?? false;
    // avail.idx, and all that the device writes.
    this.#checkLegacy(
      "SPLIT-LEGACY-2",
      isZero(available + 2, available + 4) && isZero(used, length),
      () => `queue ${queue} at ${hex(address)} is not a fresh ring in ${length} bytes of memory`,
    );
  }

  /** A doorbell. */
  notify(queue: number): void {
    const { status } = this.#function;
    this.#check(
      "INIT-13",
      (status & DeviceStatus.DRIVER_OK) !== 0,
      () => `doorbell of queue ${queue} at status ${hex(status)}`,
    );
  }

  /** Any access to the device configuration, at `offset` of it, of which MSI-X decides where it begins. */
  deviceConfigAccess(offset: number, width: number, write: boolean, msix: boolean): void {
    const { configLength, legacyOffered } = this.#function;
    const inside = offset + width <= configLength;
    // A vector would be written here if MSI-X were enabled; no device has a configuration field of two bytes there.
    const vector = !msix && write && width === 2 && offset < 4;
    this.#checkLegacy(
      "PCI-LEGACY-3",
      inside && !vector,
      () => `access of ${width} bytes at ${offset} of the device configuration`,
    );
    const gate = this.#function.configGate(offset);
    if (gate !== undefined)
      this.#check(
        "CONFIG-3",
        hasBit(legacyOffered, gate),
        () => `configuration offset ${offset} needs feature ${gate}`,
      );
    if (write) this.#inUse = true;
  }

  /** What a read of the device configuration gave. */
  deviceConfigRead(offset: number, width: number, value: number): void {
    const racy = racyConfigLength.get(this.#function.type) ?? 0;
    for (let i = 0; i < width && offset + i < racy; i++) {
      const reads = this.#reads.get(offset + i) ?? { last: -1, before: -1, times: 0 };
      reads.before = reads.last;
      reads.last = Math.floor(value / 256 ** i) % 256;
      reads.times += 1;
      this.#reads.set(offset + i, reads);
    }
  }

  /** The driver touches the modern structures. */
  modernAccess(): void {
    if (this.#inUse)
      this.#checkLegacy(
        "PCI-LEGACY-1",
        false,
        () => "modern structures are used while the legacy interface is in use",
      );
  }
}

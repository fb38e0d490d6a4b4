// Rules that a device sees in a virtqueue: virtio 1.4 §2.7, §2.8.
import { DeviceType, type GuestMemory, type VirtioFault } from "@virtio/core";
import { DESCRIPTOR_SIZE, PackedFlag } from "@virtio/core/ring";
import {
  type DeviceChain,
  type DeviceQueue,
  SplitDeviceQueue,
  type WideAddress,
} from "@virtio/ring";
import { checkLegacyBlockChain } from "./block-rules.js";
import type { RuleBook } from "./rule-book.js";

/** Clauses that the device end proves kept by taking a chain of a packed ring, and reports itself when one is broken. */
const provenByTakingPacked = [
  "PACKED-SG-1",
  "PACKED-SG-2",
  "PACKED-SG-3",
  "PACKED-SG-5",
  "PACKED-SG-6",
  "PACKED-INDIRECT-1",
  "PACKED-INDIRECT-2",
  "PACKED-INDIRECT-3",
  "PACKED-INDIRECT-4",
  "CLEANUP-1",
];

/** The same of a split ring. */
const provenByTakingSplit = [
  "FRAMING-1",
  "SPLIT-DESC-1",
  "SPLIT-AVAIL-1",
  "SPLIT-INDIRECT-1",
  "SPLIT-INDIRECT-2",
  "SPLIT-INDIRECT-3",
  "SPLIT-INDIRECT-4",
  "CLEANUP-1",
];

/** What taking a chain of a legacy ring proves besides: its parts lie where legacy says, in this host's byte order. */
const provenByTakingLegacy = ["SPLIT-LEGACY-3", "SPLIT-ENDIAN-1"];

/** What the rules need to know of a queue. */
export interface QueueRulesOptions {
  readonly book: RuleBook;
  readonly device: string;
  readonly type: DeviceType;
  readonly memory: GuestMemory;
  readonly areas: { readonly descriptors: WideAddress; readonly driver: WideAddress };
  readonly eventIdx: boolean;
  /** The driver uses the legacy interface, and was allowed to cut requests in any way. */
  readonly legacy: boolean;
  readonly anyLayout: boolean;
  readonly accessPlatform: boolean;
  /** A legacy rule was broken. */
  readonly onLegacyBroken: (what: string) => void;
}

/** Watches one enabled queue. */
export class QueueRules {
  readonly #options: QueueRulesOptions;
  #taken = false;
  /** What the driver had made available when it asked for a suspend. */
  #exposed: (() => boolean) | null = null;
  #queue: DeviceQueue | null = null;

  constructor(options: QueueRulesOptions) {
    this.#options = options;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    const { book, device } = this.#options;
    book.check(clause, kept, device, what);
  }

  #checkLegacy(clause: string, kept: boolean, what: () => string): void {
    this.#check(clause, kept, what);
    if (!kept) this.#options.onLegacyBroken(what());
  }

  /** The driver enabled the queue. */
  enabled(queue: DeviceQueue): void {
    this.#queue = queue;
    if (!(queue instanceof SplitDeviceQueue)) {
      this.#check("PACKED-LAYOUT-1", true, () => "");
      return;
    }
    this.#check("SPLIT-LAYOUT-1", true, () => "");
    this.#check(
      "SPLIT-AVAILSUP-1",
      !queue.notifyDisabled,
      () => `used.flags is set when queue ${queue.index} is enabled`,
    );
  }

  /** The driver rang. */
  notified(queue: DeviceQueue): void {
    if (!(queue instanceof SplitDeviceQueue)) return;
    if (!this.#options.eventIdx)
      this.#check(
        "SPLIT-AVAILSUP-3",
        !queue.notifyDisabled,
        () => `queue ${queue.index} rung though used.flags asks for no doorbell`,
      );
    if (this.#options.legacy && !this.#taken)
      this.#checkLegacy(
        "SPLIT-LEGACY-3",
        this.#availableIndex() !== 0,
        () => `queue ${queue.index} is rung and nothing is available where a legacy queue has it`,
      );
    this.#flags(queue);
  }

  /** The device took a chain. */
  taken(queue: DeviceQueue, chain: DeviceChain): void {
    const { legacy, type, anyLayout } = this.#options;
    this.#taken = true;
    const split = queue instanceof SplitDeviceQueue;
    for (const clause of split ? provenByTakingSplit : provenByTakingPacked)
      this.#check(clause, true, () => "");
    this.#check(this.#addressClause, true, () => "");
    if (legacy) for (const clause of provenByTakingLegacy) this.#check(clause, true, () => "");
    if (legacy && type === DeviceType.BLOCK)
      checkLegacyBlockChain(
        (clause, kept, what) => this.#checkLegacy(clause, kept, what),
        chain,
        anyLayout,
      );
    if (!split) return;
    const excessive = chain.segments > queue.size;
    this.#check("FRAMING-2", !excessive, () => `chain ${chain.id} has ${chain.segments} segments`);
    this.#flags(queue);
  }

  #flags(queue: SplitDeviceQueue): void {
    const flags = queue.availableFlags;
    const what = (): string => `avail.flags of queue ${queue.index} is ${flags}`;
    if (this.#options.eventIdx) this.#check("SPLIT-USEDSUP-3", flags === 0, what);
    else this.#check("SPLIT-USEDSUP-1", flags <= 1, what);
  }

  /** Addresses lie in guest memory: the clause says so with and without ACCESS_PLATFORM. */
  get #addressClause(): string {
    return this.#options.accessPlatform ? "RESFEAT-4" : "RESFEAT-5";
  }

  /** The device end found a rule broken. */
  broken(fault: VirtioFault): void {
    const { clause, message } = fault;
    if (clause === undefined) return;
    const { book, device, legacy } = this.#options;
    book.broken(clause === "RESFEAT-5" ? this.#addressClause : clause, device, message);
    // An index that is impossible, and possible with its bytes swapped, is in the other byte order.
    const index = this.#availableIndex() ?? 0;
    const swapped = ((index & 0xff) << 8) | (index >>> 8);
    if (legacy && clause === "SPLIT-AVAIL-1" && swapped <= (this.#queue?.size ?? 0))
      this.#checkLegacy("SPLIT-ENDIAN-1", false, () => message);
  }

  /** SUSPEND was written: from here on the driver makes nothing available (§3.4.1). */
  suspending(): void {
    if (!(this.#queue instanceof SplitDeviceQueue)) {
      const before = this.#packedFlags();
      const avail = PackedFlag.AVAIL;
      // Available now, and not so before: the device itself only turns available into used.
      this.#exposed = () =>
        this.#packedFlags().some(
          (flags, i) =>
            isAvailable(flags) &&
            (!isAvailable(before[i] ?? 0) || ((flags ^ (before[i] ?? 0)) & avail) !== 0),
        );
      return;
    }
    const before = this.#availableIndex();
    this.#exposed = () => this.#availableIndex() !== before;
  }

  /** The driver resumes. */
  resuming(): void {
    if (this.#exposed === null) return;
    this.#check("SUSPEND-3", !this.#exposed(), () => "buffers were made available while suspended");
    this.#exposed = null;
  }

  #availableIndex(): number | null {
    return this.#view(this.#options.areas.driver, 4)?.getUint16(2, true) ?? null;
  }

  #packedFlags(): readonly number[] {
    const size = this.#queue?.size ?? 0;
    const ring = this.#view(this.#options.areas.descriptors, size * DESCRIPTOR_SIZE);
    return Array.from(
      { length: ring === null ? 0 : size },
      (_, i) => ring?.getUint16(i * DESCRIPTOR_SIZE + 14, true) ?? 0,
    );
  }

  #view({ low, high }: WideAddress, length: number): DataView | null {
    const { memory } = this.#options;
    const region = memory.regions[memory.locate(low, high, length)];
    if (region === undefined) return null;
    const { buffer, byteOffset } = region.bytes;
    const at = (high >>> 0) * 0x1_0000_0000 + (low >>> 0) - region.address;
    return new DataView(buffer, byteOffset + at, length);
  }
}

const isAvailable = (flags: number): boolean =>
  ((flags & PackedFlag.AVAIL) !== 0) !== ((flags & PackedFlag.USED) !== 0);

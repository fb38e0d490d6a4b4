// Rules that a device sees in a virtqueue: virtio 1.4 §2.7, §2.8.
import type { VirtioFault } from "@virtio/core";
import { type DeviceChain, type DeviceQueue, SplitDeviceQueue } from "@virtio/ring";
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
  "RESFEAT-5",
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
  "RESFEAT-5",
];

/** Watches one enabled queue. */
export class QueueRules {
  readonly #book: RuleBook;
  readonly #device: string;
  readonly #eventIdx: boolean;

  constructor(book: RuleBook, device: string, eventIdx: boolean) {
    this.#book = book;
    this.#device = device;
    this.#eventIdx = eventIdx;
  }

  /** The driver enabled the queue. */
  enabled(queue: DeviceQueue): void {
    if (!(queue instanceof SplitDeviceQueue)) {
      this.#book.check("PACKED-LAYOUT-1", true, this.#device, () => "");
      return;
    }
    this.#book.check("SPLIT-LAYOUT-1", true, this.#device, () => "");
    this.#book.check(
      "SPLIT-AVAILSUP-1",
      !queue.notifyDisabled,
      this.#device,
      () => `used.flags is set when queue ${queue.index} is enabled`,
    );
  }

  /** The driver rang. */
  notified(queue: DeviceQueue): void {
    if (!(queue instanceof SplitDeviceQueue)) return;
    if (!this.#eventIdx)
      this.#book.check(
        "SPLIT-AVAILSUP-3",
        !queue.notifyDisabled,
        this.#device,
        () => `queue ${queue.index} rung though used.flags asks for no doorbell`,
      );
    this.#flags(queue);
  }

  /** The device took a chain. */
  taken(queue: DeviceQueue, chain: DeviceChain): void {
    const split = queue instanceof SplitDeviceQueue;
    for (const clause of split ? provenByTakingSplit : provenByTakingPacked)
      this.#book.check(clause, true, this.#device, () => "");
    if (!split) return;
    const excessive = chain.segments > queue.size;
    this.#book.check(
      "FRAMING-2",
      !excessive,
      this.#device,
      () => `chain ${chain.id} has ${chain.segments} segments`,
    );
    this.#flags(queue);
  }

  #flags(queue: SplitDeviceQueue): void {
    const flags = queue.availableFlags;
    const what = (): string => `avail.flags of queue ${queue.index} is ${flags}`;
    if (this.#eventIdx) this.#book.check("SPLIT-USEDSUP-3", flags === 0, this.#device, what);
    else this.#book.check("SPLIT-USEDSUP-1", flags <= 1, this.#device, what);
  }

  /** The device end found a rule broken. */
  broken(fault: VirtioFault): void {
    if (fault.clause !== undefined) this.#book.broken(fault.clause, this.#device, fault.message);
  }
}

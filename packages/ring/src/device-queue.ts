// What both formats of a queue offer a device.
import { type GuestMemory, VirtioFault } from "@virtio/core";
import type { DeviceChain } from "./device-chain.js";
import type { WideAddress } from "./queue-options.js";

/** What a transport tells the device end when a queue is enabled. */
export interface DeviceQueueOptions {
  readonly index: number;
  readonly size: number;
  readonly memory: GuestMemory;
  /** Descriptor Area. */
  readonly descriptors: WideAddress;
  /** Driver Area. */
  readonly driver: WideAddress;
  /** Device Area. */
  readonly device: WideAddress;
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  /** IN_ORDER was negotiated: chains are given back as they were taken. Default false. */
  readonly inOrder?: boolean;
  /** NOTIFY_ON_EMPTY was negotiated (legacy): an empty available ring interrupts in any case. Default false. */
  readonly notifyOnEmpty?: boolean;
  /** Another thread or process sees the memory. Default true. */
  readonly shared?: boolean;
  /** Called once, with the first rule that the driver broke; the queue takes no more chains. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** The device's end of a queue: takes chains, gives them back used, decides on interrupts. */
export interface DeviceQueue {
  readonly index: number;
  readonly size: number;
  /** A rule was broken: nothing is taken any more. */
  readonly broken: boolean;
  /** Chains taken and not yet given back. */
  readonly held: number;
  /** Whether the driver is asked to ring no doorbell (no flags with EVENT_IDX: false). */
  readonly notifyDisabled: boolean;
  /**
   * Takes the next available chain, its segments checked and located; null when there is none or the queue is broken. The chain
   * is the caller's until it gives it back; then the object is used again.
   */
  take(): DeviceChain | null;
  /**
   * Undoes the last take that was not undone: the chain is available again, as if nobody had looked. For a device that finds that
   * it cannot use what it took yet.
   * @throws VirtioFault INVALID: not the chain that was taken last
   */
  untake(chain: DeviceChain): void;
  /**
   * Gives a chain back, used.
   * @param written - bytes written from the start of the writable segments; at most `chain.writableLength`.
   * @throws VirtioFault INVALID: twice, too many bytes, or with IN_ORDER not in order
   */
  give(chain: DeviceChain, written: number): void;
  /** give() without publish(): for a batch. Same rules. */
  put(chain: DeviceChain, written: number): void;
  /** Makes all chains put so far visible to the driver: one ordered store for the whole batch. */
  publish(): void;
  /** publish(), then whether the chains given back since the last call want an interrupt (virtio 1.4 §2.7.7, §2.8.10). */
  wantsInterrupt(): boolean;
  /** Asks for doorbells; true when chains are already waiting (take them, do not sleep). */
  enableNotify(): boolean;
  /** Advisory: the device will look by itself. */
  disableNotify(): void;
}

/** The bytes of one area of a queue. @throws VirtioFault DRIVER_MISBEHAVED when it lies outside guest memory or is not aligned */
export function area(
  memory: GuestMemory,
  name: string,
  at: WideAddress,
  length: number,
  align: number,
  clause: string,
): Uint8Array {
  const address = (at.high >>> 0) * 0x1_0000_0000 + (at.low >>> 0);
  const refuse = (id: string, what: string): never => {
    throw new VirtioFault(
      "DRIVER_MISBEHAVED",
      `driver misbehaved: ${name} at 0x${address.toString(16)} ${what}`,
      { clause: id },
    );
  };
  if (at.low % align !== 0) refuse(clause, `is not a multiple of ${align}`);
  const region = memory.regions[memory.locate(at.low, at.high, length)];
  if (region === undefined) return refuse("RESFEAT-5", "is not in guest memory");
  const offset = address - region.address;
  return region.bytes.subarray(offset, offset + length);
}

/** What both formats do with the chains they took: which are held, and in which order they must come back. */
export class HeldChains {
  readonly #queue: number;
  readonly #inOrder: boolean;
  #taken = 0;
  #given = 0;

  constructor(queue: number, inOrder: boolean) {
    this.#queue = queue;
    this.#inOrder = inOrder;
  }

  /** Chains taken and not yet given back. */
  get count(): number {
    return this.#taken - this.#given;
  }

  hold(chain: DeviceChain): void {
    chain.serial = this.#taken;
    this.#taken += 1;
  }

  /** @throws VirtioFault INVALID */
  undo(chain: DeviceChain): void {
    if (!chain.held || chain.serial !== this.#taken - 1)
      throw new VirtioFault(
        "INVALID",
        `chain ${chain.id} of queue ${this.#queue} is not the one that was taken last`,
      );
    chain.serial = -1;
    this.#taken -= 1;
  }

  /** @throws VirtioFault INVALID */
  release(chain: DeviceChain, written: number): void {
    if (
      !chain.held ||
      written > chain.writableLength ||
      written < 0 ||
      (this.#inOrder && chain.serial !== this.#given)
    )
      this.#refuse(chain, written);
    chain.serial = -1;
    this.#given += 1;
  }

  #refuse(chain: DeviceChain, written: number): never {
    const what = !chain.held
      ? "is given back twice"
      : written > chain.writableLength || written < 0
        ? `has ${chain.writableLength} writable bytes, not ${written}`
        : "is not the next in order (IN_ORDER)";
    throw new VirtioFault("INVALID", `chain ${chain.id} of queue ${this.#queue} ${what}`);
  }
}

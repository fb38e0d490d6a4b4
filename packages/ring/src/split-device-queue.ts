// The device's end of a split virtqueue (virtio 1.4 §2.7), over guest memory of several regions and 64-bit addresses.
//
// The driver is not trusted. Each descriptor is read once into the chain's private segments, checked there, and used from there.
import { type GuestMemory, type GuestMemoryRegion, VirtioFault } from "@virtio/core";
import {
  AVAIL_ALIGN,
  AvailFlag,
  availRingSize,
  DESCRIPTOR_ALIGN,
  DESCRIPTOR_SIZE,
  DescriptorFlag,
  QUEUE_SIZE_MAX,
  USED_ALIGN,
  UsedFlag,
  usedRingSize,
} from "@virtio/core/ring";
import { DeviceChain } from "./device-chain.js";
import { loadIndex, storeIndex } from "./order.js";

/** A 64-bit guest address as two words. */
export interface WideAddress {
  readonly low: number;
  readonly high: number;
}

/** What a transport tells the device end when a queue is enabled. */
export interface SplitDeviceQueueOptions {
  readonly index: number;
  readonly size: number;
  readonly memory: GuestMemory;
  readonly descriptors: WideAddress;
  readonly available: WideAddress;
  readonly used: WideAddress;
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  /** Called once, with the first rule that the driver broke; the queue takes no more chains. */
  readonly onBroken: (fault: VirtioFault) => void;
}

/** Takes chains, gives them back used, decides on interrupts. */
export class SplitDeviceQueue {
  readonly index: number;
  readonly size: number;
  readonly #memory: GuestMemory;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #onBroken: (fault: VirtioFault) => void;
  #broken = false;

  readonly #descriptors: Uint32Array;
  readonly #available: Uint16Array;
  readonly #usedIndex: Uint16Array;
  readonly #usedEntries: Uint32Array;

  /** One chain for each head, made when first needed and then reused. */
  readonly #chains: DeviceChain[] = [];
  /** avail entries taken so far, modulo 2^16. */
  #taken = 0;
  /** used.idx as last stored. */
  #usedStored = 0;
  /** used.idx at the last decision on an interrupt. */
  #signalled = 0;
  /** Chains taken and not yet given back. */
  #held = 0;

  /** @throws VirtioFault DRIVER_MISBEHAVED when a part lies outside guest memory or is not aligned. */
  constructor(options: SplitDeviceQueueOptions) {
    const { index, size, memory, descriptors, available, used } = options;
    if (size < 1 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0)
      throw this.#fault(
        "PCI-COMMON-3",
        `queue size ${size} is not a power of 2 up to ${QUEUE_SIZE_MAX}`,
        index,
      );
    this.index = index;
    this.size = size;
    this.#memory = memory;
    this.#indirect = options.indirect;
    this.#eventIdx = options.eventIdx;
    this.#onBroken = options.onBroken;

    const part = (name: string, at: WideAddress, length: number, align: number): Uint8Array => {
      const where = `0x${((at.high >>> 0) * 0x1_0000_0000 + (at.low >>> 0)).toString(16)}`;
      if (at.low % align !== 0)
        throw this.#fault(
          "SPLIT-LAYOUT-1",
          `${name} at ${where} is not a multiple of ${align}`,
          index,
        );
      const region = memory.regions[memory.locate(at.low, at.high, length)];
      if (region === undefined)
        throw this.#fault("RESFEAT-5", `${name} at ${where} is not in guest memory`, index);
      const offset = (at.high >>> 0) * 0x1_0000_0000 + (at.low >>> 0) - region.address;
      return region.bytes.subarray(offset, offset + length);
    };
    const table = part("descriptor table", descriptors, size * DESCRIPTOR_SIZE, DESCRIPTOR_ALIGN);
    const avail = part("available ring", available, availRingSize(size), AVAIL_ALIGN);
    const usedRing = part("used ring", used, usedRingSize(size), USED_ALIGN);
    this.#descriptors = new Uint32Array(table.buffer, table.byteOffset, size * 4);
    this.#available = new Uint16Array(avail.buffer, avail.byteOffset, 3 + size);
    this.#usedIndex = new Uint16Array(usedRing.buffer, usedRing.byteOffset, 3 + 4 * size);
    this.#usedEntries = new Uint32Array(usedRing.buffer, usedRing.byteOffset, 1 + 2 * size);
  }

  get broken(): boolean {
    return this.#broken;
  }

  /** avail.flags as the driver left it. */
  get availableFlags(): number {
    return loadIndex(this.#available, 0);
  }

  /** avail.idx as the driver left it. */
  get availableIndex(): number {
    return loadIndex(this.#available, 1);
  }

  /** used.flags as it stands. */
  get usedFlags(): number {
    return loadIndex(this.#usedIndex, 0);
  }

  /** used.idx as this end last stored it. */
  get usedIndex(): number {
    return this.#usedStored;
  }

  /** Available entries taken so far, modulo 2^16. */
  get taken(): number {
    return this.#taken;
  }

  /** Chains taken and not yet given back. */
  get held(): number {
    return this.#held;
  }

  /**
   * Takes the next available chain, its segments checked and located; null when there is none or the queue is broken. The chain
   * is the caller's until it gives it to `give`; then the object is used again.
   */
  take(): DeviceChain | null {
    if (this.#broken) return null;
    const taken = this.#taken;
    const idx = loadIndex(this.#available, 1);
    const waiting = (idx - taken) & 0xffff;
    if (waiting === 0) return null;
    // Every entry is backed by a descriptor of its own that the device does not hold.
    if (waiting + this.#held > this.size)
      return this.#misbehaved(
        "SPLIT-AVAIL-1",
        `avail.idx ${idx} is ${waiting} ahead of ${taken} with ${this.#held} chains held`,
      );
    const head = this.#available[2 + (taken & (this.size - 1))] as number;
    if (head >= this.size)
      return this.#misbehaved("SPLIT-SUPPLY-1", `head ${head} is not in the descriptor table`);
    const chain = this.#chains[head] ?? new DeviceChain(head, this.#memory);
    this.#chains[head] = chain;
    if (chain.held)
      return this.#misbehaved(
        "CLEANUP-1",
        `head ${head} is available again while the device holds it`,
      );
    chain.begin();
    if (!this.#walk(chain, head)) return null;
    chain.held = true;
    this.#held += 1;
    this.#taken = (taken + 1) & 0xffff;
    return chain;
  }

  /** Reads the descriptors of one chain, direct ones and then those of an indirect table. */
  #walk(chain: DeviceChain, head: number): boolean {
    let table = this.#descriptors;
    let entries = this.size;
    let inTable = false;
    let i = head;
    let seen = 0;
    for (;;) {
      if (++seen > this.size)
        return this.#refuse(
          inTable ? "SPLIT-INDIRECT-3" : "SPLIT-DESC-1",
          `chain ${head} is longer than the queue or loops`,
        );
      const d = i * 4;
      const low = table[d] as number;
      const high = table[d + 1] as number;
      const length = table[d + 2] as number;
      const flagsNext = table[d + 3] as number;
      const flags = flagsNext & 0xffff;
      if ((flags & DescriptorFlag.INDIRECT) !== 0) {
        if (inTable)
          return this.#refuse(
            "SPLIT-INDIRECT-2",
            `chain ${head} has an indirect table inside an indirect table`,
          );
        if (!this.#indirect)
          return this.#refuse(
            "SPLIT-INDIRECT-1",
            `chain ${head} is indirect, which was not negotiated`,
          );
        if ((flags & DescriptorFlag.NEXT) !== 0)
          return this.#refuse("SPLIT-INDIRECT-4", `chain ${head} goes on after its indirect table`);
        if (length === 0 || length % DESCRIPTOR_SIZE !== 0 || length > this.size * DESCRIPTOR_SIZE)
          return this.#refuse(
            "SPLIT-INDIRECT-3",
            `chain ${head} has an indirect table of ${length} bytes`,
          );
        const at = this.#memory.locate(low, high, length);
        const region = this.#memory.regions[at];
        if (region === undefined)
          return this.#refuse(
            "RESFEAT-5",
            `chain ${head} has its indirect table outside guest memory`,
          );
        table = chain.copyTable(region, offsetIn(region, low, high), length);
        entries = length / DESCRIPTOR_SIZE;
        inTable = true;
        i = 0;
        // The referring descriptor is no element of the chain.
        seen -= 1;
        continue;
      }
      if (length === 0) return this.#refuse("FRAMING-1", `chain ${head} has a segment of 0 bytes`);
      const region = this.#memory.locate(low, high, length);
      if (region < 0)
        return this.#refuse(
          "RESFEAT-5",
          `chain ${head} has ${length} bytes at 0x${high.toString(16)}:${low.toString(16)} outside guest memory`,
        );
      const writable = (flags & DescriptorFlag.WRITE) !== 0;
      if (!writable && chain.writableLength > 0)
        return this.#refuse(
          "FRAMING-1",
          `chain ${head} has a readable segment after a writable one`,
        );
      chain.add(
        region,
        offsetIn(this.#memory.regions[region] as GuestMemoryRegion, low, high),
        length,
        writable,
      );
      if (chain.readableLength + chain.writableLength > 0x1_0000_0000)
        return this.#refuse("SPLIT-DESC-1", `chain ${head} describes more than 2^32 bytes`);
      if ((flags & DescriptorFlag.NEXT) === 0) return true;
      i = flagsNext >>> 16;
      if (i >= entries)
        return this.#refuse(
          "SPLIT-DESC-1",
          `chain ${head} goes on at ${i}, outside its table of ${entries}`,
        );
    }
  }

  /**
   * Gives a chain back: a used entry, then the index.
   * @param written - bytes written from the start of the writable segments; at most `chain.writableLength`.
   */
  give(chain: DeviceChain, written: number): void {
    if (!chain.held)
      throw new VirtioFault(
        "INVALID",
        `chain ${chain.head} of queue ${this.index} is given back twice`,
      );
    if (written > chain.writableLength)
      throw new VirtioFault(
        "INVALID",
        `chain ${chain.head} of queue ${this.index} has ${chain.writableLength} writable bytes, not ${written}`,
      );
    chain.held = false;
    this.#held -= 1;
    const entry = 1 + 2 * (this.#usedStored & (this.size - 1));
    this.#usedEntries[entry] = chain.head;
    this.#usedEntries[entry + 1] = written;
    this.#usedStored = (this.#usedStored + 1) & 0xffff;
    storeIndex(this.#usedIndex, 1, this.#usedStored);
  }

  /** Whether the chains given back since the last call want an interrupt (virtio 1.4 §2.7.7). */
  wantsInterrupt(): boolean {
    const now = this.#usedStored;
    const added = (now - this.#signalled) & 0xffff;
    if (added === 0) return false;
    this.#signalled = now;
    return this.#eventIdx
      ? ((now - loadIndex(this.#available, 2 + this.size) - 1) & 0xffff) < added
      : (loadIndex(this.#available, 0) & AvailFlag.NO_INTERRUPT) === 0;
  }

  /** Asks for doorbells; true when chains are already waiting (take them, do not sleep). */
  enableNotify(): boolean {
    if (this.#eventIdx) storeIndex(this.#usedIndex, 2 + 4 * this.size, this.#taken);
    else storeIndex(this.#usedIndex, 0, 0);
    return !this.#broken && loadIndex(this.#available, 1) !== this.#taken;
  }

  /** Advisory: the device will look by itself. */
  disableNotify(): void {
    if (this.#eventIdx) storeIndex(this.#usedIndex, 2 + 4 * this.size, (this.#taken - 1) & 0xffff);
    else storeIndex(this.#usedIndex, 0, UsedFlag.NO_NOTIFY);
  }

  #refuse(clause: string, what: string): false {
    this.#misbehaved(clause, what);
    return false;
  }

  #misbehaved(clause: string, what: string): null {
    this.#broken = true;
    this.#onBroken(this.#fault(clause, what, this.index));
    return null;
  }

  #fault(clause: string, what: string, index: number): VirtioFault {
    return new VirtioFault("DRIVER_MISBEHAVED", `driver misbehaved: ${what} (queue ${index})`, {
      clause,
    });
  }
}

function offsetIn(region: GuestMemoryRegion, low: number, high: number): number {
  return high * 0x1_0000_0000 + low - region.address;
}

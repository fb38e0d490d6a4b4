// The device's end of a split virtqueue (virtio 1.4 §2.7), over guest memory of several regions and 64-bit addresses.
//
// The driver is not trusted. Each descriptor is read once into the chain's private segments, checked there, and used from there.
import { type GuestMemory, VirtioFault } from "@virtio/core";
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
import {
  type CopySides,
  copySides,
  DeviceChain,
  isWritable,
  type SavedChain,
} from "./device-chain.js";
import { area, type DeviceQueue, type DeviceQueueOptions, HeldChains } from "./device-queue.js";
import { GuestWords } from "./guest-words.js";
import { loadIndex, moved, storeIndex } from "./order.js";
import { words16, words32 } from "./views.js";

/** What {@link SplitDeviceQueue} saves: private, whole numbers only. */
export interface SplitDeviceQueueState {
  readonly format: "split";
  readonly taken: number;
  readonly used: number;
  readonly given: number;
  /** In the order in which they were taken. */
  readonly held: readonly SavedChain[];
}

/** The device's end of a split virtqueue. */
export class SplitDeviceQueue implements DeviceQueue {
  readonly index: number;
  readonly size: number;
  readonly #memory: GuestMemory;
  /** Another thread or process sees the memory: indices and flags are ordered. */
  readonly #shared: boolean;
  readonly #words: GuestWords;
  readonly #sides: CopySides;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #notifyOnEmpty: boolean;
  readonly #inOrder: boolean;
  readonly #onBroken: (fault: VirtioFault) => void;
  #broken = false;

  readonly #descriptors: Uint32Array;
  readonly #available: Uint16Array;
  readonly #usedIndex: Uint16Array;
  readonly #usedEntries: Uint32Array;

  /** One chain for each head, made when first needed and then reused. */
  readonly #chains: DeviceChain[] = [];
  #held: HeldChains;
  /** avail entries taken so far, modulo 2^16. */
  #taken = 0;
  /** avail.idx as last read and found possible. */
  #seen = 0;
  /** used.idx as last stored. */
  #usedStored = 0;
  /** used.idx as the driver sees it: behind by what was put and not published. */
  #published = 0;
  /** Chains given back since the last decision on an interrupt. A count, because the index laps. */
  #given = 0;

  /** @throws VirtioFault DRIVER_MISBEHAVED when an area lies outside guest memory or is not aligned. */
  constructor(options: DeviceQueueOptions) {
    const { index, size, memory } = options;
    if (!Number.isInteger(size) || size < 1 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0)
      throw new VirtioFault(
        "DRIVER_MISBEHAVED",
        `driver misbehaved: size ${size} of queue ${index} is not a power of 2 up to ${QUEUE_SIZE_MAX}`,
        {
          clause: "PCI-COMMON-3",
        },
      );
    this.index = index;
    this.size = size;
    this.#memory = memory;
    this.#shared = options.shared ?? true;
    this.#words = new GuestWords(memory);
    this.#sides = copySides(memory);
    this.#indirect = options.indirect;
    this.#eventIdx = options.eventIdx;
    this.#notifyOnEmpty = options.notifyOnEmpty ?? false;
    this.#inOrder = options.inOrder ?? false;
    this.#held = new HeldChains(index, this.#inOrder);
    this.#onBroken = options.onBroken;
    const layout = "SPLIT-LAYOUT-1";
    const table = area(
      memory,
      "descriptor table",
      options.descriptors,
      size * DESCRIPTOR_SIZE,
      DESCRIPTOR_ALIGN,
      layout,
    );
    const available = area(
      memory,
      "available ring",
      options.driver,
      availRingSize(size),
      AVAIL_ALIGN,
      layout,
    );
    const used = area(memory, "used ring", options.device, usedRingSize(size), USED_ALIGN, layout);
    this.#descriptors = words32(table.buffer, table.byteOffset, size * 4);
    this.#available = words16(available.buffer, available.byteOffset, 3 + size);
    this.#usedIndex = words16(used.buffer, used.byteOffset, 3 + 4 * size);
    this.#usedEntries = words32(used.buffer, used.byteOffset, 1 + 2 * size);
  }

  get broken(): boolean {
    return this.#broken;
  }

  get held(): number {
    return this.#held.count;
  }

  get notifyDisabled(): boolean {
    return (loadIndex(this.#usedIndex, 0, this.#shared) & UsedFlag.NO_NOTIFY) !== 0;
  }

  /** avail.flags as the driver left it. */
  get availableFlags(): number {
    return loadIndex(this.#available, 0, this.#shared);
  }

  take(): DeviceChain | null {
    const taken = this.#taken;
    if (taken === this.#seen && (!moved(this.#available, 1, taken) || !this.#look())) return null;
    const head = this.#available[2 + (taken & (this.size - 1))] as number;
    if (head >= this.size) return this.#refuseHead(head);
    const chain = this.#chains[head] ?? this.#newChain(head);
    if (chain.held) return this.#refuseHead(head);
    // Most chains are one descriptor: those take no walk.
    const table = this.#descriptors;
    const d = head << 2;
    const flags = table[d + 3] as number;
    if ((flags & (DescriptorFlag.NEXT | DescriptorFlag.INDIRECT)) === 0) {
      const low = table[d] as number;
      const high = table[d + 1] as number;
      const length = table[d + 2] as number;
      if (!chain.only(low, high, length, flags & DescriptorFlag.WRITE))
        return this.#refuseElement(chain, low, high, length);
    } else if (!this.#walk(chain)) return null;
    this.#held.hold(chain);
    this.#taken = (taken + 1) & 0xffff;
    return chain;
  }

  untake(chain: DeviceChain): void {
    this.#held.undo(chain);
    this.#taken = (this.#taken - 1) & 0xffff;
  }

  #refuseHead(head: number): null {
    return head >= this.size
      ? this.#misbehaved("SPLIT-SUPPLY-1", `head ${head} is not in the descriptor table`)
      : this.#misbehaved("CLEANUP-1", `head ${head} is available again while the device holds it`);
  }

  #newChain(head: number): DeviceChain {
    const chain = new DeviceChain(head, this.#memory, this.#sides);
    this.#chains[head] = chain;
    return chain;
  }

  #refuseElement(chain: DeviceChain, low: number, high: number, length: number): null {
    const { clause, what } = chain.refusal(low, high, length, "FRAMING-1", "SPLIT-DESC-1");
    return this.#misbehaved(clause, what);
  }

  #refuseIndex(seen: number, waiting: number): false {
    return this.#refuse(
      "SPLIT-AVAIL-1",
      `avail.idx ${seen} is ${waiting} ahead of ${this.#taken} with ${this.#held.count} chains held`,
    );
  }

  /** Reads avail.idx; true when it is ahead of what was taken, and possible. */
  #look(): boolean {
    if (this.#broken) return false;
    const seen = loadIndex(this.#available, 1, this.#shared);
    const waiting = (seen - this.#taken) & 0xffff;
    if (waiting === 0) return false;
    // Every entry is backed by a descriptor of its own that the device does not hold.
    if (waiting + this.#held.count > this.size) return this.#refuseIndex(seen, waiting);
    this.#seen = seen;
    return true;
  }

  /** Reads the descriptors of one chain, direct ones and then those of an indirect table. */
  #walk(chain: DeviceChain): boolean {
    chain.begin();
    const head = chain.id;
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
      const d = i << 2;
      const low = table[d] as number;
      const high = table[d + 1] as number;
      const length = table[d + 2] as number;
      const flagsNext = table[d + 3] as number;
      const next = flagsNext >>> 16;
      if ((flagsNext & DescriptorFlag.INDIRECT) !== 0) {
        const entered = this.#enter(chain, inTable, flagsNext, low, high, length);
        if (entered === null) return false;
        table = entered;
        entries = length / DESCRIPTOR_SIZE;
        inTable = true;
        i = 0;
        // The referring descriptor is no element of the chain.
        seen -= 1;
        chain.descriptors += 1;
        continue;
      }
      if (!inTable) chain.descriptors += 1;
      if (!chain.add(low, high, length, isWritable(flagsNext))) {
        this.#refuseElement(chain, low, high, length);
        return false;
      }
      if ((flagsNext & DescriptorFlag.NEXT) === 0) return true;
      if (next >= entries)
        return this.#refuse(
          "SPLIT-DESC-1",
          `chain ${head} goes on at ${next}, outside its table of ${entries}`,
        );
      if (this.#inOrder && next !== (i + 1) % entries)
        return this.#refuse(
          inTable ? "SPLIT-INDIRECT-5" : "SPLIT-DESC-2",
          `chain ${head} goes on at ${next} after ${i} (IN_ORDER)`,
        );
      i = next;
    }
  }

  /** The indirect table that a descriptor refers to, or null when the driver must not have one there. */
  #enter(
    chain: DeviceChain,
    inTable: boolean,
    flags: number,
    low: number,
    high: number,
    length: number,
  ): Uint32Array | null {
    const refuse = (clause: string, what: string): null =>
      this.#misbehaved(clause, `chain ${chain.id} ${what}`);
    if (inTable)
      return refuse("SPLIT-INDIRECT-2", "has an indirect table inside an indirect table");
    if (!this.#indirect) return refuse("SPLIT-INDIRECT-1", "is indirect, which was not negotiated");
    if ((flags & DescriptorFlag.NEXT) !== 0)
      return refuse("SPLIT-INDIRECT-4", "goes on after its indirect table");
    if (length === 0 || length % DESCRIPTOR_SIZE !== 0 || length > this.size * DESCRIPTOR_SIZE)
      return refuse("SPLIT-INDIRECT-3", `has an indirect table of ${length} bytes`);
    return (
      chain.copyTable(this.#words, low, high, length) ??
      refuse("RESFEAT-5", "has its indirect table outside guest memory")
    );
  }

  give(chain: DeviceChain, written: number): void {
    this.put(chain, written);
    this.publish();
  }

  put(chain: DeviceChain, written: number): void {
    this.#held.release(chain, written);
    const entry = 1 + ((this.#usedStored & (this.size - 1)) << 1);
    this.#usedEntries[entry] = chain.id;
    this.#usedEntries[entry + 1] = written;
    this.#usedStored = (this.#usedStored + 1) & 0xffff;
  }

  publish(): void {
    const added = (this.#usedStored - this.#published) & 0xffff;
    if (added === 0) return;
    storeIndex(this.#usedIndex, 1, this.#usedStored, this.#shared);
    this.#published = this.#usedStored;
    this.#given += added;
  }

  wantsInterrupt(): boolean {
    this.publish();
    const now = this.#usedStored;
    const given = this.#given;
    if (given === 0) return false;
    this.#given = 0;
    if (
      this.#notifyOnEmpty &&
      this.#held.count === 0 &&
      loadIndex(this.#available, 1, this.#shared) === this.#taken
    )
      return true;
    return this.#eventIdx
      ? ((now - loadIndex(this.#available, 2 + this.size, this.#shared) - 1) & 0xffff) < given
      : (loadIndex(this.#available, 0, this.#shared) & AvailFlag.NO_INTERRUPT) === 0;
  }

  enableNotify(): boolean {
    if (this.#eventIdx) storeIndex(this.#usedIndex, 2 + 4 * this.size, this.#taken, this.#shared);
    else storeIndex(this.#usedIndex, 0, 0, this.#shared);
    // Asked for before the index is read again, or a chain made available in between would wait for the next doorbell.
    return !this.#broken && loadIndex(this.#available, 1, this.#shared) !== this.#taken;
  }

  disableNotify(): void {
    if (this.#eventIdx)
      storeIndex(this.#usedIndex, 2 + 4 * this.size, (this.#taken - 1) & 0xffff, this.#shared);
    else storeIndex(this.#usedIndex, 0, UsedFlag.NO_NOTIFY, this.#shared);
  }

  /** What is not in guest memory, to put back with `restore`. */
  save(): SplitDeviceQueueState {
    this.publish();
    const held = this.#chains.filter((chain) => chain?.held).sort((a, b) => a.serial - b.serial);
    return {
      format: "split",
      taken: this.#taken,
      used: this.#usedStored,
      given: this.#given,
      held: held.map((chain) => chain.save()),
    };
  }

  /**
   * Goes on where a queue of the same size and areas was saved.
   * @returns the chains that were held, in the order in which they were taken: the device still has to use them
   * @throws VirtioFault INVALID when the state is of another format, or guest memory is no longer the same
   */
  restore(state: SplitDeviceQueueState): readonly DeviceChain[] {
    const refuse = (what: string): never => {
      throw new VirtioFault(
        "INVALID",
        `the saved state is not of split queue ${this.index}: ${what}`,
      );
    };
    if (state.format !== "split") refuse(state.format);
    this.#chains.length = 0;
    this.#held = new HeldChains(this.index, this.#inOrder);
    this.#taken = state.taken;
    this.#seen = state.taken;
    this.#usedStored = state.used;
    this.#published = state.used;
    this.#given = state.given;
    this.#broken = false;
    return state.held.map((saved) => {
      if (saved.id >= this.size) refuse(`head ${saved.id}`);
      const chain = new DeviceChain(saved.id, this.#memory, this.#sides);
      const refusal = chain.restore(saved);
      if (refusal !== null) refuse(refusal.what);
      this.#chains[saved.id] = chain;
      this.#held.hold(chain);
      return chain;
    });
  }

  #refuse(clause: string, what: string): false {
    this.#misbehaved(clause, what);
    return false;
  }

  #misbehaved(clause: string, what: string): null {
    this.#broken = true;
    // Nothing that was seen is taken any more: take() looks, and finds the queue broken.
    this.#seen = this.#taken;
    this.#onBroken(
      new VirtioFault("DRIVER_MISBEHAVED", `driver misbehaved: ${what} (queue ${this.index})`, {
        clause,
      }),
    );
    return null;
  }
}

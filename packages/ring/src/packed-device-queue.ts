// The device's end of a packed virtqueue (virtio 1.4 §2.8), over guest memory of several regions and 64-bit addresses.
//
// The driver is not trusted. Each descriptor is read once into the chain's private segments, checked there, and used from there.
import { type GuestMemory, VirtioFault } from "@virtio/core";
import {
  DESCRIPTOR_ALIGN,
  DESCRIPTOR_SIZE,
  DescriptorFlag,
  EVENT_ALIGN,
  EVENT_SIZE,
  PackedEvent,
  QUEUE_SIZE_MAX,
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
import { loadWord, peekWord, storeWord } from "./order.js";
import { availableBits, Owner, passes, usedBits, WRAP } from "./packed-layout.js";
import { signed32, words32 } from "./views.js";

enum Word {
  ID_FLAGS = 3,
}
enum Flag {
  WRITE = 0x2_0000,
  NEXT = 0x1_0000,
  INDIRECT = 0x4_0000,
}

/** What {@link PackedDeviceQueue} saves: private, whole numbers only. */
export interface PackedDeviceQueueState {
  readonly format: "packed";
  readonly next: number;
  readonly nextWrap: number;
  readonly usedAt: number;
  readonly usedWrap: number;
  readonly given: number;
  /** In the order in which they were taken. */
  readonly held: readonly SavedChain[];
}

/** The device's end of a packed virtqueue. */
export class PackedDeviceQueue implements DeviceQueue {
  readonly index: number;
  readonly size: number;
  readonly #memory: GuestMemory;
  /** Another thread or process sees the memory: indices and flags are ordered. */
  readonly #shared: boolean;
  readonly #words: GuestWords;
  readonly #sides: CopySides;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #onBroken: (fault: VirtioFault) => void;
  #broken = false;

  readonly #ring: Uint32Array;
  /** The same words, signed: ids and flags. */
  readonly #flags: Int32Array;
  readonly #driverEvent: Int32Array;
  readonly #deviceEvent: Int32Array;

  /** One chain for each buffer id, made when first needed and then reused. */
  readonly #chains: (DeviceChain | null)[] = [];
  #held: HeldChains;
  /** Descriptors of the chains that are held. */
  #heldDescriptors = 0;
  /** Where the next available descriptor will be, and of which lap. */
  #next = 0;
  #nextWrap = 1;
  /** Where the next used descriptor goes, and in which lap. */
  #usedAt = 0;
  #usedWrap = 1;
  /** Descriptors given back since the last decision on an interrupt. */
  #given = 0;
  /** The first used word that is not published: its place, or -1, and what it will be. */
  #heldAt = -1;
  #heldWord = 0;

  /** @throws VirtioFault DRIVER_MISBEHAVED when an area lies outside guest memory or is not aligned. */
  constructor(options: DeviceQueueOptions) {
    const { index, size, memory } = options;
    if (!Number.isInteger(size) || size < 1 || size > QUEUE_SIZE_MAX)
      throw new VirtioFault(
        "DRIVER_MISBEHAVED",
        `driver misbehaved: size ${size} of queue ${index} is not from 1 to ${QUEUE_SIZE_MAX}`,
        {
          clause: "PCI-COMMON-2",
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
    this.#inOrder = options.inOrder ?? false;
    this.#held = new HeldChains(index, this.#inOrder);
    this.#onBroken = options.onBroken;
    const layout = "PACKED-LAYOUT-1";
    const ring = area(
      memory,
      "descriptor ring",
      options.descriptors,
      size * DESCRIPTOR_SIZE,
      DESCRIPTOR_ALIGN,
      layout,
    );
    const driver = area(
      memory,
      "driver event suppression",
      options.driver,
      EVENT_SIZE,
      EVENT_ALIGN,
      layout,
    );
    const device = area(
      memory,
      "device event suppression",
      options.device,
      EVENT_SIZE,
      EVENT_ALIGN,
      layout,
    );
    this.#ring = words32(ring.buffer, ring.byteOffset, size * 4);
    this.#flags = signed32(ring.buffer, ring.byteOffset, size * 4);
    this.#driverEvent = signed32(driver.buffer, driver.byteOffset, 1);
    this.#deviceEvent = signed32(device.buffer, device.byteOffset, 1);
  }

  get broken(): boolean {
    return this.#broken;
  }

  get held(): number {
    return this.#held.count;
  }

  get notifyDisabled(): boolean {
    return ((loadWord(this.#deviceEvent, 0, this.#shared) >>> 16) & 3) === PackedEvent.DISABLE;
  }

  /** Whether the descriptor at the next place is available. */
  #ready(): boolean {
    return (
      (loadWord(this.#flags, (this.#next << 2) + Word.ID_FLAGS, this.#shared) & Owner.MASK) ===
      availableBits(this.#nextWrap)
    );
  }

  take(): DeviceChain | null {
    const flags = this.#flags;
    const next = this.#next;
    const d = next << 2;
    const bits = availableBits(this.#nextWrap);
    if ((peekWord(flags, d + Word.ID_FLAGS) & Owner.MASK) !== bits || this.#broken) return null;
    const word = loadWord(flags, d + Word.ID_FLAGS, this.#shared);
    if ((word & Owner.MASK) !== bits) return null;
    if ((word & (Flag.NEXT | Flag.INDIRECT)) !== 0) return this.#takeList(word);
    // Most lists are one descriptor.
    const chain = this.#chainOf(word & 0xffff);
    if (chain.held || this.#heldDescriptors >= this.size) return this.#refuseList(chain, 1);
    const ring = this.#ring;
    const low = ring[d] as number;
    const high = ring[d + 1] as number;
    const length = ring[d + 2] as number;
    if (!chain.only(low, high, length, word & Flag.WRITE)) {
      this.#refuseElement(chain, low, high, length);
      return null;
    }
    return this.#hold(chain, 1, next + 1 === this.size ? 0 : next + 1);
  }

  untake(chain: DeviceChain): void {
    this.#held.undo(chain);
    this.#heldDescriptors -= chain.descriptors;
    this.#next -= chain.descriptors;
    if (this.#next >= 0) return;
    this.#next += this.size;
    this.#nextWrap ^= 1;
  }

  #hold(chain: DeviceChain, count: number, place: number): DeviceChain {
    this.#held.hold(chain);
    this.#heldDescriptors += count;
    if (place <= this.#next) this.#nextWrap ^= 1;
    this.#next = place;
    return chain;
  }

  /** A list of several descriptors, or an indirect one, whose head's word was read. */
  #takeList(head: number): DeviceChain | null {
    const flags = this.#flags;
    // The id stands in the last descriptor of the list: it is found before the elements are read (§2.8.17).
    let place = this.#next;
    let bits = availableBits(this.#nextWrap);
    let count = 0;
    let word = head;
    for (;;) {
      if ((word & Owner.MASK) !== bits)
        return this.#misbehaved(
          "PACKED-SG-6",
          `descriptor ${place} follows an available one and is not available`,
        );
      if (++count + this.#heldDescriptors > this.size) return this.#refuseCount(count);
      place += 1;
      if (place === this.size) {
        place = 0;
        bits ^= Owner.MASK;
      }
      if ((word & Flag.NEXT) === 0) break;
      word = flags[(place << 2) + Word.ID_FLAGS] as number;
    }
    const chain = this.#chainOf(word & 0xffff);
    if (chain.held) return this.#refuseList(chain, count);
    chain.begin();
    chain.descriptors = count;
    return this.#walk(chain, count) ? this.#hold(chain, count, place) : null;
  }

  #chainOf(id: number): DeviceChain {
    return this.#chains[id] ?? this.#newChain(id);
  }

  #newChain(id: number): DeviceChain {
    // All ids there can be, so that no driver can make the list a sparse one.
    while (this.#chains.length <= id) this.#chains.push(null);
    const chain = new DeviceChain(id, this.#memory, this.#sides);
    this.#chains[id] = chain;
    return chain;
  }

  #refuseCount(count: number): null {
    return this.#misbehaved(
      "PACKED-SG-2",
      `a list of ${count} descriptors with ${this.#heldDescriptors} held is longer than the queue`,
    );
  }

  #refuseList(chain: DeviceChain, count: number): null {
    if (this.#heldDescriptors + count > this.size) return this.#refuseCount(count);
    return this.#misbehaved(
      "CLEANUP-1",
      `buffer id ${chain.id} is available again while the device holds it`,
    );
  }

  /** Reads the elements of one list of `count` descriptors, or those of its indirect table. */
  #walk(chain: DeviceChain, count: number): boolean {
    const ring = this.#ring;
    let place = this.#next;
    for (let k = 0; k < count; k++) {
      const d = place << 2;
      const low = ring[d] as number;
      const high = ring[d + 1] as number;
      const length = ring[d + 2] as number;
      const flags = (this.#flags[d + Word.ID_FLAGS] as number) >>> 16;
      if ((flags & DescriptorFlag.INDIRECT) !== 0) {
        if (count > 1)
          return this.#refuse(
            "PACKED-INDIRECT-4",
            `buffer ${chain.id} has an indirect descriptor in a list`,
          );
        return this.#walkTable(chain, low, high, length);
      }
      if (!chain.add(low, high, length, isWritable(flags)))
        return this.#refuseElement(chain, low, high, length);
      place = place + 1 === this.size ? 0 : place + 1;
    }
    return true;
  }

  #walkTable(chain: DeviceChain, low: number, high: number, length: number): boolean {
    if (!this.#indirect)
      return this.#refuse(
        "PACKED-INDIRECT-1",
        `buffer ${chain.id} is indirect, which was not negotiated`,
      );
    if (length === 0 || length % DESCRIPTOR_SIZE !== 0 || length > this.size * DESCRIPTOR_SIZE)
      return this.#refuse(
        "PACKED-INDIRECT-3",
        `buffer ${chain.id} has an indirect table of ${length} bytes`,
      );
    const table = chain.copyTable(this.#words, low, high, length);
    if (table === null)
      return this.#refuse(
        "RESFEAT-5",
        `buffer ${chain.id} has its indirect table outside guest memory`,
      );
    for (let d = 0; d < length >>> 2; d += 4) {
      const flags = (table[d + Word.ID_FLAGS] as number) >>> 16;
      if ((flags & ~DescriptorFlag.WRITE) !== 0)
        return this.#refuse(
          "PACKED-INDIRECT-2",
          `buffer ${chain.id} has flags 0x${flags.toString(16)} in its indirect table`,
        );
      const low = table[d] as number;
      const high = table[d + 1] as number;
      const segment = table[d + 2] as number;
      if (!chain.add(low, high, segment, isWritable(flags)))
        return this.#refuseElement(chain, low, high, segment);
    }
    return true;
  }

  give(chain: DeviceChain, written: number): void {
    this.put(chain, written);
    this.publish();
  }

  publish(): void {
    if (this.#heldAt < 0) return;
    storeWord(this.#flags, this.#heldAt, this.#heldWord, this.#shared);
    this.#heldAt = -1;
  }

  put(chain: DeviceChain, written: number): void {
    this.#held.release(chain, written);
    const count = chain.descriptors;
    this.#heldDescriptors -= count;
    const d = this.#usedAt << 2;
    this.#ring[d + 2] = written;
    const word = usedBits(this.#usedWrap) | chain.id | (written > 0 ? Flag.WRITE : 0);
    // The driver looks in ring order: the first word of a batch, stored last, exposes all of it.
    if (this.#heldAt < 0) {
      this.#heldAt = d + Word.ID_FLAGS;
      this.#heldWord = word;
    } else this.#flags[d + Word.ID_FLAGS] = word;
    this.#given += count;
    this.#usedAt += count;
    if (this.#usedAt >= this.size) {
      this.#usedAt -= this.size;
      this.#usedWrap ^= 1;
    }
  }

  wantsInterrupt(): boolean {
    this.publish();
    const given = this.#given;
    if (given === 0) return false;
    this.#given = 0;
    const event = loadWord(this.#driverEvent, 0, this.#shared);
    const kind = (event >>> 16) & 3;
    return this.#eventIdx && kind === PackedEvent.DESC
      ? passes(event & 0xffff, this.#usedAt, this.#usedWrap, given, this.size)
      : kind !== PackedEvent.DISABLE;
  }

  enableNotify(): boolean {
    const at = this.#next | (this.#nextWrap === 1 ? WRAP : 0);
    storeWord(
      this.#deviceEvent,
      0,
      this.#eventIdx ? at | (PackedEvent.DESC << 16) : PackedEvent.ENABLE << 16,
      this.#shared,
    );
    // Asked for before the ring is looked at again, or a list made available in between would wait for the next doorbell.
    return !this.#broken && this.#ready();
  }

  disableNotify(): void {
    storeWord(this.#deviceEvent, 0, PackedEvent.DISABLE << 16, this.#shared);
  }

  /** What is not in guest memory, to put back with `restore`. */
  save(): PackedDeviceQueueState {
    this.publish();
    const held = this.#chains
      .filter((chain) => chain !== null)
      .filter((chain) => chain.held)
      .sort((a, b) => a.serial - b.serial);
    return {
      format: "packed",
      next: this.#next,
      nextWrap: this.#nextWrap,
      usedAt: this.#usedAt,
      usedWrap: this.#usedWrap,
      given: this.#given,
      held: held.map((chain) => chain.save()),
    };
  }

  /**
   * Goes on where a queue of the same size and areas was saved.
   * @returns the chains that were held, in the order in which they were taken: the device still has to use them
   * @throws VirtioFault INVALID when the state is of another format, or guest memory is no longer the same
   */
  restore(state: PackedDeviceQueueState): readonly DeviceChain[] {
    const refuse = (what: string): never => {
      throw new VirtioFault(
        "INVALID",
        `the saved state is not of packed queue ${this.index}: ${what}`,
      );
    };
    if (state.format !== "packed") refuse(state.format);
    if (state.next >= this.size || state.usedAt >= this.size)
      refuse(`positions ${state.next} and ${state.usedAt} of ${this.size}`);
    this.#chains.length = 0;
    this.#held = new HeldChains(this.index, this.#inOrder);
    this.#heldDescriptors = 0;
    this.#next = state.next;
    this.#nextWrap = state.nextWrap;
    this.#usedAt = state.usedAt;
    this.#usedWrap = state.usedWrap;
    this.#given = state.given;
    this.#heldAt = -1;
    this.#broken = false;
    return state.held.map((saved) => {
      const chain = this.#newChain(saved.id);
      const refusal = chain.restore(saved);
      if (refusal !== null) refuse(refusal.what);
      this.#held.hold(chain);
      this.#heldDescriptors += saved.descriptors;
      return chain;
    });
  }

  #refuseElement(chain: DeviceChain, low: number, high: number, length: number): false {
    const { clause, what } = chain.refusal(low, high, length, "PACKED-SG-3", "PACKED-SG-1");
    return this.#refuse(clause, what);
  }

  #refuse(clause: string, what: string): false {
    this.#misbehaved(clause, what);
    return false;
  }

  #misbehaved(clause: string, what: string): null {
    this.#broken = true;
    this.#onBroken(
      new VirtioFault("DRIVER_MISBEHAVED", `driver misbehaved: ${what} (queue ${this.index})`, {
        clause,
      }),
    );
    return null;
  }
}

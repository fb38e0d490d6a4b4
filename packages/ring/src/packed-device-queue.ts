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
import { DeviceChain, isWritable } from "./device-chain.js";
import {
  area,
  type DeviceQueue,
  type DeviceQueueOptions,
  HeldChains,
  type SavedChain,
} from "./device-queue.js";
import { loadWord, storeWord } from "./order.js";
import { availableBits, OWNER, passes, usedBits, WRAP } from "./packed-layout.js";
import { words32 } from "./views.js";

const ID_FLAGS = 3;
const FLAG_WRITE = DescriptorFlag.WRITE << 16;

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
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #onBroken: (fault: VirtioFault) => void;
  #broken = false;

  readonly #ring: Uint32Array;
  readonly #driverEvent: Uint32Array;
  readonly #deviceEvent: Uint32Array;

  /** One chain for each buffer id, made when first needed and then reused. */
  readonly #chains = new Map<number, DeviceChain>();
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
    this.#driverEvent = words32(driver.buffer, driver.byteOffset, 1);
    this.#deviceEvent = words32(device.buffer, device.byteOffset, 1);
  }

  get broken(): boolean {
    return this.#broken;
  }

  get held(): number {
    return this.#held.count;
  }

  get notifyDisabled(): boolean {
    return ((loadWord(this.#deviceEvent, 0) >>> 16) & 3) === PackedEvent.DISABLE;
  }

  /** Whether the descriptor at the next place is available. */
  #ready(): boolean {
    return (
      (loadWord(this.#ring, this.#next * 4 + ID_FLAGS) & OWNER) >>> 0 ===
      availableBits(this.#nextWrap)
    );
  }

  take(): DeviceChain | null {
    if (this.#broken || !this.#ready()) return null;
    const ring = this.#ring;
    // The id stands in the last descriptor of the list: it is found before the elements are read (§2.8.17).
    let place = this.#next;
    let bits = availableBits(this.#nextWrap);
    let count = 0;
    let word: number;
    for (;;) {
      word = ring[place * 4 + ID_FLAGS] as number;
      if ((word & OWNER) >>> 0 !== bits)
        return this.#misbehaved(
          "PACKED-SG-6",
          `descriptor ${place} follows an available one and is not available`,
        );
      if (++count + this.#heldDescriptors > this.size)
        return this.#misbehaved(
          "PACKED-SG-2",
          `a list of ${count} descriptors with ${this.#heldDescriptors} held is longer than the queue`,
        );
      place += 1;
      if (place === this.size) {
        place = 0;
        bits = (bits ^ OWNER) >>> 0;
      }
      if (((word >>> 16) & DescriptorFlag.NEXT) === 0) break;
    }
    const id = word & 0xffff;
    let chain = this.#chains.get(id);
    if (chain === undefined) {
      chain = new DeviceChain(id, this.#memory);
      this.#chains.set(id, chain);
    }
    if (chain.held)
      return this.#misbehaved(
        "CLEANUP-1",
        `buffer id ${id} is available again while the device holds it`,
      );
    chain.begin();
    chain.descriptors = count;
    if (!this.#walk(chain, count)) return null;
    this.#held.hold(chain);
    this.#heldDescriptors += count;
    if (place <= this.#next) this.#nextWrap ^= 1;
    this.#next = place;
    return chain;
  }

  /** Reads the elements of one list of `count` descriptors, or those of its indirect table. */
  #walk(chain: DeviceChain, count: number): boolean {
    const ring = this.#ring;
    let place = this.#next;
    for (let k = 0; k < count; k++) {
      const d = place * 4;
      const low = ring[d] as number;
      const high = ring[d + 1] as number;
      const length = ring[d + 2] as number;
      const flags = (ring[d + ID_FLAGS] as number) >>> 16;
      if ((flags & DescriptorFlag.INDIRECT) !== 0) {
        if (count > 1)
          return this.#refuse(
            "PACKED-INDIRECT-4",
            `buffer ${chain.id} has an indirect descriptor in a list`,
          );
        return this.#walkTable(chain, low, high, length);
      }
      const refusal = chain.add(low, high, length, isWritable(flags), "PACKED-SG-3", "PACKED-SG-1");
      if (refusal !== null) return this.#refuse(refusal.clause, refusal.what);
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
    const table = chain.copyTable(low, high, length);
    if (table === null)
      return this.#refuse(
        "RESFEAT-5",
        `buffer ${chain.id} has its indirect table outside guest memory`,
      );
    for (let d = 0; d < length >>> 2; d += 4) {
      const flags = (table[d + ID_FLAGS] as number) >>> 16;
      if ((flags & ~DescriptorFlag.WRITE) !== 0)
        return this.#refuse(
          "PACKED-INDIRECT-2",
          `buffer ${chain.id} has flags 0x${flags.toString(16)} in its indirect table`,
        );
      const refusal = chain.add(
        table[d] as number,
        table[d + 1] as number,
        table[d + 2] as number,
        isWritable(flags),
        "PACKED-SG-3",
        "PACKED-SG-1",
      );
      if (refusal !== null) return this.#refuse(refusal.clause, refusal.what);
    }
    return true;
  }

  give(chain: DeviceChain, written: number): void {
    this.#held.release(chain, written);
    const count = chain.descriptors;
    this.#heldDescriptors -= count;
    const d = this.#usedAt * 4;
    this.#ring[d + 2] = written;
    storeWord(
      this.#ring,
      d + ID_FLAGS,
      (usedBits(this.#usedWrap) | chain.id | (written > 0 ? FLAG_WRITE : 0)) >>> 0,
    );
    this.#given += count;
    this.#usedAt += count;
    if (this.#usedAt >= this.size) {
      this.#usedAt -= this.size;
      this.#usedWrap ^= 1;
    }
  }

  wantsInterrupt(): boolean {
    const given = this.#given;
    if (given === 0) return false;
    this.#given = 0;
    const event = loadWord(this.#driverEvent, 0);
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
    );
    // Asked for before the ring is looked at again, or a list made available in between would wait for the next doorbell.
    return !this.#broken && this.#ready();
  }

  disableNotify(): void {
    storeWord(this.#deviceEvent, 0, PackedEvent.DISABLE << 16);
  }

  /** What is not in guest memory, to put back with `restore`. */
  save(): PackedDeviceQueueState {
    const held = [...this.#chains.values()]
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
    this.#chains.clear();
    this.#held = new HeldChains(this.index, this.#inOrder);
    this.#heldDescriptors = 0;
    this.#next = state.next;
    this.#nextWrap = state.nextWrap;
    this.#usedAt = state.usedAt;
    this.#usedWrap = state.usedWrap;
    this.#given = state.given;
    this.#broken = false;
    return state.held.map((saved) => {
      const chain = new DeviceChain(saved.id, this.#memory);
      const refusal = chain.restore(saved);
      if (refusal !== null) refuse(refusal.what);
      this.#chains.set(saved.id, chain);
      this.#held.hold(chain);
      this.#heldDescriptors += saved.descriptors;
      return chain;
    });
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

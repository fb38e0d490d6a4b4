// Looks at a ring as a device would, and reports the clauses that the driver breaks. It knows the bytes, the doorbells and what
// the driver says it took back; of the driver's own state it knows nothing.
import type { VirtioFault } from "@virtio/core";
import { BASE, type Chain, type DeviceEnd, type DriverEnd, type Rig } from "./rig.js";
import {
  AVAIL,
  INDIRECT,
  NEXT,
  PackedBytes,
  type RingPlace,
  SplitBytes,
  USED,
  WRITE,
} from "./ring-bytes.js";

export interface Checker {
  /** Clauses broken so far. */
  readonly broken: Set<string>;
  /** The device looks: at rest when no call of the driver is under way. */
  look(atRest: boolean): void;
  /** The device gave chain `id` of `count` descriptors back with `length` bytes: call before and after. */
  beforeUse(id: number): void;
  afterUse(id: number, length: number): void;
  /** notify() ended; `doorbells` are the upper halves of those it rang. */
  notified(doorbells: readonly number[]): void;
  /** The driver says that it took back `cookie` with `length` bytes, which the device gave back as `id`. */
  completed(id: number, length: number): void;
}

interface CheckerOptions extends RingPlace {
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
  /** Longest chain that the device allows. */
  readonly maxSegments: number;
  /** Chains of one descriptor that went through before the watch begins. */
  readonly begun: number;
}

/** What both formats have in common: used lengths, each chain taken back once. */
abstract class UsedLengths {
  readonly broken: Set<string> = new Set();
  /** Lengths the device wrote, by id, until the driver takes the chain back. */
  readonly lengths = new Map<number, number[]>();

  abstract readonly lengthClauses: readonly string[];
  abstract readonly spuriousClause: string | null;

  gave(id: number, length: number): void {
    const waiting = this.lengths.get(id);
    if (waiting === undefined) this.lengths.set(id, [length]);
    else waiting.push(length);
  }

  completed(id: number, length: number): void {
    const given = this.lengths.get(id)?.shift();
    if (given === undefined) {
      if (this.spuriousClause !== null) this.broken.add(this.spuriousClause);
    } else if (given !== length) for (const clause of this.lengthClauses) this.broken.add(clause);
  }
}

/** Words of one indirect table, or null when it does not lie in memory. */
function tableAt(options: CheckerOptions, address: number, length: number): Uint32Array | null {
  const offset = address - BASE;
  return offset < 0 || offset % 16 !== 0 || offset + length > options.buffer.byteLength
    ? null
    : new Uint32Array(options.buffer, offset, length >>> 2);
}

/** The checker of split rings. */
export class SplitChecker extends UsedLengths implements Checker {
  override readonly lengthClauses = ["SPLIT-USED-1", "SPLIT-USED-2"];
  override readonly spuriousClause = "SPLIT-USEDSUP-5";
  readonly #options: CheckerOptions;
  readonly #ring: SplitBytes;
  #seen = 0;
  #notified = 0;
  /** Descriptors of exposed chains as they were when the index showed them, by head: place, then four words. */
  readonly #exposed = new Map<number, number[]>();

  constructor(options: CheckerOptions) {
    super();
    this.#options = options;
    this.#ring = new SplitBytes(options);
    this.#seen = options.begun & 0xffff;
    this.#notified = this.#seen;
    const { descriptors, driver, device } = options;
    if ((BASE + descriptors) % 16 || (BASE + driver) % 2 || (BASE + device) % 4)
      this.broken.add("SPLIT-LAYOUT-1");
    if (this.#ring.used[0] !== 0) this.broken.add("SPLIT-AVAILSUP-1");
  }

  look(_atRest = true): void {
    const ring = this.#ring;
    const { size, eventIdx } = this.#options;
    const flags = ring.available[0] ?? 0;
    if (eventIdx && flags !== 0) this.broken.add("SPLIT-USEDSUP-3");
    if (!eventIdx && flags > 1) this.broken.add("SPLIT-USEDSUP-1");
    const idx = ring.available[1] ?? 0;
    if (((idx - this.#seen) & 0xffff) + this.#exposed.size > size) {
      this.broken.add("SPLIT-AVAIL-1");
      return;
    }
    for (; this.#seen !== idx; this.#seen = (this.#seen + 1) & 0xffff)
      this.#expose(ring.available[2 + (this.#seen % size)] ?? 0);
  }

  #expose(head: number): void {
    const { size, indirect, inOrder, maxSegments } = this.#options;
    const ring = this.#ring;
    const snapshot: number[] = [];
    this.#exposed.set(head, snapshot);
    let i = head;
    let total = 0;
    let elements = 0;
    let writable = false;
    const element = (length: number, flags: number): void => {
      elements += 1;
      total += length;
      if ((flags & WRITE) !== 0) writable = true;
      else if (writable) this.broken.add("FRAMING-1");
    };
    for (let n = 0; ; n++) {
      if (n >= size) {
        this.broken.add("SPLIT-DESC-1").add("SPLIT-INDIRECT-3");
        return;
      }
      // A head that is not there, or a descriptor that says nothing: the index came before what it shows.
      const words = ring.descriptors.subarray(i * 4, i * 4 + 4);
      const [address = 0, , length = 0, flagsNext = 0] = words;
      if (words.length === 0 || length === 0) {
        this.broken.add("SPLIT-IDX-1");
        return;
      }
      snapshot.push(i, ...words);
      const flags = flagsNext & 0xffff;
      const next = flagsNext >>> 16;
      if ((flags & NEXT) !== 0 && inOrder && next !== (i + 1) % size)
        this.broken.add("SPLIT-DESC-2");
      if ((flags & INDIRECT) !== 0) {
        if (!indirect) this.broken.add("SPLIT-INDIRECT-1");
        if ((flags & NEXT) !== 0) this.broken.add("SPLIT-INDIRECT-4");
        const table = tableAt(this.#options, address, length);
        if (table === null || length > size * 16) this.broken.add("SPLIT-INDIRECT-3");
        else this.#walkTable(table, element);
        break;
      }
      element(length, flags);
      if ((flags & NEXT) === 0) break;
      i = next;
    }
    if (total > 0x1_0000_0000) this.broken.add("SPLIT-DESC-1");
    if (elements > Math.min(size, maxSegments)) this.broken.add("SPLIT-INDIRECT-3");
  }

  #walkTable(table: Uint32Array, element: (length: number, flags: number) => void): void {
    const entries = table.length / 4;
    for (let i = 0, n = 0; n < entries; n++) {
      const [, , length = 0, flagsNext = 0] = table.subarray(i * 4, i * 4 + 4);
      if (length === 0) this.broken.add("SPLIT-IDX-1");
      const next = flagsNext >>> 16;
      if ((flagsNext & INDIRECT) !== 0) this.broken.add("SPLIT-INDIRECT-2");
      element(length, flagsNext);
      if ((flagsNext & NEXT) === 0) return;
      if (this.#options.inOrder && next !== i + 1) this.broken.add("SPLIT-INDIRECT-5");
      i = next;
    }
    this.broken.add("SPLIT-DESC-1");
  }

  beforeUse(id: number): void {
    const snapshot = this.#exposed.get(id) ?? [];
    for (let at = 0; at < snapshot.length; at += 5) {
      const slot = snapshot[at] ?? 0;
      for (let k = 0; k < 4; k++)
        if (this.#ring.descriptors[slot * 4 + k] !== snapshot[at + 1 + k])
          this.broken.add("SPLIT-IDX-1");
    }
  }

  afterUse(id: number, length: number): void {
    this.#exposed.delete(id);
    this.gave(id, length);
  }

  notified(doorbells: readonly number[]): void {
    const ring = this.#ring;
    const { size, eventIdx } = this.#options;
    const now = ring.available[1] ?? 0;
    const added = (now - this.#notified) & 0xffff;
    if (added === 0) return;
    this.#notified = now;
    const rang = doorbells.length > 0;
    const byFlags = ((ring.used[0] ?? 0) & 1) === 0;
    const byEvent = ((now - (ring.used[2 + 4 * size] ?? 0) - 1) & 0xffff) < added;
    if (rang === (eventIdx ? byEvent : byFlags)) return;
    if (eventIdx) {
      this.broken.add(rang ? "SPLIT-AVAILSUP-7" : "SPLIT-AVAILSUP-6");
      if (rang === byFlags) this.broken.add("SPLIT-AVAILSUP-5");
    } else {
      this.broken.add(rang ? "SPLIT-AVAILSUP-3" : "SPLIT-AVAILSUP-4");
      if (rang === byEvent) this.broken.add("SPLIT-AVAILSUP-2");
    }
  }
}

/** The checker of packed rings. */
export class PackedChecker extends UsedLengths implements Checker {
  override readonly lengthClauses = [];
  override readonly spuriousClause = null;
  readonly #options: CheckerOptions;
  readonly #ring: PackedBytes;
  /** Where the next available descriptor will stand. */
  #at = 0;
  #wrap = true;
  /** Where the next used descriptor will stand. */
  #usedAt = 0;
  /** Descriptors that the device holds. */
  #held = 0;
  /** The id whose list exposed a place; -1 once a used descriptor of the device's stands for it. */
  readonly #owner: Int32Array;
  readonly #exposed = new Map<number, number[]>();

  constructor(options: CheckerOptions) {
    super();
    this.#options = options;
    this.#ring = new PackedBytes(options);
    this.#at = options.begun % options.size;
    this.#usedAt = this.#at;
    this.#wrap = Math.floor(options.begun / options.size) % 2 === 0;
    this.#owner = new Int32Array(options.size).fill(-1);
    const { descriptors, driver, device } = options;
    if ((BASE + descriptors) % 16 || (BASE + driver) % 4 || (BASE + device) % 4)
      this.broken.add("PACKED-LAYOUT-1");
  }

  /** Is the descriptor at `slot` available, in the round whose wrap counter is `wrap`? */
  #available(slot: number, wrap: boolean): boolean {
    const flags = this.#ring.flags(slot);
    return ((flags & AVAIL) !== 0) === wrap && ((flags & USED) !== 0) !== wrap;
  }

  look(atRest = true): void {
    while (this.#held < this.#options.size && this.#available(this.#at, this.#wrap))
      if (!this.#expose(atRest)) return;
    // All is held: a further descriptor made available would overwrite one of them.
  }

  #expose(atRest: boolean): boolean {
    const { size, indirect, maxSegments } = this.#options;
    const ring = this.#ring;
    let slot = this.#at;
    let wrap = this.#wrap;
    let elements = 0;
    let count = 0;
    let writable = false;
    const snapshot: number[] = [];
    const element = (flags: number): void => {
      elements += 1;
      if ((flags & WRITE) !== 0) writable = true;
      else if (writable) this.broken.add("PACKED-SG-3");
    };
    for (;;) {
      if (count >= size) {
        this.broken.add("PACKED-SG-2");
        return false;
      }
      if (count >= size - this.#held) {
        this.broken.add("PACKED-SG-5");
        return false;
      }
      if (!this.#available(slot, wrap)) {
        this.broken.add(atRest ? "PACKED-SG-4" : "PACKED-SG-6");
        return false;
      }
      const words = ring.descriptors.subarray(slot * 4, slot * 4 + 4);
      const [address = 0, , length = 0] = words;
      if (length === 0) this.broken.add("PACKED-FLAGS-1");
      const flags = ring.flags(slot);
      snapshot.push(slot, ...words);
      count += 1;
      if ((flags & INDIRECT) !== 0) {
        if (!indirect) this.broken.add("PACKED-INDIRECT-1");
        if ((flags & NEXT) !== 0 || count > 1) this.broken.add("PACKED-INDIRECT-4");
        const table = tableAt(this.#options, address, length);
        const entries = table === null ? 0 : table.length / 4;
        if (entries === 0 || entries > Math.min(size, maxSegments))
          this.broken.add("PACKED-INDIRECT-3");
        for (let i = 0; i < entries; i++) {
          const inTable = ((table as Uint32Array)[i * 4 + 3] ?? 0) >>> 16;
          if ((inTable & ~WRITE) !== 0) this.broken.add("PACKED-INDIRECT-2");
          if ((table as Uint32Array)[i * 4 + 2] === 0) this.broken.add("PACKED-FLAGS-1");
          element(inTable);
        }
      } else element(flags);
      const last = slot;
      slot += 1;
      if (slot === size) {
        slot = 0;
        wrap = !wrap;
      }
      if ((flags & NEXT) !== 0) continue;
      if (elements > maxSegments && (flags & INDIRECT) === 0) this.broken.add("PACKED-SG-1");
      const id = ring.id(last);
      if (this.#exposed.has(id)) this.broken.add("PACKED-FLAGS-1");
      this.#exposed.set(id, snapshot);
      for (let at = 0; at < snapshot.length; at += 5) this.#owner[snapshot[at] ?? 0] = id;
      this.#at = slot;
      this.#wrap = wrap;
      this.#held += count;
      return true;
    }
  }

  beforeUse(id: number): void {
    const snapshot = this.#exposed.get(id) ?? [];
    for (let at = 0; at < snapshot.length; at += 5) {
      const slot = snapshot[at] ?? 0;
      if (this.#owner[slot] !== id) continue;
      for (let k = 0; k < 4; k++) {
        const was = snapshot[at + 1 + k] ?? 0;
        const is = this.#ring.descriptors[slot * 4 + k] ?? 0;
        if (was === is) continue;
        // The AVAIL and USED bits moved: the place was taken for something else before the device marked it used.
        if (k === 3 && ((was ^ is) & ((AVAIL | USED) << 16)) !== 0)
          this.broken.add("PACKED-DESC-1");
        else this.broken.add("PACKED-DESC-2");
      }
    }
  }

  afterUse(id: number, length: number): void {
    const count = (this.#exposed.get(id)?.length ?? 0) / 5;
    this.#exposed.delete(id);
    // The used descriptor stands for as many places as the list had, whoever's these were.
    for (let n = 0; n < count; n++) {
      this.#owner[this.#usedAt] = -1;
      this.#usedAt = (this.#usedAt + 1) % this.#options.size;
    }
    this.#held -= count;
    this.gave(id, length);
  }

  notified(doorbells: readonly number[]): void {
    this.look(true);
    const next = this.#at | (this.#wrap ? 0x8000 : 0);
    for (const doorbell of doorbells) if (doorbell !== next) this.broken.add("PACKED-DESC-3");
  }
}

/** The checker of a rig's ring, whose traffic so far was `begun` chains of one descriptor. */
export function checkerOf({ place, mode, maxSegments, begun }: Rig): Checker {
  const options = { ...place, ...mode, begun, maxSegments: Math.min(maxSegments, mode.size) };
  return mode.format === "split" ? new SplitChecker(options) : new PackedChecker(options);
}

/** A rig whose device looks through the checker, and whose notify() is judged by it. */
export class CheckedRig {
  readonly checker: Checker;
  readonly rig: Rig;
  /** Chains given back and not yet dequeued, oldest first. */
  readonly #given: { readonly id: number; readonly length: number }[] = [];

  constructor(made: Rig) {
    this.rig = made;
    this.checker = checkerOf(made);
  }

  get faults(): readonly VirtioFault[] {
    return [...this.rig.driverFaults, ...this.rig.deviceFaults];
  }

  notify(driver: DriverEnd = this.rig.driver): void {
    const { doorbells } = this.rig;
    const before = doorbells.length;
    driver.notify();
    this.checker.notified(doorbells.slice(before));
  }

  take(): Chain | null {
    this.checker.look(true);
    return this.rig.device.take();
  }

  give(chain: Chain, written: number, device: DeviceEnd = this.rig.device): void {
    this.checker.beforeUse(chain.id);
    device.give(chain, written);
    this.checker.afterUse(chain.id, written);
    this.#given.push({ id: chain.id, length: written });
  }

  dequeue(driver: DriverEnd = this.rig.driver): number {
    const cookie = driver.dequeue();
    if (cookie >= 0) this.checker.completed(this.#given.shift()?.id ?? -1, driver.usedLength);
    return cookie;
  }
}

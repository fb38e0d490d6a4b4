// Finding every function of the machine, on bus 0 and behind bridges; and numbering the buses, which firmware would have done.

import { VirtioFault } from "@virtio/core";
import { PciBridgeRegister, PciRegister, PciStatus } from "@virtio/core/pci";
import type { Chipset } from "./chipset.js";

/** A function that is there. */
export interface Found {
  /** Routing id: bus number times 256, plus device number times 8, plus function number. */
  readonly rid: number;
  /** Its interrupt line; 0 when it has no interrupt pin. */
  readonly irq: number;
  /** For a bridge, the number of the bus behind it; 0 for none. */
  readonly secondary: number;
}

/** The host bridge, Intel's on both machines. */
const HOST_VENDOR_ID = 0x8086;
/** Walks in a row that a reset of the machine may spoil. */
const WALKS_MAX = 3;
const DEVICES = 32;
const FUNCTIONS = 8;
const BUSES = 256;
/** What configuration space reads where there is no function. */
const ABSENT = 0xffff;
/** Header type: the device has more than one function; and the layout of a bridge's header (PCI 3.0 §6.2.1). */
const MULTIFUNCTION = 0x80;
const LAYOUT = 0x7f;
const BRIDGE = 1;

/** PCI Express capability: its id, and in its first register the kind of port that the function is (PCI Express 5.0 §7.5.3.2). */
const EXPRESS_CAPABILITY = 0x10;
const ROOT_PORT = 4;
const DOWNSTREAM_PORT = 6;
/** Capabilities that fit configuration space: a list that is longer runs in a circle. */
const CAPABILITIES_MAX = 48;

/** A bus, as the walk comes to it. */
interface Bus {
  readonly number: number;
  /** Device numbers that can be in use. */
  readonly devices: number;
  /** Whether buses behind its bridges can still be given numbers. */
  readonly open: boolean;
  /** The line that an interrupt pin of a device on it drives. */
  readonly line: (device: number, pin: number) => number;
}

/** What is read of each function. */
interface Header {
  readonly rid: number;
  readonly type: number;
  readonly pin: number;
}

/** Numbers in a bridge's header: of the bus behind it, and of the last bus behind that. */
interface BusRange {
  readonly secondary: number;
  readonly subordinate: number;
}

/** What is behind a bridge. */
interface Behind {
  readonly secondary: number;
  readonly found: readonly Found[];
}

const NOTHING: Behind = { secondary: 0, found: [] };

const deviceOf = (rid: number): number => (rid >> 3) & 31;

/** The walk, and what it keeps from one time to the next. */
export class PciWalk {
  readonly #chipset: Chipset;
  /** By routing id of a bridge: whether just one device can be behind it. */
  readonly #links = new Map<number, boolean>();
  /** Highest bus number in use. */
  #last = 0;
  #visited = new Set<number>();
  /** Whether configuration space answered all along. */
  #answers = true;
  #walking: Promise<unknown> = Promise.resolve();

  constructor(chipset: Chipset) {
    this.#chipset = chipset;
  }

  /**
   * Every function, in order of routing ids. Function 0 of each device of a bus is one message, the others of those that have
   * more are another; bridges, if there are any, are a third. Bridges are numbered when they have no number: all of them at first
   * and after a reset of the machine; one that was plugged in since only when it is on bus 0, as behind another no number is left.
   * @throws VirtioFault CLOSED, TIMED_OUT, DEVICE_MISBEHAVED
   */
  functions(): Promise<readonly Found[]> {
    // One at a time: two would number the same bridges at once.
    const found = this.#walking.then(() => this.#walk());
    this.#walking = found.catch(() => {});
    return found;
  }

  async #walk(): Promise<readonly Found[]> {
    for (let n = 0; n < WALKS_MAX; n++) {
      this.#answers = true;
      const found = await this.#tree();
      if (this.#answers) return found;
      // The machine was reset, and who says so has not come through yet. What bridges said may be wrong too.
      this.#links.clear();
      await this.#chipset.setUp();
    }
    throw new VirtioFault("DEVICE_MISBEHAVED", "qemu: configuration space stops to answer");
  }

  async #tree(): Promise<readonly Found[]> {
    this.#last = 0;
    this.#visited = new Set();
    const { line } = this.#chipset;
    const root = { number: 0, devices: DEVICES, open: true, line: line.bind(this.#chipset) };
    const found = await this.#bus(root);
    const rids = new Set(found.map(({ rid }) => rid));
    for (const rid of this.#links.keys()) if (!rids.has(rid)) this.#links.delete(rid);
    return [...found].sort((a, b) => a.rid - b.rid);
  }

  async #bus(bus: Bus): Promise<readonly Found[]> {
    this.#visited.add(bus.number);
    const rid = (device: number, fn: number): number => (bus.number << 8) | (device << 3) | fn;
    const first = await this.#read(Array.from({ length: bus.devices }, (_, d) => rid(d, 0)));
    const several = first.filter(({ type }) => (type & MULTIFUNCTION) !== 0);
    const others = await this.#read(
      several.flatMap((of) => Array.from({ length: FUNCTIONS - 1 }, (_, fn) => of.rid | (fn + 1))),
    );
    const headers = [...first, ...others];
    const ranges = await this.#ranges(headers.filter(({ type }) => (type & LAYOUT) === BRIDGE));
    for (const { subordinate } of ranges.values()) this.#last = Math.max(this.#last, subordinate);
    const found: Found[] = [];
    for (const { rid, pin } of headers) {
      const irq = pin >= 1 && pin <= 4 ? bus.line(deviceOf(rid), pin) : 0;
      const range = ranges.get(rid);
      const behind = range === undefined ? NOTHING : await this.#behind(rid, range, bus);
      found.push({ rid, irq, secondary: behind.secondary }, ...behind.found);
    }
    return found;
  }

  /** Those of `rids` that are there. One message. */
  async #read(rids: readonly number[]): Promise<readonly Header[]> {
    const chipset = this.#chipset;
    const reads = Promise.all(
      rids.map(async (rid) => {
        const [vendor, type, pin] = await Promise.all([
          chipset.read(rid, PciRegister.VENDOR_ID, 2),
          chipset.read(rid, PciRegister.HEADER_TYPE, 1),
          chipset.read(rid, PciRegister.INTERRUPT_PIN, 1),
        ]);
        return { rid, vendor, type, pin };
      }),
    );
    const host = chipset.read(0, PciRegister.VENDOR_ID, 2);
    const [seen, hostVendor] = await Promise.all([reads, host]);
    // Read last: while the host bridge answers, so did everything before.
    if (hostVendor !== HOST_VENDOR_ID) this.#answers = false;
    return seen.filter(({ vendor }) => vendor !== ABSENT);
  }

  /** The numbers that bridges have, by routing id. One message. */
  async #ranges(bridges: readonly Header[]): Promise<ReadonlyMap<number, BusRange>> {
    const ranges = await Promise.all(
      bridges.map(async ({ rid }) => {
        const [secondary, subordinate] = await Promise.all([
          this.#chipset.read(rid, PciBridgeRegister.SECONDARY_BUS, 1),
          this.#chipset.read(rid, PciBridgeRegister.SUBORDINATE_BUS, 1),
        ]);
        return [rid, { secondary, subordinate }] as const;
      }),
    );
    return new Map(ranges);
  }

  /** The bus behind a bridge, numbered if need be, and its functions. */
  async #behind(rid: number, range: BusRange, parent: Bus): Promise<Behind> {
    const numbers = range.secondary === 0;
    if (numbers && (!parent.open || this.#last + 1 >= BUSES)) return NOTHING;
    const secondary = numbers ? ++this.#last : range.secondary;
    // What the registers hold leads to no bus twice: the walk ends.
    if (secondary <= parent.number || this.#visited.has(secondary)) return NOTHING;
    if (numbers)
      await Promise.all([
        this.#chipset.write(rid, PciBridgeRegister.PRIMARY_BUS, 1, parent.number),
        this.#chipset.write(rid, PciBridgeRegister.SECONDARY_BUS, 1, secondary),
        // All that follow lead here until it is known how many there are.
        this.#chipset.write(rid, PciBridgeRegister.SUBORDINATE_BUS, 1, BUSES - 1),
      ]);
    const device = deviceOf(rid);
    const found = await this.#bus({
      number: secondary,
      devices: (await this.#isLink(rid)) ? 1 : DEVICES,
      open: numbers,
      // A bridge turns the pins by the device number (PCI-to-PCI Bridge 1.2 §9.1).
      line: (behind, pin) => parent.line(device, ((behind + pin - 1) % 4) + 1),
    });
    if (numbers) await this.#chipset.write(rid, PciBridgeRegister.SUBORDINATE_BUS, 1, this.#last);
    return { secondary, found };
  }

  /** Whether what is behind a bridge is a PCI Express link, which has one device, number 0 (PCI Express 5.0 §7.3.1). */
  async #isLink(rid: number): Promise<boolean> {
    const known = this.#links.get(rid);
    if (known !== undefined) return known;
    const isLink = await this.#findLink(rid);
    this.#links.set(rid, isLink);
    return isLink;
  }

  async #findLink(rid: number): Promise<boolean> {
    const chipset = this.#chipset;
    const status = chipset.read(rid, PciRegister.STATUS, 2);
    let at = (await chipset.read(rid, PciRegister.CAPABILITIES, 1)) & 0xfc;
    if (((await status) & PciStatus.CAPABILITIES) === 0) return false;
    for (let n = 0; at !== 0 && n < CAPABILITIES_MAX; n++) {
      const word = await chipset.read(rid, at, 4);
      const kind = (word >>> 20) & 0xf;
      if ((word & 0xff) === EXPRESS_CAPABILITY)
        return kind === ROOT_PORT || kind === DOWNSTREAM_PORT;
      at = (word >>> 8) & 0xfc;
    }
    return false;
  }
}

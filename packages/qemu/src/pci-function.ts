// One PCI function of the machine.
import {
  type IoRegion,
  type PciAddress,
  type PciFunction,
  type PciInterrupts,
  VirtioFault,
} from "@virtio/core";
import { PciCommand, PciRegister } from "@virtio/core/pci";
import type { Chipset } from "./chipset.js";
import { QtestRegion } from "./io-region.js";
import { FunctionInterrupts, type InterruptSources } from "./pci-interrupts.js";
import type { QtestClient, Width } from "./qtest.js";

/** What the functions of one machine share. */
export interface FunctionParts {
  readonly qtest: QtestClient;
  readonly chipset: Chipset;
  readonly interrupts: InterruptSources;
  /** Resolves when the machine can no longer be used. */
  readonly lost: Promise<VirtioFault>;
}

/** A BAR as configuration space shows it (PCI 3.0 §6.2.5.1). */
interface Bar {
  readonly io: boolean;
  readonly wide: boolean;
  readonly address: number;
}

const BARS = 6;

/** Configuration space by ECAM or ports, BARs by qtest. */
export class QemuPciFunction implements PciFunction {
  readonly address: PciAddress;
  readonly interrupts: PciInterrupts;
  readonly gone: Promise<VirtioFault>;
  readonly #name: string;
  readonly #rid: number;
  readonly #parts: FunctionParts;
  /** By BAR: bytes it decodes. A device never changes them. */
  readonly #lengths = new Map<number, number>();
  /** Why it is no longer there; null while it is. */
  #gone: VirtioFault | null = null;
  #leave: (fault: VirtioFault) => void = () => {};

  /**
   * @param rid - its routing id
   * @param irq - its interrupt line; 0 when it has none
   */
  constructor(rid: number, irq: number, parts: FunctionParts) {
    const [bus, device, fn] = [rid >> 8, (rid >> 3) & 31, rid & 7];
    this.address = { domain: 0, bus, device, function: fn };
    this.#name = `pci0:${bus}:${device}:${fn}`;
    this.#rid = rid;
    this.#parts = parts;
    this.interrupts = new FunctionInterrupts(this.#name, irq, parts.interrupts);
    const takenOut = new Promise<VirtioFault>((resolve) => {
      this.#leave = resolve;
    });
    this.gone = Promise.race([parts.lost, takenOut]);
  }

  /** @throws VirtioFault INVALID, CLOSED, TIMED_OUT */
  async read(offset: number, width: 1 | 2 | 4): Promise<number> {
    this.#check(offset, width);
    return this.#parts.chipset.read(this.#rid, offset, width);
  }

  /** @throws VirtioFault INVALID, CLOSED, TIMED_OUT */
  async write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    this.#check(offset, width);
    if (!Number.isInteger(value) || value < 0 || value >= 2 ** (8 * width))
      throw new VirtioFault("INVALID", `${this.#name}: ${value} does not fit ${width} bytes`);
    return this.#parts.chipset.write(this.#rid, offset, width, value);
  }

  async mapBar(index: number): Promise<IoRegion> {
    if (!Number.isInteger(index) || index < 0 || index >= BARS)
      throw new VirtioFault("INVALID", `${this.#name}: BAR ${index} is not 0 to ${BARS - 1}`);
    const name = `BAR ${index} of ${this.#name}`;
    const [bar, command] = await Promise.all([
      this.#readBar(index, name),
      this.read(PciRegister.COMMAND, 2),
    ]);
    if (bar.address === 0) throw new VirtioFault("INVALID", `${name} holds no address`);
    const length = this.#lengths.get(index) ?? (await this.#size(index, bar, command));
    if (bar.address % length !== 0 || bar.address + length > (bar.io ? 0x1_0000 : 0x1_0000_0000))
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `${name}: 0x${bar.address.toString(16)} is no place for ${length} bytes`,
      );
    this.#lengths.set(index, length);
    const space = bar.io ? "io" : "memory";
    const gone = () => this.#gone;
    return new QtestRegion(this.#parts.qtest, { name, space, base: bar.address, length, gone });
  }

  /** The function is no longer there: its registers answer nothing, whoever comes to its address later. */
  takeOut(): void {
    this.#gone ??= new VirtioFault("CLOSED", `${this.#name} was taken out`);
    this.interrupts.release();
    this.#leave(this.#gone);
  }

  async #readBar(index: number, name: string): Promise<Bar> {
    const at = PciRegister.BAR0 + 4 * index;
    const [low, next] = await Promise.all([
      this.read(at, 4),
      index + 1 < BARS ? this.read(at + 4, 4) : Promise.resolve(0),
    ]);
    const io = (low & 1) !== 0;
    const wide = !io && (low & 6) === 4;
    if (wide && next !== 0)
      throw new VirtioFault("UNSUPPORTED", `${name} lies above 4 GiB: place it below`);
    return { io, wide, address: (low & (io ? ~3 : ~15)) >>> 0 };
  }

  /**
   * Writes ones and reads back which stay (PCI 3.0 §6.2.5.1), with decoding off meanwhile. All of it is one message, and QEMU does
   * nothing else in between.
   */
  async #size(index: number, { io, wide, address }: Bar, command: number): Promise<number> {
    const at = PciRegister.BAR0 + 4 * index;
    const steps = [
      this.write(PciRegister.COMMAND, 2, command & ~(PciCommand.IO | PciCommand.MEMORY)),
      this.write(at, 4, 0xffff_ffff),
    ];
    const mask = this.read(at, 4);
    steps.push(this.write(at, 4, address), this.write(PciRegister.COMMAND, 2, command));
    await Promise.all([mask, ...steps]);
    const stuck = ((await mask) & (io ? 0xfffc : ~15)) >>> 0;
    const length = io ? 0x1_0000 - stuck : 0x1_0000_0000 - stuck;
    if (stuck === 0 || !Number.isInteger(Math.log2(length)))
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `BAR ${index} of ${this.#name} (${wide ? "64" : "32"}-bit) answers 0x${stuck.toString(16)} to being sized`,
      );
    return length;
  }

  #check(offset: number, width: Width): void {
    if (this.#gone !== null) throw this.#gone;
    const { configSize } = this.#parts.chipset;
    const aligned = Number.isInteger(offset) && [1, 2, 4].includes(width) && offset % width === 0;
    if (!aligned || offset < 0 || offset + width > configSize)
      throw new VirtioFault(
        "INVALID",
        `${this.#name}: ${width} bytes at ${offset} of configuration space: not aligned within its ${configSize} bytes`,
      );
  }
}

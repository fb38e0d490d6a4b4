// The machine's PCI root: bus 0.
import type {
  AddressRange,
  DmaMemory,
  PciAddress,
  PciBus,
  PciFunction,
  TaskQueue,
} from "@virtio/core";
import { PciRegister } from "@virtio/core/pci";
import { type FunctionParts, QemuPciFunction } from "./pci-function.js";

const DEVICES = 32;
const FUNCTIONS = 8;
/** What configuration space reads where there is no function. */
const ABSENT = 0xffff;
/** Header type: the device has more than one function (PCI 3.0 §6.2.1). */
const MULTIFUNCTION = 0x80;

/** What the walk reads of one function. */
interface Found {
  readonly devfn: number;
  readonly vendor: number;
  readonly header: number;
  readonly pin: number;
}

/** Bus 0, walked by vendor id. */
export class QemuPciBus implements PciBus {
  readonly memory: DmaMemory;
  readonly tasks: TaskQueue;
  /** Clear of guest memory, ECAM, the interrupt controllers and the chipset's own ports. */
  readonly windows: { readonly memory: AddressRange; readonly io: AddressRange } = {
    memory: { base: 0xe000_0000, length: 0x1000_0000 },
    io: { base: 0xc000, length: 0x4000 },
  };
  /** Never called: this machine has no hot plug. */
  onChange: ((address: PciAddress, what: "added" | "removed") => void) | null = null;
  readonly #parts: FunctionParts;
  readonly #known = new Map<number, QemuPciFunction>();

  constructor(memory: DmaMemory, tasks: TaskQueue, parts: FunctionParts) {
    this.memory = memory;
    this.tasks = tasks;
    this.#parts = parts;
  }

  /** Nothing: QEMU's devices run in their own process. */
  poll(): void {}

  /**
   * Function 0 of all devices, then the others of those that have more: two messages at most. A function that was found before is
   * the same object again.
   * @throws VirtioFault CLOSED, TIMED_OUT
   */
  async functions(): Promise<readonly PciFunction[]> {
    const first = await this.#look(Array.from({ length: DEVICES }, (_, device) => device << 3));
    const several = first.filter(({ header }) => (header & MULTIFUNCTION) !== 0);
    const others = await this.#look(
      several.flatMap(({ devfn }) =>
        Array.from({ length: FUNCTIONS - 1 }, (_, fn) => devfn | (fn + 1)),
      ),
    );
    const present = [...first, ...others].sort((a, b) => a.devfn - b.devfn);
    for (const [devfn, known] of this.#known) {
      if (present.some((found) => found.devfn === devfn)) continue;
      known.takeOut();
      this.#known.delete(devfn);
    }
    return present.map((found) => this.#at(found));
  }

  /** Those of `devfns` that are there. One message. */
  async #look(devfns: readonly number[]): Promise<readonly Found[]> {
    const { chipset } = this.#parts;
    const seen = await Promise.all(
      devfns.map(async (devfn) => {
        const [vendor, header, pin] = await Promise.all([
          chipset.read(devfn, PciRegister.VENDOR_ID, 2),
          chipset.read(devfn, PciRegister.HEADER_TYPE, 1),
          chipset.read(devfn, PciRegister.INTERRUPT_PIN, 1),
        ]);
        return { devfn, vendor, header, pin };
      }),
    );
    return seen.filter(({ vendor }) => vendor !== ABSENT);
  }

  #at({ devfn, pin }: Found): QemuPciFunction {
    const known =
      this.#known.get(devfn) ?? new QemuPciFunction(devfn >> 3, devfn & 7, pin, this.#parts);
    this.#known.set(devfn, known);
    return known;
  }
}

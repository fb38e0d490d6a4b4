// Rules of finding a device's structures, and of reaching them through configuration space: virtio 1.4 §4.1.4, §4.1.5.1.1.
import { PciCapability, PciRegister, VirtioCapability } from "@virtio/core/pci";
import type { RuleBook } from "./rule-book.js";

/** A capability as it lies in configuration space. */
export interface ObservedCapability {
  readonly at: number;
  readonly length: number;
  readonly id: number;
  /** Of a vendor-specific capability: cfg_type. */
  readonly type: number;
  /** Of a virtio structure: where it lies. */
  readonly bar: number;
  readonly offset: number;
  readonly bytes: number;
}

/** What the rules need to know of a function. */
export interface ObservedLayout {
  readonly name: string;
  /** The device id is that of a modern device. */
  readonly modernId: boolean;
  readonly capabilities: readonly ObservedCapability[];
}

/** Fields of the vendor data capability: its vendor id, and what follows it (§4.1.4.8). Offsets. */
const VENDOR_ID_AT = 4;
const VENDOR_DATA_AT = 6;

const hex = (value: number): string => `0x${value.toString(16)}`;

/** Watches the configuration space of one function. */
export class LayoutRules {
  readonly #book: RuleBook;
  readonly #function: ObservedLayout;
  readonly #structures: readonly ObservedCapability[];
  /** Headers of capabilities that were read, and whether the list's pointer was. */
  readonly #seen = new Set<ObservedCapability>();
  readonly #identified = new Set<ObservedCapability>();
  #pointerRead = false;
  #statusRead = false;

  constructor(book: RuleBook, fn: ObservedLayout) {
    this.#book = book;
    this.#function = fn;
    this.#structures = fn.capabilities.filter(
      ({ id, type }) => id === PciCapability.VENDOR && type <= VirtioCapability.DEVICE,
    );
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#function.name, what);
  }

  /** A read of configuration space. */
  read(offset: number, width: number): void {
    const end = offset + width;
    if (offset <= PciRegister.CAPABILITIES && end > PciRegister.CAPABILITIES)
      this.#pointerRead = true;
    if (offset <= PciRegister.STATUS && end > PciRegister.STATUS) this.#statusRead = true;
    for (const capability of this.#function.capabilities) {
      const { at } = capability;
      if (offset >= at + capability.length || end <= at) continue;
      if (offset <= at) this.#seen.add(capability);
      if (!isVendorData(capability)) continue;
      if (offset <= at + VENDOR_ID_AT && end >= at + VENDOR_DATA_AT)
        this.#identified.add(capability);
      else if (end > at + VENDOR_DATA_AT) this.#vendorData(capability, "read");
    }
  }

  /** A write to configuration space; `writable`: what it hits may be written. */
  write(offset: number, width: number, writable: boolean): void {
    const end = offset + width;
    const hit = this.#function.capabilities.find(
      ({ id, at, length }) => id === PciCapability.VENDOR && offset < at + length && end > at,
    );
    if (hit !== undefined && isVendorData(hit)) {
      this.#vendorData(hit, "written");
      this.#check("PCI-VNDR-1", false, () => `vendor data at ${hex(offset)} is written`);
    } else
      this.#check(
        "PCI-CAP-8",
        hit === undefined || writable,
        () => `configuration write to ${hex(offset)} of a virtio capability`,
      );
  }

  #vendorData(capability: ObservedCapability, done: string): void {
    this.#check(
      "PCI-VNDR-2",
      this.#identified.has(capability),
      () => `vendor data at ${hex(capability.at)} is ${done} before its vendor id was read`,
    );
  }

  /** pci_cfg_data is accessed. */
  window(bar: number, offset: number, length: number): void {
    const what = (): string => `window of ${length} bytes at ${hex(offset)} of BAR ${bar}`;
    this.#check("PCI-CFGACC-1", [1, 2, 4].includes(length) && offset % length === 0, what);
    const inside = this.#structures.some(
      (s) => s.bar === bar && offset >= s.offset && offset + length <= s.offset + s.bytes,
    );
    this.#check("PCI-CFGACC-2", inside, what);
  }

  /** A register of an interface is accessed. */
  access(which: "modern" | "legacy"): void {
    const { modernId, capabilities } = this.#function;
    const searched =
      capabilities.length === 0
        ? this.#statusRead || this.#pointerRead
        : this.#pointerRead &&
          (this.#structures.some((s) => this.#seen.has(s)) ||
            capabilities.every((capability) => this.#seen.has(capability)));
    this.#check(
      modernId ? "PCI-DETECT-3" : "PCI-DETECT-1",
      searched,
      () => `a ${which} register is used before the capability list was walked`,
    );
    if (this.#structures.length === 0)
      this.#check(
        modernId ? "PCI-DETECT-4" : "PCI-DETECT-2",
        which === "legacy",
        () => "modern structures are used where no capability says that there are any",
      );
  }
}

const isVendorData = ({ id, type }: ObservedCapability): boolean =>
  id === PciCapability.VENDOR && type === VirtioCapability.VENDOR;

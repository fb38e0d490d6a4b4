// A virtio function that probe found, and how attach gets at its registers.
import {
  deviceTypeNames,
  type IoRegion,
  type PciBus,
  type PciFunction,
  VirtioFault,
  type VirtioNode,
} from "@virtio/core";
import {
  COMMON_CONFIG_SIZE_MIN,
  DEVICE_ID_LAST,
  LegacyDeviceConfig,
  MODERN_DEVICE_ID_BASE,
  MSIX_ENTRY_SIZE,
  PciRegister,
  TRANSITIONAL_DEVICE_ID_BASE,
  VIRTIO_VENDOR_ID,
  VirtioCapability,
} from "@virtio/core/pci";
import {
  type Capabilities,
  readCapabilities,
  type SharedMemoryCapability,
  type StructureCapability,
} from "./capabilities.js";
import { ConfigWindow } from "./config-window.js";
import { LegacyRegisters } from "./legacy-registers.js";
import { Msi, Msix } from "./messages.js";
import { ModernRegisters } from "./modern-registers.js";
import { field, type PciHeader, placeBars, readHeaders } from "./pci-bus.js";
import { Region } from "./region.js";
import type { VirtioRegisters } from "./registers.js";

/** A function's registers and its message-signalled interrupts, mapped. */
export interface Opened {
  readonly registers: VirtioRegisters;
  readonly msix: Msix | null;
  readonly msi: Msi | null;
}

/** A shared memory region: bytes at `offset` of a BAR. */
export type SharedMemory = Pick<SharedMemoryCapability, "id" | "bar" | "offset" | "length">;

/** How a function is driven. */
type Interface = "modern" | "legacy";

/** A structure the transport cannot do without: shortest length, alignment of its offset (virtio 1.4 §4.1.4). */
const needed = [
  { type: VirtioCapability.COMMON, length: COMMON_CONFIG_SIZE_MIN, align: 4 },
  { type: VirtioCapability.NOTIFY, length: 2, align: 2 },
  { type: VirtioCapability.ISR, length: 1, align: 1 },
] as const;

const LEGACY_BAR = 0;

/** Why a structure cannot be used, in FreeBSD's words; null when it can. */
function defect(cap: StructureCapability, header: PciHeader): string | null {
  const { length, align } = needed.find((n) => n.type === cap.type) ?? { length: 1, align: 4 };
  const name = `cap ${VirtioCapability[cap.type]}_CFG`;
  const bar = header.bars.find((b) => b.index === cap.bar);
  if (cap.length < length) return `${name} struct length ${cap.length} less than min ${length}`;
  if (cap.offset % align !== 0)
    return `${name} struct offset ${cap.offset} not aligned to ${align}`;
  if (bar === undefined) return `cannot find ${name} resource: there is no BAR ${cap.bar}`;
  if (cap.offset + length > bar.length)
    return `${name} struct of ${length} bytes at ${cap.offset} is not inside BAR ${cap.bar} of ${bar.length}`;
  return null;
}

const hex = (value: number, digits = 1): string => value.toString(16).padStart(digits, "0");

/** A virtio function on a PCI bus, its BARs placed, waiting for a driver. Made by {@link probe}, used by {@link attach}. */
export class PciNode implements VirtioNode {
  readonly type: number;
  readonly location: string;
  readonly description: string;
  readonly resources: string;
  readonly properties: Readonly<Record<"location" | "pnpinfo", string>>;
  readonly bus: PciBus;
  /** Whether a driver has it: one at a time. */
  attached = false;
  readonly #header: PciHeader;
  readonly #capabilities: Capabilities;
  readonly #interface: Interface;

  constructor(
    bus: PciBus,
    header: PciHeader,
    capabilities: Capabilities,
    type: number,
    by: Interface,
  ) {
    const { function: fn, bytes, bars } = header;
    const { domain, bus: number, device, function: index } = fn.address;
    this.bus = bus;
    this.#header = header;
    this.#capabilities = capabilities;
    this.#interface = by;
    this.type = type;
    this.location = `pci${domain}:${number}:${device}:${index}`;
    this.description = `VirtIO PCI (${by}) ${deviceTypeNames[type] ?? "Unknown"} adapter`;
    const ranges = (kind: "io" | "memory", name: string): string[] => {
      const list = bars.filter((bar) => bar.kind === kind && bar.length > 0 && bar.address > 0);
      const text = list.map(
        ({ address, length }) => `0x${hex(address)}-0x${hex(address + length - 1)}`,
      );
      return text.length === 0 ? [] : [`${name} ${text.join(",")}`];
    };
    this.resources = [
      ...ranges("io", "port"),
      ...ranges("memory", "mem"),
      `irq ${fn.interrupts.irq}`,
      `at device ${device}.${index}`,
    ].join(" ");
    this.properties = {
      location: `slot=${device} function=${index} dbsf=pci${domain}:${number}:${device}:${index}`,
      pnpinfo:
        `vendor=0x${hex(field(bytes, PciRegister.VENDOR_ID, 2), 8)} device=0x${hex(field(bytes, PciRegister.DEVICE_ID, 2), 4)} ` +
        `subvendor=0x${hex(field(bytes, PciRegister.SUBSYSTEM_VENDOR_ID, 2), 4)} device_type=0x${hex(type, 8)}`,
    };
  }

  get function(): PciFunction {
    return this.#header.function;
  }

  /** Shared memory regions of the device: number, and where each lies (virtio 1.4 §4.1.4.7). */
  get sharedMemory(): readonly SharedMemory[] {
    return this.#capabilities.sharedMemory;
  }

  /**
   * Maps what a driver of this function needs, each BAR once.
   * @param name - the device, for messages: `vtblk0`
   * @throws VirtioFault NOT_FOUND (no register of a needed kind), NO_SPACE (a BAR has no place and there is no window to it), CLOSED
   */
  async open(name: string): Promise<Opened> {
    const problem = this.#interface === "modern" ? this.#problem() : null;
    if (problem !== null) throw new VirtioFault("NOT_FOUND", problem, { device: name });
    const structures = this.#structures();
    const bars = await this.#map(structures.map(({ bar }) => bar));
    const { msix: capability, msi } = this.#capabilities;
    const table = capability === null ? undefined : bars.get(capability.bar);
    const tableLength = (capability?.vectors ?? 0) * MSIX_ENTRY_SIZE;
    // A table outside its BAR counts as no MSI-X, as FreeBSD has it.
    const msix =
      capability === null || table === undefined || capability.offset + tableLength > table.length
        ? null
        : new Msix(this.function, capability, new Region(table, capability.offset, tableLength));
    return {
      registers: this.#registers(structures, bars, msix, name),
      msix,
      msi: msi === null ? null : new Msi(this.function, msi),
    };
  }

  /** What is wrong with the first needed structure that cannot be used, or null. */
  #problem(): string | null {
    for (const { type } of needed) {
      const all = this.#capabilities.structures.filter((cap) => cap.type === type);
      const [first] = all;
      if (first === undefined) return `cannot find ${VirtioCapability[type]}_CFG capability`;
      if (all.every((cap) => defect(cap, this.#header) !== null))
        return defect(first, this.#header);
    }
    return null;
  }

  /** Of each type the first that is usable, which is the one the device likes best (§4.1.4.1). */
  #structures(): readonly StructureCapability[] {
    if (this.#interface === "legacy") return [];
    const types = [...needed.map(({ type }) => type), VirtioCapability.DEVICE];
    return types.flatMap(
      (type) =>
        this.#capabilities.structures.find(
          (cap) => cap.type === type && defect(cap, this.#header) === null,
        ) ?? [],
    );
  }

  /** The BARs of these structures and of the MSI-X table, by number. */
  async #map(wanted: readonly number[]): Promise<ReadonlyMap<number, IoRegion>> {
    const { msix, structures } = this.#capabilities;
    const window = structures.find((cap) => cap.type === VirtioCapability.PCI);
    const must = new Set(this.#interface === "legacy" ? [LEGACY_BAR] : wanted);
    const all = new Set([...must, ...(msix === null ? [] : [msix.bar])]);
    const mapped = await Promise.all(
      [...all].map(async (index): Promise<readonly [number, IoRegion] | null> => {
        const bar = this.#header.bars.find((b) => b.index === index);
        if (bar !== undefined && bar.address !== 0)
          return [index, await this.function.mapBar(index)];
        if (!must.has(index)) return null;
        if (bar !== undefined && window !== undefined && this.#interface === "modern")
          return [index, new ConfigWindow(this.function, window.at, index, bar.length)];
        throw (
          this.#header.unplaced ??
          new VirtioFault("NOT_FOUND", `${this.location} has no BAR ${index}`)
        );
      }),
    );
    return new Map(mapped.filter((entry) => entry !== null));
  }

  #registers(
    structures: readonly StructureCapability[],
    bars: ReadonlyMap<number, IoRegion>,
    msix: Msix | null,
    name: string,
  ): VirtioRegisters {
    if (this.#interface === "legacy") {
      const io = bars.get(LEGACY_BAR);
      if (io === undefined || io.length < LegacyDeviceConfig.WITHOUT_MSIX)
        throw new VirtioFault("NOT_FOUND", "cannot map I/O space", { device: name });
      return new LegacyRegisters(new Region(io, 0, io.length), msix, name);
    }
    const region = (type: VirtioCapability): Region | null => {
      const cap = structures.find((each) => each.type === type);
      const io = cap === undefined ? undefined : bars.get(cap.bar);
      if (cap === undefined || io === undefined) return null;
      // A length beyond the BAR is the device's affair: what lies in the BAR is what there is (§4.1.4.1).
      return new Region(io, cap.offset, Math.min(cap.length, io.length - cap.offset));
    };
    const common = region(VirtioCapability.COMMON);
    const notify = region(VirtioCapability.NOTIFY);
    const isr = region(VirtioCapability.ISR);
    if (common === null || notify === null || isr === null)
      throw new VirtioFault("NOT_FOUND", "cannot map configs", { device: name });
    return new ModernRegisters(
      {
        common,
        notify,
        notifyMultiplier:
          structures.find(({ type }) => type === VirtioCapability.NOTIFY)?.multiplier ?? 0,
        isr,
        device: region(VirtioCapability.DEVICE),
      },
      name,
    );
  }
}

/**
 * What a function is to virtio, or null when it is nothing (virtio 1.4 §4.1.2; FreeBSD's two probe routines). A modern function that
 * lacks what it needs is one all the same: whoever opens it is told what.
 */
function identify(
  header: PciHeader,
  capabilities: Capabilities,
  transitional: boolean,
): { readonly type: number; readonly by: Interface } | null {
  const { bytes } = header;
  const id = field(bytes, PciRegister.DEVICE_ID, 2);
  if (field(bytes, PciRegister.VENDOR_ID, 2) !== VIRTIO_VENDOR_ID) return null;
  if (id < TRANSITIONAL_DEVICE_ID_BASE || id > DEVICE_ID_LAST) return null;
  if (id >= MODERN_DEVICE_ID_BASE) return { type: id - MODERN_DEVICE_ID_BASE, by: "modern" };
  const type = field(bytes, PciRegister.SUBSYSTEM_ID, 2);
  const isModern = needed.every((need) =>
    capabilities.structures.some((cap) => cap.type === need.type && defect(cap, header) === null),
  );
  // Devices with a legacy interface have revision 0 (§4.1.2.3).
  const isLegacy = field(bytes, PciRegister.REVISION_ID, 1) === 0;
  return { type, by: isLegacy && !(transitional && isModern) ? "legacy" : "modern" };
}

/** Options of {@link probe}. */
export interface ProbeOptions {
  /** Drive a transitional device by its modern interface: `hw.virtio.pci.transitional`. Default true. */
  readonly transitional?: boolean;
}

/**
 * The virtio devices on a PCI bus, in bus, device, function order; their BARs are placed where no firmware placed them, and their
 * registers are not touched.
 * @throws VirtioFault CLOSED
 */
export async function probe(
  bus: PciBus,
  { transitional = true }: ProbeOptions = {},
): Promise<readonly PciNode[]> {
  const headers = [...(await readHeaders(bus))];
  const nodes: PciNode[] = [];
  for (const [i, header] of headers.entries()) {
    const capabilities = readCapabilities(header.bytes);
    const found = identify(header, capabilities, transitional);
    if (found === null) continue;
    const placed = await placeBars(bus, headers, header);
    headers[i] = placed;
    nodes.push(new PciNode(bus, placed, capabilities, found.type, found.by));
  }
  return nodes;
}

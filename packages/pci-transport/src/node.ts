// A virtio function that probe found, and the registers that attach drives it by.
import { deviceTypeNames, type PciBus, VirtioFault, type VirtioNode } from "@virtio/core";
import {
  COMMON_CONFIG_SIZE_MIN,
  DEVICE_ID_LAST,
  MODERN_DEVICE_ID_BASE,
  MSIX_ENTRY_SIZE,
  PciRegister,
  TRANSITIONAL_DEVICE_ID_BASE,
  VIRTIO_VENDOR_ID,
  VirtioCapability,
} from "@virtio/core/pci";
import {
  type Capabilities,
  type MsixCapability,
  readCapabilities,
  type StructureCapability,
} from "./capabilities.js";
import { field, type PciHeader, placeBars, readHeaders } from "./pci-bus.js";
import { Region } from "./region.js";

/** Mapped registers of a modern function. */
export interface ModernRegisters {
  readonly common: Region;
  readonly notify: Region;
  readonly notifyMultiplier: number;
  readonly isr: Region;
  /** Absent where the device type has no configuration. */
  readonly device: Region | null;
  readonly msix: { readonly capability: MsixCapability; readonly table: Region } | null;
}

/** A structure the transport cannot do without: shortest length, alignment of its offset (virtio 1.4 §4.1.4). */
const needed = [
  { type: VirtioCapability.COMMON, length: COMMON_CONFIG_SIZE_MIN, align: 4 },
  { type: VirtioCapability.NOTIFY, length: 2, align: 2 },
  { type: VirtioCapability.ISR, length: 1, align: 1 },
] as const;

const usable = (cap: StructureCapability, header: PciHeader): boolean => {
  const { length, align } = needed.find((n) => n.type === cap.type) ?? { length: 1, align: 4 };
  const bar = header.bars.find((b) => b.index === cap.bar);
  return (
    bar !== undefined &&
    cap.length >= length &&
    cap.offset % align === 0 &&
    cap.offset + length <= bar.length
  );
};

/** A modern virtio function on a PCI bus, its BARs placed, waiting for a driver. Made by {@link probe}, used by {@link attach}. */
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

  constructor(bus: PciBus, header: PciHeader, capabilities: Capabilities, type: number) {
    const { function: fn, bytes, bars } = header;
    const { domain, bus: number, device, function: index } = fn.address;
    const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");
    this.bus = bus;
    this.#header = header;
    this.#capabilities = capabilities;
    this.type = type;
    this.location = `pci${domain}:${number}:${device}:${index}`;
    this.description = `VirtIO PCI (modern) ${deviceTypeNames[type] ?? "Unknown"} adapter`;
    const ranges = (kind: "io" | "memory", name: string): string[] => {
      const list = bars.filter((bar) => bar.kind === kind && bar.length > 0);
      const text = list.map(
        ({ address, length }) => `0x${hex(address, 1)}-0x${hex(address + length - 1, 1)}`,
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

  get function(): PciHeader["function"] {
    return this.#header.function;
  }

  /** Maps what a driver of this function needs. @throws VirtioFault NOT_FOUND */
  async open(): Promise<ModernRegisters> {
    const map = async (cap: StructureCapability | undefined, name: string): Promise<Region> => {
      if (cap === undefined)
        throw new VirtioFault("NOT_FOUND", `cannot find ${name}_CFG capability`);
      const io = await this.function.mapBar(cap.bar);
      // A length beyond the BAR is the device's affair: what lies in the BAR is what there is (virtio 1.4 §4.1.4.1).
      return new Region(io, cap.offset, Math.min(cap.length, io.length - cap.offset));
    };
    const first = (type: VirtioCapability): StructureCapability | undefined =>
      this.#capabilities.structures.find((cap) => cap.type === type && usable(cap, this.#header));
    const notify = first(VirtioCapability.NOTIFY);
    const device = first(VirtioCapability.DEVICE);
    return {
      common: await map(first(VirtioCapability.COMMON), "COMMON"),
      notify: await map(notify, "NOTIFY"),
      notifyMultiplier: notify?.multiplier ?? 0,
      isr: await map(first(VirtioCapability.ISR), "ISR"),
      device: device === undefined ? null : await map(device, "DEVICE"),
      msix: await this.#openMsix(),
    };
  }

  async #openMsix(): Promise<ModernRegisters["msix"]> {
    const capability = this.#capabilities.msix;
    if (capability === null) return null;
    const bar = this.#header.bars.find((b) => b.index === capability.bar);
    const length = capability.vectors * MSIX_ENTRY_SIZE;
    // A table outside its BAR counts as no MSI-X, as FreeBSD has it.
    if (bar === undefined || capability.offset + length > bar.length) return null;
    return {
      capability,
      table: new Region(await this.function.mapBar(capability.bar), capability.offset, length),
    };
  }
}

/** The device type of a modern or transitional virtio function with the structures we need, or null (virtio 1.4 §4.1.2). */
function modernType(header: PciHeader, capabilities: Capabilities): number | null {
  const { bytes } = header;
  const id = field(bytes, PciRegister.DEVICE_ID, 2);
  if (field(bytes, PciRegister.VENDOR_ID, 2) !== VIRTIO_VENDOR_ID) return null;
  if (id < TRANSITIONAL_DEVICE_ID_BASE || id > DEVICE_ID_LAST) return null;
  if (
    !needed.every(({ type }) =>
      capabilities.structures.some((cap) => cap.type === type && usable(cap, header)),
    )
  )
    return null;
  return id >= MODERN_DEVICE_ID_BASE
    ? id - MODERN_DEVICE_ID_BASE
    : field(bytes, PciRegister.SUBSYSTEM_ID, 2);
}

/**
 * The virtio devices on a PCI bus, in bus, device, function order; their BARs are placed where no firmware placed them, and their
 * registers are not touched.
 * @throws VirtioFault NO_SPACE, CLOSED
 */
export async function probe(bus: PciBus): Promise<readonly PciNode[]> {
  const headers = [...(await readHeaders(bus))];
  const nodes: PciNode[] = [];
  for (const [i, header] of headers.entries()) {
    const capabilities = readCapabilities(header.bytes);
    const type = modernType(header, capabilities);
    if (type === null) continue;
    const placed = await placeBars(bus, headers, header);
    headers[i] = placed;
    nodes.push(new PciNode(bus, placed, capabilities, type));
  }
  return nodes;
}

// What pciconf -c says of each capability: the words of FreeBSD's pciconf(8). Register layouts: PCI 3.0 §6.7 and appendix H, PCI
// Express 3.0 §7.8, PCI Power Management 1.2 §3.2, virtio 1.4 §4.1.4.
import {
  MsiControl,
  MsixControl,
  PciCapability,
  PciRegister,
  VIRTIO_VENDOR_ID,
  VirtioCapability,
} from "@virtio/core/pci";
import { type ConfigRead, type PciConfig, words } from "./pci-config.js";

/** Capabilities that only pciconf looks at (PCI 3.0 appendix H and later assignments). */
export enum OtherCapability {
  POWER_MANAGEMENT = 0x01,
  AGP = 0x02,
  VPD = 0x03,
  PCI_X = 0x07,
  DEBUG_PORT = 0x0a,
  BRIDGE_SUBSYSTEM = 0x0d,
  EXPRESS = 0x10,
  SATA = 0x12,
  ADVANCED_FEATURES = 0x13,
  ENHANCED_ALLOCATION = 0x14,
}

/** Continues a capability on a new line, under the text after `cap 11[98] = `. */
const NEW_LINE = `\n${" ".repeat(17)}`;

const hex = (value: number, digits = 1): string => value.toString(16).padStart(digits, "0");
const plural = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;
/** The words whose bit is set. */
const flags = (value: number, ...words: (readonly [bit: number, word: string])[]): string =>
  words.map(([bit, word]) => ((value & bit) === 0 ? "" : word)).join("");
/** A BAR and an offset in it, as MSI-X packs them. */
const place = (word: number): string =>
  `map 0x${hex(PciRegister.BAR0 + (word & 7) * 4)}[0x${hex((word & ~7) >>> 0)}]`;

/**
 * Reads the capabilities, as far as they are printed and no further: of pci_cfg_data, and of a vendor's own data, a look may have
 * effects (virtio 1.4 §4.1.4.8, §4.1.4.9.2). Two round trips for each.
 */
export async function readCapabilities(config: PciConfig): Promise<void> {
  for (const at of config.capabilities()) {
    await config.read(words(at, 4));
    await config.read(bodyOf(config, at));
  }
}

/** Bytes of a capability that are printed, where these are more than its first word. */
const lengths: Readonly<Record<number, number>> = {
  [OtherCapability.POWER_MANAGEMENT]: 8,
  [OtherCapability.BRIDGE_SUBSYSTEM]: 8,
  [OtherCapability.EXPRESS]: 28,
  [PciCapability.MSIX]: 12,
};

/** The same of virtio's, by type. */
const virtioLengths: Readonly<Record<number, number>> = {
  [VirtioCapability.COMMON]: 16,
  [VirtioCapability.NOTIFY]: 20,
  [VirtioCapability.ISR]: 16,
  [VirtioCapability.DEVICE]: 16,
  // Without pci_cfg_data.
  [VirtioCapability.PCI]: 16,
  [VirtioCapability.SHARED_MEMORY]: 24,
};

function bodyOf(config: PciConfig, at: number): readonly ConfigRead[] {
  const id = config.get(at, 1);
  const virtio =
    id === PciCapability.VENDOR && config.get(PciRegister.VENDOR_ID, 2) === VIRTIO_VENDOR_ID;
  const type = config.get(at + 3, 1);
  if (virtio && type === VirtioCapability.VENDOR) return [[at + 4, 2]];
  const length = (virtio ? virtioLengths[type] : lengths[id]) ?? 4;
  return words(at + 4, length - 4);
}

/** `cap 11[98] = MSI-X supports 3 messages, enabled` and what belongs under it. */
export function describeCapability(config: PciConfig, at: number): string {
  const id = config.get(at, 1);
  const what = decoders[id]?.(config, at) ?? "unknown";
  return `cap ${hex(id, 2)}[${hex(at, 2)}] = ${what}`;
}

const decoders: Readonly<Record<number, (config: PciConfig, at: number) => string>> = {
  [OtherCapability.POWER_MANAGEMENT]: powerManagement,
  [OtherCapability.AGP]: () => "AGP",
  [OtherCapability.VPD]: () => "VPD",
  [PciCapability.MSI]: msi,
  [OtherCapability.PCI_X]: () => "PCI-X",
  [PciCapability.VENDOR]: vendor,
  [OtherCapability.DEBUG_PORT]: () => "EHCI Debug Port",
  [OtherCapability.BRIDGE_SUBSYSTEM]: (config, at) =>
    `PCI Bridge subvendor=0x${hex(config.get(at + 4, 2), 4)} subdevice=0x${hex(config.get(at + 6, 2), 4)}`,
  [OtherCapability.EXPRESS]: express,
  [PciCapability.MSIX]: msix,
  [OtherCapability.SATA]: () => "SATA Index-Data Pair",
  [OtherCapability.ADVANCED_FEATURES]: (config, at) =>
    `PCI Advanced Features:${flags(config.get(at + 3, 1), [2, " FLR"], [1, " TP"])}`,
  [OtherCapability.ENHANCED_ALLOCATION]: () => "PCI Enhanced Allocation",
};

function powerManagement(config: PciConfig, at: number): string {
  const supports = config.get(at + 2, 2);
  const states = flags(supports, [0x200, " D1"], [0x400, " D2"]);
  return `powerspec ${supports & 7}  supports D0${states} D3  current D${config.get(at + 4, 2) & 3}`;
}

function msi(config: PciConfig, at: number): string {
  const control = config.get(at + 2, 2);
  const features = flags(
    control,
    [MsiControl.ADDRESS_64, ", 64 bit"],
    [MsiControl.VECTOR_MASKING, ", vector masks"],
  );
  const capable = 2 ** ((control & MsiControl.MULTIPLE_CAPABLE) >> 1);
  const given = 2 ** ((control & MsiControl.MULTIPLE_ENABLE) >> 4);
  const enabled =
    (control & MsiControl.ENABLE) === 0 ? "" : `enabled with ${plural(given, "message")}`;
  // FreeBSD's blank stands even when nothing follows.
  return `MSI supports ${plural(capable, "message")}${features} ${enabled}`;
}

function msix(config: PciConfig, at: number): string {
  const control = config.get(at + 2, 2);
  const messages = plural((control & MsixControl.TABLE_SIZE) + 1, "message");
  const enabled = (control & MsixControl.ENABLE) === 0 ? "" : ", enabled";
  const [table, pending] = [config.get(at + 4, 4), config.get(at + 8, 4)];
  return `MSI-X supports ${messages}${enabled}${NEW_LINE}Table in ${place(table)}, PBA in ${place(pending)}`;
}

/**
 * `vendor (length 16)`, which is all that FreeBSD says of it. Of a virtio function a line of ours follows, in the form that MSI-X has:
 * the structure by the name that FreeBSD's virtio_pci gives it, and where it lies.
 */
function vendor(config: PciConfig, at: number): string {
  const length = config.get(at + 2, 1);
  const generic = `vendor (length ${length})`;
  if (config.get(PciRegister.VENDOR_ID, 2) !== VIRTIO_VENDOR_ID) return generic;
  const type: VirtioCapability = config.get(at + 3, 1);
  const name: string | undefined = VirtioCapability[type];
  if (name === undefined) return `${generic}${NEW_LINE}VirtIO type ${type}`;
  if (type === VirtioCapability.VENDOR)
    return `${generic}${NEW_LINE}VirtIO VENDOR_CFG of vendor 0x${hex(config.get(at + 4, 2), 4)}`;
  // 64 bits of offset and length; each is printed exactly.
  const wide = type === VirtioCapability.SHARED_MEMORY;
  const value = (low: number, high: number): string =>
    `0x${((wide ? BigInt(config.get(high, 4)) << 32n : 0n) | BigInt(config.get(low, 4))).toString(16)}`;
  const map = `map 0x${hex(PciRegister.BAR0 + config.get(at + 4, 1) * 4)}[${value(at + 8, at + 16)}]`;
  const extra =
    type === VirtioCapability.NOTIFY
      ? `, multiplier ${config.get(at + 16, 4)}`
      : wide
        ? `, id ${config.get(at + 5, 1)}`
        : "";
  return `${generic}${NEW_LINE}VirtIO ${name}_CFG in ${map}, length ${value(at + 12, at + 20)}${extra}`;
}

const portTypes: Readonly<Record<number, string>> = {
  0: "endpoint",
  1: "legacy endpoint",
  4: "root port",
  5: "upstream port",
  6: "downstream port",
  7: "PCI bridge",
  8: "PCI to PCIe bridge",
  9: "root endpoint",
  10: "event collector",
};
/** Gigatransfers a second by link speed. */
const speeds: readonly string[] = ["undef", "2.5", "5.0", "8.0", "16.0", "32.0", "64.0"];
const aspm: readonly string[] = ["disabled", "L0s", "L1", "L0s/L1"];
/** Milliwatts of a unit, by scale. */
const milliwatts: readonly number[] = [1000, 100, 10, 1];
/** The flag of a port that has a slot. */
const SLOT = 0x100;

function express(config: PciConfig, at: number): string {
  const control = config.get(at + 2, 2);
  const device = { supports: config.get(at + 4, 4), control: config.get(at + 8, 2) };
  const type = (control >> 4) & 15;
  const message = (control >> 9) & 31;
  const text = [
    `PCI-Express ${control & 15} ${portTypes[type] ?? `type ${type}`}`,
    message === 0 ? "" : ` MSI ${message}`,
    ` max data ${128 << ((device.control >> 5) & 7)}(${128 << (device.supports & 7)})`,
    (device.supports & 0x1000_0000) === 0 ? "" : " FLR",
    flags(device.control, [0x10, " RO"], [0x800, " NS"]),
    link(config, at),
    (control & SLOT) === 0 ? "" : slot(config, at),
  ];
  return text.join("");
}

function link(config: PciConfig, at: number): string {
  const supports = config.get(at + 12, 4);
  const control = config.get(at + 16, 2);
  const status = config.get(at + 18, 2);
  if (supports === 0 && status === 0) return "";
  const [width, widest] = [(status >> 4) & 63, (supports >> 4) & 63];
  const speed = (code: number): string => speeds[code & 15] ?? "undef";
  const power = (supports >> 10) & 3;
  return [
    `${NEW_LINE}link x${width}(x${widest})`,
    widest === 0 ? "" : ` speed ${width === 0 ? "0.0" : speed(status)}(${speed(supports)})`,
    power === 0 ? "" : ` ASPM ${aspm[control & 3]}(${aspm[power]})`,
    (supports & 0x4_0000) === 0
      ? ""
      : ` ClockPM ${(control & 0x100) === 0 ? "disabled" : "enabled"}`,
  ].join("");
}

function slot(config: PciConfig, at: number): string {
  const supports = config.get(at + 20, 4);
  const control = config.get(at + 24, 2);
  const status = config.get(at + 26, 2);
  const either = (bit: number, state: number, text: string, set: string, clear: string): string =>
    (supports & bit) === 0 ? "" : ` ${text}(${state === 0 ? clear : set})`;
  const power = ((supports >> 7) & 255) * (milliwatts[(supports >> 15) & 3] ?? 0);
  return [
    `${NEW_LINE}slot ${supports >>> 19} power limit ${power} mW`,
    either(0x40, status & 0x40, "HotPlug", "present", "empty"),
    flags(supports, [0x20, " surprise"], [0x1, " Attn Button"]),
    either(0x2, control & 0x400, "PC", "off", "on"),
    either(0x4, status & 0x20, "MRL", "open", "closed"),
    either(0x2_0000, status & 0x80, "EI", "engaged", "disengaged"),
  ].join("");
}

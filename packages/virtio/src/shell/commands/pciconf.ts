import type { PciAddress, PciFunction } from "@virtio/core";
import { MsixControl, PciCapability, PciRegister, PciStatus } from "@virtio/core/pci";
import type { Kernel } from "../../kernel.js";
import { type Command, getopt, UsageError } from "../command.js";
import { capabilityNames, classNames, deviceNames, vendorNames } from "./pci-names.js";

const CONFIG_SIZE = 256;
/** Capabilities are 4-byte aligned and lie past the 64-byte header: there cannot be more. */
const CAPABILITIES_MAX = (CONFIG_SIZE - 64) / 4;

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");

const selector = ({ domain, bus, device, function: fn }: PciAddress): string =>
  `pci${domain}:${bus}:${device}:${fn}`;

/** The first 256 bytes of a function's configuration space, in one round trip. */
async function readConfig(fn: PciFunction): Promise<DataView> {
  const words = await Promise.all(
    Array.from({ length: CONFIG_SIZE / 4 }, (_, i) => fn.read(i * 4, 4)),
  );
  const config = new DataView(new ArrayBuffer(CONFIG_SIZE));
  for (const [i, word] of words.entries()) config.setUint32(i * 4, word, true);
  return config;
}

/** The line that selects a function. */
function headline(driver: string, address: PciAddress, config: DataView): string {
  const u16 = (at: number): string => hex(config.getUint16(at, true), 4);
  const header = config.getUint8(PciRegister.HEADER_TYPE) & 0x7f;
  const subsystem = header === 0;
  return [
    `${driver}@${selector(address)}:`,
    `class=0x${hex(config.getUint32(PciRegister.REVISION_ID, true) >>> 8, 6)}`,
    `rev=0x${hex(config.getUint8(PciRegister.REVISION_ID), 2)}`,
    `hdr=0x${hex(header, 2)}`,
    `vendor=0x${u16(PciRegister.VENDOR_ID)}`,
    `device=0x${u16(PciRegister.DEVICE_ID)}`,
    `subvendor=0x${subsystem ? u16(PciRegister.SUBSYSTEM_VENDOR_ID) : "0000"}`,
    `subdevice=0x${subsystem ? u16(PciRegister.SUBSYSTEM_ID) : "0000"}`,
  ].join(" ");
}

/** The lines of -v: what is known by name. */
function names(config: DataView): readonly string[] {
  const vendor = config.getUint16(PciRegister.VENDOR_ID, true);
  const device = config.getUint16(PciRegister.DEVICE_ID, true);
  const [kind, subclasses] = classNames[config.getUint8(0x0b)] ?? [];
  const vendorName = vendorNames[vendor];
  const deviceName = deviceNames[hex(vendor, 4) + hex(device, 4)];
  const subclass = subclasses?.[config.getUint8(0x0a)];
  return [
    ...(vendorName === undefined ? [] : [`vendor     = '${vendorName}'`]),
    ...(deviceName === undefined ? [] : [`device     = '${deviceName}'`]),
    ...(kind === undefined ? [] : [`class      = ${kind}`]),
    ...(subclass === undefined ? [] : [`subclass   = ${subclass}`]),
  ];
}

/** The lines of -c. The list is the device's word: pointers are masked, and a loop ends. */
function capabilities(config: DataView): readonly string[] {
  if ((config.getUint16(PciRegister.STATUS, true) & PciStatus.CAPABILITIES) === 0) return [];
  const lines: string[] = [];
  let at = config.getUint8(PciRegister.CAPABILITIES) & 0xfc;
  for (let n = 0; at >= 64 && n < CAPABILITIES_MAX; n++) {
    const id = config.getUint8(at);
    lines.push(`cap ${hex(id, 2)}[${hex(at, 2)}] = ${describe(config, id, at)}`);
    at = config.getUint8(at + 1) & 0xfc;
  }
  return lines;
}

function describe(config: DataView, id: number, at: number): string {
  const name = capabilityNames[id] ?? "unknown";
  if (id === PciCapability.VENDOR) return `${name} (length ${config.getUint8(at + 2)})`;
  if (id !== PciCapability.MSIX || at + 12 > CONFIG_SIZE) return name;
  const control = config.getUint16(at + 2, true);
  const place = (offset: number): string => {
    const word = config.getUint32(at + offset, true);
    return `map 0x${hex(0x10 + (word & 7) * 4, 2)}[0x${hex((word & ~7) >>> 0, 1)}]`;
  };
  const messages = (control & MsixControl.TABLE_SIZE) + 1;
  const enabled = (control & MsixControl.ENABLE) === 0 ? "" : ", enabled";
  return `${name} supports ${messages} message${messages === 1 ? "" : "s"}${enabled}; table in ${place(4)}, PBA in ${place(8)}`;
}

/** Names of the drivers on functions, by address. */
function driversOf(kernel: Kernel): ReadonlyMap<string, string> {
  return new Map([...kernel.devices.walk()].map(({ address, name }) => [address, name]));
}

/** pciconf(8), of which there is `-l`: the functions of every PCI bus. */
export const pciconf: Command = {
  name: "pciconf",
  usage: "pciconf -l [-cv]",
  summary: "-l: list PCI functions; -v with names, -c with capabilities",
  async run(args, { kernel, out }) {
    const { flags, operands } = getopt(args, "clv");
    if (!flags.has("l") || operands.length > 0) throw new UsageError("");
    const drivers = driversOf(kernel);
    let none = 0;
    for (const bus of kernel.machine.buses) {
      if (bus.kind !== "pci") continue;
      for (const fn of await bus.bus.functions()) {
        const config = await readConfig(fn);
        const driver = drivers.get(selector(fn.address)) ?? `none${none++}`;
        out(`${headline(driver, fn.address, config)}\n`);
        if (flags.has("v")) for (const line of names(config)) out(`    ${line}\n`);
        if (flags.has("c")) for (const line of capabilities(config)) out(`    ${line}\n`);
      }
    }
    return 0;
  },
};

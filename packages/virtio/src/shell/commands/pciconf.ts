import { type IoRegion, type PciAddress, type PciFunction, VirtioFault } from "@virtio/core";
import { PciCommand, PciRegister } from "@virtio/core/pci";
import type { Kernel } from "../../kernel.js";
import { type Command, getopt, UsageError } from "../command.js";
import { describeCapability, OtherCapability, readCapabilities } from "./pci-capabilities.js";
import { PciConfig } from "./pci-config.js";
import { classNames, deviceNames, vendorNames } from "./pci-names.js";

/** BARs by header type: functions and PCI-to-PCI bridges. */
const BARS: Readonly<Record<number, number>> = { 0: 6, 1: 2 };

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");

const selector = ({ domain, bus, device, function: fn }: PciAddress): string =>
  `pci${domain}:${bus}:${device}:${fn}`;

const headerType = (config: PciConfig): number => config.get(PciRegister.HEADER_TYPE, 1) & 0x7f;

/** Where the ids of the subsystem lie: in the header of a function, in a capability of a bridge. */
function subsystemAt(config: PciConfig): number | null {
  if (headerType(config) === 0) return PciRegister.SUBSYSTEM_VENDOR_ID;
  for (const at of config.capabilities())
    if (config.get(at, 1) === OtherCapability.BRIDGE_SUBSYSTEM) return at + 4;
  return null;
}

/** The line that selects a function. */
function headline(driver: string, address: PciAddress, config: PciConfig): string {
  const id = (at: number): string => `0x${hex(config.get(at, 2), 4)}`;
  const subsystem = subsystemAt(config);
  const ids = [
    `class=0x${hex(config.get(PciRegister.REVISION_ID, 4) >>> 8, 6)}`,
    `rev=0x${hex(config.get(PciRegister.REVISION_ID, 1), 2)}`,
    `hdr=0x${hex(headerType(config), 2)}`,
    `vendor=${id(PciRegister.VENDOR_ID)}`,
    `device=${id(PciRegister.DEVICE_ID)}`,
    `subvendor=${subsystem === null ? "0x0000" : id(subsystem)}`,
    `subdevice=${subsystem === null ? "0x0000" : id(subsystem + 2)}`,
  ];
  return `${driver}@${selector(address)}:\t${ids.join(" ")}`;
}

/** The lines of -v: what is known by name. */
function names(config: PciConfig): readonly string[] {
  const vendor = config.get(PciRegister.VENDOR_ID, 2);
  const device = config.get(PciRegister.DEVICE_ID, 2);
  const [kind, subclasses] = classNames[config.get(0x0b, 1)] ?? [];
  const vendorName = vendorNames[vendor];
  const deviceName = deviceNames[hex(vendor, 4) + hex(device, 4)];
  const subclass = subclasses?.[config.get(0x0a, 1)];
  return [
    ...(vendorName === undefined ? [] : [`vendor     = '${vendorName}'`]),
    ...(deviceName === undefined ? [] : [`device     = '${deviceName}'`]),
    ...(kind === undefined ? [] : [`class      = ${kind}`]),
    ...(subclass === undefined ? [] : [`subclass   = ${subclass}`]),
  ];
}

/** The lines of -b: BARs that have a place. Their size is what the machine maps there: sizing one would stop the device for a moment. */
async function bars(fn: PciFunction, config: PciConfig): Promise<readonly string[]> {
  const command = config.get(PciRegister.COMMAND, 2);
  const lines: string[] = [];
  for (let index = 0; index < (BARS[headerType(config)] ?? 0); index++) {
    const register = PciRegister.BAR0 + index * 4;
    const low = config.get(register, 4);
    const io = (low & 1) !== 0;
    const wide = !io && (low & 6) === 4;
    const high = wide ? BigInt(config.get(register + 4, 4)) << 32n : 0n;
    const base = high | BigInt((low & (io ? ~3 : ~15)) >>> 0);
    const region = base === 0n ? null : await mapped(fn, index);
    if (region !== null) {
      const type = io ? "I/O Port" : (low & 8) === 0 ? "Memory" : "Prefetchable Memory";
      const on = (command & (io ? PciCommand.IO : PciCommand.MEMORY)) !== 0;
      lines.push(
        `bar   [${hex(register, 2)}] = type ${type}, range ${wide ? 64 : 32}, base 0x${base.toString(16)}, ` +
          `size ${region.length}, ${on ? "enabled" : "disabled"}`,
      );
    }
    if (wide) index += 1;
  }
  return lines;
}

/** The region of a BAR; null when the machine cannot reach it. */
async function mapped(fn: PciFunction, index: number): Promise<IoRegion | null> {
  try {
    return await fn.mapBar(index);
  } catch (fault) {
    if (fault instanceof VirtioFault && fault.code !== "CLOSED") return null;
    throw fault;
  }
}

/** The lines of -c. */
function capabilities(config: PciConfig): readonly string[] {
  return [...config.capabilities()].map((at) => describeCapability(config, at));
}

/** Names of the drivers on functions, by address. */
function driversOf(kernel: Kernel): ReadonlyMap<string, string> {
  return new Map([...kernel.devices.walk()].map(({ address, name }) => [address, name]));
}

/** pciconf(8), of which there is `-l`: the functions of every PCI bus. */
export const pciconf: Command = {
  name: "pciconf",
  usage: "pciconf -l [-bcv]",
  summary: "-l: list PCI functions; -v with names, -b with BARs, -c with capabilities",
  async run(args, { kernel, out }) {
    const { flags, operands } = getopt(args, "bclv");
    if (!flags.has("l") || operands.length > 0) throw new UsageError("");
    const drivers = driversOf(kernel);
    let none = 0;
    for (const bus of kernel.machine.buses) {
      if (bus.kind !== "pci") continue;
      for (const fn of await bus.bus.functions()) {
        const config = new PciConfig(fn);
        await config.readHeader();
        // The subsystem of a bridge is in its capabilities.
        if (flags.has("c") || headerType(config) !== 0) await readCapabilities(config);
        const driver = drivers.get(selector(fn.address)) ?? `none${none++}`;
        const lines = [
          ...(flags.has("v") ? names(config) : []),
          ...(flags.has("b") ? await bars(fn, config) : []),
          ...(flags.has("c") ? capabilities(config) : []),
        ];
        out(`${headline(driver, fn.address, config)}\n`);
        for (const line of lines) out(`    ${line}\n`);
      }
    }
    return 0;
  },
};

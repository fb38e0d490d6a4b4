// newbus: bus drivers find devices, leaf drivers take them, and each device prints its lines in its turn.
import {
  type AttachContext,
  type Attached,
  type BusDriver,
  type Driver,
  type DriverContext,
  Errno,
  type KernelModule,
  type Log,
  type Machine,
  type PciAddress,
  resolveTunables,
  type SysctlTree,
  type TunableSpec,
  type Tunables,
  VirtioFault,
  type VirtioNode,
} from "@virtio/core";
import { within } from "./bounded.js";
import { type DeviceNode, DeviceTree } from "./device-tree.js";
import { type KernelEnvironment, tunablePrefix } from "./kernel-environment.js";
import { HeldLines } from "./message-buffer.js";

/** Longest wait for one driver's detach, in milliseconds. */
const DETACH_LIMIT = 30_000;

/** What newbus needs of its kernel. */
export interface NewbusOptions {
  readonly machine: Machine;
  readonly environment: KernelEnvironment;
  readonly sysctl: SysctlTree;
  readonly log: Log;
  /** Whether lines of a verbose boot are printed. */
  readonly verbose: boolean;
  readonly publish: DriverContext["publish"];
  /** Does a change that a bus asks for when no other is under way, and not at all once the system goes down. */
  readonly change: (work: () => Promise<void>) => void;
}

/** A bus of the machine, and which bus drivers have looked at it. */
interface Bus {
  readonly bus: Machine["buses"][number];
  readonly device: DeviceNode;
  readonly seenBy: Set<BusDriver>;
}

/** A virtio device that a bus driver found. */
interface Transport {
  readonly bus: Bus;
  readonly busDriver: BusDriver;
  readonly found: VirtioNode;
  readonly device: DeviceNode;
  /** Its boot line, until it was printed. */
  bootLine: string | null;
  leaf: Leaf | null;
}

/** A driver on a transport. `attached` is null while it attaches. */
interface Leaf {
  readonly driver: Driver<Attached>;
  readonly device: DeviceNode;
  /** Takes back what the driver published. */
  readonly withdraw: () => void;
  attached: Attached | null;
}

/** `vtblk0: what happened`, once. */
const lineOf = (device: string, cause: unknown): string => {
  const message = cause instanceof Error ? cause.message : String(cause);
  return message.startsWith(`${device}: `) ? message : `${device}: ${message}`;
};

/** The machine's devices and their drivers. Calls must not overlap: the kernel sees to that. */
export class Newbus {
  readonly devices: DeviceTree = new DeviceTree();
  readonly #options: NewbusOptions;
  readonly #buses: Bus[] = [];
  #busDrivers: readonly BusDriver[] = [];
  #drivers: readonly Driver<Attached>[] = [];
  #transports: readonly Transport[] = [];

  constructor(options: NewbusOptions) {
    this.#options = options;
  }

  /** Puts the machine's buses into the tree, and follows what comes and goes on them. Once. */
  addBuses(): void {
    const { machine, log } = this.#options;
    const { root } = this.devices;
    for (const bus of machine.buses) {
      let device: DeviceNode;
      if (bus.kind === "pci") {
        const bridge = this.devices.add(root, "pcib", { description: "Host to PCI bridge" });
        log(`${bridge.name}: <${bridge.description}> on ${root.name}`);
        device = this.devices.add(bridge, "pci", { description: "PCI bus" });
        log(`${device.name}: <${device.description}> on ${bridge.name}`);
      } else {
        device = this.devices.add(root, bus.kind, { description: `${bus.kind} bus` });
        log(`${device.name}: <${device.description}> on ${root.name}`);
      }
      const entry: Bus = { bus, device, seenBy: new Set() };
      this.#buses.push(entry);
      if (bus.kind !== "pci") continue;
      bus.bus.onChange = (address, what) =>
        this.#options.change(() =>
          what === "added" ? this.#arrived(entry) : this.#left(entry, address),
        );
    }
  }

  /** Makes the drivers of modules known, lets bus drivers look at buses, and attaches what fits. */
  async add(modules: readonly KernelModule[]): Promise<void> {
    this.#busDrivers = [...this.#busDrivers, ...modules.flatMap((module) => module.busDrivers)];
    this.#drivers = [...this.#drivers, ...modules.flatMap((module) => module.drivers)];
    for (const bus of this.#buses)
      for (const busDriver of this.#busDrivers) {
        if (bus.seenBy.has(busDriver)) continue;
        bus.seenBy.add(busDriver);
        await this.#identify(bus, busDriver);
      }
    await this.#attachIdle(this.#transports);
  }

  /**
   * Detaches the devices of modules, last found first, and forgets their drivers; idle devices are offered to those that stay.
   * @throws VirtioFault what a driver's detach says; then the drivers stay.
   */
  async remove(modules: readonly KernelModule[]): Promise<void> {
    const buses = new Set(modules.flatMap((module) => module.busDrivers));
    const leaves = new Set(modules.flatMap((module) => module.drivers));
    for (const transport of this.#transports.toReversed()) {
      const { busDriver, leaf } = transport;
      if (leaf !== null && (buses.has(busDriver) || leaves.has(leaf.driver))) {
        await this.#detach(transport, leaf);
        this.#options.log(`${leaf.device.name}: detached`);
      }
      if (buses.has(busDriver)) this.#forget(transport.device);
    }
    this.#transports = this.#transports.filter(({ busDriver }) => !buses.has(busDriver));
    this.#busDrivers = this.#busDrivers.filter((driver) => !buses.has(driver));
    this.#drivers = this.#drivers.filter((driver) => !leaves.has(driver));
    for (const { seenBy } of this.#buses) for (const gone of buses) seenBy.delete(gone);
    await this.#attachIdle(this.#transports);
  }

  /** Detaches every device, last found first, as at halt: said in a verbose boot only. Goes on when one fails. @returns what failed. */
  async detachAll(): Promise<readonly VirtioFault[]> {
    const faults: VirtioFault[] = [];
    for (const transport of this.#transports.toReversed()) {
      if (transport.leaf === null) continue;
      const { name } = transport.leaf.device;
      try {
        await this.#detach(transport, transport.leaf);
        if (this.#options.verbose) this.#options.log(`${name}: detached`);
      } catch (cause) {
        const line = lineOf(name, cause);
        faults.push(
          new VirtioFault(cause instanceof VirtioFault ? cause.code : "IO", line, { cause }),
        );
      }
    }
    return faults;
  }

  /** A device was plugged in: what is new on the bus attaches, and what is there is left alone. */
  async #arrived(bus: Bus): Promise<void> {
    for (const busDriver of bus.seenBy)
      await this.#attachIdle(await this.#identify(bus, busDriver));
  }

  /** A device was taken out: its driver has nothing left to drive, and goes whatever it says. */
  async #left(bus: Bus, { domain, bus: number, device, function: fn }: PciAddress): Promise<void> {
    const location = `pci${domain}:${number}:${device}:${fn}`;
    const { log } = this.#options;
    for (const transport of this.#transports) {
      if (transport.bus !== bus || transport.found.location !== location) continue;
      const { leaf } = transport;
      if (leaf !== null) {
        try {
          await this.#detach(transport, leaf);
        } catch (cause) {
          log(lineOf(leaf.device.name, cause));
          this.#vacate(transport, leaf);
        }
        log(`${leaf.device.name}: detached`);
      }
      this.#transports = this.#transports.filter((each) => each !== transport);
      this.#forget(transport.device);
      log(`${transport.device.name}: detached`);
    }
  }

  /** Asks a bus driver for the devices of a bus. Of those it names, the ones that are not in the tree yet come into it. */
  async #identify(bus: Bus, busDriver: BusDriver): Promise<readonly Transport[]> {
    try {
      const nodes = await busDriver.identify(bus.bus, this.#tunablesOf(busDriver));
      const known = new Set(
        this.#transports
          .filter((each) => each.bus === bus && each.busDriver === busDriver)
          .map(({ found }) => found.location),
      );
      const found = nodes
        .filter(({ location }) => !known.has(location))
        .map((node) => this.#found(bus, busDriver, node));
      this.#transports = [...this.#transports, ...found];
      return found;
    } catch (cause) {
      this.#options.log(lineOf(busDriver.name, cause));
      return [];
    }
  }

  /** A bus driver's, before its devices have units: what is set for one unit says nothing here. */
  #tunablesOf({ name, tunables }: BusDriver): Tunables {
    return resolveTunables({
      prefix: tunablePrefix(name),
      specs: tunables,
      unit: -1,
      environment: this.#options.environment.values,
    });
  }

  #found(bus: Bus, busDriver: BusDriver, found: VirtioNode): Transport {
    const { device: parent } = bus;
    const { location, pnpinfo } = found.properties;
    const device = this.devices.add(parent, busDriver.name, {
      description: found.description,
      location,
      pnpinfo,
      address: found.location,
    });
    this.#publishFacts(device);
    const where = found.resources === "" ? "" : ` ${found.resources}`;
    const bootLine = `${device.name}: <${device.description}>${where} on ${parent.name}`;
    return { bus, busDriver, found, device, bootLine, leaf: null };
  }

  /** Gives each of these that is idle its driver and unit, in order; then all attach at once, and each prints in its turn. */
  async #attachIdle(transports: readonly Transport[]): Promise<void> {
    const turns: { readonly lines: HeldLines; readonly done: Promise<void> }[] = [];
    for (const transport of transports) {
      if (transport.leaf !== null) continue;
      const lines = new HeldLines(this.#options.log);
      if (transport.bootLine !== null) lines.log(transport.bootLine);
      transport.bootLine = null;
      const driver = this.#drivers.find(({ types }) => types.includes(transport.found.type));
      const done =
        driver === undefined ? Promise.resolve() : this.#attach(transport, driver, lines);
      turns.push({ lines, done });
    }
    for (const { lines, done } of turns) {
      await done;
      lines.release();
    }
  }

  /** Never rejects: a device that does not attach says so, and the others go on. */
  async #attach(transport: Transport, driver: Driver<Attached>, lines: HeldLines): Promise<void> {
    const device = this.devices.add(transport.device, driver.name, {
      description: driver.description,
      pnpinfo: `device_type=0x${transport.found.type.toString(16).padStart(8, "0")}`,
    });
    this.#publishFacts(device);
    lines.log(`${device.name}: <${device.description}> on ${transport.device.name}`);
    const published = new Set<() => void>();
    const withdraw = (): void => {
      for (const takeBack of published) takeBack();
    };
    const context: AttachContext = {
      ...this.#contextOf(device, lines, driver.name, driver.tunables, driver.options),
      cpus: this.#options.machine.cpus,
      announce: (line) => lines.log(line),
      publish: (what) => {
        const takeBack = this.#options.publish(what);
        const once = (): void => {
          if (published.delete(once)) takeBack();
        };
        published.add(once);
        return once;
      },
      transport: this.#contextOf(
        transport.device,
        lines,
        tunablePrefix(transport.busDriver.name),
        transport.busDriver.tunables,
      ),
    };
    const leaf: Leaf = { driver, device, withdraw, attached: null };
    transport.leaf = leaf;
    try {
      leaf.attached = await transport.busDriver.attach(transport.found, driver, context);
    } catch (cause) {
      const errno = cause instanceof VirtioFault ? Errno[cause.errno] : Errno.ENXIO;
      lines.log(lineOf(device.name, cause));
      lines.log(`device_attach: ${device.name} attach returned ${errno}`);
      this.#vacate(transport, leaf);
      return;
    }
    void leaf.attached.closed.then((fault) => {
      if (fault !== null) lines.log(lineOf(device.name, fault));
    });
  }

  #contextOf(
    { name, driver, unit }: DeviceNode,
    lines: HeldLines,
    prefix: string,
    specs: readonly TunableSpec[],
    options: Readonly<Record<string, number>> = {},
  ): AttachContext["transport"] {
    const { environment, sysctl, verbose } = this.#options;
    const log: Log = (line) => lines.log(`${name}: ${line}`);
    return {
      name,
      unit,
      tunables: resolveTunables({
        prefix,
        specs,
        unit,
        options,
        environment: environment.values,
      }),
      sysctl: sysctl.node("dev", "").node(driver, "").node(String(unit), ""),
      log,
      verbose: verbose ? log : () => {},
    };
  }

  async #detach(transport: Transport, leaf: Leaf): Promise<void> {
    const { name } = leaf.device;
    const { machine } = this.#options;
    if (leaf.attached !== null)
      await within(machine.tasks, DETACH_LIMIT, `${name}: detach`, leaf.attached.detach());
    this.#vacate(transport, leaf);
  }

  /** The transport is idle again. */
  #vacate(transport: Transport, leaf: Leaf): void {
    leaf.withdraw();
    transport.leaf = null;
    this.#forget(leaf.device);
  }

  #forget(device: DeviceNode): void {
    this.#options.sysctl.remove(`dev.${device.driver}.${device.unit}`);
    this.devices.remove(device);
  }

  /** The leaves that every device has: dev.vtblk.0.%desc and so on. */
  #publishFacts({ driver, unit, description, location, pnpinfo, parent }: DeviceNode): void {
    const node = this.#options.sysctl.node("dev", "").node(driver, "").node(String(unit), "");
    node.value("%desc", "device description", () => description);
    node.value("%driver", "device driver name", () => driver);
    node.value("%location", "device location relative to parent", () => location);
    node.value("%pnpinfo", "device identification", () => pnpinfo);
    node.value("%parent", "parent device", () => parent?.name ?? "");
  }
}

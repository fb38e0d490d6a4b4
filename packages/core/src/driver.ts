// Drivers and modules as data (FreeBSD's newbus and KLD).
import type { Attached } from "./attached.js";
import type { VirtioDevice } from "./device.js";
import type { Disk } from "./disk.js";
import type { FeatureName } from "./features.js";
import type { Machine } from "./machine.js";
import type { NetworkInterface } from "./network.js";
import type { ScsiBus } from "./scsi-bus.js";
import type { Port } from "./streams.js";
import type { SysctlNode } from "./sysctl.js";
import type { TunableSpec, Tunables } from "./tunables.js";

/** One dmesg line, without the device's name in front. */
export type Log = (line: string) => void;

/** What a driver offers to the rest of the system. */
export type Published = Disk | NetworkInterface | Port | ScsiBus;

/** What a driver may read and publish. Every member has a default, so a driver works without the umbrella. */
export interface DriverContext {
  /** `vtblk0` */
  readonly name: string;
  readonly unit: number;
  /** The machine's, not this computer's. */
  readonly cpus: number;
  readonly tunables: Tunables;
  /** `dev.vtblk.0` */
  readonly sysctl: SysctlNode;
  readonly log: Log;
  /** Lines of a verbose boot only (boot_verbose). */
  readonly verbose: Log;
  /** One dmesg line as it is: of what sits on the device under a name of its own (xpt_announce_periph). */
  readonly announce: Log;
  /** Makes a disk, interface, port or SCSI bus known by its name (disk_create, if_attach, tty_makedev); call what it returns to take it back. */
  readonly publish: (what: Published) => () => void;
}

/** What a transport's `attach` takes: the driver's context, and the same for the transport's own node. */
export interface AttachContext extends DriverContext {
  /** `virtio_pci0`: its name, log, sysctl tree and tunables. */
  readonly transport: Omit<DriverContext, "announce" | "cpus" | "publish">;
}

/** A leaf driver: data, and one function. Made by a factory with documented options: `vtblk({ writecacheMode: 1 })`. */
export interface Driver<T extends Attached> {
  /** `vtblk` */
  readonly name: string;
  /** `VirtIO Block Adapter` */
  readonly description: string;
  /** DeviceType */
  readonly types: readonly number[];
  /** Names that dmesg prints for the feature bits of these types. */
  readonly features: readonly FeatureName[];
  /** `writecache_mode`: read as `hw.vtblk.writecache_mode` and `hw.vtblk.X.writecache_mode`. */
  readonly tunables: readonly TunableSpec[];
  /** Values given to the factory, by tunable name. */
  readonly options: Readonly<Record<string, number>>;
  /** From the state DRIVER to all queues and interrupts set up. Throws: the transport sets FAILED and resets. */
  attach(device: VirtioDevice, context: DriverContext): Promise<T>;
}

/** A virtio device that a bus driver found and no leaf driver has yet. */
export interface VirtioNode {
  /** DeviceType */
  readonly type: number;
  /** `pci0:0:4:0` */
  readonly location: string;
  /** `VirtIO PCI (modern) Block adapter` */
  readonly description: string;
  /** What a boot line says between description and parent: `mem 0xfe000000-0xfe000fff irq 21 at device 4.0`. */
  readonly resources: string;
  /** newbus leaves of the transport node: `%location`, `%pnpinfo`, by name without the percent sign. */
  readonly properties: Readonly<Record<"location" | "pnpinfo", string>>;
}

/** A transport: finds devices on the buses of one kind and runs the life cycle of a driver on each. */
export interface BusDriver {
  /** `virtio_pci` */
  readonly name: string;
  readonly tunables: readonly TunableSpec[];
  /**
   * Devices on one of the machine's buses, in bus order; none when the bus is not of this driver's kind.
   * @param tunables - this driver's own, `hw.virtio.pci.transitional`
   */
  identify(bus: Machine["buses"][number], tunables: Tunables): Promise<readonly VirtioNode[]>;
  /** ACKNOWLEDGE, DRIVER, the driver's attach, DRIVER_OK, started; FAILED and reset when attach fails. */
  attach<T extends Attached>(
    node: VirtioNode,
    driver: Driver<T>,
    context: AttachContext,
  ): Promise<T>;
}

/** A loadable module, as data. Anyone may publish one. */
export interface KernelModule {
  /** `if_vtnet`: KLD file, the name in loader.conf and kldload. */
  readonly file: string;
  /** `vtnet`: the module inside, the `device` of a kernel configuration. */
  readonly name: string;
  readonly version: number;
  /** Module names; virtio_pci is not one of a device driver's. */
  readonly depends: readonly string[];
  readonly drivers: readonly Driver<Attached>[];
  readonly busDrivers: readonly BusDriver[];
}

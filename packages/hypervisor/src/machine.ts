// The embedded machine: memory, a PCI root and device models, all in this thread.
import {
  type DeviceSpec,
  DmaWindow,
  deviceKinds,
  GuestRegions,
  type InterruptCounter,
  type Machine,
  type PciAddress,
  type PciBus,
  parseDeviceSpec,
  ReservedFeature,
  type TaskQueue,
  VirtioFault,
} from "@virtio/core";
import { balloonKind, type EmbeddedBalloonSpec } from "./balloon-device.js";
import { blkKind, type EmbeddedBlkSpec } from "./blk-device.js";
import { consoleKind, type EmbeddedConsoleSpec } from "./console-device.js";
import type { DeviceKind } from "./device-kind.js";
import type { OpenImage } from "./medium.js";
import type { OpenNet } from "./net-backend.js";
import { type EmbeddedNetSpec, netKind } from "./net-device.js";
import type { Distortion } from "./pci/distortion.js";
import { PciRoot } from "./pci/root.js";
import type { InterfaceKind } from "./pci/virtio-device.js";
import { VirtioFunction } from "./pci/virtio-function.js";
import type { RuleBook } from "./rules/rule-book.js";
import { Scheduler } from "./scheduler.js";
import { type EmbeddedScsiSpec, scsiKind } from "./scsi-device.js";

/** A device as one says which: in the language of specifications, or as an object. */
export type EmbeddedDevice = string | EmbeddedSpec;

type EmbeddedSpec =
  | DeviceSpec
  | EmbeddedBlkSpec
  | EmbeddedNetSpec
  | EmbeddedBalloonSpec
  | EmbeddedConsoleSpec
  | EmbeddedScsiSpec;

/** The devices that the machine can have. */
const kinds: Readonly<Record<EmbeddedSpec["kind"], DeviceKind>> = {
  blk: blkKind,
  net: netKind,
  balloon: balloonKind,
  console: consoleKind,
  scsi: scsiKind,
};

function kindOf({ kind }: EmbeddedSpec): DeviceKind {
  if (Object.hasOwn(kinds, kind)) return kinds[kind];
  throw new VirtioFault(
    "UNSUPPORTED",
    `device ${kind}: the embedded machine has none (there is: ${Object.keys(kinds).join(", ")})`,
  );
}

/** How an embedded machine is made. */
export interface EmbeddedOptions {
  /** Default: one of each kind. */
  readonly devices?: readonly EmbeddedDevice[];
  /** The guest's CPUs; default 8. */
  readonly cpus?: number;
  /** Bytes of memory; default 128 MiB. */
  readonly memory?: number;
  /** A SharedArrayBuffer, so that worker threads see guest memory. Default false. */
  readonly shared?: boolean;
  /** Opens an image file: `openImage` of `@virtio/hypervisor/node`, where there are files. */
  readonly open?: OpenImage;
  /** Opens a wire that is not of this machine: `openNetBackend` of `@virtio/hypervisor/node`, where there are files and sockets. */
  readonly openNet?: OpenNet;
  /** Virtual time and a drawn, replayable order of work; for tests. */
  readonly seed?: number;
  /** Functions have MSI too: `vectors=0` leaves it as their only kind of message. Default false, as QEMU's virtio functions have none. */
  readonly msi?: boolean;
  /** Functions that are not laid out as usual; for tests. */
  readonly distort?: Distortion;
  /** What drivers do is checked against it. */
  readonly rules?: RuleBook;
  /** Lines for the log. Default: nowhere. */
  readonly log?: (line: string) => void;
}

/** Guest memory begins here: an address is never an offset by accident. */
const MEMORY_BASE = 0x10_0000;
const DEFAULT_MEMORY = 128 << 20;
const DEFAULT_CPUS = 8;
const DEFAULT_QUEUE_SIZE = 256;

/**
 * Makes a machine.
 * @throws VirtioFault INVALID, UNSUPPORTED for a specification it cannot honour; what `open` throws
 */
export async function embedded(options: EmbeddedOptions = {}): Promise<EmbeddedMachine> {
  const {
    devices = deviceKinds,
    cpus = DEFAULT_CPUS,
    memory: length = DEFAULT_MEMORY,
    shared = false,
    rules = null,
    log = () => {},
  } = options;
  const specs = devices.map(specOf);
  for (const spec of specs) refuseWhatIsNotThere(spec);

  const scheduler = new Scheduler(options.seed === undefined ? {} : { seed: options.seed });
  const tasks = scheduler.lane();
  const buffer = shared ? new SharedArrayBuffer(length) : new ArrayBuffer(length);
  const memory = new DmaWindow(buffer, { base: MEMORY_BASE });
  const guest = new GuestRegions([{ address: MEMORY_BASE, length, bytes: new Uint8Array(buffer) }]);
  const root = new PciRoot({ memory, tasks, poll: () => scheduler.step(tasks), log });

  /** Devices of each kind there ever were: blk0, net0, blk1. */
  const made = new Map<string, number>();
  const make = async (spec: EmbeddedSpec): Promise<VirtioFunction> => {
    const ordinal = made.get(spec.kind) ?? 0;
    made.set(spec.kind, ordinal + 1);
    const name = `${spec.kind}${ordinal}`;
    const model = await kindOf(spec).make(spec, {
      name,
      ordinal,
      queueSize: spec.queueSize ?? DEFAULT_QUEUE_SIZE,
      openImage: options.open,
      openNet: options.openNet,
    });
    try {
      return new VirtioFunction({
        model,
        kind: interfaces[spec.legacy ?? "off"],
        root,
        memory: guest,
        tasks: scheduler.lane(),
        outside: (work) => scheduler.outside(work),
        queueSize: spec.queueSize ?? DEFAULT_QUEUE_SIZE,
        // One for configuration changes, and one for each queue.
        vectors: spec.vectors ?? 1 + model.queues,
        msi: options.msi ?? false,
        reservedFeatures: reservedFeatures(spec),
        distort: options.distort ?? {},
        rules,
      });
    } catch (error) {
      await model.close();
      throw error;
    }
  };
  const functions = new Set<VirtioFunction>();
  const powerOff = (): void => scheduler.close();
  const machine = new EmbeddedMachine({ cpus, memory, tasks, root, functions, make, powerOff });
  try {
    for (const spec of specs) functions.add(await make(spec));
  } catch (error) {
    await machine.close();
    throw error;
  }
  return machine;
}

/** What a machine is made of. */
interface EmbeddedParts {
  readonly cpus: number;
  readonly memory: DmaWindow;
  readonly tasks: TaskQueue;
  readonly root: PciRoot;
  /** Those on the root. */
  readonly functions: Set<VirtioFunction>;
  /** Makes a device, on the root. */
  readonly make: (spec: EmbeddedSpec) => Promise<VirtioFunction>;
  /** Ends what the machine started, when its devices are closed. */
  readonly powerOff: () => void;
}

/** A machine whose devices live in this thread. Made by {@link embedded}. */
export class EmbeddedMachine implements Machine {
  readonly name = "embedded";
  readonly cpus: number;
  readonly memory: DmaWindow;
  readonly tasks: TaskQueue;
  readonly buses: readonly [{ readonly kind: "pci"; readonly bus: PciBus }];
  readonly #root: PciRoot;
  readonly #make: EmbeddedParts["make"];
  readonly #powerOff: () => void;
  readonly #functions: Set<VirtioFunction>;
  #closing: Promise<void> | null = null;

  /** @internal */
  constructor({ cpus, memory, tasks, root, functions, make, powerOff }: EmbeddedParts) {
    this.cpus = cpus;
    this.memory = memory;
    this.tasks = tasks;
    this.buses = [{ kind: "pci", bus: root }];
    this.#root = root;
    this.#functions = functions;
    this.#make = make;
    this.#powerOff = powerOff;
  }

  /**
   * Puts a device into the first free slot while the machine runs. `PciBus.onChange` says "added" as a task of the machine.
   * @returns its address
   * @throws VirtioFault INVALID, UNSUPPORTED for a specification the machine cannot honour; NO_SPACE without a free slot; CLOSED;
   * what `open` throws
   */
  async plug(device: EmbeddedDevice): Promise<PciAddress> {
    const spec = specOf(device);
    refuseWhatIsNotThere(spec);
    const closed = (): VirtioFault => new VirtioFault("CLOSED", "the machine is closed");
    if (this.#closing !== null) throw closed();
    const fn = await this.#make(spec);
    // The machine may have been closed while its file was opened.
    if (this.#closing !== null) {
      await fn.close();
      throw closed();
    }
    this.#functions.add(fn);
    this.#changed(fn.address, "added");
    return fn.address;
  }

  /**
   * Takes a device out while the machine runs, whatever its driver is doing. From this call on its configuration space and BARs read
   * all ones, writes to them vanish, it sends no interrupt, `functions()` does not list it, and its `gone` resolves with CLOSED.
   * `PciBus.onChange` says "removed" as a task of the machine. The slot is free for another device. A request that a backend is
   * still working on ends, unseen, in the memory the driver gave it: a driver reuses that only after a reset that reads back
   * complete, which here none does.
   * @returns when the device has nothing more to do and its backend is closed
   * @throws VirtioFault NOT_FOUND when no device is there
   */
  async unplug(address: PciAddress): Promise<void> {
    const { domain, bus, device: slot, function: index } = address;
    const at = (fn: VirtioFunction): boolean =>
      domain === 0 && bus === 0 && index === 0 && fn.address.device === slot;
    const fn = [...this.#functions].find(at);
    const name = `pci${domain}:${bus}:${slot}:${index}`;
    if (fn === undefined) throw new VirtioFault("NOT_FOUND", `no device at ${name}`);
    this.#functions.delete(fn);
    const closed = fn.remove(new VirtioFault("CLOSED", `the device at ${name} was taken out`));
    this.#changed(fn.address, "removed");
    await closed;
  }

  #changed(address: PciAddress, what: "added" | "removed"): void {
    this.tasks.enqueue(() => this.#root.onChange?.(address, what));
  }

  interrupts(): readonly InterruptCounter[] {
    return this.#root.interrupts();
  }

  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    this.#root.close(new VirtioFault("CLOSED", "the machine is closed"));
    await Promise.all([...this.#functions].map((fn) => fn.close()));
    this.#powerOff();
  }
}

const specOf = (device: EmbeddedDevice): EmbeddedSpec =>
  typeof device === "string" ? parseDeviceSpec(device) : device;

/** Interfaces of a function by the key `legacy`. */
const interfaces: Readonly<Record<NonNullable<DeviceSpec["legacy"]>, InterfaceKind>> = {
  off: "modern",
  on: "legacy",
  transitional: "transitional",
};

/** A key that is not honoured is an error, never ignored. */
function refuseWhatIsNotThere(spec: EmbeddedSpec): void {
  const refuse = (what: string): never => {
    throw new VirtioFault("UNSUPPORTED", `device ${spec.kind}: the embedded machine ${what}`);
  };
  const kind = kindOf(spec);
  const legacy = spec.legacy ?? "off";
  const size = spec.queueSize ?? DEFAULT_QUEUE_SIZE;
  if ((spec.packed !== true || legacy !== "off") && (size & (size - 1)) !== 0)
    refuse(`has split rings: queue-size=${size} is not a power of two (packed=on takes any size)`);
  if (legacy === "on" && spec.packed === true)
    refuse(
      "has no packed rings on the legacy interface: packed=on needs legacy=off or transitional",
    );
  for (const [name, on] of Object.entries(spec.features ?? {})) {
    const reserved = ReservedFeature[name as keyof typeof ReservedFeature];
    if (legacyFeatures.includes(reserved) && (legacy !== "off" || !on)) continue;
    if (queueFeatures.includes(reserved) && (legacy !== "on" || !on)) continue;
    if (!kind.hasFeature(name))
      refuse(`cannot ${on ? "offer" : "hold back"} feature ${name.toLowerCase()}`);
  }
  kind.refuse(spec, refuse);
}

/** Queue features of the modern interface that a specification names. */
const queueFeatures: readonly ReservedFeature[] = [
  ReservedFeature.ACCESS_PLATFORM,
  ReservedFeature.IN_ORDER,
  ReservedFeature.NOTIFICATION_DATA,
  ReservedFeature.NOTIF_CONFIG_DATA,
  ReservedFeature.ORDER_PLATFORM,
  ReservedFeature.RING_RESET,
  ReservedFeature.SUSPEND,
];

/** The same of the legacy interface. */
const legacyFeatures: readonly ReservedFeature[] = [
  ReservedFeature.NOTIFY_ON_EMPTY,
  ReservedFeature.ANY_LAYOUT,
];

/** Offered unless a specification holds them back; the others are offered when it names them. */
const offeredByDefault: readonly ReservedFeature[] = [
  ReservedFeature.RING_RESET,
  ReservedFeature.SUSPEND,
  ...legacyFeatures,
];

function reservedFeatures({ features = {}, ...spec }: EmbeddedSpec): ReservedFeature[] {
  const offered = [...queueFeatures, ...legacyFeatures].filter(
    (bit) => features[ReservedFeature[bit]] ?? offeredByDefault.includes(bit),
  );
  if (spec.indirect !== false) offered.push(ReservedFeature.INDIRECT_DESC);
  if (spec.eventIdx !== false) offered.push(ReservedFeature.EVENT_IDX);
  if (spec.packed === true) offered.push(ReservedFeature.RING_PACKED);
  return offered;
}

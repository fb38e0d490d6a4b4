// The embedded machine: memory, a PCI root and device models, all in this thread.
import {
  type BlkOptions,
  type BlkSpec,
  DEFAULT_BLK_SIZE,
  type DeviceSpec,
  DmaWindow,
  GuestRegions,
  type InterruptCounter,
  type Machine,
  type PciBus,
  parseDeviceSpec,
  ReservedFeature,
  type TaskQueue,
  VirtioFault,
} from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import { type BlockBackend, MemoryBackend } from "./block-backend.js";
import type { DeviceModel } from "./device-model.js";
import { BlockModel, blockModelFeatures } from "./models/block.js";
import { PciRoot } from "./pci/root.js";
import { VirtioFunction } from "./pci/virtio-function.js";
import type { RuleBook } from "./rules/rule-book.js";
import { Scheduler } from "./scheduler.js";

/** A block device of the embedded machine; `backend` stands in for `file` and `size`. */
export interface EmbeddedBlkSpec extends BlkSpec {
  readonly backend?: BlockBackend | undefined;
}

/** A block device: `embedded({ devices: [blk({ size: 1 << 20 })] })`. */
export function blk(
  options: BlkOptions & { readonly backend?: BlockBackend | undefined } = {},
): EmbeddedBlkSpec {
  return { kind: "blk", ...options };
}

/** How an embedded machine is made. */
export interface EmbeddedOptions {
  /** Default: one of each kind. */
  readonly devices?: readonly (string | DeviceSpec | EmbeddedBlkSpec)[];
  /** The guest's CPUs; default 8. */
  readonly cpus?: number;
  /** Bytes of memory; default 128 MiB. */
  readonly memory?: number;
  /** A SharedArrayBuffer, so that worker threads see guest memory. Default false. */
  readonly shared?: boolean;
  /** Opens an image file: `openImage` of `@virtio/hypervisor/node`, where there are files. */
  readonly open?: (spec: BlkSpec) => Promise<BlockBackend>;
  /** Virtual time and a drawn, replayable order of work; for tests. */
  readonly seed?: number;
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
/** Configuration changes, and each request queue. */
const DEFAULT_VECTORS = 2;

/**
 * Makes a machine.
 * @throws VirtioFault INVALID, UNSUPPORTED for a specification it cannot honour; what `open` throws
 */
export async function embedded(options: EmbeddedOptions = {}): Promise<EmbeddedMachine> {
  const {
    devices = ["blk"],
    cpus = DEFAULT_CPUS,
    memory: length = DEFAULT_MEMORY,
    shared = false,
    rules = null,
    log = () => {},
  } = options;
  const specs = devices.map((device) =>
    typeof device === "string" ? parseDeviceSpec(device) : device,
  );
  for (const spec of specs) refuseWhatIsNotThere(spec);

  const scheduler = new Scheduler(options.seed === undefined ? {} : { seed: options.seed });
  const tasks = scheduler.lane();
  const buffer = shared ? new SharedArrayBuffer(length) : new ArrayBuffer(length);
  const memory = new DmaWindow(buffer, { base: MEMORY_BASE });
  const guest = new GuestRegions([{ address: MEMORY_BASE, length, bytes: new Uint8Array(buffer) }]);
  const root = new PciRoot({ memory, tasks, poll: () => scheduler.step(tasks), log });

  const functions: VirtioFunction[] = [];
  const powerOff = async (): Promise<void> => {
    root.close(new VirtioFault("CLOSED", "the machine is closed"));
    await Promise.all(functions.map((fn) => fn.close()));
    scheduler.close();
  };
  try {
    for (const [i, spec] of specs.entries()) {
      const model = await makeModel(spec, `${spec.kind}${i}`, options);
      const fn = new VirtioFunction({
        model,
        root,
        memory: guest,
        tasks: scheduler.lane(),
        outside: (work) => scheduler.outside(work),
        queueSize: spec.queueSize ?? DEFAULT_QUEUE_SIZE,
        vectors: spec.vectors ?? DEFAULT_VECTORS,
        reservedFeatures: reservedFeatures(spec),
        rules,
      });
      functions.push(fn);
    }
  } catch (error) {
    await powerOff();
    throw error;
  }

  let closing: Promise<void> | null = null;
  return new EmbeddedMachine(cpus, memory, tasks, root, () => {
    closing ??= powerOff();
    return closing;
  });
}

/** A machine whose devices live in this thread. Made by {@link embedded}. */
export class EmbeddedMachine implements Machine {
  readonly name = "embedded";
  readonly cpus: number;
  readonly memory: DmaWindow;
  readonly tasks: TaskQueue;
  readonly buses: readonly [{ readonly kind: "pci"; readonly bus: PciBus }];
  readonly #root: PciRoot;
  readonly #close: () => Promise<void>;

  constructor(
    cpus: number,
    memory: DmaWindow,
    tasks: TaskQueue,
    root: PciRoot,
    close: () => Promise<void>,
  ) {
    this.cpus = cpus;
    this.memory = memory;
    this.tasks = tasks;
    this.buses = [{ kind: "pci", bus: root }];
    this.#root = root;
    this.#close = close;
  }

  interrupts(): readonly InterruptCounter[] {
    return this.#root.interrupts();
  }

  close(): Promise<void> {
    return this.#close();
  }
}

/** A key that is not honoured is an error, never ignored. */
function refuseWhatIsNotThere(spec: DeviceSpec): void {
  const refuse = (what: string): never => {
    throw new VirtioFault("UNSUPPORTED", `device ${spec.kind}: the embedded machine ${what}`);
  };
  if (spec.legacy !== undefined && spec.legacy !== "off")
    refuse(`has modern devices only: legacy=${spec.legacy} needs --machine qemu`);
  if (spec.queues !== undefined && spec.queues > 1) refuse("has one request queue: queues=1");
  const size = spec.queueSize ?? DEFAULT_QUEUE_SIZE;
  if (spec.packed !== true && (size & (size - 1)) !== 0)
    refuse(`has split rings: queue-size=${size} is not a power of two (packed=on takes any size)`);
  for (const [name, on] of Object.entries(spec.features ?? {})) {
    if (queueFeatures.includes(ReservedFeature[name as keyof typeof ReservedFeature])) continue;
    const bit = BlockFeature[name as keyof typeof BlockFeature];
    if (!blockModelFeatures.includes(bit))
      refuse(`cannot ${on ? "offer" : "hold back"} feature ${name.toLowerCase()}`);
  }
}

/** Queue features that a specification names: RING_RESET is offered unless it says no, the others when it says yes. */
const queueFeatures: readonly ReservedFeature[] = [
  ReservedFeature.ACCESS_PLATFORM,
  ReservedFeature.IN_ORDER,
  ReservedFeature.NOTIFICATION_DATA,
  ReservedFeature.ORDER_PLATFORM,
  ReservedFeature.RING_RESET,
];

function reservedFeatures({ features = {}, ...spec }: DeviceSpec): ReservedFeature[] {
  const offered = queueFeatures.filter(
    (bit) => features[ReservedFeature[bit]] ?? bit === ReservedFeature.RING_RESET,
  );
  if (spec.indirect !== false) offered.push(ReservedFeature.INDIRECT_DESC);
  if (spec.eventIdx !== false) offered.push(ReservedFeature.EVENT_IDX);
  if (spec.packed === true) offered.push(ReservedFeature.RING_PACKED);
  return offered;
}

async function makeModel(
  spec: DeviceSpec | EmbeddedBlkSpec,
  name: string,
  options: EmbeddedOptions,
): Promise<DeviceModel> {
  const without = blockModelFeatures.filter((bit) => spec.features?.[BlockFeature[bit]] === false);
  const queueSize = spec.queueSize ?? DEFAULT_QUEUE_SIZE;
  return new BlockModel({
    name,
    backend: await backendOf(spec, options),
    serial: spec.serial ?? "",
    // Header and status take two descriptors of the ring.
    segMax: Math.max(1, queueSize - 2),
    without,
  });
}

async function backendOf(
  spec: DeviceSpec | EmbeddedBlkSpec,
  { open }: EmbeddedOptions,
): Promise<BlockBackend> {
  if ("backend" in spec && spec.backend !== undefined) return spec.backend;
  if (spec.file === undefined)
    return new MemoryBackend(spec.size ?? DEFAULT_BLK_SIZE, { readOnly: spec.readonly ?? false });
  if (open === undefined)
    throw new VirtioFault(
      "UNSUPPORTED",
      `${spec.file}: this machine was made without a way to open files`,
    );
  return open(spec);
}

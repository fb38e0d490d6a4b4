// Small stand-ins for a machine, a transport and a driver: what the umbrella needs of the contracts, and nothing else.
import {
  type Attached,
  type BusDriver,
  type Disk,
  DmaWindow,
  type Driver,
  type KernelModule,
  type Machine,
  type PciBus,
  type PciFunction,
  type TransferOptions,
  type TunableSpec,
  type VirtioDevice,
  VirtioFault,
  type VirtioNode,
} from "@virtio/core";
import type { ModuleTable } from "../src/index.js";
import { virtioModule } from "../src/index.js";

/** A request that a {@link MemoryDisk} got. */
interface MemoryRequest {
  readonly what: "read" | "write" | "flush" | "discard" | "writeZeroes" | "secureErase";
  readonly position: number;
  readonly length: number;
}

/** A disk over an ArrayBuffer that completes later, and remembers what was asked of it. */
export class MemoryDisk implements Disk {
  readonly kind = "disk";
  readonly sectorSize: number = 512;
  bytes: Uint8Array;
  readonly name: string;
  readonly ident: string;
  readonly readOnly: boolean;
  stripeSize = 0;
  stripeOffset = 0;
  firmwareHeads = 0;
  firmwareSectors = 0;
  readonly maxTransfer: number = 1 << 20;
  readonly zones = null;
  can: Disk["can"] = { discard: true, writeZeroes: true, secureErase: false };
  readonly statistics = {
    ...{ reads: 0, writes: 0, flushes: 0, deletes: 0 },
    ...{ bytesRead: 0, bytesWritten: 0, bytesDeleted: 0 },
    ...{ errors: 0, busy: 0, busyTime: 0 },
    ...{ readTime: 0, writeTime: 0, flushTime: 0, deleteTime: 0 },
  };
  readonly requests: MemoryRequest[] = [];
  inFlight = 0;
  mostInFlight = 0;
  /** Positions at which a request fails. */
  bad: ReadonlySet<number> = new Set();
  /** Holds requests back until it resolves. */
  gate: Promise<unknown> = Promise.resolve();
  flushFault: VirtioFault | null = null;
  readonly closed: Promise<VirtioFault | null>;
  detached = false;
  onDetach: () => Promise<void> = async () => {};
  fail: (fault: VirtioFault) => void = () => {};
  readonly #resized = new Set<(mediaSize: number) => void>();

  constructor(name: string, size = 1 << 20, { ident = "ABC123", readOnly = false } = {}) {
    this.name = name;
    this.bytes = new Uint8Array(size);
    this.ident = ident;
    this.readOnly = readOnly;
    this.closed = new Promise((resolve) => {
      this.fail = resolve;
    });
  }

  get mediaSize(): number {
    return this.bytes.length;
  }

  onResize(listener: (mediaSize: number) => void): () => void {
    this.#resized.add(listener);
    return () => void this.#resized.delete(listener);
  }

  /** Makes it another size, and says so. */
  resize(size: number): void {
    const bytes = new Uint8Array(size);
    bytes.set(this.bytes.subarray(0, size));
    this.bytes = bytes;
    for (const listener of this.#resized) listener(size);
  }

  async #request(
    what: MemoryRequest["what"],
    position: number,
    length: number,
    { signal }: TransferOptions = {},
    move: () => void = () => {},
  ): Promise<void> {
    signal?.throwIfAborted();
    this.requests.push({ what, position, length });
    if (position % 512 !== 0 || length % 512 !== 0 || position + length > this.mediaSize)
      throw new VirtioFault("INVALID", `${this.name}: ${what} at ${position} of ${length} bytes`);
    this.inFlight++;
    this.mostInFlight = Math.max(this.mostInFlight, this.inFlight);
    let abort = (): void => {};
    try {
      const aborted = new Promise<never>((_, reject) => {
        abort = () => reject(signal?.reason);
        signal?.addEventListener("abort", abort);
      });
      await Promise.race([this.gate, aborted]);
      await Promise.resolve();
      if (this.bad.has(position))
        throw new VirtioFault("IO", `hard error cmd=${what} ${position}`, { device: this.name });
      move();
    } finally {
      signal?.removeEventListener("abort", abort);
      this.inFlight--;
    }
  }

  async read(position: number, into: Uint8Array, options?: TransferOptions): Promise<void> {
    await this.#request("read", position, into.length, options, () =>
      into.set(this.bytes.subarray(position, position + into.length)),
    );
    this.statistics.reads++;
    this.statistics.bytesRead += into.length;
  }

  async write(position: number, from: Uint8Array, options?: TransferOptions): Promise<void> {
    await this.#request("write", position, from.length, options, () =>
      this.bytes.set(from, position),
    );
    this.statistics.writes++;
    this.statistics.bytesWritten += from.length;
  }

  async readv(
    position: number,
    into: readonly Uint8Array[],
    options?: TransferOptions,
  ): Promise<void> {
    let at = position;
    for (const part of into) {
      await this.read(at, part, options);
      at += part.length;
    }
  }

  async writev(
    position: number,
    from: readonly Uint8Array[],
    options?: TransferOptions,
  ): Promise<void> {
    let at = position;
    for (const part of from) {
      await this.write(at, part, options);
      at += part.length;
    }
  }

  async flush(): Promise<void> {
    this.requests.push({ what: "flush", position: 0, length: 0 });
    if (this.flushFault !== null) throw this.flushFault;
    this.statistics.flushes++;
  }

  discard(position: number, length: number, options?: TransferOptions): Promise<void> {
    return this.#delete("discard", position, length, options);
  }

  writeZeroes(position: number, length: number, options?: TransferOptions): Promise<void> {
    return this.#delete("writeZeroes", position, length, options);
  }

  secureErase(position: number, length: number, options?: TransferOptions): Promise<void> {
    return this.#delete("secureErase", position, length, options);
  }

  /** Each leaves zeros. */
  async #delete(
    what: "discard" | "writeZeroes" | "secureErase",
    position: number,
    length: number,
    options?: TransferOptions,
  ): Promise<void> {
    if (this.readOnly) throw new VirtioFault("READ_ONLY", "read-only", { device: this.name });
    if (!this.can[what]) throw new VirtioFault("UNSUPPORTED", `no ${what}`, { device: this.name });
    await this.#request(what, position, length, options, () =>
      this.bytes.fill(0, position, position + length),
    );
    this.statistics.deletes++;
    this.statistics.bytesDeleted += length;
  }

  async suspend(): Promise<void> {}
  async resume(): Promise<void> {}

  async detach(): Promise<void> {
    await this.onDetach();
    this.detached = true;
  }
}

/** What {@link pciFunction} makes: registers, and `mapBar` the length of every BAR that can be mapped. */
export interface FakeFunctionOptions {
  readonly vendor?: number;
  readonly device?: number;
  readonly classCode?: number;
  readonly headerType?: number;
  readonly command?: number;
  readonly bars?: readonly number[];
  readonly capabilities?: readonly number[];
  readonly mapBar?: number;
}

/** A function of the fake bus: a virtio block device at device `slot`, unless its ids say otherwise. */
export function pciFunction(
  slot: number,
  {
    vendor = 0x1af4,
    device = 0x1042,
    classCode = 0x010000,
    headerType = 0,
    command = 0,
    bars = [],
    capabilities = [],
    mapBar,
  }: FakeFunctionOptions = {},
): PciFunction {
  const config = new DataView(new ArrayBuffer(256));
  config.setUint16(0x00, vendor, true);
  config.setUint16(0x02, device, true);
  config.setUint16(0x04, command, true);
  config.setUint32(0x08, (classCode << 8) | 0x01, true);
  config.setUint8(0x0e, headerType);
  for (const [i, bar] of bars.entries()) config.setUint32(0x10 + 4 * i, bar, true);
  config.setUint16(0x2c, vendor, true);
  config.setUint16(0x2e, 0x1100, true);
  if (capabilities.length > 0) {
    config.setUint16(0x06, 0x10, true);
    config.setUint8(0x34, 0x40);
    for (const [i, byte] of capabilities.entries()) config.setUint8(0x40 + i, byte);
  }
  const refuse = async (): Promise<never> => {
    throw new VirtioFault("UNSUPPORTED", "not in this fake");
  };
  const region = { length: mapBar ?? 0, read: refuse, write: refuse, post: () => {} };
  return {
    address: { domain: 0, bus: 0, device: slot, function: 0 },
    read: async (offset, width) => {
      if (width === 1) return config.getUint8(offset);
      return width === 2 ? config.getUint16(offset, true) : config.getUint32(offset, true);
    },
    write: async () => {},
    mapBar: mapBar === undefined ? refuse : async () => region,
    interrupts: { irq: 21, deliverable: [], message: refuse, line: refuse, release: () => {} },
    gone: new Promise(() => {}),
  };
}

/** A machine with one PCI bus. */
export class FakeMachine implements Machine {
  readonly name = "fake";
  readonly cpus = 8;
  readonly memory = new DmaWindow(new ArrayBuffer(1 << 20));
  readonly buses: Machine["buses"];
  closed = 0;
  /** Milliseconds; tests move it. */
  time = 0;
  /** Callouts that are due by `time`. */
  readonly callouts = new Map<() => void, number>();
  readonly tasks: Machine["tasks"] = {
    now: () => this.time,
    enqueue: (task) => void Promise.resolve().then(task),
    callout: (delayMs, task) => {
      this.callouts.set(task, this.time + delayMs);
      return { stop: () => void this.callouts.delete(task) };
    },
  };

  readonly bus: PciBus;
  /** What is on the bus now. */
  functions: readonly PciFunction[];

  constructor(functions: readonly PciFunction[] = [pciFunction(1)]) {
    this.functions = functions;
    this.bus = {
      functions: async () => this.functions,
      windows: { memory: { base: 0, length: 0 }, io: { base: 0, length: 0 } },
      onChange: null,
      memory: this.memory,
      tasks: this.tasks,
      poll: () => {},
    };
    this.buses = [{ kind: "pci", bus: this.bus }];
  }

  /** Plugs a function in. */
  plug(fn: PciFunction): void {
    this.functions = [...this.functions, fn];
    this.bus.onChange?.(fn.address, "added");
  }

  /** Takes the function of a slot out. */
  unplug(slot: number): void {
    const gone = this.functions.filter(({ address }) => address.device === slot);
    this.functions = this.functions.filter((fn) => !gone.includes(fn));
    for (const { address } of gone) this.bus.onChange?.(address, "removed");
  }

  /** Lets time pass. */
  pass(ms: number): void {
    this.time += ms;
    for (const [task, due] of [...this.callouts])
      if (due <= this.time) {
        this.callouts.delete(task);
        task();
      }
  }

  interrupts(): ReturnType<Machine["interrupts"]> {
    return [
      { irq: "irq21", names: ["virtio_pci0", "virtio_pci1"], count: 1234 },
      { irq: "irq22", names: ["virtio_pci2"], count: 0 },
    ];
  }

  async close(): Promise<void> {
    this.closed++;
  }
}

/** A transport that takes every function of vendor 0x1af4, of device type 2. */
function fakeTransport(): BusDriver {
  return {
    name: "virtio_pci",
    tunables: [{ name: "disable_msix", default: 0, min: 0, max: 1, description: "no MSI-X" }],
    async identify(bus) {
      const nodes: VirtioNode[] = [];
      for (const fn of bus.kind === "pci" ? await bus.bus.functions() : []) {
        if ((await fn.read(0, 2)) !== 0x1af4) continue;
        const { device } = fn.address;
        nodes.push({
          type: (await fn.read(2, 2)) - 0x1040,
          location: `pci0:0:${device}:0`,
          description: "VirtIO PCI (modern) Block adapter",
          resources: `mem 0xfe000000-0xfe000fff irq 21 at device ${device}.0`,
          properties: {
            location: `slot=${device} function=0 dbsf=pci0:0:${device}:0`,
            pnpinfo: "vendor=0x00001af4 device=0x1042 subvendor=0x1af4 device_type=0x00000002",
          },
        });
      }
      return nodes;
    },
    async attach(node, driver, context) {
      context.transport.verbose("host features: 0x100000000 <Version1>");
      const attached = await driver.attach({ location: node.location } as VirtioDevice, context);
      await attached.started?.();
      return attached;
    },
  };
}

const tunables: readonly TunableSpec[] = [
  { name: "no_ident", default: 0, min: 0, max: 1, description: "do not ask for the serial" },
  { name: "writecache_mode", default: -1, min: -1, max: 1, description: "cache mode" },
];

/** A driver whose disks are in memory. `attach` may be replaced to wait or to fail. */
export class FakeBlockDriver implements Driver<Attached> {
  readonly name = "vtblk";
  readonly description = "VirtIO Block Adapter";
  readonly types = [2];
  readonly features = [];
  readonly tunables = tunables;
  readonly options = {};
  readonly disks: MemoryDisk[] = [];
  /** Before a unit attaches. */
  before: (unit: number) => Promise<void> = async () => {};
  /** Disk of a unit. */
  makeDisk: (name: string, unit: number) => MemoryDisk = (name) => new MemoryDisk(name);

  async attach(
    _: VirtioDevice,
    { unit, log, publish, tunables: own, sysctl }: Parameters<Driver<Attached>["attach"]>[1],
  ): Promise<Attached> {
    const disk = this.makeDisk(`vtbd${unit}`, unit);
    const withdraw = publish(disk);
    await this.before(unit);
    if (own.number("no_ident") === 1) log("no ident");
    let mode = 1;
    sysctl.value(
      "writecache_mode",
      "write cache mode",
      () => mode,
      (text) => {
        if (text !== "0" && text !== "1")
          throw new VirtioFault("INVALID", `'${text}' is not 0 or 1`);
        mode = Number(text);
      },
    );
    log(`${disk.mediaSize >> 20}MB (${disk.mediaSize / 512} 512 byte sectors)`);
    this.disks.push(disk);
    disk.onDetach = async () => withdraw();
    return disk;
  }
}

/** The modules of this project, with fakes inside. */
export function fakeModules(driver: FakeBlockDriver = new FakeBlockDriver()): ModuleTable {
  const common = { version: 1, depends: ["virtio"] };
  const pci: KernelModule = {
    ...common,
    file: "virtio_pci",
    name: "virtio_pci",
    drivers: [],
    busDrivers: [fakeTransport()],
  };
  const blk: KernelModule = {
    ...common,
    file: "if_virtio_blk",
    name: "virtio_blk",
    drivers: [driver],
    busDrivers: [],
  };
  return {
    virtio: async () => ({ kernelModule: virtioModule }),
    virtio_pci: async () => ({ kernelModule: pci }),
    // As if_vtnet holds vtnet: the file's name and the module's differ.
    if_virtio_blk: async () => ({ kernelModule: blk }),
  };
}

// The kernel: one machine, what the loader linked for it, and the life of both from boot to halt.
import {
  type Disk,
  type Log,
  type Machine,
  type NetworkInterface,
  type Port,
  type Published,
  SysctlTree,
  VirtioFault,
} from "@virtio/core";
import { within } from "./bounded.js";
import type { DeviceTree } from "./device-tree.js";
import type { KernelConf } from "./kernel-conf.js";
import type { KernelEnvironment } from "./kernel-environment.js";
import type { Linker } from "./linker.js";
import type { KernelImage } from "./loader.js";
import { MessageBuffer } from "./message-buffer.js";
import { Mutex } from "./mutex.js";
import { Newbus } from "./newbus.js";

/** Longest wait for the disks' flushes at halt, in milliseconds. */
const FLUSH_LIMIT = 60_000;

/** What a kernel runs on and with. */
export interface KernelOptions {
  /** The kernel ends it at shutdown. */
  readonly machine: Machine;
  /** From {@link load}. */
  readonly image: KernelImage;
  /** Prints each message as it comes. Default: the messages are only kept, for dmesg. */
  readonly console?: Log;
  /** Lines of a verbose boot too. Default: boot_verbose in the kernel environment. */
  readonly verbose?: boolean;
  /** kern.osrelease, for the first line. */
  readonly release?: string;
}

/** `loaded` until boot; `running`; `halting` during shutdown; `halted` for ever. */
export type KernelState = "loaded" | "running" | "halting" | "halted";

/** A running system: devices, modules, environment, sysctl tree and messages. */
export class Kernel {
  readonly machine: Machine;
  readonly conf: KernelConf;
  readonly environment: KernelEnvironment;
  readonly linker: Linker;
  readonly sysctl: SysctlTree = new SysctlTree();
  readonly messages: MessageBuffer;
  readonly #newbus: Newbus;
  readonly #published = new Map<string, Published>();
  /** Boot, load, unload, hot-plug and shutdown, one at a time. */
  readonly #changes = new Mutex();
  readonly #loaderMessages: readonly string[];
  readonly #release: string;
  #state: KernelState = "loaded";
  #bootedAt = 0;
  #shutdown: Promise<void> | null = null;

  constructor({ machine, image, console, verbose, release }: KernelOptions) {
    this.machine = machine;
    this.conf = image.conf;
    this.environment = image.environment;
    this.linker = image.linker;
    this.messages = new MessageBuffer(console);
    this.#loaderMessages = image.messages;
    this.#release = release ?? "";
    this.#newbus = new Newbus({
      machine,
      environment: image.environment,
      sysctl: this.sysctl,
      log: this.#log,
      verbose: verbose ?? image.environment.enabled("boot_verbose"),
      publish: (what) => this.#publish(what),
      change: (work) => this.#change(work),
    });
    this.#publishFacts();
  }

  get state(): KernelState {
    return this.#state;
  }

  get devices(): DeviceTree {
    return this.#newbus.devices;
  }

  /** Seconds since boot. */
  get uptime(): number {
    return (this.machine.tasks.now() - this.#bootedAt) / 1000;
  }

  /** What drivers offer: disks, interfaces, ports; by name. */
  get published(): ReadonlyMap<string, Published> {
    return this.#published;
  }

  /** Disks by name, in the order in which they came. */
  get disks(): readonly Disk[] {
    return [...this.#published.values()].filter((what) => what.kind === "disk");
  }

  /**
   * The disk of this name: `vtbd0`, `/dev/vtbd0`.
   * @throws VirtioFault NOT_FOUND
   */
  disk(name: string): Disk {
    const disk = this.#published.get(name.replace(/^\/dev\//, ""));
    if (disk?.kind === "disk") return disk;
    const names = this.disks.map((each) => each.name).join(", ");
    throw new VirtioFault(
      "NOT_FOUND",
      `${name}: No such file or directory (disks: ${names === "" ? "none" : names})`,
    );
  }

  /** Network interfaces by name, in the order in which they came. */
  get interfaces(): readonly NetworkInterface[] {
    return [...this.#published.values()].filter((what) => what.kind === "network");
  }

  /**
   * The interface of this name: `vtnet0`.
   * @throws VirtioFault NOT_FOUND
   */
  interface(name: string): NetworkInterface {
    const found = this.#published.get(name);
    if (found?.kind === "network") return found;
    throw new VirtioFault("NOT_FOUND", `interface ${name} does not exist`);
  }

  /** Console ports by name, in the order in which they came. */
  get ports(): readonly Port[] {
    return [...this.#published.values()].filter((what) => what.kind === "port");
  }

  /**
   * The port of this name: `ttyV0.0`, `/dev/ttyV0.0`, `/dev/vtcon/org.qemu.guest_agent.0`.
   * @throws VirtioFault NOT_FOUND
   */
  port(name: string): Port {
    const short = name.replace(/^\/dev\//, "");
    const found = this.ports.find(
      (port) => port.name === short || (port.alias !== "" && `vtcon/${port.alias}` === short),
    );
    if (found !== undefined) return found;
    const names = this.ports.map((port) => port.name).join(", ");
    throw new VirtioFault(
      "NOT_FOUND",
      `${name}: No such file or directory (ports: ${names === "" ? "none" : names})`,
    );
  }

  /** Prints the boot messages, finds the devices and attaches their drivers. Once. @throws VirtioFault INVALID when not `loaded` */
  boot(): Promise<void> {
    return this.#changes.run(async () => {
      if (this.#state !== "loaded")
        throw new VirtioFault("INVALID", `kernel: cannot boot, it is ${this.#state}`);
      this.#state = "running";
      const { machine } = this;
      this.#bootedAt = machine.tasks.now();
      const { byteLength: memory } = machine.memory.buffer;
      this.#log(this.#version);
      this.#log(`real memory  = ${memory} (${Math.floor(memory / 2 ** 20)} MB)`);
      const { available } = machine.memory;
      this.#log(`avail memory = ${available} (${Math.floor(available / 2 ** 20)} MB)`);
      if (machine.cpus > 1)
        this.#log(`virtio/SMP: Multiprocessor System Detected: ${machine.cpus} CPUs`);
      for (const message of this.#loaderMessages) this.#log(message);
      this.#newbus.addBuses();
      await this.#newbus.add(this.linker.modules);
    });
  }

  /**
   * Loads a module and what it needs, and attaches its drivers to what is idle. (kldload)
   * @returns Id of the file.
   * @throws VirtioFault NOT_FOUND, EXISTS, INVALID (its tunables)
   */
  load(name: string): Promise<number> {
    return this.#changes.run(async () => {
      this.#mustRun();
      const added = await this.linker.load(name);
      await this.#newbus.add(added);
      return this.linker.files.at(-1)?.id ?? 0;
    });
  }

  /**
   * Detaches a module's devices and takes it out, with what was loaded only for its sake. (kldunload)
   * @throws VirtioFault NOT_FOUND, BUSY, or what a driver's detach says
   */
  unload(name: string): Promise<void> {
    return this.#changes.run(async () => {
      this.#mustRun();
      const modules = this.linker.unloadable(name);
      await this.#newbus.remove(modules);
      this.linker.unlink(modules);
    });
  }

  /**
   * Flushes every disk, detaches all devices, last found first, and ends the machine. Everything is tried whatever fails; a second
   * call waits for the first. (halt)
   * @throws VirtioFault the first thing that failed
   */
  shutdown(): Promise<void> {
    this.#shutdown ??= this.#changes.run(() => this.#halt());
    return this.#shutdown;
  }

  async #halt(): Promise<void> {
    this.#state = "halting";
    const faults: unknown[] = [];
    const attempt = async (work: () => Promise<unknown>): Promise<boolean> => {
      try {
        await work();
        return true;
      } catch (fault) {
        faults.push(fault);
        return false;
      }
    };

    const flushed = await Promise.all(
      this.disks.map((disk) =>
        attempt(() => within(this.machine.tasks, FLUSH_LIMIT, `${disk.name}: flush`, flush(disk))),
      ),
    );
    this.#log(`Syncing disks... ${flushed.includes(false) ? "giving up" : "done"}`);
    faults.push(...(await this.#newbus.detachAll()));
    this.#log("The operating system has halted.");
    await attempt(() => this.machine.close());
    this.#state = "halted";
    if (faults.length > 0) throw faults[0];
  }

  /** A change that nobody waits for: what fails is said. */
  #change(work: () => Promise<void>): void {
    this.#changes
      .run(async () => {
        if (this.#state === "running") await work();
      })
      .catch((fault: unknown) => this.#log(`kernel: ${String(fault)}`));
  }

  #mustRun(): void {
    if (this.#state !== "running")
      throw new VirtioFault("CLOSED", `kernel: it is ${this.#state}, not running`);
  }

  readonly #log: Log = (line) => this.messages.log(line);

  get #version(): string {
    const words = ["virtio", this.#release, this.conf.ident, this.machine.name];
    return words.filter((word) => word !== "").join(" ");
  }

  #publish(what: Published): () => void {
    if (this.#published.has(what.name))
      throw new VirtioFault("EXISTS", `${what.name}: there is one of this name already`);
    this.#published.set(what.name, what);
    return () => {
      this.#published.delete(what.name);
    };
  }

  #publishFacts(): void {
    const { machine, conf } = this;
    const kern = this.sysctl.node("kern", "High kernel, proc, limits &c");
    kern.value("version", "Kernel version", () => this.#version);
    kern.value("ident", "Kernel identifier", () => conf.ident);
    kern.value("conftxt", "Kernel configuration file", () => conftxt(conf));
    kern.value("disks", "Names of available disks", () =>
      this.disks.map((disk) => disk.name).join(" "),
    );
    const hw = this.sysctl.node("hw", "hardware");
    hw.value("machine", "Machine class", () => machine.name);
    hw.value("ncpu", "Number of active CPUs", () => machine.cpus);
    hw.value(
      "physmem",
      "Amount of physical memory (in bytes)",
      () => machine.memory.buffer.byteLength,
    );
    hw.value(
      "usermem",
      "Amount of memory (in bytes) which is not wired",
      () => machine.memory.available,
    );
  }
}

/** A disk without a cache has nothing to flush, and says UNSUPPORTED: all it wrote is on stable storage. */
async function flush(disk: Disk): Promise<void> {
  if (disk.readOnly) return;
  try {
    await disk.flush();
  } catch (fault) {
    if (!(fault instanceof VirtioFault && fault.code === "UNSUPPORTED")) throw fault;
  }
}

/** The configuration as a file of config(5). */
function conftxt({ ident, generic, devices, without, options }: KernelConf): string {
  return [
    ...(generic ? ["include GENERIC"] : []),
    `ident ${ident}`,
    ...options.map((option) => `options ${option}`),
    ...[...devices.keys()].map((name) => `device ${name}`),
    ...[...without.keys()].map((name) => `nodevice ${name}`),
  ].join("\n");
}

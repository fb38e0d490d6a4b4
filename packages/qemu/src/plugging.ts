// Plugging devices in and out while the machine runs.
import { closeSync } from "node:fs";
import { type PciAddress, VirtioFault } from "@virtio/core";
import { createMemfd } from "@virtio/shm";
import type { HotPlug, HotPlugBus } from "./hot-plug.js";
import { deviceRefusal } from "./launch-failure.js";
import { type Command, commandsOf, type Part } from "./parts.js";
import type { QemuPciBus } from "./pci-bus.js";
import {
  type DeviceIds,
  type DevicePlan,
  deviceAt,
  type PlacedDevice,
  planDevice,
  type QemuDeviceSpec,
} from "./plan.js";
import type { QmpClient } from "./qmp.js";
import { streamConnected } from "./stream-wire.js";

/** What {@link Plugging} needs of the machine. */
export interface PluggingParts {
  readonly qmp: QmpClient;
  readonly bus: QemuPciBus;
  /** Null when no bus of the machine takes devices. */
  readonly hotPlug: HotPlug | null;
  readonly buses: readonly HotPlugBus[];
  /** Those that the machine was started with. */
  readonly devices: readonly PlacedDevice[];
  /** Folder that relative image files start from. */
  readonly cwd: string;
  /** Those of the machine's start are given. */
  readonly ids: DeviceIds;
}

/** Milliseconds that QEMU may take to delete a device that was ejected: it ends its requests before. */
const DELETE_TIMEOUT_MS = 10_000;

const isAt = (a: PciAddress, b: PciAddress): boolean =>
  a.domain === b.domain && a.bus === b.bus && a.device === b.device && a.function === b.function;

/** The devices of the machine, and the ways in which they come and go. One at a time. */
export class Plugging {
  readonly #parts: PluggingParts;
  #devices: readonly PlacedDevice[];
  #changing: Promise<unknown> = Promise.resolve();

  constructor(parts: PluggingParts) {
    this.#parts = parts;
    this.#devices = parts.devices;
    parts.qmp.on("DEVICE_DELETED", ({ data }) => {
      this.#devices = this.#devices.filter(({ plan }) => plan.id !== data["device"]);
    });
  }

  /** Those that are there, in the order in which they came. */
  get devices(): readonly PlacedDevice[] {
    return this.#devices;
  }

  /** {@inheritDoc QemuMachine.plug} */
  plug(device: string | QemuDeviceSpec): Promise<PciAddress> {
    return this.#inTurn(() => this.#plug(device));
  }

  /** {@inheritDoc QemuMachine.unplug} */
  unplug(device: string | PciAddress): Promise<void> {
    return this.#inTurn(() => this.#unplug(device));
  }

  async #plug(device: string | QemuDeviceSpec): Promise<PciAddress> {
    const { cwd, ids } = this.#parts;
    const hotPlug = this.#hotPlug();
    const others = this.#devices.map(({ plan }) => plan);
    const plan = await planDevice(device, { ids, cwd, others });
    const { bus, address } = await this.#freePlace(plan.label);
    await this.#make(plan, address.device, bus.name);
    ids.take(plan.kind);
    this.#devices = [...this.#devices, { plan, address }];
    await hotPlug.look();
    return address;
  }

  async #unplug(device: string | PciAddress): Promise<void> {
    const { qmp } = this.#parts;
    const hotPlug = this.#hotPlug();
    const known = this.#devices.find(({ plan, address }) =>
      typeof device === "string" ? plan.id === device : isAt(address, device),
    );
    const id = typeof device === "string" ? device : known?.plan.id;
    if (id === undefined)
      throw new VirtioFault("NOT_FOUND", `qemu: no device at ${JSON.stringify(device)}`);
    const deleted = qmp.next(
      "DEVICE_DELETED",
      DELETE_TIMEOUT_MS,
      ({ data }) => data["device"] === id,
    );
    // Waited for below; until then it may be the connection that ends.
    deleted.catch(() => {});
    try {
      await qmp.execute("device_del", { id });
    } catch (error) {
      throw deviceRefusal(id, error);
    }
    await hotPlug.look();
    await deleted;
    if (known !== undefined) await this.#remove(known.plan.before([]));
  }

  #hotPlug(): HotPlug {
    const { hotPlug } = this.#parts;
    if (hotPlug === null)
      throw new VirtioFault(
        "UNSUPPORTED",
        "qemu: a q35 takes devices behind root ports only: make it with rootPorts",
      );
    return hotPlug;
  }

  async #freePlace(label: string): Promise<{ bus: HotPlugBus; address: PciAddress }> {
    const functions = await this.#parts.bus.functions();
    for (const bus of this.#parts.buses)
      for (let device = 0; device < bus.devices; device++) {
        const number = this.#parts.bus.behind(bus.bridge);
        const address = { domain: 0, bus: number, device, function: 0 };
        if (!functions.some((fn) => isAt(fn.address, address))) return { bus, address };
      }
    throw new VirtioFault("NO_SPACE", `${label}: no slot is free`);
  }

  /** Makes a device: what comes before it, itself, what is on it. Of one that fails nothing is left. */
  async #make(plan: DevicePlan, device: number, bus: string): Promise<void> {
    if (plan.inherits.includes("socket"))
      throw new VirtioFault(
        "UNSUPPORTED",
        `${plan.label}: its socket is made when QEMU starts: plug in another backend`,
      );
    const files = plan.inherits.flatMap((what) =>
      what === "socket" ? [] : [createMemfd(`virtio-${plan.id}`, what.size)],
    );
    const made: Part[] = [];
    const make = async (part: Part): Promise<void> => {
      await this.#execute(commandsOf(part)?.add);
      made.push(part);
    };
    try {
      const before = plan.before(files.map((fd) => `/proc/${process.pid}/fd/${fd}`));
      for (const part of before) await make(part);
      await streamConnected(this.#parts.qmp, plan);
      for (const part of [deviceAt(plan, device, bus), ...plan.after]) await make(part);
    } catch (error) {
      const refusal = deviceRefusal(plan.label, error);
      // QEMU refused. Otherwise the connection ended, and everything with it.
      if (error instanceof VirtioFault && error.code === "IO") await this.#remove(made);
      throw refusal;
    } finally {
      for (const fd of files) closeSync(fd);
    }
  }

  async #remove(parts: readonly Part[]): Promise<void> {
    for (const part of parts.toReversed()) {
      await this.#execute(commandsOf(part)?.remove);
      if (part.kind === "device") await this.#hotPlug().look();
    }
  }

  async #execute(command: Command | undefined): Promise<void> {
    if (command !== undefined) await this.#parts.qmp.execute(command.name, command.arguments);
  }

  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const changed = this.#changing.then(change);
    this.#changing = changed.catch(() => {});
    return changed;
  }
}

// Plugging devices in and out while the machine runs.
import { closeSync } from "node:fs";
import { type PciAddress, VirtioFault } from "@virtio/core";
import { createMemfd } from "@virtio/shm";
import { blockNode, netdev, netdevId, virtioDevice } from "./device-arguments.js";
import type { HotPlug, HotPlugBus } from "./hot-plug.js";
import { deviceRefusal } from "./launch-failure.js";
import type { QemuPciBus } from "./pci-bus.js";
import {
  type BlkPlan,
  type DeviceIds,
  type DevicePlan,
  type PlacedDevice,
  planDevice,
  type QemuDeviceSpec,
} from "./plan.js";
import type { QmpClient } from "./qmp.js";

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
    const { qmp, cwd, ids } = this.#parts;
    const hotPlug = this.#hotPlug();
    const others = this.#devices.map(({ plan }) => plan);
    const plan = await planDevice(device, { ids, cwd, others });
    const { bus, address } = await this.#freePlace(plan.label);
    await this.#addBehind(plan);
    try {
      await qmp.execute("device_add", virtioDevice(plan, address.device, bus.name));
    } catch (error) {
      const refusal = deviceRefusal(plan.label, error);
      // Otherwise the connection ended, and the node with it.
      if (refusal !== error) await this.#removeBehind(plan);
      throw refusal;
    }
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
    if (known !== undefined) await this.#removeBehind(known.plan);
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

  /** Makes the block node or the netdev of a device. */
  async #addBehind(plan: DevicePlan): Promise<void> {
    if (plan.kind === "net" && typeof plan.wire === "string")
      throw new VirtioFault(
        "UNSUPPORTED",
        `${plan.label}: its socket is made when QEMU starts: plug in another backend`,
      );
    try {
      if (plan.kind === "blk") await this.#addNode(plan);
      else await this.#parts.qmp.execute("netdev_add", netdev(plan));
    } catch (error) {
      throw deviceRefusal(plan.label, error);
    }
  }

  async #removeBehind(plan: DevicePlan): Promise<void> {
    const { qmp } = this.#parts;
    if (plan.kind === "blk") await qmp.execute("blockdev-del", { "node-name": plan.id });
    else await qmp.execute("netdev_del", { id: netdevId(plan) });
  }

  async #addNode(plan: BlkPlan): Promise<void> {
    const { medium } = plan;
    const fd = "size" in medium ? createMemfd(`virtio-${plan.id}`, medium.size) : null;
    try {
      const path = "path" in medium ? medium.path : `/proc/${process.pid}/fd/${fd}`;
      await this.#parts.qmp.execute("blockdev-add", blockNode(plan, path));
    } finally {
      if (fd !== null) closeSync(fd);
    }
  }

  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const changed = this.#changing.then(change);
    this.#changing = changed.catch(() => {});
    return changed;
  }
}

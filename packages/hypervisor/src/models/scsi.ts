// The SCSI host device (virtio 1.4 §5.6), written from the device clauses: its queues, and the units behind it.
import { DeviceType, featureSet, VirtioFault } from "@virtio/core";
import {
  ScsiAsc,
  ScsiAsyncEvent,
  ScsiEvent,
  ScsiFeature,
  ScsiQueue,
  ScsiResetReason,
  ScsiResponse,
} from "@virtio/core/scsi";
import type { BlockBackend } from "../block-backend.js";
import type { DeviceModel, ModelHost } from "../device-model.js";
import type { RegisterSpace } from "../registers.js";
import { eventReason, ScsiRules } from "../rules/scsi-rules.js";
import { type ScsiCharacteristics, ScsiConfiguration } from "./scsi-config.js";
import { ScsiControlRequests } from "./scsi-control.js";
import { type ScsiEventReport, ScsiEvents } from "./scsi-events.js";
import type { ScsiLies } from "./scsi-lies.js";
import type { ScsiPort } from "./scsi-port.js";
import { SlotQueue } from "./scsi-queue.js";
import { ScsiRequests } from "./scsi-requests.js";
import { ScsiTargets } from "./scsi-target.js";
import type { ScsiUnit } from "./scsi-unit.js";
import { checkMedium, makeUnit, type ScsiUnitOptions } from "./scsi-unit-options.js";

/** How a SCSI host is made. */
export interface ScsiModelOptions {
  readonly name: string;
  /** Most data segments of a request. */
  readonly segMax: number;
  /** Request queues. */
  readonly queues: number;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: ScsiCharacteristics;
  readonly units: readonly ScsiUnitOptions[];
  readonly port: ScsiPort;
  readonly lies: ScsiLies;
}

/** Mass storage, SCSI: what QEMU's virtio-scsi-pci says. */
const CLASS_CODE = 0x01_00_00;

/** What runs once the function carries the model. */
interface Running {
  readonly host: ModelHost;
  /** Control queue and request queues, by index; the event queue has none. */
  readonly queues: ReadonlyMap<number, SlotQueue>;
  readonly events: ScsiEvents;
  readonly rules: ScsiRules | null;
}

/** {@inheritDoc DeviceModel} */
export class ScsiModel implements DeviceModel {
  readonly type: DeviceType = DeviceType.SCSI;
  readonly classCode: number = CLASS_CODE;
  readonly queues: number;
  readonly prerequisites: DeviceModel["prerequisites"] = [];
  readonly name: string;
  readonly features: readonly number[];
  readonly config: RegisterSpace;
  readonly #options: ScsiModelOptions;
  readonly #configuration: ScsiConfiguration;
  readonly #targets = new ScsiTargets();
  /** Units that were taken out, while their backends still work on commands. */
  readonly #leaving = new Set<ScsiUnit>();
  #running: Running | null = null;
  /** The driver's queues were looked at since the last reset: it can be told of events. */
  #started = false;

  /** @throws VirtioFault INVALID, EXISTS */
  constructor(options: ScsiModelOptions) {
    const { name, queues, units, lies } = options;
    this.name = name;
    this.queues = ScsiQueue.REQUEST + queues;
    this.#options = options;
    const configuration = new ScsiConfiguration(options);
    this.#configuration = configuration;
    this.features = featureSet<ScsiFeature>()
      .with(...configuration.offered)
      .words();
    for (const unit of units) this.#targets.add(makeUnit(name, unit, this.#targets));
    this.config = {
      length: configuration.length,
      read: (offset, width) => {
        const honest = configuration.read(offset, width);
        return lies.config?.(offset, width, honest) ?? honest;
      },
      write: (offset, width, value) => {
        this.#running?.rules?.configWrite(offset, width, value);
        configuration.write(offset, width, value);
      },
    };
  }

  configGate(): undefined {}

  connect(host: ModelHost): void {
    const { name: device, lies, port, queues } = this.#options;
    const configuration = this.#configuration;
    const targets = this.#targets;
    configuration.connect(host.features);
    const rules =
      host.rules === null
        ? null
        : new ScsiRules({ book: host.rules, device, host, configuration, targets });
    const parts = { host, configuration, targets, lies, rules };
    const requests = new ScsiRequests(parts);
    const control = new ScsiControlRequests(parts);
    const slotQueues = new Map<number, SlotQueue>();
    const controlQueue: SlotQueue = new SlotQueue(
      ScsiQueue.CONTROL,
      host,
      (slot) => control.take(controlQueue, slot),
      () => {},
    );
    slotQueues.set(ScsiQueue.CONTROL, controlQueue);
    for (let index: number = ScsiQueue.REQUEST; index < ScsiQueue.REQUEST + queues; index++) {
      const queue: SlotQueue = new SlotQueue(
        index,
        host,
        (slot) => requests.take(queue, slot),
        (ring) => rules?.requests(ring),
      );
      slotQueues.set(index, queue);
    }
    const events = new ScsiEvents(host, lies, rules);
    this.#running = { host, queues: slotQueues, events, rules };
    for (const unit of targets.units()) this.#attach(unit, host);
    const outstanding = (): number =>
      [...slotQueues.values()].reduce((sum, queue) => sum + queue.outstanding, 0);
    port.model = {
      plug: (unit) => this.#plug(unit, host),
      unplug: (target, lun) => this.#unplug(this.#unit(target, lun)),
      load: (target, lun, backend) => this.#load(this.#unit(target, lun), backend, host),
      reset: (target, lun) => this.#resetUnit(this.#unit(target, lun)),
      notify: (target, lun, bits) => this.#notify(this.#unit(target, lun), bits),
      get outstanding() {
        return outstanding();
      },
    };
  }

  notified(index: number): void {
    const running = this.#running;
    if (running === null) return;
    this.#started = true;
    if (index === ScsiQueue.EVENT) running.events.notified();
    else running.queues.get(index)?.notified();
  }

  reset(queue?: number): Promise<void> | null {
    const { queues, events, rules } = this.#running ?? {};
    for (const [index, slots] of queues ?? [])
      if (queue === undefined || queue === index) slots.reset();
    const units = this.#targets.units();
    const waits = [...units, ...this.#leaving].map(({ tasks }) =>
      tasks.abort(
        tasks.tasks.filter(({ slot }) => queue === undefined || queue === slot.index),
        ScsiResponse.FAILURE,
      ),
    );
    if (queue === undefined) {
      rules?.reset();
      events?.reset();
      this.#configuration.reset();
      this.#started = false;
      for (const unit of units) unit.powerOn();
    } else if (queue === ScsiQueue.EVENT) events?.reset();
    const left = waits.filter((wait) => wait !== null);
    return left.length === 0 ? null : Promise.all(left).then(() => {});
  }

  async close(): Promise<void> {
    const backends = this.#targets.units().map(({ disk }) => disk.medium?.backend);
    await Promise.all(backends.map((backend) => backend?.close()));
  }

  // ── units that come, go and change ──────────────────────────────────────────

  /** @throws VirtioFault NOT_FOUND */
  #unit(target: number, lun: number): ScsiUnit {
    const unit = this.#targets.find(target, lun);
    if (unit === undefined)
      throw new VirtioFault("NOT_FOUND", `${this.name}: target ${target} has no unit ${lun}`);
    return unit;
  }

  /** The unit is the device's. */
  #attach(unit: ScsiUnit, host: ModelHost): void {
    unit.host = host;
    const backend = unit.disk.medium?.backend;
    if (backend !== undefined)
      backend.onResize = () => host.tasks.enqueue(() => this.#resized(unit));
  }

  /** Tells the driver, if it runs; in the device's lane. */
  #tell({ target, lun }: ScsiUnit, event: ScsiEvent, reason: number): void {
    const report: ScsiEventReport = { event, target, lun, reason };
    const running = this.#running;
    running?.host.tasks.enqueue(() => {
      if (this.#started) running.events.push(report);
    });
  }

  /** The other units of the target report that its inventory changed. */
  #inventoryChanged(changed: ScsiUnit): void {
    for (const unit of this.#targets.units())
      if (unit.target === changed.target && unit !== changed)
        unit.attend(ScsiAsc.REPORTED_LUNS_DATA_CHANGED);
  }

  #plug(options: ScsiUnitOptions, host: ModelHost): void {
    const unit = makeUnit(this.name, options, this.#targets);
    this.#targets.add(unit);
    this.#attach(unit, host);
    this.#inventoryChanged(unit);
    if (this.#configuration.has(ScsiFeature.HOTPLUG))
      this.#tell(unit, ScsiEvent.TRANSPORT_RESET, ScsiResetReason.RESCAN);
  }

  async #unplug(unit: ScsiUnit): Promise<void> {
    this.#targets.remove(unit);
    this.#inventoryChanged(unit);
    const over = unit.tasks.abort(unit.tasks.tasks, ScsiResponse.ABORTED);
    if (this.#configuration.has(ScsiFeature.HOTPLUG))
      this.#tell(unit, ScsiEvent.TRANSPORT_RESET, ScsiResetReason.REMOVED);
    this.#leaving.add(unit);
    await over;
    this.#leaving.delete(unit);
    await closeBackend(unit.disk.medium?.backend ?? null);
  }

  async #load(unit: ScsiUnit, backend: BlockBackend | null, host: ModelHost): Promise<void> {
    const { disk } = unit;
    if (!disk.identity.removable)
      throw new VirtioFault("INVALID", `${this.name}: the medium cannot be exchanged`);
    if (backend !== null) checkMedium(backend, disk.blockSize);
    const over = unit.tasks.abort(unit.tasks.tasks, ScsiResponse.ABORTED);
    const before = disk.load(backend);
    this.#attach(unit, host);
    if (backend !== null) unit.attend(ScsiAsc.MEDIUM_MAY_HAVE_CHANGED);
    this.#notify(unit, ScsiAsyncEvent.MEDIA_CHANGE);
    await over;
    await closeBackend(before);
  }

  #notify(unit: ScsiUnit, events: number): void {
    const wanted = events & unit.subscribed;
    if (wanted !== 0) this.#tell(unit, ScsiEvent.ASYNC_NOTIFY, wanted);
  }

  #resetUnit(unit: ScsiUnit): void {
    unit.reset(ScsiResponse.RESET, ScsiAsc.POWER_ON_OR_RESET);
    this.#tell(unit, ScsiEvent.TRANSPORT_RESET, ScsiResetReason.HARD);
  }

  /** The driver hears of another capacity with its next command, and by an event but of a CD-ROM (§5.6.6.3). */
  #resized(unit: ScsiUnit): void {
    unit.attend(ScsiAsc.CAPACITY_DATA_CHANGED);
    if (!unit.disk.isCdRom && this.#configuration.has(ScsiFeature.CHANGE))
      this.#tell(unit, ScsiEvent.PARAM_CHANGE, eventReason(ScsiAsc.CAPACITY_DATA_CHANGED));
  }
}

/** The backend is no unit's any more. */
async function closeBackend(backend: BlockBackend | null): Promise<void> {
  if (backend === null) return;
  backend.onResize = null;
  await backend.close();
}

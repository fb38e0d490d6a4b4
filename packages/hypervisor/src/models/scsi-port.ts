// What one does with a SCSI host at its back while the machine runs: units come, go and change.
import { VirtioFault } from "@virtio/core";
import type { BlockBackend } from "../block-backend.js";
import type { ScsiUnitOptions } from "./scsi-unit-options.js";

/** What a port does, done by the device. */
export interface ScsiPortModel {
  plug(unit: ScsiUnitOptions): void;
  unplug(target: number, lun: number): Promise<void>;
  load(target: number, lun: number, backend: BlockBackend | null): Promise<void>;
  reset(target: number, lun: number): void;
  notify(target: number, lun: number, events: number): void;
  readonly outstanding: number;
}

/** The back of a SCSI host: give one to `scsi({ port })`. A backend that changes its size does so without it. */
export class ScsiPort {
  /** @internal Set by the device. */
  model: ScsiPortModel | null = null;

  get #device(): ScsiPortModel {
    if (this.model === null) throw new VirtioFault("INVALID", "the port has no device yet");
    return this.model;
  }

  /**
   * Puts in a unit. The driver is told of it by a TRANSPORT_RESET event, reason RESCAN, if it accepted HOTPLUG.
   * @throws VirtioFault INVALID; EXISTS when a unit is there
   */
  plug(unit: ScsiUnitOptions): void {
    this.#device.plug(unit);
  }

  /**
   * Takes a unit out. Its commands end as ABORTED, and the driver is told by a TRANSPORT_RESET event, reason REMOVED, if it accepted
   * HOTPLUG.
   * @returns when the backend is closed
   * @throws VirtioFault NOT_FOUND
   */
  async unplug(target: number, lun: number): Promise<void> {
    await this.#device.unplug(target, lun);
  }

  /**
   * Puts another medium into a removable unit, or takes it out (null). The driver is told if it subscribed to MEDIA_CHANGE.
   * @returns when the backend that was there is closed
   * @throws VirtioFault NOT_FOUND; INVALID for a unit that is not removable, or a size that is not made of blocks
   */
  async load(target: number, lun: number, backend: BlockBackend | null): Promise<void> {
    await this.#device.load(target, lun, backend);
  }

  /** Resets a unit as another initiator would: the driver is told by a TRANSPORT_RESET event, reason HARD. @throws VirtioFault NOT_FOUND */
  reset(target: number, lun: number): void {
    this.#device.reset(target, lun);
  }

  /** Notifies the driver of these of ScsiAsyncEvent to which it subscribed. @throws VirtioFault NOT_FOUND */
  notify(target: number, lun: number, events: number): void {
    this.#device.notify(target, lun, events);
  }

  /** Requests that the device has taken and not given back. */
  get outstanding(): number {
    return this.#device.outstanding;
  }
}

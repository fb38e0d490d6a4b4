// The event queue of a SCSI host (virtio 1.4 §5.6.6.3).
import {
  SCSI_EVENTS_MISSED,
  SCSI_LUN_SIZE,
  ScsiEvent,
  ScsiEventBuffer,
  ScsiQueue,
} from "@virtio/core/scsi";
import type { ModelHost } from "../device-model.js";
import type { ScsiRules } from "../rules/scsi-rules.js";
import type { ScsiLies } from "./scsi-lies.js";
import { lunField } from "./scsi-target.js";

/** Something that the driver is told. */
export interface ScsiEventReport {
  readonly event: ScsiEvent;
  readonly target: number;
  readonly lun: number;
  readonly reason: number;
}

/** What a buffer says, but for the flag. */
interface EventContent {
  readonly event: ScsiEvent;
  readonly field: Uint8Array;
  readonly reason: number;
}

/** Nothing, about nobody. */
const noEvent: EventContent = {
  event: ScsiEvent.NO_EVENT,
  field: new Uint8Array(SCSI_LUN_SIZE),
  reason: 0,
};

/** Tells the driver of events, in the buffers that it supplies. */
export class ScsiEvents {
  readonly #host: ModelHost;
  readonly #lies: ScsiLies;
  readonly #rules: ScsiRules | null;
  readonly #buffer = new Uint8Array(ScsiEventBuffer.SIZE);
  readonly #view = new DataView(this.#buffer.buffer);
  /** An event found no buffer, and the driver does not know. */
  #missed = false;

  constructor(host: ModelHost, lies: ScsiLies, rules: ScsiRules | null) {
    this.#host = host;
    this.#lies = lies;
    this.#rules = rules;
  }

  /** One event, or, where there is no buffer for it, one to be reported as missed. */
  push(report: ScsiEventReport): void {
    const { event, target, lun, reason } = report;
    const missed = this.#missed;
    if (this.#send({ event, field: lunField(target, lun), reason }))
      this.#rules?.told(report, missed);
    else this.#missed = true;
  }

  /** The driver supplied buffers: it is told at once of what it missed. */
  notified(): void {
    const queue = this.#host.queue(ScsiQueue.EVENT);
    if (queue === null) return;
    this.#rules?.eventBuffers(queue);
    if (this.#missed && this.#send(noEvent)) this.#rules?.told(null, true);
  }

  /** @returns false without a buffer */
  #send({ event, field, reason }: EventContent): boolean {
    const queue = this.#host.queue(ScsiQueue.EVENT);
    if (queue === null) return false;
    for (;;) {
      const chain = queue.take();
      if (chain === null) {
        // A doorbell is wanted for the buffer that is missing now.
        if (queue.enableNotify()) continue;
        return false;
      }
      this.#host.taken(queue, chain);
      const fits = chain.writableLength >= ScsiEventBuffer.SIZE;
      // A buffer that is too short is given back at once, with what fits of no event.
      this.#write(
        fits ? event : ScsiEvent.NO_EVENT,
        fits ? field : noEvent.field,
        fits ? reason : 0,
      );
      const written = chain.write(0, this.#buffer);
      const told = this.#lies.eventLength?.(written) ?? written;
      queue.put(chain, Math.min(written, told));
      this.#host.used(ScsiQueue.EVENT);
      if (!fits) continue;
      this.#missed = false;
      return true;
    }
  }

  #write(event: number, field: Uint8Array, reason: number): void {
    const missed = this.#missed ? SCSI_EVENTS_MISSED : 0;
    this.#view.setUint32(ScsiEventBuffer.EVENT, (event | missed) >>> 0, true);
    this.#buffer.set(field, ScsiEventBuffer.LUN);
    this.#view.setUint32(ScsiEventBuffer.REASON, reason, true);
    this.#lies.event?.(this.#buffer);
  }

  /** As after a reset. */
  reset(): void {
    this.#missed = false;
  }
}

// Guest memory of a queue's commands: a request and a response for each (virtio 1.4 §5.6.6.1).
import type { DmaMemory } from "@virtio/core";
import {
  SCSI_CDB_SIZE,
  SCSI_SENSE_SIZE,
  ScsiAnswer,
  ScsiRequest,
  type ScsiResponse,
} from "@virtio/core/scsi";
import { Slots } from "@virtio/storage";
import { putAddress } from "./address.js";
import type { Ccb } from "./ccb.js";

/** Bytes of a request, and of a response: each one descriptor, as a legacy device wants them (§5.6.6.4). */
export const REQUEST_SIZE: number = ScsiRequest.CDB + SCSI_CDB_SIZE;
export const RESPONSE_SIZE: number = ScsiAnswer.SENSE + SCSI_SENSE_SIZE;

/** Bytes between two slots: none crosses a page, and the fields of a response lie on their boundaries. */
const STRIDE = 256;
const RESPONSE_AT = 128;
/** What no device answers. */
const UNANSWERED = 0xff;

/** A slot for each command. */
export class RequestSlots extends Slots {
  /** @throws VirtioFault OUT_OF_MEMORY */
  constructor(memory: DmaMemory, count: number) {
    super(memory, count, STRIDE);
  }

  requestAddress(slot: number): number {
    return this.region.address + slot * STRIDE;
  }

  responseAddress(slot: number): number {
    return this.region.address + slot * STRIDE + RESPONSE_AT;
  }

  /** Writes a request: lun, le64 id, task_attr, prio and crn 0, cdb; and presets the response to what no device writes. */
  begin(slot: number, ccb: Ccb, target: number, lun: number): void {
    const { bytes } = this.region;
    const at = slot * STRIDE;
    putAddress(bytes, at + ScsiRequest.LUN, target, lun);
    const id = (at + ScsiRequest.ID) >>> 2;
    this.words[id] = ccb.tagLow;
    this.words[id + 1] = ccb.tagHigh;
    bytes[at + ScsiRequest.TASK_ATTR] = ccb.attribute;
    bytes[at + ScsiRequest.PRIO] = 0;
    bytes[at + ScsiRequest.CRN] = 0;
    bytes.set(ccb.cdb, at + ScsiRequest.CDB);
    bytes[at + RESPONSE_AT + ScsiAnswer.RESPONSE] = UNANSWERED;
  }

  #field(slot: number, field: ScsiAnswer): number {
    return this.words[(slot * STRIDE + RESPONSE_AT + field) >>> 2] as number;
  }

  senseLength(slot: number): number {
    return this.#field(slot, ScsiAnswer.SENSE_LEN);
  }

  residual(slot: number): number {
    return this.#field(slot, ScsiAnswer.RESIDUAL);
  }

  status(slot: number): number {
    return this.region.bytes[slot * STRIDE + RESPONSE_AT + ScsiAnswer.STATUS] as number;
  }

  response(slot: number): ScsiResponse {
    return this.region.bytes[slot * STRIDE + RESPONSE_AT + ScsiAnswer.RESPONSE] as number;
  }

  /** Copies the sense data out: the device may write on. */
  copySense(slot: number, into: Uint8Array, length: number): void {
    const from = slot * STRIDE + RESPONSE_AT + ScsiAnswer.SENSE;
    const { bytes } = this.region;
    for (let i = 0; i < length; i++) into[i] = bytes[from + i] as number;
  }
}

// The requests of a SCSI host (virtio 1.4 §5.6.6.1): a chain becomes a command at an address, and its end an answer.
import {
  SCSI_LUN_SIZE,
  ScsiAnswer,
  ScsiAsc,
  ScsiFeature,
  ScsiRequest,
  ScsiResponse,
  ScsiSenseKey,
  ScsiStatus,
  ScsiTaskAttribute,
} from "@virtio/core/scsi";
import type { ModelHost } from "../device-model.js";
import type { ScsiRules } from "../rules/scsi-rules.js";
import {
  CDB_SIZE,
  checkCondition,
  ended,
  responded,
  ScsiCommand,
  type ScsiReply,
} from "./scsi-command.js";
import type { ScsiConfiguration } from "./scsi-config.js";
import type { ScsiLies } from "./scsi-lies.js";
import type { ScsiSlot, SlotQueue } from "./scsi-queue.js";
import type { ScsiTargets } from "./scsi-target.js";
import { ScsiUnit } from "./scsi-unit.js";

/** What the parts of the device share. */
export interface ScsiParts {
  readonly host: ModelHost;
  readonly configuration: ScsiConfiguration;
  readonly targets: ScsiTargets;
  readonly lies: ScsiLies;
  readonly rules: ScsiRules | null;
}

/** Executes what comes by the request queues. */
export class ScsiRequests {
  readonly #parts: ScsiParts;
  /** The readable part of the request that is looked at. */
  #request = new Uint8Array(0);
  /** The answer that is written. */
  #answer = new Uint8Array(0);

  constructor(parts: ScsiParts) {
    this.#parts = parts;
  }

  /** A chain of a request queue was taken. */
  take(queue: SlotQueue, slot: ScsiSlot): void {
    const { configuration, rules, lies } = this.#parts;
    const { chain } = slot;
    const requestSize = ScsiRequest.CDB + configuration.cdbSize;
    const answerSize = ScsiAnswer.SENSE + configuration.senseSize;
    if (this.#request.length !== requestSize) this.#request = new Uint8Array(requestSize);
    const request = this.#request;
    if (chain.readableLength < requestSize || chain.writableLength < answerSize) {
      this.#refuse(queue, slot, answerSize);
      return;
    }
    chain.read(0, request);
    const cdb = new Uint8Array(CDB_SIZE);
    cdb.set(request.subarray(ScsiRequest.CDB, ScsiRequest.CDB + CDB_SIZE));
    const command = new ScsiCommand(cdb, chain, requestSize, answerSize);
    rules?.request(chain, request, command, answerSize);
    const unit = this.#dispatch(request, command);
    if (!(unit instanceof ScsiUnit)) {
      this.#finish(queue, slot, command, answerSize, unit);
      return;
    }
    const words = new DataView(request.buffer);
    unit.tasks.add({
      idLow: words.getUint32(ScsiRequest.ID, true),
      idHigh: words.getUint32(ScsiRequest.ID + 4, true),
      attribute: request[ScsiRequest.TASK_ATTR] as number,
      command,
      answered: lies.answers?.(command.opcode) ?? true,
      slot,
      finish: (reply) => {
        if (slot.over) return;
        const response = this.#finish(queue, slot, command, answerSize, reply);
        rules?.answered(unit, command, response);
      },
      state: "dormant",
      verdict: null,
      cancels: 0,
    });
  }

  /** The unit whose task the command becomes, or its end. */
  #dispatch(request: Uint8Array, command: ScsiCommand): ScsiUnit | ScsiReply {
    const { configuration, targets } = this.#parts;
    const both = command.dataOut > 0 && command.dataIn > 0;
    if (both && !configuration.has(ScsiFeature.INOUT)) return responded(ScsiResponse.FAILURE);
    const { addressee } = targets.at(request.subarray(ScsiRequest.LUN, SCSI_LUN_SIZE));
    if (addressee === null) return responded(ScsiResponse.BAD_TARGET);
    if (!(addressee instanceof ScsiUnit)) return addressee.execute(command);
    if (addressee.resetting > 0) return responded(ScsiResponse.BUSY);
    if (addressee.tasks.size >= configuration.cmdPerLun) return ended(ScsiStatus.TASK_SET_FULL);
    // There is no auto contingent allegiance (NormACA is 0): nothing could be ACA.
    if ((request[ScsiRequest.TASK_ATTR] as number) > ScsiTaskAttribute.HEAD)
      return checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_MESSAGE);
    return addressee;
  }

  /** A request without a whole head or without room for a whole answer. */
  #refuse(queue: SlotQueue, slot: ScsiSlot, answerSize: number): void {
    const { chain } = slot;
    const room = Math.min(chain.writableLength, answerSize);
    const answer = this.#fresh(answerSize);
    answer[ScsiAnswer.RESPONSE] = ScsiResponse.FAILURE;
    chain.write(0, answer, 0, room);
    queue.give(slot, room);
  }

  #fresh(answerSize: number): Uint8Array {
    if (this.#answer.length !== answerSize) this.#answer = new Uint8Array(answerSize);
    return this.#answer.fill(0);
  }

  /** Gives a request its answer, in memory that is the device's still. @returns the response that the driver sees */
  #finish(
    queue: SlotQueue,
    slot: ScsiSlot,
    command: ScsiCommand,
    answerSize: number,
    reply: ScsiReply,
  ): number {
    const { lies } = this.#parts;
    const { opcode } = command;
    const answer = this.#fresh(answerSize);
    const senseLength = Math.min(reply.sense.length, answerSize - ScsiAnswer.SENSE);
    const residual = command.dataOut - reply.taken + command.dataIn - reply.given;
    const response = lies.response?.(reply.response, opcode) ?? reply.response;
    const words = new DataView(answer.buffer);
    words.setUint32(
      ScsiAnswer.SENSE_LEN,
      lies.senseLength?.(senseLength, opcode) ?? senseLength,
      true,
    );
    words.setUint32(ScsiAnswer.RESIDUAL, lies.residual?.(residual, opcode) ?? residual, true);
    answer[ScsiAnswer.STATUS] = lies.status?.(reply.status, opcode) ?? reply.status;
    answer[ScsiAnswer.RESPONSE] = response;
    answer.set(reply.sense.subarray(0, senseLength), ScsiAnswer.SENSE);
    lies.sense?.(answer.subarray(ScsiAnswer.SENSE), opcode);
    slot.chain.write(0, answer);
    const written = answerSize + reply.given;
    queue.give(
      slot,
      Math.min(slot.chain.writableLength, lies.usedLength?.(written, opcode) ?? written),
    );
    return response;
  }
}

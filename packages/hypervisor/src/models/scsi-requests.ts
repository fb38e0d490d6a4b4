// The requests of a SCSI host (virtio 1.4 §5.6.6.1): a chain becomes a command at an address, and its end an answer.
import {
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

/** Bytes that are used again and again, and the same as words. */
class Scratch {
  bytes = new Uint8Array(0);
  words = new DataView(this.bytes.buffer);

  resize(length: number): void {
    if (length === this.bytes.length) return;
    this.bytes = new Uint8Array(length);
    this.words = new DataView(this.bytes.buffer);
  }
}

/** A request that the device has. */
interface RequestInHand {
  readonly queue: SlotQueue;
  readonly slot: ScsiSlot;
  readonly command: ScsiCommand;
  /** Bytes of the answer before data-in. */
  readonly answerSize: number;
}

/** Executes what comes by the request queues. */
export class ScsiRequests {
  readonly #parts: ScsiParts;
  /** The readable part, without data-out, of the request that is looked at. Its first field is `lun`. */
  readonly #request = new Scratch();
  /** The answer that is written, without data-in. */
  readonly #answer = new Scratch();

  constructor(parts: ScsiParts) {
    this.#parts = parts;
  }

  /** A chain of a request queue was taken. */
  take(queue: SlotQueue, slot: ScsiSlot): void {
    const { configuration, rules, lies } = this.#parts;
    const { chain } = slot;
    const requestSize = ScsiRequest.CDB + configuration.cdbSize;
    const answerSize = ScsiAnswer.SENSE + configuration.senseSize;
    if (chain.readableLength < requestSize || chain.writableLength < answerSize) {
      this.#refuse(queue, slot, answerSize);
      return;
    }
    this.#request.resize(requestSize);
    const { bytes, words } = this.#request;
    chain.read(0, bytes);
    const cdb = new Uint8Array(CDB_SIZE);
    cdb.set(bytes.subarray(ScsiRequest.CDB, ScsiRequest.CDB + CDB_SIZE));
    const command = new ScsiCommand(cdb, chain, requestSize, answerSize);
    rules?.request(chain, bytes, command, answerSize);
    const request: RequestInHand = { queue, slot, command, answerSize };
    const unit = this.#dispatch(bytes, command);
    if (!(unit instanceof ScsiUnit)) {
      this.#finish(request, unit);
      return;
    }
    unit.tasks.add({
      idLow: words.getUint32(ScsiRequest.ID, true),
      idHigh: words.getUint32(ScsiRequest.ID + 4, true),
      attribute: bytes[ScsiRequest.TASK_ATTR] as number,
      command,
      answered: lies.answers?.(command.opcode) ?? true,
      slot,
      finish: (reply) => {
        // After a reset the memory is not the device's any more.
        if (slot.over) return;
        const response = this.#finish(request, reply);
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
    const addressee = targets.at(request);
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
    const { bytes } = this.#fresh(answerSize);
    bytes[ScsiAnswer.RESPONSE] = ScsiResponse.FAILURE;
    chain.write(0, bytes, 0, room);
    queue.give(slot, room);
  }

  /** An answer of zeroes. */
  #fresh(answerSize: number): Scratch {
    this.#answer.resize(answerSize);
    this.#answer.bytes.fill(0);
    return this.#answer;
  }

  /** Writes the answer and gives the request back. @returns the response that the driver sees */
  #finish({ queue, slot, command, answerSize }: RequestInHand, reply: ScsiReply): number {
    const { lies } = this.#parts;
    const { opcode } = command;
    const { bytes, words } = this.#fresh(answerSize);
    const room = answerSize - ScsiAnswer.SENSE;
    const sense = reply.sense.length <= room ? reply.sense : reply.sense.subarray(0, room);
    const residual = command.dataOut - reply.taken + command.dataIn - reply.given;
    const response = lies.response?.(reply.response, opcode) ?? reply.response;
    words.setUint32(
      ScsiAnswer.SENSE_LEN,
      lies.senseLength?.(sense.length, opcode) ?? sense.length,
      true,
    );
    words.setUint32(ScsiAnswer.RESIDUAL, lies.residual?.(residual, opcode) ?? residual, true);
    bytes[ScsiAnswer.STATUS] = lies.status?.(reply.status, opcode) ?? reply.status;
    bytes[ScsiAnswer.RESPONSE] = response;
    bytes.set(sense, ScsiAnswer.SENSE);
    lies.sense?.(bytes.subarray(ScsiAnswer.SENSE), opcode);
    slot.chain.write(0, bytes);
    const written = answerSize + reply.given;
    const told = lies.usedLength?.(written, opcode) ?? written;
    queue.give(slot, Math.min(slot.chain.writableLength, told));
    return response;
  }
}

// What the end of a command means to who gave it: done, to be tried again, or failed with which fault (CAM's cam_periph_error).
import { type ScsiSenseData, VirtioFault } from "@virtio/core";
import { ScsiAsc, ScsiResponse, ScsiSenseKey, ScsiStatus } from "@virtio/core/scsi";
import type { Ccb } from "./ccb.js";
import { decodeSense, succeeded } from "./sense.js";

/** Whether a command is to be given again. */
export enum Retry {
  NO,
  NOW,
  /** After {@link RETRY_MS}. */
  LATER,
}

/** Between two tries of a command that found its unit busy, milliseconds. */
export const RETRY_MS = 250;
/** Tries after the first, one after the other: of a unit that reports one attention after the other, or is reset again and again. */
const RETRIES_NOW = 8;
/** Tries after the first of a busy unit: ten seconds. */
const RETRIES_LATER = 40;

/** The end of a command. */
export interface Outcome {
  /** Why it failed, or would if it is not tried again; null: it did not. */
  readonly fault: VirtioFault | null;
  readonly retry: Retry;
  /** Null: there are none. */
  readonly sense: ScsiSenseData | null;
}

const done: Outcome = { fault: null, retry: Retry.NO, sense: null };

/** Status GOOD, everything moved: the end that is not looked at more closely. */
export const isGood = (ccb: Ccb): boolean =>
  ccb.fault === null &&
  ccb.response === ScsiResponse.OK &&
  ccb.status === ScsiStatus.GOOD &&
  ccb.residual === 0;

/** Whether the retries that a command has had leave one of this kind. */
export const mayRetry = ({ retries }: Ccb, retry: Retry): boolean =>
  retry !== Retry.NO && retries < (retry === Retry.NOW ? RETRIES_NOW : RETRIES_LATER);

/**
 * Judges a command that is over.
 * @param device - who gave it, `da0`: for the message
 */
export function judge(ccb: Ccb, device: string): Outcome {
  const end = (
    code: VirtioFault["code"],
    what: string,
    retry = Retry.NO,
    sense: ScsiSenseData | null = null,
  ): Outcome => ({ fault: new VirtioFault(code, what, { device }), retry, sense });
  if (ccb.fault !== null) return { fault: ccb.fault, retry: Retry.NO, sense: null };
  if (ccb.late && ccb.response !== ScsiResponse.OK)
    return end("TIMED_OUT", `the command timed out after ${ccb.timeout} ms`);
  const response = ScsiResponse[ccb.response] ?? String(ccb.response);
  switch (ccb.response) {
    case ScsiResponse.OK:
      return judgeStatus(ccb, end);
    case ScsiResponse.BAD_TARGET:
      return end("CLOSED", "there is no such target");
    case ScsiResponse.RESET:
    case ScsiResponse.ABORTED:
      // By a task management function, which was meant for another command, or somebody else's.
      return end("IO", `the command was cancelled: ${response}`, Retry.NOW);
    case ScsiResponse.BUSY:
      return end("BUSY", "the device is busy", Retry.LATER);
    case ScsiResponse.TRANSPORT_FAILURE:
    case ScsiResponse.NEXUS_FAILURE:
      return end("CLOSED", `the target cannot be reached: ${response}`);
    default:
      // OVERRUN, TARGET_FAILURE, which no other path would mend (§5.6.6.1.2), FAILURE, and what there is no name for.
      return end("IO", `the command failed: response ${response}`);
  }
}

type End = (
  code: VirtioFault["code"],
  what: string,
  retry?: Retry,
  sense?: ScsiSenseData | null,
) => Outcome;

function judgeStatus(ccb: Ccb, end: End): Outcome {
  const status = ScsiStatus[ccb.status] ?? `0x${ccb.status.toString(16)}`;
  switch (ccb.status) {
    case ScsiStatus.GOOD:
    case ScsiStatus.CONDITION_MET:
      return done;
    case ScsiStatus.CHECK_CONDITION:
      return judgeSense(decodeSense(ccb.sense, ccb.senseLength), end);
    case ScsiStatus.BUSY:
    case ScsiStatus.TASK_SET_FULL:
      return end("BUSY", `SCSI status ${status}`, Retry.LATER);
    case ScsiStatus.RESERVATION_CONFLICT:
      return end("BUSY", `SCSI status ${status}`);
    case ScsiStatus.TASK_ABORTED:
      return end("IO", `SCSI status ${status}`, Retry.NOW);
    default:
      return end("IO", `SCSI status ${status}`);
  }
}

/** In process of becoming ready. */
const BECOMING_READY = 0x0401;
/** Of a thin disk whose back end is full. */
const SPACE_ALLOCATION_FAILED = 0x2707;

function judgeSense(sense: ScsiSenseData | null, end: End): Outcome {
  if (sense === null) return end("IO", "CHECK CONDITION without sense data");
  const { key, text } = sense;
  const code = (sense.asc << 8) | sense.ascq;
  // What is about an earlier command says nothing of this one, which was not done.
  if (sense.deferred) return end("IO", `deferred error: ${text}`, Retry.NOW, sense);
  if (succeeded(key)) return { ...done, sense };
  switch (key) {
    case ScsiSenseKey.UNIT_ATTENTION:
    case ScsiSenseKey.ABORTED_COMMAND:
      return end("IO", text, Retry.NOW, sense);
    case ScsiSenseKey.NOT_READY:
      return code === BECOMING_READY
        ? end("BUSY", text, Retry.LATER, sense)
        : end("IO", text, Retry.NO, sense);
    case ScsiSenseKey.ILLEGAL_REQUEST:
      if (code === ScsiAsc.INVALID_OPCODE) return end("UNSUPPORTED", text, Retry.NO, sense);
      if (code === ScsiAsc.LUN_NOT_SUPPORTED) return end("CLOSED", text, Retry.NO, sense);
      return end("INVALID", text, Retry.NO, sense);
    case ScsiSenseKey.DATA_PROTECT:
      if (code === SPACE_ALLOCATION_FAILED) return end("NO_SPACE", text, Retry.NO, sense);
      return end("READ_ONLY", text, Retry.NO, sense);
    default:
      return end("IO", text, Retry.NO, sense);
  }
}

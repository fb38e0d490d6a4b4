// A logical unit at its address: attention, tasks, and what the driver wants to be told of it (SAM-5, SPC-4).
import { ScsiAsc, ScsiOpcode, type ScsiResponse, ScsiSenseKey } from "@virtio/core/scsi";
import type { ModelHost } from "../device-model.js";
import {
  checkCondition,
  fixedSense,
  type ScsiCommand,
  type ScsiOutcome,
  type ScsiReply,
} from "./scsi-command.js";
import type { ScsiDisk } from "./scsi-disk.js";
import { ScsiTaskSet } from "./scsi-task-set.js";

/** REQUEST SENSE, byte 1: in descriptor format, which there is not. */
const DESC = 1;

/** Why a unit was reset, first byte of the additional sense code: it outlives every other attention (SAM-5). */
const RESET_ASC = 0x29;

/** Answered whatever the driver has not heard of: these report no attention (SAM-5, unit attention conditions; MMC-6). */
const silent: readonly number[] = [ScsiOpcode.INQUIRY, ScsiOpcode.GET_EVENT_STATUS_NOTIFICATION];

/** Answers REQUEST SENSE. */
export function requestSense(command: ScsiCommand, sense: Uint8Array): ScsiReply {
  if ((command.byte(1) & DESC) !== 0)
    return checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_FIELD_IN_CDB);
  return command.answer(sense, command.byte(4));
}

/** One logical unit. */
export class ScsiUnit {
  readonly target: number;
  readonly lun: number;
  readonly disk: ScsiDisk;
  readonly tasks: ScsiTaskSet;
  /** ScsiAsyncEvent bits that the driver asked for. */
  subscribed = 0;
  /** The function that carries the device; null while there is none. */
  host: ModelHost | null = null;
  /** Resets that wait for the end of tasks. */
  resetting = 0;
  /** What the driver is to hear with its next command, once each. */
  #attention: ScsiAsc[] = [ScsiAsc.POWER_ON_OR_RESET];
  readonly #reportLuns: (command: ScsiCommand) => ScsiReply;

  /** @param reportLuns - answers REPORT LUNS, for the whole target */
  constructor(
    target: number,
    lun: number,
    disk: ScsiDisk,
    reportLuns: (command: ScsiCommand) => ScsiReply,
  ) {
    this.target = target;
    this.lun = lun;
    this.disk = disk;
    this.#reportLuns = reportLuns;
    this.tasks = new ScsiTaskSet({
      execute: (command) => this.#execute(command),
      cancel: () => this.disk.medium?.backend.cancel?.(),
      outside: (work) => this.#outside(work),
    });
  }

  #outside<T>(work: Promise<T>): Promise<T> {
    if (this.host === null || this.disk.medium?.backend.outside === false) return work;
    return this.host.outside(work);
  }

  /** As after power-on, when no task is left or each is ending. */
  powerOn(): void {
    this.subscribed = 0;
    this.disk.reset();
    this.attend(ScsiAsc.POWER_ON_OR_RESET);
  }

  /** The driver is to hear of this. */
  attend(asc: ScsiAsc): void {
    if (asc >>> 8 === RESET_ASC) this.#attention = [asc];
    else if (!this.#attention.includes(asc)) this.#attention.push(asc);
  }

  /** The driver has heard of this by itself. */
  heard(asc: ScsiAsc): void {
    this.#attention = this.#attention.filter((one) => one !== asc);
  }

  #execute(command: ScsiCommand): ScsiOutcome {
    const { opcode } = command;
    if (opcode === ScsiOpcode.REQUEST_SENSE) return this.#sense(command);
    if (opcode === ScsiOpcode.REPORT_LUNS) return this.#reportLuns(command);
    const [asc] = this.#attention;
    if (asc === undefined || silent.includes(opcode)) return this.disk.execute(command);
    this.heard(asc);
    return checkCondition(ScsiSenseKey.UNIT_ATTENTION, asc);
  }

  /** REQUEST SENSE takes what there is to hear; sense data of commands went with their answers. */
  #sense(command: ScsiCommand): ScsiReply {
    const [asc] = this.#attention;
    const reply = requestSense(
      command,
      asc === undefined
        ? fixedSense(ScsiSenseKey.NO_SENSE, ScsiAsc.NO_ADDITIONAL_SENSE)
        : fixedSense(ScsiSenseKey.UNIT_ATTENTION, asc),
    );
    if (asc !== undefined && reply.given > 0) this.heard(asc);
    return reply;
  }

  /**
   * Ends every task and begins anew; commands that come meanwhile are refused as BUSY.
   * @param asc - what the driver hears of it
   * @returns null when it is done
   */
  reset(response: ScsiResponse, asc: ScsiAsc): Promise<void> | null {
    const begin = (): void => {
      this.disk.reset();
      this.attend(asc);
    };
    const over = this.tasks.abort(this.tasks.tasks, response);
    if (over === null) {
      begin();
      return null;
    }
    this.resetting += 1;
    return over.then(() => {
      this.resetting -= 1;
      begin();
    });
  }
}

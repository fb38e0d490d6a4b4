// Commands by hand, and task management functions of them (FreeBSD's pass(4)).
import {
  type ScsiAddress,
  type ScsiAttribute,
  type ScsiCommand,
  type ScsiResult,
  type ScsiTask,
  VirtioFault,
} from "@virtio/core";
import {
  SCSI_CDB_SIZE,
  ScsiControlResponse,
  ScsiOpcode,
  ScsiResponse,
  ScsiTaskAttribute,
  ScsiTmf,
} from "@virtio/core/scsi";
import { Ccb, Direction, type Transfer } from "./ccb.js";
import { judge } from "./outcome.js";
import { decodeSense } from "./sense.js";
import type { Sim } from "./sim.js";

const CDB_MIN = 6;

const attributes: Readonly<Record<ScsiAttribute, ScsiTaskAttribute>> = {
  simple: ScsiTaskAttribute.SIMPLE,
  ordered: ScsiTaskAttribute.ORDERED,
  head: ScsiTaskAttribute.HEAD,
  aca: ScsiTaskAttribute.ACA,
};

/** Commands that are at the head of the queue by themselves (SPC-4): they are not to be ordered, too (§5.6.6.1). */
const atHead: readonly number[] = [
  ScsiOpcode.INQUIRY,
  ScsiOpcode.REPORT_LUNS,
  ScsiOpcode.REQUEST_SENSE,
];

function attributeOf({ cdb, attribute = "simple" }: ScsiCommand): ScsiTaskAttribute {
  return attributes[attribute === "ordered" && atHead.includes(cdb[0] ?? 0) ? "simple" : attribute];
}

/** What is told of each command, to trace it. */
export type Trace = (what: string) => void;

/** Gives units commands as they are, and tells what came of them. */
export class PassThrough {
  readonly #sim: Sim;
  /** Milliseconds, where the caller does not say. */
  readonly #timeout: number;
  readonly #trace: Trace;
  readonly #tasks = new WeakMap<ScsiTask, Ccb>();

  constructor(sim: Sim, timeout: number, trace: Trace) {
    this.#sim = sim;
    this.#timeout = timeout;
    this.#trace = trace;
  }

  begin(command: ScsiCommand): ScsiTask {
    const { target, lun } = command;
    const ccb = new Ccb(() => {});
    const result = this.#run(command, ccb);
    // Who only wants to manage the task need not listen.
    result.catch(() => {});
    const task = { target, lun, result };
    this.#tasks.set(task, ccb);
    return task;
  }

  async #run(command: ScsiCommand, ccb: Ccb): Promise<ScsiResult> {
    const { target, lun, cdb, signal } = command;
    this.#check(command);
    if (signal?.aborted === true) throw signal.reason;
    const transfer: Transfer = { data: command.dataOut ?? command.dataIn ?? null };
    ccb.cdb.set(cdb);
    ccb.attribute = attributeOf(command);
    ccb.timeout = command.timeout ?? this.#timeout;
    ccb.transfer = transfer;
    if ((transfer.data?.length ?? 0) > 0)
      ccb.direction = command.dataOut === undefined ? Direction.IN : Direction.OUT;
    const unit = this.#sim.unit(target, lun);
    const who = `${this.#sim.name} target ${target} lun ${lun}`;
    this.#trace(`execute: target ${target} lun ${lun} cdb ${hex(cdb)}`);
    return new Promise<ScsiResult>((resolve, reject) => {
      ccb.done = () => {
        signal?.removeEventListener("abort", abort);
        if (signal?.aborted === true) reject(signal.reason);
        else if (ccb.fault === null && ccb.response === ScsiResponse.OK) resolve(resultOf(ccb));
        else reject(judge(ccb, who).fault);
      };
      const abort = (): void => {
        const { data } = transfer;
        if (unit.withdraw(ccb, this.#fault("CLOSED", "aborted"))) return;
        // The device may still write where the bytes are; those that are bounced nobody looks at any more.
        if (data?.buffer !== this.#sim.device.memory.buffer) {
          transfer.data = null;
          reject(signal?.reason);
        }
        void this.#abort(ccb).catch((fault: unknown) => {
          this.#trace(`abort: ${String(fault)}`);
        });
      };
      signal?.addEventListener("abort", abort, { once: true });
      unit.submit(ccb);
      this.#sim.start();
    });
  }

  /** @throws VirtioFault INVALID, UNSUPPORTED */
  #check({ target, lun, cdb, dataOut, dataIn, timeout }: ScsiCommand): void {
    this.checkAddress({ target, lun });
    if (cdb.length < CDB_MIN || cdb.length > SCSI_CDB_SIZE)
      throw this.#fault("INVALID", `a CDB has 6 to ${SCSI_CDB_SIZE} bytes, not ${cdb.length}`);
    if (dataOut !== undefined && dataIn !== undefined)
      throw this.#fault("UNSUPPORTED", "data goes one way: INOUT is not negotiated");
    const { maxTransfer } = this.#sim.host;
    const length = (dataOut ?? dataIn)?.length ?? 0;
    if (length > maxTransfer)
      throw this.#fault("INVALID", `${length} bytes are more than a command moves, ${maxTransfer}`);
    if (timeout !== undefined && !(timeout >= 1))
      throw this.#fault("INVALID", `the time-out is ${timeout} ms`);
  }

  /** @throws VirtioFault INVALID */
  checkAddress({ target, lun }: ScsiAddress): void {
    const { maxTarget, maxLun } = this.#sim.host;
    const within = (value: number, max: number): boolean =>
      Number.isInteger(value) && value >= 0 && value <= max;
    if (!within(target, maxTarget))
      throw this.#fault("INVALID", `target ${target} is not from 0 to ${maxTarget}`);
    if (!within(lun, maxLun)) throw this.#fault("INVALID", `lun ${lun} is not from 0 to ${maxLun}`);
  }

  /** False: it is over, or the device does not know it. @throws VirtioFault NOT_FOUND, and as ControlQueue */
  async abort(task: ScsiTask): Promise<boolean> {
    return this.#abort(this.#ccbOf(task));
  }

  async #abort(ccb: Ccb): Promise<boolean> {
    const { unit } = ccb;
    if (unit === null) return false;
    if (unit.withdraw(ccb, this.#fault("IO", "the command was aborted"))) return true;
    const { tagLow, tagHigh } = ccb;
    await this.#sim.control.manage(ScsiTmf.ABORT_TASK, unit, [tagLow, tagHigh]);
    return true;
  }

  async query(task: ScsiTask): Promise<boolean> {
    const ccb = this.#ccbOf(task);
    if (ccb.unit === null) return false;
    const response = await this.#sim.control.manage(ScsiTmf.QUERY_TASK, ccb.unit, [
      ccb.tagLow,
      ccb.tagHigh,
    ]);
    return response === ScsiControlResponse.FUNCTION_SUCCEEDED;
  }

  #ccbOf(task: ScsiTask): Ccb {
    const ccb = this.#tasks.get(task);
    if (ccb === undefined) throw this.#fault("NOT_FOUND", "the task is not of this bus");
    return ccb;
  }

  #fault(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.#sim.name });
  }
}

const resultOf = ({ status, sense, senseLength, residual }: Ccb): ScsiResult => ({
  status,
  sense: decodeSense(sense, senseLength),
  residual,
});

/** `28 00 00 …` */
export const hex = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");

// The control queue of a SCSI host (virtio 1.4 §5.6.6.2): task management functions, and subscriptions to notifications.
import {
  SCSI_LUN_SIZE,
  ScsiAnAnswer,
  ScsiAnRequest,
  ScsiAsc,
  ScsiControl,
  ScsiControlResponse,
  ScsiResponse,
  ScsiTmf,
  ScsiTmfRequest,
} from "@virtio/core/scsi";
import type { DeviceChain } from "@virtio/ring";
import { type ScsiSlot, type SlotQueue, whenOver } from "./scsi-queue.js";
import type { ScsiParts } from "./scsi-requests.js";
import type { ScsiTask } from "./scsi-task-set.js";
import { ScsiUnit } from "./scsi-unit.js";

/** A task management function, as it was read. */
interface TaskManagement {
  readonly subtype: number;
  readonly field: Uint8Array;
  readonly idLow: number;
  readonly idHigh: number;
}

/** An end, now or later. */
type ControlOutcome = ScsiControlResponse | Promise<ScsiControlResponse>;

const { FUNCTION_COMPLETE, FUNCTION_SUCCEEDED, FUNCTION_REJECTED } = ScsiControlResponse;
const { BAD_TARGET, INCORRECT_LUN, FAILURE } = ScsiControlResponse;

/** Executes what comes by the control queue. */
export class ScsiControlRequests {
  readonly #parts: ScsiParts;
  readonly #request = new DataView(new ArrayBuffer(ScsiTmfRequest.SIZE));

  constructor(parts: ScsiParts) {
    this.#parts = parts;
  }

  /** A chain of the control queue was taken. */
  take(queue: SlotQueue, slot: ScsiSlot): void {
    const { chain } = slot;
    const request = this.#request;
    const length = chain.read(0, new Uint8Array(request.buffer));
    const type = length < 4 ? -1 : request.getUint32(ScsiTmfRequest.TYPE, true);
    this.#parts.rules?.control(request, length, type);
    if (type === ScsiControl.TMF && length >= ScsiTmfRequest.SIZE && chain.writableLength >= 1)
      this.#manage(queue, slot);
    else if (
      (type === ScsiControl.AN_QUERY || type === ScsiControl.AN_SUBSCRIBE) &&
      length >= ScsiAnRequest.SIZE &&
      chain.writableLength >= ScsiAnAnswer.SIZE
    )
      this.#notifications(queue, slot, type);
    else {
      const known = ScsiControl[type] !== undefined;
      this.#answer(queue, slot, [type, 0], known ? FAILURE : FUNCTION_REJECTED, 0);
    }
  }

  /** Writes the response as the last byte of an answer of `at + 1` bytes, if there is room. */
  #answer(
    queue: SlotQueue,
    slot: ScsiSlot,
    [type, subtype]: readonly [type: number, subtype: number],
    honest: ScsiControlResponse,
    at: number,
  ): void {
    const { lies } = this.#parts;
    const response = lies.control === undefined ? honest : lies.control(type, subtype, honest);
    if (response === null || slot.over) return;
    const written = at + slot.chain.write(at, Uint8Array.of(response));
    queue.give(slot, written);
  }

  // ── task management functions ───────────────────────────────────────────────

  #manage(queue: SlotQueue, slot: ScsiSlot): void {
    const { host, lies } = this.#parts;
    const request = this.#request;
    const subtype = request.getUint32(ScsiTmfRequest.SUBTYPE, true);
    const field = fieldAt(request, ScsiTmfRequest.LUN);
    const idLow = request.getUint32(ScsiTmfRequest.ID, true);
    const idHigh = request.getUint32(ScsiTmfRequest.ID + 4, true);
    const done = lies.manages?.(subtype) ?? true;
    const outcome = done ? this.#execute({ subtype, field, idLow, idHigh }) : FUNCTION_COMPLETE;
    // A task of its own, behind those that tell the driver what the function ended: it sees that first.
    const answer = (response: ScsiControlResponse): void =>
      host.tasks.enqueue(() => this.#answer(queue, slot, [ScsiControl.TMF, subtype], response, 0));
    if (outcome instanceof Promise) void outcome.then(answer);
    else answer(outcome);
  }

  #execute({ subtype, field, idLow, idHigh }: TaskManagement): ControlOutcome {
    if (ScsiTmf[subtype] === undefined || subtype === ScsiTmf.CLEAR_ACA) return FUNCTION_REJECTED;
    const { targets, rules } = this.#parts;
    const addressee = targets.at(field);
    if (addressee === null) return BAD_TARGET;
    const target = targets.targetAt(field);
    if (target !== null && subtype === ScsiTmf.I_T_NEXUS_RESET)
      return reset([...target.units.values()], ScsiAsc.I_T_NEXUS_LOSS);
    if (!(addressee instanceof ScsiUnit)) return INCORRECT_LUN;
    const { tasks } = addressee;
    const task = tasks.find(idLow, idHigh);
    if (subtype === ScsiTmf.ABORT_TASK || subtype === ScsiTmf.QUERY_TASK)
      rules?.named(tasks, idLow, idHigh);
    switch (subtype) {
      case ScsiTmf.ABORT_TASK:
        return abort(addressee, task === undefined ? [] : [task]);
      case ScsiTmf.ABORT_TASK_SET:
      case ScsiTmf.CLEAR_TASK_SET:
        return abort(addressee, [...tasks.tasks]);
      case ScsiTmf.LOGICAL_UNIT_RESET:
        return reset([addressee], ScsiAsc.BUS_DEVICE_RESET);
      case ScsiTmf.QUERY_TASK:
        return task === undefined ? FUNCTION_COMPLETE : FUNCTION_SUCCEEDED;
      default:
        return tasks.size === 0 ? FUNCTION_COMPLETE : FUNCTION_SUCCEEDED;
    }
  }

  // ── asynchronous notifications ──────────────────────────────────────────────

  #notifications(
    queue: SlotQueue,
    slot: ScsiSlot,
    type: ScsiControl.AN_QUERY | ScsiControl.AN_SUBSCRIBE,
  ): void {
    const request = this.#request;
    const addressee = this.#parts.targets.at(fieldAt(request, ScsiAnRequest.LUN));
    const asked = request.getUint32(ScsiAnRequest.EVENT_REQUESTED, true);
    const unit = addressee instanceof ScsiUnit ? addressee : null;
    const actual = unit === null ? 0 : asked & unit.disk.asyncEvents;
    if (unit !== null && type === ScsiControl.AN_SUBSCRIBE) unit.subscribed = actual;
    const noUnit = addressee === null ? BAD_TARGET : INCORRECT_LUN;
    writeWord(slot.chain, ScsiAnAnswer.EVENT_ACTUAL, actual);
    const response = unit === null ? noUnit : FUNCTION_COMPLETE;
    this.#answer(queue, slot, [type, 0], response, ScsiAnAnswer.RESPONSE);
  }
}

const fieldAt = (request: DataView, at: number): Uint8Array =>
  new Uint8Array(request.buffer, at, SCSI_LUN_SIZE);

const writeWord = (chain: DeviceChain, at: number, value: number): void => {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  chain.write(at, bytes);
};

/** When these tasks have ended, and the driver can see it. */
async function after(over: Promise<void> | null, tasks: readonly ScsiTask[]): Promise<void> {
  await over;
  await whenOver(tasks.map(({ slot }) => slot));
}

function abort(unit: ScsiUnit, tasks: readonly ScsiTask[]): ControlOutcome {
  const over = unit.tasks.abort(tasks, ScsiResponse.ABORTED);
  if (over === null && tasks.every(({ slot }) => slot.over)) return FUNCTION_COMPLETE;
  return after(over, tasks).then(() => FUNCTION_COMPLETE);
}

function reset(units: readonly ScsiUnit[], asc: ScsiAsc): ControlOutcome {
  const tasks = units.flatMap((unit) => [...unit.tasks.tasks]);
  const waits = units.map((unit) => unit.reset(ScsiResponse.RESET, asc));
  if (waits.every((wait) => wait === null) && tasks.every(({ slot }) => slot.over))
    return FUNCTION_COMPLETE;
  const all = Promise.all(waits).then(() => {});
  return after(all, tasks).then(() => FUNCTION_COMPLETE);
}

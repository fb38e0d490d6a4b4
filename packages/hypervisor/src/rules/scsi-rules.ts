// Rules that a SCSI host sees in its queues and its configuration: virtio 1.4 §5.6.
import { ReservedFeature } from "@virtio/core";
import {
  SCSI_LUN_SIZE,
  ScsiAsc,
  ScsiConfig,
  ScsiControl,
  ScsiEvent,
  ScsiEventBuffer,
  ScsiFeature,
  ScsiOpcode,
  ScsiQueue,
  ScsiRequest,
  ScsiResetReason,
  ScsiResponse,
  ScsiTaskAttribute,
  ScsiTmf,
  ScsiTmfRequest,
} from "@virtio/core/scsi";
import type { DeviceChain, DeviceQueue } from "@virtio/ring";
import type { ModelHost } from "../device-model.js";
import type { ScsiCommand } from "../models/scsi-command.js";
import type { ScsiConfiguration } from "../models/scsi-config.js";
import type { ScsiEventReport } from "../models/scsi-events.js";
import type { ScsiTargets } from "../models/scsi-target.js";
import type { ScsiTaskSet } from "../models/scsi-task-set.js";
import { ScsiUnit } from "../models/scsi-unit.js";
import type { RuleBook } from "./rule-book.js";

/** What the rules need to know. */
export interface ScsiRulesOptions {
  readonly book: RuleBook;
  readonly device: string;
  readonly host: ModelHost;
  readonly configuration: ScsiConfiguration;
  readonly targets: ScsiTargets;
}

/** Commands, but for those that look for units, after which a driver that was told something has had time enough to act on it. */
const PATIENCE = 256;

/** Commands that are at the head of the queue by themselves (SPC-4; SAM-5, head of queue). */
const atHead: readonly number[] = [
  ScsiOpcode.INQUIRY,
  ScsiOpcode.REPORT_LUNS,
  ScsiOpcode.REQUEST_SENSE,
];
/** Commands that look for units and their attention. */
const looking: readonly number[] = [
  ScsiOpcode.TEST_UNIT_READY,
  ScsiOpcode.REPORT_LUNS,
  ScsiOpcode.INQUIRY,
];
/** Commands that find what notifications would have said. */
const polling: readonly number[] = [
  ScsiOpcode.TEST_UNIT_READY,
  ScsiOpcode.REQUEST_SENSE,
  ScsiOpcode.GET_EVENT_STATUS_NOTIFICATION,
];
const inventory: readonly number[] = [ScsiOpcode.REPORT_LUNS, ScsiOpcode.INQUIRY];
const capacity: readonly number[] = [ScsiOpcode.READ_CAPACITY_10, ScsiOpcode.SERVICE_ACTION_IN_16];

/** A command, and whom it is for. */
interface Seen {
  readonly opcode: number;
  readonly target: number;
  /** Null: a well-known unit's. */
  readonly lun: number | null;
}

/** What a driver that was told something is to do. */
interface Expectation {
  readonly clauses: readonly string[];
  readonly what: string;
  readonly met: (seen: Seen) => boolean;
  /** Commands that may come before. */
  left: number;
}

/** Commands that failed in a way that another path would not mend. */
interface Failed {
  readonly unit: ScsiUnit;
  readonly cdb: string;
}

const swapped = (word: number): number =>
  ((word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24)) >>> 0;

/** Watches one SCSI driver. */
export class ScsiRules {
  readonly #options: ScsiRulesOptions;
  #expectations: Expectation[] = [];
  #failed: Failed | null = null;
  /** A request was seen since the last reset. */
  #working = false;

  constructor(options: ScsiRulesOptions) {
    this.#options = options;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    const { book, device } = this.#options;
    book.check(clause, kept, device, what);
  }

  get #legacy(): boolean {
    return !this.#options.configuration.has(ReservedFeature.VERSION_1);
  }

  /** A write to the configuration (§5.6.4.1). */
  configWrite(offset: number, width: 1 | 2 | 4, value: number): void {
    const [first] = ScsiConfig.senseSize;
    const [last, length] = ScsiConfig.cdbSize;
    this.#check(
      "SCSI-CFG-1",
      offset >= first && offset + width <= last + length,
      () => `${width} bytes at configuration offset ${offset} were written`,
    );
    // Only a whole word shows its order; no size is that long.
    if (this.#legacy && width === 4)
      this.#check(
        "SCSI-CFG-LEGACY-1",
        value <= 0xffff || swapped(value) > 0xffff,
        () =>
          `${swapped(value)} is written to configuration offset ${offset} in the other byte order`,
      );
  }

  // ── requests (§5.6.5, §5.6.6.1) ─────────────────────────────────────────────

  /** A request queue is looked at, before chains are taken: whether too many commands are for one unit. */
  requests(queue: DeviceQueue): void {
    const { configuration, targets } = this.#options;
    const field = new Uint8Array(SCSI_LUN_SIZE);
    const waiting = new Map<ScsiUnit, number>();
    peek(queue, (chain) => {
      chain.read(ScsiRequest.LUN, field);
      const addressee = targets.at(field);
      if (addressee instanceof ScsiUnit)
        waiting.set(addressee, (waiting.get(addressee) ?? addressee.tasks.size) + 1);
    });
    for (const [{ target, lun }, commands] of waiting) {
      const what = (most: number) => () =>
        `${commands} commands of ${most} at unit ${lun} of target ${target}`;
      const { cmdPerLun } = configuration;
      this.#check("SCSI-CFG-2", commands <= cmdPerLun, what(cmdPerLun));
      this.#check("SCSI-CFG-3", commands <= queue.size, what(queue.size));
    }
  }

  /** A request was taken; `request` is its readable part up to the CDB's end, `answerSize` what is writable up to data-in. */
  request(chain: DeviceChain, request: Uint8Array, command: ScsiCommand, answerSize: number): void {
    if (!this.#working) this.#begin();
    const { opcode } = command;
    const [attribute = 0, prio = 0, crn = 0] = request.subarray(ScsiRequest.TASK_ATTR);
    this.#check(
      "SCSI-REQ-1",
      attribute === 0 && prio === 0 && crn === 0,
      () => `task_attr ${attribute}, prio ${prio}, crn ${crn}`,
    );
    this.#check(
      "SCSI-ATTR-1",
      attribute !== ScsiTaskAttribute.ORDERED || !atHead.includes(opcode),
      () => `command 0x${opcode.toString(16)} is ORDERED`,
    );
    const legacy = this.#legacy;
    if (legacy && !this.#options.configuration.has(ReservedFeature.ANY_LAYOUT))
      this.#checkFraming(chain, request.length, answerSize);
    const { targets } = this.#options;
    const addressee = targets.at(request);
    const unit = addressee instanceof ScsiUnit ? addressee : null;
    this.#checkPath(unit, command);
    const seen = { opcode, target: request[1] as number, lun: unit?.lun ?? null };
    // The host's own well-known unit is of no target.
    if (targets.targetAt(request) !== null || addressee === null) this.#meet(seen);
  }

  /** The first request (§5.6.5). */
  #begin(): void {
    this.#working = true;
    const { host, configuration } = this.#options;
    const control = host.queue(ScsiQueue.CONTROL);
    const events = host.queue(ScsiQueue.EVENT);
    this.#check(
      "SCSI-INIT-1",
      control !== null && events !== null,
      () => "a request comes before the queues are set up",
    );
    if (configuration.has(ScsiFeature.HOTPLUG) || configuration.has(ScsiFeature.CHANGE))
      this.#check(
        "SCSI-INIT-2",
        this.#eventBuffers() > 0,
        () => "events are wanted, and there is no buffer for one",
      );
  }

  /** Without ANY_LAYOUT (§5.6.6.4). */
  #checkFraming(chain: DeviceChain, requestSize: number, answerSize: number): void {
    const [request] = chain.readablePieces(0, chain.readableLength);
    const [answer] = chain.writablePieces(0, chain.writableLength);
    this.#check(
      "SCSI-FRAME-LEGACY-1",
      request?.length === requestSize,
      () => `request header in ${request?.length ?? 0} bytes of ${requestSize} (no ANY_LAYOUT)`,
    );
    this.#check(
      "SCSI-FRAME-LEGACY-2",
      answer?.length === answerSize,
      () => `response in ${answer?.length ?? 0} bytes of ${answerSize} (no ANY_LAYOUT)`,
    );
  }

  /** The driver got a response. */
  answered(unit: ScsiUnit, command: ScsiCommand, response: number): void {
    if (response === ScsiResponse.TARGET_FAILURE) this.#failed = { unit, cdb: `${command.cdb}` };
  }

  /** TARGET_FAILURE: the same command to the same disk at another address would be a retry on another path (§5.6.6.1.2). */
  #checkPath(unit: ScsiUnit | null, command: ScsiCommand): void {
    const failed = this.#failed;
    if (unit === null || failed === null) return;
    const { serial } = failed.unit.disk.identity;
    if (serial === "" || unit.disk.identity.serial !== serial) return;
    this.#check(
      "SCSI-REQ-2",
      unit === failed.unit || `${command.cdb}` !== failed.cdb,
      () => `the command that failed at target ${failed.unit.target} is tried at ${unit.target}`,
    );
  }

  // ── control queue (§5.6.6.2) ────────────────────────────────────────────────

  /** A control request was taken: its first `length` bytes. */
  control(request: DataView, length: number, type: number): void {
    if (!this.#legacy || length < ScsiTmfRequest.LUN) return;
    const subtype = request.getUint32(ScsiTmfRequest.SUBTYPE, true);
    const other =
      (ScsiControl[type] === undefined && ScsiControl[swapped(type)] !== undefined) ||
      (type === ScsiControl.TMF &&
        ScsiTmf[subtype] === undefined &&
        ScsiTmf[swapped(subtype)] !== undefined);
    this.#check(
      "SCSI-CTRL-LEGACY-1",
      !other,
      () => `control request type ${type}, subtype ${subtype} is in the other byte order`,
    );
  }

  /** A task management function names a task: the `id` of both is in the same order. */
  named(tasks: ScsiTaskSet, idLow: number, idHigh: number): void {
    if (!this.#legacy) return;
    const found = tasks.find(idLow, idHigh) !== undefined;
    const other = tasks.find(swapped(idHigh), swapped(idLow)) !== undefined;
    if (found || other)
      this.#check(
        "SCSI-REQ-LEGACY-1",
        found,
        () => `the id of a request and that of a function are not in the same byte order`,
      );
  }

  // ── event queue (§5.6.6.3) ──────────────────────────────────────────────────

  /** The driver rang the event queue. */
  eventBuffers(queue: DeviceQueue): void {
    peek(queue, ({ readableLength, writableLength }) => {
      this.#check(
        "SCSI-EVT-2",
        readableLength === 0 && writableLength > 0,
        () => `an event buffer has ${readableLength} readable bytes`,
      );
      const [at] = ScsiConfig.eventInfoSize;
      const wanted = this.#options.configuration.read(at, 4);
      const is = (): string => `an event buffer of ${writableLength} bytes`;
      this.#check("SCSI-EVT-3", writableLength >= wanted, is);
      this.#check("SCSI-EVT-4", writableLength >= ScsiEventBuffer.SIZE, is);
    });
  }

  /** Buffers that wait for events. */
  #eventBuffers(): number {
    const queue = this.#options.host.queue(ScsiQueue.EVENT);
    return queue === null ? 0 : peek(queue, () => {});
  }

  /** The driver was told: of an event, null where there was none to tell, and that others were missed. */
  told(report: ScsiEventReport | null, missed: boolean): void {
    this.#expect(["SCSI-EVT-1"], "no event buffer came back", () => this.#eventBuffers() > 0);
    if (missed) {
      const what = "events were missed";
      this.#expect(["SCSI-EVT-5"], what, ({ opcode }) => looking.includes(opcode));
      this.#expect(["SCSI-EVT-6"], what, ({ opcode }) => polling.includes(opcode));
    }
    if (report !== null) this.#expectAfter(report);
  }

  /** What an event asks for; on the legacy interface it shows, too, in which order the driver reads it. */
  #expectAfter({ event, target, lun, reason }: ScsiEventReport): void {
    const also = this.#legacy ? ["SCSI-EVT-LEGACY-1"] : [];
    const unit = `unit ${lun} of target ${target}`;
    const at = (seen: Seen): boolean => seen.target === target;
    if (event === ScsiEvent.PARAM_CHANGE && reason === eventReason(ScsiAsc.CAPACITY_DATA_CHANGED))
      this.#expect(
        ["SCSI-FEAT-2", ...also],
        `${unit} has another capacity`,
        (seen) => at(seen) && seen.lun === lun && capacity.includes(seen.opcode),
      );
    if (event !== ScsiEvent.TRANSPORT_RESET || reason === ScsiResetReason.HARD) return;
    if (reason === ScsiResetReason.RESCAN)
      this.#expect(
        ["SCSI-FEAT-1", ...also],
        `${unit} has come`,
        (seen) => at(seen) && (seen.lun === lun || seen.opcode === ScsiOpcode.REPORT_LUNS),
      );
    if (lun === 0)
      this.#expect(
        ["SCSI-EVT-7"],
        `${unit} has come or gone`,
        (seen) => at(seen) && inventory.includes(seen.opcode),
      );
  }

  #expect(clauses: readonly string[], what: string, met: Expectation["met"]): void {
    this.#expectations.push({ clauses, what, met, left: PATIENCE });
  }

  /** A command came: what it does, and what the driver has had time enough for. */
  #meet(seen: Seen): void {
    if (this.#expectations.length === 0) return;
    this.#expectations = this.#expectations.filter((expectation) => {
      const met = expectation.met(seen);
      if (!looking.includes(seen.opcode)) expectation.left -= 1;
      if (!met && expectation.left > 0) return true;
      for (const clause of expectation.clauses)
        this.#check(clause, met, () => `${expectation.what}, and ${PATIENCE} commands went on`);
      return false;
    });
  }

  /** The device is reset. */
  reset(): void {
    if (this.#failed !== null) this.#check("SCSI-REQ-2", true, () => "");
    this.#failed = null;
    this.#expectations = [];
    this.#working = false;
  }
}

/** An additional sense code as `reason` has it (§5.6.6.3): the code in bits 0 to 7, its qualifier in bits 8 to 15. */
export const eventReason = (asc: ScsiAsc): number => (asc >>> 8) | ((asc & 0xff) << 8);

/** Looks at the chains that wait in a queue, and leaves them there. @returns how many there are */
function peek(queue: DeviceQueue, look: (chain: DeviceChain) => void): number {
  const chains: DeviceChain[] = [];
  for (let chain = queue.take(); chain !== null; chain = queue.take()) {
    chains.push(chain);
    look(chain);
  }
  for (const chain of chains.toReversed()) queue.untake(chain);
  return chains.length;
}

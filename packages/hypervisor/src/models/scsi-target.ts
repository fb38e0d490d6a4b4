// The targets of a SCSI host and their logical units: who answers at an address (virtio 1.4 §5.6.6.1; SAM-5, SPC-4).
import { VirtioFault } from "@virtio/core";
import {
  SCSI_LUN_ADDRESS,
  SCSI_LUN_FLAT,
  SCSI_LUN_HIGH_MASK,
  SCSI_LUN_SIZE,
  SCSI_LUN_WELL_KNOWN,
  SCSI_WLUN_REPORT_LUNS,
  ScsiAsc,
  ScsiLun,
  ScsiOpcode,
  ScsiPeripheral,
  ScsiSenseKey,
} from "@virtio/core/scsi";
import { put32 } from "@virtio/packets";
import {
  checkCondition,
  fixedSense,
  good,
  type ScsiCommand,
  type ScsiReply,
} from "./scsi-command.js";
import { inquire, standardInquiry } from "./scsi-inquiry.js";
import { requestSense, type ScsiUnit } from "./scsi-unit.js";

/** LUNs below this have the short form in REPORT LUNS (SAM-5, peripheral device addressing). */
const PERIPHERAL_LUNS = 256;
/** Least allocation length of REPORT LUNS. */
const REPORT_LUNS_MIN = 16;

/** SELECT REPORT of REPORT LUNS, byte 2. */
enum SelectReport {
  UNITS = 0,
  WELL_KNOWN = 1,
  ALL = 2,
}

/** Who is at an address: a unit, or something that answers in its place. */
export type ScsiAddressee = ScsiUnit | ScsiStandIn;

/** What answers where there is no unit. It has no tasks: every command is over at once. */
export interface ScsiStandIn {
  readonly execute: (command: ScsiCommand) => ScsiReply;
}

const lunNotSupported = (): ScsiReply =>
  checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.LUN_NOT_SUPPORTED);

/** A LUN as REPORT LUNS and events have it, from byte `at` on. */
function putLun(bytes: Uint8Array, at: number, lun: number): void {
  bytes[at] = lun < PERIPHERAL_LUNS ? 0 : SCSI_LUN_FLAT | (lun >>> 8);
  bytes[at + 1] = lun;
}

/** The `lun` field of a unit, as events have it. */
export function lunField(target: number, lun: number): Uint8Array {
  const field = new Uint8Array(SCSI_LUN_SIZE);
  field[ScsiLun.FIRST] = SCSI_LUN_ADDRESS;
  field[ScsiLun.TARGET] = target;
  putLun(field, ScsiLun.HIGH, lun);
  return field;
}

/** No unit has this LUN. */
const NO_LUN = -1;

/** The LUN that two bytes name, flat or short; NO_LUN: they are of another form. */
function singleLevel(high: number, low: number): number {
  if (high === 0) return low;
  const flat = (high & ~SCSI_LUN_HIGH_MASK) === SCSI_LUN_FLAT;
  return flat ? ((high & SCSI_LUN_HIGH_MASK) << 8) | low : NO_LUN;
}

/** REPORT LUNS: entries of 8 bytes. */
function reportLuns(
  command: ScsiCommand,
  units: readonly Uint8Array[],
  wellKnown: readonly Uint8Array[],
): ScsiReply {
  const allocation = command.word32(6);
  const select = command.byte(2);
  if (select > SelectReport.ALL || allocation < REPORT_LUNS_MIN)
    return checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_FIELD_IN_CDB);
  const entries = [
    ...(select === SelectReport.WELL_KNOWN ? [] : units),
    ...(select === SelectReport.UNITS ? [] : wellKnown),
  ];
  const data = new Uint8Array(8 + SCSI_LUN_SIZE * entries.length);
  put32(data, 0, SCSI_LUN_SIZE * entries.length);
  for (const [i, entry] of entries.entries()) data.set(entry, 8 + SCSI_LUN_SIZE * i);
  return command.answer(data, allocation);
}

/** The REPORT LUNS well-known unit of a target, or of the whole host. */
const wellKnownField = Uint8Array.of(SCSI_LUN_WELL_KNOWN, SCSI_WLUN_REPORT_LUNS, 0, 0, 0, 0, 0, 0);

const wellKnownIdentity = {
  type: ScsiPeripheral.WELL_KNOWN,
  product: "REPORT LUNS",
  removable: false,
  serial: "",
  designation: "",
} as const;

/** One target. It exists while it has a unit. */
export class ScsiTarget {
  readonly number: number;
  readonly units: Map<number, ScsiUnit> = new Map();
  readonly #wellKnown: ScsiStandIn;

  constructor(number: number) {
    this.number = number;
    this.#wellKnown = wellKnownUnit((command) => this.reportLuns(command));
  }

  /** Units, by LUN. */
  get inventory(): readonly ScsiUnit[] {
    return [...this.units.values()].sort((a, b) => a.lun - b.lun);
  }

  reportLuns(command: ScsiCommand): ScsiReply {
    const entries = this.inventory.map(({ lun }) => {
      const entry = new Uint8Array(SCSI_LUN_SIZE);
      putLun(entry, 0, lun);
      return entry;
    });
    const reply = reportLuns(command, entries, [wellKnownField]);
    if (reply.given > 0)
      for (const unit of this.units.values()) unit.heard(ScsiAsc.REPORTED_LUNS_DATA_CHANGED);
    return reply;
  }

  /** Who answers at these two bytes of a `lun` field. */
  at(high: number, low: number): ScsiAddressee {
    if (high === SCSI_LUN_WELL_KNOWN && low === SCSI_WLUN_REPORT_LUNS) return this.#wellKnown;
    const lun = singleLevel(high, low);
    return this.units.get(lun) ?? { execute: (command) => this.#answerAbsent(command, lun) };
  }

  /** Where no unit is: INQUIRY says so, REPORT LUNS says where they are. */
  #answerAbsent(command: ScsiCommand, lun: number): ScsiReply {
    switch (command.opcode) {
      case ScsiOpcode.REPORT_LUNS:
        return this.reportLuns(command);
      case ScsiOpcode.INQUIRY: {
        if (command.byte(1) !== 0 || command.byte(2) !== 0) return lunNotSupported();
        // LUN 0 could have a unit, and has none now; elsewhere there is nothing that could.
        const type = lun === 0 ? NOT_CONNECTED : ScsiPeripheral.NOT_THERE | ScsiPeripheral.UNKNOWN;
        return command.answer(standardInquiry(type, "TARGET", false), command.word16(3));
      }
      case ScsiOpcode.REQUEST_SENSE:
        return requestSense(
          command,
          fixedSense(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.LUN_NOT_SUPPORTED),
        );
      default:
        return lunNotSupported();
    }
  }
}

/** Qualifier 1 and no type: a unit could be here (SPC-4, standard INQUIRY data). */
const NOT_CONNECTED = 0x20 | ScsiPeripheral.UNKNOWN;

/** A REPORT LUNS well-known logical unit (SPC-4, well known logical units). */
const wellKnownUnit = (report: (command: ScsiCommand) => ScsiReply): ScsiStandIn => ({
  execute(command) {
    switch (command.opcode) {
      case ScsiOpcode.TEST_UNIT_READY:
        return good();
      case ScsiOpcode.REPORT_LUNS:
        return report(command);
      case ScsiOpcode.INQUIRY:
        return inquire(command, wellKnownIdentity);
      case ScsiOpcode.REQUEST_SENSE:
        return requestSense(
          command,
          fixedSense(ScsiSenseKey.NO_SENSE, ScsiAsc.NO_ADDITIONAL_SENSE),
        );
      default:
        return checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_OPCODE);
    }
  },
});

/** All targets of a host. */
export class ScsiTargets {
  readonly #targets = new Map<number, ScsiTarget>();
  /** The REPORT LUNS unit of the host lists the addresses of all units. */
  readonly #wellKnown = wellKnownUnit((command) =>
    reportLuns(
      command,
      [...this.units()].map(({ target, lun }) => lunField(target, lun)),
      [wellKnownField],
    ),
  );

  /** Every unit, by target and LUN. */
  units(): readonly ScsiUnit[] {
    return [...this.#targets.values()]
      .sort((a, b) => a.number - b.number)
      .flatMap(({ inventory }) => inventory);
  }

  find(target: number, lun: number): ScsiUnit | undefined {
    return this.#targets.get(target)?.units.get(lun);
  }

  /** The target of this number, made if there is none. */
  target(number: number): ScsiTarget {
    const target = this.#targets.get(number) ?? new ScsiTarget(number);
    this.#targets.set(number, target);
    return target;
  }

  /** Puts a unit where there is none. @throws VirtioFault EXISTS when there is one */
  add(unit: ScsiUnit): void {
    const { units } = this.target(unit.target);
    if (units.has(unit.lun))
      throw new VirtioFault("EXISTS", `target ${unit.target} has a unit ${unit.lun} already`);
    units.set(unit.lun, unit);
  }

  /** Takes a unit out; its target goes with its last one. */
  remove({ target: number, lun }: ScsiUnit): void {
    const target = this.target(number);
    target.units.delete(lun);
    if (target.units.size === 0) this.#targets.delete(number);
  }

  /** The target that a `lun` field names; null: there is no such. */
  targetAt(field: Uint8Array): ScsiTarget | null {
    if (field[ScsiLun.FIRST] !== SCSI_LUN_ADDRESS) return null;
    return this.#targets.get(field[ScsiLun.TARGET] as number) ?? null;
  }

  /** Who is at the address that `field` begins with; null: there is no such target. */
  at(field: Uint8Array): ScsiAddressee | null {
    const wellKnown =
      field[ScsiLun.FIRST] === SCSI_LUN_WELL_KNOWN &&
      field[ScsiLun.TARGET] === SCSI_WLUN_REPORT_LUNS;
    if (wellKnown) return this.#wellKnown;
    const target = this.targetAt(field);
    return target?.at(field[ScsiLun.HIGH] as number, field[ScsiLun.LOW] as number) ?? null;
  }
}

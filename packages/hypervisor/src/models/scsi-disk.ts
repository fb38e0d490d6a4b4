// A SCSI disk or CD-ROM: which commands it knows, and what of data each asks for (SPC-4, SBC-3, MMC-6).
import {
  ScsiAsc,
  ScsiAsyncEvent,
  ScsiOpcode,
  ScsiPeripheral,
  ScsiResponse,
  ScsiSenseKey,
  ScsiServiceAction,
} from "@virtio/core/scsi";
import { put32 } from "@virtio/packets";
import type { BlockBackend } from "../block-backend.js";
import { mediaEvents, tableOfContents } from "./scsi-cd.js";
import {
  checkCondition,
  good,
  put64,
  responded,
  type ScsiCommand,
  type ScsiOutcome,
  type ScsiReply,
} from "./scsi-command.js";
import { inquire, type ScsiIdentity } from "./scsi-inquiry.js";
import { blocksOf, comparedBlocks, ScsiMedium, sameBlocks } from "./scsi-medium.js";
import { modeLength, ScsiModePages } from "./scsi-mode.js";

const READ_CAPACITY_10_SIZE = 8;
const READ_CAPACITY_16_SIZE = 32;
/** In byte 14 of READ CAPACITY (16): blocks can be unmapped (LBPME). */
const LBPME = 0x80;

/** SEND DIAGNOSTIC, byte 1. */
const SELFTEST = 0x04;

/** START STOP UNIT, byte 4. */
enum Power {
  START = 1,
  LOEJ = 2,
  CONDITION = 0xf0,
}

/** How a unit is made. */
export interface ScsiDiskOptions {
  /** Null: no medium is in it. */
  readonly backend: BlockBackend | null;
  readonly cdRom: boolean;
  readonly removable: boolean;
  readonly readOnly: boolean;
  /** Bytes, a power of two from 512 on. */
  readonly blockSize: number;
  readonly serial: string;
  /** What tells it from all other units of the machine where it has no serial number. */
  readonly designation: string;
}

/** A command. */
interface DiskCommand {
  /** Bytes of data-out or data-in that a CDB asks for. */
  readonly out?: (command: ScsiCommand) => number;
  readonly in?: (command: ScsiCommand) => number;
  /** Only with a medium, and started. */
  readonly medium?: (command: ScsiCommand, medium: ScsiMedium) => ScsiOutcome;
  readonly run?: (command: ScsiCommand) => ScsiOutcome;
}

const illegal = (asc: ScsiAsc): ScsiReply => checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, asc);
const notReady = (asc: ScsiAsc): ScsiReply => checkCondition(ScsiSenseKey.NOT_READY, asc);

/** Bytes of data that commands of SPC allow or bring: bytes 7 and 8, bytes 10 to 13. */
const allocation16 = (command: ScsiCommand): number => command.word16(7);
const allocation32 = (command: ScsiCommand): number => command.word32(10);

/** A logical unit's device server, without what belongs to its address: attention, tasks, LUNs. */
export class ScsiDisk {
  readonly identity: ScsiIdentity;
  /** ScsiAsyncEvent bits that it can notify. */
  readonly asyncEvents: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly #readOnly: boolean;
  readonly #commands: ReadonlyMap<number, DiskCommand>;
  readonly #modes = new ScsiModePages();
  #medium: ScsiMedium | null;
  #started = true;
  #locked = false;
  /** The driver has not heard yet of a medium that came or went: for GET EVENT STATUS NOTIFICATION. */
  #changed: "came" | "went" | null = null;

  constructor(options: ScsiDiskOptions) {
    const { backend, cdRom, removable, readOnly, blockSize, serial, designation } = options;
    this.identity = {
      type: cdRom ? ScsiPeripheral.CD_ROM : ScsiPeripheral.DISK,
      product: cdRom ? "CD-ROM" : "SCSI DISK",
      removable,
      serial,
      designation,
    };
    this.asyncEvents = removable ? ScsiAsyncEvent.MEDIA_CHANGE : 0;
    this.blockSize = blockSize;
    this.#readOnly = readOnly;
    this.#medium = this.#mediumOf(backend);
    this.#commands = new Map(cdRom ? this.#cdCommands() : this.#diskCommands());
  }

  get medium(): ScsiMedium | null {
    return this.#medium;
  }

  get isCdRom(): boolean {
    return this.identity.type === ScsiPeripheral.CD_ROM;
  }

  #mediumOf(backend: BlockBackend | null): ScsiMedium | null {
    if (backend === null) return null;
    return new ScsiMedium(backend, this.blockSize, this.#readOnly, this.#modes);
  }

  /** Another medium, or none. @returns what was in it before */
  load(backend: BlockBackend | null): BlockBackend | null {
    const before = this.#medium?.backend ?? null;
    this.#medium = this.#mediumOf(backend);
    this.#changed = backend === null ? "went" : "came";
    this.#started = true;
    return before;
  }

  /** As after power-on. */
  reset(): void {
    this.#started = true;
    this.#locked = false;
    this.#modes.reset();
  }

  execute(command: ScsiCommand): ScsiOutcome {
    const row = this.#commands.get(command.opcode);
    if (row === undefined) return illegal(ScsiAsc.INVALID_OPCODE);
    // What the CDB asks for is in the request, or has room in it (§5.6.6.1).
    if ((row.out?.(command) ?? 0) > command.dataOut || (row.in?.(command) ?? 0) > command.dataIn)
      return responded(ScsiResponse.OVERRUN);
    if (row.medium === undefined) return row.run?.(command) ?? good();
    if (this.#medium === null) return notReady(ScsiAsc.MEDIUM_NOT_PRESENT);
    if (!this.#started) return notReady(ScsiAsc.NOT_READY_START_REQUIRED);
    return row.medium(command, this.#medium);
  }

  // ── tables of commands ──────────────────────────────────────────────────────

  /** Bytes of as many blocks as `count` finds in a CDB. */
  #bytes(count: (command: ScsiCommand) => number): (command: ScsiCommand) => number {
    return (command) => count(command) * this.blockSize;
  }

  /** Those of every unit. */
  #commonCommands(): readonly (readonly [opcode: ScsiOpcode, command: DiskCommand])[] {
    const read: DiskCommand = {
      in: this.#bytes(blocksOf),
      medium: (command, medium) => medium.read(command),
    };
    const verify: DiskCommand = {
      out: this.#bytes(comparedBlocks),
      medium: (command, medium) => medium.verify(command),
    };
    const sense: DiskCommand = {
      in: modeLength,
      run: (command) => this.#modes.sense(command, this.#medium),
    };
    return [
      [ScsiOpcode.TEST_UNIT_READY, { medium: () => good() }],
      [
        ScsiOpcode.INQUIRY,
        { in: (command) => command.word16(3), run: (command) => inquire(command, this.identity) },
      ],
      [ScsiOpcode.MODE_SENSE_6, sense],
      [ScsiOpcode.MODE_SENSE_10, sense],
      [ScsiOpcode.SEND_DIAGNOSTIC, { run: selfTest }],
      [ScsiOpcode.START_STOP_UNIT, { run: (command) => this.#startStop(command) }],
      [ScsiOpcode.PREVENT_ALLOW_MEDIUM_REMOVAL, { run: (command) => this.#prevent(command) }],
      [
        ScsiOpcode.READ_CAPACITY_10,
        {
          in: () => READ_CAPACITY_10_SIZE,
          medium: (command, medium) => capacity10(command, medium),
        },
      ],
      [ScsiOpcode.READ_10, read],
      [ScsiOpcode.READ_12, read],
      [ScsiOpcode.VERIFY_10, verify],
    ];
  }

  #diskCommands(): readonly (readonly [opcode: ScsiOpcode, command: DiskCommand])[] {
    const common = this.#commonCommands();
    const commands = new Map(common);
    const read = commands.get(ScsiOpcode.READ_10) as DiskCommand;
    const verify = commands.get(ScsiOpcode.VERIFY_10) as DiskCommand;
    const write: DiskCommand = {
      out: this.#bytes(blocksOf),
      medium: (command, medium) => medium.write(command),
    };
    const same: DiskCommand = {
      out: this.#bytes(sameBlocks),
      medium: (command, medium) => medium.writeSame(command),
    };
    const select: DiskCommand = {
      out: modeLength,
      run: (command) => this.#modes.select(command, this.#medium),
    };
    const synchronize: DiskCommand = { medium: (command, medium) => medium.synchronize(command) };
    return [
      ...common,
      [ScsiOpcode.MODE_SELECT_6, select],
      [ScsiOpcode.MODE_SELECT_10, select],
      [ScsiOpcode.READ_6, read],
      [ScsiOpcode.READ_16, read],
      [ScsiOpcode.WRITE_6, write],
      [ScsiOpcode.WRITE_10, write],
      [ScsiOpcode.WRITE_12, write],
      [ScsiOpcode.WRITE_16, write],
      [ScsiOpcode.VERIFY_16, verify],
      [ScsiOpcode.SYNCHRONIZE_CACHE_10, synchronize],
      [ScsiOpcode.SYNCHRONIZE_CACHE_16, synchronize],
      [ScsiOpcode.WRITE_SAME_10, same],
      [ScsiOpcode.WRITE_SAME_16, same],
      [ScsiOpcode.UNMAP, { out: allocation16, medium: (command, medium) => medium.unmap(command) }],
      [
        ScsiOpcode.SERVICE_ACTION_IN_16,
        { in: allocation32, medium: (command, medium) => capacity16(command, medium) },
      ],
    ];
  }

  #cdCommands(): readonly (readonly [opcode: ScsiOpcode, command: DiskCommand])[] {
    return [
      ...this.#commonCommands(),
      [
        ScsiOpcode.READ_TOC,
        { in: allocation16, medium: (command, medium) => tableOfContents(command, medium.blocks) },
      ],
      [
        ScsiOpcode.GET_EVENT_STATUS_NOTIFICATION,
        { in: allocation16, run: (command) => this.#events(command) },
      ],
    ];
  }

  // ── commands ────────────────────────────────────────────────────────────────

  #startStop(command: ScsiCommand): ScsiReply {
    const power = command.byte(4);
    // A power condition changes nothing that shows.
    if ((power & Power.CONDITION) !== 0) return good();
    const start = (power & Power.START) !== 0;
    if ((power & Power.LOEJ) !== 0) {
      if (!this.identity.removable) return illegal(ScsiAsc.INVALID_FIELD_IN_CDB);
      if (!start && this.#locked) return illegal(ScsiAsc.MEDIUM_REMOVAL_PREVENTED);
    }
    this.#started = start;
    return good();
  }

  #prevent(command: ScsiCommand): ScsiReply {
    this.#locked = (command.byte(4) & 1) !== 0;
    return good();
  }

  #events(command: ScsiCommand): ScsiReply {
    const reply = mediaEvents(command, this.#changed, this.#medium !== null);
    if (reply.given > 0) this.#changed = null;
    return reply;
  }
}

/** SEND DIAGNOSTIC: the default self-test, of which there is nothing to say. */
const selfTest = (command: ScsiCommand): ScsiReply =>
  (command.byte(1) & SELFTEST) === 0 || command.word16(3) > 0
    ? illegal(ScsiAsc.INVALID_FIELD_IN_CDB)
    : good();

/** READ CAPACITY (10): all ones where there are more blocks. */
function capacity10(command: ScsiCommand, { blocks, blockSize }: ScsiMedium): ScsiReply {
  const data = new Uint8Array(READ_CAPACITY_10_SIZE);
  put32(data, 0, Math.min(blocks - 1, 0xffff_ffff));
  put32(data, 4, blockSize);
  return command.answer(data, data.length);
}

function capacity16(command: ScsiCommand, { blocks, blockSize }: ScsiMedium): ScsiReply {
  if ((command.byte(1) & 0x1f) !== ScsiServiceAction.READ_CAPACITY_16)
    return illegal(ScsiAsc.INVALID_FIELD_IN_CDB);
  const data = new Uint8Array(READ_CAPACITY_16_SIZE);
  put64(data, 0, blocks - 1);
  put32(data, 8, blockSize);
  data[14] = LBPME;
  return command.answer(data, command.word32(10));
}

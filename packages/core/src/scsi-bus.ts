// What a SCSI host driver offers: a bus of targets and logical units, and commands by hand (FreeBSD's cam(4), pass(4)).
import type { Attached } from "./attached.js";

/** A logical unit of a bus. */
export interface ScsiAddress {
  readonly target: number;
  readonly lun: number;
}

/** How a command is queued among others of its unit (SAM-5, task attributes). */
export type ScsiAttribute = "simple" | "ordered" | "head" | "aca";

/** One command. Data goes one way at most. */
export interface ScsiCommand extends ScsiAddress {
  /** Command descriptor block: 6 to 32 bytes. */
  readonly cdb: Uint8Array;
  /** What the unit reads. */
  readonly dataOut?: Uint8Array;
  /** Where it writes; what it did not write stays as it is. */
  readonly dataIn?: Uint8Array;
  /** Milliseconds, at least 1. Default: the bus's. */
  readonly timeout?: number;
  /** Default `simple`. */
  readonly attribute?: ScsiAttribute;
  /** Aborts the task and ends the wait: at once, or when the device gave it back where the bytes are in guest memory. */
  readonly signal?: AbortSignal;
}

/** Sense data, of either format (SPC-4 §4.5). */
export interface ScsiSenseData {
  /** `ScsiSenseKey`. */
  readonly key: number;
  /** Additional sense code, and its qualifier. */
  readonly asc: number;
  readonly ascq: number;
  /** It is about an earlier command. */
  readonly deferred: boolean;
  /** INFORMATION where it is valid: of a medium error the block. */
  readonly information: number | null;
  /** As the unit gave them. */
  readonly bytes: Uint8Array;
  /** `MEDIUM ERROR asc:11,0 (Unrecovered read error)` */
  readonly text: string;
}

/** How a command ended that the unit answered. */
export interface ScsiResult {
  /** `ScsiStatus`: CHECK CONDITION and the like are answers, too. */
  readonly status: number;
  /** Null: there are none. */
  readonly sense: ScsiSenseData | null;
  /** Bytes of the data that were not moved. */
  readonly residual: number;
}

/** A logical unit that is there. */
export interface ScsiUnit extends ScsiAddress {
  /** Of INQUIRY, blanks at the end taken away. */
  readonly vendor: string;
  readonly product: string;
  readonly revision: string;
  /** Peripheral device type: 0 a disk, 5 a CD-ROM. */
  readonly type: number;
  /** `Fixed Direct Access SPC-3 SCSI device` */
  readonly description: string;
  /** Serial number; empty when it has none. */
  readonly serial: string;
  /** `da0`; null: nothing drives it. */
  readonly peripheral: string | null;
  /** It said that it can queue commands. */
  readonly queueing: boolean;
}

/** Which task management function (SAM-5). Those of a task name it by the promise of its command: see `abortTask`. */
export type ScsiFunction =
  | "abortTaskSet"
  | "clearAca"
  | "clearTaskSet"
  | "resetTarget"
  | "resetLun"
  | "queryTaskSet";

/** What a device tells of itself (virtio 1.4 §5.6.6.3). */
export interface ScsiBusEvent extends ScsiAddress {
  /** `ScsiEvent`. */
  readonly event: number;
  readonly reason: number;
  /** Others were lost before it. */
  readonly missed: boolean;
}

/** A command under way that can be named to a task management function. */
export interface ScsiTask extends ScsiAddress {
  readonly result: Promise<ScsiResult>;
}

/**
 * scbus0: the bus of a host adapter. Rejections are VirtioFaults: of a command that the unit did not answer IO, BUSY, TIMED_OUT,
 * CLOSED (no such target, or it is gone), DEVICE_MISBEHAVED; INVALID and UNSUPPORTED of arguments.
 */
export interface ScsiBus extends Attached {
  readonly kind: "scsi";
  /** `scbus0` */
  readonly name: string;
  /** `vtscsi0` */
  readonly adapter: string;
  readonly maxTarget: number;
  readonly maxLun: number;
  /** Most bytes that a command moves. */
  readonly maxTransfer: number;
  /** By target and LUN. */
  readonly units: readonly ScsiUnit[];
  /** Gives a unit one command, as it is: nothing is retried. */
  execute(command: ScsiCommand): Promise<ScsiResult>;
  /** The same, and the task that it is: for `abortTask` and `queryTask`. */
  begin(command: ScsiCommand): ScsiTask;
  /** Aborts a task; its command rejects. False: the unit has no such task any more. */
  abortTask(task: ScsiTask): Promise<boolean>;
  /** Whether the unit has the task. */
  queryTask(task: ScsiTask): Promise<boolean>;
  /** A task management function of a unit, or of its target. @returns of a query: whether there is a task */
  manage(what: ScsiFunction, address: ScsiAddress): Promise<boolean>;
  /** Which asynchronous notifications a unit has (`ScsiAsyncEvent`, a mask), of those asked for. */
  queryNotifications(address: ScsiAddress, events: number): Promise<number>;
  /** Asks for asynchronous notifications; they come to `onEvent`. @returns those that will come. @throws UNSUPPORTED */
  subscribeNotifications(address: ScsiAddress, events: number): Promise<number>;
  /** Calls `listener` as a task with each event of the device; call what it returns to stop. */
  onEvent(listener: (event: ScsiBusEvent) => void): () => void;
  /** Looks for units that came or are gone: of one target, or of all. */
  rescan(target?: number): Promise<void>;
  /** Resets the device; commands under way are retried or fail. Nothing where bus resets are disabled. */
  reset(): Promise<void>;
}

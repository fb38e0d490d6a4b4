// How a SCSI host lies; for tests of drivers.

/** What is left out is honest. Used lengths stay within what the driver made writable. */
export interface ScsiLies {
  /** Whether a command is answered at all: one that is not ends by a task management function, or with the device's reset. */
  readonly answers?: (opcode: number) => boolean;
  /** The response to a command. */
  readonly response?: (honest: number, opcode: number) => number;
  /** The SCSI status of a command. */
  readonly status?: (honest: number, opcode: number) => number;
  readonly residual?: (honest: number, opcode: number) => number;
  /** `sense_len` of a command's answer. */
  readonly senseLength?: (honest: number, opcode: number) => number;
  /** The sense data of a command, `sense_size` bytes, to be changed in place. */
  readonly sense?: (sense: Uint8Array, opcode: number) => void;
  /** used.len of a command: less, never more than there was room for. */
  readonly usedLength?: (honest: number, opcode: number) => number;
  /** The response to a control request; null: none ever comes. */
  readonly control?: (type: number, subtype: number, honest: number) => number | null;
  /** Whether a task management function is done at all; one that is not is answered as if it were. */
  readonly manages?: (subtype: number) => boolean;
  /** An event, 16 bytes, to be changed in place. */
  readonly event?: (event: Uint8Array) => void;
  /** used.len of an event: less, never more than there was room for. */
  readonly eventLength?: (honest: number) => number;
  /** What a read of the configuration gives. */
  readonly config?: (offset: number, width: 1 | 2 | 4, honest: number) => number;
}

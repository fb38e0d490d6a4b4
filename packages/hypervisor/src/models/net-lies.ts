// How a network device lies; for tests of drivers.

/** What is left out is honest. Used lengths and buffers stay within what the driver made writable. */
export interface NetLies {
  /** num_buffers of a received frame in place of the honest one. */
  readonly numBuffers?: (honest: number) => number;
  /** used.len of a received buffer: less, never more than there was room for. */
  readonly usedLength?: (honest: number) => number;
  /** The header of a received frame, to be changed in place before it is written. */
  readonly header?: (header: Uint8Array) => void;
  /** What a read of the configuration gives. */
  readonly config?: (offset: number, width: 1 | 2 | 4, honest: number) => number;
  /** The answer to a control command; null: none ever comes. */
  readonly ack?: (controlClass: number, command: number, honest: number) => number | null;
}

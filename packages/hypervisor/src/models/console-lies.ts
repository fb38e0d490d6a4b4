// How a console device lies; for tests of drivers.

/** What is left out is honest. What else a device may say wrongly goes by `ConsoleHost.inject()`. */
export interface ConsoleLies {
  /** What a read of the configuration gives. */
  readonly config?: (offset: number, width: 1 | 2 | 4, honest: number) => number;
  /** used.len of a buffer of this queue: less, never more than there was room for. */
  readonly usedLength?: (queue: number, honest: number) => number;
  /** A control message for which the driver has no buffer is lost, as QEMU's are. Default false: it waits. */
  readonly forgetful?: boolean;
  /** Whether the device looks at this queue. */
  readonly looks?: (queue: number) => boolean;
}

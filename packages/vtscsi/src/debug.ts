// What is logged besides faults: hw.vtscsi.debug_level, dev.vtscsi.N.debug_level.
import { type DriverContext, type Log, VirtioFault } from "@virtio/core";

/** Bits of debug_level. */
export enum DebugLevel {
  INFO = 1,
  ERROR = 2,
  TRACE = 4,
}

/** A log that can be turned on while the system runs. */
export class Debug {
  #level: number;
  readonly #log: Log;

  constructor({ log, sysctl, tunables }: DriverContext) {
    this.#level = tunables.number("debug_level");
    this.#log = log;
    sysctl.value(
      "debug_level",
      "What is logged: 1 information, 2 errors, 4 each command by hand",
      () => this.#level,
      (value) => {
        if (!/^\s*[0-7]\s*$/.test(value))
          throw new VirtioFault("INVALID", `debug_level '${value}' is not 0 to 7`);
        this.#level = Number(value);
      },
    );
  }

  say(level: DebugLevel, what: string): void {
    if ((this.#level & level) !== 0) this.#log(what);
  }
}

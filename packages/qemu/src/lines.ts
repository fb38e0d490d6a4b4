// A byte stream as lines, with a bound on their length: the other end may send anything.
import { VirtioFault } from "@virtio/core";

/** Cuts what arrives at line feeds; keeps the last, unfinished line. */
export class Lines {
  readonly #limit: number;
  #rest = "";

  /** @param limit characters of the longest line */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** The lines that `chunk` completes, without their ends. @throws VirtioFault DEVICE_MISBEHAVED for one that is too long */
  push(chunk: string): readonly string[] {
    const lines = (this.#rest + chunk).split("\n");
    this.#rest = lines.pop() ?? "";
    if (this.#rest.length > this.#limit || lines.some((line) => line.length > this.#limit))
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `QEMU sent a line of more than ${this.#limit} characters`,
      );
    return lines.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
  }
}

// What attach returns: a balloon as people see it.
import type { Attached } from "@virtio/core";
import type { BalloonCounters } from "./statistics.js";

/** A balloon at work. Pages are of 4 KiB. */
export interface BalloonDevice extends Attached {
  /** `vtballoon0` */
  readonly name: string;
  /** Pages that the device wants to have, as it was read last (`dev.vtballoon.N.desired`). */
  readonly desired: number;
  /** Pages in the balloon (`dev.vtballoon.N.current`). */
  readonly current: number;
  /** What it did since it was attached. */
  readonly statistics: Readonly<BalloonCounters>;
  /**
   * Waits until the balloon has the size that the device wants at a look from now on: for ever where there is no memory for it.
   * @throws VirtioFault CLOSED: it was detached; what ended it; or the signal's reason
   */
  reached(options?: { readonly signal?: AbortSignal | undefined }): Promise<void>;
}

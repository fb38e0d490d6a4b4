// A driver at work on one device.
import type { VirtioFault } from "./errors.js";

/** What attach returns: a driver at work on one device. */
export interface Attached {
  /** After DRIVER_OK: work that needs a live device. (attach_completed) */
  started?(): Promise<void>;
  /** Ends in `device.release()`. A second call waits for the first. */
  detach(): Promise<void>;
  suspend(): Promise<void>;
  resume(): Promise<void>;
  /** Resolves once: null when detached in order, else what ended it. */
  readonly closed: Promise<VirtioFault | null>;
}

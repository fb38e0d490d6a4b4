// How a test, or who writes a VMM, makes functions that are not laid out as usual.
import type { CapabilitySpec, PciIdentity } from "./configuration.js";

/** What every function of a machine has otherwise than usual. What is given is really so: registers answer where it says. */
export interface Distortion {
  /** The BAR in which the virtio structures lie. Default memory. */
  readonly structures?: "memory" | "io";
  /** Bytes between two doorbells: queue_notify_off is the queue's index. Default 4; 0: one doorbell for all. */
  readonly notifyMultiplier?: number;
  /** Bytes of the device configuration, of which those beyond the structure are padding. Default: its length. */
  readonly configLength?: number;
  /** The capability list: gets the usual one, in order, and returns another. Links are made from what it returns. */
  readonly capabilities?: (usual: readonly CapabilitySpec[]) => readonly CapabilitySpec[];
  /** Ids of the function, where they differ. */
  readonly identity?: Partial<PciIdentity>;
}

// What stands behind a network device model: a wire.
import type { NetBackendName, TaskQueue } from "@virtio/core";

/**
 * What stands behind a network device model. Frames on it are whole Ethernet frames without FCS: checksums complete, no longer than
 * the wire takes, no virtio header. Nothing here throws.
 */
export interface NetBackend {
  /** Most bytes of a frame. */
  readonly maxFrame: number;
  readonly linkUp: boolean;
  /** Set by the device. */
  onLinkChange: (() => void) | null;
  /**
   * Set by the device: a frame for it, `bytes[offset]` to `bytes[offset + length - 1]`, valid during the call. Called in the device's
   * lane. False: there is no room, or no link; the wire drops the frame, or keeps it until `room`.
   */
  deliver: ((bytes: Uint8Array, offset: number, length: number) => boolean) | null;
  /** Called by the device when there is room again after deliver() gave false. */
  room?(): void;
  /**
   * A frame from the device, valid during the call. False: there is no room now; the device keeps it and tries again when `onReady`
   * is called.
   */
  send(bytes: Uint8Array, offset: number, length: number): boolean;
  /** Set by the device. */
  onReady: (() => void) | null;
  /** Work of the wire runs in the device's lane; called once. */
  connect?(tasks: TaskQueue): void;
  /** Gives back what the wire holds: a socket, a file. */
  close(): Promise<void>;
}

/** Opens a wire that is not of this machine. */
export type OpenNet = (backend: NetBackendName) => Promise<NetBackend>;

/** Most bytes of a frame where nothing else is said: Ethernet, a VLAN tag and 9216 bytes of payload. */
export const DEFAULT_MAX_FRAME: number = 14 + 4 + 9216;

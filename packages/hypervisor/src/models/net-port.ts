// What one sees of a network device at its back: for tests and for tools.
import type { NetFilterState } from "./net-filter.js";

/** What a network device counted since it was made. Frames, but for `segments`, `commands` and `refused`. */
export interface NetCounters {
  /** Taken from the driver, and on the wire. */
  transmitted: number;
  /** Frames that those to be cut became: segments and fragments. */
  segments: number;
  /** From the driver, dropped: short header, offsets beyond the frame, an offload that was not negotiated, too long. */
  malformed: number;
  /** From the driver, dropped for want of a link. */
  unlinked: number;
  /** Given to the driver. */
  received: number;
  /** Segments, datagrams and fragments that were put together, as they came. */
  coalesced: number;
  /** From the wire, dropped: not for the driver's addresses or VLANs. */
  filtered: number;
  /** From the wire, dropped: no driver runs, or its queue is being reset. */
  undelivered: number;
  /** From the wire, dropped: longer than the MTU or the driver's buffers, or no frame at all. */
  oversized: number;
  /** Control commands. */
  commands: number;
  /** Of these, answered ERR. */
  refused: number;
}

/** The back of a network device: give one to `net({ port })`, and look. */
export class NetPort {
  readonly counters: NetCounters = {
    transmitted: 0,
    segments: 0,
    malformed: 0,
    unlinked: 0,
    received: 0,
    coalesced: 0,
    filtered: 0,
    undelivered: 0,
    oversized: 0,
    commands: 0,
    refused: 0,
  };
  /** @internal Set by the device. */
  model: { announce(): void; filter(): NetFilterState; readonly activePairs: number } | null = null;

  /** Asks the driver to announce itself, as after a move to another wire (virtio 1.4 §5.1.9.5.4). */
  announce(): void {
    this.model?.announce();
  }

  /** The receive filter as the driver set it; null while there is no device. */
  get filter(): NetFilterState | null {
    return this.model?.filter() ?? null;
  }

  /** Pairs of queues that the driver enabled. */
  get activePairs(): number {
    return this.model?.activePairs ?? 0;
  }
}

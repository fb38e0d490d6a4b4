// What network drivers offer (FreeBSD's ifnet(9) and mbuf(9)).
import type { Attached } from "./attached.js";
import type { Endpoint } from "./streams.js";

/**
 * A frame in guest memory: an mbuf with its packet header. Made by its interface and used again: after it was given back, by
 * `release` or by `transmitBurst`, it is not to be touched. Bytes are `bytes[offset]` to `bytes[offset + length - 1]`, then those of
 * `next`.
 */
export interface Frame {
  /** All of guest memory: the same array for each frame. */
  readonly bytes: Uint8Array;
  /** First byte: the destination address, or where the buffer before ended. */
  offset: number;
  /** Bytes in this buffer. */
  length: number;
  /** The rest of the frame; null: this is all (m_next). */
  next: Frame | null;
  /** Bytes that this buffer has room for from `offset` on. */
  readonly room: number;

  // ── of the first buffer only: what the device is to do, or has done (virtio 1.4 §5.1.6) ──

  /** Bits of NetHeaderFlag. */
  flags: number;
  /** NetGso, ECN or'ed to it. */
  gsoType: number;
  /** Payload bytes of each segment. */
  gsoSize: number;
  /** With NEEDS_CSUM: where the sum starts, bytes from the start of the frame. */
  csumStart: number;
  /** With NEEDS_CSUM: where it is stored, bytes from `csumStart`. */
  csumOffset: number;
  /** VLAN tag (PCP, DEI, id) that is not in the bytes; -1: none. */
  vlanTag: number;
  /** The pair of queues it came by, or is to go by; -1: the interface chooses, by flow. */
  queue: number;
  /** With HASH_REPORT: the hash, and NetHash plus one, or 0. */
  hash: number;
  hashType: number;
}

/** What an interface can do (IFCAP_*). Bit numbers. */
export enum InterfaceCapability {
  TXCSUM = 0,
  TXCSUM_IPV6 = 1,
  RXCSUM = 2,
  RXCSUM_IPV6 = 3,
  TSO4 = 4,
  TSO6 = 5,
  LRO = 6,
  VLAN_MTU = 7,
  VLAN_HWTAGGING = 8,
  VLAN_HWCSUM = 9,
  VLAN_HWFILTER = 10,
  VLAN_HWTSO = 11,
  JUMBO_MTU = 12,
  LINKSTATE = 13,
}

/** What an interface counted since it attached (if_data). */
export interface InterfaceStatistics {
  readonly ipackets: number;
  readonly ibytes: number;
  readonly imcasts: number;
  readonly ierrors: number;
  /** Received frames dropped for want of a buffer. */
  readonly iqdrops: number;
  readonly opackets: number;
  readonly obytes: number;
  readonly omcasts: number;
  readonly oerrors: number;
  /** Frames that found no room in a transmit queue. */
  readonly oqdrops: number;
}

/** One frame as it passed, for capture (bpf(4)). */
export interface CapturedFrame {
  readonly direction: "in" | "out";
  /** Milliseconds on the machine's clock. */
  readonly time: number;
  /** A copy. Of a frame that the device segments or puts together: the whole. */
  readonly bytes: Uint8Array;
}

/** When a device interrupts (virtio 1.4 §5.1.6.5.8): after so many packets or microseconds, what comes first; 0: each packet. */
export interface Coalescing {
  readonly maxPackets: number;
  readonly maxMicroseconds: number;
}

/**
 * vtnet. Frames are Ethernet without FCS. Two forms that may be mixed: streams of copies, and underneath synchronous bursts, which
 * allocate nothing. An interface is down until `up()`; a frame given to one that is down, or has no link, waits.
 *
 * Rejections are VirtioFaults: INVALID, UNSUPPORTED (no such feature), BUSY, IO (the device refused a command), TIMED_OUT, CLOSED,
 * DEVICE_MISBEHAVED.
 */
export interface NetworkInterface extends Attached, Endpoint {
  readonly kind: "network";
  /** `vtnet0` */
  readonly name: string;
  /** `52:54:00:12:34:56` */
  readonly mac: string;
  readonly mtu: number;
  /** Largest MTU that `setMtu` takes. */
  readonly maxMtu: number;
  /** Between up() and down() (IFF_UP, IFF_DRV_RUNNING). */
  readonly running: boolean;
  readonly promiscuous: boolean;
  readonly allMulticast: boolean;
  readonly link: {
    readonly up: boolean;
    /** Mbit/s; null: the device does not say. */
    readonly speed: number | null;
    readonly duplex: "full" | "half" | null;
  };
  /** Pairs of queues in use. */
  readonly queuePairs: number;
  readonly capabilities: ReadonlySet<InterfaceCapability>;
  readonly enabled: ReadonlySet<InterfaceCapability>;
  readonly statistics: InterfaceStatistics;

  up(): Promise<void>;
  down(): Promise<void>;
  /** Bytes of payload, 68 to `maxMtu`. */
  setMtu(mtu: number): Promise<void>;
  setMac(mac: string): Promise<void>;
  setPromiscuous(on: boolean): Promise<void>;
  setAllMulticast(on: boolean): Promise<void>;
  /** Addresses to receive besides the interface's own and broadcast; more than the device takes fall back to promiscuous mode. */
  setUnicast(addresses: readonly string[]): Promise<void>;
  /** Groups to receive; more than the device takes fall back to all of them. */
  setMulticast(addresses: readonly string[]): Promise<void>;
  /** Lets frames of a VLAN, 1 to 4094, through the filter (vlan_config event). */
  addVlan(id: number): Promise<void>;
  removeVlan(id: number): Promise<void>;
  /** Switches a capability (ifconfig's `txcsum`, `-lro`). */
  setCapability(capability: InterfaceCapability, on: boolean): Promise<void>;
  setCoalescing(direction: "receive" | "transmit", coalescing: Coalescing): Promise<void>;
  /** Calls `listener` as a task after the link went up or down; call what it returns to stop. */
  onLinkChange(listener: (up: boolean) => void): () => void;
  /** Calls `listener` with each frame that passes; call what it returns to stop. */
  capture(listener: (frame: CapturedFrame) => void): () => void;

  // ── bursts: synchronous, nothing allocated for a frame, nothing thrown ──

  /** A frame to fill and transmit, `length` 0; null: all are in use. */
  allocate(): Frame | null;
  /** Gives back a frame, and all behind it. */
  release(frame: Frame): void;
  /**
   * Takes received frames from one pair of queues; they are the caller's until released or transmitted.
   * @returns how many were put into `frames`, from index 0 on
   */
  receiveBurst(queue: number, frames: (Frame | null)[], max: number): number;
  /**
   * Transmits the first `count` of `frames`. Those that were taken are the interface's; one that cannot be sent at all (larger than
   * the MTU, an offload that is not enabled) counts as an output error and is taken too.
   * @param queue - the pair of queues; -1: each frame's own `queue`
   * @returns how many were taken; less than `count`: there is no room now
   */
  transmitBurst(queue: number, frames: readonly (Frame | null)[], count: number): number;
  /** Called as a task when a pair of queues has received frames; take them until `receiveBurst` returns 0. While set, `readable` gets none. */
  onReceive: ((queue: number) => void) | null;
  /** Called as a task when there is room again after `transmitBurst` took less than it was given. */
  onRoom: (() => void) | null;
}

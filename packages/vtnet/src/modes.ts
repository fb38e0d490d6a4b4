// What queues do with frames: by what is negotiated until the next init, by what is switched on at any time.
import { type FeatureSet, InterfaceCapability, ReservedFeature } from "@virtio/core";
import {
  NET_HEADER_HASH_SIZE,
  NET_HEADER_LEGACY_SIZE,
  NET_HEADER_SIZE,
  NetFeature,
  NetGso,
} from "@virtio/core/net";
import type { FramePool } from "./buffers.js";
import { type Features, receivesSegments, transmitsSegments } from "./features.js";
import type { ReceiveFlags, ReceiveMode } from "./receive-queue.js";
import type { TransmitFlags, TransmitMode } from "./transmit-queue.js";

const { TXCSUM, TXCSUM_IPV6, RXCSUM, TSO4, TSO6, LRO, VLAN_HWTAGGING } = InterfaceCapability;

/** A header may share a descriptor with its frame; not on old devices (virtio 1.4 §5.1.9.8). */
export const isInline = (features: FeatureSet<Features>): boolean =>
  features.has(ReservedFeature.VERSION_1) || features.has(ReservedFeature.ANY_LAYOUT);

/** A receive buffer must take several segments by itself ("LRO without merge"). */
export const isWhole = (features: FeatureSet<Features>): boolean =>
  !features.has(NetFeature.MRG_RXBUF) && receivesSegments(features);

function headerSizeOf(features: FeatureSet<Features>): number {
  if (features.has(NetFeature.HASH_REPORT)) return NET_HEADER_HASH_SIZE;
  return features.has(ReservedFeature.VERSION_1) || features.has(NetFeature.MRG_RXBUF)
    ? NET_HEADER_SIZE
    : NET_HEADER_LEGACY_SIZE;
}

/** @param most - clusters that the device has at most */
export const receiveMode = (
  features: FeatureSet<Features>,
  pool: FramePool,
  most: number,
): ReceiveMode => ({
  pool,
  most,
  headerSize: headerSizeOf(features),
  inline: isInline(features),
  hashes: features.has(NetFeature.HASH_REPORT),
  mergeable: features.has(NetFeature.MRG_RXBUF),
  whole: isWhole(features),
});

export const transmitMode = (features: FeatureSet<Features>, pool: FramePool): TransmitMode => ({
  pool,
  headerSize: headerSizeOf(features),
  inline: isInline(features),
  indirect: features.has(ReservedFeature.INDIRECT_DESC),
  lengths: transmitsSegments(features),
  ecn: features.has(NetFeature.GSO) || features.has(NetFeature.HOST_ECN),
});

/** Bit `1 << type` of each type that is true. */
const gsoBits = (...types: readonly (readonly [boolean, NetGso])[]): number =>
  types.reduce((bits, [on, type]) => (on ? bits | (1 << type) : bits), 0);

/** Sets what receive queues look at. */
export function setReceiveFlags(
  flags: ReceiveFlags,
  features: FeatureSet<Features>,
  enabled: ReadonlySet<InterfaceCapability>,
): void {
  const takes = (feature: NetFeature): boolean => enabled.has(LRO) && features.has(feature);
  flags.rxcsum = enabled.has(RXCSUM) && features.has(NetFeature.GUEST_CSUM);
  flags.tagging = enabled.has(VLAN_HWTAGGING);
  flags.gsoTypes = gsoBits(
    [takes(NetFeature.GUEST_TSO4), NetGso.TCPV4],
    [takes(NetFeature.GUEST_TSO6), NetGso.TCPV6],
    [takes(NetFeature.GUEST_UFO), NetGso.UDP],
    [takes(NetFeature.GUEST_USO4) || takes(NetFeature.GUEST_USO6), NetGso.UDP_L4],
  );
}

/** Sets what transmit queues look at. */
export function setTransmitFlags(
  flags: TransmitFlags,
  features: FeatureSet<Features>,
  enabled: ReadonlySet<InterfaceCapability>,
): void {
  const csum4 = enabled.has(TXCSUM);
  const csum6 = enabled.has(TXCSUM_IPV6);
  const udp = csum4 && csum6;
  flags.csum4 = csum4;
  flags.csum6 = csum6;
  flags.gsoTypes = gsoBits(
    [csum4 && enabled.has(TSO4), NetGso.TCPV4],
    [csum6 && enabled.has(TSO6), NetGso.TCPV6],
    [udp && (features.has(NetFeature.HOST_UFO) || features.has(NetFeature.GSO)), NetGso.UDP],
    [udp && features.has(NetFeature.HOST_USO), NetGso.UDP_L4],
  );
}

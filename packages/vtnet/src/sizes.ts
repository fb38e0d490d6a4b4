// Sizes: of the longest chains, and of clusters, and how many of them there are (vtnet_alloc_virtqueues, vtnet_rx_cluster_size).
import type { DmaMemory, DriverContext, FeatureSet, Virtqueue } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { ETHERNET_HEADER_SIZE, VLAN_TAG_SIZE } from "@virtio/packets";
import { FramePool, HEADROOM } from "./buffers.js";
import { type Features, receiveSegments, transmitsSegments } from "./features.js";
import { isInline, isWhole } from "./modes.js";
import { BUFFERS_MAX } from "./offload.js";
import { clustersOfWhole, WHOLE_BUFFERS_MAX } from "./receive-queue.js";
import type { Settled } from "./settle.js";

/** Bytes of a cluster (MCLBYTES, MJUMPAGESIZE). */
const CLUSTER = 2048;
const PAGE = 4096;
/** Clusters of a queue, at most and at least. */
const SHARE_MAX = BUFFERS_MAX;
const SHARE_MIN = 16;
/** Clusters for those who hold frames for a while. */
const SPARE = 64;
/** Longest chains to transmit (VTNET_TX_SEGS_MAX, VTNET_TX_SEGS_MIN). */
const TX_SEGMENTS_MAX = 64;
const TX_SEGMENTS_MIN = 32;

/** Longest chains of both directions. */
export function segmentsOf(features: FeatureSet<Features>): { receive: number; transmit: number } {
  const header = isInline(features) ? 0 : 1;
  return {
    receive: header + (isWhole(features) ? clustersOfWhole(CLUSTER - HEADROOM) : 1),
    transmit: transmitsSegments(features) ? TX_SEGMENTS_MAX : TX_SEGMENTS_MIN,
  };
}

/**
 * What goes with rings of these sizes: a chain is never longer than its ring (virtio 1.4 §2.7.5.3.1). What is dropped here, the device
 * is told at the next reset, which is before it has any buffer.
 */
export function fitted(
  settled: Settled,
  [receiver]: readonly Virtqueue[],
  { log }: DriverContext,
): Settled {
  const { features } = settled;
  const size = receiver?.size ?? 0;
  if (!isWhole(features) || size >= segmentsOf(features).receive) return settled;
  log(`LRO disabled due to a receive queue of ${size} descriptors without mergeable buffers`);
  return { ...settled, features: features.without(...receiveSegments) };
}

/** Bytes of a cluster for an MTU. */
export function clusterSizeFor({ features, mtu: advised }: Settled, mtu: number): number {
  const mergeable = features.has(NetFeature.MRG_RXBUF);
  // Without merging a buffer takes the largest frame that the device may send (§5.1.4.2).
  const largest = mergeable ? mtu : Math.max(mtu, advised ?? 0);
  const need = HEADROOM + ETHERNET_HEADER_SIZE + VLAN_TAG_SIZE + largest;
  if (need <= CLUSTER) return CLUSTER;
  return mergeable ? PAGE : FramePool.clusterSize(need);
}

/** Clusters of an interface, and how many of them a receive queue has at most. */
export interface Clusters {
  readonly pool: FramePool;
  readonly most: number;
}

/** As many as the rings hold, or as half of the memory has room for. @throws VirtioFault OUT_OF_MEMORY */
export function makeClusters(
  memory: DmaMemory,
  settled: Settled,
  [rx, tx]: readonly [Virtqueue, Virtqueue],
  mtu: number,
): Clusters {
  const size = clusterSizeFor(settled, mtu);
  const whole = isWhole(settled.features);
  for (let share = SHARE_MAX; ; share >>>= 1) {
    const most = Math.min(rx.size, share);
    const each = whole
      ? Math.min(most, WHOLE_BUFFERS_MAX) * clustersOfWhole(size - HEADROOM)
      : most;
    const count = settled.pairs * (each + Math.min(tx.size, share)) + SPARE;
    // Other devices need memory too.
    if (share > SHARE_MIN && count * size > memory.available / 2) continue;
    return { pool: new FramePool(memory, size, count), most };
  }
}
